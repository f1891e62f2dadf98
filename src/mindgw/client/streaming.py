"""Reading a streamed chat answer: lines in, pieces of text out."""

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mindgw.client.api import Request
from mindgw.client.errors import ClientError, NotMindGW, next_step
from mindgw.client.transport import Server

#: No event of a chat stream is longer; a server that sends more is not one.
MAX_LINE = 2**20


#: How lines of an event stream begin.
_BEGINNINGS = (b"data:", b":", b"event:", b"id:", b"retry:")
_BROKEN = "try again; if it comes again, -v shows what the server says"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event added."""

    text: str = ""
    #: What a reasoning model thinks aloud.
    reasoning: str = ""
    #: Why the answer ended; empty while it goes on.
    finish: str = ""
    #: Token counts, usually with the last event.
    usage: dict[str, Any] | None = None


def pieces(lines: Iterable[bytes]) -> Iterator[Piece]:
    """Raises ClientError for an error event, a broken event, and for an answer that stops before its `[DONE]`."""
    for line in lines:
        text = line.decode("utf-8", "replace").strip()
        if not text.startswith("data:"):
            continue  # comments keep the connection alive, blank lines end an event
        data = text.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield _piece(data)
    raise ClientError("the answer broke off before its end", hint="the worker or the connection was lost; try again")


def _piece(data: str) -> Piece:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise ClientError("the server sent an event that is not JSON", hint=_BROKEN) from problem
    if not isinstance(event, dict):
        raise ClientError("the server sent an event that is not an object", hint=_BROKEN)
    error = event.get("error")
    if error:
        details = error if isinstance(error, dict) else {"message": error}
        code = str(details.get("code") or "")
        raise ClientError(str(details.get("message") or "the answer failed"), code=code, hint=next_step(code))
    usage = event.get("usage")
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        delta = {}
    return Piece(
        text=str(delta.get("content") or ""),
        reasoning=str(delta.get("reasoning_content") or delta.get("reasoning") or ""),
        finish=str(choice.get("finish_reason") or ""),
        usage=usage if isinstance(usage, dict) else None,
    )


def stream(server: Server, request: Request) -> Generator[Piece]:
    """Asks and yields the pieces as they come; closing the iterator early hangs up, which frees the worker's slot."""
    with server.open(request) as answer:
        lines = _lines(answer.readline)
        first = next((line for line in lines if line.strip()), b"")
        if first and not first.startswith(_BEGINNINGS):
            raise NotMindGW(server.url, f"its answer to {request.path} is no stream of events")
        yield from pieces(chain((first,), lines))


def _lines(readline: Any) -> Iterator[bytes]:
    while line := readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ClientError(f"the server sent an event of more than {MAX_LINE >> 10} KiB", hint=_BROKEN)
        yield line
