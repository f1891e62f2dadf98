"""People over the management API of the real server: invited, signed in, shut out."""

import asyncio

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlmodel import select

from mindgw import clock
from mindgw.control import me
from mindgw.gateway import signals
from mindgw.store.tables import AccessRule, AuditEntry, Org, Role, RoleBinding, Session, Team, User
from mindgw_agent.tokens import make_invitation, make_session, parse_invitation, parse_session
from tests.gateway.world import JSON, Box, Client, engine
from tests.server.site import site

ANA = "ana@example.com"


@pytest.fixture
async def house(tmp_path):
    """A server at work. It begins and ends in one task, which a fixture alone would not see to."""
    ready, over = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def live():
        async with site(tmp_path / "data") as made:
            ready.set_result(made)
            await over.wait()

    living = asyncio.create_task(live())
    await asyncio.wait((living, ready), return_when=asyncio.FIRST_COMPLETED)
    yield living.result() if living.done() else ready.result()
    over.set()
    await living


class Person:
    """Somebody with a credential of their own."""

    def __init__(self, house, credential: str) -> None:
        self._house = house
        self.credential = credential

    async def call(self, method, path, **more):
        headers = {"authorization": f"Bearer {self.credential}", **more.pop("headers", {})}
        return await self._house.http.request(method, f"/api/v1{path}", headers=headers, **more)

    async def code(self, method="GET", path="/me", **more):
        """Status, and the code of the error if it is one."""
        answer = await self.call(method, path, **more)
        return (answer.status_code, answer.json().get("error", {}).get("code", ""))


async def invite(house, email=ANA, **facts):
    made = await house.call("POST", "/users", json={"email": email, **facts})
    assert made.status_code == 201, made.text
    return made.json()


async def accept(house, invitation):
    return await httpx.AsyncClient.request(
        house.http, "POST", "/api/v1/invitations/accept", json={"invitation": invitation}, headers={"authorization": ""}
    )


async def enter(house, email=ANA, **facts) -> Person:
    """Somebody who was invited and has signed in."""
    answer = await accept(house, (await invite(house, email, **facts))["invitation"])
    assert answer.status_code == 201, answer.text
    return Person(house, answer.json()["session"])


async def rows(house, table):
    async with house.database.read() as session:
        return (await session.exec(select(table))).all()


# -- coming in


async def test_an_invitation_lets_one_in_once(house):
    made = await invite(house, "Ana@Example.com", role="viewer", name="Ana")
    assert (made["email"], made["role"], made["name"], made["state"]) == (ANA, "viewer", "Ana", "invited")
    assert parse_invitation(made["invitation"])[0] == made["id"]
    entered = await accept(house, f" {made['invitation']}\n")
    assert entered.status_code == 201
    assert (entered.json()["user"], entered.json()["role"]) == (ANA, "viewer")
    assert parse_session(entered.json()["session"])
    again = await accept(house, made["invitation"])
    assert (again.status_code, again.json()["error"]["code"]) == (401, "invalid_invitation")
    shown = (await house.call("GET", f"/users/{ANA}")).json()
    assert (shown["state"], shown["invite_expires_at"]) == ("active", None)
    assert shown["last_seen_at"] is not None
    secrets = [made["invitation"], entered.json()["session"]]
    kept = [str(row.model_dump()) for table in (User, Session, AuditEntry) for row in await rows(house, table)]
    assert not [text for text in kept for secret in secrets if secret[-38:-6] in text]


async def test_many_who_show_one_invitation_at_once_are_one(house):
    made = await invite(house)
    answers = await asyncio.gather(*[accept(house, made["invitation"]) for _ in range(20)])
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 19
    assert len(await rows(house, Session)) == 1


async def test_an_invitation_that_is_none_costs_no_statement(house):
    seen: list[str] = []
    event.listen(Engine, "before_cursor_execute", note := lambda _c, _u, statement, *_: seen.append(statement))
    try:
        for text in ("", "x", "mgwi_", "mgwi_" + "0" * 26 + "_" + "0" * 38, "' OR 1=1--", make_session().text, "é" * 71):
            answer = await accept(house, text)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_invitation")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert [statement for statement in seen if "users" in statement] == []
    assert (await accept(house, "x" * 201)).status_code == 400


