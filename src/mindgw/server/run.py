"""One process, its listeners and its signals: uvicorn, with what a gateway needs of a server beyond it.

The plain listener is on loopback alone. A public URL adds a TLS listener with the certificate that `init` made; both feed the
same protocol. SIGTERM (or Ctrl-C) stops new requests, waits for those that run, and exits 0; a second signal does not wait.
"""

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn
import uvloop

from mindgw import logs
from mindgw.addresses import Networks
from mindgw.clock import monotonic
from mindgw.config import Config, notify_address
from mindgw.control import lock, secrets, setup, witness
from mindgw.control.secrets import Secrets
from mindgw.errors import ConfigError
from mindgw.quantities import OFF
from mindgw.server import front, openai, scrape
from mindgw.server.app import Server, build
from mindgw.server.guard import Guard
from mindgw.server.knock import Knock
from mindgw.server.listeners import BACKLOG, Listeners
from mindgw.server.socket import WebSocket
from mindgw.store.database import Database

log = logging.getLogger("mindgw.server")

DAY = 86_400.0
#: Files that are open beside the connections: the database's, the log's, the agents'.
SPARE = 500
#: Seconds that agents have to hang up after a goodbye.
FAREWELL = 0.5
#: Seconds that connections have to end, when all is said.
LEAVING = 1.0


def serve(config: Config) -> int:
    """Runs the server until a signal ends it; returns the exit code. Raises ConfigError, Conflict when the data directory or an address
    is in use."""
    logs.setup(config.log)
    warn_of_one_address(config)
    known = secrets.load(config.directory)  # first: in a directory that is none of ours nothing is left behind
    with lock.hold(config.directory), Listeners(config) as listeners, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, known, listeners))


async def _serve(config: Config, known: Secrets, listeners: Listeners) -> int:
    data_dir = config.directory
    database = Database(config.database_url, backups=data_dir / "backups")
    try:
        await setup.require(database, data_dir)
        await setup.prepare(database, data_dir)
        await witness.note(database, data_dir)
        server = build(config, known, database)
        gateway = GatewayServer(config, server, _tls(config, known), listeners)
        listeners.open()
        make_room(config.limits.connections + SPARE)
        await gateway.serve([*listeners.plain.sockets])
        return 0 if gateway.started else 1
    finally:
        await database.close()


def warn_of_one_address(config: Config) -> None:
    """Behind a proxy that is not trusted everybody comes from the proxy's address: of this machine nobody is counted as a stranger."""
    if config.tls == OFF and not config.trusted_proxies:
        log.warning(
            "TLS is off and no proxy is trusted: all who come through one count as %s, and none of them is slowed down when their keys are "
            "wrong. Name it: trusted_proxies: [127.0.0.1] in the settings, or --trusted-proxies 127.0.0.1",
            config.tls_listen or config.listen,
        )


