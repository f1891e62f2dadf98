"""The OpenAI door, as plain ASGI: reads a request, feeds its exchange, carries out the effects.

No framework stands in this path. The lane of a request is one coroutine that sends what the exchange wrote, beside one task
that waits for the client to hang up. What the lane writes is bounded by the worker's credit, which is paid when it was sent.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from mindgw import errors
from mindgw.core import sse
from mindgw.gateway import signals
from mindgw.gateway.exchange import Exchange
from mindgw.gateway.pipeline import Pipeline
from mindgw.server import problems
from mindgw.server.bodies import Answered, Headers, Hungup, linger, read_body, unread
from mindgw.server.cors import Cors
from mindgw.server.marks import Mark, Ties, ties_of
from mindgw.server.models import answer_models

log = logging.getLogger("mindgw.server")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Takes a caller of the pipeline's; the body of its answer. Raises MindGWError.
Made = Callable[[Any], Awaitable[bytes]]

#: What a key has used.
USAGE = "/v1/me/usage"
HOT = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

_JSON = (b"content-type", b"application/json")
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class OpenAIDoor:
    """`/v1`: the hot endpoints through the pipeline, the list of models from memory."""

    def __init__(
        self, pipeline: Pipeline, body_limit: int, cors: Cors, usage: Callable[[str, Any], Awaitable[bytes]] | None = None
    ) -> None:
        """`usage` takes the query of `USAGE` and a caller; None: there is no such path."""
        self._usage = usage
        self._pipeline = pipeline
        self._body_limit = body_limit
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request; nobody speaks anything else here."""
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close"})  # before the upgrade: HTTP 403
            return
        try:
            await self._serve_one(scope, receive, send)
        except Exception:  # the top of a request: whatever it is, the client must hear something
            log.exception("a request for %s failed", scope["path"][:200])
            origin = next((value for name, value in scope["headers"] if name.lower() == b"origin"), None)
            body = problems.body(errors.InternalError())
            await send_whole(send, HTTPStatus.INTERNAL_SERVER_ERROR, body, self._cors.headers(origin))

    async def _serve_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        named = dict(headers)
        address = scope["client"][0] if scope.get("client") else ""
        ties = ties_of(scope)
        mark = ties.mark if ties is not None else None
        mark = mark or Mark(headers, named, self._cors.headers(named.get(b"origin")) if self._cors.is_on else None)
        if ties is not None:
            ties.mark = mark
        if path in HOT and scope["method"] == "POST":
            lane = Lane()
            if ties is not None:
                ties.leave = lane.leave
            head = signals.Head(mark.request_id, path, headers, mark.traceparent, address)
            await self._relay(head, lane, mark, receive, send, ties)
        elif scope["method"] == "OPTIONS" and (allowed := self._cors.preflight(headers)):
            mark.report(path, HTTPStatus.NO_CONTENT)
            await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT, "headers": [*mark.ids(), *allowed]})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await self._answer((scope["method"], path, address), headers, mark, send, self._models(path))
        elif path == USAGE and self._usage is not None:
            used = partial(self._usage, scope.get("query_string", b"").decode("latin-1"))
            await self._answer((scope["method"], path, address), headers, mark, send, used)
        else:
            wrong: errors.MindGWError = errors.NotFound(f"Unknown path: {path[:200]}.", code="unknown_url")
            extra: Headers = []
            if path in HOT:
                wrong, extra = errors.MethodNotAllowed(), [(b"allow", b"POST")]
            mark.report(path, wrong.status, wrong.code)
            await turn_away(send, receive, headers, wrong, [*mark.headers(), *extra], mark.request_id)

    def _models(self, path: str) -> Made:
        async def made(caller: Any) -> bytes:
            return answer_models(self._pipeline.models(caller), path)

        return made

    async def _answer(self, asked: tuple[str, str, str], headers: Headers, mark: Mark, send: Send, made: Made) -> None:
        """What is read and not streamed. `asked`: how, for what, and from where."""
        method, path, address = asked
        caller = None
        try:
            if method not in ("GET", "HEAD"):
                raise errors.MethodNotAllowed
            caller = await self._pipeline.identify(headers, path, address)
            body = await made(caller)
        except errors.MindGWError as wrong:
            mark.report(path, wrong.status, wrong.code, caller)
            allow = [(b"allow", b"GET, HEAD")] if isinstance(wrong, errors.MethodNotAllowed) else []
            more = [*mark.headers(caller), *allow, *problems.headers(wrong)]
            await send_whole(send, wrong.status, problems.body(wrong, mark.request_id), more, method == "HEAD")
        else:
            mark.report(path, HTTPStatus.OK, caller=caller)
            await send_whole(send, HTTPStatus.OK, body, mark.headers(caller), method == "HEAD")

    async def _relay(self, head: signals.Head, lane: "Lane", mark: Mark, receive: Receive, send: Send, ties: Ties | None) -> None:
        exchange = self._pipeline.open(head, lane)
        reply = Reply(exchange, mark, send, self._pipeline.clock)
        try:
            await self._converse(exchange, lane, reply, receive, ties)
        finally:
            if exchange.caller is None:
                mark.report(head.path, *reply.end)

    async def _converse(self, exchange: Exchange, lane: "Lane", reply: "Reply", receive: Receive, ties: Ties | None) -> None:
        try:
            if lane.effects:  # its head was enough to refuse it
                await reply.turn_away(lane.effects[0], receive)
                return
            body = await self._read(exchange, lane, receive)
        except Answered:
            await reply.turn_away(lane.effects[0], receive)
            return
        except Hungup:
            wrong = ties.wrong if ties is not None else None
            if wrong is not None:
                reply.end = wrong.status, wrong.code
            self._pipeline.post(exchange, signals.Refused(wrong) if wrong is not None else signals.Gone())
            return
        except errors.MindGWError as refusal:
            self._pipeline.post(exchange, signals.Refused(refusal))
            await reply.turn_away(lane.effects[0], receive)
            return
        self._pipeline.post(exchange, signals.Received(body))
        watcher = asyncio.ensure_future(_hangs_up(receive, lane)) if ties is None else None
        try:
            await self._serve(exchange, lane, reply)
        finally:
            if watcher is not None:
                watcher.cancel()
            self._pipeline.post(exchange, signals.Gone())

    async def _read(self, exchange: Exchange, lane: "Lane", receive: Receive) -> bytes:
        """Its body; raises what `read_body` does. While it is still asked whose key it is, a refusal need not wait for a client that may
        only begin to send once it is told to."""
        headers = exchange.head.headers
        reading = read_body(receive, headers, self._body_limit, lane.effects)
        if exchange.caller is not None or not unread(headers):
            return await reading
        body, refusal = asyncio.ensure_future(reading), asyncio.ensure_future(lane.wait())
        try:
            await asyncio.wait((body, refusal), return_when=asyncio.FIRST_COMPLETED)
            if not body.done() and lane.effects:
                raise Answered
            return await body
        finally:
            refusal.cancel()
            body.cancel()

    async def _serve(self, exchange: Exchange, lane: "Lane", reply: "Reply") -> None:
        while not lane.gone:
            for effect in lane.take():
                if await reply.carry_out(effect):
                    return
            if not lane.effects:
                self._pipeline.post(exchange, signals.Drained())
                await lane.wait()


