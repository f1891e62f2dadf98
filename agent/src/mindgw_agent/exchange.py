"""Carries one request to one engine and its answer back. SHELL: one task a request.

The answer leaves as the engine gave it, in whole events; nothing is taken out here. The head leaves with the first whole event, for
engines send their 200 long before they know whether they can answer. Everything that can go wrong ends in exactly one `Close`, and the
receipt of whatever reached the engine is kept before that.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from mindgw_agent import aggregate, payload, sse
from mindgw_agent.engines.client import GENERATION, NotAllowed
from mindgw_agent.engines.engine import Engine, Prepared
from mindgw_agent.engines.reply import HOLD, READ_ON, STOP, Garbled, Lost, NoConnection, Reply
from mindgw_agent.patience import Patience, Silent
from mindgw_agent.tally import Tally, error_in, error_status, error_text, until_end
from mindgw_agent.wire import MAX_ANSWER, Close, Meta, Source, Usage

#: Largest error, in bytes.
MAX_ERROR = 256 * 1024
#: Bytes that are handed over at once.
PIECE = 64 * 1024

_log = logging.getLogger(__name__)


class Outlet(Protocol):
    """The stream that the answer goes to."""

    def head(self, status: int, content_type: str, data: bytes) -> None: ...
    def data(self, data: bytes) -> None: ...
    def bill(self, close: Close) -> None:
        """Keep what the request cost, on disk; right before `close`."""

    def close(self, close: Close) -> None: ...
    @property
    def is_full(self) -> bool:
        """Nothing more should be handed over now."""

    async def writable(self) -> None:
        """Returns when more may be handed over."""


class Asked(Protocol):
    """A request as it came through the tunnel."""

    @property
    def meta(self) -> Meta: ...
    @property
    def body(self) -> bytes: ...


class Failed(Exception):
    """The engine did not do its part; `code` is one of Close."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def carry(engine: Engine, request: Asked, out: Outlet) -> None:
    """Bring the request to the engine, drive `out` until its `close`. Never raises, but for being cancelled.

    Cancelling the task closes the engine's connection at once; `close` follows when the engine's slot is known to be free. The slot is
    held until then, and after a failure too, though `close` does not wait for it there. A second cancel waits for nothing any more.
    """
    call = _Call(engine, request, out)
    try:
        prepared = call.prepare()
    except payload.Refused as refusal:
        call.refuse(refusal)
        return
    if not engine.begin(prepared.answers):
        out.close(Close("busy", message="all slots are taken", tag=request.meta.tag))
        return
    try:
        await _carry(call, prepared.answers)
    finally:
        engine.end(prepared.answers)


async def _carry(call: "_Call", answers: int) -> None:
    try:
        close = await call.run()
    except asyncio.CancelledError:
        try:
            await call.engine.until_free(answers)
        finally:
            call.close(call.ended("cancelled"))
        raise
    except Exception:  # noqa: BLE001
        # the top of a request's task: whatever was not foreseen must not leave the caller without an end
        _log.exception("request %s failed in the agent", call.meta.request_id)
        close = call.ended("failed", code="engine_error", message="the agent failed")
    call.close(close)
    if close.outcome == "failed":
        await _let_go(call.engine, answers)


async def _let_go(engine: Engine, answers: int) -> None:
    """Wait for the engine after a failure. The first cancel asks for what happens already; it is obeyed afterwards."""
    freed = asyncio.create_task(engine.until_free(answers))
    try:
        await asyncio.shield(freed)
    except asyncio.CancelledError:
        await freed
        raise


