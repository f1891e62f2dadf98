"""The feed's door in the whole application, behind the real web server: who may come in, and how a feed ends."""

import asyncio
import contextlib
import json
from datetime import timedelta

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import USER_AGENT

from mindgw import clock, config, errors
from mindgw.control import feed, keys, secrets
from mindgw.control import people as control
from mindgw.control.keys import KeyWish
from mindgw.control.principal import Principal
from mindgw.core import access
from mindgw.gateway.pipeline import Pipeline
from mindgw.server import run, socket
from mindgw.server.app import Server, build
from mindgw.server.management import events
from mindgw.server.management.users import cut
from mindgw.store import people, sessions, users
from mindgw.store.database import Database
from tests.initialised import initialised

PATH = "/api/v1/events"


async def until(done, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.005)


class House:
    """A server that is up, and an admin's key for it."""

    def __init__(self, made: Server, running: uvicorn.Server, key: str) -> None:
        self.made, self.running, self.key = made, running, key
        self.port = running.servers[0].sockets[0].getsockname()[1]

    @property
    def feed(self) -> feed.Feed:
        return self.made.app.state.feed

    def watch(self, key: str | None = None, **more):
        headers = [("authorization", f"Bearer {self.key if key is None else key}")]
        return connect(
            f"ws://127.0.0.1:{self.port}{PATH}", additional_headers=headers, compression=None, user_agent_header=USER_AGENT, **more
        )

    async def make(self, **wish) -> keys.KeyMade:
        return await keys.create(self.made.database, self.made.app.state.secrets.pepper, "root", KeyWish(**({"name": "k"} | wish)))

    async def revoke(self, key: keys.KeyMade) -> None:
        await keys.revoke(self.made.database, "root", key.id, self.made.pipeline.revoke_key)

    def stop(self) -> None:
        self.running.should_exit = True


