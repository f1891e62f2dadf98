"""Sign-on at several servers of one database, on SQLite and on Postgres: one person, however many meet them at once, and out at all of
them."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from mindgw import clock
from mindgw.control import setup
from mindgw.gateway import signals
from mindgw.store.tables import Identity, Key
from tests.gateway.world import Box, Client, engine
from tests.identity_provider import Provider
from tests.postgres import fresh
from tests.server.site import site
from tests.server.test_sign_on import ADA, Desk, ago

CHAT = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'


@pytest.fixture(params=["sqlite", "postgres"])
def postgres_server(request):
    """Address of a Postgres, "" for SQLite."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else ""


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
async def directory(postgres_server, tmp_path, provider):
    """A data directory that two servers share."""
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(fresh(postgres_server, "template0")) if postgres_server else None
        made = await setup.initialise(tmp_path / "data", setup.Wishes(database=address))
        (tmp_path / "data" / "key").write_text(made.api_key)
        with (tmp_path / "data" / "config.yaml").open("a") as file:
            file.write("\n" + provider.settings(teams="g=nlp"))
        yield tmp_path / "data"


async def test_somebody_new_is_one_person_at_all_of_them(directory, provider):
    async with site(directory) as one, site(directory) as two:
        desks = [Desk(one, provider), Desk(two, provider)]
        said = [provider.token(jti=str(number), groups=["g"]) for number in range(8)]
        answers = await asyncio.gather(*(desks[number % 2].say("GET", "/v1/models", token) for number, token in enumerate(said)))
        assert [answer.status_code for answer in answers] == [200] * 8, [answer.text for answer in answers]
        assert len(await desks[0].rows(Identity)) == 1
        assert len([key for key in await desks[0].rows(Key) if key.provider]) == 1
        begun = await desks[0].begin()
        back = await desks[0].browse(begun)
        done = await asyncio.gather(*(desk.finish(begun, back) for desk in desks * 2))
        assert sorted(answer.status_code for answer in done) == [201, 401, 401, 401], "a ticket is good once, at whichever server"


async def test_whoever_is_disabled_at_one_is_out_at_the_other(directory, provider):
    """By their token, on the fast lane's way: what runs is cut, what is remembered is forgotten."""
    async with site(directory) as one, site(directory) as two:
        box = Box(two.world, "box", engine("m", slots=4))
        token = provider.token()
        assert (await Desk(two, provider).say("GET", "/v1/models", token)).status_code == 200
        assert two.pipeline._auth.known(token, clock.monotonic()).user == ADA
        stream = Client(two.world, token)
        stream.post(signals.Received(CHAT))
        await two.until(lambda: box.requests)
        assert (await one.call("POST", f"/users/{ADA}/disable")).status_code == 200
        await two.until(lambda: stream.code)
        assert stream.code == "user_disabled"
        assert two.pipeline._auth.known(token, clock.monotonic()) is None
        assert await Desk(two, provider).code("GET", "/v1/models", token) == (401, "user_disabled")
        refused = Client(two.world, token)
        refused.post(signals.Received(CHAT))
        await two.until(lambda: refused.code)
        assert refused.code == "user_disabled"


async def test_somebody_is_asked_about_by_one_of_them_and_out_at_all(directory, provider):
    async with site(directory) as one, site(directory) as two:
        desks = [Desk(one, provider), Desk(two, provider)]
        session = await desks[0].enter()
        made = await desks[1].say("POST", "/api/v1/me/keys", session, json={"name": "own"})
        key = made.json()["key"]
        rounds = [place.server.app.state.rechecks.all for place in (one, two)]
        await ago(desks[0], 1900)
        asked = provider.asked.count("/token")
        await asyncio.gather(*(each() for each in rounds * 2))
        assert provider.asked.count("/token") == asked + 1
        assert [(await desk.say("GET", "/v1/models", key)).status_code for desk in desks] == [200, 200]
        provider.thrown_out = True
        await ago(desks[0], 1900)
        await asyncio.gather(*(each() for each in rounds))
        assert await desks[0].code("GET", "/api/v1/me", session) == (401, "revoked_session")
        for place, desk in zip((one, two), desks, strict=True):
            await place.until(lambda place=place: place.pipeline._auth.known(key, clock.monotonic()) is None)
            assert (await desk.say("GET", "/v1/models", key)).status_code == 401
