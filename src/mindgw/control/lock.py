"""One server a data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindgw.errors import ConfigError, Conflict

FILE = "serve.lock"


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Serve alone: raises Conflict (already_running) naming the process that serves from this directory. The lock is the kernel's and
    ends with the process, however it ends; the file stays."""
    try:
        handle = os.open(directory / FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "`mindgw init` makes a data directory, --data-dir names another"
        raise ConfigError(f"cannot serve from {directory}: {error.strerror}", hint=hint) from None
    try:
        _lock(handle, directory)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = f"process {pid}" if (pid := _pid(handle)) else "another process"
        hint = (f"`mindgw status` asks it; `kill {pid}` stops it" if pid else "stop it first") + "; another server needs its own --data-dir"
        raise Conflict(f"{who} already serves from {directory}", code="already_running", hint=hint) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def holder(directory: Path) -> int | None:
    """The process that serves from this directory, 0 when it cannot be told; None when nobody does."""
    try:
        handle = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(handle)
    finally:
        os.close(handle)
    return None


def _pid(handle: int) -> int:
    text = os.pread(handle, 20, 0)
    return int(text) if text.isdigit() else 0
