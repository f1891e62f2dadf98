"""What the frames of the tunnel say: plain values, in JSON on the wire.

Fields that are not known here are ignored, so a newer peer may say more. Numbers and secrets are bounded in their types: what
comes out of `wire.parse` can be computed with and stored as it is.
"""

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec.structs import force_setattr, replace

#: Versions of the tunnel that this code speaks, best first. From 2 on a server may send commands.
VERSIONS: Final = (2, 1)
#: The first version with commands.
COMMANDS: Final = 2

#: What a name may not hold, and no other text keeps: control characters, which databases refuse (NUL) and terminals obey, and halves of
#: surrogate pairs.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
#: The same for the types of fields.
PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]*\Z"

Name = Annotated[str, msgspec.Meta(pattern=PRINTABLE)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(max_length=256)]
Tag = Annotated[bytes, msgspec.Meta(max_length=4096)]
Outcome = Literal["done", "busy", "cancelled", "failed"]
Source = Literal["engine", "counted", "estimated"]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First word of an agent. `last_epoch` is the newest epoch it has on disk: a server that knows less was rolled back."""

    agent_id: Name
    nonce: Nonce
    versions: list[int] = msgspec.field(default_factory=lambda: list(VERSIONS))
    software: Name = ""
    last_epoch: Count = 0


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """The server's identity key signs transcript_challenge; the agent checks it before it says anything more."""

    nonce: Nonce
    epoch: Count
    version: int = 1
    signature: Signature


class Model(msgspec.Struct, frozen=True):
    """A model that an engine offers. `kinds` are endpoints: chat, completions, embeddings; None context is unknown."""

    id: Name
    context: Count | None = None
    kinds: list[Name] = []
    loaded: bool = True
    aliases: list[Name] = []
    created: Count = 0


class Gpu(msgspec.Struct, frozen=True):
    """A GPU: bytes of memory, utilisation from 0 to 1, degrees Celsius."""

    name: Name
    memory_total: Count = 0
    memory_used: Count = 0
    utilisation: float = 0.0
    temperature: float = 0.0


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """One engine behind an agent. `running` counts the agent's own requests in flight, `elsewhere` those of others."""

    id: Name
    kind: Name
    version: Name = ""
    url: Name = ""
    healthy: bool
    slots: Count
    running: Count = 0
    elsewhere: Count = 0
    models: list[Model] = []
    error: str = ""

    def __post_init__(self) -> None:
        _clean_fields(self, "error")


class Report(msgspec.Struct, frozen=True):
    """What an agent has to offer. A report replaces the one before; `serial` grows with each.

    `paused_until`: Unix seconds until which its owner wants the box for other things, 0 when not. `teams`: names of those it works for,
    none of them: for all.
    """

    serial: Count = 0
    engines: list[EngineReport] = []
    draining: bool = False
    gpus: list[Gpu] = []
    hostname: Name = ""
    paused_until: Count = 0
    teams: list[Name] = []


class Proof(msgspec.Struct, frozen=True):
    """The agent's key signs transcript_proof."""

    signature: Signature
    report: Report


