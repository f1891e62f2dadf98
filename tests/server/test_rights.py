"""Who tries to rise: by keys, invitations, passes and roles that look small, over HTTP, on the real server."""

import pytest
from sqlmodel import select

from mindgw.store import keys
from mindgw.store.tables import AuditEntry, Rate, User
from tests.server.test_access import in_place, invite

OWN = ["*:me", "use:models"]


def bearer(key):
    return {"authorization": f"Bearer {key['key']}"}


async def role(place, name, rank, *permissions):
    made = await place.call("POST", "/roles", json={"name": name, "rank": rank, "permissions": [*OWN, *permissions]})
    assert made.status_code == 201, made.text
    return name


async def bind(place, name, email, team=None):
    made = await place.call("POST", f"/roles/{name}/bindings", json={"user": email, "team": team})
    assert made.status_code == 201, made.text


async def code(place, headers, method, path, body=None):
    """Status, and the code of the error if it is one."""
    answer = await place.call(method, path, headers=headers, **({} if body is None else {"json": body}))
    return answer.status_code, answer.json().get("error", {}).get("code", "")


async def models_of(place, key):
    async with place.database.read() as session:
        return (await keys.holder(session, key["id"])).models


async def lead_of(place, team="red", **more):
    """The headers of somebody who may do everything with the keys of one team, and whose session it is."""
    assert (await place.call("POST", "/teams", json={"name": team})).status_code == 201
    await role(place, "lead", 40, "*:keys")
    headers = await invite(place, "lead@x.org", **more)
    await bind(place, "lead", "lead@x.org", team)
    return headers


# -- a key is not its person -------------------------------------------------------------------------------------------


@in_place
async def test_a_weak_key_does_nothing_to_its_own_person(place):
    small = await role(place, "hr", 60, "create:users", "read:users", "update:users", "delete:sessions", "delete:users")
    key = bearer(await place.new_key("hr", user="admin@localhost", role=small))
    for method, path, body, wanted in (
        ("POST", "/users", {"email": "admin@localhost"}, (409, "oneself")),
        ("PATCH", "/users/admin@localhost", {"name": "Mallory"}, (403, "role_too_high")),
        ("DELETE", "/users/admin@localhost/sessions", None, (403, "role_too_high")),
        ("PATCH", "/users/admin@localhost", {"role": "user"}, (409, "oneself")),
        ("DELETE", "/users/admin@localhost", None, (409, "oneself")),
    ):
        assert await code(place, key, method, path, body) == wanted
    assert (await place.call("GET", "/users/admin@localhost")).json()["name"] == "Administrator"


@in_place
async def test_a_key_in_other_hands_does_not_grow_with_its_person(place):
    operator = await invite(place, "op@x.org", "operator")
    bob = await invite(place, "bob@x.org")
    made = [(await place.call("POST", "/keys", headers=operator, json={"name": f"k{n}", "user": "bob@x.org"})).json() for n in range(2)]
    own = (await place.call("POST", "/me/keys", headers=bob, json={"name": "own"})).json()
    assert [key["role"] for key in (*made, own)] == ["user", "user", None]
    taken = (await place.call("POST", f"/keys/{own['id']}/rotate", headers=operator, json={"grace_seconds": 0})).json()
    assert taken["role"] == "user"
    loosened = await place.call("PATCH", f"/keys/{made[1]['id']}", headers=operator, json={"role": None})
    assert loosened.json()["role"] == "user"
    renamed = await place.call("PATCH", f"/keys/{made[1]['id']}", headers=operator, json={"name": "other"})
    assert renamed.json()["role"] == "user"
    assert (await place.call("PATCH", "/users/bob@x.org", json={"role": "admin"})).status_code == 200
    for key in (made[0], made[1], taken):
        assert await code(place, bearer(key), "POST", "/roles/admin/bindings", {"user": "op@x.org"}) == (403, "forbidden")


@in_place
async def test_nobody_invites_themselves(place):
    ada = await invite(place, "ada@x.org", "admin")
    for headers in (ada, None):
        email = "ada@x.org" if headers else "admin@localhost"
        assert await code(place, headers, "POST", "/users", {"email": email}) == (409, "oneself")
    assert await code(place, ada, "PATCH", "/users/ada@x.org", {"name": "Ada"}) == (200, "")
    assert await code(place, ada, "DELETE", "/users/ada@x.org/sessions") == (200, "")


