"""When what an agent says leaves: at the end of a turn, or a little later when it is in the middle of answers on a busy link."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mindgw_agent import events, link
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.wire import Close, EngineReport, Model
from tests.agent.gateway import Gateway
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
