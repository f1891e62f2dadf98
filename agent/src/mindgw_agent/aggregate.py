"""Folds a stream of llama.cpp's /v1/chat/completions into the answer that it would have given without streaming. PURE.

llama.cpp notices a lost caller in a stream only, so the agent streams always and folds for those who did not ask for a stream.
The outcome equals the engine's own answer field by field (tests/agent/test_aggregate.py holds the two side by side). Requests for
which that cannot be promised are told apart by `can_aggregate` beforehand. Now and then the engine keeps text back in a stream for
good: half a stop string, half a character or half a tool call at the end of `max_tokens`, an answer of white space. `Fold.faithful`
tells such an answer afterwards, if the request said `timings_per_token: true`: each chunk then says how many tokens it stands for.
"""

from typing import Any

import msgspec
from msgspec import Raw

#: Most bytes of chunks that one answer may be folded from.
MAX_ANSWER = 256 * 1024 * 1024

#: Fields that change what a stream or an answer contains beyond what a fold can know.
_UNFAITHFUL = frozenset({"echo", "__verbose", "response_fields", "modalities", "audio", "continue_final_message"})
#: Top-level fields of a chunk that the answer does not have, or gets in another way.
_OF_CHUNKS = frozenset({"choices", "object", "usage", "timings", "prompt_progress"})
#: Order in which the engine writes the fields of an answer.
_ORDER = ("choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings")

_NULL = Raw(b"null")

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.encode


class Broken(ValueError):
    """The chunks do not make an answer; the message says why."""


class _Delta(msgspec.Struct, frozen=True):
    """A choice of a chunk. Log probabilities stay unread: floats keep the digits that the engine wrote."""

    index: int = 0
    delta: dict[str, Any] = {}
    finish_reason: str | None = None
    logprobs: dict[str, Raw] | None = None


_decode_choices = msgspec.json.Decoder(list[_Delta]).decode


def can_aggregate(fields: dict[str, Raw]) -> bool:
    """Whether a chat request's stream can be folded faithfully; `fields` are its top-level fields.

    Not when the answer starts with what the caller sent (`echo`, a trailing message of the assistant): the engine repeats that
    in a plain answer and not in a stream.
    """
    if not _UNFAITHFUL.isdisjoint(fields):
        return False
    try:
        messages = _decode_list(fields.get("messages", b"[]"))
        role = _decode_fields(messages[-1]).get("role", _NULL) if messages else _NULL
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return bytes(role) != b'"assistant"'


