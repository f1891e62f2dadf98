"""What an engine's answer says about itself: tokens, how it ended, errors. PURE.

Events are byte-tested; only those that carry usage or an error are decoded. A quote inside a JSON string is escaped, so `"usage"`
with its quotes can only be a field, or somebody's whole text, which costs a look and nothing else.
"""

import re
from typing import Annotated, Any

import msgspec

from mindgw_agent import sse
from mindgw_agent.wire import Usage

_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,40})"')
#: A delta that says something: roughly one token.
_SAID = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"(?!")')

#: Where an answer that came in one piece has its text; reasoning goes by either name, or by both.
_TEXTS = (("content",), ("refusal",), ("reasoning", "reasoning_content"))
#: Bytes that count as a token where nobody counted tokens.
_BYTES = 4

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: _Tokens | None = None


class _Reported(msgspec.Struct, frozen=True):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None


class _Document(msgspec.Struct, frozen=True):
    usage: _Reported | None = None


_decode = msgspec.json.Decoder().decode
_decode_usage = msgspec.json.Decoder(_Document).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Tally:
    """Counts one answer, event by event, or whole."""

    __slots__ = ("_adds_up", "error", "events", "finish", "finishes", "garbage", "said", "usage")

    def __init__(self, adds_up: bool = False) -> None:
        #: Whether each usage object is about one of several answers, so that completions are added up.
        self._adds_up = adds_up
        #: Events with data, the end mark left out.
        self.events = 0
        #: Events that said something; of an answer in one piece whose engine counted nothing, the tokens that its text may have.
        self.said = 0
        #: The last reason for an end, and how many there were.
        self.finish = ""
        self.finishes = 0
        #: What the engine reported, None until it does.
        self.usage: Usage | None = None
        #: Whether the last event was no JSON object.
        self.garbage = False
        #: The `error` of an event, None while all is well.
        self.error: Any = None

    def event(self, data: bytes) -> None:
        """Count an event, unless it is garbage. The first one is read in full, the others are known by their braces."""
        if not (data.startswith(b"{") and data.endswith(b"}")):
            data = data.strip()
        self.garbage = not (data.startswith(b"{") and data.endswith(b"}")) or (self.events == 0 and not is_object(data))
        if self.garbage:
            return
        self.events += 1
        # `find` and not `in`: that first takes the needle for a number, and raises and drops an error each time
        if data.find(b'"finish_reason":null') < 0 and (found := _FINISH.search(data)):
            self.finish = found[1].decode()
            self.finishes += 1
        if _SAID.search(data):
            self.said += 1
        if data.find(b'"usage"') >= 0:
            self._report(data)
        if data.find(b'"error"') >= 0:
            self.error = error_in(data)

    def whole(self, body: bytes, answers: int = 1) -> None:
        """Count an answer that came in one piece, unless it is garbage."""
        document = _document(body)
        self.garbage = document is None
        if document is None:
            return
        self._report(body)
        if self.usage is None or not self.usage.completion:
            self._estimate(document)
        elif self._adds_up and answers > 1:
            self.usage = msgspec.structs.replace(self.usage, completion=self.usage.completion * answers, source="estimated")
        found = _FINISH.search(body)
        self.finish = found[1].decode() if found else ""

    def _estimate(self, document: dict[str, Any]) -> None:
        """Nobody counted the tokens of the answer."""
        self.said = _tokens_said(document)
        if self.usage is not None and self.said:
            self.usage = msgspec.structs.replace(self.usage, completion=self.said, source="estimated")

    def _report(self, data: bytes) -> None:
        try:
            reported = _decode_usage(data).usage
        except _UNREADABLE:
            return
        if reported is None:
            return
        before = self.usage.completion if self.usage is not None and self._adds_up else 0
        details = reported.prompt_tokens_details
        cached = (details.cached_tokens if details else 0) or 0
        self.usage = Usage(prompt=reported.prompt_tokens or 0, completion=before + (reported.completion_tokens or 0), cached=cached)


def is_object(data: bytes) -> bool:
    """Whether it is JSON, and an object."""
    return _document(data) is not None


def _document(data: bytes) -> dict[str, Any] | None:
    try:
        document = _decode(data)
    except _UNREADABLE:
        return None
    return document if isinstance(document, dict) else None


def _tokens_said(document: dict[str, Any]) -> int:
    """A guess at the tokens of all choices: a token for four bytes, and one at least for each that says something."""
    choices = document.get("choices")
    return sum(-(-_bytes_said(choice) // _BYTES) for choice in choices if isinstance(choice, dict)) if isinstance(choices, list) else 0


def _bytes_said(choice: dict[str, Any]) -> int:
    """Bytes of what a choice says, calls of tools with their names and arguments too."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return _size(choice.get("text"))
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions.append(message.get("function_call"))
    called = [_size(function.get(name)) for function in functions if isinstance(function, dict) for name in ("name", "arguments")]
    return sum(called, sum(max(_size(message.get(name)) for name in names) for names in _TEXTS))


def _size(value: Any) -> int:
    """Bytes of a text, or of the texts in a list of parts; arguments may come as an object, which counts as it is written."""
    if isinstance(value, list):
        return sum(_size(part.get("text")) for part in value if isinstance(part, dict) and not isinstance(part.get("text"), list))
    if isinstance(value, dict):
        try:
            return len(msgspec.json.encode(value))
        except RecursionError:  # it could just be read, a few calls higher
            return 0
    return len(value.encode(errors="surrogatepass")) if isinstance(value, str) else 0


def error_in(data: bytes) -> Any:
    """The error that a document reports, None when it reports none."""
    document = _document(data)
    return document.get("error") or None if document is not None else None


def error_text(error: Any) -> str:
    """The message of an error in any engine's shape."""
    text = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return text if isinstance(text, str) else "the engine reported an error"


def error_status(error: Any) -> int:
    """The HTTP status that an error of a stream stands for, 500 when it does not say."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599 else 500


def render(events: list[bytes]) -> bytes:
    """Events as plain Server-sent events."""
    return b"".join(b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n" for data in events)


def until_end(run: bytes, tally: Tally) -> tuple[bytes, bool]:
    """Count a run of whole events up to the first one after which nothing may follow: an error, the end mark, or garbage.

    Returns the bytes up to there, garbage left out (`tally.garbage` tells), and whether it came.
    """
    events = sse.events(run)
    for number, data in enumerate(events, 1):
        if data != sse.DONE:
            tally.event(data)
            if tally.garbage:
                return render(events[: number - 1]), True
            if tally.error is None:
                continue
        return (run if number == len(events) else render(events[:number])), True
    return run, False
