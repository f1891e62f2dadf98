"""The running agent put together: state directory in, exit code out."""

import asyncio
import contextlib
import logging
import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mindgw_agent import address, bookkeeping, child, clock, engines, errors, exchange, gpu, identity, loop, pause, renewal, status
from mindgw_agent.engines.client import Client, Unreachable, open_session, root_of
from mindgw_agent.engines.engine import Engine
from mindgw_agent.engines.pool import Connections
from mindgw_agent.journal import Journal
from mindgw_agent.offer import Offer
from mindgw_agent.orders import Orders
from mindgw_agent.outbox import Outbox
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.stand import PROBE_TIMEOUT, NoEngine, Stand
from mindgw_agent.tunnel import Tunnel, keep_connected

log = logging.getLogger("mindgw.agent")

#: Seconds between probes of the engine, and the fewest when requests do not reach it.
PROBE_EVERY = 5.0
PROBE_SOONEST = 0.25
#: Seconds that running requests get when the operator ends this agent, and seconds that an engine gets after that.
DRAIN = 30.0
LET_GO = 2.0
#: What `serve` returns when the process is to begin anew.
RENEW = -1


def run(state: StateDir, settings: Settings, roll: Callable[[], float] = random.random) -> int:
    """Serve until a signal ends it, and return the exit code: 0 after a drain, 128 and the signal when there were two.

    The caller holds the lock of `state`; `roll` draws the delays of `keep_connected`. Raises `Dismissed` and `Occupied` when the server
    said so, `Misuse` and `BadState` for settings that cannot be used.
    """
    check_engine(settings)
    journal = Journal()
    logging.getLogger("mindgw").addHandler(journal)
    try:
        code = loop.run(_run(state, settings, journal, roll))
        if code == RENEW:
            renewal.again()
        return code
    except (errors.Dismissed, errors.Occupied) as last:
        with contextlib.suppress(errors.BadState):  # what the server said matters more
            status.write(state, _farewell(settings, last, status.read(state).receipts))
        raise
    finally:
        logging.getLogger("mindgw").removeHandler(journal)


def check_engine(settings: Settings) -> None:
    """Raises `Misuse` for an engine that can never be dialled, whoever listens there."""
    if settings.engine_kind and settings.engine_kind not in engines.KINDS:
        raise errors.Misuse(f"there is no kind of engine called {settings.engine_kind!r}", hint=f"one of auto, {', '.join(engines.KINDS)}")
    if settings.engine_kind and not settings.engine_url:
        raise errors.Misuse("--engine needs --engine-url", hint="or leave --engine out: the agent asks what answers")
    if settings.engine_command:
        child.words_of(settings.engine_command)
    _engine_key(settings)
    try:
        for url in (settings.engine_url, *settings.other_engines):
            if url:
                root_of(url)
    except ValueError as error:
        hint = "it should look like http://127.0.0.1:11434; a key comes from --engine-key-file"
        raise errors.Misuse(str(error), hint=hint, code="bad_engine_url") from None


def try_engine(settings: Settings) -> str:
    """Look once at the engine of settings that `check_engine` let pass: why it cannot be used yet, "" when it can or none is named.

    Raises `Misuse` for what can never be an engine: then a token that is good for once need not be spent. Blocks for PROBE_TIMEOUT.
    """
    urls = [settings.engine_url, *settings.other_engines] if settings.engine_url else []
    return "; ".join(filter(None, (asyncio.run(_try_engine(settings, url)) for url in urls)))


async def _try_engine(settings: Settings, url: str) -> str:
    hint = "check --engine-url: it is the root of an engine on this machine, as in http://127.0.0.1:11434"
    try:
        async with open_session() as session, asyncio.timeout(PROBE_TIMEOUT):
            engine = await engines.recognise(session, engines.Place(url, _engine_key(settings)))
            return (await engine.probe()).error
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT:.0f} s"
    except Unreachable as error:
        if error.hopeless:
            raise errors.Misuse(str(error), hint=hint, code="no_engine") from None
        return str(error)
    except engines.Unrecognised as error:
        if error.hopeless and not settings.engine_kind:  # who names the kind may know better
            raise errors.Misuse(str(error), hint=hint, code="no_engine") from None
        return str(error)