class Signed(msgspec.Struct, frozen=True):
    """A Proof without its report: who says something that cannot be should first be known."""

    signature: Signature


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The link is up. The server pings every `ping_interval` seconds."""

    ping_interval: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    name: str = ""
    state: str = ""
    server_version: str = ""


class Goodbye(msgspec.Struct, frozen=True):
    """The sender closes the link. Codes: revoked, replaced, draining, locked, refused, protocol, version.

    `retry_after` is in seconds; None leaves the moment of the next try to the listener.
    """

    code: str
    message: str = ""
    retry_after: Seconds | None = None


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What travels with a request.

    Patience in seconds: `timeout` for the whole answer, `connect` to the engine, `first_token`, `idle` between bytes.
    `engine` "" leaves the choice to the agent; `length` is the size of the body; `tag` is opaque and comes back in Close. `team` is the
    name of the caller's team, told only to boxes that are kept for some.
    """

    request_id: str
    path: str
    model: str
    length: Count
    engine: str = ""
    stream: bool = False
    include_usage: bool = False
    timeout: Seconds = 3600.0
    first_token: Seconds = 300.0
    idle: Seconds = 120.0
    connect: Seconds = 10.0
    traceparent: str = ""
    tag: Tag = b""
    team: str = ""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer and where the numbers come from."""

    prompt: Count = 0
    completion: Count = 0
    cached: Count = 0
    source: Source = "engine"


class Close(msgspec.Struct, frozen=True, gc=False):
    """How a stream ended; always its last frame.

    done; busy: nothing was started, the request may be placed again; cancelled: sent only when the engine's slot is known to be
    free; failed: `code` is engine_unreachable, engine_error, engine_timeout, engine_protocol, refused or draining.
    """

    outcome: Outcome
    code: Name = ""
    message: str = ""
    usage: Usage | None = None
    events: Count = 0
    bytes: Count = 0
    finish: str = ""
    tag: Tag = b""
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0

    def __post_init__(self) -> None:
        if not (self.message.isprintable() and self.finish.isprintable()):
            _clean_fields(self, "message", "finish")


#: What a server may ask of a box besides requests. A fixed list: nothing that a server says is ever run.
VERBS: Final = ("drain", "undrain", "restart", "logs", "load", "unload", "pull")
#: Most lines and characters of a line that an answer holds, and its bytes in all: it must fit in a frame.
MAX_LINES: Final = 1000
MAX_LINE: Final = 500
MAX_TALK: Final = 60_000


class Command(msgspec.Struct, frozen=True):
    """The server wants something done; answered by Progress with the same `id`, the last of which is `done`.

    `verb` is one of VERBS; `argument` is a model for load, unload and pull, for logs a number of lines, or +N for those after line N; else
    empty.
    """

    id: Count
    verb: Annotated[str, msgspec.Meta(pattern=PRINTABLE, max_length=32)]
    argument: Annotated[str, msgspec.Meta(pattern=PRINTABLE, max_length=512)] = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a command is. `error`: a code, when it failed; `note`: for people; `part`: from 0 to 1, None where nobody knows; `line`: the
    number of the last of `lines`, 0 when nobody counts them.
    """

    id: Count
    done: bool = False
    error: Annotated[str, msgspec.Meta(pattern=PRINTABLE, max_length=64)] = ""
    note: str = ""
    part: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    lines: Annotated[list[str], msgspec.Meta(max_length=MAX_LINES)] = []
    line: Count = 0

    def __post_init__(self) -> None:
        _clean_fields(self, "note")
        if not all(line.isprintable() for line in self.lines):
            force_setattr(self, "lines", [clean(line) for line in self.lines])


class Head(msgspec.Struct, frozen=True, gc=False):
    """The engine's answer begins: its status, the content type (printable ASCII) and the first bytes of the body."""

    status: int
    content_type: str
    body: bytes


def clean(text: str) -> str:
    """The text with a space for each control character."""
    return text if text.isprintable() else _CONTROL.sub(" ", text)


def _clean_fields(value: Close | EngineReport | Progress, *names: str) -> None:
    """For texts that are nobody's name: while a value is made, from a wire too."""
    for name in names:
        text = getattr(value, name)
        if not text.isprintable():
            force_setattr(value, name, clean(text))


def brief(progress: Progress) -> Progress:
    """The Progress with its texts cut so that it fits in a frame; of many lines the last ones stay."""
    lines = [line[:MAX_LINE] for line in progress.lines[-MAX_LINES:]]
    while len(msgspec.json.encode(lines)) > MAX_TALK:
        del lines[: 1 + len(lines) // 8]
    return replace(progress, note=progress.note[:MAX_LINE], error=progress.error[:64], lines=lines)


def clean_models(models: list[Model]) -> list[Model]:
    """Without those whose id holds control characters: changed, it would name nothing. Nor is such an alias one."""
    return [
        replace(model, aliases=[name for name in model.aliases if clean(name) == name], kinds=[clean(kind) for kind in model.kinds])
        for model in models
        if clean(model.id) == model.id
    ]


def clean_report(report: Report) -> Report:
    """The report as the other end takes it, whatever an engine or a driver said; the same object when there is nothing to change."""
    engines = [
        replace(
            engine,
            kind=clean(engine.kind),
            version=clean(engine.version),
            url=clean(engine.url),
            models=clean_models(engine.models),
        )
        for engine in report.engines
    ]
    gpus = [replace(gpu, name=clean(gpu.name)) for gpu in report.gpus]
    cleaned = replace(report, engines=engines, gpus=gpus, hostname=clean(report.hostname))
    return report if cleaned == report else cleaned
