"""Checks that a server makes while we wait: their words come in lines, as it goes on."""

import json
from collections.abc import Generator
from typing import Any

from mindgw.client.api import Request
from mindgw.client.errors import ClientError, NotMindGW
from mindgw.client.transport import Server

#: No line is longer; a server that sends more is not one.
MAX_LINE = 2**20

_LOOK = "the server's log says why; then check again"


def follow(server: Server, request: Request) -> Generator[dict[str, Any]]:
    """The words of a check, the last one is that whose `state` is `done`. Raises ClientError when it breaks off before that. Closing the
    iterator early hangs up, which ends the check."""
    with server.open(request) as answer:
        while line := answer.readline(MAX_LINE + 1):
            word = _word(server, request, line)
            if word["state"] == "failed":
                raise ClientError("the check broke off", hint=_LOOK)
            yield word
            if word["state"] == "done":
                return
    raise ClientError("the check broke off: the connection was lost before its end", hint=_LOOK)


def _word(server: Server, request: Request, line: bytes) -> dict[str, Any]:
    try:
        word = json.loads(line) if len(line) <= MAX_LINE else None
    except (ValueError, RecursionError):
        word = None
    if not isinstance(word, dict) or not isinstance(word.get("state"), str):
        raise NotMindGW(server.url, f"its answer to {request.path} has a line that says nothing of a check")
    return word
