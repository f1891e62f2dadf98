"""A request body, read as far as the gateway must and no further: unknown fields are nobody's business.

What is wrong comes back as `Invalid`, in the words that the caller gets to read. The body itself is never rewritten here.
"""

import re
from collections.abc import Callable, Sized

import msgspec
from msgspec import Raw, Struct

CHAT, COMPLETIONS, EMBEDDINGS = "chat", "completions", "embeddings"

#: Field that each endpoint cannot do without, and the JSON types it may have (by the first byte of the value).
_REQUIRED = {CHAT: ("messages", b"["), COMPLETIONS: ("prompt", b'"['), EMBEDDINGS: ("input", b'"[')}

#: Deepest nesting of objects and arrays in a body.
DEPTH = 64
MESSAGES = 4096
TOOLS = 128
#: Most values in a body (https://platform.openai.com/docs/api-reference/embeddings: 300,000 tokens, which may come as numbers).
VALUES = {CHAT: 100_000, COMPLETIONS: 300_000, EMBEDDINGS: 300_000}
#: What some clients send as the cap of an answer when they mean none.
UNCAPPED = -1

_ABSENT = Raw()
#: Bytes of a body that may be decoded whatever stands in it.
_LARGE = 128 * 1024
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: One half of a surrogate pair without the other, after an even number of backslashes.
_HALF = re.compile(
    rb"(?<!\\)(?:\\\\)*\\u(?:d[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})|(?<!\\ud[89ab][0-9a-f]{2}\\u)d[c-f][0-9a-f]{2})", re.IGNORECASE
)


class StreamOptions(Struct, frozen=True, gc=False):
    """OpenAI's `stream_options`, as far as it is read."""

    include_usage: bool | None = None


class Body(Struct, frozen=True, gc=False):
    """The fields that the gateway reads; types are checked, everything else in the body passes unread."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    messages: Raw = _ABSENT
    prompt: Raw = _ABSENT
    input: Raw = _ABSENT
    tools: Raw = _ABSENT
    user: Raw = _ABSENT
    safety_identifier: Raw = _ABSENT
    service_tier: Raw = _ABSENT
    prompt_cache_key: Raw = _ABSENT
    cache_salt: Raw = _ABSENT


class _Words(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A message that is nothing but text."""

    role: str
    content: str
    # null is read elsewhere: it is there, and yet says nothing
    name: str = None  # type: ignore[assignment]


