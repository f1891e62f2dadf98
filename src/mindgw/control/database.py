"""The database of a data directory, as its operator looks at it, and moves it from one release to another."""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from msgspec import Struct
from sqlalchemy import Connection

from mindgw import config
from mindgw.config import Config
from mindgw.control import lock, secrets, setup
from mindgw.errors import ConfigError, Conflict
from mindgw.store import audit, health, schema
from mindgw.store.database import Database, parse_url
from mindgw.store.health import Fault

State = Literal["current", "behind", "newer", "empty"]


class Condition(Struct, frozen=True, kw_only=True):
    """What there is to say about a database."""

    #: The file, or the address without its password.
    database: str
    #: sqlite or postgresql.
    kind: str
    #: Version of SQLite, or of the server; empty when there is nothing to open.
    version: str = ""
    #: current: what this release works with; behind: an older one made it; newer: a newer one; empty: nobody.
    state: State
    #: Where it stands, None when it is empty; and where this release wants it.
    revision: str | None
    head: str
    #: Bytes on the disk.
    size: int = 0
    journal: str = ""
    synchronous: str = ""
    #: Table -> rows, and the tables whose rows are estimated.
    rows: dict[str, int] = {}
    estimated: list[str] = []
    #: The process that serves from the data directory, 0 when it cannot be told; None when none does.
    serving: int | None = None


class Move(Struct, frozen=True, kw_only=True):
    """From one revision to another; the same twice when there was nothing to do."""

    before: str
    after: str
    #: The copy that was made first; SQLite only.
    backup: Path | None = None


class Report(Struct, frozen=True, kw_only=True):
    """What a check found."""

    database: str
    revision: str | None
    #: The checks that were made.
    checks: list[str]
    problems: list[Fault]

    @property
    def ok(self) -> bool:
        return not self.problems


async def status(settings: Config) -> Condition:
    """How the database is; changes nothing, whatever release made it. Raises ConfigError when it cannot be reached."""
    async with _open(settings) as database:
        revision = await database.revision()
        facts = await database.look(health.facts) if revision is not None else None
        known = {} if facts is None else {name: getattr(facts, name) for name in facts.__struct_fields__}
        if database.file:
            known["size"] = sum(file.stat().st_size for file in database.files if file.exists())
        return Condition(
            **known,
            database=database.name,
            kind=database.kind,
            state=_state(revision),
            revision=revision,
            head=schema.head(),
            serving=lock.holder(settings.directory),
        )


async def upgrade(settings: Config) -> Move:
    """Brings the database to what this release works with. Raises ConfigError when there is none, when a newer release made it, or when
    a server works with it as it is."""
    async with _open(settings) as database:
        await setup.require(database, settings.directory)
        before = await database.revision()
        backup = await setup.prepare(database, settings.directory)
        return Move(before=before or "", after=schema.head(), backup=backup)


async def step(settings: Config, revision: str | None = None) -> Move:
    """What `downgrade` would do: to the revision before, unless another is named. Raises BadRequest when that is not an older one,
    ConfigError when a newer release made the database."""
    async with _open(settings) as database:
        await setup.require(database, settings.directory)
        current = await database.revision() or ""
        schema.refuse_newer(current)
        target = revision or schema.before(current)
        schema.require_older(target, current)
        return Move(before=current, after=target)


def is_file(settings: Config) -> bool:
    """Whether the database is a file, of which a copy is made before it is changed."""
    return parse_url(settings.database_url).get_backend_name() == "sqlite"


async def downgrade(settings: Config, move: Move) -> Move:
    """Takes the database back, and with it all that the newer revisions brought. Raises Conflict while a server works with it."""
    with lock.hold(settings.directory):
        async with _open(settings) as database:
            await _refuse_company(database)
            database.audit_key = secrets.load(settings.directory).audit_key
            await _note(database, move)
            backup = await database.downgrade(move.after)
    return Move(before=move.before, after=move.after, backup=backup)


async def _note(database: Database, move: Move) -> None:
    if move.before == schema.head():  # an older one may have no such log yet
        async with database.write() as session:
            await audit.record(session, setup.LOCAL, "database.downgrade", move.after, before=move.before)


async def check(settings: Config) -> Report:
    """Looks for what is broken; changes nothing. Raises ConfigError when the database cannot be reached, or is not there."""
    async with _open(settings) as database:
        await setup.require(database, settings.directory)
        revision = await database.revision()
        inner = ["integrity", "references"] if database.file else ["indexes", "constraints"]
        problems = await database.look(lambda connection: list(health.faults(connection)))
        if _state(revision) != "current":
            wanted = f"it is at {revision}, this release works with {schema.head()}"
            problems.append(Fault("revision", schema.VERSION_TABLE, wanted))
            return Report(database=database.name, revision=revision, checks=[*inner, "revision"], problems=problems)
        problems += [Fault("schema", name, problem) for name, problem in await database.look(_differences)]
        return Report(database=database.name, revision=revision, checks=[*inner, "revision", "schema"], problems=problems)


def _differences(connection: Connection) -> list[tuple[str, str]]:
    # by name: Alembic takes a second to import, and `serve` shares this module's imports
    return list(importlib.import_module("mindgw.store.migration").differences(connection))


async def _refuse_company(database: Database) -> None:
    others = await database.look(health.others)
    if others:
        hint = "stop the other servers of this database first: each has its own data directory"
        raise Conflict(f"{others} other connections of servers use this database", code="database_in_use", hint=hint)


def _state(revision: str | None) -> State:
    if revision is None:
        return "empty"
    if revision not in schema.revisions():
        return "newer"
    return "current" if revision == schema.head() else "behind"


@asynccontextmanager
async def _open(settings: Config) -> AsyncIterator[Database]:
    directory = settings.directory
    if not (directory / config.FILE).exists() and len(secrets.missing(directory)) == len(secrets.FILES):
        hint = "`mindgw init` makes one, --data-dir names another"
        raise ConfigError(f"{directory.absolute()} is not the data directory of a server", hint=hint)
    database = Database(settings.database_url, backups=directory / "backups")
    try:
        yield database
    finally:
        await database.close()
