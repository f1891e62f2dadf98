"""What every engine has in common. Each engine's own facts stand in the file of its name, as overrides of `Engine`."""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from mindgw_agent import payload
from mindgw_agent.aggregate import Fold
from mindgw_agent.engines.client import GENERATION, Answer, Client, Route, Unreachable
from mindgw_agent.vocabulary import clean, clean_models
from mindgw_agent.wire import EngineReport, Meta, Model

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
#: Words of an error that blame `stream_options`.
_OPTIONS = re.compile(rb"stream_options|include_usage", re.IGNORECASE)
_TRUE = payload.encoded(True)


#: Notes how far something is: for people, and from 0 to 1 where that is known.
Tell = Callable[[str, float | None], None]


class Unable(Exception):
    """The engine does not do that; the message says why."""

    def __init__(self, message: str, *, never: bool = False) -> None:
        super().__init__(message)
        #: No engine of this kind ever does.
        self.never = never


class Prepared(msgspec.Struct, frozen=True):
    """A request as an engine gets it."""

    body: bytes
    #: Whether the engine streams its answer.
    stream: bool
    #: What folds that stream into one answer, when the caller did not ask for a stream.
    fold: Fold | None = None
    #: Answers asked for.
    answers: int = 1
    #: Whether `stream_options` was put in: an engine may refuse it.
    options: bool = False


class Facts(msgspec.Struct, frozen=True):
    """What a probe found out, in any engine's terms."""

    models: list[Model]
    version: str = ""
    #: Requests that the engine takes at once; 0 when it does not say.
    slots: int = 0
    #: Requests that it works on now, None when it does not say.
    running: int | None = None


