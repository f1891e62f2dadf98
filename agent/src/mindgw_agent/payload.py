"""What a request body may not carry to an engine. PURE; the server and the agent hold bodies to the same rules.

Bodies pass through: fields that nobody here knows stay byte for byte as the caller wrote them (`msgspec.Raw`). Names are compared in
lower case, because some engines (Go's JSON) match them that way.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

#: Top-level fields that no caller may set on any engine: they name other callers' state, load code, or leak the prompt's template.
DENIED = frozenset({"id_slot", "slot_id", "rid", "lora", "chat_template", "priority"})
DENIED_PREFIXES = ("bootstrap_", "return_prompt")
#: Most answers that one request may ask for.
MAX_N = 8

#: Fields whose string (or whose `url`) an engine fetches when it is an address.
FETCHED = frozenset({"image_url", "video_url", "audio_url", "file_url"})
#: Fields that hold base64 or a data: URL, sometimes one level down.
INLINE = frozenset({"image", "video", "audio", "input_audio", "file", "input_file", "input_image", "input_video"})
_INLINE_PARTS = ("data", "url", "file_data", "file_url", "image_url", "path")
#: Without any of these a body carries no media at all; JSON may also spell letters as \u00XX.
_MARK = re.compile(rb"url|image|audio|video|file|\\u00", re.IGNORECASE)
#: One of those names as that of a field, with text or an object in it. A quote behind a backslash stands within a text; any other that
#: has a name behind it opens one.
_FIELD = re.compile(
    rb'"(?=[AFIVafiv])(?<!\\")(?i:(%b))"[ \t\r\n]*:[ \t\r\n]*(?:"|(\{))'
    % "|".join(sorted((FETCHED | INLINE), key=len, reverse=True)).encode()
)
#: A letter that is spelled by its number, as JSON may.
_SPELLED = re.compile(rb"\\u00[4-7]")
#: Such fields that are looked at one by one; a body with more is read as a whole.
_FEW = 1024
#: How texts begin that may be paths.
_PATHS = (b"//", b"~", b".")
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_DATA = b'"data:'
_UNREADABLE = "a body that is not JSON"

_decode = msgspec.json.Decoder().decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class Refused(Exception):
    """The caller's request may not reach the engine; the message is for the caller, `param` names the field."""

    def __init__(self, message: str, param: str = "", code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def media_violation(body: bytes) -> str | None:
    """The first address that an engine would fetch, at whatever depth; None when all media are inline (data: URLs or base64).

    A body that speaks of media but is not JSON is a violation too: engines with laxer parsers might still read it.
    """
    try:
        _decode_object(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read(body) if _MARK.search(body) is not None else None
    return fetched(body)


def fetched(body: bytes) -> str | None:
    """The same for what is known to be a JSON object. Only the names of fields are searched for, and how their texts begin: a picture
    of megabytes costs no more than to find where it ends. What is not plain at a glance is decoded, all of it."""
    if b"\\" in body and _SPELLED.search(body) is not None:
        return _read(body)
    for count, field in enumerate(_FIELD.finditer(body)):
        name = field[1].decode().lower()
        plain = _is_plain_object(name, body, field.start(2)) if field[2] else _is_plain_text(name, body, field.end())
        if not plain or count >= _FEW:
            return _read(body)
    return None


def _is_plain_object(name: str, body: bytes, start: int) -> bool:
    """Whether it can be told at a glance that the object which starts there is inline, or is none of those that are fetched."""
    try:
        fields = _decode_object(body[start : body.find(b"}", start) + 1])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # that was not its end
    parts = ("url",) if name in FETCHED else _INLINE_PARTS
    return all(_is_plain_value(name, value) for part, value in fields.items() if part.lower() in parts)


def _is_plain_value(name: str, value: Raw) -> bool:
    first = bytes(memoryview(value)[:6]).lower()
    return first == _DATA or first[:1] != b'"' or _is_plain_text(name, bytes(value), 1)


def _is_plain_text(name: str, body: bytes, start: int) -> bool:
    """The same of a text, whose first letter stands there."""
    if body[start : start + 5].lower() == b"data:":
        return True
    if name in FETCHED or body.startswith(_PATHS, start):
        return False
    end = body.find(b'"', start)
    return body.find(b":", start, end) < 0 and body.find(b"\\", start, end) < 0


def _read(body: bytes) -> str | None:
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _UNREADABLE
    for fields in _objects(document):
        for name, value in fields.items():
            if (address := _address(name.lower(), value)) is not None:
                return address
    return None


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document, without recursion."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _address(name: str, value: Any) -> str | None:
    """What `value` would make an engine fetch when it stands under `name`."""
    if name in FETCHED:
        text = _lower_keys(value).get("url") if isinstance(value, dict) else value
        return text if isinstance(text, str) and not _is_data(text) else None
    if name in INLINE:
        parts = _lower_keys(value) if isinstance(value, dict) else {"data": value}
        texts = (parts.get(part) for part in _INLINE_PARTS)
        return next((text for text in texts if isinstance(text, str) and not _is_inline(text)), None)
    return None


def _lower_keys(value: dict[str, Any]) -> dict[str, Any]:
    return {key.lower(): item for key, item in value.items()}


def _is_data(text: str) -> bool:
    return text[:5].lower() == "data:"


def _is_inline(text: str) -> bool:
    """Base64 has no colon, and of its two extra letters a path needs the slash in front."""
    return _is_data(text) or not (_SCHEME.match(text) or text.startswith(("//", "\\\\", "~", ".")))


def parse(body: bytes) -> dict[str, Raw]:
    """The top-level fields of a body, unread. Raises Refused when it is not one JSON object."""
    try:
        return _decode_object(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Refused("The request body is not a JSON object.") from None


def render(fields: dict[str, Raw]) -> bytes:
    """The body again."""
    return _encode(fields)


def denied(name: str, extra: frozenset[str] = frozenset()) -> bool:
    """Whether callers may not set this top-level field; `extra` are an engine's own, in lower case."""
    lowered = name.lower()
    return lowered in DENIED or lowered in extra or lowered.startswith(DENIED_PREFIXES)


def scrub(fields: dict[str, Raw], extra: frozenset[str] = frozenset()) -> list[str]:
    """Take the denied fields out, in place; returns their names as the caller wrote them."""
    names = [name for name in fields if denied(name, extra)]
    for name in names:
        del fields[name]
    return names


def integer(fields: dict[str, Raw], name: str) -> int | None:
    """The value of a field that must be a whole number, None when it is absent or null. Raises Refused."""
    value = _value(fields, name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise Refused(f"'{name}' must be a whole number.", name)
    return value


def _value(fields: dict[str, Raw], name: str) -> Any:
    if name not in fields:
        return None
    try:
        return _decode(fields[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(f"'{name}' cannot be read.", name) from None


def answers(fields: dict[str, Raw]) -> int:
    """How many answers are asked for, 1..MAX_N. Raises Refused."""
    most = 1
    for name in ("n", "best_of"):
        count = integer(fields, name)
        if count is not None and not 1 <= count <= MAX_N:
            raise Refused(f"'{name}' must be between 1 and {MAX_N}.", name)
        most = max(most, count or 1)
    return most


def ask_usage(fields: dict[str, Raw]) -> None:
    """Ask for usage at the end of a stream, keeping the caller's other stream options."""
    options = _value(fields, "stream_options")
    fields["stream_options"] = encoded({**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True})


def encoded(value: Any) -> Raw:
    """A value to put into the fields of a body."""
    return Raw(_encode(value))


def estimate_tokens(body: bytes) -> int:
    """A guess at the prompt's tokens, for answers whose engine never counted them: four bytes each, inline media left out."""
    size, start = len(body), body.find(_DATA)
    while start >= 0 and (end := body.find(b'"', start + len(_DATA))) >= 0:
        size -= end + 1 - start
        start = body.find(_DATA, end)
    return max(1, size // 4)
