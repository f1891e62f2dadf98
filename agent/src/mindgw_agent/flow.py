"""What waits to leave one end of a link, and how much the other end may send: the same rules for server and agent.

Order of leaving: control frames; then the first frame of each new stream; then one frame of each stream in turn. So a large
body delays nobody by more than one frame per open stream. Frames of one stream never overtake each other.

Body bytes cost credit: WINDOW at the start, then what the peer returns. A stream without credit stands in no queue, so the
work per frame does not grow with the number of streams.
"""

from collections import OrderedDict, deque
from typing import Any

from mindgw_agent import wire
from mindgw_agent.wire import (
    CREDIT_LEVEL,
    DATA,
    END,
    HEADER_SIZE,
    MAX_FRAME,
    MAX_MESSAGE,
    MAX_PAYLOAD,
    WINDOW,
    Frame,
    ProtocolError,
    pack_header,
)

#: Control frames that may wait to leave, in bytes: more means that the peer asks and does not read the answers.
MAX_CONTROL = 1024 * 1024


class _Flow:
    """What one stream still has to say."""

    __slots__ = ("close", "credit", "end", "free", "kind", "pieces", "started", "waiting")

    def __init__(self) -> None:
        #: Bytes that have not left, in order; bounded: by the writer, who looks at `load`.
        self.pieces: deque[bytes | memoryview] = deque()
        #: Bytes in `pieces`.
        self.waiting = 0
        #: How many of them belong to the head of the stream and cost no credit.
        self.free = 0
        #: Body bytes that may leave now.
        self.credit = WINDOW
        #: Kind of the next frame: OPEN or HEAD for the first, then DATA.
        self.kind = DATA
        #: A frame of this stream has left.
        self.started = False
        #: END follows the last byte.
        self.end = False
        #: The encoded CLOSE that follows the last byte, None while the stream goes on.
        self.close: bytes | None = None

    def is_ready(self) -> bool:
        """Something can leave now."""
        if self.waiting:
            return self.credit > 0 or self.free > 0
        return self.end or self.close is not None


