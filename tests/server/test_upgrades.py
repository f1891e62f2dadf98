"""Upgrades to a WebSocket, on both lanes: what is none is refused, who does not greet is counted and cut off, as is who reads nothing."""

from contextlib import ExitStack

import pytest
from websockets.frames import Frame, Opcode

from mindgw.config import Limits
from mindgw.server import progress, socket
from mindgw.server.socket import WebSocket
from tests.e2e.raw import CHAT, head, request
from tests.server.hall import LANES, chat, hall, visited

LINES = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==")
MIB = 2**20


@pytest.fixture(scope="module", params=LANES)
def lane(request):
    with hall(request.param, ws=WebSocket) as made:
        yield made


@pytest.fixture
def here(lane):
    with visited(lane):
        yield lane


def upgrade(path="/silence", *lines, method="GET"):
    return head(path, *LINES, *lines, method=method)


def frame(opcode, data=b"", *, fin=True):
    return Frame(opcode, data, fin).serialize(mask=True)


# -- what is none ----------------------------------------------------------------------------------------------------------

WRONG = {
    "a long header": (upgrade("/silence", "a: " + "x" * 9000), 431),
    "a header that is just too long": (upgrade("/silence", "a: " + "x" * (8192 - 4)), 431),
    "a long path": (upgrade("/" + "x" * 9000), 431),
    "a body": (upgrade("/silence", "content-length: 5") + b"hello", 400),
    "a body to come": (upgrade("/silence", "content-length: 5"), 400),
    "chunks": (upgrade("/silence", "transfer-encoding: chunked"), 400),
    "POST": (upgrade(method="POST"), 400),
    "a hot POST": (upgrade(CHAT, "content-length: 100", method="POST"), 400),
    "HTTP/1.0": (upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_upgrade_that_is_none_is_refused_at_once(here, wrong):
    sent, status = WRONG[wrong]
    with here.raw() as raw:
        raw.send(sent)
        answer = raw.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.error["type"] == "invalid_request_error" and raw.ended()


def test_the_longest_line_is_taken(here):
    with here.raw() as raw:
        raw.send(upgrade("/parlour", "a: " + "x" * (8192 - 5)))
        assert raw.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


def test_a_body_of_an_upgrade_is_no_part_of_the_request_before_it(here):
    with here.raw() as raw:
        raw.send(request(here.key, chat("waits"), CHAT))
        here.until(lambda: here.box.requests, "the engine has it")
        raw.send(upgrade("/silence", "content-length: 1000000") + b"x" * 1000)
        assert raw.answer().status == 400 and raw.ended()


def test_an_upgrade_to_an_endpoint_of_the_api_is_turned_away(here, caplog):
    with here.raw() as raw:
        raw.send(upgrade("/v1/models"))
        assert raw.until(b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert not [record for record in caplog.records if record.exc_info]


# -- who does not greet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane_name", LANES)
@pytest.mark.parametrize("path", ["/silence", "/parlour"])
def test_whoever_has_upgraded_is_counted(lane_name, path):
    with hall(lane_name, ws=WebSocket, limits=Limits(connections=2)) as place, ExitStack() as stack:
        first, second = (stack.enter_context(place.raw()) for _ in range(2))
        for raw in (first, second):
            raw.send(upgrade(path))
        place.until(lambda: [type(one) for one in place.server.server_state.connections] == [WebSocket] * 2, "they are upgraded")
        with place.raw() as third:
            answer = third.answer()
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        place.until(lambda: len(place.server.server_state.connections) == 2)
        first.socket.close()
        place.until(lambda: len(place.server.server_state.connections) == 1)
        with place.raw() as fourth:
            fourth.send(head("/deaf"))
            assert fourth.answer().status == 200


def test_an_upgrade_that_is_not_answered_in_time_is_cut_off(here):
    with here.raw() as raw:
        raw.send(upgrade())
        here.until(lambda: [type(one) for one in here.server.server_state.connections] == [WebSocket], "it is upgraded")
        assert here.passes_until(raw) >= socket.GREETING - 2 and raw.ended()


def test_a_socket_that_is_well_is_not_timed(here):
    with here.raw() as raw:
        raw.send(upgrade("/parlour"))
        raw.until(b"\r\n\r\n")
        for _ in range(5):
            here.passes(socket.STALL)
        raw.send(frame(Opcode.PING, b"here?"))
        raw.until(b"\x8a\x05here?")


# -- who reads nothing -----------------------------------------------------------------------------------------------------


def deaf(here):
    """A connection that takes none of the pongs that it asks for, and the socket at its other end."""
    raw = here.raw(window=4096)
    raw.send(upgrade("/parlour"))
    raw.until(b"\r\n\r\n")
    (found,) = here.do(lambda: list(here.server.server_state.connections))
    here.do(lambda: found.transport.set_write_buffer_limits(socket.HIGH_WATER))  # as for one that carries
    while not here.do(lambda: found.is_full):
        raw.send(frame(Opcode.PING, b"p" * 125) * 1000)
    return raw, found


def test_who_pings_and_reads_nothing_costs_little(here):
    raw, found = deaf(here)
    with raw:
        for _ in range(20):
            raw.send(frame(Opcode.PING, b"p" * 125) * 2000)
        assert here.do(found.transport.get_write_buffer_size) < MIB
        here.passes(socket.STALL)
        here.passes(socket.STALL + 1)


@pytest.mark.parametrize("told", [True, False], ids=["the kernel tells", "it tells nothing"])
def test_who_reads_nothing_is_cut_off_and_who_reads_slowly_is_not(here, told, monkeypatch):
    if not told:
        monkeypatch.setattr(progress, "_INFO", None)
    raw, found = deaf(here)
    with raw:
        here.passes(0.0)
        for _ in range(5):
            here.passes(socket.STALL * 0.7)
            before = here.do(lambda: progress.taken(found.transport))
            while here.do(lambda: progress.taken(found.transport)) == before:
                raw.socket.recv(16384)
        here.passes(socket.STALL * 0.7)
        assert here.do(lambda: found.is_full) and here.connections == 1
        here.passes(socket.STALL + 1)
        here.until(lambda: not here.server.server_state.connections, "it is cut off")
