"""Connections to engines, and the pool that keeps them. The engines are FAKES that play bytes, over real sockets where it matters."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent.engines import connection, pool
from mindgw_agent.engines.client import GENERATION, Client, Unreachable, open_session
from mindgw_agent.engines.connection import LEFT_OVER, MAX_LINES, Connection
from mindgw_agent.engines.pool import Connections, Origin
from mindgw_agent.engines.reply import HOLD, READ_ON, STOP, Garbled, Lost, NoConnection, Reply
from tests.agent.playing import Caller, FakeLine, Raw, answers, raw_engine, whole

CHAT = ("POST", "/v1/chat/completions")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"


@asynccontextmanager
async def engine(*plays: Any) -> AsyncIterator[tuple[Raw, Origin]]:
    async with raw_engine(*plays) as raw, open_session() as session:
        yield raw, session.origin(raw.url)


async def ask(origin: Origin, body: bytes = b"", **more: Any) -> tuple[int, str, bytes]:
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    return await whole(origin.ask(head, body, 5.0), **more)


# -- what an answer may look like --------------------------------------------------------------------------------------

#: Bytes of an answer, its content type, its body, and whether the connection may carry another request.
GOOD: list[tuple[bytes, str, bytes, bool]] = [
    (OK, "text/plain", b"ok", True),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nContent-Type: no\r\n\r\n", "", b"ok", True),
    (b"HTTP/1.1 100 Continue\r\nContent-Type: no\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, "text/plain", b"ok", True),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "", b"ok", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "", b"ok", False),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", "", b"ok", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "", b"", True),
    (b"HTTP/1.1 200 \r\ncontent-TYPE:a/b\r\ncontent-length: 0\r\n\r\n", "a/b", b"", True),
]
#: Bytes that are no answer.
BAD = [
    b"this is not HTTP\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nbad header: 1\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
]


class FakeHome:
    """A FAKE pool that notes what a connection tells it."""

    def __init__(self) -> None:
        self.kept = self.lingering = self.open = 0
        self.lost: list[tuple[Reply | None, Exception | None]] = []

    def opened(self, connection: Connection) -> None:
        self.open += 1

    def rests(self, connection: Connection) -> None:
        self.kept += 1

    def lingers(self, connection: Connection) -> None:
        self.lingering += 1

    def gone(self, connection: Connection, reply: Reply | None, error: Exception | None) -> None:
        self.lost.append((reply, error))
        if reply is not None:
            reply.fail(Lost("gone"))


def carried(body: bytes = b"") -> tuple[FakeHome, FakeLine, Connection, Reply]:
    """A connection that has just sent a request into nothing."""
    home, line = FakeHome(), FakeLine()
    reply = Reply(asyncio.get_running_loop(), GET, body, 1.0)
    made = Connection(home, reply)
    made.connection_made(line)  # type: ignore[arg-type]
    return home, line, made, reply


@given(st.sampled_from(GOOD), st.lists(st.integers(0, 200), max_size=12))
def test_a_good_answer_is_the_same_however_it_is_cut(good, cuts) -> None:
    async def check() -> None:
        answer, content_type, body, keeps = good
        home, line, made, reply = carried()
        at = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        for start, stop in itertools.pairwise(at):
            made.data_received(answer[start:stop])
        assert (await whole(reply))[1:] == (content_type, body)
        assert (home.kept, line.aborted) == (int(keeps), not keeps)

    asyncio.run(check())


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
async def test_a_good_answer_that_comes_byte_by_byte_or_is_cut_at_any_one_place(good) -> None:
    answer, content_type, body, _ = good
    for place in range(len(answer)):
        _, _, made, reply = carried()
        for piece in (answer[:place], answer[place:]):
            if piece:
                made.data_received(piece)
        assert (await whole(reply))[1:] == (content_type, body)
    _, _, made, reply = carried()
    for place in range(len(answer)):
        made.data_received(answer[place : place + 1])
    assert (await whole(reply))[1:] == (content_type, body)


@given(st.sampled_from(BAD), st.integers(0, 100))
def test_what_is_no_answer_is_garbled_wherever_it_is_cut_and_never_kept(bad, place) -> None:
    async def check() -> None:
        home, line, made, reply = carried()
        for piece in (bad[:place], bad[place:]):
            if piece:
                made.data_received(piece)
        with pytest.raises(Garbled):
            await whole(reply)
        assert (home.kept, line.aborted) == (0, True)

    asyncio.run(check())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_survived(data) -> None:
    async def check() -> None:
        _, _, made, reply = carried()
        made.data_received(b"HTTP/1.1 " + data)
        made.connection_lost(None)
        with pytest.raises((Garbled, Lost)):
            await whole(reply)

    asyncio.run(check())


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
async def test_an_answer_that_is_cut_short_is_lost(good) -> None:
    answer = good[0]
    for place in range(len(answer)):
        home, _, made, reply = carried()
        if place:
            made.data_received(answer[:place])
        made.connection_lost(ConnectionResetError())
        with pytest.raises(Lost):
            await whole(reply)
        assert home.kept == 0


async def test_an_answer_without_a_length_ends_with_the_connection_and_no_sooner() -> None:
    until_end = b"HTTP/1.1 200 OK\r\n\r\nsome"
    home, _, made, reply = carried()
    made.data_received(until_end)
    made.connection_lost(None)
    assert await whole(reply) == (200, "", b"some")
    assert (home.kept, home.lost) == (0, [(None, None)])
    _, _, made, reply = carried()
    made.data_received(until_end)
    made.connection_lost(ConnectionResetError())
    with pytest.raises(Lost):
        await whole(reply)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 " + b"x" * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 1000,
    ],
)
async def test_endless_lines_are_refused(endless) -> None:
    _, line, made, reply = carried()
    made.data_received(endless)
    last = endless[-6:] if endless.endswith(b"b\r\n") else endless if endless.endswith(b"\n\r\n") else b"xxxxxx"
    sent = 0
    while not line.aborted and sent < 2 * MAX_LINES:
        made.data_received(last * 100)
        sent += len(last) * 100
        if made._excess:
            reply.end()
    assert MAX_LINES - 1000 * len(last) < sent < MAX_LINES + 1000 * len(last)


async def test_a_body_may_be_longer_than_lines_may_be() -> None:
    _, _, made, reply = carried()
    made.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (3 * MAX_LINES))
    for _ in range(3):
        made.data_received(b"x" * MAX_LINES)
    assert len((await whole(reply))[2]) == 3 * MAX_LINES


@pytest.mark.parametrize("more", [OK, b"x", b"HTTP/1.1 200 OK\r\n", b"\r\n"])
async def test_what_comes_behind_an_answer_is_not_the_next_one(more) -> None:
    home, line, made, reply = carried()
    made.data_received(OK + more)
    assert await whole(reply) == (200, "text/plain", b"ok")
    if more != b"\r\n":
        assert (home.kept, line.aborted) == (0, True)


async def test_an_engine_that_speaks_without_being_asked_is_left() -> None:
    _, line, made, reply = carried()
    made.data_received(OK)
    await whole(reply)
    assert not line.aborted
    made.data_received(OK)
    assert line.aborted
    made.data_received(OK)


async def test_a_body_is_read_no_further_than_its_limit() -> None:
    _, line, made, reply = carried()
    made.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100)
    assert await whole(reply, limit=10) == (200, "", b"x" * 11)
    assert line.aborted


# -- streams -----------------------------------------------------------------------------------------------------------

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_all_that_one_read_brought_is_handed_over_at_once() -> None:
    _, _, made, reply = carried()
    seen: list[bytes] = []

    def take(data: bytes) -> int:
        seen.append(data)
        return READ_ON

    made.data_received(STREAM + b"1\r\na\r\n")
    await reply.begun()
    made.data_received(b"1\r\nb\r\n")
    reading = asyncio.create_task(reply.each(take))
    await asyncio.sleep(0)
    made.data_received(b"1\r\nc\r\n1\r\nd\r\n1\r\ne\r\n")
    made.data_received(b"1\r\nf\r\n0\r\n\r\n")
    assert await reading is False
    reply.end()
    assert seen == [b"ab", b"cde", b"f"]


async def test_a_stream_that_is_held_is_not_read_and_goes_on_where_it_was() -> None:
    _, line, made, reply = carried()
    seen: list[bytes] = []

    def take(data: bytes) -> int:
        seen.append(data)
        return HOLD

    made.data_received(STREAM + b"1\r\na\r\n")
    assert await reply.each(take) is True
    assert line.paused
    made.data_received(b"1\r\nb\r\n")
    assert (await reply.each(take), line.paused) == (True, True)
    reading = asyncio.create_task(reply.each(take))
    await asyncio.sleep(0)
    assert not line.paused
    made.data_received(b"1\r\nc\r\n")
    made.data_received(b"0\r\n\r\n")
    assert await reading is True
    assert await reply.each(take) is False
    assert seen == [b"a", b"b", b"c"]


async def test_a_connection_that_breaks_is_the_end_of_a_stream_and_a_failure_is_raised() -> None:
    for error, raises in [(Lost(""), False), (Garbled(""), False), (TimeoutError(), True)]:
        _, _, made, reply = carried()
        made.data_received(STREAM + b"1\r\na\r\n")
        reading = asyncio.create_task(reply.each(lambda data: READ_ON))
        await asyncio.sleep(0)
        reply.fail(error)
        reply.fail(KeyError())
        if raises:
            with pytest.raises(TimeoutError):
                await reading
        else:
            assert await reading is False
        reply.end()


async def test_a_defect_in_whoever_takes_is_raised_where_the_answer_is_awaited() -> None:
    def take(data: bytes) -> int:
        raise KeyError("a defect")

    for last in (b"1\r\nb\r\n", b"1\r\nb\r\n0\r\n\r\n"):
        _, _, made, reply = carried()
        made.data_received(STREAM)
        reading = asyncio.create_task(reply.each(take))
        await asyncio.sleep(0)
        with pytest.raises(KeyError):
            made.data_received(last)
        with pytest.raises(KeyError):
            await reading
        reply.end()


async def test_a_last_word_lets_the_connection_live_if_the_end_follows_soon() -> None:
    for rest, kept in [(b"0\r\n\r\n", 1), (b"2\r\nab\r\n0\r\n\r\n", 1), (b"ffff\r\n" + b"x" * (LEFT_OVER + 1), 0), (b"zz", 0)]:
        home, line, made, reply = carried()
        made.data_received(STREAM + b"1\r\na\r\n")
        assert await reply.each(lambda data: HOLD)
        reply.end(linger=True)
        assert (line.aborted, line.paused, home.lingering) == (False, False, 1)
        made.data_received(rest)
        assert (home.kept, line.aborted) == (kept, not kept)


async def test_without_one_it_is_closed_at_once() -> None:
    home, line, made, reply = carried()
    made.data_received(STREAM + b"1\r\na\r\n")
    reply.end()
    assert line.aborted
    made.data_received(b"1\r\nb\r\n")
    made.connection_lost(None)
    assert home.lost == [(None, None)]


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_a_large_body_leaves_as_the_transport_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PIECE", 4)
    _, line, _, reply = carried(b"0123456789")
    assert line.written == GET + b"0123456789"
    line, made = FakeLine(), Connection(FakeHome(), reply)
    made.pause_writing()
    made.connection_made(line)  # type: ignore[arg-type]
    assert line.written == GET
    made.resume_writing()
    assert line.written == GET + b"0123456789"


async def test_a_request_that_nobody_wants_any_more_is_not_sent() -> None:
    reply = Reply(asyncio.get_running_loop(), GET, b"", 1.0)
    home, line, made = FakeHome(), FakeLine(), Connection(FakeHome(), reply)
    reply.end()
    made.connection_made(line)  # type: ignore[arg-type]
    made.data_received(OK)
    assert (line.written, line.aborted, reply.sent, home.kept) == (b"", True, False, 0)


async def test_an_answer_that_comes_before_the_body_has_left_counts_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PIECE", 4)
    reply = Reply(asyncio.get_running_loop(), GET, b"0123456789", 1.0)
    home, line = FakeHome(), FakeLine()
    made = Connection(home, reply)
    made.pause_writing()
    made.connection_made(line)  # type: ignore[arg-type]
    made.data_received(OK)
    assert await whole(reply) == (200, "text/plain", b"ok")
    assert (home.kept, line.aborted) == (0, True)
    home, line, made, reply = carried()
    line.waiting = 1
    made.data_received(OK)
    assert (home.kept, line.aborted) == (0, True)


async def test_a_refusal_of_a_large_body_is_heard_over_a_socket() -> None:
    async def refuse(caller: Caller, number: int) -> None:
        await caller.head()
        await caller.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.sleep(0.05)

    async with engine(refuse) as (_, origin):
        assert (await ask(origin, b"x" * 30_000_000))[::2] == (413, b"big")
        assert len(origin) == 0


async def test_an_engine_that_speaks_first_is_none() -> None:
    async def banner(caller: Caller, number: int) -> None:
        await caller.say(b"SSH-2.0-x\r\n")

    async with engine(banner) as (_, origin):
        for _ in range(20):
            with pytest.raises(Garbled):
                await ask(origin)


# -- the pool ----------------------------------------------------------------------------------------------------------


async def test_the_connection_used_last_is_used_first() -> None:
    both = asyncio.Barrier(2)

    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        await both.wait()
        while True:
            await caller.say(OK)
            await caller.request()

    async with engine(play) as (raw, origin):
        assert [one[2] for one in await asyncio.gather(ask(origin), ask(origin))] == [b"ok", b"ok"]
        assert len(origin) == 2
        for _ in range(5):
            await ask(origin)
        assert sorted(len(caller.heads) for caller in raw.callers) == [1, 6]


async def test_no_more_are_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST", 2)
    all_there = asyncio.Barrier(4)

    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        await all_there.wait()
        await caller.say(OK)
        await caller.request()

    async with engine(play) as (_, origin):
        await asyncio.gather(*(ask(origin) for _ in range(4)))
        assert len(origin) == 2


async def test_those_that_wait_for_too_long_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE", 0.02)
    monkeypatch.setattr(pool, "_SWEEP", 0.01)
    closed = asyncio.Event()

    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        await caller.say(OK)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await caller.request()
        closed.set()

    async with engine(play) as (_, origin):
        await ask(origin)
        await asyncio.wait_for(closed.wait(), 10)
        async with asyncio.timeout(10):
            while len(origin) or origin._open:
                await asyncio.sleep(0.005)
        while origin._sweeping is not None:
            await asyncio.sleep(0.005)


async def test_an_end_that_does_not_follow_a_last_word_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE", 0.02)
    monkeypatch.setattr(pool, "_SWEEP", 0.01)
    async with engine(answers(STREAM + b"1\r\na\r\n", close=False)) as (_, origin):
        reply = origin.ask(GET, b"", 5.0)
        assert await reply.each(lambda data: STOP) is False
        reply.end(linger=True)
        async with asyncio.timeout(10):
            while origin._open:
                await asyncio.sleep(0.005)


async def test_a_kept_connection_that_was_closed_costs_nobody_a_request() -> None:
    """The FAKE engine closes after each answer without saying so beforehand, at the very moment of the next request."""

    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        await caller.say(OK)
        if number % 2 == 0:
            await caller.head()
            return
        await caller.request()

    async with engine(play) as (raw, origin):
        assert (await ask(origin))[2] == b"ok"
        assert (await ask(origin, b"twice"))[2] == b"ok"
        assert len(raw.callers) == 2
        assert raw.callers[1].bodies == [b"twice"]


async def test_only_a_request_that_was_met_with_silence_on_a_kept_connection_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        if number == 0:
            await caller.say(OK)
            await caller.request()
            await caller.say(b"HTTP/1.1 2")

    async with engine(play) as (raw, origin):
        assert (await ask(origin))[2] == b"ok"
        with pytest.raises(Lost):
            await ask(origin)
        with pytest.raises(Lost):
            await ask(origin)
        assert len(raw.callers) == 2
    monkeypatch.setattr(pool, "STALE", -1.0)

    async def late(caller: Caller, number: int) -> None:
        await caller.request()
        await caller.say(OK)
        await caller.request()

    async with engine(late) as (raw, origin):
        assert (await ask(origin))[2] == b"ok"
        with pytest.raises(Lost):
            await ask(origin)
        assert len(raw.callers) == 1


async def test_an_engine_that_vanished_under_a_kept_connection_had_the_request() -> None:
    async def play(caller: Caller, number: int) -> None:
        await caller.request()
        await caller.say(OK)
        await caller.head()

    async with open_session() as session:
        async with raw_engine(play) as raw:
            origin = session.origin(raw.url)
            assert (await ask(origin))[2] == b"ok"
            reply = origin.ask(GET, b"", 5.0)
        with pytest.raises(Lost):
            await whole(reply)


async def test_a_cancelled_request_leaves_no_connection_behind() -> None:
    async with engine(answers(STREAM + b"1\r\na\r\n", close=False)) as (_, origin):
        reply = origin.ask(GET, b"", 5.0)
        await reply.begun()
        reply.end()
        reply = origin.ask(GET, b"", 5.0)
        await asyncio.sleep(0)
        reply.end()  # while it connects
        async with asyncio.timeout(10):
            while origin._open or reply.dialling is not None:
                await asyncio.sleep(0.005)


async def test_nothing_listens_and_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_engine(answers(OK)) as raw:
        pass
    async with open_session() as session:
        with pytest.raises(NoConnection):
            await ask(session.origin(raw.url))

    async def never(*args: Any, **named: Any) -> Any:
        await asyncio.Event().wait()

    async with open_session() as session:
        origin = session.origin(raw.url)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
        with pytest.raises(NoConnection, match=r"0\.01 s"):
            await whole(origin.ask(GET, b"", 0.01))


async def test_leaving_closes_what_is_open_and_opens_nothing_more() -> None:
    async with raw_engine(answers(OK, close=False)) as raw:
        async with open_session() as session:
            origin = session.origin(raw.url)
            await ask(origin)
            connecting = origin.ask(GET, b"", 5.0)
        with pytest.raises((NoConnection, Lost)):
            await whole(connecting)
        with pytest.raises(NoConnection):
            await ask(origin)
        assert not origin._open


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_both_event_loops_keep_replace_refuse_and_cancel_alike(loop) -> None:
    gone = 0

    async def play(caller: Caller, number: int) -> None:
        nonlocal gone
        head = await caller.head()
        if number == 0:
            await caller.say(OK)
            await caller.head()  # and closes
        elif number == 1:
            await caller.say(OK)
            await caller.request()
            await caller.say(STREAM + b"1\r\na\r\n")
            gone += not await caller.reader.read()
        else:
            assert b"30000000" in head
            await caller.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
            await asyncio.sleep(0.05)

    async def check() -> None:
        async with engine(play) as (raw, origin):
            assert [(await ask(origin))[2] for _ in range(2)] == [b"ok", b"ok"]
            assert len(raw.callers) == 2
            reply = origin.ask(GET, b"", 5.0)
            await reply.begun()
            reply.end()
            assert (await ask(origin, b"x" * 30_000_000))[::2] == (413, b"big")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(check(), 20))


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_engine_behind_tls_is_known_by_its_certificate(loop, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def check() -> None:
        async with raw_engine(answers(OK, close=False), context=server) as raw:
            async with Connections() as session:
                with pytest.raises(Unreachable, match="certificate is refused") as caught:
                    await Client(session, raw.url).read(("GET", "/v1/models"), frozenset({("GET", "/v1/models")}))
                assert caught.value.hopeless
            monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
            async with Connections() as session:
                client = Client(session, raw.url)
                for _ in range(2):
                    assert (await whole(client.call(CHAT, GENERATION, b"x" * 1_000_000)))[2] == b"ok"
                assert len(raw.callers[-1].heads) == 2

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())


async def test_a_key_that_would_break_out_of_its_header_is_refused() -> None:
    async with open_session() as session:
        for key in ("a\r\nX: y", "é"):
            with pytest.raises(ValueError, match="key"):
                Client(session, "http://127.0.0.1:1", key)


async def test_heads_name_the_engine_as_its_address_does() -> None:
    async with open_session() as session:
        lines = [Client(session, f"http://{host}")._lines for host in ("h:1", "[::1]:2", "[fe80::1%25eth0]:3", "bücher.example")]
    assert [line.split("\r\n")[0] for line in lines] == ["Host: h:1", "Host: [::1]:2", "Host: [fe80::1]:3", "Host: xn--bcher-kva.example"]