class Outbound:
    """The sending half of a link. Call `take` whenever the transport can take a message, until it gives b""."""

    def __init__(self) -> None:
        #: Encoded control frames; bounded: by MAX_CONTROL.
        self._control: deque[bytes] = deque()
        #: Bytes in `_control`.
        self._control_size = 0
        #: Streams that can still send, by id.
        self._flows: dict[int, _Flow] = {}
        #: Streams whose first frame can leave, oldest first; of those that have nothing more to say, that frame.
        self._fresh: OrderedDict[int, _Flow | bytes] = OrderedDict()
        #: Other streams that can send now, the next in turn first.
        self._ring: OrderedDict[int, _Flow] = OrderedDict()

    def __len__(self) -> int:
        """Streams that are open or still have something to say."""
        return len(self._flows.keys() | self._fresh.keys())

    @property
    def is_urgent(self) -> bool:
        """A control frame, or the first frame of a stream, waits to leave."""
        return bool(self._control or self._fresh)

    @property
    def is_waiting(self) -> bool:
        """Anything can leave now."""
        return bool(self._control or self._fresh or self._ring)

    def control(self, frame: Frame) -> None:
        """Queue a frame that waits for nobody. ProtocolError when the peer has stopped reading and MAX_CONTROL is reached."""
        self._urgent(wire.encode(frame))

    def open_stream(self, stream: int) -> None:
        """Begin to keep account of a stream. It ends by itself when its END or CLOSE has left, or with `drop`."""
        if stream in self._flows:
            raise ValueError(f"stream {stream} is open")
        self._flows[stream] = _Flow()

    def send_whole(self, stream: int, kind: int, payload: bytes, body: bytes) -> None:
        """As `open_stream` and `write`, for all that a stream has to say."""
        size = len(payload) + len(body)
        if size <= MAX_PAYLOAD and len(body) <= WINDOW and stream not in self._flows:
            self._fresh[stream] = b"".join((pack_header(size, stream, kind, END), payload, body))
            return
        self.open_stream(stream)
        self.write(stream, kind, payload)
        self.write(stream, DATA, body, end=True)

    def write(self, stream: int, kind: int, payload: bytes, end: bool = False) -> None:
        """Queue OPEN or HEAD (first, once) or DATA of any size; `end` closes this direction. ValueError out of order.

        Small pieces that wait together leave as one frame, a DATA piece behind its OPEN or HEAD too.
        """
        flow = self._flows.get(stream)
        if flow is None or flow.end or flow.close is not None:
            raise ValueError(f"stream {stream} is not open for writing")
        if kind != DATA:
            self._begin(flow, kind, payload)
            self._fresh[stream] = flow
        if payload:
            flow.pieces.append(payload)
            flow.waiting += len(payload)
        flow.end = end
        self._arm(stream, flow)

    def close(self, stream: int, frame: Frame) -> None:
        """Queue CLOSE behind all that the stream has written; at once when there is nothing, or the stream was dropped."""
        data = wire.encode(frame)
        flow = self._flows.get(stream)
        if flow is None or not flow.waiting:
            self._forget(stream)
            self._urgent(data)
        else:
            flow.close = data

    def credit(self, stream: int, size: int) -> None:
        """The peer takes `size` body bytes more. ProtocolError when that is more than it was sent."""
        flow = self._flows.get(stream)
        if flow is None and stream not in self._fresh:
            return
        if flow is None or flow.credit + size > WINDOW:
            raise ProtocolError(f"stream {stream} was given more credit than its window")
        flow.credit += size
        self._arm(stream, flow)

    def drop(self, stream: int) -> bool:
        """Forget what has not left; a CLOSE that waited behind it goes now. False when the peer never heard of the stream."""
        if (flow := self._flows.get(stream)) is None:
            return self._fresh.pop(stream, None) is None
        self._forget(stream)
        if flow.close is not None:
            self._urgent(flow.close)
        return flow.started

    def cancel(self, stream: int) -> bool:
        """Drop the stream and tell the peer. False when its OPEN never left: then there is nothing to wait for."""
        known = self.drop(stream)
        if known:
            self.control(Frame(stream, wire.CANCEL))
        return known

    def take(self, limit: int = MAX_MESSAGE) -> bytes:
        """The next message, b"" when nothing can leave now. At least one frame leaves, even when `limit` is below MAX_FRAME."""
        out: list[bytes | memoryview] = []
        room = limit
        control = self._control
        while control and (len(control[0]) <= room or not out):
            room -= len(control[0])
            self._control_size -= len(control[0])
            out.append(control.popleft())
        queues: tuple[OrderedDict[int, Any], ...] = (self._fresh, self._ring)
        for queue in queues:
            while queue and (room >= MAX_FRAME or not out):
                stream, flow = queue.popitem(last=False)
                if isinstance(flow, bytes):
                    out.append(flow)
                    room -= len(flow)
                else:
                    room -= self._turn(stream, flow, out, room)
        return b"".join(out) if len(out) != 1 else bytes(out[0])

    def load(self, stream: int) -> int:
        """Body bytes that have not left or were not yet credited: what this stream may cost both ends in memory."""
        flow = self._flows.get(stream)
        return flow.waiting - flow.free + WINDOW - flow.credit if flow else 0

    def _urgent(self, data: bytes) -> None:
        if self._control_size + len(data) > MAX_CONTROL:
            raise ProtocolError("the peer does not read what it asks for")
        self._control.append(data)
        self._control_size += len(data)

    def _begin(self, flow: _Flow, kind: int, payload: bytes) -> None:
        if flow.started or flow.waiting:
            raise ValueError("the head of a stream comes first, and once")
        flow.free = wire.head_size(kind, payload)
        flow.kind = kind

    def _arm(self, stream: int, flow: _Flow) -> None:
        """Give the stream its place in the ring; one that waits there, or for its first frame, keeps the place it has."""
        if stream not in self._fresh and flow.is_ready():
            self._ring[stream] = flow

    def _forget(self, stream: int) -> None:
        self._fresh.pop(stream, None)
        self._ring.pop(stream, None)
        self._flows.pop(stream, None)

    def _turn(self, stream: int, flow: _Flow, out: list[bytes | memoryview], room: int) -> int:
        """Let one stream send one frame, and CLOSE when that was its last; returns the bytes added to `out`."""
        used = 0
        if flow.waiting or flow.end:
            used = self._send(stream, flow, out)
        if not flow.waiting and flow.close is not None and (len(flow.close) <= room - used or not out):
            out.append(flow.close)
            used += len(flow.close)
            del self._flows[stream]
        elif flow.is_ready():
            self._ring[stream] = flow
        return used

    def _send(self, stream: int, flow: _Flow, out: list[bytes | memoryview]) -> int:
        size = min(flow.waiting, flow.free + flow.credit, MAX_PAYLOAD)
        flow.waiting -= size
        flow.credit -= size - flow.free
        flow.free = 0
        last = flow.end and not flow.waiting
        out.append(pack_header(size, stream, flow.kind, END if last else 0))
        flow.kind = DATA
        flow.started = True
        if last:
            flow.end = False
            if flow.close is None:
                del self._flows[stream]
        _move(flow.pieces, out, size)
        return HEADER_SIZE + size


def _move(pieces: deque[bytes | memoryview], out: list[bytes | memoryview], size: int) -> None:
    """Move the first `size` bytes; a piece that is cut is never copied, however large."""
    while size:
        piece = pieces[0]
        if len(piece) > size:
            view = memoryview(piece)
            out.append(view[:size])
            pieces[0] = view[size:]
            return
        size -= len(piece)
        out.append(pieces.popleft())


class Inbound:
    """The receiving half: which credit to give back, and whether the peer keeps to what it was given."""

    def __init__(self) -> None:
        #: Body bytes that the peer may still send, by stream; whoever opens a stream closes it.
        self._room: dict[int, int] = {}
        #: Body bytes that were consumed here and not yet returned as credit, of streams that have such.
        self._consumed: dict[int, int] = {}

    def open_stream(self, stream: int) -> None:
        """Grant the first window."""
        self._room[stream] = WINDOW

    def close_stream(self, stream: int) -> None:
        """Forget a stream; it needs not be open."""
        self._room.pop(stream, None)
        self._consumed.pop(stream, None)

    def received(self, stream: int, size: int) -> None:
        """Count body bytes that arrived. ProtocolError when the stream is not open or its window is overrun."""
        room = self._room.get(stream)
        if room is None:
            raise ProtocolError(f"stream {stream} is not open")
        if size > room:
            raise ProtocolError(f"stream {stream} overran its window")
        self._room[stream] = room - size

    def consumed(self, stream: int, size: int) -> int:
        """Count body bytes that have moved on. The answer is the CREDIT to send now: 0 below CREDIT_LEVEL or when it is closed."""
        if stream not in self._room:
            return 0
        consumed = self._consumed.get(stream, 0) + size
        if consumed < CREDIT_LEVEL:
            self._consumed[stream] = consumed
            return 0
        self._room[stream] += consumed
        self._consumed[stream] = 0
        return consumed
