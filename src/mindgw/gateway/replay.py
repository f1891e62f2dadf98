"""Requests with an Idempotency-Key: each is run once, however often it is sent.

Known by API key, path and Idempotency-Key. While it runs, the same request attaches and hears what the first one hears (in one piece:
two clients never share a stream); when it is over, its answer is given again. The rules are Stripe's, in docs/how-to/retries.md.

A request that runs has a `Running`, which stands between its exchange and its client: it takes down the answer on its way, and goes on
without the client when that hangs up. What runs is known to this process alone, what is over to all that share the database.
"""

import hmac
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from mindgw import errors
from mindgw.clock import monotonic, utcnow
from mindgw.config import Idempotency
from mindgw.core import sse
from mindgw.core.payload import Peek
from mindgw.gateway import signals
from mindgw.gateway.answers import Answers, Sent
from mindgw.gateway.signals import Answer, Begin, Copied, Drained, Effect, End, Fail, Gone, Recall, Recalled, Refused, Write
from mindgw.store.replays import Ended

log = logging.getLogger("mindgw.pipeline")

HEADER = b"idempotency-key"
_PRINTABLE = re.compile(rb"[ -~]{1,255}")
#: Requests of one key that go on without a client, and clients that may wait for one answer.
DETACHED, WAITERS = 8, 16
#: Seconds after which a client should ask again for what still runs.
SOON = 5.0
#: Errors that say nothing of the request itself: whoever sends it again may have more luck.
_PASSING = (errors.PolicyError, errors.Draining)
#: Why an answer is not there.
_WHY = {
    "off": "`idempotency.keep_body` in the server's settings keeps answers for longer than two minutes",
    "too_large": "it was larger than `idempotency.max_body` in the server's settings",
    "crowded": "too many others were to be kept",
    "unreadable": "it was sealed by a key that the server does not have any more",
}


