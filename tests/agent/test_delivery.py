"""Receipts on their way to the server: what waited first, then what comes, each until it is acknowledged, and the word that all is told."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindgw_agent import bookkeeping, delivery, errors, identity, link, wire
from mindgw_agent import outbox as outbox_room
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.outbox import Outbox
from mindgw_agent.tunnel import connect_once
from mindgw_agent.wire import Close, ProtocolError, Receipt, Usage
from tests.agent.gateway import Gateway, gateway
from tests.agent.linked import Agent, FakeEngine, connected, echo

DONE = Close("done", usage=Usage(3, 5, 1), events=6, bytes=70, status=200)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is looked after more often than is good for one."""
    monkeypatch.setattr(bookkeeping, "GATHER", 0.01)
    monkeypatch.setattr(bookkeeping, "SYNC_EVERY", 0.02)


async def works(engine: FakeEngine, request: Request, out: Outlet) -> None:
    """A fake exchange that costs something."""
    out.head(200, "application/json", request.body)
    out.bill(DONE)
    out.close(DONE)


def holds(started: asyncio.Event, let_go: asyncio.Event) -> Callable[..., Any]:
    """A fake exchange whose engine is slow to let go of what is cancelled."""

    async def hold(engine: FakeEngine, request: Request, out: Outlet) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
            close = Close("cancelled", usage=Usage(3, 2, source="counted"), events=2)
            out.bill(close)
            out.close(close)

    return hold


def filled(path: Path, count: int) -> Outbox:
    """An outbox that an earlier process left."""
    outbox = Outbox(path / "outbox", "a1", fresh=True)
    outbox.open()
    for number in range(count):
        outbox.append(Receipt(tag=b"%d" % number, outcome="done", completion=number))
    outbox.close()
    return Outbox(path / "outbox", "a1", fresh=False)


def kept(server: Gateway) -> list[bytes]:
    return [receipt.tag for receipt in server.kept]


def clear(server: Gateway) -> bool:
    return bool(server.batches) and server.batches[-1].clear


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


async def test_an_agent_that_has_nothing_to_tell_says_so() -> None:
    async with connected() as (server, _):
        await server.until(lambda: clear(server))
        assert [(batch.receipts, batch.after, batch.head) for batch in server.batches] == [([], 0, wire.genesis("a1"))]


async def test_what_a_request_cost_is_kept_before_its_end_is_told_and_then_brought() -> None:
    async with connected(works, keeps=False) as (server, agent):
        close = await asyncio.wait_for(server.ask(b"{}").close, 5)
        assert (close.outcome, agent.outbox.last) == ("done", 1)
        await server.until(lambda: any(batch.receipts for batch in server.batches))
        [batch] = [batch for batch in server.batches if batch.receipts]
        [receipt] = batch.receipts
        assert (receipt.seq, receipt.tag, receipt.outcome, receipt.source) == (1, b"bill", "done", "engine")
        assert (receipt.prompt, receipt.completion, receipt.cached, receipt.events, receipt.bytes) == (3, 5, 1, 6, 70)
        assert receipt.at > 1_700_000_000_000
        assert (batch.clear, agent.outbox.waiting) == (True, 1)
        server.keep(batch)
        await until(lambda: not agent.outbox.waiting)


async def test_a_request_without_a_tag_and_one_that_made_nothing_leave_no_receipt() -> None:
    async with connected(works) as (server, agent):
        await asyncio.wait_for(server.ask(tag=b"").close, 5)
        await asyncio.wait_for(server.ask(engine="elsewhere").close, 5)
        assert agent.outbox.last == 0

    async def busy(engine: FakeEngine, request: Request, out: Outlet) -> None:
        out.bill(Close("busy"))
        out.close(Close("busy"))
        out.bill(DONE)

    async with connected(busy) as (server, agent):
        await asyncio.wait_for(server.ask().close, 5)
        assert agent.outbox.last == 0


