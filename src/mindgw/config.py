"""Settings: text -> parse -> ${ENV} -> defaults -> checks -> frozen `Config`. The only room of the server that reads the environment.

Every error names the key, its value, the file and the line; how a file is written stands in `settings_file`.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import platformdirs

from mindgw import providers, settings_file
from mindgw.errors import ConfigError
from mindgw.providers import Provider
from mindgw.quantities import OFF, Certificate, Days, Duration, NetworkList, PriceTable, Shares, Size, is_loopback, split_address
from mindgw.settings_file import Place, Value
from mindgw_agent import payload, wire

FILE = "config.yaml"

#: Where a setting stands that was given by a flag; errors about it begin so.
_TYPED = "command line"
_NO_FLAGS: Mapping[str, str] = MappingProxyType({})


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long is waited for what."""

    #: For the agent's connection to its engine.
    connect: Duration = 10
    #: For the first token, once the engine has the request.
    first_token: Duration = 300
    #: Between two events of an answer.
    idle: Duration = 120
    #: For a whole request.
    total: Duration = 3600
    #: In the queue.
    queue: Duration = 300
    #: For a worker to come back before requests for its models are refused.
    worker_return: Duration = 20
    #: For running requests when the server stops.
    drain: Duration = 300
    #: Between two comments that keep a silent stream open.
    keepalive: Duration = 15
    #: For the first byte of an answer, before a stream begins without it; errors have an HTTP status until then.
    hold: Duration = 5
    #: Between two comments that tell a stream in the queue where it stands.
    news: Duration = 5


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is refused."""

    #: Largest request; agents take no more than 64MiB.
    body: Size = 32 * 2**20
    #: Requests that may wait.
    queue: int = 10_000
    #: Requests of one organisation that may wait.
    queue_org: int = 10_000
    #: Requests of one key that may wait.
    queue_key: int = 1_000
    #: Requests of one end user behind a trusted proxy that may wait.
    queue_end_user: int = 100
    #: Requests for one model that may wait.
    queue_model: int = 10_000
    #: Bytes of the requests that may wait.
    queue_bytes: Size = 2**30
    #: Largest answer that is not a stream; agents read no more than 64MiB.
    answer: Size = 64 * 2**20
    #: Answers that one request may ask for; agents take no more than 8.
    n: int = 8
    #: Bytes of the requests that are still being sent; beyond that the one that has been coming for longest is refused.
    bodies: Size = 2**30
    #: Connections that may be open at once.
    connections: int = 10_000
    #: Connections of one address, or of one IPv6 network of 64 bits; this machine's own, such as a proxy's, are any number.
    connections_address: int = 1_000
    #: Requests a minute without a good key from one address, counted as above; beyond that it is not asked whether a key is good.
    failures_address: int = 60


class Aging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units (a token of a prompt is one, a token of an answer two) that may pass a waiting class before it has the next turn."""

    #: Units that may pass a request of this class.
    high: int = 20_000
    #: Units that may pass a request of this class.
    normal: int = 20_000
    #: Units that may pass a request of this class.
    batch: int = 100_000
    #: Units that may pass a request of this class, the first that is refused when the queue is full.
    sheddable: int = 400_000

    def by_rank(self) -> tuple[float, ...]:
        """From the highest class down; what an operator put before all others never waits for anybody."""
        return (math.inf, self.high, self.normal, self.batch, self.sheddable)


