"""An engine's error answer in whichever dialect -> one value.

Shapes seen in the field: `{"error": {"message", "type", "code"}}` (llama.cpp, vLLM; `code` may be a number), `{"error": "text"}`
(Ollama's own API, vLLM's key check), flat `{"object": "error", "message", "code"}` (SGLang), `{"detail": ...}` (frameworks), and HTML.
"""

import re
from typing import Any

import msgspec
from msgspec import Struct

#: How each engine says that the prompt is longer than the context.
_TOO_LONG = re.compile(
    r"exceed_context_size|maximum context length|longer than the model'?s context"
    r"|exceeds? the (available )?context|context length exceeded|too large to process",
    re.IGNORECASE,
)
#: 5xx answers that blame the engine for what the caller sent.
_CALLER = re.compile(
    r"too large to process|image input is not supported|is not supported"
    r"|failed to parse (tools|messages|grammar|json schema)|unknown reasoning format|conversation roles must alternate"
    r"|json\.exception\.(type_error\.30\d|out_of_range\.40\d)",
    re.IGNORECASE,
)
#: What an engine or its framework says to a path, or a way to ask, that it does not know.
_NO_ROUTE = re.compile(r"\W*(404 |405 |501 )?(page |file )?(not found|method not allowed|not implemented)\W*", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"model .{0,200}(not found|does not exist)", re.IGNORECASE | re.DOTALL)
_NO_MESSAGE = "The engine answered with an error."


class Fault(Struct, frozen=True):
    """What went wrong at an engine, in our words."""

    #: caller (the request is wrong), context (its prompt is too long), model (the engine does not have it), route (it cannot be asked so),
    #: engine (everything else).
    blame: str
    message: str
    #: The engine's HTTP status, 0 when the error came inside a stream.
    status: int
    #: The request field that the engine names, "" when none.
    param: str = ""


def read(status: int, body: bytes) -> Fault:
    """The fault in an answer with `status` (0 for an error event) and `body`; never raises."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        document = None
    return from_document(status, document)


def from_document(status: int, document: Any) -> Fault:
    """The fault in a decoded error document; never raises."""
    inner = _inner(document)
    message = _text(inner)
    param = inner.get("param") if isinstance(inner, dict) else None
    known = status or _number(inner)
    return Fault(
        _blame(known, message, f"{message} {_words(inner)}"),
        message[:2000],
        known,
        param if isinstance(param, str) else "",
    )


def _inner(document: Any) -> Any:
    if isinstance(document, dict) and document.get("error"):
        return document["error"]
    return document


def _text(inner: Any) -> str:
    if isinstance(inner, str) and inner.strip():
        return inner.strip()
    if isinstance(inner, dict):
        for key in ("message", "detail"):
            value = inner.get(key)
            if isinstance(value, str) and value.strip():
                return value.strip()
    return _NO_MESSAGE


def _words(inner: Any) -> str:
    """All texts of an error object: engines put the kind of error into one of several fields."""
    return " ".join(value for value in inner.values() if isinstance(value, str)) if isinstance(inner, dict) else ""


def _number(inner: Any) -> int:
    code = inner.get("code") if isinstance(inner, dict) else 0
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 0


def _blame(status: int, message: str, text: str) -> str:
    if _TOO_LONG.search(text):
        return "context"
    if status == 404 and _UNKNOWN_MODEL.search(text):
        return "model"
    if status in (404, 405, 501) and (message == _NO_MESSAGE or _NO_ROUTE.fullmatch(message)):
        return "route"
    if 400 <= status < 500 and status not in (401, 403, 407, 408, 429):
        return "caller"
    if status >= 500 and _CALLER.search(text):
        return "caller"
    return "engine"
