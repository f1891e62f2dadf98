"""Every test of the store runs on SQLite and on a real Postgres: one server a session, a database as new for each test."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mindgw.store.database import Database
from tests.postgres import fresh


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
    async with fresh(source, "template0") as url:
        yield url


@pytest.fixture
async def url(source: str | Path, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Address of a migrated database."""
    if isinstance(source, Path):
        yield f"sqlite:///{shutil.copy(source, tmp_path / 'mindgw.db')}"
        return
    async with request.getfixturevalue("copies").lend() as url:
        yield url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.close()
