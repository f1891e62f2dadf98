"""Clients that are slow, silent, deaf or too many, on both lanes, for requests that the lanes serve alike and for any other."""

import asyncio
import select
import socket
import struct
from contextlib import ExitStack, suppress

import pytest

from mindgw.config import Config, Limits
from mindgw.server import bodies, guard, heads, progress, protocol, run
from mindgw.server.guard import Guard
from mindgw_agent import tokens
from tests.e2e.raw import CHAT, head, request
from tests.server.hall import ANSWER, LANES, chat, hall, visited

MIB = 2**20


def is_late(answer) -> bool:
    """It was refused for its pace, and has a name by which the log knows it."""
    name = answer.headers["x-mindgw-request-id"]
    assert name.startswith("req-") and answer.error["request_id"] == name
    return (answer.status, answer.error["code"], answer.headers["connection"]) == (408, "request_timeout", "close")


@pytest.fixture(scope="module", params=LANES)
def lane(request):
    with hall(request.param) as made:
        yield made


@pytest.fixture
def here(lane):
    with visited(lane):
        yield lane


def hot(here, scene="plain", *lines, **fields):
    return request(here.key, chat(scene, **fields), CHAT, *lines)


def cold(path, *lines, method="GET"):
    return head(path, *lines, method=method)


# -- heads ---------------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_cut_off(here):
    with here.raw() as raw:
        assert here.passes_until(raw) >= protocol.PATIENCE - 2 and raw.ended()


@pytest.mark.parametrize("path", [CHAT, "/echo"])
def test_a_head_that_drips_is_refused(here, path):
    with here.raw() as raw:
        for byte in cold(path, "a: b", method="POST")[:-1]:
            raw.send(bytes([byte]))
        assert here.passes_until(raw) >= protocol.PATIENCE - 2
        assert is_late(raw.answer()) and raw.ended()


@pytest.mark.parametrize("path", ["hot", "/deaf"])
def test_a_connection_that_is_kept_for_nothing_is_closed(here, path):
    with here.raw() as raw:
        raw.send(hot(here) if path == "hot" else cold(path))
        assert raw.answer().status == 200
        assert here.passes_until(raw) >= protocol.IDLE - 2 and raw.ended()


@pytest.mark.parametrize("path", ["hot", "/deaf"])
def test_a_later_head_that_drips_is_refused(here, path):
    with here.raw() as raw:
        raw.send(hot(here) if path == "hot" else cold(path))
        assert raw.answer().status == 200
        raw.send(b"POST")
        assert protocol.IDLE > here.passes_until(raw) >= protocol.PATIENCE - 2
        assert raw.answer().status == 408


def test_a_head_that_comes_during_an_answer_has_its_time_after_it(here):
    with here.raw() as raw:
        raw.send(hot(here, "waits") + b"POST")
        here.until(lambda: here.box.requests)
        here.passes(3 * protocol.PATIENCE)
        here.gate.set()
        assert raw.answer().status == 200
        raw.send(hot(here)[4:])
        assert raw.answer().status == 200


