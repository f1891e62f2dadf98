"""A second server on one Postgres: the secrets of the first one, in a data directory of its own.

What a server is known by to its agents and callers are its secrets, so servers of one database must share them. Whose database it is
stands in its audit log: `init` notes the identity that it made it for, and a digest by which the pepper is known.
"""

import hmac
from pathlib import Path
from typing import Literal

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import config
from mindgw.control import secrets
from mindgw.control.secrets import Secrets
from mindgw.errors import ConfigError
from mindgw.store import audit, schema
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry, Key
from mindgw_agent import private_files

#: The action under which the audit log has whose database it is.
MARK = "server.init"

_FLAG = "command line: --secrets-from"
_OPEN = 0o644


def source(directory: Path, first: Path) -> Secrets:
    """The secrets of the server whose data directory is `first`, good to be copied into `directory`. Raises ConfigError."""
    if first.resolve() == directory.resolve():
        raise ConfigError(f"{_FLAG}: {first} is the data directory itself", hint="--data-dir names that of the second server, a new one")
    missing = secrets.missing(first)
    if missing:
        hint = "it is the directory that `mindgw init` made for the first server"
        raise ConfigError(f"{first} is not the data directory of a server: {missing[0]} is missing in it", hint=hint)
    present = [name for name in (config.FILE, "mindgw.db", *secrets.FILES) if (directory / name).exists()]
    copied = [name for name in present if name in secrets.FILES and _same(directory / name, first / name)]
    if present and (not copied or set(present) - {config.FILE, *copied}):
        hint = "nothing was changed; name an empty or a new directory with --data-dir"
        raise ConfigError(f"{directory} is not empty: there is a server of its own in it", hint=hint)
    return secrets.load(first)


def copy(first: Path, directory: Path) -> None:
    """Copies the secrets; what was copied before stays. Raises ConfigError."""
    try:
        for name in secrets.FILES:
            private_files.create(directory / name, (first / name).read_bytes())
        (directory / secrets.CA_PEM).chmod(_OPEN)
    except OSError as error:
        hint = "who runs this must be allowed to read the one and to write the other"
        raise ConfigError(f"cannot copy the secrets of {first} into {directory}: {error.strerror}", hint=hint) from None


async def require(database: Database, own: Secrets, first: Path) -> None:
    """Raises ConfigError unless this is the database of the server with these secrets, as this release works with it."""
    if database.file:
        hint = "name the Postgres of the first server with --db; to move there is told in docs/how-to/postgres.md"
        raise ConfigError(f"{_FLAG}: one SQLite file has one server, a second one needs a Postgres", hint=hint)
    revision = await database.revision()
    schema.refuse_newer(revision)
    hint = f"--db must name the database of the first server: `mindgw db status --data-dir {first}` shows it"
    if revision is None:
        raise ConfigError(f"the database {database.name} is empty: no server was ever initialised on it", hint=hint)
    if revision != schema.head():
        up = f"`mindgw db upgrade --data-dir {first}` brings it there"
        raise ConfigError(f"the database is at revision {revision}, this release works with {schema.head()}", hint=up)
    async with database.read() as session:
        if (await session.exec(select(Key.id).limit(1))).first() is None:
            raise ConfigError(f"the database {database.name} has no keys: no server was ever initialised on it", hint=hint)
        await refuse_foreign(session, own, hint)


async def refuse_foreign(session: AsyncSession, own: Secrets, hint: str = "") -> None:
    """Raises ConfigError when a database with keys is known to be that of other secrets: none of its keys would ever be good."""
    if await owner(session, own) != "another" or (await session.exec(select(Key.id).limit(1))).first() is None:
        return
    hint = hint or "`mindgw init --secrets-from DIR` makes a second server of that database; --db names another database"
    raise ConfigError("this database belongs to another server: its keys were made with other secrets", hint=hint)


async def owner(session: AsyncSession, own: Secrets) -> Literal["us", "another", "unknown"]:
    """Whose database this is, as far as it says so."""
    marks = (await session.exec(select(AuditEntry).where(col(AuditEntry.action) == MARK))).all()
    if not marks:
        return "unknown"
    ours = own.fingerprint, _digest(own)
    return "us" if any((mark.object, mark.detail.get("pepper")) == ours for mark in marks) else "another"


async def mark(session: AsyncSession, own: Secrets, actor: str) -> None:
    """Notes that this is the database of the server with these secrets."""
    if await owner(session, own) != "us":
        await audit.record(session, actor, MARK, own.fingerprint, pepper=_digest(own))


def _digest(own: Secrets) -> str:
    """By which the pepper is known to be the same; worth nothing to whoever does not have it."""
    return hmac.digest(own.pepper, b"mindgw-pepper-v1", "sha256").hex()[:32]


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
