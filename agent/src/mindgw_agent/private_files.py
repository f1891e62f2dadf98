"""Files that hold secrets: mode 0600 in a directory of mode 0700, written whole or not at all. Everything here raises OSError."""

import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger("mindgw.files")

_OTHERS = 0o077


def make_directory(path: Path) -> None:
    """Makes the directory; one that is there already and open to others is closed to them."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode
    if mode & _OTHERS:
        path.chmod(mode & 0o700)


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces the file; when this returns it is on the disk, if it is to be `durable`."""
    part = _part(path, data, durable=durable)
    try:
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Makes the file unless there is one; False when there is. Of many at once one wins, and none sees half a file."""
    part = _part(path, data)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()
    _sync(path.parent)
    return True


def read(path: Path) -> bytes:
    """The file's bytes. One that others may read is closed to them first, with a warning: what was in it may have been seen."""
    with path.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if mode & _OTHERS:
            log.warning(
                "%s was open to others (mode %04o); it is 0600 now. If somebody else uses this machine, replace it.", path, mode & 0o777
            )
            os.fchmod(stream.fileno(), 0o600)
        return stream.read()


def _part(path: Path, data: bytes, *, durable: bool = True) -> Path:
    """The data beside its destination; when `durable` on the disk already."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
    except BaseException:
        part.unlink()
        raise
    return part


def _sync(directory: Path) -> None:
    """A rename survives a power cut only when its directory was written too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