# -- bodies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/echo"])
def test_a_body_that_drips_is_refused_and_a_fast_start_buys_no_hours(here, path):
    with here.raw() as raw:
        raw.send(head(path, f"authorization: Bearer {here.key}", f"content-length: {MIB}") + b"x" * (MIB // 2))
        bought = here.passes_until(raw)
        assert protocol.BODY - 2 <= bought <= 2 * protocol.BODY + 2
        assert is_late(raw.answer()) and raw.ended()


def test_a_body_that_comes_slowly_but_surely_is_waited_for(here):
    part = b"x" * int(protocol.BODY * protocol.SLOWEST)
    with here.raw() as raw:
        raw.send(head("/echo", f"content-length: {4 * len(part)}"))
        (connection,) = here.until(lambda: list(here.server.server_state.connections))
        for number in range(1, 5):
            raw.send(part)
            here.until(lambda number=number: connection._got >= number * len(part), "it came")
            here.passes(protocol.BODY - 1 if number < 4 else 0)
        assert raw.answer().status == 200


def test_a_key_that_nobody_knows_is_told_so_before_its_body_is_whole(here):
    """Nobody keeps what nobody will read."""
    with here.raw() as raw:
        raw.send(head(CHAT, f"authorization: Bearer {tokens.make_key().text}", f"content-length: {8 * MIB}"))
        while not select.select([raw.socket], [], [], 0.01)[0]:
            raw.send(b"x")
        answer = raw.answer(head_only=True)
    assert (answer.status, answer.headers["connection"]) == (401, "close")


def test_a_late_body_goes_by_the_name_of_its_request(here):
    with here.raw() as raw:
        raw.send(head(CHAT, f"authorization: Bearer {here.key}", "x-request-id: theirs", "content-length: 100000"))
        here.passes_until(raw)
        answer = raw.answer()
        assert is_late(answer) and answer.headers["x-request-id"] == "theirs"
    here.idle()
    rows = {row.request_id: row for row in here.settled()}
    row = rows[answer.headers["x-mindgw-request-id"]]
    assert (row.status, row.error_code) == (408, "request_timeout")


@pytest.mark.parametrize("path", ["/", ""])
def test_what_is_refused_without_being_understood_has_a_name_too(here, path, caplog):
    caplog.set_level("INFO", "mindgw.request")
    with here.raw() as raw:
        raw.send(b"GET %b HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n" % path.encode())
        answer = raw.answer()
    name = answer.headers["x-mindgw-request-id"]
    assert (answer.status, answer.error["request_id"]) == (400, name)
    here.until(lambda: [record for record in caplog.records if name in record.getMessage()], "the log has it")


def test_a_body_that_nobody_waits_for_ends_the_connection(here):
    """It was answered without it."""
    with here.raw() as raw:
        raw.send(cold("/deaf", "content-length: 10", method="POST"))
        assert raw.answer().status == 200
        assert here.passes_until(raw) >= protocol.BODY - 2 and raw.ended()


def test_what_follows_a_refusal_is_taken_in_for_a_while(here, monkeypatch):
    monkeypatch.setattr(bodies, "SILENCE", 0.2)  # of the ASGI door, which has a clock of its own
    with here.raw() as raw:
        raw.send(head(CHAT, "authorization: Bearer bad", "content-length: 1000000"))
        assert raw.answer().status == 401
        here.passes_until(raw)
        assert raw.ended()


def test_who_keeps_sending_after_a_refusal_is_cut_off(here, monkeypatch):
    monkeypatch.setattr(bodies, "LINGER", 0.3)
    with here.raw() as raw:
        raw.send(head(CHAT, "authorization: Bearer bad", "transfer-encoding: chunked"))
        assert raw.answer().status == 401
        with pytest.raises(OSError):
            while True:
                raw.send(b"1\r\nx\r\n")
                here.passes(0.5)


@pytest.fixture(params=LANES)
def narrow(request):
    """A server that holds 300 kB of bodies at most."""
    with hall(request.param, limits=Limits(bodies=300_000)) as made:
        yield made


def long(here, path):
    """The request of 200 kB in two pieces: a third of its bytes are missing in the first."""
    body = chat("plain", pad="x" * 200_000)
    whole = head(path, f"authorization: Bearer {here.key}", "x-request-id: theirs", f"content-length: {len(body)}") + body
    return whole[:-70_000], whole[-70_000:]


@pytest.mark.parametrize("path", [CHAT, "/echo"])
def test_what_is_being_sent_is_bounded_and_the_slowest_makes_way(narrow, path):
    first, rest = long(narrow, path)
    with ExitStack() as stack:
        slow, second, third = (stack.enter_context(narrow.raw()) for _ in range(3))
        for raw in (slow, second):
            before = narrow.do(lambda: narrow.guard.held)
            raw.send(first)
            narrow.until(lambda before=before: narrow.guard.held >= before + 130_000, "it is held")
        third.send(first)
        answer = slow.answer()
        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "too_many_bytes", "close")
        assert answer.headers["x-request-id"] == "theirs" and answer.headers["x-mindgw-request-id"] == answer.error["request_id"]
        assert int(answer.headers["retry-after"]) > 0
        slow.send(rest)  # is taken in and dropped
        narrow.until(lambda: 260_000 <= narrow.guard.held <= 300_000, "the others are held")
        with narrow.raw() as small:
            small.send(request(narrow.key, chat("plain"), path))
            assert small.answer().status == 200
        for raw in (second, third):
            raw.send(rest)
            assert raw.answer().status == 200
    narrow.until(lambda: narrow.guard.held == 0, "nothing is held")


@pytest.mark.parametrize("how", ["leaves", "is late", "is refused", "says nonsense"])
def test_nothing_is_held_for_who_does_not_send_the_rest(narrow, how):
    first, _ = long(narrow, CHAT)
    with narrow.raw() as raw:
        if how == "says nonsense":
            raw.send(head(CHAT, f"authorization: Bearer {narrow.key}", "transfer-encoding: chunked") + b"10000\r\n" + b"x" * 65536)
        elif how == "is refused":
            raw.send(head(CHAT, "authorization: Bearer bad", "content-length: 200000") + b"x" * 100_000)
            assert raw.answer().status == 401
            raw.send(b"x" * 1000)
        else:
            raw.send(first)
        if how != "is refused":
            narrow.until(lambda: narrow.guard.held > 0, "it is held")
        if how == "is late":
            narrow.passes_until(raw)
            assert raw.answer().status == 408
        if how == "says nonsense":
            raw.send(b"nonsense\r\n")
            assert raw.answer().status == 400
        if how != "leaves":
            narrow.until(lambda: narrow.guard.held == 0, "nothing is held")
    narrow.until(lambda: narrow.guard.held == 0, "nothing is held")
    assert not narrow.do(lambda: narrow.guard._bodies)


# -- clients that do not read --------------------------------------------------------------------------------------------


def deaf(here, kind):
    """A connection that takes nothing of an answer without end."""
    raw = here.raw(window=4096)
    raw.send(hot(here, "endless", stream=True) if kind == "hot" else cold("/flood"))
    here.until(lambda: any(connection.flow.write_paused for connection in here.server.server_state.connections), "nothing more fits")
    return raw


@pytest.fixture(params=["the kernel tells", "it tells nothing"])
def kernel(request, monkeypatch):
    """Whether the system says how much a client has taken."""
    if request.param == "it tells nothing":
        monkeypatch.setattr(progress, "_INFO", None)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_who_does_not_read_is_cut_off(here, kind):
    with deaf(here, kind):
        here.passes(protocol.STALL - 1)
        assert here.connections == 1
        here.passes(2.0)
        here.until(lambda: not here.server.server_state.connections)
        here.idle()


def test_a_client_that_does_not_read_costs_no_memory(here):
    """The engine is not read any more, whatever it would say."""
    before = here.said
    with deaf(here, "hot"):
        here.until(lambda: not here.box.session.writable(here.box.stream), "the engine waits")
        assert here.said - before < 4 * MIB
        (connection,) = here.do(lambda: list(here.server.server_state.connections))
        assert here.do(connection.transport.get_write_buffer_size) < MIB
        here.passes(protocol.STALL + 1)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_who_reads_slowly_is_not_cut_off(here, kind):
    with deaf(here, kind) as raw:
        for _ in range(10):
            (connection,) = here.do(lambda: list(here.server.server_state.connections))
            left = here.do(connection.transport.get_write_buffer_size)
            taken = 0
            while here.do(connection.transport.get_write_buffer_size) >= left and taken < 4 * MIB:
                taken += len(raw.socket.recv(16384))
            here.passes(protocol.STALL * 0.7)
        assert here.connections == 1
        here.passes(protocol.STALL * 1.1)


def test_who_leaves_the_end_of_an_answer_unread_is_cut_off(here):
    """All is written, and fits: but the connection was to be closed."""
    with here.raw(window=4096) as raw:
        raw.send(hot(here, "large", "connection: close"))
        here.until(lambda: any(c.transport.is_closing() for c in here.server.server_state.connections), "it closes")
        here.passes(1.0)
        here.passes(protocol.STALL + 1)
        here.until(lambda: not here.server.server_state.connections, "it is over")


def test_a_server_that_stops_waits_for_nobody_who_does_not_read(here, monkeypatch):
    monkeypatch.setattr(here.guard, "is_stopping", True)
    with deaf(here, "hot"):
        here.passes(protocol.PARTING + 1)
        here.until(lambda: not here.server.server_state.connections)


@pytest.mark.parametrize("path", [CHAT, "/echo"])
def test_a_body_that_is_not_here_when_the_server_stops_is_too_late(here, path):
    with here.raw() as raw:
        raw.send(head(path, f"authorization: Bearer {here.key}", "content-length: 100") + b"{")
        (connection,) = here.until(lambda: [c for c in here.server.server_state.connections if c.cycle is not None])
        here.do(connection.shutdown)
        answer = raw.answer()
        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "server_draining", "close") and raw.ended()


