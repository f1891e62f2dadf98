"""The server put together: settings, secrets and a database in, one Litestar application out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from litestar import Litestar, asgi
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.types import Receive, Scope, Send

from mindgw import __version__, metrics
from mindgw.clock import utcnow
from mindgw.config import Config
from mindgw.control import dead_letters, key_policy, segments, witness
from mindgw.control.feed import Feed
from mindgw.control.principal import Home
from mindgw.control.queue import Lists
from mindgw.control.refusals import Watch
from mindgw.control.sealing import Safe
from mindgw.control.secrets import Secrets
from mindgw.control.trends import Past
from mindgw.gateway.auth import Auth, Changes, Find
from mindgw.gateway.dead_letters import DeadLetters, Sent
from mindgw.gateway.memory import Memory
from mindgw.gateway.pipeline import Pipeline
from mindgw.gateway.registry import Registry
from mindgw.server import browsers, enrol, management, ops, pages, problems, replays, sessions, stories, trends
from mindgw.server.accounting import Accounting
from mindgw.server.agents import AgentsDoor
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.server.collector import Collector
from mindgw.server.cors import Cors
from mindgw.server.openai import OpenAIDoor
from mindgw.server.own_usage import own_usage
from mindgw.server.sign_on import Front
from mindgw.server.ways import Ways
from mindgw.store import dead_letters as stored
from mindgw.store import keys
from mindgw.store.database import Database

log = logging.getLogger("mindgw.server")

#: Seconds between looks at who waits too long, and between writes of what was used and seen.
SWEEP = 0.25
FLUSH = 0.5
#: Seconds between looks at the routes: what another server changes holds here after that.
LOOK = 2.0
#: Seconds between looks at what has changed of keys: what another server revokes is refused here after that.
CHECK = 0.5
#: Seconds between writes of what the fair order knows, and between looks for what is too old to be kept.
REMEMBER = 10.0
#: Seconds that work which is under way may take when the server stops.
STUCK = 10.0
SECOND, MINUTE = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """What is running."""

    app: Litestar
    #: `/v1`, which hangs in the application, too.
    door: OpenAIDoor
    pipeline: Pipeline
    registry: Registry
    database: Database
    collector: Collector


def build(config: Config, secrets: Secrets, database: Database) -> Server:
    """Wires everything; nothing is opened before the application's lifespan begins. The database must be at head."""
    counters = metrics.Counters()
    database.audit_key = secrets.audit_key
    front = Front(config, secrets, database)
    auth = Auth(*_keys(config, database), {1: secrets.pepper}, utcnow, front.sign_on.bear if front.sign_on.is_bearing else None)
    accounting = Accounting(config, secrets, database, counters)
    dead = DeadLetters(config.dead_letters, counters)
    replay, replays_writing, replays_forgetting = replays.registry(config, secrets, database)
    told, telling, untelling = stories.registry(config, database, counters)
    pipeline = Pipeline(config, auth, accounting.accounts, dead=dead, replay=replay, stories=told)
    people = sessions.registry(config, secrets, database, pipeline.identify, accounting.rates)
    registry = Registry(database, secrets.identity)
    inbox = accounting.inbox
    news = pipeline.news
    news.on_report, news.on_receipts, news.on_unlinked = registry.seen, inbox.take, inbox.forget
    news.on_charge, registry.on_booked = registry.accused, pipeline.fleet.booked
    inbox.runs = lambda request_id: pipeline.runs(request_id) or accounting.meter.has(request_id)
    collector = Collector(counters, pipeline.snapshot, pipeline.queue_stats, lambda: accounting.meter.unwritten, accounting.receipts)
    state = State({"database": database, "pipeline": pipeline, "collector": collector, "secrets": secrets, "config": config})
    state.identify, state.sessions, state.strangers = people.identity, people.sessions, accounting.rates
    ways = Ways(pipeline, database)
    state.quotas_changed, state.routes_changed = accounting.refresh, ways.refresh
    state.feed, state.lists, state.retrying = Feed(pipeline), Lists(), set()
    state.home, state.access_changed = Home(database), _both(pipeline.forget_callers, people.sessions.forget)
    state.trends, trends_writing, noting = trends.registry(database, pipeline.fleet)
    state.past, accounting.on_written = Past(database, state.trends), state.trends.served
    door = OpenAIDoor(pipeline, config.limits.body, Cors(config.cors.origins), own_usage(database))
    doors = [
        _mount("/v1", door, is_mount=True),
        _mount("/agent/v1/link", AgentsDoor(pipeline, registry, config.listen, accounting.books.linked), is_mount=False),
    ]
    watch = Watch(database)
    state.refusals, accounting.rates.on_failure, accounting.rates.on_refusal = watch, watch.stranger, watch.key
    beside = [*accounting.writing(), replays_writing, trends_writing, *people.chores, *telling]
    asking = front.open(state, pipeline, people.sessions.forget)
    beside += [
        Chore("telling of refusals", SECOND, watch.flush),
        Chore("telling of routes that are only noted", SECOND, ways.tell),
        Chore("writing what workers report", FLUSH, registry.flush),
        Chore("writing when keys were used", FLUSH, _touch(auth, database)),
        Chore("writing dead letters", FLUSH, partial(dead.flush, _writer(database, Safe(secrets.sealing)))),
    ]
    forget = Chore("forgetting old dead letters", MINUTE, lambda: dead_letters.forget(database, config.dead_letters, utcnow()))
    tend = Chore("signing and archiving the audit log", MINUTE, _tended(config, secrets, database))
    reading = Chore("reading routes", LOOK, ways.refresh)
    others = [forget, replays_forgetting, untelling, tend, *noting, *asking]
    work = partial(_at_work, pipeline, registry, database, accounting, ways, beside, reading, *others)
    app = _application(doors, state, config, lambda _: work())
    return Server(app, door, pipeline, registry, database, collector)


