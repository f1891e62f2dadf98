"""The database: the only room that owns engines.

SQLite has one writer (BEGIN IMMEDIATE, so that a transaction never fails half-way for a lock) and a pool of readers that cannot write;
Postgres has one pool for both. On both a read sees one moment of the database from its first query to its end.
"""

import asyncio
import contextlib
import copy
import importlib
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.errors import ConfigError, Draining
from mindgw.store import audit, schema, tenants
from mindgw.store.tenants import View

T = TypeVar("T")

READERS = 4
#: Connections to Postgres of one server process.
POSTGRES_POOL = 10
#: Seconds for Postgres to have a connection ready for whoever needs one, and to answer one statement.
REACH = 5.0
ANSWER = 30.0
#: Key of the advisory lock that keeps two servers from migrating one Postgres at once: "mindgw" in ASCII.
MIGRATION_LOCK = 0x6D696E646777

_PRAGMAS = (
    "busy_timeout=5000",
    "journal_mode=WAL",
    "synchronous=FULL",  # the ledger is money: a commit is on the disk
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "temp_store=MEMORY",
    "cache_size=-16000",
    "mmap_size=134217728",
    "journal_size_limit=67108864",
)

#: SQLite: busy, locked, I/O error, full, cannot be opened; and what is so for a writer alone: read-only.
_AWAY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN})
_UNWRITABLE = frozenset({sqlite3.SQLITE_READONLY})
#: Classes of SQLSTATE: no connection, no room or memory, shut down; and a standby, for a writer.
_AWAY_STATES = ("08", "53", "57P0")
_STANDBY = "25006"

#: What SQLite keeps beside a file: what is not in it yet, and who reads how far.
_LOGS = ("-wal", "-shm")

_NAME_ONE = "`mindgw init --db sqlite` or --db postgresql://user:password@host/name names one that is"


def parse_url(database: str) -> URL:
    """`sqlite:///file` or `postgresql://…` with the async driver filled in; raises ConfigError for anything else."""
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        raise ConfigError("database is neither sqlite nor a URL such as postgresql://user:password@host/name", hint=_NAME_ONE) from None
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+aiosqlite")
    if kind in ("postgresql", "postgres"):
        query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
        return url.set(drivername="postgresql+asyncpg", query=query)
    raise ConfigError(f"database {url.render_as_string(hide_password=True)!r} is neither a file for SQLite nor Postgres", hint=_NAME_ONE)


_AWAY_TEXT = "The database does not answer at the moment."
_HINT = "try again; the server's log says why the database does not answer"


class Unsure(Draining):
    """The database does not answer, and may have done what was asked of it."""

    code = "database_unavailable"