@in_place
async def test_a_key_with_a_role_of_its_own_may_no_more_than_its_person(place):
    bob = await invite(place, "bob@x.org", "admin")
    made = await place.call("POST", "/me/keys", headers=bob, json={"name": "bk", "role": "admin"})
    key = bearer(made.json())
    assert await code(place, key, "GET", "/roles") == (200, "")
    assert (await place.call("PATCH", "/users/bob@x.org", json={"role": "viewer"})).status_code == 200
    assert await code(place, key, "POST", "/roles", {"name": "evil", "rank": 99, "permissions": ["*:*"]}) == (403, "forbidden")
    assert await code(place, key, "PATCH", "/users/bob@x.org", {"role": "admin"}) == (403, "forbidden")
    assert await code(place, key, "GET", "/queue") == (200, "")  # as a viewer
    assert "which admin, held by viewer, does not have" in (await place.call("GET", "/keys", headers=key)).text
    assert (await place.call("GET", "/me", headers=key)).json()["roles"] == ["admin"]


@in_place
async def test_a_role_that_is_taken_away_is_taken_from_such_keys_too(place):
    ada = await invite(place, "ada@x.org")
    await bind(place, "operator", "ada@x.org")
    key = bearer((await place.call("POST", "/me/keys", headers=ada, json={"name": "k", "role": "operator"})).json())
    assert await code(place, key, "GET", "/keys") == (200, "")
    assert (await place.call("DELETE", "/roles/operator/bindings?user=ada@x.org")).status_code == 200
    assert await code(place, key, "GET", "/keys") == (403, "forbidden")


# -- who stands above whom ---------------------------------------------------------------------------------------------


@in_place
async def test_a_higher_rank_alone_is_not_above_who_may_do_more(place):
    desk = await invite(place, "desk@x.org", await role(place, "desk", 80, "*:users", "*:sessions"))
    await invite(place, "op@x.org", "operator")
    await invite(place, "user@x.org")
    for email, wanted in (("op@x.org", (403, "role_too_high")), ("user@x.org", (200, ""))):
        assert await code(place, desk, "PATCH", f"/users/{email}", {"name": "x"}) == wanted
    assert await code(place, desk, "POST", "/users", {"email": "op@x.org"}) == (403, "role_too_high")
    assert await code(place, desk, "POST", "/users/op@x.org/disable") == (403, "role_too_high")
    assert await code(place, desk, "POST", "/users", {"email": "user@x.org"}) == (201, "")


@in_place
async def test_a_role_in_a_team_counts_for_who_stands_above(place):
    await place.call("POST", "/teams", json={"name": "red"})
    boss = await invite(place, "boss@x.org", await role(place, "boss", 60, "*:users", "*:keys"))
    for name, rank in (("low", 55), ("high", 61)):
        await role(place, name, rank, "read:keys")
        await invite(place, f"{name}@x.org")
        await bind(place, name, f"{name}@x.org", "red")
    assert await code(place, boss, "POST", "/users", {"email": "low@x.org"}) == (201, "")
    assert await code(place, boss, "POST", "/users", {"email": "high@x.org"}) == (403, "role_too_high")
    await invite(place, "all@x.org")
    await bind(place, "admin", "all@x.org", "red")
    assert await code(place, boss, "POST", "/users", {"email": "all@x.org"}) == (403, "role_too_high")


@in_place
async def test_who_leads_a_team_makes_keys_of_their_own_that_may_as_much(place):
    lead = await lead_of(place)
    for path, more in (("/me/keys", {}), ("/keys", {"user": "lead@x.org"})):
        made = await place.call("POST", path, headers=lead, json={"name": "k", "team": "red", **more})
        assert made.status_code == 201, made.text
        assert await code(place, bearer(made.json()), "GET", f"/keys/{made.json()['id']}") == (200, "")


# -- rules for models --------------------------------------------------------------------------------------------------


@in_place
async def test_no_other_role_leads_past_a_rule_about_ones_own(place):
    await role(place, "light", 10)
    await place.call("POST", "/access/rules", json={"subject": "role:user", "effect": "deny", "pattern": "big*"})
    ada = await invite(place, "ada@x.org")
    assert await code(place, ada, "POST", "/me/keys", {"name": "esc", "role": "light"}) == (403, "not_your_role")
    assert await code(place, ada, "POST", "/me/keys", {"name": "esc", "role": "none"}) == (400, "invalid_request")
    key = await place.new_key("small", user="ada@x.org", role="light")
    assert not (await models_of(place, key)).permits(["big1"])
    await bind(place, "light", "ada@x.org")
    made = await place.call("POST", "/me/keys", headers=ada, json={"name": "mine", "role": "light"})
    assert not (await models_of(place, made.json())).permits(["big1"])