async def test_unknown_wrong_and_old_invitations_are_refused(house):
    made = await invite(house)
    _, stranger = make_invitation("0" * 26)
    _, wrong = make_invitation(made["id"])
    for text in (stranger, wrong):
        assert (await accept(house, text)).json()["error"]["code"] == "invalid_invitation"
    newer = await invite(house)
    assert (await accept(house, made["invitation"])).json()["error"]["code"] == "invalid_invitation"
    async with house.database.write() as session:
        (await session.get(User, made["id"])).invite_expires_at = clock.utcnow()
    assert (await accept(house, newer["invitation"])).json()["error"]["code"] == "expired_invitation"


@pytest.mark.parametrize("state", ["disabled", "removed"])
async def test_nobody_comes_in_who_was_shut_out_meanwhile(house, state):
    made = await invite(house)
    if state == "disabled":
        await house.call("POST", f"/users/{ANA}/disable")
    else:
        await house.call("DELETE", f"/users/{ANA}")
    assert (await accept(house, made["invitation"])).status_code == 401
    assert await rows(house, Session) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400), ({"email": "ana"}, 400), ({"email": "a@b@c"}, 400), ({"email": "a b@c"}, 400), ({"email": "x@" + "y" * 300}, 400),
        ({"email": ANA, "role": "nobody"}, 400), ({"email": ANA, "role": None}, 201), ({"email": ANA, "rank": 1}, 400),
        ({"email": ANA, "org_id": "x"}, 400), ({"email": ANA, "is_admin": True}, 400), ({"email": ANA, "ttl_seconds": 1}, 400),
        ({"email": ANA, "ttl_seconds": 10**9}, 400), ({"email": "bot@service"}, 400), ({"email": ANA, "name": "a\nb"}, 400),
    ],
)  # fmt: skip
async def test_what_an_invitation_may_say(house, body, status):
    answer = await house.call("POST", "/users", json=body)
    assert answer.status_code == status, answer.text
    assert len(await rows(house, User)) == (2 if status == 201 else 1)


# -- being in


async def test_a_session_is_somebody(house):
    ana = await enter(house, role="operator")
    me = (await ana.call("GET", "/me")).json()
    assert (me["kind"], me["user"], me["roles"], me["key"]) == ("session", ANA, ["operator"], None)
    assert me["session"]["id"] == parse_session(ana.credential)[0]
    assert "read:keys" in me["permissions"]
    assert "create:users" not in me["permissions"]
    assert (await ana.call("GET", "/keys")).status_code == 200
    assert await ana.code("POST", "/users", json={"email": "b@c"}) == (403, "forbidden")
    made = await ana.call("POST", "/keys", json={"name": "anas"})
    assert made.status_code == 201
    assert [entry.actor for entry in await rows(house, AuditEntry) if entry.action == "key.create"][-1] == me["session"]["id"]


async def test_a_pass_is_its_session_for_a_while(house):
    ana = await enter(house)
    made = (await ana.call("POST", "/me/token")).json()
    held = Person(house, made["token"])
    assert (await held.call("GET", "/me")).json()["session"]["id"] == parse_session(ana.credential)[0]
    assert (await held.call("DELETE", "/me/sessions/current")).json() == {"ended": 1}
    assert await held.code() == (401, "revoked_session")
    assert await ana.code() == (401, "revoked_session")
    root = Person(house, house.key)
    assert await root.code("POST", "/me/token") == (403, "session_required")


