"""A small world for tests of the gateway: the real pipeline, real agents' sessions behind real links, and a clock that is set.

Nothing here stands in for a part of the product but what cannot be had: the client (`Client`), the engine (whoever calls the
`session` of a `Box`), and the database, which is a dictionary of keys and a list of rows.
"""

import json
import secrets
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from mindgw import errors, metrics
from mindgw.config import Config, Limits, Timeouts
from mindgw.core import access, price, quota, sse
from mindgw.core.quota import Budget
from mindgw.gateway import signals
from mindgw.gateway.accounts import Accounts
from mindgw.gateway.auth import Auth
from mindgw.gateway.dead_letters import DeadLetters
from mindgw.gateway.exchange import Exchange
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.handshake import Handshake
from mindgw.gateway.meter import Meter
from mindgw.gateway.pipeline import Pipeline
from mindgw.gateway.quota import Policy, Quotas
from mindgw.gateway.rates import Rates
from mindgw.gateway.replay import Replay
from mindgw.gateway.session import Session, Standing
from mindgw.gateway.story import Stories
from mindgw.gateway.tag import Seal
from mindgw.gateway.tunnel import Link
from mindgw.store.entries import Entry, scopes
from mindgw.store.keys import Change, Holder, digest
from mindgw.store.quotas import Lent, Want
from mindgw.store.tables import Key
from mindgw_agent import identity, session, tokens, wire

T = TypeVar("T")
CHAT = "/v1/chat/completions"
PEPPER = b"p" * 32
#: The server's identity and the agents'; made once, they cost time.
SERVER, AGENT = identity.new_key(), identity.new_key()
SSE = "text/event-stream"
JSON = "application/json"
#: A chunk that leaves as it came, and its event.
CHUNK = b'{"choices":[{"delta":{"content":"a"}}]}'
EVENT = sse.event(CHUNK)
DONE = sse.event(sse.DONE)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never really waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits for something")


def engine(*models: str, slots: int = 1, id: str = "e", kinds: tuple[str, ...] = ("chat",), **fields: Any) -> wire.EngineReport:
    named = [wire.Model(model, kinds=list(kinds)) for model in models]
    return wire.EngineReport(**({"id": id, "kind": "fake", "healthy": True, "slots": slots, "models": named} | fields))


def ids(workers: Iterable[str], engine: str = "e") -> frozenset[tuple[str, str]]:
    """Those of the seats of workers with an engine of that name."""
    return frozenset((worker, engine) for worker in workers)


def knows(fleet: Fleet, name: str, kind: str = "chat") -> bool:
    """Whether a request for this model is let in."""
    try:
        fleet.check(name, kind)
    except errors.ModelNotFound:
        return False
    return True


def make_key(id: str | None = None, **columns: Any) -> tuple[str, Key]:
    made = tokens.make_key()
    return made.text, Key(**({"id": made.id, "name": "k", "org_id": "o", "digest": digest(PEPPER, made.secret)} | columns))


def rights_of(row: Key) -> access.Rights:
    """Those of a built-in role."""
    return access.combine([(access.BUILT_IN[row.role or access.USER], None)])


def greeting(key: bytes = SERVER) -> Handshake:
    """The server's half of a greeting."""
    return Handshake(identity.public_half(key), lambda message: identity.sign(key, message), identity.verify, secrets.token_bytes(32))