# -- clients that leave --------------------------------------------------------------------------------------------------

PHASES = {
    "in the first line": lambda here: b"PO",
    "in the head": lambda here: hot(here)[:40],
    "before the body": lambda here: head(CHAT, f"authorization: Bearer {here.key}", "content-length: 5"),
    "in the body": lambda here: hot(here)[:-3],
    "in a chunk": lambda here: head(CHAT, f"authorization: Bearer {here.key}", "transfer-encoding: chunked") + b"5\r\nab",
    "asked for the body": lambda here: head(CHAT, f"authorization: Bearer {here.key}", "expect: 100-continue", "content-length: 5"),
    "at the engine": lambda here: hot(here, "waits"),
    "in a stream": lambda here: hot(here, "waits", stream=True),
    "with others in line": lambda here: hot(here, "waits", stream=True) + hot(here),
    "refused": lambda here: head(CHAT, "authorization: Bearer bad", "content-length: 1000000"),
}


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("phase", PHASES)
def test_who_leaves_holds_nothing(here, phase, how, monkeypatch):
    monkeypatch.setattr(bodies, "SILENCE", 0.1)
    with here.raw() as raw:
        raw.send(PHASES[phase](here))
        if phase in ("at the engine", "in a stream", "with others in line"):
            here.until(lambda: here.box.requests, "the engine has it")
        if "stream" in phase or "others" in phase:
            raw.until(b"\n\n")
        if phase in ("refused", "asked for the body"):
            raw.until(b"\r\n\r\n")
        if how == "reset":
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half":
            raw.socket.shutdown(socket.SHUT_WR)
            here.until(lambda: not here.server.server_state.connections, "it is over")
    here.until(lambda: not here.server.server_state.connections, "it is over")
    here.idle()