@in_place
async def test_who_leads_a_team_acts_for_nobody_else(place):
    lead = await lead_of(place)
    await invite(place, "alice@x.org")
    for path in ("alice@x.org", "ghost@x.org", "ghost@service"):
        assert await code(place, lead, "POST", "/keys", {"name": "x", "team": "red", "user": path}) == (403, "not_yours")
    mine = (await place.call("POST", "/keys", headers=lead, json={"name": "y", "team": "red"})).json()
    alices = await place.new_key("alices", team="red", user="alice@x.org")
    assert await code(place, lead, "PATCH", f"/keys/{mine['id']}", {"user": "alice@x.org"}) == (403, "not_yours")
    assert await code(place, lead, "POST", f"/keys/{alices['id']}/rotate", {}) == (403, "not_yours")
    assert await code(place, lead, "PATCH", f"/keys/{alices['id']}", {"rpm": 5}) == (200, "")  # it stays alice's
    assert await code(place, lead, "DELETE", f"/keys/{alices['id']}") == (200, "")
    op = await invite(place, "op@x.org", "operator")
    assert await code(place, op, "POST", "/keys", {"name": "x", "user": "alice@x.org"}) == (201, "")


@pytest.mark.parametrize("subject", ["user:lead@x.org", "role:lead-all", "key"])
@in_place
async def test_a_key_of_nobody_does_not_lead_past_a_rule_about_who_makes_it(place, subject):
    await role(place, "lead-all", 60, "*:keys")
    lead = await invite(place, "lead@x.org", "lead-all")
    made = (await place.call("POST", "/keys", headers=lead, json={"name": "before", "user": "lead@x.org"})).json()
    headers = bearer(made) if subject == "key" else lead
    rule = {"subject": f"key:{made['id']}" if subject == "key" else subject, "effect": "allow", "pattern": "small*"}
    assert (await place.call("POST", "/access/rules", json=rule)).status_code == 201
    assert await code(place, headers, "POST", "/keys", {"name": "free"}) == (403, "models_escaped")
    other = await place.new_key("nobodys")
    assert await code(place, headers, "POST", f"/keys/{other['id']}/rotate", {}) == (403, "models_escaped")
    own = await place.call("POST", "/keys", headers=headers, json={"name": "own", "user": "lead@x.org"})
    if subject == "key":
        assert own.json()["error"]["code"] == "models_escaped"
    else:
        assert not (await models_of(place, own.json())).permits(["big1"])
    assert await code(place, None, "POST", "/keys", {"name": "admins"}) == (201, "")


@in_place
async def test_a_rule_is_made_by_who_stands_above_the_key_and_the_team(place):
    op = await invite(place, "op@x.org", "operator")
    boss, plain = await place.new_key("boss", role="admin", team="chiefs"), await place.new_key("plain", team="nlp")
    for subject, wanted in (
        (f"key:{boss['id']}", (403, "role_too_high")),
        ("team:chiefs", (403, "role_too_high")),
        (f"key:{plain['id']}", (201, "")),
        ("team:nlp", (201, "")),
    ):
        assert await code(place, op, "POST", "/access/rules", {"subject": subject, "effect": "deny", "pattern": "*"}) == wanted
    made = (await place.call("POST", "/access/rules", json={"subject": "team:chiefs", "effect": "deny", "pattern": "x"})).json()
    assert await code(place, op, "DELETE", f"/access/rules/{made['id']}") == (403, "role_too_high")
    await place.call("DELETE", f"/keys/{boss['id']}")
    assert await code(place, op, "DELETE", f"/access/rules/{made['id']}") == (200, "")


# -- passes ------------------------------------------------------------------------------------------------------------


@in_place
async def test_a_pass_makes_nothing_that_outlives_it(place):
    ada = await invite(place, "ada@x.org", "admin")
    held = {"authorization": f"Bearer {(await place.call('POST', '/me/token', headers=ada)).json()['token']}"}
    key = await place.new_key("k")
    assert await code(place, held, "GET", "/users") == (200, "")
    for path, body in (
        ("/me/token", None),
        ("/me/keys", {"name": "lasting"}),
        ("/users", {"email": "me2@x.org", "role": "admin"}),
        ("/orgs", {"name": "mine", "admin": "me2@x.org"}),
        ("/keys", {"name": "lasting", "role": "admin"}),
        (f"/keys/{key['id']}/rotate", {}),
    ):
        assert await code(place, held, "POST", path, body) == (403, "session_required"), path
    assert await code(place, held, "POST", "/orgs", {"name": "empty"}) == (201, "")
    assert await code(place, held, "PATCH", f"/keys/{key['id']}", {"rpm": 5}) == (200, "")
    assert await code(place, ada, "POST", "/me/keys", {"name": "lasting"}) == (201, "")