async def test_sessions_are_for_the_management_api_alone(house):
    ana = await enter(house)
    for credential in (ana.credential, (await ana.call("POST", "/me/token")).json()["token"]):
        answer = await house.http.get("/v1/models", headers={"authorization": f"Bearer {credential}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert credential[-30:] not in answer.text


@pytest.mark.parametrize("carrier", ["authorization", "x-api-key", "api-key"])
async def test_it_does_not_matter_which_header_it_comes_in(house, carrier):
    ana = await enter(house, role="user")
    value = f"Bearer {ana.credential}" if carrier == "authorization" else ana.credential
    headers = {"authorization": "", carrier: value} if carrier == "authorization" else {carrier: value}
    async with httpx.AsyncClient(transport=house.http._transport, base_url="http://gw") as bare:
        assert (await bare.get("/api/v1/me", headers=headers)).status_code == 200
        assert (await bare.get("/api/v1/keys", headers=headers)).status_code == 403
        both = await bare.get("/api/v1/me", headers={"authorization": f"Bearer {house.key}", "x-api-key": ana.credential})
        assert (both.status_code, both.json()["error"]["code"]) == (400, "ambiguous_credentials")


async def test_what_is_no_session_costs_no_statement(house):
    seen: list[str] = []
    good = make_session().text
    mistyped = good[:-1] + ("0" if good[-1] != "0" else "1")
    hostile = ["mgws_", "mgws_' OR 1=1--", good[:-1], good + "0", mistyped, "eyJ..", "eyJhbGciOiJub25lIn0.e30.", "mgws_" + "x" * 8000]
    event.listen(Engine, "before_cursor_execute", note := lambda _c, _u, statement, *_: seen.append(statement))
    try:
        for text in hostile:
            assert (await Person(house, text).code())[0] == 401
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert [statement for statement in seen if "sessions" in statement or "FROM keys" in statement] == []
    assert await Person(house, good).code() == (401, "invalid_session")


async def test_own_sessions_are_seen_and_ended(house):
    first = await enter(house)
    second = Person(house, (await accept(house, (await invite(house))["invitation"])).json()["session"])
    listed = (await first.call("GET", "/me/sessions")).json()["items"]
    assert [(each["id"] == parse_session(first.credential)[0], each["current"]) for each in listed] == [(False, False), (True, True)]
    bob = await enter(house, "bob@example.com")
    for other in (parse_session(bob.credential)[0], "0" * 10, "' OR 1=1--"):
        assert await first.code("DELETE", f"/me/sessions/{other}") == (404, "not_found")
    ended = await first.call("DELETE", f"/me/sessions/{parse_session(second.credential)[0]}")
    assert ended.json() == {"ended": 1}
    assert await second.code() == (401, "revoked_session")
    assert await first.code() == (200, "")
    assert await bob.code() == (200, "")
    assert (await house.call("DELETE", f"/users/{ANA}/sessions")).json() == {"ended": 1}
    assert await first.code() == (401, "revoked_session")


# -- one's own


async def test_people_make_and_revoke_their_own_keys_within_what_they_may(house):
    ana = await enter(house)
    made = await ana.call("POST", "/me/keys", json={"name": "laptop", "models": ["llama*"], "rpm": 10})
    assert made.status_code == 201, made.text
    key = made.json()
    assert (key["user"], key["role"], key["models"], key["rpm"]) == (ANA, None, ["llama*"], 10)
    assert (await house.http.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})).status_code == 200
    for facts, code in (
        ({"role": "admin"}, (403, "not_your_role")),
        ({"role": "viewer"}, (403, "not_your_role")),
        ({"role": "nobody"}, (400, "invalid_request")),
        ({"priority": "high"}, (400, "invalid_request")),
        ({"team": "other"}, (403, "not_your_team")),
        ({"user": "bob@example.com"}, (400, "invalid_request")),
        ({"trusted_proxy": True}, (400, "invalid_request")),
    ):
        assert await ana.code("POST", "/me/keys", json={"name": "k", **facts}) == code, facts
    others = (await house.new_key("others"))["id"]
    for reference in (others, "others", "nothing"):
        assert await ana.code("DELETE", f"/me/keys/{reference}") == (404, "not_found")
    assert [each["id"] for each in (await ana.call("GET", "/me/keys")).json()["items"]] == [key["id"]]
    assert await ana.code("DELETE", "/me/keys/laptop", headers={"if-match": "7"}) == (412, "version_mismatch")
    assert (await ana.call("DELETE", "/me/keys/laptop", headers={"if-match": "1"})).json()["state"] == "revoked"
    assert (await house.http.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})).status_code == 401