class _Options(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """`stream_options` with nothing in it but what is read."""

    include_usage: bool | None = None


class _Plain(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A chat of such messages, as most are. A body that fits has nothing in it that would have to be looked at more closely: there is no
    place for media, nor for depth."""

    messages: list[_Words]
    model: str | None = None
    stream: bool | None = None
    stream_options: _Options | None = None
    n: int | None = None
    # as above
    max_tokens: int = None  # type: ignore[assignment]
    max_completion_tokens: int = None  # type: ignore[assignment]
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: str = ""
    safety_identifier: str = ""
    service_tier: str = ""
    prompt_cache_key: str = ""


class Text(Struct, frozen=True, gc=False):
    """A chat of nothing but text, as far as limits must know it."""

    #: Bytes of its messages.
    bytes: int
    messages: int
    #: Answers that it asks for, and caps that it names.
    answers: int
    caps: int


class Peek(Struct, frozen=True, gc=False):
    """What a valid request asks for."""

    model: str
    stream: bool
    include_usage: bool
    #: Cap on the answer that the caller set; None when there is none.
    max_tokens: int | None = None
    #: The end user and the service tier that the body names, "" for none.
    end_user: str = ""
    tier: str = ""
    #: None: there may be more in it than text.
    text: Text | None = None
    #: The conversation that it says it belongs to (`prompt_cache_key`), "" for none.
    session: str = ""
    #: Who else may share what engines remember of its text (`cache_salt`, https://docs.vllm.ai/en/stable/design/prefix_caching.html).
    salt: str = ""


class Invalid(Struct, frozen=True):
    """Why a request is refused, and the field at fault ("" when it is the whole body)."""

    message: str
    param: str = ""


_TOO_DEEP = Invalid(f"The request body is nested deeper than {DEPTH} levels.")
_DECODER = msgspec.json.Decoder(Body)
_decode_plain = msgspec.json.Decoder(_Plain).decode
_LIST = msgspec.json.Decoder(list[Raw])


def peek(body: bytes, endpoint: str, *, most_n: int) -> Peek | Invalid:
    """Reads `body`; `endpoint` is chat, completions or embeddings, `most_n` the most answers that one request may ask for."""
    # first of all: an object is made of each value that is decoded
    if len(body) > _LARGE and (wrong := _too_much(body, VALUES[endpoint])):
        return wrong
    if endpoint == CHAT:
        try:
            plain = _decode_plain(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # it is unusual, or wrong
        else:
            return _bounds(plain, endpoint, most_n) or _counted(plain.messages) or _told(plain)
    try:
        if not body.isascii():
            body.decode()  # what is skipped below is not checked for it
        seen = _DECODER.decode(body)
        return _bounds(seen, endpoint, most_n) or _shape(seen, body, endpoint) or _asked(seen)
    except msgspec.ValidationError as wrong:
        return _mistyped(str(wrong))
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        return Invalid(f"The request body is not valid JSON: {_reason(body, wrong)}")
    except RecursionError:
        return _TOO_DEEP


def _asked(seen: Body) -> Peek:
    wants = seen.stream_options is not None and bool(seen.stream_options.include_usage)
    cap = seen.max_completion_tokens if seen.max_completion_tokens is not None else seen.max_tokens
    end_user = _text(seen.safety_identifier) or _text(seen.user)
    cap, tier = None if cap == UNCAPPED else cap, _text(seen.service_tier)
    session, salt = _text(seen.prompt_cache_key), _text(seen.cache_salt)
    return Peek(seen.model or "", bool(seen.stream), wants, cap, end_user, tier, None, session, salt)


def _told(plain: _Plain) -> Peek:
    """As `_asked`, with what its text comes to."""
    size, options = 0, plain.stream_options
    for message in plain.messages:
        content, role = message.content, message.role
        size += len(content) if content.isascii() else len(content.encode())
        size += len(role) if role.isascii() else len(role.encode())
        if message.name is not None:
            size += len("name") + len(message.name.encode())
    cap, most = plain.max_tokens, plain.max_completion_tokens
    text = Text(size, len(plain.messages), plain.n or 1, (cap is not None) + (most is not None))
    cap = cap if most is None else most  # type: ignore[redundant-expr]
    wants = options is not None and bool(options.include_usage)
    end_user = plain.safety_identifier or plain.user
    asked = None if cap == UNCAPPED else cap
    return Peek(plain.model or "", bool(plain.stream), wants, asked, end_user, plain.service_tier, text, plain.prompt_cache_key)


def _text(value: Raw) -> str:
    """A field that is nobody's business unless it is a text."""
    if value is _ABSENT:
        return ""
    return msgspec.json.decode(value, type=str) if bytes(value)[:1] == b'"' else ""


def _reason(body: bytes, wrong: Exception) -> str:
    """Why a body cannot be read; the decoder has no good words for the two most frequent reasons."""
    if not body:
        return "it is empty."
    if _HALF.search(body):
        return "a string ends in, or holds, one half of a surrogate pair (\\ud800 to \\udfff); text was cut inside a character."
    return str(wrong)


def _mistyped(text: str) -> Invalid:
    """msgspec says `Expected `bool`, got `str` - at `$.stream``: the path's first name is the field."""
    reason, _, path = text.partition(" - at `")
    path = path.removesuffix("`").removeprefix("$.")
    if not path:
        return Invalid(f"The request body {plain(reason).replace('an object', 'a JSON object')}.")
    return Invalid(f"'{path}' {plain(reason)}.", path.split(".")[0].split("[")[0])


#: msgspec's names of types, in words.
_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bytes": "a text",
    "datetime": "a time",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
#: What msgspec says -> the same for people who have never heard of its types.
_PLAIN: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"Expected `([\w| ]+)`, got `(\w+)`"), lambda said: f"must be {_wanted(said[1])}, not {_got(said[2])}"),
    (re.compile(r"Expected `(\w+)` of length (>=|<=) (\d+)"), lambda said: f"must have {_count(said[2], said[3], said[1])}"),
    (re.compile(r"Expected `\w+` matching regex .*", re.DOTALL), lambda _: "has characters that are not allowed"),
    (re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+)"), lambda said: f"must be {_BOUNDS[said[1]]} {said[2]}"),
    (re.compile(r"Invalid enum value (.*)", re.DOTALL), lambda said: f"must not be {said[1]}"),
    (re.compile(r"Object missing required field `(.*)`", re.DOTALL), lambda said: f"'{said[1]}' is missing"),
    (re.compile(r"Object contains unknown field `(.*)`", re.DOTALL), lambda said: f"there is no field '{said[1]}'"),
)


