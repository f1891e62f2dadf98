"""An organisation that is shut out: keys, sessions, streams, here and on another server of the same database; and nobody else."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from mindgw.control import sessions
from mindgw.gateway import signals
from mindgw.server import app
from tests.gateway.world import Box, Client, engine
from tests.server.site import Site, site
from tests.server.test_access import in_place
from tests.server.test_orgs import enter, org

CHAT = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'


class Guests:
    """An organisation with a key of its administrator and one of nobody."""

    def __init__(self, place: Site, made: dict, boss: dict, keys: list[str]) -> None:
        self.place, self.made, self.boss, self.keys = place, made, boss, keys

    def stream(self, key: str, place: Site | None = None) -> Client:
        client = Client((place or self.place).world, key)
        client.post(signals.Received(CHAT))
        return client

    async def set(self, state: str) -> None:
        done = await self.place.call("PATCH", f"/orgs/{self.made['name']}", json={"state": state})
        assert done.json()["state"] == state, done.text

    async def codes(self, place: Site | None = None) -> list[int]:
        """How they are met: the keys by data and management, the session."""
        http = (place or self.place).http
        headers = [{"authorization": f"Bearer {key}"} for key in self.keys]
        asked = [*(("/v1/models", one) for one in headers), *(("/api/v1/me", one) for one in (*headers, self.boss))]
        return [(await http.get(path, headers=one)).status_code for path, one in asked]


async def guests(place: Site, name: str = "acme") -> Guests:
    made = await org(place, name)
    boss = await enter(place, made)
    bodies = {"name": "hers", "user": f"boss@{name}.example"}, {"name": "nobodys", "role": "user"}
    answers = [await place.http.post("/api/v1/keys", json=body, headers=boss) for body in bodies]
    assert [answer.status_code for answer in answers] == [201, 201], answers
    return Guests(place, made, boss, [answer.json()["key"] for answer in answers])


@in_place
async def test_all_of_it_is_refused_and_cut_at_once_and_nobody_else(place):
    acme, beta = await guests(place), await guests(place, "beta")
    box = Box(place.world, "box", engine("m", slots=8))
    streams = [acme.stream(key) for key in acme.keys]
    others = [beta.stream(key) for key in (*beta.keys, place.key)]
    await place.until(lambda: len(box.requests) == 5)
    half = [Client(place.world, key) for key in acme.keys]  # their bodies are still being sent
    assert await acme.codes() == [200] * 5
    await acme.set("disabled")
    assert [client.code for client in (*streams, *half)] == ["user_disabled"] * 4
    assert await acme.codes() == [401] * 5
    await place.until(lambda: len(box.cancelled) == 2)
    assert [client.code for client in others] == [""] * 3
    assert await beta.codes() == [200] * 5


@in_place
async def test_it_is_let_in_again_at_once_with_the_keys_and_sessions_of_before(place):
    acme = await guests(place)
    await acme.set("disabled")
    assert await acme.codes() == [401] * 5
    await acme.set("active")
    assert await acme.codes() == [200] * 5


@in_place
async def test_who_is_let_in_already_loses_nothing_by_being_let_in(place):
    acme = await guests(place)
    box = Box(place.world, "box", engine("m", slots=8))
    streams = [acme.stream(key) for key in acme.keys]
    await place.until(lambda: len(box.requests) == 2)
    await acme.set("active")
    assert (
        await place.http.post("/api/v1/users", json={"email": "ana@acme.example", "role": "user"}, headers=acme.boss)
    ).status_code == 201
    assert [client.code for client in streams] == ["", ""]


@in_place
async def test_nobody_comes_in_by_an_invitation_or_a_pass_of_before(place):
    acme = await guests(place)
    asked = await place.http.post("/api/v1/users", json={"email": "ana@acme.example"}, headers=acme.boss)
    held = (await place.http.post("/api/v1/me/token", headers=acme.boss)).json()["token"]
    await acme.set("disabled")
    shown = await place.http.post(
        "/api/v1/invitations/accept", json={"invitation": asked.json()["invitation"]}, headers={"authorization": ""}
    )
    assert (shown.status_code, shown.json()["error"]["code"]) == (401, "user_disabled")
    assert (await place.http.get("/api/v1/me", headers={"authorization": f"Bearer {held}"})).status_code == 401


@pytest.mark.parametrize("turn", ["disabled", "active"])
async def test_another_server_of_the_database_hears_of_it(tmp_path, turn):
    assert app.CHECK < 1 and sessions.TTL <= 1, "seconds within which they ask what has changed"
    async with AsyncExitStack() as open_ones:
        first = await open_ones.enter_async_context(site(tmp_path / "data"))
        second = await open_ones.enter_async_context(site(tmp_path / "data"))
        acme = await guests(first)
        assert await acme.codes(second) == [200] * 5
        box = Box(second.world, "box", engine("m", slots=8))
        streams = [acme.stream(key, second) for key in acme.keys]
        await second.until(lambda: len(box.requests) == 2)
        await acme.set("disabled")
        wanted = [401] * 5
        if turn == "active":
            await settled(acme, second, wanted)
            await acme.set("active")
            wanted = [200] * 5
        await settled(acme, second, wanted)
        await second.until(lambda: all(client.code for client in streams))
        assert [client.code for client in streams] == ["user_disabled"] * 2


async def settled(acme: Guests, place: Site, wanted: list[int]) -> None:
    """A deadline, not a measure."""
    async with asyncio.timeout(20):
        while await acme.codes(place) != wanted:
            await asyncio.sleep(0.05)


@in_place
async def test_enabling_somebody_who_is_enabled_ends_nothing(place):
    acme = await guests(place)
    box = Box(place.world, "box", engine("m"))
    ana = (await place.http.post("/api/v1/service-accounts", json={"name": "bot"}, headers=acme.boss)).json()
    key = (await place.http.post("/api/v1/keys", json={"name": "k", "user": ana["email"]}, headers=acme.boss)).json()["key"]
    stream = acme.stream(key)
    await place.until(lambda: box.requests)
    done = await place.http.post(f"/api/v1/users/{ana['id']}/enable", headers=acme.boss)
    assert (done.status_code, stream.code) == (200, "")
