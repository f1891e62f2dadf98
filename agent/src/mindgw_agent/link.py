"""One connection to the server: `session` decides what is said, this room only carries it.

Messages are heard and said in the callbacks of the event loop. One task watches the clock, one brings receipts, and each request has one
that drives the engine. When the connection ends, all of them are ended; those that drive the engine may take a while longer, see `Offer`.

What is said within one turn of the event loop leaves in one message, at its end. Only the middle of answers waits for longer, a
millisecond or two, when many streams are open; whatever else is said takes it along.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mindgw_agent import clock, events
from mindgw_agent.answer import Answer
from mindgw_agent.delivery import Delivery
from mindgw_agent.offer import Offer, cancel
from mindgw_agent.orders import Orders
from mindgw_agent.outbox import Outbox
from mindgw_agent.session import Session
from mindgw_agent.websocket import WebSocket
from mindgw_agent.wire import Close, Command, Goodbye, Progress, ProtocolError, Receipts, Received

log = logging.getLogger("mindgw.agent")

#: Seconds from the upgrade to the WELCOME. A server to which a thousand agents come back at once lets them in one after the other.
GREETING = 30.0
#: Seconds between looks at the clock, and between measurements of the round trip.
TICK = 1.0
PING_EVERY = 10.0
#: Seconds that an agent which leaves waits for its last receipts to be acknowledged.
LAST_RECEIPTS = 2.0
#: Bytes of one message: less than may be, so that what is urgent never waits behind much.
MESSAGE = 256 * 1024
#: WebSocket close code.
PROTOCOL_ERROR = 1002
#: With so many requests at work what is in the middle of an answer may wait, and for so many seconds after the message before; with very
#: many for longer.
BUSY, VERY_BUSY = 16, 500
WAIT, LONG_WAIT = 0.001, 0.002


class Link:
    """A connection from its upgrade to its end. Make it, then await `run` once."""

    def __init__(
        self,
        socket: WebSocket,
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
        self._loop = asyncio.get_running_loop()
        #: A flush comes at the end of this turn; or at a moment, when that is not None.
        self._is_due = False
        self._later: asyncio.TimerHandle | None = None
        #: When the last message left, on the loop's clock.
        self._flushed_at = 0.0
        #: Messages that came while an epoch is written; None while none is. Bounded: by one read, for reading pauses meanwhile.
        self._held: list[bytes | str] | None = None
        #: Writes the epoch; the link's end does not cut that short.
        self._keeping: asyncio.Task[None] | None = None
        #: What ended the link at this end, to be raised.
        self._failure: Exception | None = None
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
        #: What the server's operator says of this worker, once it is known: active, pending, draining or quarantined.
        self.standing = ""
        #: Carries out commands of the server; None: nobody does.
        self.orders: Orders | None = None
        #: Moment on the loop's clock at which it waits for no more acknowledgements; None while other things keep it.
        self._patience: float | None = None
        #: Tasks that end with the link.
        self._tasks: list[asyncio.Task[None]] = []
        self._handlers = self._wired()

    def _wired(self) -> dict[type, Callable[[Any], None]]:
        """What is done about each event of the session."""
        return {
            events.Proving: self._prove,
            events.Ready: self._welcomed,
            events.Request: self._begin,
            events.Cancel: self._cancel,
            events.Writable: self._resume,
            events.DrainAsked: self._drain_asked,
            Received: self._received,
            Command: self._commanded,
            Goodbye: self._dismissed,
        }

    async def run(self) -> None:
        """Speak until the connection ends, for whatever reason; `goodbye` and `error` tell it afterwards. Cancels its requests."""
        self._tasks.append(asyncio.create_task(self._watch()))
        try:
            self._session.start()
            self.flush()
            self._socket.listen(self)
            lost = await asyncio.shield(self._socket.lost)
        finally:
            self._settle()
            for task in (*self._tasks, *(answer.task for answer in self._answers.values() if answer.task is not None)):
                cancel(task)
            # not the requests: an engine may take a while to let go, and the next link need not wait for that
            await asyncio.gather(*self._tasks, *([self._keeping] if self._keeping is not None else []), return_exceptions=True)
        failure = self._failure or (lost if not isinstance(lost, OSError) else None)
        if failure is not None:
            raise failure
        if self._socket.why:
            self.error = self.error or f"the connection was lost ({self._socket.why})"

    def report(self, now: float) -> None:
        """Tell the server what is on offer, if that is news."""
        if self.ready_at is not None and self._offer.is_news(now):
            self._session.report(self._offer.report(now))
            self.say()

    def leave(self) -> None:
        """Take no more requests, carry those that run to their end, then close."""
        self._leaving = True
        if self.ready_at is not None:
            self._session.drain()
        self.say()

    # -- what the socket calls -------------------------------------------------------------------------------------

    def message(self, message: bytes | str) -> None:
        if self._held is not None:
            self._held.append(message)
            return
        if self.error:
            return  # this end has given up
        try:
            if isinstance(message, str):
                raise ProtocolError("the server sent text")
            for event in self._session.receive(message, self._loop.time()):
                self._handlers[type(event)](event)
        except ProtocolError as error:
            self.error = str(error)
            self._socket.close(PROTOCOL_ERROR, "protocol error")
            return
        if self._session.is_urgent or self._leaving or self.goodbye is not None:
            self.say()
        elif self._session.has_words:
            self.say_soon()

    def ponged(self, seconds: float) -> None:
        self.rtt_ms = round(seconds * 1000, 1)

    def room(self) -> None:
        self.flush()
        if not self._socket.is_full:
            for answer in self._answers.values():
                answer.resume()

    @property
    def is_jammed(self) -> bool:
        return self._socket.is_full

    # -- what leaves -----------------------------------------------------------------------------------------------

    def say(self) -> None:
        """Something is to leave: at the end of this turn."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def say_soon(self) -> None:
        """Something is to leave that may wait for others on a busy link."""
        if self._is_due or self._later is not None:
            return
        at_work = len(self._answers)
        wait = WAIT if at_work < VERY_BUSY else LONG_WAIT
        left = self._flushed_at + wait - self._loop.time()
        if at_work < BUSY or left <= 0:
            self.say()
        else:
            self._later = self._loop.call_later(left, self.flush)

    def flush(self) -> None:
        """Everything that was said and can leave does."""
        self._settle()
        socket, session = self._socket, self._session
        try:
            while not socket.is_full and (message := session.take(MESSAGE)):
                socket.send(message)
        except ProtocolError as error:
            self._give_up(error)
        self._flushed_at = self._loop.time()
        if self.goodbye is not None or (self._leaving and not socket.is_full and self._is_done()):
            socket.close()

    def _settle(self) -> None:
        """No flush is due any more."""
        self._is_due = False
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _is_done(self) -> bool:
        if self.ready_at is None:
            return True
        if self._answers or self._session.streams:
            return False
        if self._patience is None:
            self._patience = self._loop.time() + LAST_RECEIPTS
            self._loop.call_at(self._patience, self.say)
        return not self._outbox.waiting or self._loop.time() >= self._patience

    # -- the clock -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Gives the connection up when the server is silent; a lost machine says nothing at all."""
        now = self._loop.time
        begun = pinged = now()
        while self._session.tick(now()) and (self.ready_at is not None or now() - begun < GREETING):
            if self.ready_at is not None and now() - pinged >= PING_EVERY:
                pinged = now()
                self._socket.ping()
            await asyncio.sleep(TICK)
        self.error = "the server fell silent"
        self._socket.abort()

    # -- what the server said --------------------------------------------------------------------------------------

    def _prove(self, event: events.Proving) -> None:
        self._held = []
        self._socket.pause()
        self._keeping = asyncio.create_task(self._keep(event.epoch))

    async def _keep(self, epoch: int) -> None:
        """The epoch is on the disk before the proof leaves; what comes meanwhile is heard afterwards."""
        try:
            await self._keep_epoch(epoch)
        except Exception as error:
            self._failure = error
            self._socket.close()
            raise
        self._session.prove(self._offer.report(self._loop.time()))
        held, self._held = self._held or [], None
        for message in held:
            self.message(message)
        self.say()
        self._socket.resume()

    def _welcomed(self, event: events.Ready) -> None:
        self.ready_at = self._loop.time()
        self.ready_since = clock.moment()
        self.standing = event.welcome.state
        log.info("connected as %s (%s)", event.welcome.name, event.welcome.state)
        self._delivery = Delivery(self._outbox, self._offer.at_work, self._say)
        self._tasks.append(asyncio.create_task(self._deliver(self._delivery)))
        self._socket.ping()
        if self._leaving:
            self._session.drain()
        self._changed()

    def _say(self, batch: Receipts) -> None:
        self._session.receipts(batch)
        self.say()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await delivery.run()
        except ProtocolError as error:
            self._give_up(error)

    def _received(self, event: Received) -> None:
        if self._delivery is not None:
            self._delivery.received(event.seq)

    def _commanded(self, command: Command) -> None:
        if self.orders is not None:
            self.orders.begin(command, self._answer)
        else:
            self._answer(Progress(id=command.id, done=True, error="unsupported", note="nobody here carries out commands"))

    def _answer(self, progress: Progress) -> None:
        if self._socket.lost.done():
            return  # it may go on for longer than the link that asked for it
        try:
            self._session.progress(progress)
        except ProtocolError as error:
            self._give_up(error)
        self.say()

    def _begin(self, request: events.Request) -> None:
        answer = Answer(self._session, self._outbox, self, self._offer.heard, request)
        if request.meta.tag and self._outbox.trouble:
            answer.close(Close("failed", "draining", f"the agent takes nothing new: {self._outbox.trouble}"))
            return
        refusal = self._offer.refusal(request.meta)
        if refusal is not None:
            answer.close(refusal)
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
        if self._leaving:
            self.say()
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
        self._socket.abort()

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