def test_who_leaves_before_its_key_is_known_leaves_no_row(here):
    rows = len(here.settled())
    with here.raw() as raw:
        raw.send(head(CHAT, "authorization: Bearer bad", "content-length: 5"))
        assert raw.answer().status == 401
    here.idle()
    assert len(here.settled()) == rows


# -- connections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane_name", LANES)
def test_a_connection_too_many_hears_why(lane_name):
    with hall(lane_name, limits=Limits(connections=2)) as place, ExitStack() as stack:
        first, _second = (stack.enter_context(place.raw()) for _ in range(2))
        place.until(lambda: len(place.server.server_state.connections) == 2)
        with place.raw() as third:
            answer = third.answer()
            assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "too_many_connections", "close")
            assert answer.headers["retry-after"] == "1" and third.ended()
        first.socket.close()
        place.until(lambda: len(place.server.server_state.connections) == 1)
        with place.raw() as fourth:
            fourth.send(cold("/deaf"))
            assert fourth.answer().status == 200


def test_far_too_many_are_not_even_told(monkeypatch):
    monkeypatch.setattr(guard, "TOLD", 0)
    with hall("fast", limits=Limits(connections=1)) as place, place.raw():
        place.until(lambda: len(place.server.server_state.connections) == 1)
        with place.raw() as second, suppress(ConnectionResetError):
            assert second.ended()


async def test_an_address_has_its_own_limit():
    class Silent:
        def look(self, now):
            pass

    watch = Guard(10, 2)
    mine = [Silent() for _ in range(3)]
    assert [watch.enter(one, "192.0.2.1") for one in mine[:2]] == [None, None]
    refused = watch.enter(mine[2], "192.0.2.1")
    assert refused is not None and refused.code == "too_many_connections" and "address" in refused.message
    watch.leave(mine[2], "192.0.2.1")
    watch.leave(mine[2], "192.0.2.1")
    assert watch.enter(Silent(), "192.0.2.2") is None
    assert [watch.enter(Silent(), "") for _ in range(3)] == [None] * 3
    watch.leave(mine[0], "192.0.2.1")
    assert watch.enter(mine[2], "192.0.2.1") is None
    await asyncio.sleep(0)


