"""Keeps the outbox on the disk. SHELL: one task for the life of the agent, whose waiting is done in threads."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from mindgw_agent import records
from mindgw_agent.outbox import Copy, Outbox

log = logging.getLogger("mindgw.agent")

#: Seconds for which receipts gather before they are synced and sent.
GATHER = 0.1
#: Seconds between syncs, and between tries of a disk that refuses.
SYNC_EVERY = 1.0
#: Bytes that are copied at once.
PIECE = 1024 * 1024


async def keep(outbox: Outbox, told: Callable[[str], None]) -> None:
    """Sync, tidy up and repair, for ever. `told` hears of each new `trouble`, and "" when it is over."""
    clock = asyncio.get_running_loop().time
    work = asyncio.Event()
    outbox.on_work = work.set
    work.set()
    before = ""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_EVERY if outbox.trouble else None):
                await work.wait()
        begun = clock()
        if outbox.trouble != before:  # people hear of it before anything is tried
            before = _tell(outbox.trouble, told)
        await asyncio.sleep(GATHER)
        work.clear()
        try:
            await _round(outbox)
        except Exception:  # the top of a task: a defect in here must not end the agent
            log.exception("the outbox could not be looked after; it is tried again")
        if outbox.trouble != before:
            before = _tell(outbox.trouble, told)
        await asyncio.sleep(max(0.0, begun + SYNC_EVERY - clock()))


def _tell(trouble: str, told: Callable[[str], None]) -> str:
    if trouble:
        log.error("no new requests are taken: %s", trouble)
    else:
        log.info("receipts are kept again: new requests are taken")
    told(trouble)
    return trouble


async def _round(outbox: Outbox) -> None:
    if outbox.needs_repair:
        outbox.repair()
    try:
        if outbox.needs_copy:
            await _copy(outbox)
        if outbox.needs_sync:
            await _sync(outbox)
    except OSError as error:
        outbox.sync_done(outbox.chain, outbox.synced, error)


async def _sync(outbox: Outbox) -> None:
    chain, last = outbox.chain, outbox.last
    await asyncio.to_thread(_fsync, outbox.handle())
    outbox.sync_done(chain, last, None)


async def _copy(outbox: Outbox) -> None:
    """Write what is not acknowledged into a new file. Nothing counts as on the disk before the new name is there too."""
    copy = outbox.copy_begin()
    file, size = await asyncio.to_thread(_write, copy)
    outbox.copy_done(copy, file, size)
    await asyncio.to_thread(_sync_directory, copy.path.parent)


def _fsync(file: int) -> None:
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(copy: Copy) -> tuple[int, int]:
    """The new file, open, and its size."""
    try:
        file = os.open(copy.path, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            return file, _fill(file, copy)
        except OSError:
            os.close(file)
            copy.path.unlink(missing_ok=True)
            raise
    finally:
        os.close(copy.source)


def _fill(file: int, copy: Copy) -> int:
    with os.fdopen(os.dup(file), "wb") as out:
        size = out.write(records.pack(copy.base))
        for start in range(copy.start, copy.stop, PIECE):
            size += out.write(os.pread(copy.source, min(PIECE, copy.stop - start), start))
        out.flush()
        os.fsync(out.fileno())
    return size


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    _fsync(handle)