class Clock:
    """Seconds, which pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Vault:
    """A database with budgets in it: the rules of `store.quotas` in memory."""

    def __init__(self) -> None:
        self.policies: list[Policy] = []
        #: budget -> used and reserved.
        self.budgets: dict[Budget, list[int]] = {}
        #: Transactions so far; and whether it is away.
        self.loans = 0
        self.away = False
        #: Number of what last came back.
        self.returns = 0

    def _policy(self, budget: Budget) -> Policy | None:
        return next((p for p in self.policies if (p.scope, p.unit) == budget[:2]), None)

    async def borrow(self, wants: Sequence[Want]) -> list[Lent]:
        if self.away:
            raise OSError("the database is away")
        self.loans += 1
        lent = []
        for want in wants:
            if (policy := self._policy(want.budget)) is None:
                continue
            row = self.budgets.setdefault(want.budget, [0, 0])
            amount = quota.grant(policy.limit - sum(row), policy.limit, policy.unit, want.least, want.want)
            row[1] += amount
            lent.append(Lent(want.budget, amount, row[0], row[1], policy.limit))
        return lent

    async def give_back(self, number: int, amounts: Mapping[Budget, int]) -> None:
        if self.away:
            raise OSError("the database is away")
        if number <= self.returns:
            return
        self.returns = number
        for budget, amount in amounts.items():
            self.budgets[budget][1] -= amount

    def book(self, rows: Sequence[Entry]) -> None:
        """Rows are in the ledger."""
        for row in rows:
            for draw in row.draws:
                self.budgets[draw.budget][1] -= draw.amount
            for budget, counted in self.budgets.items():
                if row.kind == "settled" and budget.scope in set(scopes(row)):
                    counted[0] += row.amount(budget.unit)


class World:
    """A pipeline with one key; agents and clients are added by the test."""

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        dead: DeadLetters | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.clock = Clock()
        #: Of requests that are over.
        self.stories = Stories(metrics.Counters(), self.clock)
        #: Rows of the database, and the ids that were looked for.
        self.keys: dict[str, Key] = {}
        self.found: list[str] = []
        #: What the database has noted of changes.
        self.noted = [Change(1, "", "", datetime.now(UTC))]
        #: Names of the teams of keys.
        self.teams: dict[str, str] = {}
        #: Which models they may use.
        self.rules: dict[str, access.Models | None] = {}
        self.rows: list[Entry] = []
        self.boxes: list[Box] = []
        self.auth = Auth(self._find, self._changes, {1: PEPPER}, lambda: datetime.now(UTC))
        counters = metrics.Counters()
        self.meter = Meter(self._append, counters)
        self.vault = Vault()
        self.quotas = Quotas(self.vault, price.Prices([("dear", price.Price(10**6, 2 * 10**6))]), 100, counters)
        config = Config("/nowhere", timeouts=timeouts or Timeouts(), limits=limits or Limits())
        self.seal = Seal(b"s" * 32, 1)
        self.rates = Rates(counters, config.limits.failures_address)
        accounts = Accounts(self.meter, self.quotas, self.seal, self.rates)
        self.pipeline = Pipeline(config, self.auth, accounts, self.clock, dead, replay=replay, stories=self.stories)
        self.key = self.add_key()

    async def _find(self, key_id: str) -> Holder | None:
        self.found.append(key_id)
        row = self.keys.get(key_id)
        if row is None:
            return None
        org = "" if row.org_id == "o" else row.org_id
        return Holder(row, self.teams.get(key_id, ""), rights=rights_of(row), models=self.rules.get(key_id), org=org)

    async def _changes(self, since: Change | None) -> list[Change]:
        return [noted for noted in self.noted if noted.id >= since.id] if since else self.noted[-1:]

    async def _append(self, rows: list[Entry]) -> None:
        self.rows += rows
        self.vault.book(rows)
        self.quotas.desk.leases.written([draw for row in rows for draw in row.draws])

    def limit(self, scope: str, limit: int, mode: str = "block", unit: str = "tokens", period: str = "total") -> Budget:
        """Sets a limit; the budget that counts it today."""
        self.vault.policies.append(Policy(scope, unit, period, limit, mode))
        self.quotas.adopt(self.vault.policies)
        return Budget(scope, unit, quota.window(period, datetime.now(UTC).date().isoformat()))

    def add_key(self, team: str = "", **columns: Any) -> str:
        """A key that was used a moment ago."""
        text, row = make_key(**columns)
        self.teams[row.id] = team
        self.keys[row.id] = row
        return text

    def settled(self) -> list[Entry]:
        """All rows so far."""
        finished(self.meter.flush())
        return self.rows

    @property
    def used(self) -> int:
        return sum(worker.used for worker in self.pipeline.fleet.workers.values())

    def ask(
        self, model: str = "m", key: str | None = None, path: str = CHAT, headers: Sequence[tuple[bytes, bytes]] = (), **fields: Any
    ) -> "Client":
        """A request whose key is known and whose body is here."""
        key = key or self.key
        finished(self.auth.look_up(key, self.clock()))
        client = Client(self, key, path, *headers)
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]} | fields
        client.post(signals.Received(json.dumps(body).encode()))
        self.pump()
        return client

    def pump(self) -> None:
        """Carries messages both ways until everybody is silent."""
        while any(box.carry() for box in self.boxes):
            pass

    def passes(self, seconds: float) -> None:
        """Time goes by, while agents that are not frozen speak and the sweep comes round."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 5.0)
            self.pipeline.sweep()
            self.pump()