async def test_one_connection_that_breaks_the_watch_is_given_up_and_the_others_are_watched(monkeypatch, caplog):
    class Looked:
        """FAKE connection, and its transport."""

        def __init__(self, wrong=None):
            self.wrong, self.looks, self.gone, self.transport = wrong, 0, False, self

        def look(self, now):
            self.looks += 1
            if self.wrong is not None:
                raise self.wrong

        def abort(self):
            self.gone = True

    monkeypatch.setattr(guard, "TICK", 0.0)
    watch = Guard()
    all_of_them = [Looked(), Looked(ZeroDivisionError()), Looked()]
    for one in all_of_them:
        watch.enter(one, "")
    async with asyncio.timeout(10):
        while min(one.looks for one in all_of_them) < 3:
            await asyncio.sleep(0)
    for one in all_of_them:
        watch.leave(one, "")
    assert [one.gone for one in all_of_them] == [False, True, False]
    assert "could not be looked at" in caplog.text


def test_small_packets_are_not_held_back(here):
    with here.raw() as raw:
        raw.send(hot(here))
        assert raw.answer().status == 200
        (connection,) = here.do(lambda: list(here.server.server_state.connections))
        sock = connection.transport.get_extra_info("socket")
        assert here.do(lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == 1


def test_who_sends_far_ahead_has_the_answers_that_were_due_and_nothing_else(here):
    """What comes too early is dropped, so that somebody still notices whether the client leaves."""
    with here.raw() as raw:
        raw.send(hot(here, "waits") + hot(here) + head(CHAT, f"authorization: Bearer {here.key}", f"content-length: {8 * MIB}"))
        here.until(lambda: here.box.requests)
        raw.send(b"x" * 2 * MIB)
        (connection,) = here.do(lambda: list(here.server.server_state.connections))
        here.until(lambda: connection._deaf, "nothing more is heard")
        assert not connection.flow.read_paused and len(connection.pipeline) == 1
        here.gate.set()
        assert [raw.answer().status for _ in range(2)] == [200, 200]


def test_who_sends_chunks_far_ahead_has_every_answer_that_was_due(here):
    """Many of them in one read: the first that is too much is the last that is looked at."""
    with here.raw() as raw:
        raw.send(hot(here, "waits") + hot(here) + cold("/deaf"))
        here.until(lambda: here.box.requests)
        raw.send(head(CHAT, f"authorization: Bearer {here.key}", "transfer-encoding: chunked") + b"400\r\n%b\r\n" % (b"x" * 1024) * 512)
        (connection,) = here.do(lambda: list(here.server.server_state.connections))
        here.until(lambda: connection._deaf, "nothing more is heard")
        assert len(connection.pipeline) == 2
        here.gate.set()
        assert [raw.answer().body for _ in range(3)] == [ANSWER, ANSWER, b"deaf"]


def unread(here, raw, *more):
    """The end of a request that is no JSON, and `more`, come in one read while the client reads nothing; the connection, with all of that
    in it."""
    raw.send(hot(here))
    assert raw.answer().status == 200  # the key is known
    raw.send(head(CHAT, f"authorization: Bearer {here.key}", "content-length: 2") + b"{")
    (connection,) = here.until(lambda: [c for c in here.server.server_state.connections if c._awaited == protocol._BODY and c._got == 1])
    here.do(connection.pause_writing)
    here.do(lambda: connection.data_received(b"".join((b"x", *more))))
    return connection


def test_who_sends_far_ahead_of_what_it_has_not_read_is_not_left_waiting(here):
    """The last answer was made before it was known to be the last."""
    with here.raw() as raw:
        ahead = head(CHAT, f"authorization: Bearer {here.key}", "content-length: 200000") + b"x" * 100_000
        connection = unread(here, raw, ahead)
        here.do(connection.resume_writing)
        assert raw.answer().status == 400 and raw.ended()


def test_answers_keep_their_order_when_the_client_did_not_read_for_a_while(here):
    refused = head(CHAT, "content-length: 0")
    with here.raw() as raw:
        connection = unread(here, raw, cold("/deaf"), refused, cold("/deaf"), hot(here))
        here.do(connection.resume_writing)
        assert [raw.answer().status for _ in range(5)] == [400, 200, 401, 200, 200]


def test_a_server_that_stops_answers_nothing_more_than_what_it_was_answering(here):
    """Although the client has not read that, and has asked for more."""
    with here.raw() as raw:
        connection = unread(here, raw, hot(here), hot(here))
        here.do(connection.shutdown)
        here.do(connection.resume_writing)
        assert raw.answer().status == 400 and raw.ended()


def test_a_client_that_sent_far_ahead_and_leaves_is_noticed(here):
    with here.raw() as raw:
        raw.send(hot(here, "waits") + head(CHAT, f"authorization: Bearer {here.key}", f"content-length: {8 * MIB}"))
        here.until(lambda: here.box.requests)
        with suppress(ConnectionError):
            raw.send(b"x" * MIB)
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.until(lambda: not here.server.server_state.connections, "it is gone")


def test_whoever_reads_nothing_has_no_more_answers_made(here):
    """Not even refusals: they would all lie in memory."""
    asked = head(CHAT, "content-length: 0")
    with here.raw(window=4096) as raw:
        raw.socket.settimeout(0.3)
        (connection,) = here.until(lambda: list(here.server.server_state.connections))
        with suppress(TimeoutError, ConnectionError):
            for _ in range(5000):
                raw.send(asked * 20)
        assert here.do(connection.transport.get_write_buffer_size) < MIB


@pytest.mark.parametrize(
    ("said", "warned"),
    [
        ({"tls": "off", "tls_listen": "127.0.0.1:8443"}, True),
        ({"tls": "off"}, True),
        ({"tls": "off", "tls_listen": "127.0.0.1:8443", "trusted_proxies": ("127.0.0.1",)}, False),
        ({}, False),
    ],
)
def test_who_trusts_no_proxy_and_has_one_is_warned_of_what_to_set(said, warned, caplog):
    run.warn_of_one_address(Config(data_dir="data", public_url="https://gw.example", **said))
    assert ("trusted_proxies" in caplog.text) == warned


def test_there_is_room_for_as_many_connections_as_are_allowed(monkeypatch, caplog):
    limits, asked = [(1024, 4096)], []
    monkeypatch.setattr(run.resource, "getrlimit", lambda _: limits[0])
    monkeypatch.setattr(run.resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    run.make_room(2000)
    limits[0] = (2000, 4096)
    run.make_room(2000)
    limits[0] = (1024, run.resource.RLIM_INFINITY)
    run.make_room(9000)
    limits[0] = (run.resource.RLIM_INFINITY,) * 2
    run.make_room(9000)
    assert asked == [(2000, 4096), (9000, run.resource.RLIM_INFINITY)] and not caplog.records
    limits[0] = (1024, 4096)
    run.make_room(9000)
    assert asked[-1] == (4096, 4096) and "only 4096 files" in caplog.text


def test_too_many_requests_at_once_end_the_connection(here):
    with here.raw() as raw:
        raw.send(cold("/deaf") * (protocol.MAX_WAITING + 10))
        found = b""
        while raw.more():
            found = raw.held
        assert found.count(b"HTTP/1.1 200") == protocol.MAX_WAITING + 1


def test_whoever_was_halted_goes_on_once_it_reads(here):
    with here.raw(window=4096) as raw:
        (connection,) = here.until(lambda: list(here.server.server_state.connections))
        state = here.server.server_state
        sent, before = 0, state.total_requests
        while not connection.flow.write_paused and sent < 20_000:
            raw.send(head(CHAT, "content-length: 0") * 10)
            sent += 10
            here.until(lambda sent=sent: connection.flow.write_paused or state.total_requests - before == sent)
        assert [raw.answer().status for _ in range(sent)] == [401] * sent
        raw.send(hot(here))
        assert raw.answer().status == 200


@pytest.mark.parametrize("part", [b"a:\r\n", b"abcd: efgh\r\n"])
def test_heads_of_many_fields_are_refused_before_they_are_whole(here, part):
    with here.raw() as raw:
        raw.send(b"GET / HTTP/1.1\r\nhost: x\r\n" + part * (heads.MAX_FIELDS + 3))
        assert raw.answer().status == 431 and raw.ended()


def test_a_head_that_begins_behind_a_request_may_be_no_longer_than_others(here):
    with here.raw() as raw:
        raw.send(hot(here) + b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * 60_000)
        assert raw.answer().status == 200
        raw.send(b"\r\nb: " + b"x" * 10_000 + b"\r\n\r\n")
        assert raw.answer().status == 431
