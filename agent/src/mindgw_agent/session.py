"""The agent's end of a link: messages of the server in, events and messages out. No clock, no socket, no key: those are given.

The shell calls `start`, sends whatever `take` gives, and feeds every message to `receive`, acting on the events it returns:

    Proving    write the epoch to disk, then call `prove`      Ready       the link carries requests from now on
    Request    carry it to an engine: `head`, `data`, `close`  Cancel      stop the engine, then `close` the stream
    Writable   read on from the engine                         DrainAsked  call `drain` when it suits
    Received   the server has kept receipts                Command     do it if that may be; `progress` answers
    Goodbye    the server closes the link

After any call there may be something to `take`. A ProtocolError is the end of the link. Calls on a stream or link that ended
meanwhile do nothing, for the server's word may cross ours at any moment; calls in the wrong order raise OutOfOrder.
"""

import secrets
from collections.abc import Callable
from typing import ClassVar

import msgspec

from mindgw_agent import wire
from mindgw_agent.events import Cancel, DrainAsked, Event, Proving, Ready, Request, Writable
from mindgw_agent.flow import Inbound, Outbound
from mindgw_agent.states import STREAM_TRANSITIONS, TRANSITIONS, Input, Phase, State, Step
from mindgw_agent.wire import Close, Command, Frame, Goodbye, Meta, Progress, ProtocolError, Receipts, Received, Report, Welcome

__all__ = [
    "Cancel", "Command", "DrainAsked", "Event", "Goodbye", "IdentityError", "OutOfOrder", "Parties", "ProtocolError", "Proving", "Ready",
    "Received", "Request", "Session", "State", "Writable",
]  # fmt: skip

#: Streams that a server may have open at once.
MAX_STREAMS = 1024
#: Bytes of unfinished request bodies, over all streams.
MAX_BODIES = 256 * 1024 * 1024
#: A server is silent when nothing came for this many ping intervals: two pings missed and a little more.
SILENCE = 2.4


class OutOfOrder(RuntimeError):
    """The shell called in the wrong order: a bug at this end."""


class IdentityError(ProtocolError):
    """The peer is not the server that this agent joined."""


class _Stream:
    """One request on its way through this agent."""

    __slots__ = ("body", "meta", "paused", "phase")

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.phase = Phase.RECEIVING
        #: What has arrived of the body; empty once the shell has it.
        self.body = bytearray()
        #: The engine must not be read; Writable is owed.
        self.paused = False