async def test_what_waited_is_brought_first_and_then_the_word_that_it_was_all(tmp_path: Path) -> None:
    async with connected(works, filled(tmp_path, 450)) as (server, agent):
        await server.until(lambda: clear(server))
        assert kept(server) == [b"%d" % number for number in range(450)]
        assert [batch.clear for batch in server.batches][:-1] == [False] * (len(server.batches) - 1)
        assert server.batches[-1].receipts == []
        assert max(len(batch.receipts) for batch in server.batches) == wire.MAX_BATCH
        await asyncio.wait_for(server.ask().close, 5)
        await server.until(lambda: len(server.kept) == 451)
        assert clear(server)
        await until(lambda: not agent.outbox.waiting)


async def test_few_batches_are_on_their_way_while_the_server_is_silent(tmp_path: Path) -> None:
    async with connected(echo, filled(tmp_path, 1100), keeps=False) as (server, agent):
        await server.until(lambda: len(server.batches) == delivery.AHEAD)
        await asyncio.wait_for(server.ask().close, 5)
        assert len(server.batches) == delivery.AHEAD
        assert not clear(server)
        server.keeps = True
        for batch in [*server.batches]:
            server.keep(batch)
        await server.until(lambda: clear(server))
        assert len(server.kept) == 1100
        await until(lambda: not agent.outbox.waiting)


async def test_what_is_not_acknowledged_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "AGAIN", 0.05)
    async with connected(echo, filled(tmp_path, 3), keeps=False) as (server, agent):
        await server.until(lambda: len(server.batches) == 3)
        server.keeps = True
        await server.until(lambda: clear(server))
        assert kept(server) == [b"0", b"1", b"2"]
        assert agent.outbox.waiting == 0


async def test_what_was_not_acknowledged_comes_again_on_the_next_link(tmp_path: Path) -> None:
    async with connected(works, filled(tmp_path, 3), keeps=False) as (server, _):
        await server.until(lambda: len(server.batches) == 1)
        server.socket.transport.abort()
        await server.until(lambda: len(server.epochs) == 2 and len(server.batches) == 2)
        assert server.batches[0].receipts == server.batches[1].receipts
        server.keeps = True
        server.keep(server.batches[0])
        server.keep(server.batches[1])
        await server.until(lambda: clear(server))
        assert kept(server) == [b"0", b"1", b"2"]


async def test_work_of_a_lost_link_has_its_receipt_and_nothing_is_clear_before_it_was_brought() -> None:
    started, let_go = asyncio.Event(), asyncio.Event()
    async with connected(holds(started, let_go)) as (server, _):
        await server.until(lambda: clear(server))
        server.ask()
        await asyncio.wait_for(started.wait(), 5)
        server.socket.transport.abort()
        await server.until(lambda: len(server.epochs) == 2 and server.link is not None)
        told = len(server.batches)
        other = await asyncio.wait_for(server.ask(engine="elsewhere").close, 5)
        assert (other.code, len(server.batches)) == ("refused", told), "the engine still works for the link that was lost"
        let_go.set()
        await server.until(lambda: clear(server) and len(server.batches) > told)
        [receipt] = server.kept
        assert (receipt.outcome, receipt.completion, receipt.events) == ("cancelled", 2, 2)
        assert [batch.clear for batch in server.batches[told:]] == [False, True]


async def test_work_that_ends_while_there_is_no_link_is_brought_by_the_next() -> None:
    started, let_go = asyncio.Event(), asyncio.Event()
    async with connected(holds(started, let_go)) as (server, agent):
        server.ask()
        await asyncio.wait_for(started.wait(), 5)
        let_go.set()
        server.socket.transport.abort()
        await until(lambda: agent.outbox.last == 1)
        await server.until(lambda: len(server.kept) == 1)
        await server.until(lambda: clear(server) and server.epochs == [1, 2])


async def test_a_server_that_knows_later_receipts_hears_the_same_under_new_numbers(tmp_path: Path) -> None:
    async with connected(echo, filled(tmp_path, 3), last=50, head=b"k" * 32) as (server, agent):
        await server.until(lambda: clear(server))
        assert kept(server) == [b"0", b"1", b"2"]
        assert [receipt.seq for receipt in server.kept] == [51, 52, 53]
        assert "not on this disk" in next(batch.gap for batch in server.batches if batch.gap)
        assert agent.outbox.waiting == 0


