"""Who did what through the management API, what was refused, and whether the record of it is right, over HTTP."""

import json
from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import text

from mindgw import clock
from mindgw.control import witness
from mindgw.store import sessions
from mindgw_agent import enrolment
from tests.server.site import site
from tests.server.test_access import invite
from tests.server.test_orgs import enter, org


async def entries(place, **asked):
    answer = await place.call("GET", "/audit", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def words(place, path):
    answer = await place.call("GET", path)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_change_is_there_with_who_and_from_where(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot")
        await place.call("DELETE", f"/keys/{made['id']}")
        revoked, created = await entries(place, object=made["id"])
        assert (revoked["action"], created["action"]) == ("key.revoke", "key.create")
        assert (created["name"], created["address"], created["outcome"]) == ("admin", "127.0.0.1", "ok")
        assert created["actor"] and created["org_id"] and len(created["hash"]) == 64
        assert created["detail"]["name"] == "bot"
        assert [one["seq"] for one in await entries(place, action="key.*", limit=1)] == [revoked["seq"]]


async def test_what_a_key_was_and_is_is_there_and_whose(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot", user="bob@x.org", rpm=5)
        (created,) = await entries(place, object=made["id"])
        bob = (await place.call("GET", "/users/bob@x.org")).json()["id"]
        assert (created["detail"]["user"], created["detail"]["email"]) == (bob, "bob@x.org")
        said = {"rpm": 7, "addresses": ["10.0.0.0/8"], "user": None, "expires_at": "2999-01-01T00:00:00Z", "name": "bot"}
        assert (await place.call("PATCH", f"/keys/{made['id']}", json=said)).status_code == 200
        told = (await entries(place, object=made["id"]))[0]["detail"]
        assert told["changed"] == ["expires_at", "rpm", "scopes", "user_id"]
        assert told["before"] == {"rpm": 5, "scopes": {}, "user_id": bob, "expires_at": None}
        scopes, moment = {"addresses": ["10.0.0.0/8"]}, "2999-01-01T00:00:00+00:00"
        assert told["after"] == {"rpm": 7, "scopes": scopes, "user_id": None, "expires_at": moment}


async def test_a_stranger_is_there_once_however_often_it_comes(tmp_path):
    async with site(tmp_path / "data") as place:
        for _ in range(20):
            assert (await place.http.get("/v1/models", headers={"authorization": "Bearer nonsense"})).status_code in {401, 429}
        for _ in range(20):
            assert (await place.http.get("/api/v1/keys", headers={"authorization": "Bearer nonsense"})).status_code in {401, 429}
        await place.server.app.state.refusals.flush()
        found = await entries(place, outcome="refused")
        assert [(one["action"], one["actor"], one["address"]) for one in found] == [("request.refuse", "", "127.0.0.1")]
        assert found[0]["detail"] == {"code": "invalid_api_key", "count": 40}


async def test_an_invitation_and_a_join_that_are_refused_are_there(tmp_path):
    async with site(tmp_path / "data") as place:
        refused = await place.http.post("/api/v1/invitations/accept", json={"invitation": "mgwi_x"}, headers={"authorization": ""})
        assert refused.status_code == 401
        asked = enrolment.Application(
            token_id="0" * 16, agent_nonce=bytes(32), server_nonce=bytes(32), public_key=bytes(32), proof=bytes(64), signature=bytes(64)
        )
        joined = await place.http.post(enrolment.JOIN_PATH, content=msgspec.json.encode(asked), headers={"authorization": ""})
        assert joined.status_code == 401
        await place.server.app.state.refusals.flush()
        found = {one["detail"]["code"]: one["address"] for one in await entries(place, outcome="refused")}
        assert found == {refused.json()["error"]["code"]: "127.0.0.1", "join_challenge_expired": "127.0.0.1"}


async def test_somebody_who_may_not_is_there_with_what_was_asked(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot")
        answer = await place.http.post("/api/v1/keys", json={"name": "x"}, headers={"authorization": f"Bearer {made['key']}"})
        assert answer.status_code == 403
        await place.server.app.state.refusals.flush()
        found = await entries(place, outcome="refused")
        assert [(one["name"], one["object"], one["detail"]["code"]) for one in found] == [("bot", "create:keys", "forbidden")]
        assert await entries(place, actor="bot") == found


@pytest.mark.parametrize(
    ("bounds", "path", "told"),
    [
        ({"addresses": ["10.9.9.9"]}, "/api/v1/keys/x", ("/api/v1/keys", "address_not_allowed")),
        ({"routes": ["chat"]}, "/api/v1/keys", ("/api/v1/keys", "route_not_allowed")),
        ({"addresses": ["10.9.9.9"]}, "/v1/models/x", ("/v1/models", "address_not_allowed")),
        ({"routes": ["chat"]}, "/v1/me/usage", ("/v1/me", "route_not_allowed")),
        ({"routes": ["chat"]}, "/metrics", ("/metrics", "route_not_allowed")),
    ],
)
async def test_a_key_where_it_is_not_good_is_there(tmp_path, bounds, path, told):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot", role="admin", **bounds)
        for _ in range(3):
            assert (await place.http.get(path, headers={"authorization": f"Bearer {made['key']}"})).status_code == 403
        await place.server.app.state.refusals.flush()
        (found,) = await entries(place, outcome="refused")
        assert (found["actor"], found["address"], found["object"], found["detail"]["code"]) == (made["id"], "127.0.0.1", *told)
        assert found["detail"]["count"] == 3
        assert found["org_id"]


async def test_whoever_was_signed_in_is_known_when_their_session_is_forgotten(tmp_path):
    async with site(tmp_path / "data") as place:
        ada = await invite(place, "ada@x.org", role="admin")
        await place.http.post("/api/v1/teams", json={"name": "nlp"}, headers=ada)
        assert (await place.http.get("/api/v1/queue/x", headers=ada)).status_code == 404
        async with place.database.write() as session:
            assert await sessions.forget(session, clock.utcnow() + timedelta(days=3650)) == 1
        (found,) = await entries(place, actor="Ada@x.org", action="team.create")
        assert (found["name"], found["detail"]["by"]["email"]) == ("ada@x.org", "ada@x.org")
        assert [one["seq"] for one in await entries(place, actor="ada@x.org", action="session.create")] == [found["seq"] - 1]
        assert found["detail"]["by"]["user"] == (await place.call("GET", "/users/ada@x.org")).json()["id"]


async def test_news_are_read_behind_a_number(tmp_path):
    async with site(tmp_path / "data") as place:
        before = (await entries(place, limit=1))[0]["seq"]
        await place.new_key("bot")
        page = (await place.call("GET", "/audit/news", params={"after": before})).json()
        assert [one["action"] for one in page["items"]] == ["key.create"]
        again = (await place.call("GET", "/audit/news", params={"after": page["next"]})).json()
        assert (again["items"], again["next"]) == ([], page["next"])


async def test_an_export_ends_with_the_end_of_the_chain(tmp_path):
    async with site(tmp_path / "data") as place:
        await place.new_key("bot")
        *lines, last = await words(place, "/audit/export")
        assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
        assert last == {"end": {"seq": lines[-1]["seq"], "hash": lines[-1]["hash"]}}


@pytest.mark.parametrize("path", ["/audit", "/audit/news", "/audit/export", "/audit/export?action=nothing"])
async def test_what_others_do_moves_nothing_that_an_organisation_sees(tmp_path, path):
    """Numbers and links are those of one chain; where it ends is told to whoever runs the server alone."""
    async with site(tmp_path / "data") as place:
        boss = await enter(place, await org(place))
        await place.http.post("/api/v1/keys", json={"name": "k"}, headers=boss)
        mine = (await place.call("GET", "/audit", headers=boss)).json()["items"]
        seen = await place.call("GET", path, headers=boss)
        assert seen.status_code == 200
        other = await enter(place, await org(place, "beta"))
        await place.http.post("/api/v1/keys", json={"name": "b"}, headers=other)
        assert (await place.call("GET", path, headers=boss)).content == seen.content
        if "export" in path:
            end = {"seq": mine[0]["seq"], "hash": mine[0]["hash"]}
            assert json.loads(seen.content.splitlines()[-1]) == {"end": end}
            assert (await words(place, path))[-1]["end"]["seq"] > end["seq"] + 2


async def test_a_record_that_was_changed_is_named(tmp_path):
    async with site(tmp_path / "data") as place:
        await place.new_key("bot")
        *_, done = await words(place, "/audit/verify")
        assert (done["state"], done["ok"], done["first"], done["broken"]) == ("done", True, None, 0)
        assert done["end"]["seq"] == done["checked"]["entries"]
        async with place.database.write() as session:
            await (await session.connection()).execute(text("UPDATE audit SET actor = 'somebody' WHERE seq = 2"))
        found = await words(place, "/audit/verify")
        assert next(word for word in found if word["state"] == "broken")["seq"] == 2
        assert (found[-1]["ok"], found[-1]["first"]) == (False, 2)


@pytest.mark.parametrize(
    ("edits", "first"),
    [
        (["UPDATE audit SET actor = 'innocent', hash = x''", "DELETE FROM audit_heads"], 1),
        (["DELETE FROM audit WHERE seq > 2", "DELETE FROM audit_heads"], 3),
        (["DELETE FROM audit", "DELETE FROM audit_heads"], 1),
    ],
)
async def test_another_history_is_found_out_by_what_the_data_directory_knows(tmp_path, edits, first):
    async with site(tmp_path / "data") as place:
        known = witness.load(tmp_path / "data")
        assert (known.start, known.end.seq) == (1, 4)
        async with place.database.write() as session:
            for edit in edits:
                await (await session.connection()).execute(text(edit))
        found = await words(place, "/audit/verify")
        assert (found[-1]["ok"], found[-1]["first"]) == (False, first)
        for number in range(5):
            await witness.note(place.database, tmp_path / "data")
            await place.new_key(f"bot{number}")
        assert not (await words(place, "/audit/verify"))[-1]["ok"]


async def test_what_the_data_directory_knows_goes_with_the_chain(tmp_path, caplog):
    async with site(tmp_path / "data") as place:
        await place.new_key("bot")
        await witness.note(place.database, tmp_path / "data")
        *_, done = await words(place, "/audit/verify")
        known = witness.load(tmp_path / "data").end
        assert (known.seq, known.hash.hex()) == (done["end"]["seq"], done["end"]["hash"])
        async with place.database.write() as session:
            await (await session.connection()).execute(text("DELETE FROM audit WHERE seq > 3"))
        await witness.note(place.database, tmp_path / "data")
        assert witness.load(tmp_path / "data").end == known
        assert "has lost entry" in caplog.text


async def test_what_the_data_directory_knows_and_cannot_be_read_is_said(tmp_path):
    async with site(tmp_path / "data") as place:
        (tmp_path / "data" / witness.FILE).write_text("{")
        *_, done = await words(place, "/audit/verify")
        assert done["state"] == "failed"


@pytest.mark.parametrize("path", ["/audit", "/audit/news", "/audit/export"])
async def test_what_cannot_be_meant_is_refused_before_anything_is_sent(tmp_path, path):
    async with site(tmp_path / "data") as place:
        answer = await place.call("GET", path, params={"since": "yesterday"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "since")


async def test_secrets_are_not_in_it(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot")
        token = (await place.call("POST", "/join-tokens", json={})).json()["token"]
        text_of_it = json.dumps([*await words(place, "/audit/export"), *await entries(place)])
        assert made["key"] not in text_of_it and token not in text_of_it and made["key"][16:] not in text_of_it
