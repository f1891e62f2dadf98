"""What the mock engine answers, and whether what arrived is that: written by `engine.py`, checked by the callers in `load.py`."""

from functools import cache
from typing import Any

import msgspec

MODEL = "bench"
#: A model whose streams never go on after their first word; only the fleet of `fleet.py` has it.
HELD = "held"
#: A model that many agents of it have.
SHARED = "shared"
#: The most chunks that one stream may have.
MOST_CHUNKS = 4096
#: What a prompt costs according to the engine.
PROMPT_TOKENS = 42

_CREATED = 1_700_000_000
_PROSE = ("A gateway takes requests from many callers and hands each to an engine that is free. " * 4)[:300]
DONE = b"data: [DONE]\n\n"
#: Stands before the moment at which a chunk left the engine: nanoseconds of a clock that all processes of a machine share, in hex.
STAMP, DIGITS = b'"fp_at', 16


class Options(msgspec.Struct, frozen=True):
    include_usage: bool = False


class Asked(msgspec.Struct, frozen=True):
    """The fields of a request that the engine obeys. `bench_pace_ms` is one that no gateway knows, so it has to pass through."""

    stream: bool = False
    #: Chunks of a stream that carry text.
    max_tokens: int = 64
    stream_options: Options | None = None
    #: Milliseconds from chunk to chunk; 0 sends all at once.
    bench_pace_ms: float = 0.0


class _Delta(msgspec.Struct):
    content: str = ""


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


_event = msgspec.json.Decoder(_Event)


def usage(chunks: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": chunks, "total_tokens": PROMPT_TOKENS + chunks}


def _choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, **fields}


#: The message of an answer in one piece, as it stands in the JSON text.
_MESSAGE = msgspec.json.encode({"role": "assistant", "content": _PROSE})

#: An answer in one piece: about 600 bytes.
UNARY = msgspec.json.encode(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": _CREATED,
        "model": MODEL,
        "system_fingerprint": "fp_bench",
        "choices": [_choice(message=msgspec.Raw(_MESSAGE), logprobs=None, finish_reason="stop")],
        "usage": usage(64),
    }
)

MODELS = msgspec.json.encode(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "mindgw-bench"}]}
)


def word(index: int) -> str:
    return f"word{index} "


def _chunk(choices: list[Any], fingerprint: str = "fp_bench", **fields: Any) -> bytes:
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL}
    return b"data: " + msgspec.json.encode({**head, "system_fingerprint": fingerprint, "choices": choices, **fields}) + b"\n\n"


def event(index: int, at: int = 0) -> bytes:
    """The event with the word of that number, about 210 bytes; `at`: when it left, in nanoseconds."""
    delta = {"content": word(index)} if index else {"role": "assistant", "content": word(index)}
    return _chunk([_choice(delta=delta, logprobs=None, finish_reason=None)], f"fp_at{at:016x}")


def left_at(data: bytes) -> int | None:
    """When the first chunk in `data` left the engine; None when there is none, or when somebody has taken the moment out."""
    place = data.find(STAMP)
    if place < 0:
        return None
    digits = data[place + len(STAMP) : place + len(STAMP) + DIGITS]
    try:
        return int(digits, 16) if len(digits) == DIGITS else None  # else it is cut in two
    except ValueError:
        return None


def ending(chunks: int, *, with_usage: bool) -> bytes:
    """What follows the last word: the finish reason, the usage where it was asked for, `[DONE]`."""
    finish = _chunk([_choice(delta={}, logprobs=None, finish_reason="stop")])
    return finish + (_chunk([], usage=usage(chunks)) if with_usage else b"") + DONE


@cache
def text(chunks: int) -> str:
    """All words of a stream."""
    return "".join(map(word, range(chunks)))


def count(stream: bytes | bytearray, chunks: int) -> int:
    """Words that a stream of so many has brought so far."""
    return min(stream.count(b"data: "), chunks)


def wrong_unary(status: int, body: bytes | bytearray) -> str:
    """What is wrong with an answer in one piece; "" when it is the engine's."""
    if status != 200:
        return f"status {status}"
    return "" if _MESSAGE in body else "not the engine's answer"


def wrong_stream(status: int, body: bytes | bytearray, chunks: int) -> str:
    """What is wrong with a stream whose caller did not ask for usage; "" when it is whole."""
    if status != 200:
        return f"status {status}"
    lines = _lines(body)
    if lines.count(DONE.strip()) != 1 or lines.pop() != DONE.strip():
        return "not exactly one [DONE] at the end"
    try:
        events = [_event.decode(line[6:]) for line in lines]
    except msgspec.MsgspecError:
        return "an event that is no chunk"
    if _words(events) != text(chunks):
        return "chunks lost or out of order"
    if [choice.finish_reason for each in events for choice in each.choices if choice.finish_reason] != ["stop"]:
        return "not exactly one finish reason"
    return "usage that nobody asked for" if any(each.usage for each in events) else ""


def wrong_beginning(status: int, body: bytes | bytearray, chunks: int) -> str:
    """What is wrong with as much of a stream as has come; "" when it is how the whole begins."""
    if status != 200:
        return f"status {status}"
    whole = body[: body.rfind(b"\n\n") + 1]
    try:
        events = [_event.decode(line[6:]) for line in _lines(whole) if line != DONE.strip()]
    except msgspec.MsgspecError:
        return "an event that is no chunk"
    return "" if text(chunks).startswith(_words(events)) else "chunks lost or out of order"


def _lines(body: bytes | bytearray) -> list[bytes]:
    return [bytes(line) for line in body.split(b"\n") if line.startswith(b"data: ")]


def _words(events: list[_Event]) -> str:
    return "".join(choice.delta.content for each in events for choice in each.choices)