async def test_what_is_said_of_a_team_is_not_got_round_by_ones_own_keys(house):
    ana = await enter(house)
    given = await house.new_key("given", user=ANA, team="students")
    assert (await ana.call("POST", "/me/keys", json={"name": "own"})).json()["team"] == "students"
    assert await ana.code("POST", "/me/keys", json={"name": "k", "team": "default"}) == (403, "not_your_team")
    assert (await house.call("DELETE", f"/keys/{given['id']}")).status_code == 200
    assert (await ana.call("POST", "/me/keys", json={"name": "later"})).json()["team"] == "students"
    await house.new_key("more", user=ANA, team="nlp")
    assert await ana.code("POST", "/me/keys", json={"name": "k"}) == (400, "invalid_request")
    assert (await ana.call("POST", "/me/keys", json={"name": "k", "team": "nlp"})).json()["team"] == "nlp"


async def test_nobody_has_more_keys_than_they_may_however_fast_they_are(house, monkeypatch):
    ana = await enter(house)
    monkeypatch.setattr(me, "MOST_KEYS", 5)
    made = await asyncio.gather(*(ana.call("POST", "/me/keys", json={"name": f"k{number}"}) for number in range(12)))
    assert sorted(each.status_code for each in made) == [201] * 5 + [409] * 7


async def test_a_key_makes_no_keys_but_may_end_itself(house):
    ana = await enter(house)
    key = (await ana.call("POST", "/me/keys", json={"name": "ci"})).json()
    await ana.call("POST", "/me/keys", json={"name": "other"})
    ci = Person(house, key["key"])
    me = (await ci.call("GET", "/me")).json()
    assert (me["kind"], me["user"], me["key"]["name"], me["session"]) == ("key", ANA, "ci", None)
    assert [each["name"] for each in (await ci.call("GET", "/me/keys")).json()["items"]] == ["ci"]
    assert await ci.code("POST", "/me/keys", json={"name": "more"}) == (403, "session_required")
    assert await ci.code("GET", "/me/sessions") == (403, "session_required")
    assert await ci.code("DELETE", "/me/sessions/current") == (403, "session_required")
    assert await ci.code("DELETE", "/me/keys/other") == (404, "not_found")
    assert (await ci.call("DELETE", "/me/keys/ci")).status_code == 200
    assert await ci.code() == (401, "revoked_api_key")


async def test_a_viewer_makes_no_keys(house):
    assert await (await enter(house, role="viewer")).code("POST", "/me/keys", json={"name": "k"}) == (403, "forbidden")


async def test_limits_and_usage_are_ones_own(house):
    ana, bob = await enter(house), await enter(house, "bob@example.com")
    key = (await ana.call("POST", "/me/keys", json={"name": "k", "rpm": 5})).json()
    for scope in (f"user:{ANA}", "user:bob@example.com", f"key:{key['id']}"):
        put = await house.call("PUT", "/quotas", json={"scope": scope, "tokens": ["1M/month"]})
        assert put.status_code == 200, put.text
    assert [view["scope"] for view in (await ana.call("GET", "/me/limits")).json()["quotas"]] == [f"user:{ANA}"]
    mine = (await Person(house, key["key"]).call("GET", "/me/limits")).json()
    assert {view["scope"] for view in mine["quotas"]} == {f"user:{ANA}", f"key:{key['id']}"}
    assert mine["rates"][0] == {"scope": "key", "rpm": 5, "tpm": None, "concurrency": None}
    whole = {"scope": "org:default", "tokens": ["2M/month"]}
    for path, body in (("/quotas", whole), ("/rates", {"scope": "org:default", "rpm": 500})):
        assert (await house.call("PUT", path, json=body)).status_code == 200
    for person in (ana, bob, Person(house, key["key"])):
        seen = (await person.call("GET", "/me/limits")).json()
        (shared,) = [view for view in seen["quotas"] if view["scope"] == "org:default"]
        assert (shared["limit"], shared["used"], shared["left"]) == (2_000_000, 0, 2_000_000)
        assert {"scope": "org", "rpm": 500, "tpm": None, "concurrency": None} in seen["rates"]
    for person in (ana, bob, Person(house, key["key"])):
        used = (await person.call("GET", "/me/usage", params={"by": "key"})).json()
        assert (used["by"], used["items"], used["total"]["requests"]) == ("key", [], 0)
    assert await ana.code("GET", "/me/usage?by=nonsense") == (400, "invalid_request")


