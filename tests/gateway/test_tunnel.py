"""The server's end of a link, with a real session of an agent at the other end; hostile agents write frames by hand."""

import json
import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgw.gateway.tunnel import PING_INTERVAL, REPORT_INTERVAL, REPORTS, SILENCE, Link
from mindgw_agent import flow, identity, session, wire
from tests.gateway.world import AGENT, SERVER, greeting

BODY = b'{"model":"m"}'


def meta(body: bytes = BODY, **fields: object) -> wire.Meta:
    return wire.Meta(**({"request_id": "r", "path": "/v1/completions", "model": "m", "length": len(body)} | fields))


class Ear:
    """Who waits for a stream: notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []
        self.body = b""

    def answered(self, head: wire.Head, close: wire.Close | None) -> None:
        self.heard.append(("answered", head.status, head.content_type))
        self.body += head.body
        if close is not None:
            self.closed(close)

    def data(self, data: bytes) -> None:
        self.body += data

    def closed(self, close: wire.Close) -> None:
        self.heard.append(("closed", close.outcome))

    def lost(self) -> None:
        self.heard.append(("lost",))


class Ends:
    """Both ends of a link that is up, and whoever owns it."""

    def __init__(self) -> None:
        self.wakes = 0
        self.link = Link(self._wake, 0.0)
        self.link.owner = self
        self.reports: list[wire.Report] = []
        self.batches: list[wire.Receipts] = []
        self.lies: list[str] = []
        self.drained = self.parted = 0
        self.events: list[session.Event] = []
        parties = session.Parties(
            agent_id="a",
            host="gw",
            server_identity=identity.public_half(SERVER),
            last_epoch=0,
            sign=lambda message: identity.sign(AGENT, message),
            verify=identity.verify,
        )
        self.agent = session.Session(parties)
        hands = greeting()
        self.agent.start()
        hands.hello(self.agent.take())
        self.agent.receive(hands.challenge(0), 0.0)
        self.agent.prove()
        self.agent.take()
        self.agent.receive(hands.welcome("a", "active", "0", 10.0), 0.0)

    def _wake(self) -> None:
        self.wakes += 1

    def reported(self, report: wire.Report) -> None:
        self.reports.append(report)

    def lied(self, charge: str) -> None:
        self.lies.append(charge)

    def drains(self) -> None:
        self.drained += 1

    def parts(self) -> None:
        self.parted += 1

    def receipts(self, batch: wire.Receipts) -> None:
        self.batches.append(batch)

    def pump(self, now: float = 0.0) -> None:
        while True:
            down, up = self.link.take(), self.agent.take()
            if not down and not up:
                return
            if down:
                self.events += self.agent.receive(down, now)
            if up:
                self.link.receive(up, now)

    def open(self, body: bytes = BODY, **fields: object) -> tuple[int, Ear]:
        ear = Ear()
        return self.link.open(ear, meta(body, **fields), body), ear

    def says(self, *frames: wire.Frame) -> None:
        """What the agent says, past its own session."""
        self.link.receive(b"".join(map(wire.encode, frames)), 0.0)


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 13, 70_000, 1_000_000])
def test_a_request_arrives_whole(size):
    ends = Ends()
    body = bytes(i % 251 for i in range(size))
    stream, _ = ends.open(body)
    ends.pump()
    assert ends.events == [session.Request(stream, meta(body), body)]


def test_an_answer_arrives_in_its_order():
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.agent.head(stream, 201, "text/plain", b"abc")
    ends.agent.data(stream, b"def")
    ends.agent.close(stream, wire.Close("done"))
    ends.pump()
    assert ear.heard == [("answered", 201, "text/plain"), ("closed", "done")]
    assert ear.body == b"abcdef"


def test_streams_are_numbered_and_do_not_mix():
    ends = Ends()
    opened = [ends.open() for _ in range(3)]
    ends.pump()
    for stream, _ in opened:
        ends.agent.head(stream, 200, "", b"%d" % stream)
    ends.pump()
    assert [(stream, ear.body) for stream, ear in opened] == [(1, b"1"), (2, b"2"), (3, b"3")]


def test_whoever_has_something_to_send_is_woken():
    ends = Ends()
    stream, _ = ends.open()
    assert ends.wakes == 1
    ends.pump()
    for step, call in enumerate((lambda: ends.link.cancel(stream), ends.link.drain, lambda: ends.link.goodbye("revoked", "")), 2):
        call()
        assert ends.wakes == step


def test_a_large_body_delays_nobody():
    """The first frame of a new request goes before the rest of an older body."""
    ends = Ends()
    ends.open(b"x" * 900_000)
    ends.events += ends.agent.receive(ends.link.take(), 0.0)
    small, _ = ends.open()
    ends.pump()
    assert [event.stream for event in ends.events if isinstance(event, session.Request)] == [small, 1]


# -- receipts ----------------------------------------------------------------------------------------------------------

HASH = b"h" * 32


def test_receipts_reach_the_owner_and_the_agent_hears_what_is_kept():
    ends = Ends()
    batch = wire.Receipts(receipts=[wire.Receipt(seq=1, tag=b"t", outcome="done")], after=0, prev=bytes(32), head=HASH, clear=True)
    ends.agent.receipts(batch)
    ends.pump()
    [heard] = ends.batches
    assert (heard.receipts, heard.clear) == (batch.receipts, True)
    assert identity.verify(identity.public_half(AGENT), heard.signature, wire.transcript_receipts("a", 1, HASH))
    before = ends.wakes
    ends.link.received(1)
    assert ends.wakes == before + 1
    ends.pump()
    assert ends.events == [session.Received(1)]


@pytest.mark.parametrize("payload", [b"{}", b'{"after":-1}', b"x" * 100])
def test_receipts_that_are_none_end_the_link(payload):
    ends = Ends()
    with pytest.raises(wire.ProtocolError, match="bad Receipts"):
        ends.says(wire.Frame(0, wire.RECEIPTS, payload))
    assert ends.batches == []


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_a_cancel_is_confirmed_when_the_engine_is_free():
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.link.cancel(stream)
    ends.pump()
    assert ends.events[-1] == session.Cancel(stream)
    assert ear.heard == []
    ends.agent.close(stream, wire.Close("cancelled"))
    ends.pump()
    assert ear.heard == [("closed", "cancelled")]


def test_a_cancel_of_what_never_left_is_confirmed_at_once():
    ends = Ends()
    stream, ear = ends.open()
    ends.link.cancel(stream)
    assert ear.heard == [("closed", "cancelled")]
    ends.pump()
    assert ends.events == []


def test_a_cancel_in_the_middle_of_a_body_ends_it():
    ends = Ends()
    stream, ear = ends.open(b"x" * 900_000)
    ends.events += ends.agent.receive(ends.link.take(), 0.0)
    ends.link.cancel(stream)
    ends.pump()
    assert ear.heard == [("closed", "cancelled")]
    assert ends.events == []


def test_a_cancel_that_crosses_the_end_is_harmless():
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.agent.close(stream, wire.Close("done"))
    ends.link.cancel(stream)
    ends.pump()
    assert ear.heard == [("closed", "done")]


def test_a_cancel_of_a_forgotten_stream_is_harmless():
    ends = Ends()
    stream, ear = ends.open()
    ends.link.forget(stream)
    ends.link.cancel(stream)
    ends.link.forget(stream)
    assert ear.heard == []


# -- credit ------------------------------------------------------------------------------------------------------------


def test_a_reader_that_stops_holds_one_window_and_no_more():
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.agent.head(stream, 200, "")
    for _ in range(1000):
        if not ends.agent.writable(stream):
            break
        ends.agent.data(stream, b"x" * 10_000)
        ends.pump()
    assert len(ear.body) == wire.WINDOW
    assert ends.agent._out.load(stream) < wire.WINDOW + 10_000


def test_a_reader_that_goes_on_wakes_the_engine():
    ends = Ends()
    stream, _ = ends.open()
    ends.pump()
    ends.agent.head(stream, 200, "", b"x" * wire.WINDOW)
    ends.pump()
    assert not ends.agent.writable(stream)
    ends.link.consumed(stream, wire.WINDOW // 2)
    ends.pump()
    assert ends.agent.writable(stream)
    assert ends.events[-1] == session.Writable(stream)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 120_000), st.integers(0, 200_000)), max_size=20), st.integers())
def test_any_way_of_reading_and_writing_moves_every_byte(steps, seed):
    """Never more than a window between the ends, never a deadlock, nothing lost and nothing twice."""
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.agent.head(stream, 200, "")
    sent, read, random = b"", 0, Random(seed)
    for write, consume in [*steps, *[(0, wire.WINDOW)] * 40]:
        if ends.agent.writable(stream):
            piece = random.randbytes(write)
            ends.agent.data(stream, piece)
            sent += piece
        ends.pump()
        assert len(ear.body) - read <= wire.WINDOW
        consume = min(consume, len(ear.body) - read)
        ends.link.consumed(stream, consume)
        read += consume
    assert ear.body == sent
    assert ends.agent.writable(stream)


def test_one_stopped_reader_stops_nobody_else():
    ends = Ends()
    (slow, _), (fast, ear) = ends.open(), ends.open()
    ends.pump()
    ends.agent.head(slow, 200, "", b"x" * wire.WINDOW * 2)
    ends.agent.head(fast, 200, "")
    for _ in range(64):
        assert ends.agent.writable(fast)
        ends.agent.data(fast, b"y" * 2**16)
        ends.pump()
        ends.link.consumed(fast, 2**16)
        ends.pump()
    assert len(ear.body) == 2**22


def test_bytes_of_a_forgotten_stream_are_dropped():
    ends = Ends()
    stream, ear = ends.open()
    ends.pump()
    ends.agent.head(stream, 200, "", b"late")
    ends.link.forget(stream)
    ends.pump()
    assert (ear.heard, ear.body) == ([], b"")


# -- the link ----------------------------------------------------------------------------------------------------------


def test_reports_and_drains_reach_the_owner():
    ends = Ends()
    ends.agent.report(wire.Report(4, hostname="h"))
    ends.agent.drain()
    ends.pump()
    assert ends.reports == [wire.Report(4, hostname="h")]
    assert ends.drained == 1


def test_of_many_reports_the_first_and_the_newest_are_looked_at():
    ends = Ends()
    heard = ends.reports
    for serial in range(20):
        ends.says(wire.frame(wire.Report(serial)))
    assert [report.serial for report in heard] == [*range(REPORTS)]
    assert ends.link.tick(REPORT_INTERVAL - 0.01)
    assert len(heard) == REPORTS
    assert ends.link.tick(REPORT_INTERVAL)
    assert heard[REPORTS:] == [wire.Report(19)]
    assert ends.link.tick(9.0)
    assert len(heard) == REPORTS + 1


def test_a_report_that_waits_is_forgotten_for_a_newer_one_that_need_not():
    ends = Ends()
    for serial in range(REPORTS + 1):
        ends.says(wire.frame(wire.Report(serial)))
    ends.link.receive(wire.encode(wire.frame(wire.Report(99))), 5.0)
    assert ends.link.tick(9.0)
    assert [report.serial for report in ends.reports] == [*range(REPORTS), 99]


def test_a_drain_is_passed_on():
    ends = Ends()
    ends.link.drain()
    ends.pump()
    assert ends.events == [session.DrainAsked()]


def test_a_goodbye_says_why_once():
    ends = Ends()
    ends.link.goodbye("revoked", "x" * 9000, 5.0)
    ends.link.goodbye("draining", "too late")
    ends.pump()
    assert ends.events == [wire.Goodbye("revoked", "x" * 500, 5.0)]


def test_a_goodbye_of_the_agent_closes_the_link():
    ends = Ends()
    ends.says(wire.frame(wire.Goodbye("draining")))
    assert (ends.link.closing, ends.parted) == (wire.Goodbye("draining"), 1)
    assert not ends.link.tick(0.0)


def test_pings_measure_the_way():
    ends = Ends()
    assert ends.link.tick(PING_INTERVAL)
    ends.pump(now=PING_INTERVAL + 0.25)
    assert ends.link.rtt == pytest.approx(0.25)


def test_pings_are_answered():
    ends = Ends()
    ends.says(wire.Frame(0, wire.PING, b"echo"))
    assert wire.Decoder().feed(ends.link.take()) == [wire.Frame(0, wire.PONG, b"echo")]


def test_a_link_is_dead_after_long_silence():
    ends = Ends()
    assert ends.link.tick(SILENCE)
    assert not ends.link.tick(SILENCE + 0.1)
    ends.pump(now=SILENCE + 0.2)
    assert ends.link.tick(SILENCE + 0.3)


def test_everybody_hears_of_the_loss_once():
    ends = Ends()
    ears = [ends.open()[1] for _ in range(3)]
    ends.link.lost()
    ends.link.lost()
    assert [ear.heard for ear in ears] == [[("lost",)]] * 3


def test_a_listener_may_go_while_the_loss_is_told():
    ends = Ends()
    stream, ear = ends.open()
    ear.lost = lambda: ends.link.forget(stream)  # type: ignore[method-assign]
    ends.link.lost()


def test_an_agent_that_does_not_read_ends_its_own_link():
    """Whoever cancels, credits, pings or says goodbye there goes on as if nothing had happened."""
    ends = Ends()
    stream, _ = ends.open()
    ends.link.take()
    fill = wire.Frame(0, wire.PING, b"x" * 64)
    with pytest.raises(wire.ProtocolError, match="does not read"):
        while True:
            ends.says(fill)
    while ends.link._out._control_size + 10 <= flow.MAX_CONTROL:
        ends.says(wire.Frame(0, wire.PING))
    assert ends.link.tick(PING_INTERVAL)
    ends.link.cancel(stream)
    ends.link.drain()
    ends.link.goodbye("revoked", "")
    assert ends.link.closing is not None
    assert (ends.link.closing.code, ends.drained) == ("protocol", 1)
    assert not ends.link.tick(PING_INTERVAL)


# -- hostile agents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        wire.Frame(9, wire.DATA, b"x"), wire.Frame(9, wire.CREDIT, b"\0\0\0\1"), wire.Frame(9, wire.CLOSE, b"{}"),
        wire.Frame(1, wire.CLOSE, b"{}"),
        wire.Frame(1, wire.CLOSE, b'{"outcome":"won"}'), wire.Frame(1, wire.CLOSE, b'{"outcome":"' + b"A" * 60_000 + b'"}'),
        wire.Frame(1, wire.CLOSE, b"[" * 60_000), wire.Frame(1, wire.CREDIT, b"\0\0\0\1"), wire.Frame(1, wire.CREDIT, b"\xff\xff\xff\xff"),
        wire.Frame(1, wire.HEAD, b"\0\0\0"), wire.Frame(1, wire.HEAD, b"\0\xc8\x02a"), wire.Frame(1, wire.HEAD, b"\0\xc8\x02\r\n"),
        wire.Frame(0, wire.HELLO, b"{}"), wire.Frame(0, wire.PROOF, b"{}"), wire.Frame(0, wire.GOODBYE, b"{}"),
        wire.Frame(0, wire.PONG, b"soon"), wire.Frame(0, wire.PONG, b"\xff"),
    ],
    ids=lambda frame: f"{frame.stream}-{frame.kind}-{frame.payload[:12]!r}",
)  # fmt: skip
def test_a_frame_out_of_place_ends_the_link(frame):
    ends = Ends()
    ends.open()
    with pytest.raises(wire.ProtocolError) as caught:
        ends.says(frame)
    ends.link.goodbye("protocol", str(caught.value))
    assert ends.link.take()


@pytest.mark.parametrize(
    "report",
    [
        b"[]", b'{"serial":-1}', b'{"serial":9223372036854775808}', b"[" * 60_000, b'{"gpus":[{"name":"g","temperature":NaN}]}',
        b"\xff\xfe", b'{"engines":[{"id":"e","kind":"k","healthy":true,"slots":-1}]}',
        b'{"engines":[{"id":"e","kind":"k","healthy":true,"slots":1e999}]}',
    ],
    ids=lambda report: repr(report[:24]),
)  # fmt: skip
def test_a_report_that_is_none_is_told_to_the_owner_and_the_link_goes_on(report):
    ends = Ends()
    ends.says(wire.Frame(0, wire.REPORT, report), wire.Frame(0, wire.DRAIN))
    assert (ends.reports, ends.drained, ends.link.closing) == ([], 1, None)
    (charge,) = ends.lies
    assert charge.startswith("it reports what cannot be: bad Report")


@pytest.mark.parametrize("payload", [b"nan", b"inf", b"-1e9", b"1e9", b"0.5e1"])
def test_a_strange_pong_measures_nothing(payload):
    ends = Ends()
    ends.says(wire.Frame(0, wire.PONG, payload))
    assert ends.link.rtt is None


def test_more_than_the_window_ends_the_link():
    ends = Ends()
    ends.open()
    with pytest.raises(wire.ProtocolError, match="overran"):
        ends.says(*[wire.Frame(1, wire.DATA, b"x" * 2**16)] * 5)


def test_frames_of_a_forgotten_stream_are_no_fault():
    ends = Ends()
    stream, _ = ends.open()
    ends.link.forget(stream)
    ends.says(wire.Frame(1, wire.HEAD, b"\0\0\0"), wire.Frame(1, wire.DATA, b"x"), wire.Frame(1, wire.CLOSE, b"{}"), wire.credit(1, 5))


kinds = st.sampled_from(sorted(wire.FROM_AGENT)) | st.integers(0, 255)
texts = st.sampled_from(
    [json.dumps(value).encode() for value in ({}, {"outcome": "done"}, {"outcome": "busy", "usage": {}}, {"serial": 1}, {"code": "x"})]
)
payloads = st.binary(max_size=12) | texts | st.builds(wire.build_head, st.integers(0, 65535), st.text(max_size=3), st.binary(max_size=3))
frames = st.builds(
    lambda stream, kind, flags, payload: struct.pack("!IIBB", len(payload), stream, kind, flags) + payload,
    st.integers(0, 4),
    kinds,
    st.integers(0, 2),
    payloads,
)


@given(st.lists(st.lists(frames, min_size=1, max_size=4).map(b"".join) | st.binary(max_size=30), max_size=8))
def test_whatever_an_agent_sends_is_taken_or_a_protocol_error(messages):
    ends = Ends()
    ears = [ends.open()[1] for _ in range(2)]
    ends.link.take()
    try:
        for message in messages:
            ends.link.receive(message, 0.0)
    except wire.ProtocolError as wrong:
        ends.link.goodbye("protocol", str(wrong))
        assert ends.link.take()
    ends.link.lost()
    assert all(ear.heard[-1] == ("lost",) for ear in ears)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_damaged_message_is_taken_or_a_protocol_error(place, damage):
    ends = Ends()
    stream, _ = ends.open()
    ends.pump()
    ends.agent.head(stream, 200, "text/plain", b"abc")
    ends.agent.close(stream, wire.Close("done", message="fine"))
    message = ends.agent.take()
    place %= len(message)
    try:
        ends.link.receive(message[:place] + damage + message[place + len(damage) :], 0.0)
    except wire.ProtocolError:
        ends.link.lost()


def test_an_answer_that_begins_twice_ends_the_link():
    both = Ends()
    both.link.open(Ear(), meta(), BODY)
    head = wire.encode(wire.Frame(1, wire.HEAD, wire.build_head(200, "text/event-stream")))
    both.link.receive(head, 0.0)
    with pytest.raises(wire.ProtocolError, match="a second time"):
        both.link.receive(head + wire.encode(wire.frame(wire.Close("done"), 1)), 0.0)


def test_nothing_is_kept_of_streams_that_are_over():
    both = Ends()
    for _ in range(3):
        stream = both.link.open(Ear(), meta(), BODY)
        both.link.forget(stream)
    both.link.open(Ear(), meta(), BODY)
    both.link.lost()
    assert not both.link._silent
