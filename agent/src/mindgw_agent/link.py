"""One connection to the server: `session` decides what is said, this room only carries it.

One task reads, one writes, one watches the clock, one brings receipts, and each request has one that drives the engine. When the
connection ends, all of them are ended; those that drive the engine may take a while longer, see `Offer`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from mindgw_agent import clock, events
from mindgw_agent.delivery import Delivery
from mindgw_agent.offer import Offer, cancel
from mindgw_agent.outbox import Outbox
from mindgw_agent.session import Session
from mindgw_agent.wire import Close, Goodbye, Meta, ProtocolError, Receipt, Receipts, Received, Usage

log = logging.getLogger("mindgw.agent")

#: Seconds from the upgrade to the WELCOME.
GREETING = 10.0
#: Seconds between looks at the clock, and between measurements of the round trip.
TICK = 1.0
PING_EVERY = 10.0
#: Seconds that an agent which leaves waits for its last receipts to be acknowledged.
LAST_RECEIPTS = 2.0
#: Bytes of one message: less than may be, so that what is urgent never waits behind much.
MESSAGE = 256 * 1024
#: WebSocket close codes.
NORMAL, PROTOCOL_ERROR = 1000, 1002


class Answer:
    """The way of one answer to the server; see `exchange.Outlet`."""

    __slots__ = ("_heard", "_outbox", "_room", "_session", "_wake", "closed", "meta", "stream", "task")

    def __init__(
        self, session: Session, outbox: Outbox, wake: Callable[[], None], heard: Callable[[Close], None], request: events.Request
    ) -> None:
        self._session = session
        #: Takes what the request cost.
        self._outbox = outbox
        self._wake = wake
        #: Told how the request ended.
        self._heard = heard
        self.stream = request.stream
        self.meta: Meta = request.meta
        #: Set when the server has taken enough for the engine to be read on.
        self._room = asyncio.Event()
        #: The request has been closed.
        self.closed = False
        #: Drives the engine; set when it has begun.
        self.task: asyncio.Task[None] | None = None

    def head(self, status: int, content_type: str, data: bytes) -> None:
        self._session.head(self.stream, status, content_type, data)
        self._wake()

    def data(self, data: bytes) -> None:
        self._session.data(self.stream, data)
        self._wake()

    def bill(self, close: Close) -> None:
        """Keeps the receipt, whether the link still stands or not; a server that gave no tag wants none."""
        if close.outcome == "busy" or not self.meta.tag or self.closed:
            return
        usage = close.usage or Usage(source="counted")
        self._outbox.append(
            Receipt(
                tag=self.meta.tag,
                outcome=close.outcome,
                prompt=usage.prompt,
                completion=usage.completion,
                cached=usage.cached,
                source=usage.source,
                events=close.events,
                bytes=close.bytes,
                at=clock.unix_ms(),
            )
        )

    def close(self, close: Close) -> None:
        """Ends the request; only the first call counts."""
        if self.closed:
            return
        self.closed = True
        self._heard(close)
        self._session.close(self.stream, close if close.tag else msgspec.structs.replace(close, tag=self.meta.tag))
        self._wake()

    @property
    def is_full(self) -> bool:
        return not self._session.writable(self.stream)

    async def writable(self) -> None:
        while not self._session.writable(self.stream):
            self._room.clear()
            await self._room.wait()

    def resume(self) -> None:
        self._room.set()


class Link:
    """A connection from its upgrade to its end. Make it, then await `run` once."""

    def __init__(
        self,
        socket: ClientConnection,
        session: Session,
        offer: Offer[Any],
        outbox: Outbox,
        keep_epoch: Callable[[int], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._session = session
        self._offer = offer
        self._outbox = outbox
        #: Brings receipts, from the WELCOME on.
        self._delivery: Delivery | None = None
        #: Writes an epoch to the disk.
        self._keep_epoch = keep_epoch
        #: Called when something changed that a status shows.
        self._changed = changed
        #: Set when there may be something to send.
        self._wake = asyncio.Event()
        #: Requests whose engine is not known to be free, by stream; at most as many as there are slots.
        self._answers: dict[int, Answer] = {}
        #: Moment of the WELCOME on the loop's clock; None before it.
        self.ready_at: float | None = None
        #: The same moment for people, RFC 3339.
        self.ready_since: str | None = None
        #: The server's last word, if it said one.
        self.goodbye: Goodbye | None = None
        #: Why the connection was given up, for people.
        self.error = ""
        #: Round trip in milliseconds; None before it was measured.
        self.rtt_ms: float | None = None
        #: The operator ends this agent: close when nothing runs any more.
        self._leaving = False
        #: Moment on the loop's clock at which it waits for no more acknowledgements; None while other things keep it.
        self._patience: float | None = None
        #: Tasks that end with the link.
        self._tasks: list[asyncio.Task[None]] = []
        self._handlers: dict[type, Callable[[Any], Awaitable[None] | None]] = {
            events.Proving: self._prove,
            events.Ready: self._welcomed,
            events.Request: self._begin,
            events.Cancel: self._cancel,
            events.Writable: self._resume,
            events.DrainAsked: self._drain_asked,
            Received: self._received,
            Goodbye: self._dismissed,
        }

    async def run(self) -> None:
        """Speak until the connection ends, for whatever reason; `goodbye` and `error` tell it afterwards. Cancels its requests."""
        self._tasks += (asyncio.create_task(self._write()), asyncio.create_task(self._watch()))
        try:
            self._session.start()
            self._wake.set()
            await self._read()
        except ProtocolError as error:
            self.error = str(error)
            await self._socket.close(PROTOCOL_ERROR, "protocol error")
        except ConnectionClosed as error:
            self.error = self.error or f"the connection was lost ({error})"
        finally:
            for task in (*self._tasks, *(answer.task for answer in self._answers.values() if answer.task is not None)):
                cancel(task)
            # not the requests: an engine may take a while to let go, and the next link need not wait for that
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def report(self, now: float) -> None:
        """Tell the server what is on offer, if that is news."""
        if self.ready_at is not None and self._offer.is_news(now):
            self._session.report(self._offer.report(now))
            self._wake.set()

    def leave(self) -> None:
        """Take no more requests, carry those that run to their end, then close."""
        self._leaving = True
        if self.ready_at is not None:
            self._session.drain()
        self._wake.set()

    async def _read(self) -> None:
        now = asyncio.get_running_loop().time
        async for message in self._socket:
            if isinstance(message, str):
                raise ProtocolError("the server sent text")
            for event in self._session.receive(message, now()):
                done = self._handlers[type(event)](event)
                if done is not None:
                    await done
            self._wake.set()

    async def _write(self) -> None:
        """Everything that was said within one turn of the event loop leaves together."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._wake.wait()
                self._wake.clear()
                while message := self._session.take(MESSAGE):
                    await self._socket.send(message)
                if self.goodbye is not None or (self._leaving and self._is_done()):
                    await self._socket.close(NORMAL)
                    return

    def _is_done(self) -> bool:
        if self.ready_at is None:
            return True
        if self._answers or self._session.streams:
            return False
        loop = asyncio.get_running_loop()
        if self._patience is None:
            self._patience = loop.time() + LAST_RECEIPTS
            loop.call_at(self._patience, self._wake.set)
        return not self._outbox.waiting or loop.time() >= self._patience

    async def _watch(self) -> None:
        """Gives the connection up when the server is silent; a lost machine says nothing at all."""
        now = asyncio.get_running_loop().time
        begun = pinged = now()
        with contextlib.suppress(ConnectionClosed):
            while self._session.tick(now()) and (self.ready_at is not None or now() - begun < GREETING):
                if self.ready_at is not None and now() - pinged >= PING_EVERY:
                    pinged = now()
                    await self._ping()
                await asyncio.sleep(TICK)
            self.error = "the server fell silent"
            self._socket.transport.abort()

    async def _ping(self) -> None:
        """Measure the round trip; the answer, if it comes, comes to `_ponged`. A connection that just ended may still hold words."""
        with contextlib.suppress(ConnectionClosed):
            asyncio.ensure_future(await self._socket.ping()).add_done_callback(self._ponged)

    def _ponged(self, answer: asyncio.Future[float]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.rtt_ms = round(answer.result() * 1000, 1)

    async def _prove(self, event: events.Proving) -> None:
        await self._keep_epoch(event.epoch)
        self._session.prove(self._offer.report(asyncio.get_running_loop().time()))

    async def _welcomed(self, event: events.Ready) -> None:
        self.ready_at = asyncio.get_running_loop().time()
        self.ready_since = clock.moment()
        log.info("connected as %s (%s)", event.welcome.name, event.welcome.state)
        self._delivery = Delivery(self._outbox, self._offer.at_work, self._say)
        self._tasks.append(asyncio.create_task(self._deliver(self._delivery)))
        await self._ping()
        if self._leaving:
            self._session.drain()
        self._changed()

    def _say(self, batch: Receipts) -> None:
        self._session.receipts(batch)
        self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await delivery.run()
        except ProtocolError as error:
            self._give_up(error)

    def _received(self, event: Received) -> None:
        if self._delivery is not None:
            self._delivery.received(event.seq)

    def _begin(self, request: events.Request) -> None:
        answer = Answer(self._session, self._outbox, self._wake.set, self._offer.heard, request)
        if request.meta.tag and self._outbox.trouble:
            answer.close(Close("failed", "draining", f"the agent takes nothing new: {self._outbox.trouble}"))
            return
        if not self._offer.has(request.meta.engine):
            answer.close(Close("failed", "refused", "the agent has no such engine"))
            return
        answer.task = self._offer.start(request, answer)
        if answer.task is None:
            answer.close(Close("busy"))
            return
        self._answers[request.stream] = answer
        # not in the task itself: one that is cancelled before its first step never runs its own `finally`
        answer.task.add_done_callback(partial(self._ended, answer))

    def _ended(self, answer: Answer, task: asyncio.Task[None]) -> None:
        """The engine is done with a request, in whatever way."""
        del self._answers[answer.stream]
        self._wake.set()
        if task.cancelled():
            last = Close("cancelled")
        elif (wrong := task.exception()) is not None:
            log.error("request %s failed in the agent", answer.meta.request_id, exc_info=wrong)
            last = Close("failed", "engine_error", "the agent failed")
        else:
            last = Close("failed", "engine_protocol", "the answer has no end")
        try:
            answer.close(last)
        except ProtocolError as error:
            self._give_up(error)

    def _give_up(self, error: ProtocolError) -> None:
        """Outside of reading, where nobody hears of an exception."""
        self.error = str(error)
        self._socket.transport.abort()

    def _cancel(self, event: events.Cancel) -> None:
        answer = self._answers.get(event.stream)
        if answer is not None and answer.task is not None:
            cancel(answer.task)

    def _resume(self, event: events.Writable) -> None:
        answer = self._answers.get(event.stream)
        if answer is not None:
            answer.resume()

    def _drain_asked(self, _event: events.DrainAsked) -> None:
        log.info("the server is going away: what runs is carried to its end")

    def _dismissed(self, event: Goodbye) -> None:
        self.goodbye = event
