"""The real server in this loop, its database a file, its agent's engine played by the test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from mindgw import clock, config
from mindgw.control import secrets, setup
from mindgw.server.app import Server, build
from mindgw.store.database import Database
from tests.gateway.world import World, engine
from tests.initialised import initialised

T = TypeVar("T")


class Site:
    """A server at work. `world` is what boxes and clients of tests/gateway need: its pipeline is this server's."""

    def __init__(self, server: Server, http: httpx.AsyncClient, key: str) -> None:
        self.server = server
        self.database = server.database
        self.pipeline = server.pipeline
        #: A client with the first admin's key.
        self.http = http
        self.key = key
        self.world = World()
        self.world.pipeline = server.pipeline
        self.world.clock = clock.monotonic

    async def until(self, look: Callable[[], T], seconds: float = 20.0) -> T:
        """The first truthy answer of `look`, while messages go to and fro."""
        async with asyncio.timeout(seconds):
            while True:
                self.world.pump()
                if found := look():
                    return found
                await asyncio.sleep(0.005)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The management API."""
        return await self.http.request(method, f"/api/v1{path}", **more)

    async def new_key(self, name: str, **facts: Any) -> dict[str, Any]:
        """A key, as it is shown once."""
        made = await self.call("POST", "/keys", json={"name": name, **facts})
        assert made.status_code == 201, made.text
        return made.json()

    async def settled(self, work: "asyncio.Task[T]") -> T:
        """What a task returns that waits for an answer."""
        await self.until(work.done)
        return work.result()


async def _make(directory: Path, database_url: str | None) -> setup.InitResult:
    if database_url is None:
        return await initialised(directory)
    return await setup.initialise(directory, setup.Wishes(database=database_url))


@asynccontextmanager
async def site(directory: Path, settings: str = "", database_url: str | None = None) -> AsyncIterator[Site]:
    """A new server, or the same one again, on this Postgres or a file of its own; in the end it is stopped as a signal does it."""
    made = await _make(directory, database_url) if not directory.exists() else None
    if settings:
        (directory / "config.yaml").write_text(settings)
    if made is not None:
        (directory / "key").write_text(made.api_key or "")
    key = (directory / "key").read_text()
    known = config.load(None, directory)
    database = Database(known.database_url)
    server = build(known, secrets.load(directory), database)
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {key}"}
    async with server.app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://gw", headers=headers, timeout=60) as http:
        yield Site(server, http, key)
        server.pipeline.stop()
    await database.close()


__all__ = ["Site", "engine", "site"]
