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
#: Without one of these bytes (in lower case) a body carries no media at all; JSON may also spell letters as \u00XX.
_MARKS = (b"url", b"image", b"audio", b"video", b"file", b"\\u00")
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_DATA_URL = re.compile(rb'"data:[^"]*"')
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

    Costs a few byte searches unless the body speaks of media at all. A body that speaks of media but is not JSON is a violation too:
    engines with laxer parsers might still read it.
    """
    find = body.lower().find  # `in` tries numbers first, which costs four times as much
    for mark in _MARKS:
        if find(mark) >= 0:
            break
    else:
        return None
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
    text = _DATA_URL.sub(b"", body) if body.find(b'"data:') >= 0 else body
    return len(text) // 4 or 1