async def _run(state: StateDir, settings: Settings, journal: Journal, roll: Callable[[], float]) -> int:
    async with open_session() as session, _engine_of_its_own(settings.engine_command):
        offer = Offer(_stands(session, settings), exchange.carry, gpus=gpu.gpus, hostname=socket.gethostname(), teams=settings.teams)
        return await serve(state, settings, offer, roll, Orders(offer, journal, may_pull=settings.may_pull))


@contextlib.asynccontextmanager
async def _engine_of_its_own(command: str) -> AsyncIterator[None]:
    """The engine runs meanwhile, if there is a command for it."""
    task = asyncio.create_task(child.supervise(child.words_of(command))) if command else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _stands(session: Connections, settings: Settings) -> list[Stand[Engine]]:
    """One for each engine of the settings; the first alone may be looked for."""
    first = Stand(_finder(session, settings), slots=settings.slots, url=settings.engine_url, models=settings.models)
    others = (msgspec.structs.replace(settings, engine_url=url, engine_kind="") for url in settings.other_engines)
    return [
        first,
        *(
            Stand(_finder(session, other, id), id=id, slots=settings.slots, url=other.engine_url, models=settings.models)
            for id, other in ((f"e{number}", other) for number, other in enumerate(others, 2))
        ),
    ]


def _context(settings: Settings) -> ssl.SSLContext | None:
    """Whom the agent believes over TLS; None: nobody, for it joined without."""
    if settings.ca:
        return identity.pinned_context(settings.ca.encode())
    return None if settings.pins else identity.public_context()