class Database:
    """One database, open from the first use until `close()`, which the maker of this object awaits."""

    def __init__(self, database: str, *, backups: Path | None = None) -> None:
        #: Address with the driver; its text form hides the password.
        self.url = parse_url(database)
        #: The file of an SQLite database; None for Postgres.
        self.file = Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None
        #: Folder for the copy that is made before a migration; used for SQLite only.
        self.backups = backups or (self.file.parent / "backups" if self.file else None)
        #: Key of the chain of the audit log, for all that is recorded through this object; set by whoever knows it.
        self.audit_key = b""
        #: What its sessions are confined to; None: they see all.
        self._view: View | None = None
        #: Engine whose transactions may write.
        self._writer = _sqlite(self.url, begin="BEGIN IMMEDIATE", pool_size=1, max_overflow=0) if self.file else self._pooled()
        #: Engine whose transactions cannot write and see one moment.
        self._reader = (
            _sqlite(self.url, "query_only=ON", begin="BEGIN", pool_size=READERS, max_overflow=0)
            if self.file
            else self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )

    def within(self, view: View) -> Self:
        """The same database as somebody sees it; it shares all connections."""
        same = copy.copy(self)
        same._view = view  # noqa: SLF001 - its own kind
        return same

    @property
    def name(self) -> str:
        """The file, or the address without its password, for people."""
        return str(self.file) if self.file else self.url.set(drivername="postgresql").render_as_string(hide_password=True)

    @property
    def kind(self) -> str:
        """sqlite or postgresql."""
        return "sqlite" if self.file else "postgresql"

    @property
    def files(self) -> list[Path]:
        """Where an SQLite database keeps its rows, those that are not in the file yet too; some may not be there."""
        return [self.file.with_name(self.file.name + ending) for ending in ("", *_LOGS)] if self.file else []

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one moment of the database and cannot write. Waits for a free reader. Raises Draining
        (database_unavailable) when the database is away, then or in the middle."""
        async with self._session(self._reader) as session:
            yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed when the block ends well and undone when it raises. On SQLite one block runs at a
        time, so nothing slow (no network, no file) belongs inside. Raises as `read`, also for a disk that is full or read-only, and
        Unsure when the connection was lost at the end of the block: the work may be there all the same."""
        async with self._session(self._writer, writes=True) as session:
            yield session

    @contextlib.asynccontextmanager
    async def _session(self, engine: AsyncEngine, *, writes: bool = False) -> AsyncIterator[AsyncSession]:
        is_ending = False
        try:
            facts = {audit.KEY: self.audit_key}
            async with AsyncSession(engine, expire_on_commit=False, info=facts) as session, contextlib.AsyncExitStack() as stack:
                if self._view is not None:
                    tenants.confine(session, self._view)
                if writes:
                    await stack.enter_async_context(session.begin())
                await self._reach(session)  # takes the write lock of SQLite, before anything is read under it
                yield session
                is_ending = writes and self.file is None
        except (DBAPIError, TimeoutError, NoConnection) as error:
            if isinstance(error, DBAPIError) and not _is_away(error, writes):
                raise
            raise (Unsure(_AWAY_TEXT, retry_after=2, hint=_HINT) if is_ending else _away()) from error

    async def _reach(self, session: AsyncSession) -> None:
        try:
            async with asyncio.timeout(None if self.file else REACH):
                await session.connection()
        except (OSError, _driver_error(self._reader)) as error:  # what SQLAlchemy does not wrap
            raise _away() from error

    async def look(self, at: Callable[[Connection], T]) -> T:
        """What a function finds that reads on a plain connection. Raises ConfigError when the database cannot be reached."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(None if self.file else REACH):
                    connection = await stack.enter_async_context(self._reader.connect())
            # TypeError and ValueError: what the driver makes of an option in the address that it does not know
            except (OSError, SQLAlchemyError, _driver_error(self._reader), TypeError, ValueError) as error:
                raise self._unusable("open", error) from error
            try:
                return await connection.run_sync(at)
            except (OSError, SQLAlchemyError) as error:
                raise self._unusable("read", error) from error

    async def revision(self) -> str | None:
        """The revision that the database is at; None when it is empty. Raises ConfigError when it cannot be reached."""
        return None if self.file and not self.file.exists() else await self.look(schema.current)

    async def at_head(self) -> bool:
        """Whether the database is there, and the one that this release works with."""
        try:
            return await self.revision() == schema.head()
        except ConfigError:
            return False

    async def migrate(self) -> Path | None:
        """Brings the database to head; several processes may call it at once. Returns the copy of the SQLite file that was made
        first, None when there was nothing to copy. Raises ConfigError when a newer release made the database."""
        revision = await self.revision()
        schema.refuse_newer(revision)
        return None if revision == schema.head() else await self._move(revision, "upgrade", schema.head())

    async def downgrade(self, revision: str) -> Path | None:
        """Takes the database back to an older revision, which loses what later ones brought; nobody else may use it meanwhile. Returns
        as `migrate`. Raises BadRequest for a revision that is not older, ConfigError when a newer release made the database."""
        current = await self.revision()
        schema.refuse_newer(current)
        schema.require_older(revision, current)
        return await self._move(current, "downgrade", revision)

    async def _move(self, revision: str | None, verb: str, target: str) -> Path | None:
        try:
            copy = await asyncio.to_thread(self._back_up, revision or "unknown")
            if self.file:
                await asyncio.to_thread(_create, self.file)
            await self._run(verb, target)
        except OSError as error:
            raise self._unusable("write", error) from error
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
                raise  # wrong SQL is nothing that an operator could mend
            raise self._unusable("write", error) from error
        return copy

    async def _run(self, verb: str, target: str) -> None:
        # loaded by name on the one path that needs it: Alembic takes a second to import
        migration = importlib.import_module("mindgw.store.migration")
        patient = {"poolclass": NullPool}  # a migration takes as long as it takes
        engine = (
            _sqlite(self.url, "foreign_keys=OFF", begin="BEGIN IMMEDIATE", **patient) if self.file else _postgres(self.url, None, **patient)
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_lock)
                await connection.run_sync(getattr(migration, verb), target)
        finally:
            await engine.dispose()

    def _pooled(self) -> AsyncEngine:
        return _postgres(self.url, ANSWER, pool_size=POSTGRES_POOL, max_overflow=0)

    def _unusable(self, verb: str, error: Exception) -> ConfigError:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        said = (getattr(cause, "strerror", None) or str(cause)).splitlines()
        reason = said[0] if said else "it did not answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        hint = "is it there, and the address right? `mindgw init --db URL` names another (database in config.yaml)"
        return ConfigError(f"cannot {verb} the database {self.name}: {reason}", hint=hint)

    def set_leftovers_aside(self) -> None:
        """Of an SQLite file that is gone: its write-ahead log would be played into the next file of that name, and spoil it."""
        if self.file is None or self.file.exists():
            return
        for left in self.files[1:]:
            with contextlib.suppress(FileNotFoundError):
                left.rename(f"{left}.lost")

    async def close(self) -> None:
        """Closes every connection; sessions in use are the caller's to end first."""
        await self._reader.dispose()
        await self._writer.dispose()

    def _back_up(self, revision: str) -> Path | None:
        if self.file is None or self.backups is None or not self.file.exists() or not self.file.stat().st_size:
            return None
        self.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = clock.utcnow().strftime("%Y%m%dT%H%M%S.%fZ")
        copy = self.backups / f"{self.file.stem}-{revision}-{stamp}.db"
        _touch(copy)
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))  # includes what still stands in the write-ahead log
        with copy.open("rb") as stream:
            os.fsync(stream.fileno())
        return copy


