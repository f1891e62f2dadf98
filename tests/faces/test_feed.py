"""The client's end of the feed, against a FAKE of a server that says what the test wants."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from time import monotonic

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.messages import Assembler
from websockets.sync.server import ServerConnection, serve

from mindgw.client import feed
from mindgw.client.errors import ClientError, NotAllowed, NotLoggedIn, NotMindGW, Unreachable
from mindgw.client.feed import Gap, Picture, told
from mindgw.client.transport import Server
from tests.faces.conftest import KEY, SECRET

FIRST = {
    "type": "snapshot",
    "seq": 7,
    "at": "2026-01-02T03:04:05Z",
    "queue": [{"id": "a", "position": 1}],
    "workers": [],
    "stats": {"n": 1},
}
NEXT = {"type": "delta", "seq": 8, "at": "2026-01-02T03:04:06Z", "queue": {"set": [{"id": "a", "position": 2}, {"id": "b"}], "removed": []}}
LAST = {"type": "delta", "seq": 9, "at": "2026-01-02T03:04:07Z", "queue": {"set": [], "removed": ["a"]}, "stats": {"n": 2}}


class Enough(Exception):
    """The test has seen what it wanted to."""


@contextmanager
def speaking(*plays: Callable[[ServerConnection], None], tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list]]:
    """A server whose nth connection is served by the nth play, and the last one by all others; its address, and the headers it saw."""
    seen: list = []

    def handle(connection: ServerConnection) -> None:
        seen.append((connection.request.path, connection.request.headers))
        plays[min(len(seen), len(plays)) - 1](connection)

    with serve(handle, "127.0.0.1", 0, ssl=tls, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.socket.getsockname()[1]}", seen
        server.shutdown()
        thread.join()


def say(*messages: object, code: int = 0, reason: str = "") -> Callable[[ServerConnection], None]:
    """Says these; closes with that code, or stays until the other side is gone."""

    def play(connection: ServerConnection) -> None:
        for message in messages:
            connection.send(message if isinstance(message, (str, bytes)) else json.dumps(message))
        if code:
            connection.close(code, reason)
        for _ in connection:
            pass

    return play


def at(url: str, **more) -> Server:
    return Server.at(url, KEY, timeout=5, **more)


def take(count: int, server: Server, lost=lambda why: None, wait=lambda seconds: None) -> list:
    """The first messages of a feed, ticks left out."""
    found: list = []
    with closing(feed.follow(server, lost, wait)) as heard:
        while len(found) < count:
            if (news := next(heard)) is not None:
                found.append(news)
    return found


def test_messages_come_with_the_picture_that_they_lead_to():
    with speaking(say(FIRST, NEXT, LAST)) as (url, seen):
        found = take(3, at(url))
    assert [message for message, _ in found] == [FIRST, NEXT, LAST]
    assert found[0][1] == Picture(7, FIRST["at"], {"a": {"id": "a", "position": 1}}, {}, {}, {"n": 1})
    assert found[1][1].queue == {"a": {"id": "a", "position": 2}, "b": {"id": "b"}}
    assert found[2][1] == Picture(9, LAST["at"], {"b": {"id": "b"}}, {}, {}, {"n": 2})
    path, headers = seen[0]
    assert (path, headers["authorization"], headers["user-agent"][:7]) == ("/api/v1/events", f"Bearer {KEY}", "mindgw/")


def test_silence_gives_the_caller_a_turn(monkeypatch):
    monkeypatch.setattr(feed, "TICK", 0.01)
    with speaking(say(FIRST)) as (url, _), closing(feed.follow(at(url), print)) as heard:
        assert next(heard) is not None
        assert [next(heard), next(heard)] == [None, None]


def test_a_connection_that_is_lost_is_made_again_with_a_fresh_picture():
    why: list[str] = []
    again = {**FIRST, "seq": 1, "queue": []}
    with speaking(say(FIRST, NEXT, code=1012), lambda connection: connection.socket.shutdown(socket.SHUT_RDWR), say(again)) as (url, seen):
        found = take(3, at(url), why.append)
        assert [message["seq"] for message, _ in found] == [7, 8, 1]
        assert found[2][1].queue == {}
        assert why == [f"{url} went away (1012)", f"{url} went away"]
        assert len(seen) == 3


def test_a_ctrl_c_within_the_library_does_not_hold_up_the_end(monkeypatch):
    """It came between two steps of a lock's release, so that the thread which reads waits for ever."""
    stuck: list[Assembler] = []

    def maybe_resume(assembler: Assembler) -> None:
        if assembler.paused:
            assembler.paused = False
            stuck.append(assembler)
            raise KeyboardInterrupt

    def watch(url: str) -> None:
        with suppress(KeyboardInterrupt), closing(feed.follow(at(url), print)) as heard:
            next(heard)
            reading = heard.gi_frame.f_locals["socket"].recv_messages
            end = monotonic() + 10
            while not reading.paused and monotonic() < end:
                pass
            monkeypatch.setattr(Assembler, "maybe_resume", maybe_resume)
            for _ in heard:
                pass

    with speaking(say(FIRST, *({**NEXT, "seq": seq} for seq in range(8, 500)))) as (url, _):
        watching = threading.Thread(target=watch, args=[url], daemon=True)
        watching.start()
        watching.join(10 * feed.CLOSING)
        is_over = not watching.is_alive()
        (assembler,) = stuck
        assembler.resume()
        watching.join()
    assert is_over