class Client:
    """The lane of one client: notes what it is sent, and that the rules of sending are kept."""

    def __init__(self, world: World, key: str, path: str = CHAT, *headers: tuple[bytes, bytes]) -> None:
        self._world = world
        #: False while it takes nothing of what is written for it.
        self.reads = True
        self.sent: list[signals.Effect] = []
        #: The last effect: Answer, Fail or End; None while the client waits.
        self.end: signals.Effect | None = None
        self.request_id = f"req-{secrets.token_hex(4)}"
        head = signals.Head(self.request_id, path, [(b"authorization", b"Bearer " + key.encode()), *headers], "")
        self.exchange: Exchange = world.pipeline.open(head, self)

    def perform(self, effects: list[signals.Effect]) -> None:
        for effect in effects:
            assert self.end is None, f"{effect} after {self.end}"
            begun = any(isinstance(sent, signals.Begin) for sent in self.sent)
            if isinstance(effect, signals.Fail):
                assert effect.begun == begun
            else:
                assert begun == isinstance(effect, signals.Write | signals.End), effect
            self.sent.append(effect)
            if isinstance(effect, signals.Answer | signals.Fail | signals.End):
                self.end = effect
        if self.reads and self.end is None and any(isinstance(effect, signals.Write) for effect in effects):
            self.post(signals.Drained())

    def post(self, event: signals.Event) -> None:
        self._world.pipeline.post(self.exchange, event)

    @property
    def state(self) -> signals.State:
        return self.exchange.state

    @property
    def body(self) -> bytes:
        """What it has read so far."""
        if isinstance(self.end, signals.Answer):
            return self.end.body
        return b"".join(effect.data for effect in self.sent if isinstance(effect, signals.Write))

    @property
    def error(self) -> errors.MindGWError | None:
        return self.end.error if isinstance(self.end, signals.Fail) else None

    @property
    def code(self) -> str:
        return self.error.code if self.error is not None else ""


class Box:
    """An agent: its real session at the other end of a link. The test plays its engine."""

    def __init__(self, world: World, name: str = "box", *engines: wire.EngineReport, approved: bool = True, **fields: Any) -> None:
        self.world = world
        self.name = name
        self.epoch = fields.pop("epoch", 0)
        self.report = wire.Report(0, list(engines) or [engine("m")], **fields)
        parties = session.Parties(
            agent_id=name,
            host="gw",
            server_identity=identity.public_half(SERVER),
            last_epoch=self.epoch,
            sign=lambda message: identity.sign(AGENT, message),
            verify=identity.verify,
        )
        self.session = session.Session(parties, self.report)
        #: Requests that its engine has not ended, by stream; and what it was told besides.
        self.requests: dict[int, session.Request] = {}
        self.events: list[session.Event] = []
        #: A frozen box neither reads nor writes.
        self.frozen = False
        self.link = Link(lambda: None, world.clock())
        self.door: Session = self._greet(approved)
        world.boxes.append(self)
        world.pump()

    def _greet(self, approved: bool) -> Session:
        handshake = greeting()
        self.session.start()
        handshake.hello(self.session.take())
        self.session.receive(handshake.challenge(self.epoch), self.world.clock())
        self.session.prove()
        report = handshake.admit(self.session.take(), identity.public_half(AGENT), self.epoch, "gw")
        self.session.receive(handshake.welcome(self.name, "active", "0", 10.0), self.world.clock())
        self.epoch = handshake.epoch
        return self.world.pipeline.attach(self.link, self.name, self.name, handshake.epoch, Standing(approved), report)

    def carry(self) -> bool:
        """One exchange of messages with the server; True when there was any."""
        busy = False
        while not self.frozen and (message := self.link.take()):
            busy = True
            self._note(self.session.receive(message, self.world.clock()))
        while not self.frozen and (message := self.session.take()):
            busy = True
            self.link.receive(message, self.world.clock())
        return busy

    def _note(self, events: list[session.Event]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, session.Request):
                self.requests[event.stream] = event

    @property
    def stream(self) -> int:
        """The newest request's stream."""
        return max(self.requests)

    @property
    def cancelled(self) -> list[int]:
        return [event.stream for event in self.events if isinstance(event, session.Cancel)]

    def head(self, status: int = 200, content_type: str = SSE, data: bytes = b"", stream: int = 0) -> None:
        self.session.head(stream or self.stream, status, content_type, data)
        self.world.pump()

    def data(self, data: bytes, stream: int = 0) -> None:
        self.session.data(stream or self.stream, data)
        self.world.pump()

    def close(self, outcome: Any = "done", code: str = "", stream: int = 0, **fields: Any) -> None:
        stream = stream or self.stream
        del self.requests[stream]
        self.session.close(stream, wire.Close(outcome, code, **fields))
        self.world.pump()

    def says(self, *engines: wire.EngineReport, **fields: Any) -> None:
        """A new report."""
        self.report = msgspec.structs.replace(self.report, serial=self.report.serial + 1, engines=list(engines), **fields)
        self.session.report(self.report)
        self.world.pump()

    def cut(self) -> None:
        """The socket is gone."""
        self.world.boxes.remove(self)
        self.door.detach()
        self.world.pump()