def _keys(config: Config, database: Database) -> tuple[Find, Changes]:
    """What finds a key, and what tells of changes to keys."""

    async def find(key_id: str) -> keys.Holder | None:
        async with database.read() as session:
            return key_policy.bound(await keys.holder(session, key_id), config.keys)

    async def changes(since: keys.Change | None) -> list[keys.Change]:
        async with database.read() as session:
            return await keys.changes(session, since)

    return find, changes


def _application(
    doors: list[Any], state: State, config: Config, at_work: Callable[[Litestar], AbstractAsyncContextManager[None]]
) -> Litestar:
    """The framework's half: management, operations, joining, and the doors that only hang in it."""
    return Litestar(
        [
            *doors,
            *pages.HANDLERS,
            ops.root,
            ops.healthz,
            ops.readyz,
            ops.scrape,
            enrol.router(),
            management.router(),
            *management.entered(),
            browsers.router(),
            management.followed(),
        ],
        state=state,
        after_exception=[management.refused],
        exception_handlers=problems.HANDLERS,
        openapi_config=OpenAPIConfig(
            title="MindGateway management API",
            version=__version__,
            path="/api/v1",
            openapi_router=management.described(),
            render_plugins=[management.openapi_json()],
        ),
        request_max_body_size=config.limits.body,
        lifespan=[at_work],
        on_shutdown=[state.sign_on.close],
        logging_config=None,
        debug=False,
    )


Door = Callable[[Any, Any, Any], Awaitable[None]]


def _mount(path: str, door: Door, *, is_mount: bool) -> Any:
    """A door as an ASGI route: the framework finds it and does nothing else."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await door(scope, receive, send)

    return asgi(path, is_mount=is_mount, copy_scope=False)(serve)


@asynccontextmanager
async def _at_work(
    pipeline: Pipeline, registry: Registry, database: Database, accounting: Accounting, ways: Ways, writing: list[Chore], *others: Chore
) -> AsyncIterator[None]:
    """What runs beside the requests while the application lives; at the end everything that is known is written down."""
    memory = Memory(pipeline.queue.order, database, utcnow)
    await ways.refresh()  # before the first request, or it might go where it may not
    await registry.remember(pipeline.fleet)
    await memory.recall()
    await accounting.begin()
    writing = [*writing, Chore("writing how far flows are ahead", REMEMBER, memory.flush)]
    checking = Chore("asking what has changed of keys", CHECK, pipeline.check_keys)
    chores = [Chore("the sweep", SWEEP, _swept(pipeline)), checking, *writing, *accounting.others(), *others]
    tasks = [asyncio.create_task(chore.forever()) for chore in chores]
    try:
        yield
    finally:
        for chore in chores:
            chore.stop()
        _done, stuck = await asyncio.wait(tasks, timeout=STUCK)
        for task in stuck:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for chore in writing:
            await chore.once()
        await Chore("closing the books", MINUTE, accounting.end).once()


def _writer(database: Database, safe: Safe) -> Callable[[Sequence[Sent]], Awaitable[None]]:
    """Writes letters, their bodies sealed."""

    async def append(letters: Sequence[stored.Letter]) -> None:
        async with database.write() as session:
            await stored.append(session, letters)

    good = all_but_the_bad(append, "dead letter", hidden={"sealed"})

    async def write(sent: Sequence[Sent]) -> None:
        await good(await asyncio.to_thread(dead_letters.seal, safe, sent))

    return write


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _touch(auth: Auth, database: Database) -> Callable[[], Awaitable[None]]:
    async def touch() -> None:
        used = auth.used()
        if not used:
            return
        written = False
        try:
            async with database.write() as session:
                await keys.touch(session, used)
            written = True
        finally:
            if not written:
                auth.keep(used)

    return touch


def _tended(config: Config, secrets: Secrets, database: Database) -> Callable[[], Awaitable[None]]:
    keep = timedelta(seconds=config.audit.keep)

    async def tend() -> None:
        await segments.tend(database, secrets, config.directory, keep, utcnow())
        await witness.note(database, config.directory)

    return tend


def _swept(pipeline: Pipeline) -> Callable[[], Awaitable[None]]:
    async def sweep() -> None:
        pipeline.sweep()

    return sweep
