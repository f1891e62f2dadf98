"""Frames of the tunnel: the words that a server and an agent exchange, and nothing about when they may be said.

A message is one WebSocket binary message of 1..n whole frames. A frame is a 10-byte header (`!IIBB`: payload length, stream,
kind, flags) and its payload. Control frames travel on stream 0, everything else on a stream that the server opened.
Stream ids grow from 1 on each connection and are never used again, so "already over" and "never opened" can be told apart
without remembering old streams.

Both ends import this room. A peer can send any bytes: whatever is wrong with them, the only exception is ProtocolError.
"""

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from mindgw_agent.receipt import MAX_BATCH, Receipt, Receipts, Received, anew, chained, genesis
from mindgw_agent.transcripts import transcript, transcript_challenge, transcript_proof, transcript_receipts
from mindgw_agent.vocabulary import (
    COMMANDS,
    VERBS,
    VERSIONS,
    Challenge,
    Close,
    Command,
    Count,
    EngineReport,
    Goodbye,
    Gpu,
    Head,
    Hello,
    Meta,
    Model,
    Nonce,
    Outcome,
    Progress,
    Proof,
    Report,
    Seconds,
    Signature,
    Signed,
    Source,
    Tag,
    Usage,
    Welcome,
    brief,
    clean,
    clean_report,
)

# whoever speaks of frames speaks of what they say: the vocabulary is part of this room's face
__all__ = [
    "CANCEL", "CHALLENGE", "CLOSE", "COMMAND", "COMMANDS", "CREDIT", "CREDIT_LEVEL", "DATA", "DRAIN", "END", "FROM_AGENT", "FROM_SERVER",
    "GOODBYE", "HEAD", "HEADER_SIZE", "HELLO", "KINDS", "MAX_ANSWER", "MAX_BATCH", "MAX_BODY", "MAX_FRAME", "MAX_GREETING", "MAX_MESSAGE",
    "MAX_NOTE", "MAX_PAYLOAD", "MAX_RECEIPTS", "MAX_REPORT", "OPEN", "PATH", "PATHS", "PING", "PONG", "PROGRESS", "PROOF", "RECEIPTS",
    "RECEIVED", "REPORT", "RESUME_LEVEL", "SUBPROTOCOL", "VERBS", "VERSION", "VERSIONS", "WELCOME", "WINDOW", "Challenge", "Close",
    "Command", "Count", "Decoder", "EngineReport", "Frame", "Goodbye", "Gpu", "Head", "Hello", "Meta", "Model", "Nonce", "Outcome",
    "Payload", "Progress", "Proof", "ProtocolError", "Receipt", "Receipts", "Received", "Report", "Seconds", "Signature", "Signed",
    "Source", "Tag", "Usage", "Welcome", "anew", "brief", "build_head", "build_open", "chained", "clip", "credit", "encode", "fit", "frame",
    "genesis", "head_size", "negotiate", "pack_header", "parse", "parse_credit", "parse_head", "parse_open", "size_of", "transcript",
    "transcript_challenge", "transcript_proof", "transcript_receipts",
]  # fmt: skip

VERSION: Final = VERSIONS[0]
SUBPROTOCOL: Final = "mindgw.1"
PATH: Final = "/agent/v1/link"

#: Largest message and largest payload of a frame, in bytes.
MAX_MESSAGE: Final = 1024 * 1024
MAX_PAYLOAD: Final = 64 * 1024
#: What a peer may say before it has proved who it is, in bytes of payload.
MAX_GREETING: Final = 4 * 1024
#: Body bytes that one end of a stream may have sent and not yet been credited for.
WINDOW: Final = 256 * 1024
#: A receiver returns credit once this much was consumed; strictly below RESUME_LEVEL, or a paused stream never wakes up.
CREDIT_LEVEL: Final = WINDOW // 4
#: A sender that paused its source reads on when no more than this is unsent or in flight.
RESUME_LEVEL: Final = WINDOW // 2
#: Largest body of a request that an agent collects, and largest answer in one piece that it reads.
MAX_BODY: Final = 64 * 1024 * 1024
MAX_ANSWER: Final = 64 * 1024 * 1024
#: Longest text in a Close, in characters; engines can be verbose.
MAX_NOTE: Final = 2048
#: Largest report, in bytes of JSON: it must fit in a frame beside a signature.
MAX_REPORT: Final = MAX_PAYLOAD - 1024

