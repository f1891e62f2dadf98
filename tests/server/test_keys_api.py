"""Keys that are bounded, changed, rotated and ended, and rates, over HTTP, on the real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
from sqlmodel import select

from mindgw import clock
from mindgw.store.tables import AuditEntry, Key
from tests.gateway.world import JSON, Box, engine
from tests.server.site import site

CHAT = "/v1/chat/completions"
ANSWER = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'


async def good(place, method, path, **more):
    found = await place.call(method, path, **more)
    assert found.status_code in (200, 201), found.text
    return found.json()


async def refused(place, status, method, path, **more):
    found = await place.call(method, path, **more)
    assert found.status_code == status, found.text
    return found.json()["error"]


def asked(place, key, model="m", client=None):
    ask = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return asyncio.create_task((client or place.http).post(CHAT, json=ask, headers={"authorization": f"Bearer {key}"}))


async def answer(place, box, key, model="m", client=None):
    asking = asked(place, key, model, client)
    await place.until(lambda: box.requests or asking.done())
    if not asking.done():
        box.head(200, JSON, ANSWER)
        box.close()
    return await place.settled(asking)


async def code(place, box, key, model="m", client=None):
    found = await answer(place, box, key, model, client)
    return found.status_code if found.status_code == 200 else found.json()["error"]["code"]


# -- what a key is good for --------------------------------------------------------------------------------------------


async def test_a_key_is_made_with_bounds_a_rate_and_an_end_and_shows_them(tmp_path):
    async with site(tmp_path / "data") as place:
        ends = datetime(2100, 1, 1, tzinfo=UTC)
        made = await place.new_key(
            "bot", models=["m*"], routes=["chat"], addresses=["127.0.0.1", "10.0.0.0/8"], rpm=60, tpm=10**10, concurrency=2,
            labels={"region": "eu"}, expires_at=ends.isoformat(),
        )  # fmt: skip
        shown = await good(place, "GET", f"/keys/{made['id']}")
        assert {name: made[name] for name in shown} == shown
        assert (shown["models"], shown["routes"], shown["addresses"]) == (["m*"], ["chat"], ["127.0.0.1/32", "10.0.0.0/8"])
        assert (shown["rpm"], shown["tpm"], shown["concurrency"], shown["labels"]) == (60, 10**10, 2, {"region": "eu"})
        assert datetime.fromisoformat(shown["expires_at"]) == datetime.fromisoformat(shown["ends_at"]) == ends
        plain = await place.new_key("plain")
        assert (plain["models"], plain["rpm"], plain["ends_at"]) == ([], None, None)


SENSELESS = [
    ({"models": [""]}, "models"), ({"models": ["a"] * 101}, None), ({"routes": ["chats"]}, "routes"),
    ({"addresses": ["10.0.0.1/8"]}, "addresses"), ({"addresses": ["home"]}, "addresses"), ({"rpm": 0}, None), ({"rpm": -1}, None),
    ({"rpm": 2**31}, None), ({"tpm": 10**13}, None), ({"concurrency": "five"}, None), ({"labels": {"a": 5}}, None),
    ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"), ({"expires_at": "2100-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "soon"}, None), ({"scopes": {}}, None), ({"priority": "top"}, "priority"), ({"name": " "}, None),
]  # fmt: skip


async def test_bounds_that_make_no_sense_are_named_and_change_nothing(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot")
        for body, param in SENSELESS:
            for method, path in (("POST", "/keys"), ("PATCH", f"/keys/{made['id']}")):
                error = await refused(place, 400, method, path, json={"name": "x"} | body)
                assert param in {None, error["param"]}, (body, error)
        shown = await good(place, "GET", f"/keys/{made['id']}")
        assert {name: made[name] for name in shown} == shown
        assert len((await good(place, "GET", "/keys"))["items"]) == 2


async def test_a_key_is_held_to_its_bounds_from_its_next_request_on(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world, "box", engine("m", "n"))
        made = await place.new_key("bot")
        key, path = made["key"], f"/keys/{made['id']}"
        assert await code(place, box, key) == 200
        changed = await good(place, "PATCH", path, json={"models": ["n"], "name": "robot"})
        assert (changed["models"], changed["name"], changed["version"]) == (["n"], "robot", 2)
        assert await code(place, box, key) == "model_not_found"
        assert await code(place, box, key, "n") == 200
        listed = await place.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert [model["id"] for model in listed.json()["data"]] == ["n"]
        await good(place, "PATCH", path, json={"routes": ["models"], "models": []})
        assert await code(place, box, key) == "route_not_allowed"
        assert (await place.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        await good(place, "PATCH", path, json={"routes": [], "addresses": ["192.0.2.0/24"]})
        assert await code(place, box, key) == "address_not_allowed"
        there = httpx.ASGITransport(place.server.app, client=("192.0.2.7", 1))
        async with httpx.AsyncClient(transport=there, base_url="http://gw") as elsewhere:
            assert await code(place, box, key, client=elsewhere) == 200
        await good(place, "PATCH", path, json={"addresses": [], "rpm": 1})
        assert await code(place, box, key) == 200
        assert await code(place, box, key) == "rate_limit_exceeded"
        await good(place, "PATCH", path, json={"rpm": None})
        assert await code(place, box, key) == 200


async def test_an_admin_key_is_held_to_its_bounds_in_management_too(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("narrow", role="admin", routes=["chat"])
        found = await place.http.get("/api/v1/keys", headers={"authorization": f"Bearer {made['key']}"})
        assert (found.status_code, found.json()["error"]["code"]) == (403, "route_not_allowed")


async def test_a_change_is_refused_when_somebody_was_faster_or_the_key_is_dead(tmp_path):
    async with site(tmp_path / "data") as place:
        path = f"/keys/{(await place.new_key('bot'))['id']}"
        await good(place, "PATCH", path, json={"rpm": 5}, headers={"if-match": "1"})
        await refused(place, 412, "PATCH", path, json={"rpm": 6}, headers={"if-match": "1"})
        await refused(place, 412, "POST", f"{path}/rotate", json={}, headers={"if-match": "1"})
        assert (await good(place, "GET", path))["rpm"] == 5
        await good(place, "DELETE", path)
        assert (await refused(place, 409, "PATCH", path, json={"rpm": 6}))["code"] == "revoked_api_key"
        assert (await refused(place, 409, "POST", f"{path}/rotate", json={}))["code"] == "revoked_api_key"
        await refused(place, 404, "PATCH", "/keys/0000000000", json={"rpm": 6})
        await refused(place, 404, "POST", "/keys/0000000000/rotate", json={})


async def test_nobody_changes_or_is_shown_the_secret_of_a_key_that_can_do_more(tmp_path):
    async with site(tmp_path / "data") as place:
        operator = (await place.new_key("ops", role="operator"))["key"]
        admin = await place.new_key("boss", role="admin")
        mine = {"authorization": f"Bearer {operator}"}
        tries = [("PATCH", f"/keys/{admin['id']}", {"rpm": 1}), ("POST", f"/keys/{admin['id']}/rotate", {})]
        for method, path, body in tries:
            assert (await refused(place, 403, method, path, json=body, headers=mine))["message"]
        assert (await good(place, "GET", f"/keys/{admin['id']}"))["version"] == 1


async def test_a_key_goes_to_another_team_and_person(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot", team="nlp", user="ada@example.org")
        path = f"/keys/{made['id']}"
        moved = await good(place, "PATCH", path, json={"team": "vision", "user": None, "role": "viewer"})
        assert (moved["team"], moved["user"], moved["role"]) == ("vision", None, "viewer")
        assert (await refused(place, 400, "PATCH", path, json={"role": "king"}))["param"] == "role"


# -- rotation ----------------------------------------------------------------------------------------------------------


async def test_two_secrets_are_good_until_the_grace_is_over(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world)
        made = await place.new_key("bot")
        path = f"/keys/{made['id']}"
        second = await good(place, "POST", f"{path}/rotate", json={"grace_seconds": 3600})
        assert (second["id"], second["key"][:15]) == (made["id"], made["key"][:15])
        assert second["key"] != made["key"] and second["masked"].endswith(second["key"][-4:])
        assert [await code(place, box, key) for key in (made["key"], second["key"])] == [200, 200]
        third = await good(place, "POST", f"{path}/rotate", json={"grace_seconds": 3600})
        found = [await code(place, box, key) for key in (made["key"], second["key"], third["key"])]
        assert found == ["invalid_api_key", 200, 200], "no more than two"
        async with place.database.write() as session:
            row = await session.get(Key, made["id"])
            row.prior_until = clock.utcnow() - timedelta(seconds=1)
        place.pipeline.forget_key(made["id"])
        assert [await code(place, box, key) for key in (second["key"], third["key"])] == ["invalid_api_key", 200]
        assert (await good(place, "GET", path))["prior_until"] is None
        async with place.database.read() as session:
            rows = (await session.exec(select(AuditEntry.action).where(AuditEntry.object == made["id"]).order_by(AuditEntry.seq))).all()
        assert rows == ["key.create", "key.rotate", "key.rotate"]


async def test_without_grace_the_old_secret_ends_at_once_with_what_runs_on_it(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world)
        made = await place.new_key("bot")
        running = asked(place, made["key"])
        await place.until(lambda: box.requests)
        fresh = await good(place, "POST", f"/keys/{made['id']}/rotate", json={"grace_seconds": 0})
        ended = await place.settled(running)
        assert (ended.status_code, ended.json()["error"]["code"]) == (401, "revoked_api_key")
        await place.until(lambda: box.cancelled)
        box.close("cancelled")
        assert [await code(place, box, key) for key in (made["key"], fresh["key"])] == ["invalid_api_key", 200]


async def test_with_grace_what_runs_goes_on(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world)
        made = await place.new_key("bot")
        running = asked(place, made["key"])
        await place.until(lambda: box.requests)
        await good(place, "POST", f"/keys/{made['id']}/rotate", json={})
        await good(place, "PATCH", f"/keys/{made['id']}", json={"rpm": 5})
        box.head(200, JSON, ANSWER)
        box.close()
        assert (await place.settled(running)).status_code == 200


# -- policy ------------------------------------------------------------------------------------------------------------

POLICY = "keys:\n  max_age: 10d\n  rotate_every: 5d\n  unused: 2d\n"


async def aged(place, key_id, **columns):
    async with place.database.write() as session:
        row = await session.get(Key, key_id)
        for name, days in columns.items():
            setattr(row, name, clock.utcnow() - timedelta(days=days))
    place.pipeline.forget_key(key_id)


async def test_a_policy_bounds_how_long_keys_are_good(tmp_path):
    async with site(tmp_path / "data", POLICY) as place:
        made = await place.new_key("bot")
        left = datetime.fromisoformat(made["expires_at"]) - clock.utcnow()
        assert timedelta(days=9, hours=23) < left <= timedelta(days=10)
        far = (clock.utcnow() + timedelta(days=11)).isoformat()
        assert "10 days" in (await refused(place, 400, "POST", "/keys", json={"name": "x", "expires_at": far}))["message"]
        assert "10 days" in (await refused(place, 400, "PATCH", f"/keys/{made['id']}", json={"expires_at": far}))["message"]
        near = (clock.utcnow() + timedelta(days=1)).isoformat()
        assert (await good(place, "PATCH", f"/keys/{made['id']}", json={"expires_at": near}))["ends_at"] is not None


async def test_a_key_is_refused_until_it_is_rotated_when_policy_says_so(tmp_path):
    async with site(tmp_path / "data", POLICY) as place:
        box = Box(place.world)
        made = await place.new_key("bot")
        for columns in ({"created_at": 6, "last_used_at": 0}, {"created_at": 3, "last_used_at": 3}):
            await aged(place, made["id"], **columns)
            key = made["key"]
            assert await code(place, box, key) == "expired_api_key", columns
            assert (await good(place, "GET", f"/keys/{made['id']}"))["state"] == "expired"
            made = await good(place, "POST", f"/keys/{made['id']}/rotate", json={})
            assert await code(place, box, made["key"]) == 200, columns
            await aged(place, made["id"], rotated_at=4)
        await aged(place, made["id"], created_at=11, last_used_at=0, rotated_at=0)
        assert await code(place, box, made["key"]) == "expired_api_key", "no rotation helps a key that is too old"


# -- rates -------------------------------------------------------------------------------------------------------------


async def test_a_rate_is_set_obeyed_at_once_and_cleared(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world)
        one, other = [(await place.new_key(name, team="nlp"))["key"] for name in ("a", "b")]
        done = await good(place, "PUT", "/rates", json={"scope": "team:nlp", "rpm": 2, "tpm": 1000})
        assert (done["scope"], done["name"], done["rpm"], done["tpm"], done["concurrency"]) == ("team:nlp", "nlp", 2, 1000, None)
        found = await answer(place, box, one)
        assert found.headers["x-ratelimit-limit-requests"] == "2"
        assert found.headers["x-ratelimit-remaining-requests"] == "1"
        assert found.headers["x-ratelimit-limit-tokens"] == "1000"
        assert [await code(place, box, key) for key in (other, one)] == [200, "rate_limit_exceeded"]
        again = await good(place, "PUT", "/rates", json={"scope": "team:nlp", "rpm": None, "concurrency": 4})
        assert (again["rpm"], again["tpm"], again["concurrency"], again["version"]) == (None, 1000, 4, 2)
        assert await code(place, box, one) == 200
        listed = await good(place, "GET", "/rates")
        assert listed["items"] == [again] == (await good(place, "GET", "/rates", params={"scope": "team:nlp"}))["items"]
        assert await good(place, "DELETE", "/rates", params={"scope": "team:nlp"}) == again
        assert (await good(place, "GET", "/rates"))["items"] == []
        assert "x-ratelimit-limit-tokens" not in (await answer(place, box, one)).headers


async def test_a_rate_that_makes_no_sense_is_named(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot", team="nlp")
        for body, status in (
            ({"scope": "team:nlp"}, 400), ({"scope": f"key:{made['id']}", "rpm": 1}, 400), ({"scope": "model:m", "rpm": 1}, 400),
            ({"scope": "nlp", "rpm": 1}, 400), ({"scope": "team:none", "rpm": 1}, 404), ({"scope": "team:nlp", "rpm": 0}, 400),
            ({"scope": "team:nlp", "rpm": 1, "burst": 5}, 400),
        ):  # fmt: skip
            await refused(place, status, "PUT", "/rates", json=body)
        await refused(place, 404, "DELETE", "/rates", params={"scope": "team:nlp"})
        await refused(place, 412, "PUT", "/rates", json={"scope": "team:nlp", "rpm": 1}, headers={"if-match": "1"})
        await good(place, "PUT", "/rates", json={"scope": "team:nlp", "rpm": 1})
        await refused(place, 412, "PUT", "/rates", json={"scope": "team:nlp", "rpm": 2}, headers={"if-match": "7"})
        await refused(place, 412, "DELETE", "/rates", params={"scope": "team:nlp"}, headers={"if-match": "7"})
        assert [rate["rpm"] for rate in (await good(place, "GET", "/rates"))["items"]] == [1]