# -- keys that make keys -----------------------------------------------------------------------------------------------

BOUNDS = {"addresses": ["127.0.0.0/8"], "rpm": 10, "models": ["small*"], "routes": ["manage", "chat"], "labels": {"region": "eu"}}


@in_place
async def test_a_key_neither_changes_nor_rotates_itself(place):
    made = await place.new_key("op", role="operator", **BOUNDS)
    for body in ({"models": [], "rpm": None}, {"priority": "high"}, {"name": "x"}):
        assert await code(place, bearer(made), "PATCH", f"/keys/{made['id']}", body) == (409, "oneself")
    assert await code(place, bearer(made), "POST", "/keys/op/rotate", {}) == (409, "oneself")
    assert await code(place, None, "PATCH", "/keys/admin", {"name": "x"}) == (409, "oneself")
    assert (await place.call("GET", f"/keys/{made['id']}")).json()["version"] == 1


@in_place
async def test_what_a_key_makes_is_bound_as_it_is(place):
    maker = bearer(await place.new_key("op", role="operator", **BOUNDS))
    plain = (await place.call("POST", "/keys", headers=maker, json={"name": "plain", "models": [], "rpm": None})).json()
    assert {name: plain[name] for name in BOUNDS} == BOUNDS
    said = {"addresses": ["127.0.0.9/32"], "rpm": 5, "models": ["small-1*"], "routes": ["/v1/chat/completions/x"], "tpm": 7}
    narrow = (await place.call("POST", "/keys", headers=maker, json={"name": "narrow", **said, "labels": {"a": "b"}})).json()
    assert {name: narrow[name] for name in said} == said
    assert narrow["labels"] == {"region": "eu", "a": "b"}


@pytest.mark.parametrize(
    "wide",
    [{"addresses": ["126.0.0.0/7"]}, {"addresses": ["::/0"]}, {"rpm": 11}, {"models": ["small*", "big"]}, {"models": ["*"]},
     {"routes": ["embeddings"]}, {"routes": ["/v1"]}, {"labels": {"region": "us"}}],
    ids=str,
)  # fmt: skip
@in_place
async def test_nothing_that_a_key_touches_is_bound_by_less(place, wide):
    maker = bearer(await place.new_key("op", role="operator", **BOUNDS))
    made = (await place.call("POST", "/keys", headers=maker, json={"name": "k"})).json()
    assert await code(place, maker, "POST", "/keys", {"name": "wide", **wide}) == (403, "bounds_too_wide")
    assert await code(place, maker, "PATCH", f"/keys/{made['id']}", wide) == (403, "bounds_too_wide")
    free = await place.new_key("free")
    assert await code(place, maker, "PATCH", f"/keys/{free['id']}", {"role": "operator"}) == (403, "bounds_too_wide")
    assert await code(place, maker, "POST", f"/keys/{free['id']}/rotate", {}) == (403, "bounds_too_wide")
    assert await code(place, maker, "PATCH", f"/keys/{made['id']}", {"rpm": 9}) == (200, "")
    assert await code(place, maker, "POST", f"/keys/{made['id']}/rotate", {}) == (200, "")


@in_place
async def test_a_key_of_a_team_hands_its_bounds_on_in_another_team_too(place):
    await lead_of(place)
    key = bearer(await place.new_key("k", user="lead@x.org", rpm=3))  # of the default team, where it may do nothing
    made = await place.call("POST", "/keys", headers=key, json={"name": "new", "team": "red"})
    assert (made.status_code, made.json()["rpm"]) == (201, 3)


@in_place
async def test_nobody_ends_a_key_that_can_do_more(place):
    op = await invite(place, "op@x.org", "operator")
    boss, other = await place.new_key("boss", role="admin"), await place.new_key("other")
    assert await code(place, op, "DELETE", f"/keys/{boss['id']}") == (403, "role_too_high")
    assert (await place.call("GET", f"/keys/{boss['id']}")).json()["state"] == "active"
    assert await code(place, op, "DELETE", f"/keys/{other['id']}") == (200, "")
    own = await place.call("POST", "/me/keys", headers=op, json={"name": "mine", "role": "operator"})
    assert await code(place, bearer(own.json()), "DELETE", "/me/keys/mine") == (200, "")