async def serve(
    state: StateDir, settings: Settings, offer: Offer[Any], roll: Callable[[], float] = random.random, orders: Orders | None = None
) -> int:
    """Probe, connect and carry until a signal; see `run`. RENEW when the server asked for a new beginning."""
    outbox = Outbox(state.outbox_file, settings.agent_id, fresh=not settings.last_epoch)
    outbox.open()
    tunnel = Tunnel(settings, state.private_key(), offer, outbox, partial(_keep_epoch, state))
    addresses = [address.parse(url) for url in settings.servers]
    context = _context(settings)
    tunnel.orders = orders = orders or Orders(offer, Journal())
    orders.on_stand = tunnel.stand
    offer.paused_until = pause.until(state)
    await offer.probe()
    link = asyncio.create_task(keep_connected(tunnel, addresses, context, roll))
    beside = [
        asyncio.create_task(keep_probing(tunnel)),
        asyncio.create_task(_tell(state, settings, tunnel)),
        asyncio.create_task(bookkeeping.keep(outbox, partial(_block, tunnel))),
        asyncio.create_task(pause.heed(state, offer, partial(_report, tunnel))),
    ]
    with _Signals(tunnel, link) as signals:
        orders.on_restart = signals.renew
        try:
            await link
        except asyncio.CancelledError:
            if not signals.stopped:
                raise
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await orders.stop()
            await offer.stop(LET_GO)
            outbox.close()
    return signals.exit_code


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second does not wait."""

    def __init__(self, tunnel: Tunnel, link: asyncio.Task[None]) -> None:
        self._tunnel = tunnel
        #: Cancelled when there is no more time.
        self._link = link
        self._loop = asyncio.get_running_loop()
        #: Ends the drain.
        self._deadline: asyncio.TimerHandle | None = None
        #: The second signal came, or the time for draining is over.
        self.stopped = False
        self.exit_code = 0

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._received, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)
        if self._deadline is not None:
            self._deadline.cancel()

    def _received(self, number: signal.Signals) -> None:
        if self._tunnel.leaving.is_set():
            self.exit_code = 128 + number
            self._stop()
            return
        self.exit_code = 0
        self._drain()

    def renew(self) -> None:
        """The server wants a new beginning: as with one signal, and then again."""
        if not self._tunnel.leaving.is_set():
            self.exit_code = RENEW
            self._drain()

    def _drain(self) -> None:
        running = self._tunnel.offer.running
        log.info("draining: %d requests run; the next signal does not wait for them", running)
        self._deadline = self._loop.call_later(DRAIN, self._stop)
        self._tunnel.leave()

    def _stop(self) -> None:
        self.stopped = True
        self._link.cancel()


def _block(tunnel: Tunnel, trouble: str) -> None:
    """What a request costs could not be kept: the server is told to ask others until it can."""
    tunnel.offer.blocked = trouble
    _report(tunnel)


def _report(tunnel: Tunnel) -> None:
    """Something about the offer has changed: the server is told, and whoever looks at the status."""
    if tunnel.link is not None:
        tunnel.link.report(asyncio.get_running_loop().time())
    tunnel.changed.set()


async def keep_probing(tunnel: Tunnel) -> None:
    """Look at the engine again and again, and tell the server what changed."""
    while True:
        await _until_due(tunnel.offer)
        try:
            await tunnel.offer.probe()
            _report(tunnel)
        except Exception:  # the top of a task: an engine must not be able to end the agent
            log.exception("a probe failed; the next one comes in %.0f s", PROBE_EVERY)


async def _until_due(offer: Offer[Any]) -> None:
    """The pause between two probes; short when a request did not reach the engine, for then others would follow it."""
    await asyncio.sleep(PROBE_SOONEST)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(offer.doubted.wait(), PROBE_EVERY - PROBE_SOONEST)
    offer.doubted.clear()


async def _tell(state: StateDir, settings: Settings, tunnel: Tunnel) -> None:
    """Keep the status file up to date."""
    tunnel.changed.set()
    while True:
        await tunnel.changed.wait()
        tunnel.changed.clear()
        try:
            await asyncio.to_thread(status.write, state, _look(settings, tunnel))
        except errors.BadState as error:
            log.warning("%s", error.message)


def _look(settings: Settings, tunnel: Tunnel) -> status.Status:
    link, seen = tunnel.link, tunnel.offer.seen
    is_ready = link is not None and link.ready_since is not None
    return status.Status(
        agent_id=settings.agent_id,
        name=settings.name,
        tunnel="draining" if tunnel.leaving.is_set() else "ready" if is_ready else "connecting",
        server=tunnel.address.root if tunnel.address else settings.servers[0],
        since=link.ready_since if link else None,
        rtt_ms=link.rtt_ms if link else None,
        standing=link.standing if link else "",
        paused_until=clock.at(tunnel.offer.paused_until) if tunnel.offer.paused_until else None,
        engine=status.engine_of(seen),
        engines=[status.engine_of(stand.seen) for stand in tunnel.offer.stands],
        models=list(dict.fromkeys(model.id for stand in tunnel.offer.stands for model in stand.seen.models)),
        slots=tunnel.offer.slots,
        running=tunnel.offer.running,
        receipts=tunnel.outbox.waiting,
        error=tunnel.error or tunnel.outbox.trouble or seen.error,
    )


def _farewell(settings: Settings, last: errors.AgentError, receipts: int) -> status.Status:
    """What is left to tell when the server sent this agent away for good."""
    return status.Status(
        agent_id=settings.agent_id,
        name=settings.name,
        tunnel=status.FINAL.get(last.code, "offline"),
        server=settings.servers[0],
        receipts=receipts,
        error=last.message,
        hint=last.hint,
    )


def _keep_epoch(state: StateDir, epoch: int) -> None:
    settings = state.load()
    if settings is None:
        raise errors.NotEnrolled(f"the identity in {state.path} was removed")
    state.save(msgspec.structs.replace(settings, last_epoch=epoch))


def _finder(session: Connections, settings: Settings, engine_id: str = "e1") -> Callable[[], Awaitable[Engine]]:
    """Finds the engine of the settings, or the first that answers on the usual ports."""
    key, slots = _engine_key(settings), settings.slots or None

    async def find() -> Engine:
        if not settings.engine_url:
            found = await engines.discover(session)
            if found is None:
                raise NoEngine(f"no engine with a model answers on the usual ports ({_ports()})")
            return found
        try:
            if settings.engine_kind:
                return engines.KINDS[settings.engine_kind](Client(session, settings.engine_url, key), slots=slots, engine_id=engine_id)
            return await engines.recognise(session, engines.Place(settings.engine_url, key, slots, engine_id))
        except (Unreachable, engines.Unrecognised, ValueError) as error:
            raise NoEngine(str(error)) from None

    return find


def _engine_key(settings: Settings) -> str:
    if not settings.engine_key_file:
        return ""
    try:
        key = Path(settings.engine_key_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not plain text"
        hint = "check --engine-key-file, and who may read it"
        raise errors.Misuse(f"cannot read the engine's key from {settings.engine_key_file}: {why}", hint=hint) from None
    if not key.isprintable() or " " in key:
        raise errors.Misuse(f"{settings.engine_key_file} does not hold a key", hint="one key on one line, nothing else")
    return key


def _ports() -> str:
    return ", ".join(f"{port} {name}" for port, name in engines.USUAL_PORTS.items())
