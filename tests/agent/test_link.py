"""When what an agent says leaves: at the end of a turn, or a little later when it is in the middle of answers on a busy link."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import serve as listen

from mindgw_agent import address, errors, events, identity, link, wire
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.tunnel import connect_once
from mindgw_agent.wire import Close, EngineReport, Goodbye, Model
from tests.agent.gateway import Gateway, gateway
from tests.agent.linked import Agent, FakeEngine, connected, echo


class Held:
    """A fake exchange that leaves its outlets to the test."""

    def __init__(self) -> None:
        self.outs: list[Any] = []
        self.free = asyncio.Event()

    async def __call__(self, engine: FakeEngine, request: Request, out: Outlet) -> None:
        out.head(200, "text/event-stream", b"data: 0\n\n")
        self.outs.append(out)
        await self.free.wait()
        out.close(Close("done", status=200))


@asynccontextmanager
async def busy(streams: int) -> AsyncIterator[tuple[Gateway, Agent, list[Any], list[int]]]:
    """An agent with so many answers under way; gives their outlets, and the sizes of the messages that leave from then on."""
    held, sizes = Held(), []
    async with connected(held) as (server, agent):
        agent.engine.report = EngineReport(id="e1", kind="fake", healthy=True, slots=streams, models=[Model("m")])
        await agent.offer.probe()
        ears = [server.ask() for _ in range(streams)]
        await server.until(lambda: all(ear.body for ear in ears))
        socket = agent.tunnel.link._socket
        send = socket.send

        def count(message: bytes) -> None:
            sizes.append(len(message))
            send(message)

        socket.send = count
        await asyncio.sleep(0.005)
        sizes.clear()
        yield server, agent, held.outs, sizes
        held.free.set()
        for ear in ears:
            assert (await asyncio.wait_for(ear.close, 5)).outcome == "done"


async def turns(number: int = 2) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_what_is_said_in_one_turn_leaves_in_one_message_at_its_end() -> None:
    async with busy(3) as (_, agent, outs, sizes):
        agent.tunnel.link._flushed_at = asyncio.get_running_loop().time() + 100
        for out in outs:
            out.data(b"data: 1\n\n")
        assert sizes == []
        await turns()
        assert len(sizes) == 1


async def test_on_a_busy_link_the_middle_of_answers_waits_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "WAIT", 0.05)
    async with busy(link.BUSY) as (server, agent, outs, sizes):
        carrier, now = agent.tunnel.link, asyncio.get_running_loop().time
        carrier._flushed_at = now() - 1.0
        outs[0].data(b"data: 1\n\n")
        await turns()
        assert len(sizes) == 1  # the last message is long ago
        for out in outs:
            out.data(b"data: 2\n\n")
            await turns()
        assert len(sizes) == 1
        await server.until(lambda: len(sizes) == 2)
        for out in outs:
            out.data(b"data: 3\n\n")
        await turns()
        assert len(sizes) == 2
        outs[0].close(Close("done", status=200))  # takes along what waits
        await turns()
        assert len(sizes) == 3
        assert sizes[-1] > len(outs) * len(b"data: 3\n\n")
        assert carrier._later is None


async def test_very_many_wait_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "VERY_BUSY", link.BUSY)
    monkeypatch.setattr(link, "WAIT", 0.0)
    monkeypatch.setattr(link, "LONG_WAIT", 30.0)
    async with busy(link.BUSY) as (server, _, outs, sizes):
        outs[0].data(b"data: 1\n\n")
        await turns()
        assert sizes == []
        assert server.ask().stream  # a refusal for want of slots is urgent
        await server.until(lambda: len(sizes) == 1)


async def test_a_socket_that_is_full_is_given_nothing_until_it_has_room() -> None:
    async with busy(2) as (_, agent, outs, sizes):
        socket = agent.tunnel.link._socket
        socket.pause_writing()
        outs[0].data(b"x" * 1000)
        outs[1].data(b"y" * 1000)
        await turns(5)
        assert sizes == []
        assert all(out.is_full for out in outs)
        waiting = [asyncio.create_task(out.writable()) for out in outs]
        await turns()
        agent.tunnel.link._resume(events.Writable(outs[0].stream))
        await turns()
        assert not any(task.done() for task in waiting)
        socket.resume_writing()
        assert sum(sizes) > 2000
        await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    async with connected(echo) as (server, _):
        for round_trips in (5, 20):
            gc.collect()
            gc.disable()
            try:
                for _ in range(round_trips):
                    assert (await asyncio.wait_for(server.ask(b"x" * 1000).close, 5)).outcome == "done"
                await turns(5)
                found = gc.collect()
            finally:
                gc.enable()
        assert found < 20, f"{found} objects for 20 requests"


# -- its beginning and its end -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def greeted(carry: Any = echo) -> AsyncIterator[tuple[Gateway, Agent]]:
    """A gateway, and an agent that has yet to connect."""
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        yield server, Agent(server, key, carry)


async def test_what_comes_while_the_epoch_is_written_is_heard_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Gateway.handle

    async def hasty(self: Gateway, socket: Any) -> None:
        say = socket.send

        async def say_more(message: bytes) -> None:
            socket.send = say
            await say(message)
            await say(wire.encode(wire.frame(Goodbye("draining", "restart", 1.0))))

        socket.send = say_more
        await handle(self, socket)

    monkeypatch.setattr(Gateway, "handle", hasty)
    async with greeted() as (_, agent):
        keep, heard = agent.tunnel.keep_epoch, []

        async def slow(epoch: int) -> None:
            await asyncio.sleep(0.05)
            heard.append(agent.tunnel.link.goodbye)
            await keep(epoch)

        agent.tunnel.keep_epoch = slow
        ended = await asyncio.wait_for(connect_once(agent.tunnel, agent.address, None), 5)
        assert (heard, agent.saved, ended.goodbye.code) == ([None], [1], "draining")


async def test_an_epoch_is_written_to_its_end_though_the_server_is_gone() -> None:
    async with greeted() as (server, agent):
        keep, begun = agent.tunnel.keep_epoch, asyncio.Event()

        async def slow(epoch: int) -> None:
            begun.set()
            await asyncio.sleep(0.05)
            await keep(epoch)

        agent.tunnel.keep_epoch = slow
        connecting = asyncio.create_task(connect_once(agent.tunnel, agent.address, None))
        await asyncio.wait_for(begun.wait(), 5)
        agent.tunnel.link._socket.abort()
        await asyncio.wait_for(connecting, 5)
        assert (agent.saved, agent.tunnel.last_epoch, server.epochs) == ([1], 1, [])


async def test_an_epoch_that_cannot_be_written_ends_the_link_without_a_proof() -> None:
    async with greeted() as (server, agent):

        async def full(epoch: int) -> None:
            raise errors.BadState("the disk is full")

        agent.tunnel.keep_epoch = full
        ended = await asyncio.wait_for(connect_once(agent.tunnel, agent.address, None), 5)
        assert (ended.error, server.epochs) == ("the disk is full", [])


async def test_a_defect_at_this_end_is_not_taken_for_a_lost_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with greeted() as (server, agent):
        connecting = asyncio.create_task(connect_once(agent.tunnel, agent.address, None))
        await server.until(lambda: server.link is not None)

        def broken(event: Any) -> None:
            raise KeyError("a defect")

        agent.tunnel.link._handlers[Request] = broken
        server.ask()
        with pytest.raises(KeyError):
            await asyncio.wait_for(connecting, 5)


async def test_the_round_trip_is_measured_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PING_EVERY", 0.0)
    monkeypatch.setattr(link, "TICK", 0.01)
    async with connected() as (_, agent):
        for _ in range(2):
            agent.tunnel.link.rtt_ms = None
            async with asyncio.timeout(5):
                while agent.tunnel.link.rtt_ms is None:
                    await asyncio.sleep(0.005)


async def test_a_server_that_does_not_read_what_it_asks_for_is_left() -> None:
    async with connected() as (server, agent):
        carrier = agent.tunnel.link

        def refuse(limit: int) -> bytes:
            raise wire.ProtocolError("the peer does not read what it asks for")

        carrier._session.take = refuse
        carrier.say()
        await server.until(lambda: len(server.epochs) == 2)
        assert carrier.error == "the peer does not read what it asks for"
        carrier.message(b"garbage")  # it is not listened to any more
        carrier._resume(events.Writable(99))
        carrier._cancel(events.Cancel(99))


async def test_a_server_that_speaks_another_protocol_is_left() -> None:
    async with greeted() as (_, agent), listen(lambda socket: socket.wait_closed(), "127.0.0.1", 0) as other:
        where = address.parse(f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}")
        ended = await asyncio.wait_for(connect_once(agent.tunnel, where, None), 5)
        assert "does not speak mindgw.1" in ended.error
