"""What the pipeline shows of itself to management: values only, taken at one moment."""

from datetime import datetime

from msgspec import Struct

from mindgw_agent.wire import Gpu, Model


class CircuitView(Struct, frozen=True, kw_only=True):
    """A model that fails on a worker, which is left alone for that; a model that is not named is well."""

    model: str
    #: open: nothing is sent there; half-open: the next request is a probe; probing: one is under way.
    state: str
    #: Seconds until it is tried again.
    retry_s: float


class EngineView(Struct, frozen=True, kw_only=True):
    """One engine of a worker."""

    id: str
    kind: str = ""
    version: str = ""
    url: str = ""
    #: Whether it answers its agent, None while that is away; and what is wrong when it does not, in the agent's words.
    healthy: bool | None = None
    error: str = ""
    #: Requests that it carries at once, and how many of these places are leased.
    slots: int = 0
    used: int = 0
    models: list[Model] = []


class ModelView(Struct, frozen=True, kw_only=True):
    """A model, and who serves it: ready workers whose engine answers, may serve it and has not said that it cannot."""

    id: str
    #: Other names that it goes by.
    aliases: list[str]
    #: Seconds since 1970; 0: no engine says.
    created: int
    #: Names of the workers.
    workers: list[str]
    #: Slots of their engines that have it, and how many of these are leased.
    slots: int
    used: int
    #: Tokens that fit on every one of them; None: none of them says.
    context: int | None
    #: chat, completions, embeddings.
    kinds: list[str]


class Offer(Struct, frozen=True, kw_only=True):
    """A model that can be asked for now."""

    id: str
    #: Other names that it goes by.
    aliases: list[str]
    #: Seconds since 1970; 0: no engine says.
    created: int


class WorkerView(Struct, frozen=True, kw_only=True):
    """One connected worker as it is now."""

    id: str
    name: str
    #: connecting, pending, ready, draining, paused, offline, quarantined or locked.
    state: str
    #: Why it is in quarantine; empty when it is not.
    reason: str = ""
    #: Until when its owner paused it; None: it is not paused.
    paused_until: datetime | None = None
    #: Names of the teams that its owner keeps it for; none: for all.
    teams: list[str] = []
    #: Sums over its engines: slots of those that answer, and what is leased.
    slots: int
    used: int
    engines: list[EngineView]
    gpus: list[Gpu]
    #: Round trip of the link in milliseconds; None until the first answer to a ping.
    rtt_ms: float | None
    last_seen: datetime | None
    #: Counts the sessions of this agent; frames of an older one are void.
    epoch: int
    #: Models that fail there.
    circuits: list[CircuitView] = []


class BudgetView(Struct, frozen=True, kw_only=True):
    """A budget that requests of this server fall under, as the server last saw it."""

    #: Scope, unit and window.
    id: str
    #: key:ID, user:EMAIL, team:NAME, org:ID or model:NAME.
    scope: str
    #: tokens or usd; money in millionths of a dollar.
    unit: str
    window: str
    #: block, soft, queue-low, alert or shadow.
    mode: str
    limit: int
    #: What was used, and what requests that run and servers have reserved beside that.
    used: int
    reserved: int


class Snapshot(Struct, frozen=True, kw_only=True):
    """The live half of the server's status."""

    workers: list[WorkerView]
    #: Requests that wait for a slot, and requests that hold one.
    waiting: int
    running: int
    #: Monotonic seconds when the pipeline started.
    started_at: float