async def test_models_and_the_queue_are_what_one_may_see_of_them(house, monkeypatch):
    ana, bob = await enter(house), await enter(house, "bob@example.com")
    bound = (await ana.call("POST", "/me/keys", json={"name": "bound", "models": ["llama*"]})).json()
    free = (await ana.call("POST", "/me/keys", json={"name": "free"})).json()
    box = Box(house.world, "box", engine("llama3", slots=1), engine("secret", id="e2"))
    async with house.database.write() as session:
        org = (await session.exec(select(Org.id))).one()
        session.add(AccessRule(org_id=org, subject="role:user", effect="deny", pattern="secret"))
    house.server.app.state.access_changed()

    async def seen(person):
        return [model["id"] for model in (await person.call("GET", "/me/models")).json()["items"]]

    async with asyncio.timeout(20):
        while await seen(Person(house, house.key)) != ["llama3", "secret"]:
            house.world.pump()
            await asyncio.sleep(0.01)
    assert await seen(ana) == ["llama3"]
    assert await seen(Person(house, bound["key"])) == ["llama3"]
    assert (await house.call("PATCH", f"/keys/{bound['id']}", json={"models": ["qwen*"]})).status_code == 200
    assert await seen(Person(house, bound["key"])) == []

    running, waiting = Client(house.world, free["key"]), Client(house.world, free["key"])
    for client in (running, waiting):
        client.post(signals.Received(b'{"model":"llama3","messages":[{"role":"user","content":"x"}]}'))
        await house.until(lambda: box.requests)
    await house.until(lambda: len(house.pipeline.lineup()) == 2)
    for person in (ana, Person(house, free["key"])):
        entries = (await person.call("GET", "/me/queue")).json()["items"]
        assert [(entry["state"], entry["key"]) for entry in entries] == [("waiting", "free"), ("running", "free")]
    # who says that they ask for somebody takes no place of theirs
    proxy = await house.new_key("proxy", trusted_proxy=True)
    front = Client(house.world, proxy["key"])
    front.post(signals.Received(b'{"model":"llama3","user":"%s","messages":[{"role":"user","content":"x"}]}' % ANA.encode()))
    await house.until(lambda: [entry for entry in house.pipeline.lineup() if entry.key_id == proxy["id"]])
    assert (await house.call("POST", f"/queue/{front.request_id}/bump")).status_code == 200
    monkeypatch.setattr(me, "MOST", 1)
    entries = (await ana.call("GET", "/me/queue")).json()["items"]
    assert [(entry["state"], entry["key"]) for entry in entries] == [("waiting", "free")]
    for person in (bob, Person(house, bound["key"]), Person(house, house.key)):
        assert (await person.call("GET", "/me/queue")).json()["items"] == []


async def test_a_person_with_a_role_in_a_team_makes_keys_of_that_team(house):
    ana = await enter(house)
    await house.new_key("first", team="nlp")
    async with house.database.write() as session:
        team = (await session.exec(select(Team.id).where(Team.name == "nlp"))).one()
        session.add(RoleBinding(user_id=(await session.exec(select(User.id).where(User.email == ANA))).one(), role="user", team_id=team))
    assert (await ana.call("POST", "/me/keys", json={"name": "k", "team": "nlp"})).json()["team"] == "nlp"
    assert await ana.code("POST", "/me/keys", json={"name": "k", "team": "other"}) == (403, "not_your_team")


async def test_there_is_an_end_to_ones_own_keys(house, monkeypatch):
    monkeypatch.setattr("mindgw.control.me.MOST_KEYS", 1)
    ana = await enter(house)
    assert await ana.code("POST", "/me/keys", json={"name": "one"}) == (201, "")
    assert await ana.code("POST", "/me/keys", json={"name": "two"}) == (409, "too_many_keys")
    await ana.call("DELETE", "/me/keys/one")
    for name in ("three", "three"):
        monkeypatch.setattr("mindgw.control.me.MOST_KEYS", 9)
        assert await ana.code("POST", "/me/keys", json={"name": name}) == (201, "")
    assert await ana.code("DELETE", "/me/keys/three") == (409, "conflict")


