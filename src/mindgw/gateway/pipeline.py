"""The stages wired together, and the one door that lanes, links and management have to the request path.

    auth -> admission -> queue -> route -> fleet -> tunnel -> relay -> meter -> store.ledger

Everything here runs on the event loop's thread and returns at once. What is not in memory (a key, an answer to be repeated, what is on
loan of a limit) needs the database: to ask it is the one kind of task that a request may start.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from mindgw import errors
from mindgw.clock import monotonic, utcnow, wall
from mindgw.config import Config
from mindgw.core.breaker import Breaker
from mindgw.core.routing import Rules, Where, of_team
from mindgw.gateway import route, signals
from mindgw.gateway.accounts import Accounts
from mindgw.gateway.admission import Caller
from mindgw.gateway.arrivals import Arrival
from mindgw.gateway.auth import Auth, credential
from mindgw.gateway.dead_letters import DeadLetters
from mindgw.gateway.decrees import Decrees
from mindgw.gateway.errands import Errands
from mindgw.gateway.exchange import TABLE, Exchange
from mindgw.gateway.failover import Failover
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import weigher
from mindgw.gateway.oversight import Oversight
from mindgw.gateway.queue import Queue
from mindgw.gateway.replay import Replay
from mindgw.gateway.rerun import Rerun
from mindgw.gateway.reservation import Reservation
from mindgw.gateway.routes import Routes
from mindgw.gateway.seat import Worker
from mindgw.gateway.session import News, Session, Standing
from mindgw.gateway.stages import Stages
from mindgw.gateway.story import Stories
from mindgw.gateway.tunnel import Link
from mindgw.gateway.watch import Watch
from mindgw_agent import wire

log = logging.getLogger("mindgw.pipeline")

#: Effects that the pipeline carries out itself.
_ERRANDS = frozenset({signals.LookUp, signals.Recall, signals.Fund})
#: States in which a request may be ended without taking an answer from anybody.
_AT_REST = frozenset({signals.OPENED, signals.CLOSING})
#: Seconds between looks at what running requests have produced.
MEASURE = 1.0


class Lane(Protocol):
    """Who stands between an exchange and its client."""

    def perform(self, effects: list[signals.Effect]) -> None:
        """Carries out what an exchange asks for, now or as soon as the client takes it; must not raise."""


class Pipeline(Oversight):
    """All requests that are under way, all workers that are connected."""

    def __init__(
        self,
        config: Config,
        auth: Auth,
        accounts: Accounts,
        now: Callable[[], float] = monotonic,
        dead: DeadLetters | None = None,
        *,
        replay: Replay | None = None,
        stories: Stories | None = None,
    ) -> None:
        self._auth = auth
        #: Monotonic seconds.
        self.clock = self._now = now
        self.accounts = accounts
        settings = config.routing
        self.fleet = Fleet(self._changed, settings.strategy, Breaker(settings.eject_after, settings.eject_for))
        self.errands = Errands(self.fleet, now)
        self.decrees = Decrees(self.fleet, self.errands, self.remove_worker, self.lock_worker)
        aging = config.queue.aging.by_rank()
        self.queue = Queue(partial(route.place, self.fleet), self.fleet, config.limits, weigher(config.queue.weights), aging)
        self.routes = Routes(self.fleet, self.queue, accounts.meter.counters, hedge=settings.hedge)
        watch = Watch(config.timeouts, self.fleet, self.queue)
        self._failover = Failover(self.fleet, config.routing, accounts.meter.counters, now())
        self._stages = Stages(
            auth, self.fleet, self.queue, self.routes, accounts, config.limits, config.timeouts, watch, self._failover, wall, self._today,
            self.post, dead, replay, stories,
        )  # fmt: skip
        if replay is not None:
            replay.post, replay.now = self.post, now
        #: UTC date, as the sweep saw it last.
        self.day = utcnow().date().isoformat()
        #: Names of models as they were when those who wait were last sorted.
        self._canonical = self.fleet.canonical
        #: How often it had begun to matter whose requests are, when those under way were last told.
        self._kept = 0
        #: Every exchange that is not done.
        self._running: set[Exchange] = set()
        #: Look-ups of keys and of answers, and loans, that are under way.
        self._tasks: set[asyncio.Task[None]] = set()
        #: Keys with requests under way that may be good no longer.
        # bounded: one entry per key of a request
        self._doubted: set[str] = set()
        #: True once no new requests are taken.
        self.draining = False
        self._started = self._measured = self._now()
        #: Who else is told what agents say.
        self.news = News()

    # -- lanes ---------------------------------------------------------------------------------------------------

    def open(self, head: signals.Head, lane: Lane) -> Exchange:
        """A new request; its body follows as a Received event."""
        now = self._now()
        exchange = Exchange(self._stages, head, lane, now)
        self._running.add(exchange)
        refused = signals.Refused(errors.Draining(retry_after=5)) if self.draining else None
        effects = exchange.open(now) if refused is None else exchange.handle(refused, now)
        if effects:  # nothing is to be done for most: their key is known
            self._carry_out(exchange, lane, effects)
        return exchange

    def post(self, exchange: Exchange, event: signals.Event) -> None:
        """Brings an event to its exchange and carries out what follows."""
        now = self._now()
        lane: Lane | None = exchange.lane  # what happens in the same stack may end the exchange and take its lane away
        try:
            move = TABLE[exchange.state].get(type(event))
            effects = move(exchange, event, now) if move is not None else []
        except Exception:  # a bug in one request must not take the loop's other requests with it
            log.exception("request %s failed in state %s", exchange.head.request_id, exchange.state)
            wrong = errors.InternalError()
            effects = exchange.handle(signals.Stopped(wrong), now) or [signals.Fail(wrong, exchange.begun)]
        if effects or exchange.state is signals.DONE:
            self._carry_out(exchange, lane, effects)

    def _carry_out(self, exchange: Exchange, lane: Lane | None, effects: list[signals.Effect]) -> None:
        if effects:
            if type(effects[0]) in _ERRANDS:
                self._run_errand(exchange, effects[0])
            elif lane is not None:
                lane.perform(effects)
        if exchange.state is signals.DONE:
            self._running.discard(exchange)
            exchange.lane = None

    def _run_errand(self, exchange: Exchange, errand: signals.Effect) -> None:
        """What only the database knows."""
        if isinstance(errand, signals.LookUp):
            self._start(self._look_up(exchange, errand.key))
        elif isinstance(errand, signals.Recall):
            assert self._stages.replay is not None
            self._start(self._stages.replay.recall(errand.identity))
        elif isinstance(errand, signals.Fund):
            self._start(self._fund(exchange, errand.reservation))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fund(self, exchange: Exchange, reservation: Reservation) -> None:
        try:
            await self.accounts.quotas.fund(reservation)
        except errors.MindGWError as wrong:
            self.post(exchange, signals.Refused(wrong.bare()))
        else:
            self.post(exchange, signals.Funded())

    async def _look_up(self, exchange: Exchange, key: str) -> None:
        try:
            caller = await self._auth.look_up(key, self._now())
        except errors.MindGWError as wrong:
            self.post(exchange, signals.Refused(self.accounts.rates.blame(exchange.head.address, wrong, self._now())))
        except Exception:  # the top of a task: the database is away or the code is wrong, and the client must hear something
            log.exception("looking up a key failed")
            away = errors.Draining("Keys cannot be checked at the moment.", code="auth_unavailable", retry_after=5)
            self.post(exchange, signals.Refused(away))
        else:
            self.post(exchange, signals.Identified(caller))

    # -- workers -------------------------------------------------------------------------------------------------

    def expect(self, worker_id: str) -> AbstractContextManager[Arrival]:
        """To be entered before the database is asked what is said of a worker, and left once it is attached."""
        return self.fleet.arrivals.expect(worker_id)

    def attach(self, link: Link, id: str, name: str, epoch: int, standing: Standing, report: wire.Report) -> Session:
        """A worker whose agent has proved who it is. What an older session of it carried is tried anew: its socket may be half dead."""
        worker = Worker(id, name, epoch, link)
        worker.drained, worker.charge = standing.drained, standing.charge or standing.unwritten
        worker.booked = bool(standing.charge)
        session = Session(self.fleet, self.news, worker)
        link.owner = session
        older = self.fleet.attach(worker, standing.approved)
        if worker.charge != standing.charge:
            self.news.on_charge(worker)
        session.reported(report)
        if older is not None:
            older.link.lost()
        return session

    def remove_worker(self, worker_id: str) -> None:
        """Its agent's key was revoked: the link closes now, and nobody waits for it."""
        self._dismiss(worker_id, "revoked", "This agent was removed from the server.")
        self.fleet.remembered.pop(worker_id, None)

    def lock_worker(self, worker_id: str) -> None:
        """Its identity was used from two places, and nobody can tell which one is the right one: the link closes now."""
        self._dismiss(worker_id, "locked", "This identity is in use on another machine. Remove the worker and join again.")

    def _dismiss(self, worker_id: str, code: str, why: str) -> None:
        self.fleet.arrivals.dismiss(worker_id, wire.Goodbye(code, why))
        worker = self.fleet.workers.get(worker_id)
        if worker is not None:
            self._part(worker, code, why)

    def _part(self, worker: Worker, code: str, why: str) -> None:
        """It hears why, and is gone for everybody else: its socket may take long to close, and neither what runs there nor who is placed
        next waits for that."""
        worker.link.goodbye(code, why)
        self.fleet.detach(worker)
        worker.link.lost()

    def forget_key(self, key_id: str) -> None:
        """The key is not what it was: its next request asks the database; those that run go on."""
        self._auth.forget(key_id)

    def revoke_key(self, key_id: str) -> None:
        """Forgets the key and ends every request that it pays for."""
        self._auth.forget(key_id)
        self._cut(key_id, errors.Unauthenticated("This API key was revoked.", code="revoked_api_key"))

    def _cut(self, key_id: str, wrong: errors.Unauthenticated, good: Collection[bytes] = ()) -> None:
        """Ends the requests of a key, but those with one of its good secrets."""
        for exchange in [e for e in self._running if e.caller is not None and e.caller.key_id == key_id and e.caller.secret not in good]:
            self.post(exchange, signals.Stopped(wrong))

    def forget_user(self, user_id: str) -> None:
        """Their keys are looked up again, for what they may do has changed; what runs goes on."""
        self._auth.forget_where(lambda caller: caller.user_id == user_id)

    def cut_user(self, user_id: str) -> None:
        """Forgets all keys of a user, and ends every request that one of them pays for."""
        self._shut_out(lambda caller: caller.user_id == user_id)

    def cut_org(self, org_id: str) -> None:
        """The same with all keys of an organisation."""
        self._shut_out(lambda caller: caller.org_id == org_id)

    def _shut_out(self, unwelcome: Callable[[Caller], bool]) -> None:
        self._auth.forget_where(unwelcome)
        wrong = errors.Unauthenticated("The holder of this API key may not use the gateway any more.", code="user_disabled")
        for exchange in [e for e in self._running if e.caller is not None and unwelcome(e.caller)]:
            self.post(exchange, signals.Stopped(wrong))

    def forget_callers(self) -> None:
        """Asks the database again whoever it was, from the next request on: who may do what has changed."""
        self._auth.forget_all()

    async def check_keys(self) -> None:
        """To be called a few times a second: hears of keys that were changed by others, and ends requests of those that are no longer
        good; those of a key that is bound to some place by now go to no other. Raises what the database raises, and goes on there the
        next time."""
        touched = await self._auth.check(self._now())
        self._doubted |= {e.caller.key_id for e in self._running if e.caller is not None and touched(e.caller)}
        for key_id in list(self._doubted):
            try:
                caller, good = await self._auth.standing(key_id)
            except errors.Unauthenticated as wrong:
                self._cut(key_id, wrong)
            else:
                self._cut(key_id, errors.Unauthenticated("This API key was rotated.", code="rotated_api_key"), good)
                self._bind(key_id, caller.home)
            self._doubted.discard(key_id)

    def _bind(self, key_id: str, home: Where) -> None:
        """The requests of a key go nowhere else from now on."""
        for exchange in [e for e in self._running if home and e.caller is not None and e.caller.key_id == key_id]:
            self.post(exchange, signals.Bound(home))
        self.queue.wake(self._now())

    async def identify(self, headers: list[tuple[bytes, bytes]], path: str = "", address: str = "") -> Caller:
        """Whose key these headers carry, for requests that no exchange carries; names are in lower case. Raises Unauthenticated,
        RateLimited for an address that was wrong too often, Forbidden where the key is not good for the path or the address, and
        BadRequest for two keys."""
        rates = self.accounts.rates
        try:
            key = credential(headers)
            caller = self._auth.known(key, self._now())
            if caller is None:
                rates.patience(address, self._now())
                caller = await self._auth.look_up(key, self._now())
        except errors.Unauthenticated as wrong:
            raise rates.blame(address, wrong, self._now()) from None
        rates.bound(caller, address, path)
        return caller

    async def rerun(self, key_id: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
        """Runs a request that is no stream on behalf of a key, in its turn and at its expense; the body of the answer. Raises what its
        client would have heard; such a request leaves no dead letter. Cancel it, and the request ends."""
        caller = await self._auth.holder(key_id)
        if self.draining:
            raise errors.Draining(retry_after=5)
        lane = Rerun()
        head = signals.Head(f"req-{secrets.token_hex(12)}", path, headers)
        exchange = Exchange(replace(self._stages, dead=None), head, lane, self._now())
        if caller.scope is not None:  # its client is not there to ask from anywhere
            caller = replace(caller, scope=caller.scope.anywhere())
        self._running.add(exchange)
        self.post(exchange, signals.Identified(caller))
        self.post(exchange, signals.Received(body))
        try:
            return await lane.answer()
        finally:
            self.post(exchange, signals.Gone())

    # -- time ----------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """To be called a few times a second: whoever waits for too long hears so, silent links are dropped."""
        now = self._now()
        self.day = utcnow().date().isoformat()
        if now >= self._measured + MEASURE:
            self._measured = now
            self.queue.pace.measure(now)
        for exchange in [e for e in self._running if e.due <= now]:
            self.post(exchange, signals.Tick())
        for worker in list(self.fleet.workers.values()):
            worker.rtt = worker.link.rtt
            if not worker.link.tick(now):
                self._part(worker, "protocol", "The agent fell silent.")
        self._failover.sweep(now)
        self.queue.wake(now)

    def drain(self) -> None:
        """No new requests from now on, which agents hear too; those that wait or run go on."""
        self.draining = True
        for worker in self.fleet.workers.values():
            worker.link.drain()

    def stop(self) -> None:
        """Ends what is still running, with an error that says so."""
        for exchange in list(self._running):
            self.post(exchange, signals.Stopped(errors.Draining(retry_after=5)))

    def farewell(self) -> None:
        """Sends the agents away: they come back in a moment."""
        for worker in list(self.fleet.workers.values()):
            worker.link.goodbye("draining", "The server restarts.", retry_after=1.0)

    @property
    def deserted(self) -> bool:
        """True when no agent is connected."""
        return not self.fleet.workers

    @property
    def idle(self) -> bool:
        """True when nobody waits for an answer; a client that is still sending its request does not hold up a stop."""
        return all(exchange.state in _AT_REST for exchange in self._running)

    # -- what changes for all ------------------------------------------------------------------------------------

    def adopt_routes(self, rules: Rules, tags: Mapping[str, Mapping[str, str]]) -> None:
        """These routes from now on, and these tags of workers; `tags`: those of all workers, by their ids."""
        self.routes.adopt(rules)
        self.fleet.adopt(rules, tags)

    def _today(self) -> str:
        return self.day

    def _changed(self) -> None:
        if self.fleet.kept != self._kept:
            self._kept = self.fleet.kept
            for exchange in [e for e in self._running if e.caller is not None]:
                self.post(exchange, signals.Bound(of_team(exchange.caller.group if exchange.caller is not None else "")))
        if not self.queue.waiting:
            return
        now = self._now()
        if self.fleet.canonical is not self._canonical:
            self._canonical = self.fleet.canonical
            self.queue.rename(now)
        self.queue.wake(now)