class Engine:
    """One engine in front of which the agent stands. `begin` and `end` come in pairs around each request.

    Subclasses override `facts` and the class attributes; the tunnel uses `probe`, the exchange everything else.
    """

    kind: ClassVar[str] = "generic"
    #: Slots when neither the operator nor the engine says how many there are.
    default_slots: ClassVar[int] = 1
    #: What the agent itself may ask, besides the generation routes.
    readings: ClassVar[frozenset[Route]] = frozenset({("GET", "/v1/models")})
    #: Top-level fields that callers may not set on this engine, in lower case.
    denied: ClassVar[frozenset[str]] = frozenset()
    #: Statuses that say "try again later" before any work was done.
    busy_statuses: ClassVar[frozenset[int]] = frozenset({429, 503})
    #: 5xx answers that are the caller's fault, by their text.
    caller_faults: ClassVar[re.Pattern[bytes] | None] = None
    #: Whether a stream carries one usage object for each answer (`n`), to be added up.
    usage_per_answer: ClassVar[bool] = False
    #: Whether a stream may end well without saying a finish reason.
    lenient: ClassVar[bool] = True
    #: Whether it fetches models by their names.
    can_pull: ClassVar[bool] = False

    def __init__(self, client: Client, *, slots: int | None = None, engine_id: str = "e1") -> None:
        self.client = client
        #: Id on the wire, unique within the agent.
        self.id = engine_id
        #: Slots that the operator set, None to believe the engine.
        self._set_slots = slots
        #: Slots now.
        self.slots = slots or self.default_slots
        #: Own requests in flight, and the answers that they asked for together.
        self.running = 0
        self.answering = 0
        #: Requests of others that the engine worked on at the last probe.
        self.elsewhere = 0
        #: Every name that callers may use -> the engine's id of the model. Empty before the first probe.
        self.names: dict[str, str] = {}
        #: True once the engine refused `stream_options`: it is not sent again.
        self.refuses_options = False

    # -- what it is ------------------------------------------------------------------------------------------------

    async def facts(self) -> Facts:
        """Ask the engine. Raises Unreachable."""
        listed = await self.get("/v1/models")
        return Facts([Model(entry["id"], kinds=["chat", "completions", "embeddings"]) for entry in listing(listed)])

    async def get(self, path: str, body: bytes = b"") -> Answer:
        """One reading: GET, or POST with a body. Raises Unreachable."""
        return await self.client.read(("POST" if body else "GET", path), self.readings | GENERATION, body)

    async def probe(self) -> EngineReport:
        """What the engine offers now; never raises for what the engine does. Costs the engine a few cheap reads."""
        error = ""
        facts = Facts([])
        try:
            facts = await self.facts()
        except Unreachable as unreachable:
            error = str(unreachable)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as odd:
            error = f"the engine describes itself in a way that is not understood: {odd!r}"
        models = clean_models(facts.models)
        if not error:
            self.names = {name: model.id for model in models for name in (*model.aliases, model.id)}
            self.slots = self._set_slots or facts.slots or self.default_slots
            self.elsewhere = self.elsewhere if facts.running is None else max(0, facts.running - self.answering)
        return EngineReport(
            id=self.id,
            kind=self.kind,
            version=clean(facts.version[:100]),
            url=self.client.url,
            healthy=not error,
            slots=self.slots,
            running=self.running,
            elsewhere=self.elsewhere,
            models=models,
            error=error[:500],
        )

    # -- its slots -------------------------------------------------------------------------------------------------

    def begin(self, answers: int = 1) -> bool:
        """Take a slot for a request of so many answers; False when all are taken."""
        if self.running >= self.slots:
            return False
        self.running += 1
        self.answering += answers
        return True

    def end(self, answers: int = 1) -> None:
        """Give it back, once the engine is known to be free of the request."""
        self.running -= 1
        self.answering -= answers

    async def until_free(self, answers: int = 1) -> None:
        """After the connection of a running request was closed: returns when its slot is known to be free.

        Most engines drop the work with the connection. Called before `end`.
        """

    # -- its models ------------------------------------------------------------------------------------------------

    async def load(self, model: str, tell: Tell) -> None:
        """Put a model that it has into memory, to stay. Raises Unable, Unreachable."""
        raise Unable(f"{self.kind} keeps the models that it was started with: it loads none when asked", never=True)

    async def unload(self, model: str, tell: Tell) -> None:
        """Take it out of memory. Raises Unable, Unreachable."""
        raise Unable(f"{self.kind} keeps the models that it was started with: it unloads none when asked", never=True)

    async def pull(self, model: str, tell: Tell) -> None:
        """Fetch a model from a registry. Raises Unable, Unreachable."""
        raise Unable(f"{self.kind} fetches no models when asked", never=True)

    # -- a request -------------------------------------------------------------------------------------------------

    def prepare(self, body: bytes, meta: Meta, *, may_fold: bool = True) -> Prepared:
        """The body for this engine: dangerous fields gone, the model's own name in, usage asked for. Raises payload.Refused.

        Fields that nobody here knows stay as the caller wrote them. Without `may_fold` what was not asked as a stream is none.
        """
        if payload.media_violation(body) is not None:
            raise payload.Refused("Media must be sent as data: URLs; addresses are not fetched.", "messages", "unsupported_media_url")
        fields = payload.parse(body)
        payload.scrub(fields, self.denied)
        answers = payload.answers(fields)
        model = self.names.get(meta.model) if self.names else meta.model
        if model is None:
            raise payload.Refused(f"The model '{meta.model}' is not served here.", "model", "model_not_found")
        fields["model"] = payload.encoded(model)
        self.adapt(fields)
        if meta.path == EMBEDDINGS:
            return Prepared(payload.render(without_stream(fields)), stream=False)
        fold = self.fold(fields, answers) if may_fold and not meta.stream and meta.path == CHAT else None
        if not meta.stream and fold is None:
            return Prepared(payload.render(without_stream(fields)), stream=False, answers=answers)
        fields["stream"] = _TRUE
        options = not self.refuses_options
        if options:
            payload.ask_usage(fields)
        else:
            fields.pop("stream_options", None)
        return Prepared(payload.render(fields), stream=True, fold=fold, answers=answers, options=options)

    def adapt(self, fields: dict[str, Raw]) -> None:
        """Put this engine's own words in, in place."""

    def fold(self, fields: dict[str, Raw], answers: int) -> Fold | None:
        """For a chat that is better streamed, though nobody asked for a stream: what folds it. May add to the fields what that takes."""
        return None

    # -- its answers -----------------------------------------------------------------------------------------------

    def busy(self, status: int, body: bytes) -> bool:
        """Whether an answer says that nothing was started and that a later try may succeed. In a stream the status is 0."""
        return status in self.busy_statuses

    def client_fault(self, status: int, body: bytes) -> bool:
        """Whether a 5xx blames the engine for what the caller sent."""
        return status >= 500 and self.caller_faults is not None and self.caller_faults.search(body) is not None

    def options_refused(self, status: int, body: bytes) -> bool:
        """Whether an answer refuses `stream_options`; remembers it."""
        refused = status in {400, 422} and _OPTIONS.search(body) is not None
        self.refuses_options |= refused
        return refused


def without_stream(fields: dict[str, Raw]) -> dict[str, Raw]:
    """The fields of a request whose answer comes in one piece: engines refuse stream options there."""
    for name in ("stream", "stream_options"):
        fields.pop(name, None)
    return fields


def listing(answer: Answer) -> list[dict[str, Any]]:
    """The entries of an OpenAI model list that have an id. Raises Unreachable when the answer is none."""
    if answer.status in {401, 403}:
        raise Unreachable("the engine wants a key: name its file with --engine-key-file")
    document = answer.json()
    if not isinstance(document, dict) or "data" not in document:
        raise Unreachable(f"the engine answers its model list with status {answer.status}")
    return [entry for entry in document["data"] or [] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def count(value: Any) -> int | None:
    """A number of an engine that may be absent, null or odd."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