class Queueing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How those who wait are served."""

    #: "team:NAME" or "user:ADDRESS" -> its share against its siblings; 1 for who is not named.
    weights: Shares = {}
    aging: Aging = Aging()


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which worker a request goes to, where several could have it, and what becomes of requests whose worker fails, and of such workers."""

    #: score: the one that it probably has its answer from first; least-busy, round-robin, weighted: at random by slots; or sticky: the one
    #: that its conversation, or its key, was on last.
    strategy: str = "score"
    #: Workers that a request is tried on before its caller hears of an error; one that has no room does not count.
    tries: int = 3
    #: Of a hundred requests, how many may be tried again because an engine failed.
    retries: int = 20
    #: Such tries that there always are, a minute, however few the requests.
    retries_least: int = 3
    #: Failures of a model in a row after which its worker is left alone, while others have the model; of half a pool at most.
    eject_after: int = 3
    #: For how long at first; then one request is a probe, and each that fails doubles the time, up to a minute.
    eject_for: Duration = 5
    #: Whether a stream that goes by no route is tried on a second worker when it is late to begin; a route says so for itself.
    hedge: bool = False


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are held to limits; the limits themselves are set with `mindgw quotas set`."""

    #: Tokens that an answer may have under a hard limit, when its caller set no cap.
    output: int = 4096


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What API keys must keep to; unset: nothing."""

    #: For how long a key is good at most, from its making on; unset: for good.
    max_age: Duration = 0
    #: After how long a key is refused until it is rotated; unset: never.
    rotate_every: Duration = 0
    #: After how long without use a key is refused until it is rotated; unset: never.
    unused: Duration = 0


class DeadLetters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of requests that failed for good."""

    #: Whether their bodies are kept, too, encrypted: only with its body a request can be run again. Those that run then stay in memory.
    keep_body: bool = False
    #: Largest body that is kept.
    max_body: Size = 2**20
    #: For how long a letter is kept.
    keep: Duration = 30 * 86400
    #: Letters that are kept; beyond that the oldest go first.
    most: int = 10_000


class Requests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of what became of requests (`mindgw why`), never what they said."""

    #: For how many days; 0: nothing is.
    keep_days: Days = 7
    #: Requests that are remembered; beyond that the oldest go: first those of organisations, and of keys, that have most of them.
    most: int = 200_000


class Sessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long people stay signed in."""

    #: Since they signed in.
    keep: Duration = 30 * 86400
    #: For a token that is made from a session (`mindgw auth print-token`); an hour at most.
    token: Duration = 900
    #: Until whoever came by an identity provider is asked about there anew; five minutes at least.
    recheck: Duration = 3600
    #: Until whoever came by an identity provider, and has keys, lapses when it does not vouch for them, be it that it cannot be asked; a
    #: day at least.
    unvouched: Duration = 30 * 86400


class Idempotency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of requests with an Idempotency-Key."""

    #: Whether their answers are kept, too, encrypted; without that they can be given again for two minutes only, and not after a restart.
    keep_body: bool = False
    #: Largest answer that is kept, or given again.
    max_body: Size = 2**20
    #: What all answers that are kept may take together; beyond that those of the oldest requests go first, by keys as with `most`.
    max_total: Size = 2**30
    #: For how long such a request is remembered.
    keep: Duration = 86400
    #: Requests that are remembered; beyond that the oldest go first, those of API keys with more than a tenth of them before all others.
    most: int = 100_000


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of who did what."""

    #: For how long an entry stays in the database, at least; after that its day goes to a file in the folder `audit` of the data directory.
    keep: Duration = 400 * 86400


class Cors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Origins whose pages may call /v1, such as "https://chat.example.com, http://localhost:3000"; "*": all; empty: none.
    origins: str = ""


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: HOST:PORT of a listener for /metrics alone, which asks for no key; empty: /metrics stands beside the API and asks for one.
    listen: str = ""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: auto, json or text; auto is text on a terminal.
    format: str = "auto"
    #: debug, info, warning or error.
    level: str = "info"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a server. `parse` and `load` make checked ones."""

    #: Directory of everything that the server keeps; where this file lies, unless it says otherwise.
    data_dir: str
    #: HOST:PORT of the plain listener, a literal loopback address.
    listen: str = "127.0.0.1:8420"
    #: https://host:port that others reach the server by; empty: nobody else does.
    public_url: str = ""
    #: HOST:PORT of the TLS listener; once checked it is set whenever public_url is, unless a proxy does TLS.
    tls_listen: str = ""
    #: Who does TLS for public_url: empty: the server, with the certificate that `mindgw init` made; CERT:KEY: the server, with the
    #: certificate and the key in these files; off: a proxy in front, so that tls_listen, if there is one, is plain HTTP for it.
    tls: Certificate = ""
    #: Proxies that are believed about who asks (X-Forwarded-For): addresses and networks such as "127.0.0.1, 10.0.0.0/8"; empty: none.
    trusted_proxies: NetworkList = ()
    #: "sqlite": a file in the data directory; or an address such as postgresql://user:password@host/name.
    database: str = "sqlite"
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    queue: Queueing = Queueing()
    routing: Routing = Routing()
    quotas: Quotas = Quotas()
    keys: Keys = Keys()
    #: Dollars for a million tokens of prompt and of answer, by model or pattern: "llama3=0.15/0.60, *=0.1/0.1"; empty: nothing costs.
    prices: PriceTable = {}
    dead_letters: DeadLetters = DeadLetters()
    idempotency: Idempotency = Idempotency()
    requests: Requests = Requests()
    sessions: Sessions = Sessions()
    #: Who may sign in by whom: name -> identity provider; see docs/how-to/entra-id.md and oidc.md.
    providers: dict[str, Provider] = {}
    audit: Audit = Audit()
    cors: Cors = Cors()
    #: Whether the server serves /v1/chat/completions, /v1/completions and /v1/embeddings beneath ASGI; through it they cost twice as much.
    fast_lane: bool = True
    metrics: Metrics = Metrics()
    log: Log = Log()

    @property
    def directory(self) -> Path:
        return Path(self.data_dir)

    @property
    def database_url(self) -> str:
        """The address that `store.Database` takes."""
        return f"sqlite:///{self.directory.absolute() / 'mindgw.db'}" if self.database == "sqlite" else self.database

    @property
    def loopback_url(self) -> str:
        """Root URL for clients on this machine."""
        return f"http://{self.listen}"

    @property
    def root_url(self) -> str:
        """Root URL for everybody."""
        return self.public_url or self.loopback_url


