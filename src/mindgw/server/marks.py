"""What marks a request and its answer: ids, the trace it belongs to, the headers of every answer, and a line in the log.

Our own id is the key of the ledger and is never the caller's: callers repeat theirs. A sane one of theirs comes back in
`x-request-id`, because clients look for it there; ours is always in `x-mindgw-request-id`.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

from mindgw.clock import monotonic, utcnow
from mindgw.errors import MindGWError
from mindgw.server.bodies import Headers

log = logging.getLogger("mindgw.request")

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
#: https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags; a later version than 00 may have more to say.
_TRACE = re.compile(rb"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
#: Bytes of an id, and ids for which the kernel is asked at a time.
_ID_BYTES, _IDS = 12, 256


#: Name of the scope's extension that holds the request's `Ties`.
TIES = "mindgw.ties"


class Caller(Protocol):
    """Whose key a request carries."""

    @property
    def key_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def team_id(self) -> str: ...
    @property
    def org_id(self) -> str: ...


class _Ids:
    """Ids that nobody can guess and nobody else has."""

    def __init__(self) -> None:
        # bounded: refilled when it is empty
        self._left: list[str] = []

    def take(self) -> str:
        if not self._left:
            noise = os.urandom(_ID_BYTES * _IDS).hex()
            size = 2 * _ID_BYTES
            self._left = [f"req-{noise[place : place + size]}" for place in range(0, len(noise), size)]
        return self._left.pop()


_ids = _Ids()


class Mark:
    """One request, from its head on."""

    __slots__ = ("_begun", "client_id", "more", "request_id", "traceparent")

    def __init__(self, headers: Headers, named: Mapping[bytes, bytes] | None = None, more: Headers | None = None) -> None:
        """Takes the headers of the request, with names in lower case, and, where they are at hand, the same by name; `more` headers go
        with every answer."""
        #: Ours.
        self.request_id = _ids.take()
        named = dict(headers) if named is None else named
        #: What the caller calls it; empty when it has no name, or none that is sane.
        self.client_id = _client_id(headers) if b"x-request-id" in named else ""
        #: The trace that it belongs to, as it may be passed on; empty without one in that form.
        self.traceparent = _trace(headers) if b"traceparent" in named else ""
        self.more: Headers = more or []
        #: Monotonic seconds.
        self._begun = monotonic()

    def ids(self) -> Headers:
        """The headers that name it."""
        own = self.request_id.encode()
        return [(b"x-request-id", self.client_id.encode() or own), (b"x-mindgw-request-id", own)]

    def headers(self, caller: Caller | None = None) -> Headers:
        """Headers of every answer under /v1; `caller` when it is known whose key it was."""
        out = [*self.ids(), (b"openai-version", b"2020-10-01"), (b"openai-processing-ms", b"%d" % self._ms()), *self.more]
        return [*out, (b"openai-organization", caller.org_id.encode())] if caller is not None else out

    def lines(self, caller: Caller | None = None) -> bytes:
        """The same as they stand in an answer."""
        own = self.request_id.encode()
        named = b"x-request-id: %b\r\nx-mindgw-request-id: %b\r\nopenai-version: 2020-10-01\r\nopenai-processing-ms: %d\r\n" % (
            self.client_id.encode() or own,
            own,
            self._ms(),
        )
        if self.more:
            named += as_lines(self.more)
        return b"%bopenai-organization: %b\r\n" % (named, caller.org_id.encode()) if caller is not None else named

    def report(self, path: str, status: int, code: str = "", caller: Caller | None = None) -> None:
        """The log line of a request that leaves no row in the ledger (`gateway.meter` reports those that do); `code` is that of the
        error."""
        outcome = "failed" if code else "done"
        known = {"key_id": caller.key_id, "user_id": caller.user_id, "team_id": caller.team_id, "org_id": caller.org_id} if caller else {}
        took = self._ms()
        fields = {
            "request_id": self.request_id,
            "client_request_id": self.client_id,
            **known,
            "endpoint": path[:200],
            "status": status,
            "outcome": outcome,
            "error_code": code,
            "total_ms": took,
            "started_at": utcnow() - timedelta(milliseconds=took),
        }
        log.info("%s %s %d %s", self.request_id, path[:200], status, outcome, extra={"fields": fields})

    def _ms(self) -> int:
        return int((monotonic() - self._begun) * 1000)


class Ties:
    """What joins a door to the connection that its request came on: it spares each request a task that waits."""

    __slots__ = ("leave", "mark", "wrong")

    def __init__(self) -> None:
        #: Called by the connection when nothing more can be said to the client: it left, or was told something in the door's place.
        self.leave: Callable[[], None] | None = None
        #: What the request goes by, once one of the two has said.
        self.mark: Mark | None = None
        #: What its client was told in the door's place.
        self.wrong: MindGWError | None = None

    def cut(self, wrong: MindGWError | None) -> None:
        """Called by the connection; `wrong` is what the client hears, None when it hears nothing any more."""
        self.wrong = self.wrong or wrong
        leave, self.leave = self.leave, None
        if leave is not None:
            leave()


def ties_of(scope: Any) -> Ties | None:
    """Those of an ASGI scope; None when its server is not ours."""
    found: Ties | None = (scope.get("extensions") or {}).get(TIES)
    return found


def as_lines(headers: Headers) -> bytes:
    """Headers as they stand in an answer."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def _client_id(headers: Headers) -> str:
    value = next((value for name, value in headers if name == b"x-request-id"), b"")
    return value.decode("ascii") if _SANE_ID.fullmatch(value) else ""


def _trace(headers: Headers) -> str:
    values = [value for name, value in headers if name == b"traceparent"]
    found = _TRACE.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found[2] and values[0].startswith(b"00")):
        return ""
    return found[1].decode("ascii")
