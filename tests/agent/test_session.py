"""The agent's end of a link: the handshake, requests, flow, cancel, drain, and a server that says anything in any order."""

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mindgw_agent import session as rooms
from mindgw_agent import wire
from mindgw_agent.session import (
    Cancel,
    DrainAsked,
    IdentityError,
    OutOfOrder,
    Parties,
    Proving,
    Ready,
    Received,
    Request,
    Session,
    State,
    Writable,
)
from mindgw_agent.states import STREAM_TRANSITIONS, TRANSITIONS, Input, Phase, Step
from mindgw_agent.vocabulary import MAX_LINES
from mindgw_agent.wire import WINDOW, Close, Decoder, Frame, Goodbye, Meta, ProtocolError, Report

AGENT_KEY, SERVER_KEY = b"a" * 32, b"s" * 32
REPORT = Report(1, [wire.EngineReport(id="e", kind="llama.cpp", healthy=True, slots=2)])
PATH = "/v1/completions"


def mac(key: bytes, message: bytes) -> bytes:
    """Stands in for a signature: these tests are about who signs what, not about curves."""
    return hmac.new(key, message, hashlib.sha512).digest()


def check(key: bytes, signature: bytes, message: bytes) -> bool:
    return hmac.compare_digest(mac(key, message), signature)


def new_session(report: Report | None = None, **changes: object) -> Session:
    values: dict[str, object] = {
        "agent_id": "agent-1",
        "host": "gw.example",
        "server_identity": SERVER_KEY,
        "last_epoch": 4,
        "sign": lambda message: mac(AGENT_KEY, message),
        "verify": check,
        "software": "test",
    }
    return Session(Parties(**(values | changes)), report)  # type: ignore[arg-type]