#: Bytes of JSON that the receipts of one batch may take: the rest of the frame is for what stands around them.
MAX_RECEIPTS: Final = MAX_PAYLOAD - 2048

#: The only engine paths that can be asked for through a tunnel.
PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

# Kinds of control frames: stream 0, JSON payloads, but for PING and PONG, whose payload is an opaque echo of <= 64 bytes.
HELLO: Final = 1
CHALLENGE: Final = 2
PROOF: Final = 3
WELCOME: Final = 4
GOODBYE: Final = 5
REPORT: Final = 6
DRAIN: Final = 7
PING: Final = 8
PONG: Final = 9
RECEIPTS: Final = 10
RECEIVED: Final = 11
COMMAND: Final = 12
PROGRESS: Final = 13
# Kinds of stream frames.
OPEN: Final = 16
DATA: Final = 17
HEAD: Final = 18
CREDIT: Final = 19
CANCEL: Final = 20
CLOSE: Final = 21

#: The only flag: the body of this direction is complete.
END: Final = 1

FROM_SERVER: Final = frozenset({CHALLENGE, WELCOME, GOODBYE, DRAIN, PING, PONG, RECEIVED, COMMAND, OPEN, DATA, CREDIT, CANCEL})
FROM_AGENT: Final = frozenset({HELLO, PROOF, GOODBYE, REPORT, DRAIN, PING, PONG, RECEIPTS, PROGRESS, DATA, HEAD, CREDIT, CLOSE})
KINDS: Final = FROM_SERVER | FROM_AGENT

_HEADER = struct.Struct("!IIBB")
#: Header of a frame whose limits are known to be kept: payload length, stream, kind, flags.
pack_header: Final = _HEADER.pack
_unpack = _HEADER.unpack_from
#: Bytes of a header, and of the largest frame.
HEADER_SIZE: Final = _HEADER.size
MAX_FRAME: Final = HEADER_SIZE + MAX_PAYLOAD

_U32 = struct.Struct("!I")
_U16 = struct.Struct("!H")
_ANSWER = struct.Struct("!HB")


class ProtocolError(Exception):
    """The peer broke the rules of the tunnel; the link must be closed."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame. The payload is at most MAX_PAYLOAD bytes; `end` may be set on OPEN, HEAD and DATA alone."""

    stream: int
    kind: int
    payload: bytes = b""
    end: bool = False


Payload = Hello | Challenge | Proof | Welcome | Goodbye | Report | Receipts | Received | Command | Progress | Close
T = TypeVar("T")

_KIND_OF: dict[type, int] = {
    Hello: HELLO, Challenge: CHALLENGE, Proof: PROOF, Welcome: WELCOME, Goodbye: GOODBYE, Report: REPORT, Receipts: RECEIPTS,
    Received: RECEIVED, Command: COMMAND, Progress: PROGRESS, Close: CLOSE,
}  # fmt: skip
_DECODERS: dict[type, Callable[[bytes | memoryview], Any]] = {kind: msgspec.json.Decoder(kind).decode for kind in (*_KIND_OF, Meta, Signed)}
_to_json = msgspec.json.Encoder().encode


def frame(value: Payload, stream: int = 0) -> Frame:
    """The frame that says `value`. ValueError when it does not fit in one."""
    kind = _KIND_OF[type(value)]
    payload = _to_json(value)
    if len(payload) > _LIMITS[kind][1]:
        raise ValueError(f"{type(value).__name__} of {len(payload)} bytes does not fit in a frame")
    return Frame(stream, kind, payload)


def fit(report: Report) -> Report:
    """The report, with the last models of the longest lists left out until it fits in a frame; `error` then says so.

    Names lose their control characters, or what bears them is left out. ValueError when it is not the models that make it large.
    """
    report = clean_report(report)
    while len(_to_json(report)) > MAX_REPORT:
        keep = max((len(engine.models) for engine in report.engines), default=0) // 2
        if not keep:
            raise ValueError(f"a report of more than {MAX_REPORT} bytes")
        report = msgspec.structs.replace(report, engines=[_shorten(engine, keep) for engine in report.engines])
    return report


