"""What became of a request, in the words of the management API."""

from datetime import datetime

from msgspec import Struct


class RequestView(Struct, frozen=True, kw_only=True):
    """One request."""

    #: As in the log and in `x-mindgw-request-id`.
    id: str
    #: waiting, running or over.
    state: str
    #: done, cancelled, failed or replayed; "" while it is not over.
    outcome: str
    #: What its caller saw, and the code of the error; 0 and "" as long as there is none.
    status: int
    code: str
    #: What was asked for, and what the worker that was asked last calls it.
    model: str
    served_model: str
    #: That worker, "" when there was none.
    worker: str
    key_id: str
    #: Names of the key, team and organisation, address of the person; their ids when they are not known any more.
    key: str
    user: str
    team: str
    org: str
    #: Who is behind a trusted proxy, "" for nobody.
    end_user: str
    #: Times that it was sent to a worker.
    attempts: int
    tokens_in: int
    tokens_out: int
    #: Of the answer, in a second; null: nobody knows.
    tokens_per_s: float | None
    queued_ms: int
    #: To the first byte of its answer; null: there was none.
    ttft_ms: int | None
    total_ms: int
    started_at: datetime
    #: null: it is not over.
    ended_at: datetime | None


class Candidate(Struct, frozen=True):
    """A worker that was looked at."""

    worker: str
    #: What they were compared by: how long the request would take there, roughly. Less is better.
    seconds: float


class ChoiceView(Struct, frozen=True, kw_only=True):
    """Why a worker was taken, where there were several. Seconds and tokens are what was expected of it."""

    strategy: str
    #: The best first; empty: the strategy asks for no such thing, or it is not for whoever asks.
    considered: list[Candidate]
    prompt_tokens: int
    #: Those of them that the worker probably remembered.
    cached_tokens: int
    #: Loading the model, what it had to read before (both 0 where machines are not for whoever asks), and reading the prompt.
    cold_s: float
    ahead_s: float
    reading_s: float


class MomentView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened to a request. Fields that say nothing are left out."""

    #: Seconds since it came.
    at_s: float
    #: arrived, identified, admitted, waited, stood, moved, funding, funded, sent, first_byte, turned_down, failed, left, omitted or ended.
    what: str
    #: Of `sent`: first, retry or hedge; of `identified`, where from the key was known: memory or database.
    kind: str = ""
    worker: str = ""
    model: str = ""
    #: Tags that its worker must have, such as region=eu.
    where: list[str] = []
    #: Of an error; of `left` and `ended` how it ended.
    code: str = ""
    #: Of `failed` the engine's, of `ended` the caller's.
    status: int = 0
    #: Where it stood, 1 is next, and the seconds until its turn as they were estimated.
    position: int = 0
    eta_s: float | None = None
    #: Of `omitted`: how many moments are not told.
    count: int = 0
    choice: ChoiceView | None = None


class LimitView(Struct, frozen=True, kw_only=True):
    """A limit that it fell under."""

    #: Such as team:nlp.
    scope: str
    #: tokens, usd, rpm, tpm or concurrency.
    unit: str
    #: A number; of usd a decimal.
    limit: str
    #: "" for rates, which count by the minute.
    period: str
    on_exceed: str


class Paid(Struct, frozen=True, kw_only=True):
    """What the ledger has of its end."""

    #: settled: it was billed; wasted, refused: it was not.
    kind: str
    cost_usd: str
    #: Tokens of the prompt that came out of an engine's cache, and who counted: engine, counted or estimated.
    tokens_cached: int
    counted_by: str


class StoryView(RequestView, frozen=True, kw_only=True):
    """One request, moment by moment."""

    endpoint: str
    stream: bool
    #: Bytes of the request, its tokens as they were estimated, and the most that its answer might have; null: as many as the engine likes.
    size: int
    prompt_tokens: int
    max_tokens: int | None
    #: Seconds within which its answer had to begin; null: its caller did not say.
    deadline_s: float | None
    #: Name of the route that it took, "" for none; how a worker is chosen there, "" for the server's own way.
    route: str
    strategy: str
    #: Its class in the queue.
    priority: str
    #: Tags that its caller is bound to.
    bound_to: list[str]
    limits: list[LimitView]
    #: Who served it, with the tags that it was bound to; "" where nothing bound it.
    served_by: str
    #: null: it is not over.
    paid: Paid | None
    moments: list[MomentView]