@in_place
async def test_a_key_makes_people_and_teams_for_who_may_make_them(place):
    op = await invite(place, "op@x.org", "operator")
    async with place.database.read() as session:
        before = len((await session.exec(select(User))).all())
    for owner in ({"user": "ghost@x.org"}, {"team": "ghosts"}):
        assert await code(place, op, "POST", "/keys", {"name": "n", **owner}) == (403, "forbidden")
        key = await place.new_key("k")
        assert await code(place, op, "PATCH", f"/keys/{key['id']}", owner) == (403, "forbidden")
    assert await code(place, None, "POST", "/keys", {"name": "n", "user": "ci-bot@service"}) == (400, "invalid_request")
    async with place.database.read() as session:
        assert len((await session.exec(select(User))).all()) == before
    assert (await place.call("POST", "/service-accounts", json={"name": "ci-bot"})).status_code == 201
    await place.new_key("n", user="ci-bot@service")
    for _ in range(2):
        await place.new_key("n", user="new@x.org", team="new")
    async with place.database.read() as session:
        found = (await session.exec(select(AuditEntry.action, AuditEntry.detail).order_by(AuditEntry.seq))).all()
    made = [(action, {**detail, "by": ""}) for action, detail in found if action in {"user.create", "team.create"}]
    assert made[-2:] == [("team.create", {"name": "new", "by": ""}), ("user.create", {"email": "new@x.org", "role": "user", "by": ""})]
    assert [detail["email"] for action, detail in made if action == "user.create"].count("new@x.org") == 1


# -- what changes nothing ----------------------------------------------------------------------------------------------


@in_place
async def test_what_changes_nothing_cuts_nothing_off(place, monkeypatch):
    cut = []
    monkeypatch.setattr(place.pipeline, "cut_user", cut.append)
    monkeypatch.setattr(place.pipeline, "cut_org", cut.append)
    await invite(place, "ada@x.org")
    for name in ("default", "acme"):
        if name == "acme":
            await place.call("POST", "/orgs", json={"name": name, "admin": "boss@acme.org"})
        assert (await place.call("PATCH", f"/orgs/{name}", json={"state": "active"})).status_code == 200
    assert (await place.call("POST", "/users/ada@x.org/enable")).status_code == 200
    assert cut == []
    for state, ended in (("disabled", 1), ("disabled", 0), ("active", 0)):
        assert (await place.call("PATCH", "/orgs/acme", json={"state": state})).status_code == 200
        assert len(cut) == ended, state
        cut.clear()


@in_place
async def test_a_version_is_held_to_also_where_nothing_changes(place):
    stale = {"if-match": "99"}
    await invite(place, "ada@x.org")
    key = await place.new_key("k")

    async def tried(method, path, **more):
        return (await place.call(method, path, headers=stale, **more)).status_code

    assert await tried("POST", "/users/ada@x.org/enable") == 412
    assert await tried("POST", "/roles/user/bindings", json={"user": "ada@x.org"}) == 412
    await place.call("POST", "/users/ada@x.org/disable")
    assert await tried("POST", "/users/ada@x.org/disable") == 412
    await place.call("DELETE", f"/keys/{key['id']}")
    assert await tried("DELETE", f"/keys/{key['id']}") == 412
    token = (await place.call("POST", "/join-tokens", json={})).json()["id"]
    await place.call("DELETE", f"/join-tokens/{token}")
    assert await tried("DELETE", f"/join-tokens/{token}") == 412
    again = await place.call("DELETE", f"/keys/{key['id']}", headers={"if-match": "2"})
    assert (again.status_code, again.json()["version"]) == (200, 2)


@in_place
async def test_who_was_removed_comes_back_as_somebody_new(place):
    await invite(place, "ada@x.org")
    await place.call("POST", "/access/rules", json={"subject": "user:ada@x.org", "effect": "deny", "pattern": "*"})
    await place.call("PUT", "/rates", json={"scope": "user:ada@x.org", "rpm": 1})
    assert (await place.call("DELETE", "/users/ada@x.org")).status_code == 200
    await invite(place, "ada@x.org")
    assert (await place.call("GET", "/access/rules")).json()["items"] == []
    async with place.database.read() as session:
        assert (await session.exec(select(Rate))).all() == []
    key = await place.new_key("k", user="ada@x.org")
    answer = await place.http.post("/v1/chat/completions", json={"model": "m"}, headers=bearer(key))
    assert "x-ratelimit-limit-requests" not in answer.headers