class Head(Protocol):
    """The head of a request, names of headers in lower case."""

    @property
    def request_id(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...


class Request(Protocol):
    """One exchange."""

    @property
    def head(self) -> Head: ...
    @property
    def tried(self) -> bool: ...

    #: Who carries out its effects.
    lane: Any


def given(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The Idempotency-Key, whatever it is; None when there is none."""
    for name, value in headers:
        if name == HEADER:
            return value
    return None


class Running:
    """One request that is being run, and the lane of its exchange (`pipeline.Lane`)."""

    __slots__ = (
        "client", "detached", "fingerprint", "identity", "key_id", "lack", "parts", "peek", "registry", "request", "size", "sure",
        "waiters",
    )  # fmt: skip

    def __init__(self, registry: "Replay", request: Request, facts: tuple[bytes, bytes, str, Peek]) -> None:
        self.registry = registry
        self.request = request
        self.identity, self.fingerprint, self.key_id, self.peek = facts
        #: The lane of the client that asked first; None when it hung up.
        self.client: Any = request.lane
        #: Others that wait for the same answer.
        # bounded: by WAITERS
        self.waiters: list[Request] = []
        #: True when nobody waits for it any more.
        self.detached = False
        #: True when the database has been asked about it.
        self.sure = False
        #: The stream so far, and its bytes.
        # bounded: by the largest answer that is kept
        self.parts: list[bytes] = []
        self.size = 0
        #: Why the stream is not kept; empty: it is.
        self.lack = ""

    def perform(self, effects: list[Effect]) -> None:
        """Called by the pipeline."""
        for effect in effects:
            if isinstance(effect, Write):
                self._take_down(effect.data)
        client = self.client
        if client is not None:
            client.perform(effects)
        for effect in effects:
            if isinstance(effect, Answer | Fail | End):
                self.registry.over(self, effect)
            elif client is None and isinstance(effect, Write):
                self.registry.post(self.request, Drained())

    def _take_down(self, data: bytes) -> None:
        """Signs of life are no part of the answer."""
        if self.lack or data.startswith(b":"):
            return
        if self.size + len(data) > self.registry.settings.max_body:
            self.lack = "too_large"
        elif not self.registry.answers.grow(self.key_id, len(data)):
            self.lack = "crowded"
        else:
            self.parts.append(data)
            self.size += len(data)
            return
        self.let_go()

    def let_go(self) -> None:
        """Gives the room of what was taken down to others."""
        self.parts.clear()
        self.registry.answers.shrink(self.key_id, self.size)
        self.size = 0


class Claim:
    """What one request has to do with its Idempotency-Key. `end` it, once or more often."""

    __slots__ = ("_request", "_running", "effects", "known")

    def __init__(self, request: Request, running: Running | None, effects: list[Effect], known: Copied | None = None) -> None:
        self._request = request
        self._running = running
        #: What is to be done now.
        self.effects = effects
        #: The answer, when it is known.
        self.known = known

    def hang_up(self) -> bool:
        """Its client is gone. True: it goes on all the same."""
        running = self._running
        if running is None or running.request is not self._request:
            return False
        running.client = None
        return running.registry.goes_on(running)

    def end(self) -> None:
        """It does not wait any more for what another request is told; does nothing when it did not."""
        running = self._running
        if running is not None and self._request in running.waiters:
            running.waiters.remove(self._request)
            running.registry.left(running)


class Replay:
    """All that run, and those that are over."""

    def __init__(
        self,
        settings: Idempotency,
        key: bytes,
        find: Callable[[bytes], Awaitable[Sent | None]],
        spell: Callable[[errors.MindGWError, str], bytes],
        today: Callable[[], datetime] = utcnow,
    ) -> None:
        """`key` is that of the digests, the same for all servers of one database; `find` says what the database knows of an identity;
        `spell` writes an error down for the client of the request with that id."""
        self.settings = settings
        self._keys = [hmac.digest(key, what, "sha256") for what in (b"identity", b"fingerprint")]
        self._find = find
        self._spell = spell
        self._today = today
        self.answers = Answers(settings)
        #: By identity.
        # bounded: by the requests under way
        self._running: dict[bytes, Running] = {}
        #: key id -> requests of it that run without a client.
        # bounded: by the requests under way
        self._detached: Counter[str] = Counter()
        #: Brings an event to its exchange; and monotonic seconds. Both are the pipeline's.
        self.post: Callable[[Any, signals.Event], None] = lambda exchange, event: None
        self.now: Callable[[], float] = monotonic

    @property
    def running(self) -> int:
        """Requests that are being run."""
        return len(self._running)

    # -- a request comes ------------------------------------------------------------------------------------------

    def claim(self, request: Request, key_id: str, body: bytes, peek: Peek) -> Claim:
        """To be called when all is known of a request that carries the header. From now on its lane is another one if it is the first of
        its kind. Raises BadRequest, KeyReused, Conflict for what runs or is not kept, and Draining."""
        identity, fingerprint = self._names(request.head, key_id, body)
        running = self._running.get(identity)
        if running is not None:
            return self._attach(running, request, fingerprint)
        now = self.now()
        self.answers.forget(now)
        if (sent := self.answers.get(identity, now)) is not None:
            return Claim(request, None, [], _again(sent, fingerprint))
        if self.answers.full:
            raise errors.Draining(
                "Answers to requests with an Idempotency-Key cannot be kept at the moment.", code="idempotency_unavailable", retry_after=10
            )
        running = request.lane = self._running[identity] = Running(self, request, (identity, fingerprint, key_id, peek))
        return Claim(request, running, [Recall(identity)])

    def _names(self, head: Head, key_id: str, body: bytes) -> tuple[bytes, bytes]:
        """Its identity, and the fingerprint of its body."""
        values = {value for name, value in head.headers if name == HEADER}
        value = values.pop()
        if values or not _PRINTABLE.fullmatch(value):
            why = "may be sent once only" if values else "must be 1 to 255 printable ASCII characters"
            raise errors.BadRequest(f"The Idempotency-Key {why}.", code="invalid_idempotency_key")
        named = b"\0".join((key_id.encode(), head.path.encode(), value))
        return hmac.digest(self._keys[0], named, "sha256"), hmac.digest(self._keys[1], body, "sha256")

    def _attach(self, running: Running, request: Request, fingerprint: bytes) -> Claim:
        same = running.fingerprint == fingerprint
        if running.sure and not same:
            raise errors.KeyReused
        if not same or running.peek.stream or len(running.waiters) >= WAITERS:
            raise errors.Conflict("A request with this Idempotency-Key is being run.", code="idempotency_in_progress", retry_after=SOON)
        running.waiters.append(request)
        self._watched(running)
        return Claim(request, running, [])

    async def recall(self, identity: bytes) -> None:
        """Asks the database about a request that this process knows nothing of, and tells its exchange."""
        running = self._running.get(identity)
        if running is None:  # everybody left meanwhile
            return
        sent: Sent | None = None
        event: signals.Event
        try:
            sent = await self._find(identity)
            event = _again(sent, running.fingerprint) if sent is not None else Recalled()
        except errors.MindGWError as wrong:
            event = Refused(wrong.bare())
        except Exception:  # the top of a task: whatever it is, the client must hear something
            log.exception("recalling an answer failed")
            event = Refused(errors.InternalError())
        if not self._runs(running) or running.sure:
            return
        running.sure = True
        if sent is None:  # it goes on, or fails and tells those who wait for it
            self.post(running.request, event)
            return
        self.answers.add(*sent, self.now(), written=True)
        for request in [running.request, *self._free(running)]:
            self.post(request, event)

    # -- clients leave --------------------------------------------------------------------------------------------

    def goes_on(self, running: Running) -> bool:
        """Whether a request goes on, one of whose clients has just left; if not, it is forgotten."""
        if not self._runs(running):
            return False
        if running.client is not None or running.waiters or running.detached:
            return True
        useful = not running.peek.stream or (self.settings.keep_body and not running.lack)
        if not useful or self._detached[running.key_id] >= DETACHED:
            self._free(running)
            return False
        running.detached = True
        self._detached[running.key_id] += 1
        return True

    def left(self, running: Running) -> None:
        """One that waited for the answer of another is gone."""
        if self._runs(running) and not self.goes_on(running):
            self.post(running.request, Gone())

    def _runs(self, running: Running) -> bool:
        return self._running.get(running.identity) is running

    def _watched(self, running: Running) -> None:
        """Somebody waits for it again, or it is over."""
        if running.detached:
            running.detached = False
            self._detached[running.key_id] -= 1
            if not self._detached[running.key_id]:
                del self._detached[running.key_id]

    def _free(self, running: Running) -> list[Request]:
        """It does not run any more; returns those that wait for its answer."""
        del self._running[running.identity]
        self._watched(running)
        running.let_go()
        running.lack = "over"
        waiters, running.waiters = running.waiters, []
        return waiters

    # -- a request is over ----------------------------------------------------------------------------------------

    def over(self, running: Running, effect: Answer | Fail | End) -> None:
        """The last of its effects has come: it is kept, unless no engine was asked, and whoever waits hears the same."""
        if not self._runs(running):
            return
        wrong = effect.error if isinstance(effect, Fail) else None
        ended, body = self._ended(running, effect, wrong)
        waiters = self._free(running)
        lasting = wrong is None or (running.request.tried and not isinstance(wrong, _PASSING))
        if lasting:
            self.answers.add(ended, None if ended.note else body, self.now())
        effects: list[Effect] = _copy(ended, body) if lasting else [effect]
        for waiter in waiters:
            self.post(waiter, Copied(ended.status, ended.code, effects))

    def _ended(self, running: Running, effect: Answer | Fail | End, wrong: errors.MindGWError | None) -> tuple[Ended, bytes]:
        """How it ended, and its whole answer."""
        request_id = running.request.head.request_id
        said = self._spell(wrong, request_id) if wrong is not None else b""
        if isinstance(effect, Answer):
            kind, status, body = "json", effect.status, effect.body
        elif isinstance(effect, Fail) and not effect.begun:
            kind, status, body = "json", effect.error.status, said
        else:
            kind, status, body = "sse", 200, b"".join(running.parts) + (sse.event(said) if said else b"")
        ended = Ended(
            identity=running.identity,
            key_id=running.key_id,
            request_id=request_id,
            fingerprint=running.fingerprint,
            status=status,
            code=wrong.code if wrong is not None else "",
            kind=kind,
            note=running.lack or ("too_large" if len(body) > self.settings.max_body else ""),
            done_at=self._today(),
        )
        return ended, body

    # -- the database ---------------------------------------------------------------------------------------------

    async def flush(self, write: Callable[[Sequence[Sent]], Awaitable[None]]) -> int:
        """Writes down what is over, see `Answers.flush`, and lets go of what is not needed in memory any more."""
        written = await self.answers.flush(write)
        self.answers.forget(self.now())
        return written


def _again(sent: Sent, fingerprint: bytes) -> Copied:
    """The answer of a request that is over, for one with the same name. Raises KeyReused, and Conflict when it is not kept."""
    ended, body = sent
    if ended.fingerprint != fingerprint:
        raise errors.KeyReused
    if body is None:
        how = f"status {ended.status}" + (f", {ended.code}" if ended.code else "")
        raise errors.Conflict(
            f"Request {ended.request_id} with this Idempotency-Key was completed ({how}), but its answer is not kept:"
            f" {_WHY.get(ended.note, _WHY['off'])}.",
            code="idempotency_not_kept",
        )
    return Copied(ended.status, ended.code, _copy(ended, body))


def _copy(ended: Ended, body: bytes) -> list[Effect]:
    """The answer, given again."""
    headers = [(b"idempotent-replayed", b"true"), (b"x-mindgw-original-request-id", ended.request_id.encode())]
    if ended.kind == "sse":
        return [Begin(headers), Write(body), End()]
    return [Answer(ended.status, body, headers + [(b"x-should-retry", b"false")] * (ended.status >= 400))]