def _shorten(engine: EngineReport, keep: int) -> EngineReport:
    if len(engine.models) <= keep:
        return engine
    return msgspec.structs.replace(engine, models=engine.models[:keep], error=f"only its first {keep} models are announced")


def clip(close: Close) -> Close:
    """The Close with its texts cut to MAX_NOTE and made clean: it fits in a frame whatever an engine said."""
    texts = (close.message, close.code, close.finish)
    if all(len(text) <= MAX_NOTE and text.isascii() and text.isprintable() for text in texts):
        return close
    message, code, finish = (clean(text[:MAX_NOTE]) for text in texts)
    return msgspec.structs.replace(close, message=message, code=code, finish=finish)


def size_of(receipt: Receipt) -> int:
    """Bytes that a receipt takes of MAX_RECEIPTS."""
    return len(_to_json(receipt)) + 1


def parse(kind: type[T], payload: bytes | memoryview) -> T:
    """Read a JSON payload, `parse(Hello, frame.payload)`. ProtocolError says what is wrong with it."""
    try:
        value: T = _DECODERS[kind](payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"bad {kind.__name__}: {error}") from None
    return value


def credit(stream: int, size: int) -> Frame:
    """The frame that lets the peer send `size` body bytes more."""
    return Frame(stream, CREDIT, _U32.pack(size))


def parse_credit(payload: bytes) -> int:
    """Bytes granted by a CREDIT frame that came out of a Decoder."""
    size: int = _U32.unpack(payload)[0]
    return size


def build_open(meta: Meta, body: bytes = b"") -> bytes:
    """Payload of OPEN. A large body is better written as DATA right behind: Outbound sends both in one frame, uncopied.

    ValueError when the meta does not fit in a frame.
    """
    head = _to_json(meta)
    if len(head) > MAX_PAYLOAD - _U16.size:
        raise ValueError(f"meta of {len(head)} bytes does not fit in a frame")
    return b"".join((_U16.pack(len(head)), head, body))


def parse_open(payload: bytes) -> tuple[Meta, bytes]:
    """Meta and first body bytes of an OPEN frame."""
    start = head_size(OPEN, payload)
    return parse(Meta, payload[_U16.size : start]), payload[start:]


def build_head(status: int, content_type: str, body: bytes = b"") -> bytes:
    """Payload of HEAD. A content type that no HTTP header could carry is replaced: engines are not trusted with our headers."""
    name = content_type.encode() if _is_plain(content_type) else b"application/octet-stream"
    return _ANSWER.pack(status, len(name)) + name + body


def parse_head(payload: bytes) -> Head:
    """The beginning of an answer, fit to be put into HTTP headers as it is."""
    try:
        status, length = _ANSWER.unpack_from(payload)
    except struct.error:
        raise ProtocolError("the head of a stream is cut") from None
    start = _ANSWER.size + length
    if start > len(payload):
        raise ProtocolError("the head of a stream is cut")
    name = payload[_ANSWER.size : start]
    content_type = _plain(name)
    if content_type is None or not 100 <= status <= 599:
        raise ProtocolError(f"bad HEAD: status {status}, content type {name.decode('latin-1')!r}")
    return Head(status, content_type, payload[start:])


@lru_cache(256)
def _plain(name: bytes) -> str | None:
    """A content type that an HTTP header can carry; None for others."""
    content_type = name.decode("latin-1")
    return content_type if _is_plain(content_type) else None


def head_size(kind: int, payload: bytes) -> int:
    """Bytes in front of the body in a payload: they cost no credit. ProtocolError when the payload is shorter than it says."""
    if kind == DATA:
        return 0
    try:
        size = _U16.size + _U16.unpack_from(payload)[0] if kind == OPEN else _ANSWER.size + payload[2]
    except (struct.error, IndexError):
        raise ProtocolError("the head of a stream is cut") from None
    if size > len(payload):
        raise ProtocolError("the head of a stream is cut")
    return int(size)