def _create(file: Path) -> None:
    """Makes an empty database for its owner alone, unless there is one. It appears with its write-ahead log switched on: of two
    processes that switch it on at once one would fail. A file that is there is not even opened: closing it would drop the locks that
    SQLite holds on it in this process."""
    if file.exists():
        return
    part = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    _touch(part)
    try:
        with contextlib.closing(sqlite3.connect(part)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()


def _touch(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def _driver_error(engine: AsyncEngine) -> type[Exception]:
    """What the driver itself raises when it cannot connect, which SQLAlchemy does not wrap."""
    driver = getattr(engine.dialect.dbapi, "asyncpg", None)
    return driver.PostgresError if driver else sqlite3.Error


def _is_away(error: DBAPIError, writes: bool) -> bool:
    """Whether the database, and not what was asked of it, is why a statement failed."""
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in (_AWAY | _UNWRITABLE if writes else _AWAY)
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return state.startswith(_AWAY_STATES) or (writes and state == _STANDBY)


def _away() -> Draining:
    return Draining(_AWAY_TEXT, code="database_unavailable", retry_after=2, hint=_HINT)


def _postgres(url: URL, patience: float | None, **options: Any) -> AsyncEngine:
    settings = {"application_name": "mindgw", "timezone": "UTC"}
    connect = {"server_settings": settings, "timeout": REACH, "command_timeout": patience}
    return create_async_engine(url, pool_pre_ping=True, connect_args=connect, **options)


async def _open(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """A connection of aiosqlite's. When there is none to be had its thread has ended before the error is told: it would otherwise
    speak to a loop that the error may have ended."""
    made = aiosqlite.connect(*arguments, **options)
    thread = made._thread  # noqa: SLF001 - what SQLAlchemy does in our place without this function
    thread.daemon = True
    try:
        return await made
    except BaseException:
        await asyncio.to_thread(thread.join)
        raise


def _sqlite(url: URL, *pragmas: str, begin: str, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, connect_args={"async_creator_fn": _open}, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        # the driver must not open transactions by itself: it would begin them without IMMEDIATE, and only before a change
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (*_PRAGMAS, *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
