"""The fast lane beneath the answers: what it writes, what it holds, what it leaves behind."""

import gc

import pytest

from mindgw.config import Limits
from mindgw.gateway import auth
from mindgw.gateway.pipeline import Pipeline
from mindgw.server import front, hot, protocol
from mindgw_agent import wire
from tests.e2e.raw import CHAT, Raw, head, request
from tests.gateway.world import DONE, EVENT
from tests.server.hall import ANSWER, chat, hall


class Counting:
    """A transport that counts what is written to it."""

    def __init__(self, transport, writes):
        self._transport, self._writes = transport, writes

    def write(self, data):
        self._writes.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


@pytest.fixture(scope="module")
def here():
    writes = []

    class Front(front.Front):
        def connection_made(self, transport):
            super().connection_made(Counting(transport, writes))

    def make(config, pipeline, guard):
        kept = front.lane(config, pipeline, guard)
        return lambda **given: Front(*kept.args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "TTL", 1e9)
        with hall("fast", make=make, limits=Limits(body=100_000)) as made:
            made.writes = writes
            yield made


@pytest.fixture
def raw(here):
    """A connection on which one request was answered."""
    here.gate.clear()
    with here.raw() as made:
        ask(here, made)
        here.writes.clear()
        yield made
        here.gate.set()
    here.idle()


def ask(here, raw: Raw, scene="plain", *lines, **fields):
    raw.send(request(here.key, chat(scene, **fields), CHAT, *lines))
    answer = raw.answer()
    assert answer.status == 200
    return answer


def test_one_answer_is_one_write(here, raw):
    assert ask(here, raw).body == ANSWER
    assert len(here.writes) == 1 and here.writes[0].endswith(ANSWER)
    raw.send(request(here.key, b"{"))
    assert raw.answer().status == 400 and len(here.writes) == 2


def test_the_head_of_a_stream_leaves_with_its_first_events_and_its_end_with_the_last(here, raw):
    raw.send(request(here.key, chat("waits", stream=True)))
    raw.until(b"\n\n")
    (first,) = here.writes
    assert first.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" in first and b"data: {" in first
    here.gate.set()
    raw.until(b"0\r\n\r\n")
    assert len(here.writes) == 3 and here.writes[2].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_requests_leave_no_garbage(here, raw):
    """Reference counts alone free all of a request, unary or streamed, good or refused."""

    def asked(times):
        for _ in range(times):
            ask(here, raw)
            ask(here, raw, stream=True)
            raw.send(request(here.key, b"{") + request("bad", chat("plain")))
            assert [raw.answer().status for _ in range(2)] == [400, 401]
        here.idle()

    def collect():
        gc.collect()
        return len([thing for thing in gc.get_objects() if isinstance(thing, hot.Hot)])

    asked(3)
    here.do(gc.collect)
    here.do(gc.disable)
    try:
        asked(20)
        assert here.do(collect) <= 1  # the last one, which its connection still knows
        asked(20)
        found = here.do(gc.collect)
    finally:
        here.do(gc.enable)
    assert found < 20, "80 requests left garbage"


def test_what_a_client_does_not_read_waits_in_one_piece(here):
    """Small events that a transport holds cost it many times what they weigh."""
    here.gate.clear()
    with here.raw(window=4096) as raw:
        raw.send(request(here.key, chat("endless drops", stream=True)))
        (connection,) = here.until(lambda: list(here.server.server_state.connections))
        here.until(lambda: connection.flow.write_paused and not here.box.session.writable(here.box.stream), "the engine waits")
        assert here.do(connection.transport.get_write_buffer_size) < 2 * protocol.ROOM
        assert wire.WINDOW // 2 < len(connection.cycle._kept) < 2 * wire.WINDOW
        raw.until(b"\r\n\r\n")
        for _ in range(2 * wire.WINDOW // len(EVENT)):  # more than there was
            size, data = int(raw.until(b"\r\n"), 16), raw.until(b"\r\n")
            assert len(data) == size + 2 and data.replace(EVENT, b"") == b"\r\n"
        here.gate.set()
        assert raw.chunked().replace(EVENT, b"") == DONE
    here.idle()


def test_the_end_of_an_answer_is_written_even_if_the_client_does_not_read(here, raw):
    raw.send(request(here.key, chat("waits", stream=True)))
    raw.until(b"\n\n")
    (connection,) = here.do(lambda: list(here.server.server_state.connections))
    here.do(connection.pause_writing)
    here.gate.set()
    here.until(lambda: connection.cycle.response_complete, "it is over")
    assert len(here.writes) == 2 and here.writes[1].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    here.do(connection.resume_writing)
    raw.until(b"\r\n0\r\n\r\n")
    ask(here, raw)


def test_a_body_in_one_piece_is_not_copied(here, raw, monkeypatch):
    seen = []
    kept = Pipeline.post

    def post(self, exchange, event):
        if isinstance(event, hot.signals.Received):
            seen.append(type(event.body))
        kept(self, exchange, event)

    monkeypatch.setattr(Pipeline, "post", post)
    ask(here, raw)
    assert seen == [bytes]


def test_hot_and_other_requests_share_a_connection(here, raw):
    for _ in range(3):
        assert ask(here, raw).body == ANSWER
        raw.send(head("/deaf", method="GET") + head("/echo", "content-length: 3", method="POST") + b"abc")
        assert [raw.answer().body for _ in range(2)] == [b"deaf", b"3"]
    assert here.connections == 1


def test_a_defect_is_heard_of(here, raw, monkeypatch, caplog):
    monkeypatch.setattr(Pipeline, "open", lambda *_: 1 / 0)
    raw.send(request(here.key, chat("plain")))
    answer = raw.answer()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" in caplog.text


def test_what_is_being_answered_when_the_server_stops_is_the_last(here, raw):
    raw.send(request(here.key, chat("waits")))
    here.until(lambda: here.box.requests)
    (connection,) = here.do(lambda: list(here.server.server_state.connections))
    here.do(connection.shutdown)
    here.gate.set()
    answer = raw.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close") and raw.ended()


def test_a_connection_that_waits_is_closed_when_the_server_stops(here, raw):
    (connection,) = here.do(lambda: list(here.server.server_state.connections))
    here.do(connection.shutdown)
    assert raw.ended()


def test_what_is_only_taken_in_is_closed_when_the_server_stops(here, raw):
    raw.send(head(CHAT, "authorization: Bearer bad", "content-length: 1000000"))
    assert raw.answer().status == 401
    (connection,) = here.do(lambda: list(here.server.server_state.connections))
    here.do(connection.shutdown)
    assert raw.ended()


def test_a_body_over_the_limit_in_small_pieces_costs_what_it_weighs(here, raw):
    """A piece of two bytes is no object of fifty."""
    piece = b"2\r\nab\r\n"
    raw.send(head(CHAT, f"authorization: Bearer {here.key}", "transfer-encoding: chunked") + piece * 100)
    (connection,) = here.do(lambda: list(here.server.server_state.connections))
    here.until(lambda: connection.cycle.body and len(connection.cycle.body) == 200)
    assert type(connection.cycle.body) is bytearray
    raw.send(piece * 50_000)
    assert raw.answer().status == 413
