"""What is done for the outbox in the background, and what happens when it fails."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mindgw_agent import bookkeeping
from mindgw_agent import outbox as rooms
from mindgw_agent.outbox import Outbox
from mindgw_agent.wire import Receipt


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "GATHER", 0.002)
    monkeypatch.setattr(bookkeeping, "SYNC_EVERY", 0.005)


@asynccontextmanager
async def kept(path: Path, **more) -> AsyncIterator[tuple[Outbox, list[str]]]:
    """An outbox that is looked after, and what was told of trouble."""
    outbox = Outbox(path / "outbox", "a1", fresh=True, **more)
    outbox.open()
    told: list[str] = []
    task = asyncio.create_task(bookkeeping.keep(outbox, told.append))
    try:
        yield outbox, told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        outbox.close()


async def until(true) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


def add(outbox: Outbox, count: int = 1, size: int = 10) -> None:
    for _ in range(count):
        outbox.append(Receipt(tag=b"t" * size, outcome="done"))


def reopened(path: Path) -> Outbox:
    outbox = Outbox(path / "outbox", "a1", fresh=False)
    outbox.open()
    return outbox


async def test_receipts_are_on_the_disk_soon_and_together(tmp_path, monkeypatch):
    syncs: list[int] = []
    monkeypatch.setattr(bookkeeping, "GATHER", 0.05)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (syncs.append(file), real(file))[1])
    async with kept(tmp_path) as (outbox, _):
        await asyncio.sleep(0)
        before = len(syncs)
        for _ in range(20):
            add(outbox)
            await asyncio.sleep(0)
        await until(lambda: outbox.synced == 20)
        assert len(syncs) - before <= 2


async def test_what_was_acknowledged_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "WASTE", 4000)
    async with kept(tmp_path) as (outbox, told):
        add(outbox, 100)
        await until(lambda: outbox.synced == 100)
        outbox.acknowledged(60)
        await until(lambda: (tmp_path / "outbox").stat().st_size < 60 * 100)
        add(outbox, 5)
        await until(lambda: outbox.synced == 105)
        assert told == []
        head = outbox.head
        outbox.acknowledged(105)
        await until(lambda: (tmp_path / "outbox").stat().st_size < 200)
        assert (reopened(tmp_path).head, reopened(tmp_path).waiting) == (head, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outbox"]


async def test_appends_during_a_copy_are_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "WASTE", 1000)
    loop = asyncio.get_running_loop()
    real = bookkeeping._write
    async with kept(tmp_path) as (outbox, _):

        def slow(copy):
            done = real(copy)
            asyncio.run_coroutine_threadsafe(late(), loop).result(5)
            return done

        async def late() -> None:
            add(outbox, 3)
            outbox.acknowledged(35)

        add(outbox, 40)
        await until(lambda: outbox.synced == 40)
        monkeypatch.setattr(bookkeeping, "_write", slow)
        outbox.acknowledged(30)
        await until(lambda: outbox.last == 43 and outbox.synced == 43)
        again = reopened(tmp_path)
        assert (again.last, again.head, again.acked) == (43, outbox.head, 35)
        batch = outbox.batch(35, outbox.acked_hash)
        assert batch is not None
        assert (batch.last, batch.head) == (43, outbox.head)


@pytest.mark.parametrize("broken", ["fsync", "open", "replace", "dup"])
async def test_a_disk_that_fails_in_the_background_is_trouble_and_then_written_anew(tmp_path, monkeypatch, broken, caplog):
    monkeypatch.setattr(rooms, "WASTE", 1000)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    async with kept(tmp_path) as (outbox, told):
        add(outbox, 40)
        await until(lambda: outbox.synced == 40)
        with monkeypatch.context() as patched:
            patched.setattr(Path if broken == "replace" else os, broken, fail)
            outbox.acknowledged(30)
            add(outbox)
            await until(lambda: bool(told))
            assert "Input/output error" in outbox.trouble
            add(outbox)
        await until(lambda: len(told) == 2)
        await until(lambda: outbox.synced == 42)
        assert told[1] == ""
        assert (reopened(tmp_path).last, outbox.waiting) == (42, 12)
    assert "no new requests are taken: receipts cannot be written" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outbox"]


async def test_a_copy_of_a_chain_that_began_anew_meanwhile_is_thrown_away(tmp_path):
    async with kept(tmp_path) as (outbox, _):
        add(outbox, 3)
        copy = outbox.copy_begin()
        file, size = bookkeeping._write(copy)
        outbox.acknowledged(9)
        outbox.copy_done(copy, file, size)
        again = reopened(tmp_path)
        assert (again.acked, again.last, again.waiting) == (9, 12, 3)


async def test_a_copy_that_the_disk_takes_in_part_is_thrown_away(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox", "a1", fresh=True)
    outbox.open()
    add(outbox, 3)
    copy = outbox.copy_begin()
    file, size = bookkeeping._write(copy)
    add(outbox)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda *_: 1)
        with pytest.raises(OSError, match="No space left"):
            outbox.copy_done(copy, file, size)
    assert reopened(tmp_path).last == outbox.last == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outbox"]
    outbox.close()


async def test_a_defect_in_the_background_does_not_end_it(tmp_path, monkeypatch, caplog):
    async with kept(tmp_path) as (outbox, _):
        with monkeypatch.context() as patched:
            patched.setattr(Outbox, "needs_copy", property(lambda self: 1 / 0))
            add(outbox)
            await until(lambda: "could not be looked after" in caplog.text)
        add(outbox)
        await until(lambda: outbox.synced == 2)