def data_directory(given: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The data directory: as given, else MINDGW_DATA_DIR, else below the user's data home."""
    chosen = given or environ.get("MINDGW_DATA_DIR", "")
    return Path(chosen) if chosen else platformdirs.user_data_path("mindgw", appauthor=False)


def notify_address(environ: Mapping[str, str] = os.environ) -> str:
    """Socket on which systemd wants to hear that the server is ready; empty: nobody asked."""
    return environ.get("NOTIFY_SOCKET", "")


def environment() -> Mapping[str, str]:
    """What values of an operator's file may take in."""
    return os.environ


def load(
    file: Path | None = None,
    data_dir: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    flags: Mapping[str, str] = _NO_FLAGS,
) -> Config:
    """The settings of a data directory, or of a `file` elsewhere, which may then name the data directory; without a file in the
    data directory they are the defaults. `overrides` maps dotted keys to values from the command line, None meaning not given,
    `flags` to how they are called there. Raises ConfigError."""
    directory = data_directory(data_dir, environ)
    named = bool(data_dir or environ.get("MINDGW_DATA_DIR"))
    found = read(file or directory / FILE, missing_ok=file is None)
    config = parse(found, str(directory), environ, file=str(file or directory / FILE), overrides=overrides, flags=flags)
    if not named and file is not None:
        return config
    return msgspec.structs.replace(config, data_dir=str(directory))


def read(file: Path, *, missing_ok: bool = False) -> str:
    """The text of a settings file. Raises ConfigError."""
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        if missing_ok:
            return ""
        hint = "say with --config where it is, or leave that out: `mindgw init` made one in the data directory"
        raise ConfigError(f"there is no settings file {file}", hint=hint) from None
    except OSError as error:
        hint = "who runs this must own it; another data directory: --data-dir"
        raise ConfigError(f"cannot read the settings file {file}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise Place(str(file)).wrong(f"is not UTF-8 text (byte {error.start})") from None


def parse(
    text: str,
    data_dir: str,
    environ: Mapping[str, str] = os.environ,
    *,
    file: str = FILE,
    overrides: Mapping[str, object] | None = None,
    flags: Mapping[str, str] = _NO_FLAGS,
) -> Config:
    """The settings that a text says, with `overrides` on top; reads no file. Raises ConfigError, whatever the text is."""
    values = settings_file.read(text, Config, environ, file)
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key] = settings_file.read_one(key, str(value), Config, Place(_TYPED, flag=flags.get(key, "")))
    values.setdefault("data_dir", Value(data_dir, data_dir, Place(file)))
    return _check(values)


def dump(config: Config) -> str:
    """The text of a settings file that says what differs from the defaults; the data directory is where the file lies."""
    derived = (config.tls != OFF and _default_tls(config.public_url) == config.tls_listen) or not config.tls_listen
    said = {key: value for key, value in _flat(config).items() if key != "data_dir" and not (derived and key == "tls_listen")}
    return _HEADER + settings_file.write(said)


_HEADER = """\
# Settings of this server. Whatever is missing here has its default; `mindgw serve` reads them when it starts.
# Values may come from the environment: ${NAME}, or ${NAME:-default}.
"""


def _flat(tree: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of what differs from the defaults, and of what everybody looks for first."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(tree):
        value = getattr(tree, field.name)
        if isinstance(value, msgspec.Struct):
            found.update(_flat(value, f"{prefix}{field.name}."))
        elif settings_file.family(field.type) is not None:
            for name, each in value.items():
                found.update(_flat(each, f"{prefix}{field.name}.{name}."))
        elif value != _default(field) or prefix + field.name in {"listen", "database"}:
            found[prefix + field.name] = value
    return found


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _check(values: Mapping[str, Value]) -> Config:
    """Builds the settings; raises ConfigError about the first value that makes no sense, alone or beside the others."""
    for key, check in _CHECKS.items():
        found = values.get(key)
        if found is not None and (problem := check(found.value)):
            raise found.place.wrong(f"{problem}, not {masked(found.text)!r}", key)
    config = _build(Config, {key: found.value for key, found in values.items()}, "")
    _check_providers(config, values)
    public_url = config.public_url.rstrip("/")
    own = "" if config.tls == OFF else _default_tls(public_url)
    config = msgspec.structs.replace(config, public_url=public_url, tls_listen=config.tls_listen or own)
    involved = {key: values[key] for key in ("tls", "tls_listen", "public_url", "listen", "trusted_proxies") if key in values}
    if involved and (problem := _clash(config)):
        # what was typed just now is to blame, the file was good without it
        key = next((key for key, value in involved.items() if value.place.file == _TYPED), next(iter(involved)))
        raise involved[key].place.wrong(problem, key)
    return config


def _check_providers(config: Config, values: Mapping[str, Value]) -> None:
    """Each alone; an error about what is missing stands where the section begins."""
    for name, said in config.providers.items():
        if (wrong := providers.problem(said)) is None:
            continue
        key = f"providers.{name}.{wrong[0]}"
        found = values.get(key)
        if found is not None:
            raise found.place.wrong(f"{wrong[1]}, not {masked(found.text)!r}", key)
        first = next(value for known, value in values.items() if known.startswith(f"providers.{name}."))
        raise first.place.wrong(wrong[1], key)
    if clash := providers.clash(config.providers):
        key = f"providers.{clash[0]}"
        place = next(value.place for known, value in values.items() if known.startswith(f"{key}."))
        raise place.wrong(clash[1], key)


def _default_tls(public_url: str) -> str:
    return f"0.0.0.0:{urlsplit(public_url).port or 443}" if public_url else ""


S = TypeVar("S", bound=msgspec.Struct)


def _build(kind: type[S], values: Mapping[str, Any], prefix: str) -> S:
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        each = settings_file.family(field.type)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            given[field.name] = _build(field.type, values, f"{prefix}{field.name}.")
        elif each is not None:
            start = f"{prefix}{field.name}."
            names = dict.fromkeys(key[len(start) :].partition(".")[0] for key in values if key.startswith(start))
            given[field.name] = {name: _build(each, values, f"{start}{name}.") for name in names}
        elif prefix + field.name in values:
            given[field.name] = values[prefix + field.name]
    return kind(**given)


def _clash(config: Config) -> str:
    if (config.tls_listen or config.tls) and not config.public_url:
        what = "TLS" if config.tls else "the TLS listener"
        return f"{what} needs --public-url (public_url in the file), the https:// address that others reach the server by"
    if not config.tls_listen:
        return ""
    host, port = split_address(config.tls_listen)
    if config.tls == OFF and not is_loopback(host) and not config.trusted_proxies:
        return "plain HTTP on an address that others reach is for proxies alone: name them in trusted_proxies (or --trusted-proxies)"
    plain_host, plain_port = split_address(config.listen)
    if port == plain_port and host in {plain_host, "0.0.0.0", "::"}:  # noqa: S104 - nothing is bound here
        return f"the plain and the TLS listener would both take port {port}: give one of them another"
    return ""


def _address(text: str) -> str:
    try:
        split_address(text or "unset:1")
    except ValueError as error:
        return str(error)
    return ""


def _loopback(text: str) -> str:
    try:
        good = is_loopback(split_address(text)[0])
    except ValueError:
        good = False
    return "" if good else "must be a loopback address such as 127.0.0.1:8420 (others are served with TLS: see public_url)"


def _public_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _port = split_address(parts.netloc if parts.port else f"{parts.netloc}:443")
    except ValueError:
        return "must be https://host:port"
    good = parts.scheme == "https" and host and parts.path in ("", "/") and "?" not in text and "#" not in text
    return "" if good or not text else "must be https://host:port"


def _database(text: str) -> str:
    known = text == "sqlite" or re.match(r"(sqlite|postgres(ql)?)(\+[a-z0-9]+)?:///?.", text)
    return "" if known else "must be sqlite or an address such as postgresql://user:password@host/name"


_ORIGIN = re.compile(r" *https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})? *")
_ORIGINS = 'must be origins such as "https://chat.example.com, http://localhost:3000", or "*"'


def _at_most(most: int, shown: str) -> Callable[[int], str]:
    """For limits that agents keep, too: a larger one would only move the refusal there."""
    return lambda value: "" if value <= most else f"must be at most {shown}, as agents take no more"


def _one_of(*choices: str) -> Callable[[str], str]:
    return lambda text: "" if text in choices else f"must be one of {', '.join(choices)}"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "data_dir": lambda text: "" if text and "\0" not in text else "must be a path",
    "listen": _loopback,
    "public_url": lambda text: _public_url(text) if text else "",
    "tls_listen": _address,
    "database": _database,
    "limits.body": _at_most(wire.MAX_BODY, f"{wire.MAX_BODY // 2**20}MiB"),
    "limits.bodies": lambda size: "" if size >= wire.MAX_BODY else f"must be at least {wire.MAX_BODY // 2**20}MiB, the largest request",
    "limits.answer": _at_most(wire.MAX_ANSWER, f"{wire.MAX_ANSWER // 2**20}MiB"),
    "limits.n": _at_most(payload.MAX_N, str(payload.MAX_N)),
    "cors.origins": lambda text: "" if not text or text == "*" or all(map(_ORIGIN.fullmatch, text.split(","))) else _ORIGINS,
    "sessions.token": lambda seconds: "" if seconds <= 3600 else "must be at most 1h",
    "sessions.recheck": lambda seconds: "" if seconds >= 300 else "must be at least 5m: who is due is looked for once a minute",
    "sessions.unvouched": lambda seconds: "" if seconds >= 86400 else "must be at least 1d",
    "metrics.listen": _address,
    "routing.strategy": _one_of("score", "least-busy", "round-robin", "weighted", "sticky"),
    "log.format": _one_of("auto", "json", "text"),
    "log.level": _one_of("debug", "info", "warning", "error"),
}


def masked(text: str) -> str:
    """The value without the password that an address may hold."""
    return re.sub(r"(//[^/@\s:]*:)[^@\s]*@", r"\1***@", text)