def make_room(files: int) -> None:
    """Lets the process have so many files open, as far as it may; a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return
    most = files if hard == resource.RLIM_INFINITY else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < files:
        log.warning("only %d files may be open (ulimit -n), fewer than limits.connections needs", most)


def _tls(config: Config, known: Secrets, context: ssl.SSLContext | None = None) -> ssl.SSLContext | None:
    """The context of the TLS listener, with a certificate that is good for a while yet; None without a public URL."""
    if not config.public_url or config.tls == OFF:
        return None
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not config.tls:
        setup.renew(config, known)
        context.load_cert_chain(config.directory / "server.pem", config.directory / "server.key")
        return context
    certificate, _, key = config.tls.rpartition(":")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as wrong:
        why = wrong.strerror or str(wrong)
        hint = "CERT is the whole chain and KEY its key, both PEM, and who runs the server may read them"
        raise ConfigError(f"the certificate {certificate} with the key {key} cannot be used: {why}", hint=hint) from None
    return context


class GatewayServer(uvicorn.Server):
    """uvicorn with two listeners, one drain and one owner of signals."""

    def __init__(self, config: Config, server: Server, tls: ssl.SSLContext | None, listeners: Listeners) -> None:
        limits, trusted = config.limits, Networks(config.trusted_proxies)
        guard = Guard(limits.connections, limits.connections_address, limits.bodies, trusted=trusted)
        super().__init__(
            uvicorn.Config(
                openai.beside(server.app, server.door),
                interface="asgi3",
                http=front.lane(config, server.pipeline, guard),  # type: ignore[arg-type]
                ws=WebSocket,
                ws_max_size=2**20,
                ws_per_message_deflate=False,
                ws_ping_interval=None,
                proxy_headers=False,
                server_header=False,
                headers=[("server", "mindgw")],
                backlog=BACKLOG,
                access_log=False,
                log_config=None,
            )
        )
        self._settings = config
        self._server = server
        #: Watches over the clients' connections.
        self._guard = guard
        self._tls = tls
        #: Addresses, open already; whoever made them closes them.
        self._listeners = listeners
        self._scrapes: list[asyncio.Server] = []
        #: Signals so far: the second one does not wait.
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections; says where once it does everywhere."""
        await super().startup(sockets)
        self.servers.extend([await self._accept(taken, self._tls) for taken in self._listeners.tls.sockets])
        if self._tls is not None:
            asyncio.get_running_loop().call_later(DAY, self._renew)
        self._scrapes = [await scrape.listen(taken, self._server.collector) for taken in self._listeners.metrics.sockets]
        if self.started:
            log.info("listening on http://%s%s", self._settings.listen, self._beside())
            notify("READY=1")

    def _beside(self) -> str:
        """What else it listens on, for the log."""
        settings = self._settings
        if self._tls is not None:
            return f" and {settings.public_url}"
        return f" and http://{settings.tls_listen}, for proxies" if settings.tls_listen else ""

    async def _accept(self, taken: socket.socket, tls: ssl.SSLContext | None) -> asyncio.Server:
        """Serves a socket; without TLS it is for proxies that do it."""
        return await asyncio.get_running_loop().create_server(
            self._protocol if tls is None else partial(Knock, self._guard, tls, self._protocol), sock=taken, backlog=self.config.backlog
        )

    def _renew(self) -> None:
        """Once a day: new connections get a fresh certificate before the old one ends."""
        try:
            _tls(self._settings, self._server.app.state.secrets, self._tls)
        except ConfigError as wrong:  # somebody is just replacing the files: the old certificate is good a while yet
            log.warning("%s; the one before stays in use", wrong)
        asyncio.get_running_loop().call_later(DAY, self._renew)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Counts signals; uvicorn's own handler would send it to us again at the end, and the exit code would not be 0."""
        self._signals += 1
        if self._signals == 1:
            self.should_exit = True
        else:
            self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains, says goodbye to the agents, then closes what is left."""
        notify("STOPPING=1")
        self._guard.is_stopping = True
        pipeline = self._server.pipeline
        pipeline.drain()
        if not pipeline.idle:
            log.info("waiting for running requests, at most %g s; a second signal ends them", self._settings.timeouts.drain)
        await self._until(lambda: pipeline.idle, self._settings.timeouts.drain)
        pipeline.stop()
        pipeline.farewell()
        await self._until(lambda: pipeline.deserted, FAREWELL)
        for scrapes in self._scrapes:
            scrapes.close()
        self.force_exit = False
        await self._close(sockets)

    async def _close(self, sockets: list[socket.socket] | None) -> None:
        """uvicorn's own end, but what one connection raises ends that one alone: all that is known must still be written down."""
        for server in self.servers:
            server.close()
        for taken in sockets or []:
            taken.close()
        for connection in list(self.server_state.connections):
            try:
                connection.shutdown()
            except Exception:  # the top of a connection's end
                log.exception("a connection did not end in order")
                connection.transport.abort()
        await asyncio.sleep(0.1)  # most are gone by then
        try:
            async with asyncio.timeout(LEAVING):
                await self._wait_tasks_to_complete()
        except TimeoutError:
            log.warning("%d connections did not end in time", len(self.server_state.connections))
            for task in list(self.server_state.tasks):
                task.cancel()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Waits, but not after a second signal."""
        end = monotonic() + seconds
        while not done() and monotonic() < end and not self.force_exit:  # noqa: ASYNC110 (a second signal sets a flag)
            await asyncio.sleep(0.02)


def notify(message: str) -> None:
    """Tells systemd; nothing happens when it did not ask."""
    address = notify_address()
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(message.encode())