class Parties(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks to whom, and with which keys."""

    agent_id: str
    #: Name under which the server was dialled.
    host: str
    #: The server's identity, public half.
    server_identity: bytes
    #: Newest epoch on disk; the server must name a later one.
    last_epoch: int
    #: Signs a message with the agent's key.
    sign: Callable[[bytes], bytes]
    #: Takes key, signature and message; never raises.
    verify: Callable[[bytes, bytes, bytes], bool]
    software: str = ""
    random: Callable[[int], bytes] = secrets.token_bytes


class Session:
    """One link, from HELLO to its end. Streams that are open when it ends are the shell's to stop."""

    def __init__(self, parties: Parties, report: Report | None = None) -> None:
        self._parties = parties
        # The link.
        self.state = State.NEW
        #: The server has proved its identity: before that a Goodbye is hearsay.
        self.verified = False
        #: Of the tunnel, as the server chose it.
        self._version = wire.VERSION
        #: Epoch of this link, 0 before CHALLENGE.
        self.epoch = 0
        self._nonce = parties.random(32)
        #: The server's nonce, b"" before CHALLENGE.
        self._server_nonce = b""
        #: The newest report.
        self._report = Report() if report is None else wire.fit(report)
        #: The server has yet to hear it.
        self._news = False
        #: Seconds between the server's pings.
        self._interval = Welcome().ping_interval
        #: When the server last spoke; None before the first look at the clock.
        self._heard: float | None = None

        # The streams.
        self._decoder = wire.Decoder(wire.FROM_SERVER)
        self._out = Outbound()
        self._in = Inbound()
        #: Requests that have not ended, by stream; at most MAX_STREAMS.
        self._streams: dict[int, _Stream] = {}
        #: The newest stream that the server opened: older ones that are not in `_streams` are over.
        self._newest = 0
        #: Bytes announced for bodies that are not complete; at most MAX_BODIES.
        self._bodies = 0

    @property
    def streams(self) -> int:
        """Requests that have not ended, or whose last bytes have not left."""
        return max(len(self._streams), len(self._out))

    @property
    def is_urgent(self) -> bool:
        """There is something to `take` that nobody should wait for."""
        return self._news or self._out.is_urgent

    @property
    def has_words(self) -> bool:
        """There is something to `take`."""
        return self._news or self._out.is_waiting

    # What the shell does.

    def start(self) -> None:
        """Say HELLO."""
        self._call(Input.START)
        who = self._parties
        hello = wire.Hello(agent_id=who.agent_id, nonce=self._nonce, software=who.software, last_epoch=who.last_epoch)
        self._out.control(wire.frame(hello))

    def prove(self, report: Report | None = None) -> None:
        """Answer the challenge, with the newest report. The epoch of Proving must be on disk."""
        if report is not None:
            self._report = wire.fit(report)
        if self._call(Input.PROVE) is State.CLOSED:
            return
        self._news = False
        who = self._parties
        message = wire.transcript_proof(
            self._server_nonce, who.agent_id, self.epoch, who.last_epoch, who.server_identity, who.host
        )  # fmt: skip
        self._out.control(wire.frame(wire.Proof(who.sign(message), self._report)))

    def report(self, report: Report) -> None:
        """Say what the engines have to offer. Only the newest report leaves; before the link is up it waits."""
        self._call(Input.TELL)
        self._report = wire.fit(report)
        self._news = True

    def receipts(self, batch: Receipts) -> None:
        """Sign a piece of the chain and send it; the answer is Received, of this batch or a later one."""
        if self._call(Input.ACCOUNT) is State.CLOSED:
            return
        signature = self._parties.sign(wire.transcript_receipts(self._parties.agent_id, batch.last, batch.head))
        self._out.control(wire.frame(msgspec.structs.replace(batch, signature=signature)))

    def progress(self, progress: Progress) -> None:
        """Say how far a command of the server is; texts that are too long are cut."""
        if self._call(Input.ANSWER) is not State.CLOSED:
            self._out.control(wire.frame(wire.brief(progress)))

    def drain(self) -> None:
        """Take no more requests: what is opened from now on is refused with `draining`, what runs is carried to its end."""
        before = self.state
        if self._call(Input.LEAVE) is State.DRAINING and before is State.READY:
            self._out.control(Frame(0, wire.DRAIN))

    def head(self, stream: int, status: int, content_type: str, data: bytes = b"") -> None:
        """The engine's answer begins."""
        found = self._step(stream, Step.HEAD)
        if found is not None:
            self._out.write(stream, wire.HEAD, wire.build_head(status, content_type, data))
            found.paused = self._out.load(stream) >= wire.WINDOW

    def data(self, stream: int, data: bytes) -> None:
        """The answer goes on. Ask `writable` before the engine is read again."""
        found = self._step(stream, Step.ANSWER)
        if found is not None:
            self._out.write(stream, wire.DATA, data)
            found.paused = found.paused or self._out.load(stream) >= wire.WINDOW

    def close(self, stream: int, close: Close) -> None:
        """The request has ended. What was written leaves first; texts longer than wire.MAX_NOTE are cut."""
        if self._step(stream, Step.CLOSE) is not None:
            self._end(stream, close)

    def writable(self, stream: int) -> bool:
        """Whether the engine of this stream may be read; after a False there comes Writable, or Cancel."""
        found = self._streams.get(stream)
        return found is None or not found.paused

    def take(self, limit: int = wire.MAX_MESSAGE) -> bytes:
        """The next message to send, b"" when there is none now."""
        if self._news and self.state in {State.READY, State.DRAINING}:
            self._news = False
            self._out.control(wire.frame(self._report))
        return self._out.take(limit)

    def tick(self, now: float) -> bool:
        """False when the server has been silent for too long: the link is dead. Call it about once a second."""
        if self._heard is None:
            self._heard = now
        return now - self._heard <= SILENCE * self._interval

    # What the server does.

    def receive(self, message: bytes | str, now: float) -> list[Event]:
        """Take one message in. ProtocolError ends the link; IdentityError says that this is not our server."""
        self._heard = now
        events: list[Event] = []
        if self.state is State.CLOSED:
            return events
        try:
            for frame in self._decoder.feed(message):
                event = self._hear(frame)
                if event is not None:
                    events.append(event)
                if frame.kind == wire.GOODBYE:
                    break  # what stands behind it in the message concerns nobody
        except ProtocolError:
            self.state = State.CLOSED
            raise
        return events

    def _hear(self, frame: Frame) -> Event | None:
        state = TRANSITIONS[self.state].get(frame.kind)
        if state is None:
            raise ProtocolError(f"the server sent {Input(frame.kind).name} on a link that is {self.state}")
        event = self._HANDLERS[frame.kind](self, frame)
        self.state = state
        return event

    def _challenged(self, frame: Frame) -> Event:
        challenge = wire.parse(wire.Challenge, frame.payload)
        who = self._parties
        message = wire.transcript_challenge(self._nonce, challenge.nonce, who.agent_id, challenge.epoch, challenge.version)
        if not who.verify(who.server_identity, challenge.signature, message):
            raise IdentityError("the server could not prove that it is the one this agent joined")
        self._version = wire.negotiate([challenge.version])
        if challenge.epoch <= who.last_epoch:
            raise ProtocolError(f"the server offered epoch {challenge.epoch}, but {who.last_epoch} was already used")
        self.verified = True
        self._server_nonce = challenge.nonce
        self.epoch = challenge.epoch
        return Proving(challenge.epoch)

    def _welcomed(self, frame: Frame) -> Event:
        welcome = wire.parse(Welcome, frame.payload)
        self._interval = welcome.ping_interval
        return Ready(welcome)

    def _dismissed(self, frame: Frame) -> Event:
        return wire.parse(Goodbye, frame.payload)

    def _drain_asked(self, _frame: Frame) -> Event:
        return DrainAsked()

    def _pinged(self, frame: Frame) -> None:
        self._out.control(Frame(0, wire.PONG, frame.payload))

    def _ponged(self, frame: Frame) -> None:
        """Nothing follows: that the server spoke was noted already."""

    def _received(self, frame: Frame) -> Event:
        return wire.parse(Received, frame.payload)

    def _commanded(self, frame: Frame) -> Event:
        if self._version < wire.COMMANDS:
            raise ProtocolError(f"version {self._version} has no commands")
        return wire.parse(Command, frame.payload)

    def _opened(self, frame: Frame) -> Event | None:
        stream = frame.stream
        if stream <= self._newest:
            raise ProtocolError(f"stream {stream} was opened after stream {self._newest}")
        self._newest = stream
        meta, body = wire.parse_open(frame.payload)
        refusal = self._refusal(meta)
        if refusal is not None:
            self._out.control(wire.frame(refusal, stream))
            return None
        found = self._streams[stream] = _Stream(meta)
        self._bodies += meta.length
        self._out.open_stream(stream)
        self._in.open_stream(stream)
        return self._collect(stream, found, body, frame.end)

    def _refusal(self, meta: Meta) -> Close | None:
        """How the stream ends that must not begin, None when it may."""
        if self.state is State.DRAINING:
            return Close("failed", "draining", "the agent is draining", tag=meta.tag)
        if meta.path not in wire.PATHS:
            return Close("failed", "refused", "the agent does not carry this path", tag=meta.tag)
        if meta.length > wire.MAX_BODY:
            return Close("failed", "refused", f"the body is over {wire.MAX_BODY} bytes", tag=meta.tag)
        if self.streams >= MAX_STREAMS or self._bodies + meta.length > MAX_BODIES:
            return Close("busy", tag=meta.tag)
        return None

    def _body(self, frame: Frame) -> Event | None:
        self._check_known(frame)
        found = self._streams.get(frame.stream)
        return None if found is None else self._collect(frame.stream, found, frame.payload, frame.end)

    def _collect(self, stream: int, found: _Stream, data: bytes, end: bool) -> Event | None:
        """Take body bytes in. After END there is nothing more, nor after CANCEL, before which the server drops what is left."""
        phase = STREAM_TRANSITIONS[found.phase].get(Step.COMPLETE if end else Step.BODY)
        if phase is None:
            raise ProtocolError(f"stream {stream} went on after its end")
        found.phase = phase
        self._in.received(stream, len(data))
        found.body += data
        size = len(found.body)
        if size > found.meta.length or (end and size < found.meta.length):
            raise ProtocolError(f"the body of stream {stream} is not as long as it was said to be")
        if end:
            return Request(stream, found.meta, self._release(stream, found))
        grant = self._in.consumed(stream, len(data))
        if grant:
            self._out.control(wire.credit(stream, grant))
        return None

    def _credited(self, frame: Frame) -> Event | None:
        self._check_known(frame)
        stream = frame.stream
        self._out.credit(stream, wire.parse_credit(frame.payload))
        found = self._streams.get(stream)
        if found is None or not found.paused or self._out.load(stream) > wire.RESUME_LEVEL:
            return None
        found.paused = False
        return Writable(stream)

    def _cancelled(self, frame: Frame) -> Event | None:
        self._check_known(frame)
        stream = frame.stream
        self._out.drop(stream)
        found = self._streams.get(stream)
        if found is None or found.phase is Phase.CANCELLED:
            return None
        found.phase = STREAM_TRANSITIONS[found.phase][Step.CANCEL]
        found.paused = False
        if found.phase is Phase.CANCELLED:
            return Cancel(stream)
        # the shell never heard of it
        self._release(stream, found)
        self._end(stream, Close("cancelled", tag=found.meta.tag))
        return None

    def _check_known(self, frame: Frame) -> None:
        """A stream that is over may still be spoken of, one that never began may not."""
        if frame.stream > self._newest:
            raise ProtocolError(f"stream {frame.stream} was never opened")

    _HANDLERS: ClassVar[dict[int, Callable[["Session", Frame], Event | None]]] = {
        wire.CHALLENGE: _challenged,
        wire.WELCOME: _welcomed,
        wire.GOODBYE: _dismissed,
        wire.DRAIN: _drain_asked,
        wire.PING: _pinged,
        wire.PONG: _ponged,
        wire.RECEIVED: _received,
        wire.COMMAND: _commanded,
        wire.OPEN: _opened,
        wire.DATA: _body,
        wire.CREDIT: _credited,
        wire.CANCEL: _cancelled,
    }

    # What both lead to.

    def _call(self, step: Input) -> State:
        state = TRANSITIONS[self.state].get(step)
        if state is None:
            raise OutOfOrder(f"{step.name} on a link that is {self.state}")
        self.state = state
        return state

    def _step(self, stream: int, step: Step) -> _Stream | None:
        """Move a stream on; None when there is nothing more to say on it."""
        found = self._streams.get(stream)
        if found is None or self.state is State.CLOSED:
            return None
        phase = STREAM_TRANSITIONS[found.phase].get(step)
        if phase is None:
            raise OutOfOrder(f"{step} on stream {stream} that is {found.phase}")
        found.phase = phase
        return None if phase is Phase.CANCELLED else found

    def _release(self, stream: int, found: _Stream) -> bytes:
        """What was collected, which is the shell's from now on."""
        body = bytes(found.body)
        found.body = bytearray()
        self._bodies -= found.meta.length
        self._in.close_stream(stream)
        return body

    def _end(self, stream: int, close: Close) -> None:
        del self._streams[stream]
        self._out.close(stream, wire.frame(wire.clip(close), stream))