class _Choice:
    """One answer as far as it was said."""

    __slots__ = ("calls", "finish", "logprobs", "spoken", "texts", "total")

    def __init__(self) -> None:
        #: Pieces of each text field of the message, in the order in which the fields first came.
        self.texts: dict[str, list[str]] = {}
        #: Tool calls by their index.
        self.calls: dict[int, dict[str, Any]] = {}
        #: Entries of each list of log probabilities, unread.
        self.logprobs: dict[str, list[Raw]] = {}
        #: Why it ended; None while it goes on.
        self.finish: str | None = None
        #: Timings of the last chunk that said something, and of the last chunk of all.
        self.spoken = _NULL
        self.total = _NULL

    def add(self, part: _Delta, timings: Raw) -> None:
        for name, value in part.delta.items():
            if name == "tool_calls" and isinstance(value, list):
                self._add_calls(value)
                self.spoken = timings
            elif isinstance(value, str) and name != "role":
                self.texts.setdefault(name, []).append(value)
                self.spoken = timings
        for name, entries in (part.logprobs or {}).items():
            if bytes(entries) != b"null":
                self.logprobs.setdefault(name, []).extend(_decode_list(entries))
        self.finish = part.finish_reason or self.finish

    def _add_calls(self, parts: list[Any]) -> None:
        for part in parts:
            call = self.calls.setdefault(part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": []}})
            function = part.get("function") or {}
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"].append(function.get("arguments") or "")
            call |= {name: value for name, value in part.items() if name in {"id", "type"} and value}

    def is_faithful(self, stops: bool) -> bool:
        """Whether the stream held nothing back: it may when an answer is cut at its limit, or says nothing but white space.

        A token that nobody heard is the end of turn, or part of a stop string if there are any.
        """
        silent = _tokens(self.total) - _tokens(self.spoken)
        if self.finish == "length":
            return silent == 0
        return bool(self.calls) or "content" in self.texts or silent <= (0 if stops else 1)

    def render(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        message |= {name: "".join(pieces) for name, pieces in self.texts.items()}
        calls = [self.calls[place] for place in sorted(self.calls)]
        for call in calls:
            call["function"]["arguments"] = "".join(call["function"]["arguments"])
        if calls:
            message["tool_calls"] = calls
        answer: dict[str, Any] = {"finish_reason": self.finish, "index": index, "message": message}
        return answer | {"logprobs": self.logprobs} if self.logprobs else answer


def _tokens(timings: Raw) -> int:
    """Tokens made so far, by the timings of a chunk."""
    found = _decode(timings)
    count = found.get("predicted_n") if isinstance(found, dict) else None
    return count if isinstance(count, int) else 0


class Fold:
    """Takes chunks one by one, then gives the answer once."""

    __slots__ = ("_choices", "_expected", "_fields", "_latest", "_size", "_stops", "_tail")

    def __init__(self, expected: int = 1, *, stops: bool = False) -> None:
        #: How many choices the answer will have.
        self._expected = expected
        #: Whether the request names stop strings.
        self._stops = stops
        #: Choices by index, as far as they began.
        self._choices: dict[int, _Choice] = {}
        #: Fields that all chunks share, from the first one.
        self._fields: dict[str, Any] = {}
        #: The choice that ended last: usage and timings that follow are its own.
        self._latest = 0
        #: Usage and timings of the first choice, which are the ones that the engine puts into an answer.
        self._tail: dict[str, Raw] = {}
        #: Bytes of chunks so far.
        self._size = 0

    @property
    def whole(self) -> bool:
        """Whether every choice has ended."""
        return len(self._choices) >= self._expected and all(choice.finish for choice in self._choices.values())

    @property
    def faithful(self) -> bool:
        """Whether the engine said in the stream all that it would have said in a plain answer. True only of a whole answer."""
        return self.whole and all(choice.is_faithful(self._stops) for choice in self._choices.values())

    def add(self, data: bytes) -> None:
        """Fold in the data of one event. Raises Broken when it is no chunk, or the answer outgrows MAX_ANSWER."""
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise Broken(f"the answer is larger than {MAX_ANSWER} bytes of stream")
        try:
            fields = _decode_fields(data)
            parts = _decode_choices(fields.get("choices", b"[]"))
            timings = fields.get("timings", _NULL)
            for part in parts:
                self._choices.setdefault(part.index, _Choice()).add(part, timings)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError, TypeError) as error:
            raise Broken(f"an event is not a chunk of an answer: {error}") from None
        self._latest = next((part.index for part in parts if part.finish_reason), self._latest)
        if timings is not _NULL and self._latest in self._choices and (not parts or parts[-1].finish_reason):
            self._choices[self._latest].total = timings
        for name, value in fields.items():
            if name not in _OF_CHUNKS:
                self._fields.setdefault(name, value)
            elif name in {"usage", "timings"} and bytes(value) != b"null" and (self._latest == 0 or name not in self._tail):
                self._tail[name] = value

    def result(self) -> bytes:
        """The answer as JSON. Raises Broken while a choice has not ended; call it once."""
        if not self.whole:
            raise Broken("the stream ended before the answer did")
        found = {**self._fields, **self._tail, "object": "chat.completion"}
        found["choices"] = [self._choices[index].render(index) for index in sorted(self._choices)]
        return _encode({name: found[name] for name in (*_ORDER, *(found.keys() - set(_ORDER))) if name in found})