def test_attempts_come_less_often_and_are_told_once():
    why, waits = [], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            raise Enough

    with speaking(say(FIRST, code=1012)) as (url, _):
        heard = feed.follow(at(url), why.append, wait)
        next(heard)
    with pytest.raises(Enough):
        next(heard)
    assert len(why) == 1
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_who_is_not_there_at_first_is_an_error():
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="nothing listens"):
            take(1, at(f"http://127.0.0.1:{taken.getsockname()[1]}"))


def test_a_gap_is_healed_by_a_fresh_picture():
    why: list[str] = []
    with speaking(say(FIRST, LAST), say(FIRST)) as (url, _):
        assert [message["seq"] for message, _ in take(2, at(url), why.append)] == [7, 7]
    assert why == [f"{url} left something out"]


@pytest.mark.parametrize(("code", "kind"), [(4401, NotLoggedIn), (4403, NotAllowed)])
def test_a_key_that_is_no_longer_good_ends_it(code, kind):
    with speaking(say(FIRST, code=code, reason="revoked_api_key")) as (url, _), pytest.raises(kind) as ended:
        take(2, at(url))
    assert ended.value.code == "revoked_api_key"


@pytest.mark.parametrize(
    "message",
    [
        "", "{", "[]", "null", "3", b"\xff\xfe", "[" * 100_000, "{}", '{"type":"snapshot"}', {**FIRST, "seq": "7"}, {**FIRST, "at": 0},
        {**FIRST, "queue": {}}, {**FIRST, "queue": [3]}, {**FIRST, "queue": [{}]}, {**FIRST, "queue": [{"id": 3}]}, {**FIRST, "stats": []},
        {**FIRST, "workers": None},
    ],
)  # fmt: skip
def test_what_is_no_message_is_that_of_somebody_else(message):
    with speaking(say(message)) as (url, _), pytest.raises(NotMindGW, match="its feed is not one"):
        take(1, at(url))


def test_a_message_without_an_end_is_not_taken_in(monkeypatch):
    monkeypatch.setattr(feed, "MAX_ANSWER", 1000)
    why: list[str] = []
    with speaking(say("x" * 1001), say(FIRST)) as (url, _):
        take(1, at(url), why.append)
    assert len(why) == 1


names = st.sampled_from(["id", "set", "removed", "a"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["seq", "at", "type", "queue", "workers", "stats"]), json_values))
def test_no_message_breaks_the_picture(message):
    for known in (None, Picture(0, "")):
        try:
            found = told(known, {"seq": 1, "at": "x", **message})
        except (TypeError, Gap):
            continue
        assert all(isinstance(item, dict) and item["id"] == id for id, item in found.queue.items())


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(401, NotLoggedIn, 4), (403, NotAllowed, 5), (429, ClientError, 8), (500, ClientError, 1), (503, ClientError, 1)],
)
def test_a_refusal_before_the_upgrade_is_that_of_every_call(cli, fake, status, kind, code):
    fake.status = status
    fake.body = json.dumps(
        {"error": {"message": "No.", "type": "t", "param": None, "code": "nope", "hint": "H.", "request_id": "r"}}
    ).encode()
    fake.headers["content-length"] = str(len(fake.body))
    refused = cli("queue", "watch")
    assert (refused.code, refused.out) == (code, "")
    assert refused.err == f"error: No.\nhint:  H.\nref:   code=nope  rid=r  exit {code}\n"
    with pytest.raises(kind):
        take(1, at(fake.url))


@pytest.mark.parametrize(
    ("status", "word"),
    [(200, "HTTP 200"), (302, "see https://elsewhere.example/"), (307, "see https://elsewhere.example/"), (404, "HTTP 404")],
)
def test_who_speaks_no_websocket_is_no_mindgateway(cli, fake, status, word):
    fake.status, fake.body = status, b"<html>"
    fake.headers |= {"location": "https://elsewhere.example/", "content-length": "6"}
    refused = cli("queue", "watch")
    assert (refused.code, refused.out) == (9, "")
    assert word in refused.err and "code=not_mindgw" in refused.err
    assert len(fake.asked) == 1


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
def test_who_speaks_no_http_is_told_as_that(answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once() -> None:
            with listening.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=once)
        thread.start()
        with pytest.raises(Unreachable):
            take(1, at(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        thread.join()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def secured(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(made)
    return made


def test_tls_trusts_the_pinned_authority(authority):
    with speaking(say(FIRST, NEXT), tls=secured(authority)) as (url, _):
        assert len(take(2, at(url, ca_pem=authority.cert_pem.bytes().decode()))) == 2


def test_tls_trusts_nobody_else_and_sends_no_key(authority):
    with speaking(say(FIRST), tls=secured(authority)) as (url, seen):
        for pinned in (trustme.CA().cert_pem.bytes().decode(), None):
            with pytest.raises(Unreachable, match="cannot trust"):
                take(1, at(url, ca_pem=pinned))
    assert seen == []


def test_the_talk_about_it_has_no_secret():
    said: list[str] = []
    with speaking(say(FIRST)) as (url, _):
        take(1, at(url, note=said.append))
    assert "/api/v1/events" in said[0] and SECRET not in said[0]