def _is_plain(content_type: str) -> bool:
    return len(content_type) <= 255 and content_type.isascii() and content_type.isprintable()


_Limits = tuple[int, int, int, bool]
#: kind -> least payload (without END), most payload, highest flags, on stream 0.
_LIMITS: dict[int, _Limits] = {
    HELLO: (2, MAX_GREETING, 0, True),
    CHALLENGE: (2, MAX_GREETING, 0, True),
    PROOF: (2, MAX_PAYLOAD, 0, True),
    WELCOME: (2, MAX_PAYLOAD, 0, True),
    GOODBYE: (2, MAX_GREETING, 0, True),
    REPORT: (2, MAX_PAYLOAD, 0, True),
    DRAIN: (0, MAX_GREETING, 0, True),
    PING: (0, 64, 0, True),
    PONG: (0, 64, 0, True),
    RECEIPTS: (2, MAX_PAYLOAD, 0, True),
    RECEIVED: (2, 256, 0, True),
    COMMAND: (2, MAX_GREETING, 0, True),
    PROGRESS: (2, MAX_PAYLOAD, 0, True),
    OPEN: (_U16.size, MAX_PAYLOAD, END, False),
    DATA: (1, MAX_PAYLOAD, END, False),
    HEAD: (_ANSWER.size, MAX_PAYLOAD, END, False),
    CREDIT: (_U32.size, _U32.size, 0, False),
    CANCEL: (0, 0, 0, False),
    CLOSE: (2, MAX_PAYLOAD, 0, False),
}


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. ValueError when it breaks the limits of its kind: that is a bug at this end."""
    wrong = _fault(len(frame.payload), frame.stream, frame.kind, int(frame.end), _LIMITS)
    if wrong:
        raise ValueError(wrong)
    return pack_header(len(frame.payload), frame.stream, frame.kind, frame.end) + frame.payload


class Decoder:
    """Cuts the messages of one peer into frames, and refuses what that peer has no business to say."""

    def __init__(self, kinds: frozenset[int] = KINDS) -> None:
        #: The limits of the kinds that the peer may send: FROM_SERVER, FROM_AGENT.
        self._limits = {kind: _LIMITS[kind] for kind in kinds}

    def feed(self, message: bytes | str) -> list[Frame]:
        """All frames of one message, in order; ProtocolError leaves none of them. JSON payloads are not read yet: see parse."""
        size = len(message)
        if isinstance(message, str) or not 0 < size <= MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} {'bytes' if isinstance(message, bytes) else 'characters'}")
        frames: list[Frame] = []
        limits, start = self._limits, 0
        while start < size:
            if size - start < HEADER_SIZE:
                raise ProtocolError("a header is cut")
            length, stream, kind, flags = _unpack(message, start)
            rule = limits.get(kind)
            # almost every frame is well: what is wrong with it is found out afterwards
            if rule is None or not rule[0] <= length <= rule[1] or flags > rule[2] or (stream == 0) is not rule[3]:
                wrong = _fault(length, stream, kind, flags, limits)
                if wrong:
                    raise ProtocolError(wrong)
            start += HEADER_SIZE
            stop = start + length
            if stop > size:
                raise ProtocolError("a payload is cut")
            frames.append(Frame(stream, kind, message[start:stop], flags == END))
            start = stop
        return frames


def _fault(length: int, stream: int, kind: int, flags: int, limits: dict[int, _Limits]) -> str:
    """What is wrong with a header, "" when it may stand."""
    rule = limits.get(kind)
    if rule is None:
        return f"kind {kind} is unknown, or not for the other end to say"
    least, most, allowed, control = rule
    if length > most or (length < least and not flags):
        return f"kind {kind} with a payload of {length} bytes"
    if flags > allowed:
        return f"kind {kind} with flags {flags}"
    if (stream == 0) is not control:
        return f"kind {kind} on stream {stream}"
    return ""


def negotiate(versions: Iterable[int]) -> int:
    """The best version that both ends speak; ProtocolError when there is none."""
    offered = set(versions)
    for version in VERSIONS:
        if version in offered:
            return version
    raise ProtocolError(f"no common version: offered {sorted(offered)}, spoken here {list(VERSIONS)}")