class _Call:
    """One request on its way."""

    def __init__(self, engine: Engine, request: Asked, out: Outlet) -> None:
        self.engine = engine
        self.meta = request.meta
        self.out = out
        self._body = request.body
        #: False once a folded answer proved unfaithful: it is asked for again in one piece.
        self._may_fold = True
        self._prepared = Prepared(b"", stream=False)
        self._tally = Tally()
        #: Bytes of the answer that were handed over, and whether its head was.
        self._passed = 0
        self._has_head = False
        #: Events among them, and how many of those said something.
        self._handed = (0, 0)
        #: Cuts a stream into events; what the engine calls it.
        self._splitter = sse.Splitter()
        self._content_type = ""
        #: A run that is too large to be handed over in the callback that read it.
        self._rest = b""
        #: Nothing may follow in this stream; the engine was only busy.
        self._is_over = self._is_busy = False
        #: What ended it, for the task to raise.
        self._wrong: Exception | None = None
        #: How long the engine may take.
        self._patience = Patience(request.meta)

    # -- the course of a request -----------------------------------------------------------------------------------

    def prepare(self) -> Prepared:
        """Make the body that the engine gets next. Raises payload.Refused."""
        self._prepared = self.engine.prepare(self._body, self.meta, may_fold=self._may_fold)
        self._tally = Tally(adds_up=self.engine.usage_per_answer)
        return self._prepared

    async def run(self) -> Close:
        """Ask, and ask again when the engine wants it otherwise: at most once for each of two reasons."""
        try:
            while (close := await self._ask()) is None:
                self.prepare()
            return close
        except (Failed, sse.EventTooLarge, aggregate.Broken) as wrong:
            return self.ended("failed", code=getattr(wrong, "code", "engine_protocol"), message=str(wrong))
        except NotAllowed as refused:
            return self.ended("failed", code="refused", message=str(refused))
        except Silent as silence:
            return self.ended("failed", code="engine_timeout", message=str(silence))
        except NoConnection as error:
            return self.ended("failed", code="engine_unreachable", message=f"no connection to the engine: {error}")
        except TimeoutError:
            return self.ended("failed", code="engine_timeout", message=f"no whole answer within {self.meta.timeout:g} s")
        except Garbled:
            return self.ended("failed", code="engine_protocol", message="the engine does not answer in HTTP")
        except Lost as error:
            return self.ended("failed", code="engine_error", message=f"the engine broke the connection: {error}")

    async def _ask(self) -> Close | None:
        """One call of the engine; None when another one is needed."""
        prepared, meta = self._prepared, self.meta
        reply = self.engine.client.call(("POST", meta.path), GENERATION, prepared.body, meta, prepared.stream)
        self._patience.begin(reply, meta.first_token if prepared.stream else math.inf)
        self._is_over = False
        try:
            await reply.begun()
            return await self._answer(reply)
        finally:
            self._patience.end()
            reply.end(linger=self._is_over and self._tally.error is None and not self._tally.garbage)

    async def _answer(self, reply: Reply) -> Close | None:
        if reply.status >= 400:
            return await self._error(reply)
        if reply.status != 200:
            raise Failed("engine_protocol", f"the engine answers with status {reply.status}; redirects are not followed")
        if not self._prepared.stream:
            return await self._whole(reply)
        content_type = reply.content_type.partition(";")[0].strip().lower()
        if content_type != "text/event-stream":
            raise Failed("engine_protocol", f"the engine answers with {content_type or 'no content type'} instead of a stream")
        if self._prepared.fold is not None:
            return await self._fold(reply, self._prepared.fold)
        return await self._stream(reply)

    # -- kinds of answers ------------------------------------------------------------------------------------------

    async def _stream(self, reply: Reply) -> Close:
        await self._runs(reply, self._relay)
        if self._is_busy:
            return self.ended("busy", message=error_text(self._tally.error))
        if self._tally.error is not None:
            return self.ended("failed", code="engine_error", message=error_text(self._tally.error))
        self._check_end()
        return self.ended("done", status=200)

    def _relay(self, run: bytes) -> None:
        tally = self._tally
        if not self._passed and tally.error is not None and tally.events == 1 and self.engine.busy(0, run):
            self._is_busy = True
        elif not tally.events:
            return  # comments alone are no answer yet
        elif len(run) > PIECE:
            self._rest = run
        else:
            self._hand(200, self._content_type, run)
            self._handed = (tally.events, tally.said)

    def _check_end(self) -> None:
        """Raises Failed when a stream ended that was not at its end: the end mark alone proves nothing."""
        tally = self._tally
        if not tally.events:
            raise Failed("engine_protocol", "the engine's stream is empty")
        if tally.finishes if self._is_over else tally.finishes >= self._prepared.answers:
            return
        if not (self._is_over and self.engine.lenient):
            raise Failed("engine_error", "the engine's stream ended in the middle of the answer")

    async def _fold(self, reply: Reply, fold: aggregate.Fold) -> Close | None:
        def add(run: bytes) -> None:
            for data in sse.events(run):
                if data != sse.DONE and self._tally.error is None:
                    fold.add(data)

        await self._runs(reply, add)
        error = self._tally.error
        if error is not None:
            body = msgspec.json.encode({"error": error})
            return await self._reject(error_status(error), "application/json", body)
        if not fold.whole:
            raise Failed("engine_error", "the engine's stream ended in the middle of the answer")
        if not fold.faithful:
            self._may_fold = False
            return None
        await self._pass(200, "application/json; charset=utf-8", fold.result())
        return self.ended("done", status=200)

    async def _whole(self, reply: Reply) -> Close:
        body = await reply.read(MAX_ANSWER)
        if len(body) > MAX_ANSWER:
            raise Failed("engine_protocol", f"the engine's answer is larger than {MAX_ANSWER} bytes")
        self._tally.whole(body, self._prepared.answers)
        if self._tally.garbage:
            raise Failed("engine_protocol", "the engine's answer is not a JSON object")
        await self._pass(200, reply.content_type or "application/json", body)
        return self.ended("done", status=200)

    async def _error(self, reply: Reply) -> Close | None:
        body = (await reply.read(MAX_ERROR))[:MAX_ERROR]
        if self._prepared.options and self.engine.options_refused(reply.status, body):
            return None
        return await self._reject(reply.status, reply.content_type or "text/plain", body)

    async def _reject(self, status: int, content_type: str, body: bytes) -> Close:
        """The engine's own error is the answer, unless the engine was only busy."""
        message = error_text(error_in(body))
        if self.engine.busy(status, body):
            return self.ended("busy", message=message, status=status)
        if self.engine.client_fault(status, body):
            status = 400
        await self._pass(status, content_type, body)
        return self.ended("done", message=message, status=status)

    def refuse(self, refusal: payload.Refused) -> None:
        """The request does not reach the engine: it is answered here, in OpenAI's shape."""
        status = 404 if refusal.code == "model_not_found" else 400
        error = {"message": refusal.message, "type": "invalid_request_error", "param": refusal.param or None, "code": refusal.code}
        body = msgspec.json.encode({"error": error})
        self.out.head(status, "application/json", body)
        self.out.close(Close("done", message=refusal.message, status=status, bytes=len(body), tag=self.meta.tag))

    # -- bytes -----------------------------------------------------------------------------------------------------

    async def _runs(self, reply: Reply, use: Callable[[bytes], None]) -> None:
        """Whole events as they come, counted, to `use`, while the outlet takes them. Half an event at the end is dropped, and a broken
        connection is an end like any other: what was said decides what it means."""
        self._splitter, self._content_type = sse.Splitter(), reply.content_type
        take, more = partial(self._take, use), True
        while more:
            more = await reply.each(take)
            self._patience.hold()
            if self._rest:
                await self._pass(200, self._content_type, self._rest)
                self._rest = b""
            if more:
                await self._room()
                self._patience.go_on()
        if self._wrong is not None:
            try:
                raise self._wrong
            finally:
                self._wrong = None  # it holds the frame that raised it

    def _take(self, use: Callable[[bytes], None], piece: bytes) -> int:
        """What one read brought, in the callback that read it: what ends the request is left for its task to raise."""
        try:
            verdict = self._events(piece, use)
        except (Failed, sse.EventTooLarge, aggregate.Broken) as wrong:
            self._wrong = wrong
            return STOP
        if self._tally.events:
            self._patience.heard()
        return verdict

    def _events(self, piece: bytes, use: Callable[[bytes], None]) -> int:
        run = self._splitter.feed(piece)
        if run:
            run, self._is_over = until_end(run, self._tally)
            if run:
                use(run)
            if self._tally.garbage:
                raise Failed("engine_protocol", "the engine's stream holds something other than JSON objects")
            if self._is_over:
                return STOP
        return HOLD if self._rest or (self._tally.events and self.out.is_full) else READ_ON

    async def _room(self) -> None:
        """Returns when the outlet takes more. Raises TimeoutError at the end of all patience."""
        if self.out.is_full:
            async with asyncio.timeout_at(self._patience.over_at):
                await self.out.writable()

    async def _pass(self, status: int, content_type: str, data: bytes) -> None:
        """Hand bytes over in pieces, as the outlet takes them."""
        for start in range(0, max(1, len(data)), PIECE):
            if start:
                await self._room()
            self._hand(status, content_type, data[start : start + PIECE] if len(data) > PIECE else data)
        self._handed = (self._tally.events, self._tally.said)

    def _hand(self, status: int, content_type: str, piece: bytes) -> None:
        """Hand a piece over; the first one goes with the head."""
        if self._has_head:
            self.out.data(piece)
        else:
            self._has_head = True
            self.out.head(status, content_type, piece)
        self._passed += len(piece)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self, close: Close) -> None:
        """The end. A failure before anything was made costs nobody anything, and so does an engine that was only busy."""
        if close.outcome in {"done", "cancelled"} or (close.outcome == "failed" and close.usage is not None):
            self.out.bill(close)
        self.out.close(close)

    def ended(self, outcome: Any, *, code: str = "", message: str = "", status: int = 0) -> Close:
        """The last word about this request."""
        tally = self._tally
        return Close(
            outcome,
            code=code,
            message=message[:1000],
            usage=self._usage(outcome, status),
            events=self._handed[0] if outcome == "cancelled" else tally.events,
            bytes=self._passed,
            finish=tally.finish,
            tag=self.meta.tag,
            status=status,
        )

    def _usage(self, outcome: str, status: int) -> Usage | None:
        """The engine's own numbers, or else what was counted here; None where nothing was made.

        Of an answer that nobody waited for, only what had been handed over counts.
        """
        tally = self._tally
        if outcome == "cancelled" and (not self._passed or self._handed[0] < tally.events):
            known = tally.usage or Usage(prompt=payload.estimate_tokens(self._body))
            return Usage(prompt=known.prompt, completion=self._handed[1], cached=known.cached, source="counted")
        if tally.usage is not None:
            return tally.usage
        if outcome == "busy" or status >= 400 or (outcome == "failed" and not tally.events):
            return None
        source: Source = "estimated" if outcome == "done" else "counted"
        return Usage(prompt=payload.estimate_tokens(self._body), completion=tally.said, source=source)