async def test_a_key_asks_what_it_has_used_where_it_asks_everything_else(house):
    one, two = await house.new_key("one"), await house.new_key("two")
    box = Box(house.world, "box", engine("m"))
    client = Client(house.world, one["key"])
    client.post(signals.Received(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'))
    await house.until(lambda: box.requests)
    box.head(200, JSON, b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}')
    box.close()
    await house.until(lambda: client.end is not None)

    async def asked(key, query="", method="GET"):
        return await house.http.request(method, f"/v1/me/usage{query}", headers={"authorization": f"Bearer {key}"})

    async with asyncio.timeout(20):
        while not (used := (await asked(one["key"])).json())["items"]:
            await asyncio.sleep(0.05)  # until it is written
    assert (used["by"], used["total"]["requests"], used["total"]["tokens_in"], used["total"]["tokens_out"]) == ("day", 1, 3, 4)
    assert (await asked(one["key"], "?by=model&since=1d")).json()["items"][0]["name"] == "m"
    assert (await asked(two["key"])).json()["items"] == []
    for query in ("?by=nonsense", "?since=x", "?since=2026-02-30", "?" + "&".join(f"a{n}=1" for n in range(99)), "?by=%ff"):
        assert (await asked(one["key"], query)).status_code == 400
    assert (await asked(one["key"], method="POST")).status_code == 405
    assert (await asked("mgw_nonsense")).status_code == 401
    ana = await enter(house)
    assert (await asked(ana.credential)).status_code == 401


# -- being shut out


async def test_who_is_disabled_is_out_at_once_and_comes_back_with_the_same_keys(house):
    ana, bob = await enter(house), await enter(house, "bob@example.com")
    key = (await ana.call("POST", "/me/keys", json={"name": "k"})).json()["key"]
    box = Box(house.world, "box", engine("m"))
    client = Client(house.world, key)
    stream = Client(house.world, key)
    stream.post(signals.Received(b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'))
    await house.until(lambda: box.requests)
    held = Person(house, (await ana.call("POST", "/me/token")).json()["token"])
    assert (await house.call("POST", f"/users/{ANA}/disable")).json()["state"] == "disabled"
    assert stream.code == "user_disabled"
    assert client.code == "user_disabled"
    await house.until(lambda: box.cancelled)
    for out in (ana, held):
        assert (await out.code())[0] == 401
    answer = await house.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "user_disabled")
    assert await bob.code() == (200, "")
    assert (await house.call("POST", "/users", json={"email": ANA})).json()["error"]["code"] == "user_disabled"
    assert (await house.call("POST", "/keys", json={"name": "x", "user": ANA})).status_code == 409
    assert (await house.call("POST", f"/users/{ANA}/enable")).json()["state"] == "active"
    assert (await house.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
    assert (await ana.code())[0] == 401  # sessions that were ended stay so
    assert [e.action for e in await rows(house, AuditEntry) if e.action.startswith("user.")][-2:] == ["user.disable", "user.enable"]


async def test_who_is_removed_is_gone_and_may_be_invited_as_somebody_new(house):
    ana = await enter(house, role="operator")
    key = (await ana.call("POST", "/me/keys", json={"name": "k"})).json()
    assert (await house.call("DELETE", f"/users/{ANA}")).status_code == 200
    assert (await ana.code())[0] == 401
    assert (await house.http.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})).status_code == 401
    assert (await house.call("GET", f"/users/{ANA}")).status_code == 404
    assert [user["email"] for user in (await house.call("GET", "/users")).json()["items"]] == ["admin@localhost"]
    assert (await house.call("GET", f"/keys/{key['id']}")).json()["state"] == "revoked"
    again = await enter(house)
    assert (await again.call("GET", "/me")).json()["roles"] == ["user"]
    assert (await house.http.get("/v1/models", headers={"authorization": f"Bearer {key['key']}"})).status_code == 401


async def test_a_service_account_has_keys_and_never_signs_in(house):
    made = await house.call("POST", "/service-accounts", json={"name": "ci-bot", "role": "viewer"})
    assert made.status_code == 201, made.text
    assert (made.json()["email"], made.json()["service"], made.json()["state"]) == ("ci-bot@service", True, "active")
    assert (await house.call("POST", "/service-accounts", json={"name": "ci-bot"})).status_code == 409
    for name in ("", "CI", "a b", "-x", "x" * 64, "a\n"):
        assert (await house.call("POST", "/service-accounts", json={"name": name})).status_code == 400
    assert (await house.call("POST", "/users", json={"email": "ci-bot@service"})).status_code == 400
    key = await house.new_key("k", user="ci-bot@service")
    me = (await Person(house, key["key"]).call("GET", "/me")).json()
    assert (me["user"], me["roles"]) == ("ci-bot@service", ["viewer"])
    await house.call("POST", "/users/ci-bot@service/disable")
    assert (await Person(house, key["key"]).code())[0] == 401


# -- who may do it to whom


async def test_nobody_rises_or_touches_those_above(house):
    operator = await enter(house, role="operator")
    async with house.database.write() as session:
        org = (await session.exec(select(Org.id))).one()
        session.add(Role(org_id=org, name="people", permissions=["*:users", "*:sessions", "*:me", "use:models"], rank=60))
    clerk = await enter(house, "clerk@example.com", role="people")
    await enter(house, "user@example.com")
    assert (await clerk.call("POST", "/users", json={"email": "new@example.com", "role": "user"})).status_code == 201
    for role in ("admin", "operator", "people"):
        assert await clerk.code("POST", "/users", json={"email": "x@example.com", "role": role}) == (403, "role_too_high")
        assert await clerk.code("PATCH", "/users/user@example.com", json={"role": role}) == (403, "role_too_high")
    for path in (f"/users/{ANA}", "/users/admin@localhost"):
        assert await clerk.code("PATCH", path, json={"name": "x"}) == (403, "role_too_high")
        assert await clerk.code("POST", f"{path}/disable") == (403, "role_too_high")
        assert await clerk.code("DELETE", path) == (403, "role_too_high")
        assert await clerk.code("DELETE", f"{path}/sessions") == (403, "role_too_high")
        # an invitation is a way to sign in as them
        assert await clerk.code("POST", "/users", json={"email": path.removeprefix("/users/")}) == (403, "role_too_high")
    assert await clerk.code("PATCH", "/users/clerk@example.com", json={"role": "user"}) == (409, "oneself")
    assert await clerk.code("POST", "/users/clerk@example.com/disable") == (409, "oneself")
    assert await clerk.code("DELETE", "/users/clerk@example.com") == (409, "oneself")
    assert (await clerk.call("PATCH", "/users/clerk@example.com", json={"name": "Clerk"})).json()["name"] == "Clerk"
    assert await operator.code("PATCH", "/users/user@example.com", json={"role": "user"}) == (403, "forbidden")
    assert not [user.email for user in await rows(house, User) if user.email == "x@example.com"]


async def test_a_role_that_is_changed_holds_at_once(house):
    ana = await enter(house, role="operator")
    key = (await ana.call("POST", "/me/keys", json={"name": "k"})).json()["key"]
    assert await Person(house, key).code("GET", "/keys") == (200, "")
    changed = await house.call("PATCH", f"/users/{ANA}", json={"role": "user"})
    assert (changed.json()["role"], changed.json()["version"]) == ("user", 4)
    for held in (ana.credential, key):
        assert await Person(house, held).code("GET", "/keys") == (403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", f"/users/{ANA}", {"name": "x"}), ("POST", f"/users/{ANA}/disable", None), ("DELETE", f"/users/{ANA}", None),
    ],
)  # fmt: skip
async def test_a_change_of_what_was_changed_meanwhile_is_refused(house, method, path, body):
    made = await invite(house)
    before = [row.model_dump() for row in await rows(house, User)]
    for seen, status in ((str(made["version"] - 1), 412), ("x", 400)):
        assert (await house.call(method, path, json=body, headers={"if-match": seen})).status_code == status
    assert [row.model_dump() for row in await rows(house, User)] == before
    assert (await house.call(method, path, json=body, headers={"if-match": str(made["version"])})).status_code == 200


async def test_enabling_is_held_to_the_version_too(house):
    await invite(house)
    off = (await house.call("POST", f"/users/{ANA}/disable")).json()
    assert (await house.call("POST", f"/users/{ANA}/enable", headers={"if-match": "1"})).status_code == 412
    assert (await house.call("POST", f"/users/{ANA}/enable", headers={"if-match": str(off["version"])})).status_code == 200
