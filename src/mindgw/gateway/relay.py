"""A worker's answer on its way to the client: bytes in, bytes out, and what they said about usage.

A stream leaves as whole events. Plain ones leave as they came; usage is taken out unless the client asked for it, reasoning
leaves under both of its names, an engine's own end mark and comments are swallowed, and an error inside the stream becomes a
fault. The relay never writes the end itself: the exchange does, once, when it knows how the answer ended.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mindgw import errors
from mindgw.core import fault, sse, usage
from mindgw_agent import wire

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_ABSENT = msgspec.Raw()


class _Whole(msgspec.Struct):
    """An answer in one piece, as far as it is read."""

    usage: msgspec.Raw = _ABSENT
    #: What some engines say with the status of an answer that is well.
    error: Any = None


class _Usual(msgspec.Struct):
    """One that says what was used as it should."""

    usage: usage.Reported


_decode_quickly = msgspec.json.Decoder(_Usual).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode
_decode_usage = msgspec.json.Decoder(usage.Reported).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode

#: Fields that the chunk with the usage shares with the chunks before it.
_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint")
#: The end of each other chunk, when the client asked for one with the usage.
_NO_USAGE = b',"usage":null}\n\n'
_REASONING = ("reasoning", "reasoning_content")
#: What a chunk says of its model. A quote inside a string has a backslash before it, so this is never somebody's text.
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')


class StreamRelay:
    """One streamed answer. `fault` says whether the engine reported an error in it."""

    __slots__ = ("_alias", "_envelope", "_named", "_splitter", "between", "events", "fault", "include_usage", "tokens", "usage_document")

    def __init__(self, include_usage: bool, alias: str = "") -> None:
        """`alias` is what the model is called in the answer, "" for what the engine calls it."""
        self._alias = alias
        #: That as a field.
        self._named = b'"model":' + _encode(alias) if alias else b""
        #: Whether the client asked for a usage chunk.
        self.include_usage = include_usage
        self._splitter = sse.Splitter()
        #: True when the last byte that left ended an event.
        self.between = True
        #: Events passed on so far.
        self.events = 0
        #: Set when the engine reported an error inside the stream; nothing may follow it.
        self.fault: fault.Fault | None = None
        #: Usage as the engine reported it last; None when it has not.
        self.tokens: usage.Tokens | None = None
        self.usage_document: Any = None
        #: Fields of the last looked-at chunk, for the usage chunk.
        self._envelope: dict[str, Any] = {}

    def feed(self, data: bytes) -> bytes:
        """What leaves for the client now, b"" when nothing; raises EngineFailed on an event without end."""
        if self.between and self.fault is None and (whole := sse.plain(data)):
            self.events += whole
            if self._named:
                data = _MODEL.sub(lambda _: self._named, data)
            return data.replace(b"}\n\n", _NO_USAGE) if self.include_usage and b"{}" not in data else data
        try:
            events = self._splitter.feed(data)
        except sse.EventTooLarge as wrong:
            raise errors.EngineFailed(f"The engine sent {wrong}.") from wrong
        self.between = self._splitter.empty
        out = [sse.event(kept) for event in events if (kept := self._look(event)) is not None]
        return b"".join(out)

    def end(self, total: usage.Tokens | None = None) -> bytes:
        """The usage chunk that the client asked for, if the engine reported usage; then nothing more may be fed.

        `total`, when given, is what is billed: where an engine reports each choice apart, its last report is not the sum.
        """
        if not self.include_usage or self.usage_document is None:
            return b""
        counts = {}
        if total is not None:
            counts = {"prompt_tokens": total.prompt, "completion_tokens": total.completion, "total_tokens": total.prompt + total.completion}
        return sse.event(_encode({**self._envelope, "choices": [], "usage": {**self.usage_document, **counts}}))

    def _look(self, data: bytes) -> bytes | None:
        """What becomes of one event's data; None when it does not leave."""
        if self.fault is not None or data == sse.DONE:
            return None
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.fault = fault.Fault("engine", "The engine sent an event that is not JSON.", 0)
            return None
        if chunk.get("error"):
            self.fault = fault.from_document(0, chunk)
            return None
        changed = self._take_usage(chunk) | mirror_reasoning(chunk)
        if self._alias and "model" in chunk:
            chunk["model"], changed = self._alias, True
        self._envelope = {name: chunk[name] for name in _ENVELOPE if name in chunk}
        if not chunk.get("choices") and "choices" in chunk and self.usage_document is not None:
            return None
        self.events += 1
        if self.include_usage:
            chunk["usage"] = None
        return _encode(chunk) if changed or self.include_usage or b"\n" in data else data

    def _take_usage(self, chunk: dict[str, Any]) -> bool:
        """Moves a chunk's usage here; True when the chunk changed."""
        if "usage" not in chunk:
            return False
        document = chunk["usage"]
        if isinstance(document, dict):
            self.usage_document = document
            self.tokens = read_usage(_encode(document)) or self.tokens
        del chunk["usage"]
        return True