@pytest.fixture
async def house(tmp_path):
    made = await initialised(tmp_path / "data")
    settings = config.load(None, tmp_path / "data")
    database = Database(settings.database_url)
    server = build(settings, secrets.load(tmp_path / "data"), database)
    server.app.state.feed = feed.Feed(server.pipeline, 0.01)
    running = uvicorn.Server(uvicorn.Config(server.app, port=0, ws=run.WebSocket, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(running._serve())
    await until(lambda: running.started, 20)
    yield House(server, running, made.api_key)
    running.should_exit = True
    await serving
    await database.close()


async def heard(socket) -> dict:
    async with asyncio.timeout(5):
        return json.loads(await socket.recv())


async def closed(socket) -> tuple[int, str]:
    """How the server ended it."""
    with pytest.raises(ConnectionClosed) as end:
        async with asyncio.timeout(5):
            while True:
                await socket.recv()
    assert end.value.rcvd is not None
    return end.value.rcvd.code, end.value.rcvd.reason


async def ask(house: House, *lines: str) -> tuple[int, dict]:
    """A request as bytes; the status and the error of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write("\r\n".join([f"GET {PATH} HTTP/1.1", "host: x", "connection: close", *lines, "", ""]).encode())
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), json.loads(body)["error"]


async def test_a_picture_comes_first_and_a_delta_when_something_changes(house):
    async with house.watch() as socket:
        first = await heard(socket)
        assert (first["type"], first["queue"], first["workers"]) == ("snapshot", [], [])
        house.made.pipeline.pause_queue("m")
        news = await heard(socket)
        assert (news["type"], news["seq"], news["stats"]) == ("delta", first["seq"] + 1, {"paused_models": ["m"], "paused_unserved": ["m"]})


@pytest.mark.parametrize("key", ["mgw_nonsense", "", "\xff"])
async def test_a_bad_key_is_refused_before_the_upgrade_as_everywhere(house, key, caplog):
    caplog.set_level("INFO")
    with pytest.raises(InvalidStatus) as refused:
        async with house.watch(key):
            pass
    answer = refused.value.response
    error = json.loads(answer.body)["error"]
    assert (answer.status_code, error["code"], answer.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert error["request_id"] == answer.headers["x-mindgw-request-id"]
    assert "--new-admin-key" in error["hint"]
    assert [record.fields["error_code"] for record in caplog.records if record.name == "mindgw.request"] == ["invalid_api_key"]
    await until(lambda: not house.running.server_state.connections)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert house.feed._producer is None


async def test_a_key_that_is_not_an_admins_may_not_watch(house):
    with pytest.raises(InvalidStatus) as refused:
        async with house.watch((await house.make()).key):
            pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["error"]["code"] == "forbidden"


async def test_two_keys_are_one_too_many(house):
    other = await house.make(role="admin")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(
            f"ws://127.0.0.1:{house.port}{PATH}", additional_headers={"authorization": f"Bearer {house.key}", "x-api-key": other.key}
        ):
            pass
    assert refused.value.response.status_code == 400


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_a_page_of_another_site_can_follow_nothing(house, origin):
    """Threat 22. What protects the feed is not the Origin, which programs may say what they like in, but that a key comes in a header
    alone: pages cannot set one on a WebSocket, and what browsers send by themselves opens nothing."""
    own = {"origin": origin, "cookie": f"key={house.key}; authorization=Bearer {house.key}"}
    for query, offered in (("", None), (f"?key={house.key}&token={house.key}&api_key={house.key}", None), ("", [house.key, "mindgw.1"])):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://127.0.0.1:{house.port}{PATH}{query}", additional_headers=own, subprotocols=offered, compression=None):
                pass
        answer = refused.value.response
        assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (401, "missing_api_key")
        assert "set-cookie" not in answer.headers and "access-control-allow-origin" not in answer.headers
    with_key = {"origin": origin, "authorization": f"Bearer {house.key}"}
    async with connect(f"ws://127.0.0.1:{house.port}{PATH}", additional_headers=with_key, compression=None) as socket:
        assert await heard(socket), "who has the key is no page"


async def test_too_many_listeners_are_told_to_come_later(house, monkeypatch):
    monkeypatch.setattr(feed, "LISTENERS", 1)
    async with house.watch() as socket:
        await heard(socket)
        with pytest.raises(InvalidStatus) as refused:
            async with house.watch():
                pass
        answer = refused.value.response
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        assert json.loads(answer.body)["error"]["code"] == "too_many_listeners"


async def test_without_an_upgrade_it_says_what_it_is_to_those_who_may_know(house):
    status, error = await ask(house, f"authorization: Bearer {house.key}")
    assert (status, error["code"]) == (400, "websocket_required")
    assert (await ask(house))[0] == 401
    assert (await ask(house, f"authorization: Bearer {(await house.make()).key}"))[0] == 403


async def test_a_failure_of_ours_is_told_as_one(house, caplog):
    class Broken:
        def listen(self):
            raise ZeroDivisionError

    house.made.app.state.feed = Broken()
    with pytest.raises(InvalidStatus) as refused:
        async with house.watch():
            pass
    assert refused.value.response.status_code == 500
    assert json.loads(refused.value.response.body)["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


async def test_a_revoked_key_ends_its_feed_within_a_second(house):
    key = await house.make(role="admin")
    async with house.watch(key.key) as socket, house.watch() as other:
        await heard(socket)
        await house.revoke(key)
        async with asyncio.timeout(1.0):
            assert await closed(socket) == (4401, "revoked_api_key")
        await heard(other)
        house.made.pipeline.pause_queue()
        assert (await heard(other))["stats"] == {"paused": True}


@pytest.mark.parametrize("by_pass", [False, True])
async def test_who_is_shut_out_has_no_feed_any_more(house, by_pass):
    office = house.made.app.state
    async with house.made.database.write() as session:
        org = await people.get_or_create_org(session)
        for email in ("ana@example.com", "bob@example.com"):
            await users.obtain(session, users.NewUser(org_id=org.id, email=email, role="viewer"))
        ana, bob = [(await users.find(session, org.id, email)).id for email in ("ana@example.com", "bob@example.com")]
        now, pepper = clock.utcnow(), office.secrets.pepper
        held = [(await sessions.create(session, id, pepper, at=now, until=now + timedelta(1)))[1] for id in (ana, bob)]
    if by_pass:
        held = [office.sessions.make_pass(await office.sessions.identify(text), 60)[0] for text in held]
    root = Principal(org_id=org.id, is_home=True, rights=access.combine([(access.BUILT_IN["admin"], None)]), key_id="root")
    async with house.watch(held[0]) as socket, house.watch(held[1]) as other:
        await heard(socket)
        await heard(other)
        await control.disable(house.made.database, root, ana, cut(office))
        assert await closed(socket) == (4401, "revoked_session")
        house.made.pipeline.pause_queue()
        assert (await heard(other))["stats"] == {"paused": True}


async def test_a_key_that_is_no_longer_an_admins_ends_its_feed(house, monkeypatch):
    async def demoted(*_asked):
        raise errors.Forbidden

    async with house.watch() as socket:
        await heard(socket)
        house.made.app.state.identify = demoted
        assert await closed(socket) == (4403, "forbidden")


async def test_a_database_that_is_away_ends_no_feed(house, monkeypatch):
    monkeypatch.setattr(events, "DOUBT", 0.01)
    asked = 0

    async def away(*_asked):
        nonlocal asked
        asked += 1
        raise OverflowError

    async with house.watch() as socket:
        await heard(socket)
        house.made.app.state.identify = away
        await until(lambda: asked > 3)
        house.made.pipeline.pause_queue()
        assert (await heard(socket))["stats"] == {"paused": True}


async def test_the_server_ends_its_feeds_when_it_stops(house):
    async with house.watch() as socket:
        await heard(socket)
        house.stop()
        assert (await closed(socket))[0] == 1012
    await until(lambda: house.feed._producer is None)
    assert house.feed._listeners == set()


async def test_who_hangs_up_is_forgotten(house):
    async with house.watch() as socket:
        await heard(socket)
    await until(lambda: not house.feed._listeners)
    assert house.feed._producer is None
    assert not house.running.server_state.connections


async def test_what_a_listener_says_is_dropped(house):
    async with house.watch() as socket:
        await heard(socket)
        for word in ("x" * 10_000, b"\x00\xff", "{}"):
            await socket.send(word)
        house.made.pipeline.pause_queue()
        assert (await heard(socket))["stats"] == {"paused": True}


async def test_a_feed_that_breaks_down_says_so(house, monkeypatch):
    def broken(self):
        raise ZeroDivisionError

    async with house.watch() as socket:
        await heard(socket)
        monkeypatch.setattr(Pipeline, "lineup", broken)
        assert await closed(socket) == (1011, "internal_error")


async def mute(house: House) -> asyncio.StreamWriter:
    """A listener that reads nothing, with small buffers on its way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port, limit=1024)
    lines = [f"GET {PATH} HTTP/1.1", "host: x", "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"]
    lines += ["sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", f"authorization: Bearer {house.key}", "", ""]
    writer.write("\r\n".join(lines).encode())
    await reader.readuntil(b"\r\n\r\n")
    return writer


async def chatter(house: House) -> None:
    """News of 100 KiB in every look."""
    models, number = house.made.pipeline.queue.paused_models, 0
    while True:
        models.clear()
        models.update(f"{number}-{each}-{'m' * 1000}" for each in range(100))
        number += 1
        await asyncio.sleep(0.005)


async def test_a_slow_reader_is_kept_no_more_than_a_few_messages_for_and_dropped_in_the_end(house, monkeypatch):
    monkeypatch.setattr(events, "STALL", 0.5)
    monkeypatch.setattr(socket, "CLOSING", 0.1)
    monkeypatch.setattr(events, "PARTING", 0.1)
    writer = await mute(house)
    await until(lambda: house.feed._listeners)
    (listener,) = house.feed._listeners
    talk = asyncio.create_task(chatter(house))
    most = 0
    async with asyncio.timeout(20):
        while house.feed._listeners:
            most = max(most, len(listener._pending))
            await asyncio.sleep(0.005)
    assert 0 < most <= feed.BACKLOG
    await until(lambda: not house.running.server_state.connections)
    assert house.feed._producer is None
    talk.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await talk
    writer.close()


async def test_a_slow_reader_holds_up_no_stop_and_no_other(house, monkeypatch):
    monkeypatch.setattr(socket, "CLOSING", 0.1)
    writer = await mute(house)
    talk = asyncio.create_task(chatter(house))
    async with house.watch(max_queue=None) as other:
        seq = (await heard(other))["seq"]
        await until(lambda: any(listener._behind for listener in house.feed._listeners), 20)
        while (news := await heard(other))["seq"] < seq + 5:
            assert news["type"] == "delta"
        talk.cancel()
        house.stop()
        assert (await closed(other))[0] == 1012
    await until(lambda: not house.running.server_state.connections)
    writer.close()


@pytest.mark.parametrize(("wrong", "code"), [(errors.Unauthenticated(), 4401), (errors.Forbidden(), 4403)])
async def test_where_no_answer_can_stand_in_place_of_an_upgrade_it_is_closed(wrong, code):
    sent = []

    async def send(message):
        sent.append(message)

    await events._refuse(wrong, {"path": PATH, "extensions": None}, [], send)
    assert sent == [{"type": "websocket.close", "code": code, "reason": wrong.code}]


async def test_a_peer_that_is_gone_ends_the_sending_whatever_the_server_says_of_it(house):
    for gone in (OSError(), RuntimeError()):

        async def send(message, gone=gone):
            raise gone

        listener = house.feed.listen()
        assert await events._until_broken(listener, send) == events.GONE
        listener.close()
