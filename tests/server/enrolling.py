"""A server that takes agents in: its doors, its database, and as much of the rest as joining needs."""

import asyncio
import dataclasses
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import trustme
import uvicorn
from litestar import Litestar
from litestar.datastructures import State
from sqlmodel import select

from mindgw.config import Config
from mindgw.control.enrol import Registrar
from mindgw.server import enrol, problems
from mindgw.store import fleet
from mindgw.store.database import Database
from mindgw.store.tables import JoinToken as JoinRow
from mindgw.store.tables import Worker
from mindgw_agent import identity
from mindgw_agent.tokens import JoinToken


@dataclasses.dataclass
class World:
    """A server that takes agents in."""

    database: Database
    identity: bytes
    urls: list[str]
    pins: list[bytes]
    #: Workers that the gateway was told to drop.
    removed: list[str]
    registrar: Registrar

    async def token(self, *, ttl: float = 60, **binds) -> JoinToken:
        secret, token_id = secrets.token_bytes(32), secrets.token_bytes(8)
        expires = datetime.now(UTC) + timedelta(seconds=ttl)
        async with self.database.write() as session:
            row = JoinRow(id=token_id.hex(), public_key=identity.public_half(secret), expires_at=expires, **binds)
            await fleet.add_join_token(session, row)
        srv = identity.public_half(self.identity)
        return JoinToken(urls=self.urls, id=token_id, secret=secret, pins=self.pins, srv=srv, exp=int(expires.timestamp()))

    async def workers(self) -> list[Worker]:
        async with self.database.read() as session:
            return list((await session.exec(select(Worker).order_by(Worker.created_at))).all())


class Held(NamedTuple):
    """The secrets that joining needs."""

    identity: bytes
    ca_pem: bytes


class Gateway(NamedTuple):
    """As much of the gateway as joining needs."""

    remove_worker: Callable[[str], None]


@asynccontextmanager
async def world(tmp_path: Path, *, authority: trustme.CA | None = None) -> AsyncIterator[World]:
    database = Database(f"sqlite:///{tmp_path / 'mindgw.db'}")
    await database.migrate()
    key, removed = identity.new_key(), []
    registrar = Registrar(database, key, removed.append)
    ca = authority.cert_pem.bytes() if authority else b""
    state = State({"database": database, "secrets": Held(key, ca), "pipeline": Gateway(removed.append), "config": Config(str(tmp_path))})
    app = Litestar([enrol.router()], state=state, exception_handlers=problems.HANDLERS, openapi_config=None, logging_config=None)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    if authority:
        config.load()
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(config.ssl)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    running = asyncio.create_task(server._serve())
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    pins = [identity.pin_of(ca)] if ca else []
    try:
        yield World(database, key, [f"http{'s' if authority else ''}://127.0.0.1:{port}"], pins, removed, registrar)
    finally:
        server.should_exit = True
        await running
        await database.close()


async def spoilt(server: World, kind: str) -> JoinToken:
    """A token that the server refuses: expired, used, revoked, unknown or forged."""
    token = await server.token(**{"expired": {"ttl": -1}, "used": {"max_uses": 0}}.get(kind, {}))
    if kind == "revoked":
        async with server.database.write() as session:
            await fleet.revoke_join_token(session, token.id.hex(), datetime.now(UTC))
    if kind == "unknown":
        token = msgspec.structs.replace(token, id=secrets.token_bytes(8))
    if kind == "forged":
        token = msgspec.structs.replace(token, secret=secrets.token_bytes(32))
    return token