def mirror_reasoning(chunk: dict[str, Any]) -> bool:
    """Gives each choice's delta or message its reasoning under both names; True when something was added."""
    changed = False
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        part = (choice.get("delta") or choice.get("message")) if isinstance(choice, dict) else None
        if isinstance(part, dict):
            changed |= _mirror(part)
    return changed


def _mirror(part: dict[str, Any]) -> bool:
    have = [name for name in _REASONING if name in part]
    if len(have) != 1:
        return False
    missing = _REASONING[1 - _REASONING.index(have[0])]
    part[missing] = part[have[0]]
    return True


def read_usage(document: bytes | msgspec.Raw) -> usage.Tokens | None:
    """Tokens of an encoded `usage` object; None when it is not one."""
    reported = _read_reported(document)
    return usage.tokens(reported) if reported is not None else None


def _read_reported(document: bytes | msgspec.Raw) -> usage.Reported | None:
    try:
        return _decode_usage(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Whole:
    """One answer that leaves in one piece."""

    __slots__ = ("_alias", "_body", "_limit", "_reported")

    #: As of a stream in which nothing has passed by yet.
    events, fault = 0, None

    def __init__(self, limit: int, alias: str = "") -> None:
        """`alias` is what the model is called in the answer, "" for what the engine calls it."""
        self._alias = alias
        #: What came; most answers come at once.
        self._body: bytes | bytearray = b""
        #: The most bytes there may be.
        self._limit = limit
        #: Usage as the engine wrote it; None when it has not.
        self._reported: usage.Reported | None = None

    @property
    def tokens(self) -> usage.Tokens | None:
        """Usage as the engine reported it; None when it has not, or `answer` was not called yet."""
        return usage.tokens(self._reported) if self._reported is not None else None

    def feed(self, data: bytes) -> bytes:
        """Keeps a piece, so that nothing leaves; raises EngineFailed when the answer outgrows the limit."""
        if len(self._body) + len(data) > self._limit:
            raise errors.EngineFailed(f"The engine's answer is larger than {self._limit} bytes.")
        if self._body:
            self._body = bytearray(self._body) if isinstance(self._body, bytes) else self._body
            self._body += data
        else:
            self._body = data
        return b""

    def raw(self) -> bytes:
        """The body as the engine sent it."""
        body = self._body
        return body if isinstance(body, bytes) else bytes(body)

    def answer(self) -> bytes:
        """The body for the client; raises EngineFailed when it is not a JSON object, and what an error means when it is one."""
        body = self._answer()
        if not self._alias:
            return body
        fields = _decode_fields(body)
        return _encode({**fields, "model": self._alias}) if "model" in fields else body

    def _answer(self) -> bytes:
        body = self.raw()
        if body.find(b'"reasoning') < 0:
            try:
                self._reported = _decode_quickly(body).usage
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # it has no usage that can be read, or it is no answer at all
            else:
                return body
        try:
            document = _decode_whole(body)
            whole = _decode(body) if b'"reasoning' in body else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
            raise errors.EngineFailed("The engine's answer is not JSON.") from wrong
        if document.error:
            raise error_of(fault.read(0, body))
        if document.usage is not _ABSENT:
            self._reported = _read_reported(document.usage)
        return _encode(whole) if whole is not None and mirror_reasoning(whole) else body


def error_of(found: fault.Fault) -> errors.MindGWError:
    """The error that tells the client about an engine's fault."""
    if found.blame == "context":
        return errors.ContextTooLong(found.message, param="messages")
    if found.blame == "model":
        return errors.ModelNotFound(found.message, param="model")
    if found.blame == "caller" or (found.blame == "route" and found.status < 500):
        status = found.status if 400 <= found.status < 500 else 400
        return errors.EngineRefused(found.message, status=status, param=found.param or None)
    return errors.EngineFailed(found.message)


#: What the codes of an agent's `Close` mean to the caller.
_CLOSE_ERRORS: dict[str, type[errors.MindGWError]] = {
    "engine_unreachable": errors.EngineUnreachable,
    "engine_timeout": errors.EngineTimeout,
    "draining": errors.NoWorker,
    "paused": errors.NoWorker,
    "other_team": errors.NoWorker,
    "refused": errors.NoWorker,  # paths, models and sizes were looked at here: what an agent does not do is no fault of the caller's
}


def error_of_close(close: wire.Close) -> errors.MindGWError:
    """The error that tells the client why an agent gave up."""
    return _CLOSE_ERRORS.get(close.code, errors.EngineFailed)(close.message[:2000] or None)


def with_note(answer: bytes, facts: Mapping[str, str]) -> bytes:
    """A JSON object with `facts` as its field `mindgw`."""
    end = answer.rindex(b"}")
    head = answer[:end].rstrip()
    return head + (b"" if head.endswith(b"{") else b",") + b'"mindgw":' + _encode(facts) + answer[end:]
