"""What the data directory knows of the chain of the audit log, where whoever may write to the database alone does not reach: with which
entry it began, and how far it went a minute ago. Entries that are not linked are older than the beginning, or are not what was written;
the chain does not end before what was noted.
"""

import logging
from pathlib import Path

import msgspec

from mindgw.errors import ConfigError
from mindgw.store import audit_chain
from mindgw.store.audit_chain import End, Kept
from mindgw.store.database import Database
from mindgw_agent import private_files

log = logging.getLogger("mindgw.audit")

FILE = "audit.end"


class _Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    start: int
    seq: int
    #: In hexadecimal digits.
    hash: str


def load(directory: Path) -> Kept | None:
    """None when nothing was noted yet. Raises ConfigError for a file that cannot be read."""
    path = directory / FILE
    try:
        found = msgspec.json.decode(private_files.read(path), type=_Note)
        return Kept(found.start, End(found.seq, bytes.fromhex(found.hash)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="restore it from a backup: it says how far the audit log went") from None


async def note(database: Database, directory: Path) -> None:
    """Notes how far the chain goes now; to be called now and then. Where what was noted before is not there any more, that stays as it is,
    for `audit verify`."""
    known = load(directory)
    async with database.read() as session:
        if known is not None and not await audit_chain.has(session, known.end):
            log.error("the audit log has lost entry %d, or it is not what it was; see `mindgw audit verify`", known.end.seq)
            return
        start = known.start if known is not None else None
        start = start if start is not None else await audit_chain.first_linked(session)
        end = await audit_chain.last(session)
    if known is None or end.seq > known.end.seq:
        text = msgspec.json.encode(_Note(start=start, seq=end.seq, hash=end.hash.hex()))
        private_files.write(directory / FILE, text)


def forget(directory: Path) -> None:
    """The database is another one from now on."""
    (directory / FILE).unlink(missing_ok=True)