def beside(app: Any, door: OpenAIDoor) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The application, in which `/v1/` is the door's at once: the framework would take as long to find it as the door to serve it."""

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        found: Awaitable[None] = (door if scope["type"] == "http" and scope["path"].startswith("/v1/") else app)(scope, receive, send)
        return found

    return serve


class Lane:
    """Effects on their way from an exchange to its client (`pipeline.Lane`)."""

    __slots__ = ("_waiter", "effects", "gone")

    def __init__(self) -> None:
        #: What is to be done, in order. Bounded by the credit of the stream: the worker stops when it is not paid.
        self.effects: list[signals.Effect] = []
        #: True when the client hung up.
        self.gone = False
        self._waiter: asyncio.Future[None] | None = None

    def perform(self, effects: list[signals.Effect]) -> None:
        """Called by the pipeline."""
        self.effects += effects
        self.wake()

    def take(self) -> list[signals.Effect]:
        """What is to be done now; neighbouring writes become one."""
        effects, self.effects = self.effects, []
        if len(effects) < 2:
            return effects
        merged: list[signals.Effect] = []
        parts: list[bytes] = []
        for effect in effects:
            if isinstance(effect, signals.Write):
                parts.append(effect.data)
                continue
            if parts:
                merged.append(signals.Write(b"".join(parts)))
                parts = []
            merged.append(effect)
        if parts:
            merged.append(signals.Write(b"".join(parts)))
        return merged

    def leave(self) -> None:
        """Called when the client hung up."""
        self.gone = True
        self.wake()

    async def wait(self) -> None:
        """Returns when there is something to do or the client is gone."""
        if self.effects or self.gone:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        """Ends a wait."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Reply:
    """Writes one answer to an ASGI client."""

    __slots__ = ("_clock", "_exchange", "_mark", "_send", "end")

    def __init__(self, exchange: Exchange, mark: Mark, send: Send, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._clock = clock
        self._mark = mark
        self._send = send
        #: Status and code of the error that it heard; those of a client which left before there was one.
        self.end = (499, "client_disconnected")

    async def carry_out(self, effect: signals.Effect) -> bool:
        """Does it; True when the answer is complete."""
        if isinstance(effect, signals.Write):
            await self._send({"type": "http.response.body", "body": effect.data, "more_body": True})
        elif isinstance(effect, signals.Begin):
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_STREAM, *effect.headers, *self._common()]})
        elif isinstance(effect, signals.Answer):
            await send_whole(self._send, effect.status, effect.body, [*effect.headers, *self._common()])
        elif isinstance(effect, signals.Fail):
            await self._fail(effect)
        elif isinstance(effect, signals.End):
            await self._send({"type": "http.response.body", "body": b""})
        return isinstance(effect, signals.Answer | signals.Fail | signals.End)

    async def _fail(self, effect: signals.Fail) -> None:
        self.end = effect.error.status, effect.error.code
        body = problems.body(effect.error, self._mark.request_id)
        if effect.begun:
            await self._send({"type": "http.response.body", "body": sse.event(body)})
            return
        await send_whole(self._send, effect.error.status, body, [*self._common(), *problems.headers(effect.error)])

    async def turn_away(self, effect: signals.Effect, receive: Receive) -> None:
        """The failure of a request whose body was not read to its end."""
        assert isinstance(effect, signals.Fail)
        self.end = effect.error.status, effect.error.code
        await turn_away(self._send, receive, self._exchange.head.headers, effect.error, self._common(), self._mark.request_id)

    def _common(self) -> Headers:
        return [*self._mark.headers(self._exchange.caller), *self._exchange.notes(self._clock)]


async def send_whole(send: Send, status: int, body: bytes, headers: Headers, head_only: bool = False) -> None:
    """One JSON answer in one piece."""
    await send(_start(status, body, headers))
    await send({"type": "http.response.body", "body": b"" if head_only else body})


async def turn_away(send: Send, receive: Receive, asked: Headers, wrong: errors.MindGWError, headers: Headers, request_id: str) -> None:
    """An error for a request with the headers `asked`, whose body was not read to its end: its client hears it all the same."""
    body = problems.body(wrong, request_id)
    headers = [*headers, *problems.headers(wrong)]
    if not unread(asked):
        await send_whole(send, wrong.status, body, headers)
        return
    await send(_start(wrong.status, body, [*headers, (b"connection", b"close")]))
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await linger(receive, asked)
    await send({"type": "http.response.body", "body": b""})


def _start(status: int, body: bytes, headers: Headers) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [_JSON, (b"content-length", b"%d" % len(body)), *headers]}


async def _hangs_up(receive: Receive, lane: Lane) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    lane.leave()
