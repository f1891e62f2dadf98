"""Carries one request to one engine and its answer back. SHELL: one task a request.

The answer leaves as the engine gave it, in whole events; nothing is taken out here. The head leaves with the first whole event, for
engines send their 200 long before they know whether they can answer. Everything that can go wrong ends in exactly one `Close`, and the
receipt of whatever reached the engine is kept before that.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
import msgspec

from mindgw_agent import aggregate, payload, sse
from mindgw_agent.engines.client import GENERATION, NotAllowed
from mindgw_agent.engines.engine import Engine, Prepared
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
        #: Bytes of the answer that were handed over; the head is out once there are any.
        self._passed = 0
        #: Events among them, and how many of those said something.
        self._handed = (0, 0)
        #: Ends a silence that lasts too long; None between answers.
        self._timer: asyncio.Timeout | None = None

    # -- the course of a request -----------------------------------------------------------------------------------

    def prepare(self) -> Prepared:
        """Make the body that the engine gets next. Raises payload.Refused."""
        self._prepared = self.engine.prepare(self._body, self.meta, may_fold=self._may_fold)
        self._tally = Tally(adds_up=self.engine.usage_per_answer)
        return self._prepared

    async def run(self) -> Close:
        """Ask, and ask again when the engine wants it otherwise: at most once for each of two reasons."""
        try:
            async with asyncio.timeout(self.meta.timeout):
                while (close := await self._ask()) is None:
                    self.prepare()
            return close
        except (Failed, sse.EventTooLarge, aggregate.Broken) as wrong:
            return self.ended("failed", code=getattr(wrong, "code", "engine_protocol"), message=str(wrong))
        except NotAllowed as refused:
            return self.ended("failed", code="refused", message=str(refused))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return self.ended("failed", code="engine_unreachable", message=f"no connection to the engine: {error}")
        except TimeoutError:
            return self.ended("failed", code="engine_timeout", message=f"no whole answer within {self.meta.timeout:g} s")
        except aiohttp.ClientResponseError:
            return self.ended("failed", code="engine_protocol", message="the engine does not answer in HTTP")
        except (aiohttp.ClientError, OSError) as error:
            return self.ended(
                "failed", code="engine_error", message=f"the engine broke the connection: {str(error) or type(error).__name__}"
            )

    async def _ask(self) -> Close | None:
        """One call of the engine; None when another one is needed."""
        prepared, meta = self._prepared, self.meta
        limit = meta.first_token if prepared.stream else None
        call = self.engine.client.call(("POST", meta.path), GENERATION, prepared.body, meta, prepared.stream)
        try:
            async with asyncio.timeout(limit) as self._timer, call as response:
                try:
                    return await self._answer(response)
                finally:
                    _abort(response)
        except TimeoutError:
            if self._timer is None or not self._timer.expired():
                raise
            waited = f"for {self.meta.idle:g} s" if self._tally.events else f"within {meta.first_token:g} s"
            raise Failed("engine_timeout", f"nothing came from the engine {waited}") from None

    async def _answer(self, response: aiohttp.ClientResponse) -> Close | None:
        if response.status >= 400:
            return await self._error(response)
        if response.status != 200:
            raise Failed("engine_protocol", f"the engine answers with status {response.status}; redirects are not followed")
        if not self._prepared.stream:
            return await self._whole(response)
        if response.content_type != "text/event-stream":
            raise Failed("engine_protocol", f"the engine answers with {response.content_type} instead of a stream")
        if self._prepared.fold is not None:
            return await self._fold(response, self._prepared.fold)
        return await self._stream(response)

    # -- kinds of answers ------------------------------------------------------------------------------------------

    async def _stream(self, response: aiohttp.ClientResponse) -> Close:
        content_type = response.headers.get("Content-Type", "text/event-stream")
        over = False
        async for run, last in self._runs(response):
            over = last
            if not self._passed and self._is_busy(run):
                return self.ended("busy", message=error_text(self._tally.error))
            if self._tally.events:  # comments alone are no answer yet
                await self._pass(200, content_type, run)
        if self._tally.error is not None:
            return self.ended("failed", code="engine_error", message=error_text(self._tally.error))
        self._check_end(over)
        return self.ended("done", status=200)

    def _is_busy(self, run: bytes) -> bool:
        return self._tally.error is not None and self._tally.events == 1 and self.engine.busy(0, run)

    def _check_end(self, over: bool) -> None:
        """Raises Failed when a stream ended that was not at its end: the end mark alone proves nothing."""
        tally = self._tally
        if not tally.events:
            raise Failed("engine_protocol", "the engine's stream is empty")
        if (tally.finishes if over else tally.finishes >= self._prepared.answers) or (over and self.engine.lenient):
            return
        raise Failed("engine_error", "the engine's stream ended in the middle of the answer")

    async def _fold(self, response: aiohttp.ClientResponse, fold: aggregate.Fold) -> Close | None:
        async for run, _ in self._runs(response):
            for data in sse.events(run):
                if data != sse.DONE and self._tally.error is None:
                    fold.add(data)
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

    async def _whole(self, response: aiohttp.ClientResponse) -> Close:
        body = await self._read(response, MAX_ANSWER)
        if len(body) > MAX_ANSWER:
            raise Failed("engine_protocol", f"the engine's answer is larger than {MAX_ANSWER} bytes")
        self._tally.whole(body, self._prepared.answers)
        if self._tally.garbage:
            raise Failed("engine_protocol", "the engine's answer is not a JSON object")
        await self._pass(200, response.headers.get("Content-Type", "application/json"), body)
        return self.ended("done", status=200)

    async def _error(self, response: aiohttp.ClientResponse) -> Close | None:
        body = (await self._read(response, MAX_ERROR))[:MAX_ERROR]
        if self._prepared.options and self.engine.options_refused(response.status, body):
            return None
        return await self._reject(response.status, response.headers.get("Content-Type", "text/plain"), body)

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

    async def _runs(self, response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, bool]]:
        """Whole events as they come, counted; the flag says that nothing may follow. Half an event at the end is dropped."""
        splitter = sse.Splitter()
        async for piece in self._pieces(response):
            run = splitter.feed(piece)
            if not run:
                continue
            run, over = until_end(run, self._tally)
            if run:
                yield run, over
            if self._tally.garbage:
                raise Failed("engine_protocol", "the engine's stream holds something other than JSON objects")
            if over:
                return

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Bytes as they come, while the outlet takes them. A broken connection ends them too: what was said decides what it means."""
        timer, clock = self._timer, asyncio.get_running_loop().time
        with contextlib.suppress(aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError):
            while piece := await response.content.readany():
                yield piece
                if self._tally.events and timer is not None:
                    timer.reschedule(None)
                    await self.out.writable()
                    timer.reschedule(clock() + self.meta.idle)

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """The body, and a byte more than the limit when it is larger."""
        parts: list[bytes] = []
        size = 0
        while size <= limit and (piece := await response.content.readany()):
            parts.append(piece)
            size += len(piece)
        return b"".join(parts)[: limit + 1]

    async def _pass(self, status: int, content_type: str, data: bytes) -> None:
        """Hand bytes over; the first ones go with the head."""
        for start in range(0, max(1, len(data)), PIECE):
            piece = data[start : start + PIECE]
            if start:
                await self.out.writable()
            if self._passed or start:
                self.out.data(piece)
            else:
                self.out.head(status, content_type, piece)
            self._passed += len(piece)
        self._handed = (self._tally.events, self._tally.said)

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


def _abort(response: aiohttp.ClientResponse) -> None:
    """Close the connection without waiting for anything: that is what cancels the work behind it."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()