def plain(reason: str) -> str:
    """What msgspec says is wrong with a value (without the place), in words that stand behind the value's name; anything else as it is."""
    for pattern, words in _PLAIN:
        if said := pattern.fullmatch(reason):
            return words(said)
    return reason


def _wanted(types: str) -> str:
    # that null will do as well helps nobody who has sent something else
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_TYPES.get(name, name) for name in names)


def _got(name: str) -> str:
    return "a number with a fraction" if name == "float" else _TYPES.get(name, name)


def _count(bound: str, number: str, kind: str) -> str:
    one, more = ("character", "characters") if kind == "str" else ("entry", "entries")
    return f"{_BOUNDS[bound]} {number} {one if number == '1' else more}"


def _bounds(seen: Body | _Plain, endpoint: str, most_n: int) -> Invalid | None:
    if not seen.model:
        return Invalid("you must provide a model parameter", "model")
    if len(seen.model) > 512:
        return Invalid("'model' is longer than 512 characters.", "model")
    if seen.n is not None and not 1 <= seen.n <= most_n:
        return Invalid(f"'n' must be between 1 and {most_n}.", "n")
    if seen.max_tokens is not None and seen.max_tokens < UNCAPPED:
        return Invalid("'max_tokens' must not be negative.", "max_tokens")
    if seen.max_completion_tokens is not None and seen.max_completion_tokens < UNCAPPED:
        return Invalid("'max_completion_tokens' must not be negative.", "max_completion_tokens")
    if endpoint == EMBEDDINGS and seen.stream:
        return Invalid("Embeddings are not streamed.", "stream")
    return None


def _shape(seen: Body, body: bytes, endpoint: str) -> Invalid | None:
    field, starts = _REQUIRED[endpoint]
    value = getattr(seen, field)
    if (first := _first(value)) in (b"", b"n"):
        return Invalid(f"Missing required parameter: '{field}'.", field)
    if first not in starts:
        return Invalid(f"'{field}' must be {'a list' if starts == b'[' else 'a text or a list'}.", field)
    if endpoint == CHAT and (wrong := _messages(value)):
        return wrong
    if _first(seen.tools) == b"[" and len(_LIST.decode(seen.tools)) > TOOLS:
        return Invalid(f"'tools' has more than {TOOLS} entries.", "tools")
    if len(body) <= _LARGE and body.count(b"[") + body.count(b"{") > DEPTH and _depth(_structure(body)) > DEPTH:
        return _TOO_DEEP
    return None


def _first(value: Raw) -> bytes:
    """The first byte of a value, which tells its type; b"" when it is absent. The rest may be a picture of megabytes, and is not copied."""
    return bytes(memoryview(value)[:1])


def _messages(value: Raw) -> Invalid | None:
    messages = _LIST.decode(value)
    if wrong := _counted(messages):
        return wrong
    for message in messages:
        if _first(message) != b"{":
            return Invalid("Each of 'messages' must be an object.", "messages")
    return None


def _counted(messages: Sized) -> Invalid | None:
    if not messages:
        return Invalid("'messages' must not be empty.", "messages")
    if len(messages) > MESSAGES:
        return Invalid(f"'messages' has more than {MESSAGES} entries.", "messages")
    return None


def _too_much(body: bytes, most: int) -> Invalid | None:
    """What is wrong with the amount of what stands in a body; nothing is made of it. A value opens the list or object that it is the first
    in, or follows a comma."""
    if b"\\" in body and (opened := body.count(b"[") + body.count(b"{")) <= DEPTH and opened + body.count(b",") <= most:
        return None  # texts were counted, too, and yet it is little
    structure = _structure(body, 2 * most)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > most:
        return Invalid(f"The request body has more than {most} values.")
    return _TOO_DEEP if _depth(structure) > DEPTH else None


def _structure(body: bytes, most: int = -1) -> bytes:
    """`body` without its texts; what stands behind so many of them is left as it is."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now every quote opens or closes
    return b"".join(body.split(b'"', 2 * most)[::2])


def _depth(structure: bytes) -> int:
    """Levels of objects and lists, up to one over the limit."""
    level, depth = structure.translate(_BRACKETS, _NO_BRACKETS), 0
    while level and depth <= DEPTH:
        level, depth = level.replace(b"[]", b""), depth + 1  # the innermost go
    return depth
