"""Both halves of a link's flow control, alone and against each other: order, fairness, bounds, and no standstill."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mindgw_agent import wire
from mindgw_agent.flow import MAX_CONTROL, Inbound, Outbound
from mindgw_agent.wire import CREDIT_LEVEL, MAX_FRAME, MAX_MESSAGE, MAX_PAYLOAD, WINDOW, Close, Decoder, Frame, Meta, ProtocolError

KIB = 1024
META = Meta(request_id="r", path="/v1/completions", model="m", length=0)
OPENING = wire.build_open(META)
PING = Frame(0, wire.PING)


def outbound(*streams: int) -> Outbound:
    out = Outbound()
    for stream in streams:
        out.open_stream(stream)
    return out


def frames(message: bytes) -> list[Frame]:
    return Decoder().feed(message) if message else []


def drained(out: Outbound, limit: int = MAX_MESSAGE) -> list[Frame]:
    found: list[Frame] = []
    while message := out.take(limit):
        found += frames(message)
    return found


def body(found: list[Frame], stream: int) -> bytes:
    return b"".join(f.payload[wire.head_size(f.kind, f.payload) :] for f in found if f.stream == stream and f.kind in HAVE_BODY)


HAVE_BODY = {wire.OPEN, wire.HEAD, wire.DATA}


def kinds(found: list[Frame]) -> list[tuple[int, int]]:
    return [(f.stream, f.kind) for f in found]


def closing(stream: int) -> Frame:
    return wire.frame(Close("done"), stream)


def unsent(out, stream):
    """Body bytes that have not left."""
    flow = out._flows.get(stream)
    return flow.waiting - flow.free if flow else 0


# -- what leaves, and in which order


def test_nothing_gives_no_message():
    out = Outbound()
    assert out.take() == b""


def test_a_request_with_a_small_body_is_one_frame():
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING)
    out.write(1, wire.DATA, b"{}", end=True)
    assert frames(out.take()) == [Frame(1, wire.OPEN, OPENING + b"{}", end=True)]
    assert len(out) == 0


def test_an_answer_that_is_known_whole_is_one_message():
    out = outbound(1)
    out.write(1, wire.HEAD, wire.build_head(200, "application/json", b"{}"), end=True)
    out.close(1, closing(1))
    assert kinds(frames(out.take())) == [(1, wire.HEAD), (1, wire.CLOSE)]
    assert len(out) == 0


def test_small_pieces_that_wait_together_leave_together():
    out = outbound(1)
    for piece in (b"a", b"b", b"", b"c"):
        out.write(1, wire.DATA, piece)
    assert frames(out.take()) == [Frame(1, wire.DATA, b"abc")]


def test_an_end_without_data_leaves_as_an_empty_frame():
    out = outbound(1)
    out.write(1, wire.DATA, b"a")
    assert frames(out.take()) == [Frame(1, wire.DATA, b"a")]
    out.write(1, wire.DATA, b"", end=True)
    assert frames(out.take()) == [Frame(1, wire.DATA, b"", end=True)]


def test_an_empty_piece_is_nothing():
    out = outbound(1)
    out.write(1, wire.DATA, b"")
    assert out.take() == b""


def test_large_payloads_are_split_and_keep_their_bytes():
    data = bytes(range(256)) * KIB
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING + data[:100_000])
    out.write(1, wire.DATA, data[100_000:], end=True)
    found = drained(out)
    assert found[0].kind == wire.OPEN
    assert {f.kind for f in found[1:]} == {wire.DATA}
    assert max(len(f.payload) for f in found) == MAX_PAYLOAD
    assert [f.end for f in found] == [False] * (len(found) - 1) + [True]
    assert body(found, 1) == data


def test_a_message_holds_many_frames_but_never_more_than_its_limit():
    out = outbound(*range(1, 41))
    for stream in range(1, 41):
        out.write(stream, wire.DATA, bytes(WINDOW))
    messages = []
    while message := out.take():
        messages.append(message)
    assert max(map(len, messages)) <= MAX_MESSAGE
    assert len(messages) <= 12  # 10 MiB


@pytest.mark.parametrize("limit", [0, 1, MAX_FRAME, 3 * MAX_FRAME])
def test_even_the_smallest_limit_lets_one_frame_go(limit):
    out = outbound(1, 2)
    out.control(PING)
    out.control(PING)
    # the last frame of each stream is full: CLOSE must wait for the next message where the limit is tight
    data = bytes(2 * MAX_PAYLOAD - len(wire.build_head(200, "text/plain")))
    for stream in (1, 2):
        out.write(stream, wire.HEAD, wire.build_head(200, "text/plain", data))
        out.close(stream, closing(stream))
    sizes = []
    found: list[Frame] = []
    while message := out.take(limit):
        sizes.append(len(message))
        found += frames(message)
    assert max(sizes) <= max(limit, MAX_FRAME)
    assert body(found, 1) == body(found, 2) == data
    assert {(1, wire.CLOSE), (2, wire.CLOSE)} <= set(kinds(found))


def test_control_then_heads_then_data():
    out = outbound(1, 2, 3)
    out.write(1, wire.DATA, bytes(KIB))
    out.write(2, wire.OPEN, OPENING)
    out.write(3, wire.HEAD, wire.build_head(200, ""))
    out.control(wire.credit(1, 5))
    out.control(PING)
    assert kinds(frames(out.take())) == [(1, wire.CREDIT), (0, wire.PING), (2, wire.OPEN), (3, wire.HEAD), (1, wire.DATA)]


def test_a_close_waits_for_the_data_before_it_even_without_credit():
    out = outbound(1)
    out.write(1, wire.DATA, bytes(WINDOW + 10))
    out.close(1, closing(1))
    assert wire.CLOSE not in {f.kind for f in drained(out)}
    out.credit(1, 9)
    assert kinds(drained(out)) == [(1, wire.DATA)]
    out.credit(1, 1)
    assert kinds(drained(out)) == [(1, wire.DATA), (1, wire.CLOSE)]
    assert len(out) == 0


def test_a_close_of_an_idle_stream_goes_ahead_of_bulk():
    out = outbound(1, 2)
    out.write(1, wire.DATA, bytes(KIB))
    out.close(2, closing(2))
    assert kinds(frames(out.take())) == [(2, wire.CLOSE), (1, wire.DATA)]


def test_a_close_takes_the_place_of_an_end_that_has_not_left():
    out = outbound(1)
    out.write(1, wire.DATA, b"", end=True)
    out.close(1, closing(1))
    assert kinds(drained(out)) == [(1, wire.CLOSE)]


def test_a_drop_frees_the_close_behind_it():
    out = outbound(1)
    out.write(1, wire.HEAD, wire.build_head(200, ""))
    out.write(1, wire.DATA, bytes(2 * WINDOW))
    drained(out)
    out.close(1, closing(1))
    assert out.drop(1)
    assert kinds(drained(out)) == [(1, wire.CLOSE)]


def test_a_close_leaves_after_a_drop():
    out = outbound(1)
    out.write(1, wire.DATA, bytes(2 * WINDOW))
    drained(out)
    out.drop(1)
    assert out.take() == b""
    assert (unsent(out, 1), out.load(1), len(out)) == (0, 0, 0)
    out.close(1, closing(1))
    assert kinds(drained(out)) == [(1, wire.CLOSE)]


def test_cancelling_a_request_that_never_left_sends_nothing():
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING)
    assert not out.cancel(1)
    assert out.take() == b""


def test_cancelling_a_request_that_left_in_part_sends_cancel_and_no_more():
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING)
    out.write(1, wire.DATA, bytes(WINDOW), end=True)
    out.take(MAX_FRAME)
    assert out.cancel(1)
    assert kinds(drained(out)) == [(1, wire.CANCEL)]


def test_cancelling_a_request_that_left_whole_sends_cancel():
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING, end=True)
    drained(out)
    assert out.cancel(1)
    assert kinds(drained(out)) == [(1, wire.CANCEL)]


def test_the_caller_may_ask_how_much_is_left():
    out = outbound(1)
    out.write(1, wire.HEAD, wire.build_head(200, "text/plain", bytes(KIB)))
    assert (unsent(out, 1), out.load(1)) == (KIB, KIB)
    assert out.take()
    assert (unsent(out, 1), out.load(1)) == (0, KIB)
    out.credit(1, KIB)
    assert out.load(1) == 0


# -- fairness


def test_a_large_body_delays_others_by_one_frame():
    out = outbound(1, 2)
    out.write(1, wire.DATA, bytes(WINDOW))
    out.take(MAX_FRAME)
    out.write(2, wire.DATA, bytes(100))
    assert kinds(frames(out.take()))[:2] == [(1, wire.DATA), (2, wire.DATA)]


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(MAX_FRAME, 4 * MAX_FRAME))
def test_a_small_frame_waits_for_at_most_one_frame_of_each_stream(large, warm_up, limit):
    out = outbound(*range(1, large + 1), 99)
    for stream in range(1, large + 1):
        out.write(stream, wire.DATA, bytes(10 * KIB * KIB))

    def order() -> list[int]:
        found = frames(out.take(limit))
        for f in found:
            out.credit(f.stream, len(f.payload))  # an eager reader: nobody waits for credit
        return [f.stream for f in found]

    for _ in range(warm_up):
        order()
    out.write(99, wire.DATA, bytes(100))
    left: list[int] = []
    while 99 not in left:
        left += order()
    assert left.index(99) <= large


def test_new_streams_overtake_bulk_only_with_their_first_frame():
    out = outbound(1, 2)
    out.write(1, wire.DATA, bytes(WINDOW))
    out.write(2, wire.OPEN, OPENING + bytes(3 * MAX_PAYLOAD))
    assert [f.stream for f in drained(out)] == [2, 1, 2, 1, 2, 1, 2, 1]


# -- bounds and misuse


def test_in_flight_never_exceeds_the_window():
    out = outbound(1)
    out.write(1, wire.OPEN, OPENING + bytes(3 * WINDOW))
    assert len(body(drained(out), 1)) == WINDOW
    assert unsent(out, 1) == 2 * WINDOW
    out.credit(1, 7)
    assert len(body(drained(out), 1)) == 7


def test_more_credit_than_was_used_is_a_protocol_error():
    out = outbound(1)
    out.write(1, wire.DATA, b"abc")
    drained(out)
    with pytest.raises(ProtocolError, match="more credit"):
        out.credit(1, 4)


def test_credit_for_a_stream_that_is_over_is_ignored():
    Outbound().credit(5, 10**9)


def test_a_peer_that_asks_and_never_reads_is_a_protocol_error():
    out = Outbound()
    pong = Frame(0, wire.PONG, bytes(64))
    with pytest.raises(ProtocolError, match="does not read"):
        for _ in range(MAX_CONTROL):
            out.control(pong)
    drained(out)
    out.control(pong)


def test_streams_are_opened_once_and_written_in_order():
    out = outbound(1)
    with pytest.raises(ValueError, match="is open"):
        out.open_stream(1)
    with pytest.raises(ValueError, match="not open for writing"):
        out.write(2, wire.DATA, b"x")
    out.write(1, wire.DATA, b"x")
    with pytest.raises(ValueError, match="comes first"):
        out.write(1, wire.HEAD, wire.build_head(200, ""))
    out.take()
    with pytest.raises(ValueError, match="comes first"):
        out.write(1, wire.HEAD, wire.build_head(200, ""))
    out.write(1, wire.DATA, b"x", end=True)
    with pytest.raises(ValueError, match="not open for writing"):
        out.write(1, wire.DATA, b"x")


def test_nothing_is_written_behind_a_close():
    out = outbound(1)
    out.write(1, wire.DATA, b"x")
    out.close(1, closing(1))
    with pytest.raises(ValueError, match="not open for writing"):
        out.write(1, wire.DATA, b"x")


# -- the receiving half


def test_credit_comes_back_in_quarters_of_the_window():
    windows = Inbound()
    windows.open_stream(1)
    windows.received(1, WINDOW)
    assert windows.consumed(1, CREDIT_LEVEL - 1) == 0
    assert windows.consumed(1, 1) == CREDIT_LEVEL
    windows.received(1, CREDIT_LEVEL)
    with pytest.raises(ProtocolError, match="overran"):
        windows.received(1, 1)


def test_bytes_on_a_stream_that_is_not_open_are_a_protocol_error():
    windows = Inbound()
    with pytest.raises(ProtocolError, match="not open"):
        windows.received(1, 1)
    windows.open_stream(1)
    windows.close_stream(1)
    windows.close_stream(1)
    assert windows.consumed(1, WINDOW) == 0


# -- both halves against each other


class TwoEnds(RuleBasedStateMachine):
    """A sender, a line that holds messages up, and a receiver whose readers pause and resume stream by stream."""

    STREAMS = (1, 2, 3)

    @initialize()
    def set_up(self) -> None:
        self.out = outbound(*self.STREAMS)
        self.windows = Inbound()
        self.line: deque[bytes] = deque()
        self.back: deque[tuple[int, int]] = deque()
        self.written = dict.fromkeys(self.STREAMS, b"")
        self.received = dict.fromkeys(self.STREAMS, b"")
        self.read = dict.fromkeys(self.STREAMS, 0)
        self.closed: set[int] = set()
        self.heard_close: set[int] = set()
        self.salt = 0
        for stream in self.STREAMS:
            self.windows.open_stream(stream)

    @rule(stream=st.sampled_from(STREAMS), size=st.sampled_from([1, 100, 4096, 65_535, 65_536, 65_537, 200_000, WINDOW]))
    def write(self, stream: int, size: int) -> None:
        if stream in self.closed or self.out.load(stream) >= WINDOW:
            return  # a good source stops here
        self.salt += 1
        data = bytes([self.salt % 256]) * size
        self.written[stream] += data
        self.out.write(stream, wire.DATA, data)

    @rule(stream=st.sampled_from(STREAMS))
    def close(self, stream: int) -> None:
        if stream not in self.closed:
            self.closed.add(stream)
            self.out.close(stream, closing(stream))

    @rule(limit=st.sampled_from([1, MAX_FRAME, 100_000, MAX_MESSAGE]))
    def send(self, limit: int) -> None:
        message = self.out.take(limit)
        if message:
            assert len(message) <= max(limit, MAX_FRAME)
            self.line.append(message)

    @rule()
    def arrive(self) -> None:
        if not self.line:
            return
        for frame in frames(self.line.popleft()):
            assert frame.stream not in self.heard_close, "a frame behind CLOSE"
            if frame.kind == wire.CLOSE:
                self.heard_close.add(frame.stream)
                continue
            self.windows.received(frame.stream, len(frame.payload))
            self.received[frame.stream] += frame.payload

    @rule(stream=st.sampled_from(STREAMS), size=st.integers(1, WINDOW))
    def consume(self, stream: int, size: int) -> None:
        size = min(size, len(self.received[stream]) - self.read[stream])
        self.read[stream] += size
        grant = self.windows.consumed(stream, size)
        if grant:
            self.back.append((stream, grant))

    @rule()
    def credit_arrives(self) -> None:
        if self.back:
            self.out.credit(*self.back.popleft())

    @invariant()
    def memory_is_bounded_and_bytes_are_in_order(self) -> None:
        for stream in self.STREAMS:
            left = len(self.written[stream]) - unsent(self.out, stream)
            assert left - self.read[stream] <= WINDOW, "in flight and unread"
            assert self.out.load(stream) < WINDOW + WINDOW, "below the window, and one chunk on top"
            assert self.written[stream].startswith(self.received[stream])

    def teardown(self) -> None:
        """All readers resume: everything must arrive, whatever happened before."""
        if not hasattr(self, "out"):
            return
        for stream in self.STREAMS:
            self.close(stream)
        for _ in range(100):
            self.send(MAX_MESSAGE)
            while self.line:
                self.arrive()
            for stream in self.STREAMS:
                self.consume(stream, 10 * WINDOW)
            while self.back:
                self.credit_arrives()
        assert self.received == self.written
        assert self.heard_close == set(self.STREAMS)
        assert len(self.out) == 0
        assert self.out.take() == b""


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=20), st.lists(st.integers(1_000, 300_000), min_size=1, max_size=5))
def test_a_reader_that_paused_and_resumed_gets_everything(chunks, bites):
    """The source obeys pause (a window is unsent or in flight) and resume (half of one); the reader sleeps until all stands still."""
    out, windows = outbound(1), Inbound()
    windows.open_stream(1)
    source = deque(chunks)
    unread = read = turn = 0
    paused = False
    while source or out.load(1) >= CREDIT_LEVEL or unread:
        assert turn <= sum(chunks), "a standstill"
        before = (len(source), unread, read)
        paused = out.load(1) > wire.RESUME_LEVEL if paused else out.load(1) >= WINDOW
        if source and not paused:
            out.write(1, wire.DATA, bytes(source.popleft()))
        for frame in drained(out):
            windows.received(1, len(frame.payload))
            unread += len(frame.payload)
        assert unread <= WINDOW
        if before == (len(source), unread, read):  # all stands still: the reader wakes up for a bite
            bite = min(unread, bites[turn % len(bites)])
            assert bite, "a standstill with nothing to read"
            turn += 1
            unread -= bite
            read += bite
            grant = windows.consumed(1, bite)
            if grant:
                out.credit(1, grant)
    assert read == sum(chunks)
    assert unsent(out, 1) == 0


def test_what_waits_is_known_and_whether_it_is_urgent():
    out = outbound(1)
    assert (out.is_waiting, out.is_urgent) == (False, False)
    out.write(1, wire.OPEN, OPENING)
    assert (out.is_waiting, out.is_urgent) == (True, True)
    drained(out)
    out.write(1, wire.DATA, b"x")
    assert (out.is_waiting, out.is_urgent) == (True, False)
    out.control(Frame(0, wire.DRAIN))
    assert (out.is_waiting, out.is_urgent) == (True, True)
    drained(out)
    assert (out.is_waiting, out.is_urgent) == (False, False)


@pytest.mark.parametrize("size", [0, 1, 1000, wire.MAX_PAYLOAD - 10, wire.MAX_PAYLOAD, wire.WINDOW + 5])
def test_what_is_sent_whole_leaves_as_if_it_had_been_written_in_order(size):
    quick, slow, head, body = Outbound(), Outbound(), b"\0\x02{}", b"x" * size
    quick.send_whole(1, wire.OPEN, head, body)
    slow.open_stream(1)
    slow.write(1, wire.OPEN, head)
    slow.write(1, wire.DATA, body, end=True)
    assert (len(quick), quick.is_urgent, quick.is_waiting) == (1, True, True)
    for _ in range(2):
        assert quick.take() == slow.take()
        assert len(quick) == len(slow)
        for out in (quick, slow):
            out.credit(1, min(5, size))


def test_what_was_to_be_sent_whole_is_dropped_before_it_leaves_and_not_after():
    out = Outbound()
    for stream in (1, 2):
        out.send_whole(stream, wire.OPEN, b"\0\x02{}", b"x")
    assert not out.drop(1)
    with pytest.raises(ProtocolError):
        out.credit(2, 1)
    assert [frame.stream for frame in wire.Decoder().feed(out.take())] == [2]
    assert out.drop(2)
    assert out.take() == b""