class Server:
    """The other end, written plainly: it says what it is told to and keeps what it hears."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard: list[Frame] = []
        self.decoder = Decoder(wire.FROM_AGENT)

    def listen(self, limit: int = wire.MAX_MESSAGE) -> list[Frame]:
        new: list[Frame] = []
        while message := self.session.take(limit):
            new += self.decoder.feed(message)
        self.heard += new
        return new

    def say(self, *frames: Frame, now: float = 0.0) -> list[rooms.Event]:
        return self.session.receive(b"".join(map(wire.encode, frames)), now)

    def challenge(self, epoch: int = 5, key: bytes = SERVER_KEY, version: int = wire.VERSION) -> list[rooms.Event]:
        hello = wire.parse(wire.Hello, self.listen()[0].payload)
        nonce = b"n" * 32
        signature = mac(key, wire.transcript_challenge(hello.nonce, nonce, hello.agent_id, epoch, version))
        return self.say(wire.frame(wire.Challenge(nonce=nonce, epoch=epoch, signature=signature, version=version)))

    def open(self, stream: int, body: bytes = b"", *, end: bool = True, length: int | None = None, path: str = PATH) -> list[rooms.Event]:
        meta = Meta(request_id=f"r{stream}", path=path, model="m", tag=b"tag", length=len(body) if length is None else length)
        return self.say(Frame(stream, wire.OPEN, wire.build_open(meta, body), end))

    def closes(self) -> list[tuple[int, Close]]:
        self.listen()
        return [(f.stream, wire.parse(Close, f.payload)) for f in self.heard if f.kind == wire.CLOSE]


def ready_link(**changes: object) -> tuple[Session, Server]:
    session = new_session(**changes)
    server = Server(session)
    session.start()
    server.challenge()
    session.prove(REPORT)
    server.say(wire.frame(wire.Welcome(name="box")))
    server.listen()
    server.heard.clear()
    return session, server


# -- the handshake


def test_hello_names_the_agent_its_last_epoch_and_a_fresh_nonce():
    session = new_session(random=lambda size: b"r" * size)
    session.start()
    frame = Server(session).listen()[0]
    assert wire.parse(wire.Hello, frame.payload) == wire.Hello(agent_id="agent-1", nonce=b"r" * 32, software="test", last_epoch=4)


def test_no_two_links_use_the_same_nonce():
    nonces = set()
    for _ in range(10):
        session = new_session()
        session.start()
        nonces.add(wire.parse(wire.Hello, Server(session).listen()[0].payload).nonce)
    assert len(nonces) == 10


def test_the_proof_leaves_only_after_the_shell_has_kept_the_epoch():
    session = new_session()
    server = Server(session)
    session.start()
    assert server.challenge(epoch=9) == [Proving(9)]
    assert session.verified
    assert session.take() == b""
    session.prove(REPORT)
    proof = wire.parse(wire.Proof, server.listen()[0].payload)
    assert proof.report == REPORT
    assert check(AGENT_KEY, proof.signature, wire.transcript_proof(b"n" * 32, "agent-1", 9, 4, SERVER_KEY, "gw.example"))
    welcome = wire.Welcome(ping_interval=3, name="box")
    assert server.say(wire.frame(welcome)) == [Ready(welcome)]
    assert (session.state, session.epoch) == (State.READY, 9)


def test_a_server_with_another_key_is_not_ours():
    session = new_session()
    session.start()
    with pytest.raises(IdentityError):
        Server(session).challenge(key=b"x" * 32)
    assert not session.verified
    assert session.state is State.CLOSED


def test_a_challenge_for_another_nonce_is_worthless():
    recorded = new_session(random=lambda size: b"1" * size)
    recorded.start()
    old = Server(recorded)
    signature = mac(SERVER_KEY, wire.transcript_challenge(b"1" * 32, b"n" * 32, "agent-1", 5, 1))
    replayed = wire.frame(wire.Challenge(nonce=b"n" * 32, epoch=5, signature=signature))
    assert old.say(replayed) == [Proving(5)]
    session = new_session(random=lambda size: b"2" * size)
    session.start()
    with pytest.raises(IdentityError):
        Server(session).say(replayed)


@pytest.mark.parametrize("epoch", [0, 3, 4])
def test_an_epoch_that_was_used_is_refused(epoch):
    session = new_session()
    session.start()
    with pytest.raises(ProtocolError, match="epoch"):
        Server(session).challenge(epoch=epoch)


def test_a_version_that_we_do_not_speak_is_refused():
    session = new_session()
    session.start()
    with pytest.raises(ProtocolError, match="version"):
        Server(session).challenge(version=3)


def test_a_goodbye_before_the_proof_is_hearsay():
    session = new_session()
    session.start()
    goodbye = Goodbye("revoked", "go away")
    assert Server(session).say(wire.frame(goodbye)) == [goodbye]
    assert not session.verified


def test_the_report_of_the_constructor_is_proved_unless_there_is_a_newer_one():
    for newer in (None, Report(7)):
        session = new_session(report=REPORT)
        server = Server(session)
        session.start()
        server.challenge()
        if newer:
            session.report(newer)
        session.prove()
        assert wire.parse(wire.Proof, server.listen()[0].payload).report == (newer or REPORT)
        server.say(wire.frame(wire.Welcome()))
        assert server.listen() == [], "it was said already"


@pytest.mark.parametrize("call", ["start", "prove"])
def test_calls_in_the_wrong_order_are_a_bug(call):
    session, _ = ready_link()
    with pytest.raises(OutOfOrder, match="ready"):
        getattr(session, call)()


def test_who_drains_before_the_link_is_up_has_nothing_to_finish():
    session = new_session()
    session.start()
    session.drain()
    assert session.state is State.CLOSED


def test_a_server_that_says_goodbye_while_the_epoch_is_written_stops_the_proof():
    session = new_session()
    server = Server(session)
    session.start()
    server.challenge()
    server.say(wire.frame(Goodbye("locked")))
    session.prove(REPORT)
    assert server.listen() == []


# -- liveness and reports


def test_pings_are_echoed():
    session, server = ready_link()
    assert server.say(Frame(0, wire.PING, b"12.5")) == []
    assert server.listen() == [Frame(0, wire.PONG, b"12.5")]
    assert server.say(Frame(0, wire.PONG, b"")) == []
    assert session.state is State.READY


def test_a_silent_server_is_noticed_after_two_intervals_and_a_little():
    session = new_session()
    assert session.tick(100.0)
    assert session.tick(124.0)
    assert not session.tick(124.1)
    session, server = ready_link()
    server.say(Frame(0, wire.PING), now=200.0)
    assert session.tick(224.0)
    assert not session.tick(224.1)


def test_the_servers_ping_interval_counts():
    session = new_session()
    server = Server(session)
    session.start()
    server.challenge()
    session.prove(REPORT)
    server.say(wire.frame(wire.Welcome(ping_interval=1)), now=10.0)
    assert session.tick(12.3)
    assert not session.tick(12.5)


def test_only_the_newest_report_leaves():
    session, server = ready_link()
    for serial in range(100):
        session.report(Report(serial))
    assert [wire.parse(Report, f.payload).serial for f in server.listen()] == [99]


def test_a_report_before_the_link_is_up_waits():
    session = new_session()
    server = Server(session)
    session.report(Report(1))
    session.start()
    server.challenge()
    session.prove()
    session.report(Report(2))
    assert [f.kind for f in server.listen()] == [wire.PROOF]
    server.say(wire.frame(wire.Welcome()))
    assert [f.kind for f in server.listen()] == [wire.REPORT]


# -- receipts

HASH = b"h" * 32


def test_receipts_leave_signed_and_the_shell_hears_what_was_kept():
    session, server = ready_link()
    one = wire.Receipt(seq=7, tag=b"tag", outcome="done")
    session.receipts(wire.Receipts(receipts=[one], after=6, prev=bytes(32), head=HASH, clear=True))
    session.receipts(wire.Receipts(after=7, prev=HASH, head=HASH))
    batches = [wire.parse(wire.Receipts, frame.payload) for frame in server.listen()]
    assert [(batch.receipts, batch.last, batch.clear) for batch in batches] == [([one], 7, True), ([], 7, False)]
    assert all(check(AGENT_KEY, batch.signature, wire.transcript_receipts("agent-1", 7, HASH)) for batch in batches)
    assert server.say(wire.frame(wire.Received(7))) == [Received(7)]


def test_receipts_leave_on_a_link_that_is_up_and_nowhere_else():
    session = new_session()
    batch = wire.Receipts(after=0, prev=HASH, head=HASH)
    with pytest.raises(OutOfOrder, match="ACCOUNT on a link that is new"):
        session.receipts(batch)
    session, server = ready_link()
    session.drain()
    server.listen()
    session.receipts(batch)
    assert [frame.kind for frame in server.listen()] == [wire.RECEIPTS]
    server.say(wire.frame(Goodbye("draining")))
    session.receipts(batch)
    assert server.listen() == []


# -- requests


def test_a_request_arrives_whole_and_is_answered():
    session, server = ready_link()
    [request] = server.open(1, b'{"a":1}')
    assert isinstance(request, Request)
    assert (request.stream, request.body, request.meta.request_id) == (1, b'{"a":1}', "r1")
    session.head(1, 200, "text/event-stream", b"data: 1\n\n")
    session.data(1, b"data: 2\n\n")
    session.close(1, Close("done", usage=wire.Usage(1, 2)))
    frames = server.listen()
    assert [f.kind for f in frames] == [wire.HEAD, wire.CLOSE]
    assert wire.parse_head(frames[0].payload) == wire.Head(200, "text/event-stream", b"data: 1\n\ndata: 2\n\n")
    assert wire.parse(Close, frames[1].payload).usage == wire.Usage(1, 2)
    assert session.streams == 0


def test_a_large_body_is_collected_and_credit_given_back():
    _, server = ready_link()
    data = bytes(range(256)) * 4096
    assert server.open(1, data[:40_000], end=False, length=len(data)) == []
    for start in range(40_000, len(data), 50_000):
        chunk = data[start : start + 50_000]
        events = server.say(Frame(1, wire.DATA, chunk, start + 50_000 >= len(data)))
    assert events == [Request(1, events[0].meta, data)]  # type: ignore[union-attr]
    granted = sum(wire.parse_credit(f.payload) for f in server.listen())
    assert len(data) - WINDOW <= granted < len(data)


def test_two_bodies_may_arrive_interleaved():
    _, server = ready_link()
    server.open(1, b"a", end=False, length=2)
    server.open(2, b"x", end=False, length=2)
    [two] = server.say(Frame(2, wire.DATA, b"y", end=True))
    [one] = server.say(Frame(1, wire.DATA, b"b", end=True))
    assert (one.body, two.body) == (b"ab", b"xy")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("opening", "outcome", "code"),
    [
        ({"path": "/api/delete"}, "failed", "refused"),
        ({"length": wire.MAX_BODY + 1, "end": False}, "failed", "refused"),
    ],
)
def test_what_may_not_be_carried_is_refused_and_the_link_lives_on(opening, outcome, code):
    session, server = ready_link()
    assert server.open(1, **opening) == []
    assert server.say(Frame(1, wire.DATA, b"late"), wire.credit(1, 5), Frame(1, wire.CANCEL)) == []
    [(stream, close)] = server.closes()
    assert (stream, close.outcome, close.code, close.tag) == (1, outcome, code, b"tag")
    assert session.streams == 0
    assert len(server.open(2)) == 1


def test_bodies_are_bounded_over_all_streams():
    session, server = ready_link()
    most = rooms.MAX_BODIES // wire.MAX_BODY
    for stream in range(1, most + 2):
        assert server.open(stream, end=False, length=wire.MAX_BODY) == []
    assert [(s, c.outcome) for s, c in server.closes()] == [(most + 1, "busy")]
    server.say(Frame(1, wire.CANCEL))
    server.open(most + 2, end=False, length=wire.MAX_BODY)
    assert [(s, c.outcome) for s, c in server.closes()][1:] == [(1, "cancelled")]
    assert session.streams == most


def test_open_streams_are_bounded(monkeypatch):
    monkeypatch.setattr(rooms, "MAX_STREAMS", 8)
    _, server = ready_link()
    for stream in range(1, rooms.MAX_STREAMS + 2):
        server.open(stream)
    assert [(s, c.outcome) for s, c in server.closes()] == [(rooms.MAX_STREAMS + 1, "busy")]


def test_answers_that_nobody_reads_count_as_open_streams(monkeypatch):
    monkeypatch.setattr(rooms, "MAX_STREAMS", 8)
    session, server = ready_link()
    for stream in range(1, rooms.MAX_STREAMS + 2):
        server.open(stream)
        session.head(stream, 200, "", bytes(WINDOW + 1))
        session.close(stream, Close("done"))
        server.listen()
    assert session.streams == rooms.MAX_STREAMS
    assert [(s, c.outcome) for s, c in server.closes()] == [(rooms.MAX_STREAMS + 1, "busy")]


# -- flow


def test_a_shell_is_stopped_at_a_window_and_woken_at_half_of_it():
    session, server = ready_link()
    server.open(1)
    session.head(1, 200, "text/plain")
    while session.writable(1):
        session.data(1, bytes(10_000))
    server.listen()
    assert server.say(wire.credit(1, WINDOW // 4)) == []
    server.listen()
    assert not session.writable(1)
    assert server.say(wire.credit(1, WINDOW // 4), wire.credit(1, WINDOW // 4)) == [Writable(1)]
    assert session.writable(1)


def test_a_head_that_fills_the_window_stops_the_shell_too():
    session, server = ready_link()
    server.open(1)
    session.head(1, 200, "text/plain", bytes(WINDOW))
    session.data(1, b"x")
    assert not session.writable(1)


def test_a_stream_that_is_over_never_holds_the_shell_up():
    session, _ = ready_link()
    assert session.writable(77)


# -- cancel


@pytest.mark.parametrize("answered", [False, True])
def test_a_cancelled_request_is_closed_by_the_shell_and_its_data_forgotten(answered):
    session, server = ready_link()
    server.open(1)
    if answered:
        session.head(1, 200, "text/plain", bytes(2 * WINDOW))
        server.listen()
        assert not session.writable(1)
    assert server.say(Frame(1, wire.CANCEL)) == [Cancel(1)]
    assert server.say(Frame(1, wire.CANCEL)) == []
    session.head(1, 200, "text/plain", b"too late")
    session.data(1, b"too late")
    assert session.writable(1)
    assert server.listen() == []
    session.close(1, Close("cancelled"))
    assert [f.kind for f in server.listen()] == [wire.CLOSE]
    assert session.streams == 0
    session.close(1, Close("cancelled"))
    assert server.listen() == []


def test_a_request_cancelled_before_it_is_whole_never_reaches_the_shell():
    session, server = ready_link()
    server.open(1, b"a", end=False, length=10)
    assert server.say(Frame(1, wire.CANCEL)) == []
    assert [(s, c.outcome, c.tag) for s, c in server.closes()] == [(1, "cancelled", b"tag")]
    assert session.streams == 0


def test_a_cancel_after_the_end_frees_the_close_that_waits_for_credit():
    session, server = ready_link()
    server.open(1)
    session.head(1, 200, "text/plain", bytes(2 * WINDOW))
    session.close(1, Close("done"))
    assert server.closes() == []
    assert server.say(Frame(1, wire.CANCEL)) == []
    assert [c.outcome for _, c in server.closes()] == ["done"]


# -- drain and the end


def test_a_draining_agent_refuses_what_is_new_and_finishes_what_runs():
    session, server = ready_link()
    server.open(1)
    assert server.say(Frame(0, wire.DRAIN)) == [DrainAsked()]
    session.drain()
    session.drain()
    assert server.listen() == [Frame(0, wire.DRAIN)]
    assert server.open(2) == []
    session.head(1, 200, "text/plain", b"x")
    session.close(1, Close("done"))
    session.report(Report(2, draining=True))
    assert [(s, c.outcome, c.code) for s, c in server.closes()] == [(2, "failed", "draining"), (1, "done", "")]
    assert session.streams == 0


def test_after_goodbye_nothing_is_heard_or_said():
    session, server = ready_link()
    server.open(1)
    goodbye = Goodbye("replaced", retry_after=1.0)
    # whatever stands behind it in the same message concerns nobody
    assert server.say(wire.frame(goodbye), Frame(9, wire.DATA, b"x")) == [goodbye]
    assert server.say(Frame(9, wire.DATA, b"x")) == []
    session.head(1, 200, "")
    session.data(1, b"x")
    session.close(1, Close("done"))
    session.report(Report(9))
    session.drain()
    session.prove()
    assert server.listen() == []


def test_a_protocol_error_closes_the_link():
    session, server = ready_link()
    with pytest.raises(ProtocolError):
        session.receive("text", 0.0)
    assert session.state is State.CLOSED
    assert server.say(Frame(0, wire.PING)) == []


def test_steps_of_the_shell_in_the_wrong_order_are_a_bug():
    session, server = ready_link()
    server.open(1)
    with pytest.raises(OutOfOrder, match="running"):
        session.data(1, b"x")
    session.head(1, 200, "")
    with pytest.raises(OutOfOrder, match="answering"):
        session.head(1, 200, "")


OPENED = Frame(5, wire.OPEN, wire.build_open(Meta(request_id="r", path=PATH, model="m", length=2), b"ab"), end=True)
HALF = Frame(5, wire.OPEN, OPENED.payload[:-1])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([OPENED, OPENED], "was opened after"),
        ([OPENED, Frame(4, wire.OPEN, OPENED.payload, end=True)], "was opened after"),
        ([OPENED, Frame(5, wire.DATA, b"x")], "went on after its end"),
        ([OPENED, Frame(5, wire.CANCEL), Frame(5, wire.DATA, b"x")], "went on after its end"),
        ([HALF, Frame(5, wire.DATA, b"xy")], "not as long"),
        ([HALF, Frame(5, wire.DATA, b"", end=True)], "not as long"),
        ([Frame(5, wire.DATA, b"x")], "never opened"),
        ([Frame(5, wire.CANCEL)], "never opened"),
        ([wire.credit(5, 1)], "never opened"),
        ([OPENED, wire.credit(5, 1)], "more credit"),
        ([Frame(5, wire.OPEN, b"\0\x09{}")], "cut"),
        ([Frame(5, wire.OPEN, b"\0\x02{}")], "bad Meta"),
        ([wire.frame(wire.Welcome())], "WELCOME on a link that is ready"),
        ([Frame(0, wire.CHALLENGE, b"{}")], "CHALLENGE on a link that is ready"),
        ([Frame(0, wire.GOODBYE, b"{}")], "bad Goodbye"),
        ([Frame(0, wire.RECEIVED, b"{}")], "bad Received"),
        ([Frame(0, wire.PING, bytes(64))] * 15_000, "does not read"),
    ],
)
def test_a_server_that_breaks_the_rules_is_left(frames, reason):
    _, server = ready_link()
    with pytest.raises(ProtocolError, match=reason):
        for start in range(0, len(frames), 10_000):
            server.say(*frames[start : start + 10_000])


def test_requests_before_the_welcome_are_refused():
    session = new_session()
    session.start()
    with pytest.raises(ProtocolError, match="OPEN on a link that is greeting"):
        Server(session).say(OPENED)


# -- the tables


def test_every_state_has_its_row_and_every_row_leads_to_states():
    assert set(TRANSITIONS) == set(State)
    assert {state for row in TRANSITIONS.values() for state in row.values()} == set(State)
    assert set(STREAM_TRANSITIONS) == set(Phase) - {Phase.OVER}
    assert {step for row in STREAM_TRANSITIONS.values() for step in row} == set(Step)


def test_every_frame_of_a_server_is_an_input():
    assert {i.value for i in Input if i.value < 256} == wire.FROM_SERVER


def test_every_phase_but_receiving_can_be_closed_and_every_one_cancelled():
    closable = {phase for phase, row in STREAM_TRANSITIONS.items() if row.get(Step.CLOSE) is Phase.OVER}
    assert closable == set(STREAM_TRANSITIONS) - {Phase.RECEIVING}
    assert all(Step.CANCEL in row for row in STREAM_TRANSITIONS.values())


# -- a server that says anything


class HostileServer(RuleBasedStateMachine):
    """Any frames in any order: legal events or ProtocolError, never another exception, never unbounded memory."""

    @initialize(handshake=st.integers(0, 3))
    def set_up(self, handshake: int) -> None:
        self.session = new_session()
        self.server = Server(self.session)
        self.alive = True
        self.requests: set[int] = set()
        self.answering: set[int] = set()
        self.stream = 0
        if handshake >= 1:
            self.session.start()
        if handshake >= 2:
            self.server.challenge()
        if handshake >= 3:
            self.session.prove(REPORT)
            self.server.say(wire.frame(wire.Welcome()))

    def hear(self, message: bytes) -> None:
        try:
            events = self.session.receive(message, 1.0)
        except ProtocolError:
            self.alive = False
            assert self.session.state is State.CLOSED
            return
        for event in events:
            self.obey(event)

    def obey(self, event: rooms.Event) -> None:
        """What the real shell does."""
        if isinstance(event, Proving):
            self.session.prove(REPORT)
        elif isinstance(event, Request):
            assert event.stream not in self.requests
            self.requests.add(event.stream)
        elif isinstance(event, Cancel | Writable):
            assert event.stream in self.requests
        elif isinstance(event, DrainAsked):
            self.session.drain()
        elif isinstance(event, Goodbye):
            self.alive = False

    @rule(stream=st.integers(1, 6), end=st.booleans(), length=st.integers(0, 4), body=st.binary(max_size=4), new=st.booleans())
    def opens(self, stream: int, end: bool, length: int, body: bytes, new: bool) -> None:
        self.stream = self.stream + 1 if new else stream
        meta = Meta(request_id="r", path=PATH, model="m", length=len(body) if end and new else length)
        self.hear(wire.encode(Frame(self.stream, wire.OPEN, wire.build_open(meta, body[: None if end and new else length]), end)))

    @rule(stream=st.integers(1, 6), data=st.binary(min_size=1, max_size=3), end=st.booleans())
    def sends_data(self, stream: int, data: bytes, end: bool) -> None:
        self.hear(wire.encode(Frame(stream, wire.DATA, data, end)))

    @rule(stream=st.integers(1, 6))
    def cancels(self, stream: int) -> None:
        self.hear(wire.encode(Frame(min(stream, self.stream) or 1, wire.CANCEL)))

    @rule(stream=st.integers(1, 6), size=st.sampled_from([0, 1, 10, WINDOW, 2**32 - 1]))
    def grants(self, stream: int, size: int) -> None:
        self.hear(wire.encode(wire.credit(min(stream, self.stream) or 1, size)))

    @rule(kind=st.sampled_from(sorted(wire.FROM_SERVER)), stream=st.integers(0, 6), payload=st.binary(max_size=12), flags=st.integers(0, 2))
    def sends_any_frame(self, kind: int, stream: int, payload: bytes, flags: int) -> None:
        self.hear(wire.pack_header(len(payload), stream, kind, flags) + payload)

    @rule(word=st.sampled_from([wire.Welcome(), Goodbye("x"), Close("done"), REPORT, Received(1)]))
    def says_a_word_at_any_time(self, word: wire.Payload) -> None:
        self.hear(wire.encode(wire.frame(word, 1 if isinstance(word, Close) else 0)))

    @rule(kind=st.sampled_from([wire.PING, wire.PONG, wire.DRAIN]))
    def says_small_things(self, kind: int) -> None:
        self.hear(wire.encode(Frame(0, kind)))

    @rule(noise=st.binary(max_size=30))
    def sends_noise(self, noise: bytes) -> None:
        self.hear(noise)

    @rule(size=st.sampled_from([0, 10, WINDOW]))
    def the_shell_answers(self, size: int) -> None:
        for stream in sorted(self.requests):
            if stream in self.answering:
                if self.session.writable(stream):
                    self.session.data(stream, bytes(size))
            else:
                self.answering.add(stream)
                self.session.head(stream, 200, "text/plain", bytes(size))

    @rule()
    def the_shell_closes(self) -> None:
        if self.requests:
            self.session.close(self.requests.pop(), Close("done"))

    @rule(serial=st.integers(0, 9))
    def the_shell_reports(self, serial: int) -> None:
        self.session.report(Report(serial))

    @rule(last=st.integers(0, 9))
    def the_shell_sends_receipts(self, last: int) -> None:
        if self.session.state in {State.READY, State.DRAINING, State.CLOSED}:
            self.session.receipts(wire.Receipts(after=last, prev=HASH, head=HASH))

    @rule()
    def the_line_takes_a_message(self) -> None:
        self.server.listen()

    @invariant()
    def the_ends_agree(self) -> None:
        if not hasattr(self, "session"):
            return
        if not self.alive:
            assert self.session.state is State.CLOSED
        assert self.session.streams <= rooms.MAX_STREAMS

    def teardown(self) -> None:
        """What the agent said was legal to the last frame, and each stream was closed at most once, with nothing behind it."""
        if not hasattr(self, "server"):
            return
        self.server.listen()
        over: set[int] = set()
        for frame in self.server.heard:
            assert frame.stream not in over
            if frame.kind == wire.CLOSE:
                over.add(frame.stream)


TestHostileServer = HostileServer.TestCase
TestHostileServer.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_noise_is_a_protocol_error_in_every_state(noise, handshake):
    session = new_session()
    server = Server(session)
    if handshake >= 1:
        session.start()
    if handshake >= 2:
        server.challenge()
    if handshake >= 3:
        session.prove(REPORT)
        server.say(wire.frame(wire.Welcome()))
    try:
        session.receive(noise, 0.0)
    except ProtocolError:
        assert session.state is State.CLOSED


def test_what_is_urgent_is_told_from_what_may_wait():
    session, _ = ready_link()
    assert (session.has_words, session.is_urgent) == (False, False)
    session.report(REPORT)
    assert (session.has_words, session.is_urgent) == (True, True)
    assert session.take()
    assert (session.has_words, session.is_urgent) == (False, False)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_a_command_is_told_and_answered():
    session, server = ready_link()
    command = wire.Command(1, "pull", "m")
    assert server.say(wire.frame(command)) == [command]
    session.progress(wire.Progress(id=1, note="half\nof it", part=0.5, lines=["a\x1b[2J", "b" * 9000]))
    (frame,) = server.listen()
    said = wire.parse(wire.Progress, frame.payload)
    assert (said.note, said.part, said.done, said.lines) == ("half of it", 0.5, False, ["a [2J", "b" * 500])


@given(st.lists(st.text(max_size=700), max_size=1200), st.text(max_size=900))
def test_whatever_is_said_about_a_command_fits_in_a_frame(lines, note):
    whole = wire.Progress(id=1, note=note, lines=lines[:MAX_LINES])
    said = wire.parse(wire.Progress, wire.frame(wire.brief(whole)).payload)
    assert said.lines == [line[:500] for line in whole.lines][len(whole.lines) - len(said.lines) :]


@pytest.mark.parametrize(
    "payload", [b"[]", b'{"id":-1,"verb":"logs"}', b'{"id":1,"verb":"a\\u0007"}', b'{"id":1,"verb":"' + b"v" * 33 + b'"}']
)
def test_a_command_that_is_none_ends_the_link(payload):
    _, server = ready_link()
    with pytest.raises(ProtocolError):
        server.say(wire.Frame(0, wire.COMMAND, payload))


def test_a_server_of_the_first_version_has_no_commands():
    session = new_session()
    session.start()
    server = Server(session)
    server.challenge(version=1)
    session.prove()
    server.say(wire.frame(wire.Welcome()))
    with pytest.raises(ProtocolError, match="version 1 has no commands"):
        server.say(wire.frame(wire.Command(1, "logs", "5")))


def test_what_is_said_about_a_command_after_the_end_is_dropped():
    session, server = ready_link()
    server.say(wire.frame(Goodbye("draining")))
    session.progress(wire.Progress(id=1, done=True))
    assert session.state is State.CLOSED