async def test_who_leaves_waits_a_little_for_the_last_word_on_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LAST_RECEIPTS", 0.2)
    clock = asyncio.get_running_loop().time
    for keeps, least in [(False, 0.2), (True, 0.0)]:
        async with connected(works, keeps=False) as (server, agent):
            await asyncio.wait_for(server.ask().close, 5)
            await server.until(lambda server=server: any(batch.receipts for batch in server.batches))
            begun = clock()
            agent.tunnel.leave()
            await server.until(lambda server=server: server.drained)
            if keeps:
                server.keep(server.batches[-1])
            await until(lambda agent=agent: agent.tunnel.link is None)
            assert clock() - begun >= least
            assert agent.outbox.waiting == (0 if keeps else 1)


async def test_a_server_that_does_not_read_receipts_loses_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, batch: wire.Receipts) -> None:
        raise ProtocolError("the peer does not read what it asks for")

    monkeypatch.setattr(link.Session, "receipts", refuse)
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)
        ended = await asyncio.wait_for(connect_once(agent.tunnel, agent.address, None), 5)
    assert "does not read" in ended.error


async def test_a_word_about_receipts_before_the_welcome_means_nothing() -> None:
    async with connected() as (_, agent):
        agent.tunnel.link._delivery = None
        agent.tunnel.link._received(wire.Received(1))
        assert agent.outbox.acked == 0


# -- an outbox that cannot be used -----------------------------------------------------------------------------------------


async def test_an_agent_that_cannot_keep_receipts_takes_nothing_new_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async with connected(works) as (server, agent):
        with monkeypatch.context() as patched:
            patched.setattr("os.pwrite", full)
            first = await asyncio.wait_for(server.ask().close, 5)
            assert (first.outcome, agent.outbox.waiting) == ("done", 1)
            second = await asyncio.wait_for(server.ask().close, 5)
            assert (second.outcome, second.code) == ("failed", "draining")
            assert "No space left" in second.message
            unbilled = await asyncio.wait_for(server.ask(tag=b"").close, 5)
            assert unbilled.outcome == "done"
            await until(lambda: bool(agent.heard))
        await server.until(lambda: len(server.kept) == 1)
        assert (await asyncio.wait_for(server.ask().close, 5)).outcome == "done"
        await server.until(lambda: len(server.kept) == 2)
        assert [bool(trouble) for trouble in agent.heard] == [True, False]


async def test_an_outbox_that_is_full_is_emptied_by_the_server_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_room, "WASTE", 1000)
    filled(tmp_path, 300)
    outbox = Outbox(tmp_path / "outbox", "a1", fresh=False, limit=30_000)
    async with connected(works, outbox, keeps=False) as (server, agent):
        await server.until(lambda: len(server.batches) == 2)
        refused = await asyncio.wait_for(server.ask().close, 5)
        assert (refused.code, "is full" in refused.message) == ("draining", True)
        server.keeps = True
        for batch in [*server.batches]:
            server.keep(batch)
        await until(lambda: not agent.outbox.trouble)
        assert (await asyncio.wait_for(server.ask().close, 5)).outcome == "done"
        assert (tmp_path / "outbox").stat().st_size < 30_000


async def test_an_outbox_that_cannot_be_read_is_never_called_empty(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    async with connected(echo, Outbox(tmp_path / "outbox", "a1", fresh=True)) as (server, _):
        refused = await asyncio.wait_for(server.ask().close, 5)
        assert (refused.code, server.batches) == ("draining", [])
        (tmp_path / "outbox").rmdir()
        await server.until(lambda: clear(server))
        assert (await asyncio.wait_for(server.ask().close, 5)).outcome == "done"


async def test_a_disk_that_takes_no_epoch_now_is_tried_again_later() -> None:
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)

        def fail(epoch: int) -> None:
            raise errors.BadState("cannot write agent.json: No space left on device")

        agent.tunnel._save_epoch = fail
        ended = await asyncio.wait_for(connect_once(agent.tunnel, agent.address, None), 5)
    assert (ended.lived, ended.error) == (0.0, "cannot write agent.json: No space left on device")
