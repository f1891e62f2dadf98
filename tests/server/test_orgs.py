"""Organisations and teams over HTTP: made, labelled, shut out."""

import pytest

from tests.server.test_access import in_place


async def org(place, name="acme", **more):
    made = await place.call("POST", "/orgs", json={"name": name, "admin": f"boss@{name}.example", **more})
    assert made.status_code == 201, made.text
    return made.json()


async def enter(place, made):
    """A session of somebody who was invited, as headers."""
    answer = await place.http.post("/api/v1/invitations/accept", json={"invitation": made["invitation"]}, headers={"authorization": ""})
    assert answer.status_code == 201, answer.text
    return {"authorization": f"Bearer {answer.json()['session']}"}


@in_place
async def test_an_organisation_is_made_with_its_first_administrator(place):
    made = await org(place, labels={"region": "eu"})
    assert (made["name"], made["state"], made["labels"]) == ("acme", "active", {"region": "eu"})
    boss = await enter(place, made)
    created = await place.http.post("/api/v1/keys", json={"name": "k", "team": "t"}, headers=boss)
    assert created.status_code == 201, created.text
    assert [key["name"] for key in (await place.http.get("/api/v1/keys", headers=boss)).json()["items"]] == ["k"]
    assert "k" not in [key["name"] for key in (await place.call("GET", "/keys")).json()["items"]]
    assert [team["name"] for team in (await place.http.get("/api/v1/teams", headers=boss)).json()["items"]] == ["t"]
    assert (await place.http.get("/api/v1/orgs", headers=boss)).json()["error"]["code"] == "not_yours"
    assert [one["name"] for one in (await place.call("GET", "/orgs")).json()["items"]] == ["default", "acme"]


@in_place
async def test_a_name_is_taken_once(place):
    await org(place)
    assert (await place.call("POST", "/orgs", json={"name": "acme"})).json()["error"]["code"] == "org_exists"
    assert [one["name"] for one in (await place.call("GET", "/orgs")).json()["items"]] == ["default", "acme"]
    assert (await place.call("POST", "/teams", json={"name": "nlp"})).status_code == 201
    assert (await place.call("POST", "/teams", json={"name": "nlp"})).json()["error"]["code"] == "team_exists"


@in_place
async def test_nobody_of_a_disabled_organisation_is_let_in(place):
    made = await org(place)
    boss = await enter(place, made)
    key = (await place.http.post("/api/v1/keys", json={"name": "k"}, headers=boss)).json()
    own = {"authorization": f"Bearer {key['key']}"}
    assert (await place.http.get("/v1/models", headers=own)).status_code == 200
    done = await place.call("PATCH", "/orgs/acme", json={"state": "disabled"}, headers={"if-match": str(made["version"])})
    assert done.json()["state"] == "disabled", done.text
    assert (await place.http.get("/v1/models", headers=own)).status_code == 401
    assert (await place.http.get("/api/v1/me", headers=boss)).status_code == 401
    assert (await place.call("PATCH", f"/orgs/{made['id']}", json={"state": "active"})).status_code == 200
    assert (await place.http.get("/v1/models", headers=own)).status_code == 200


@in_place
async def test_what_cannot_be_is_refused(place):
    made = await org(place)
    assert (await place.call("PATCH", "/orgs/default", json={"state": "disabled"})).json()["error"]["code"] == "org_home"
    assert (await place.call("PATCH", "/orgs/none", json={"labels": {}})).status_code == 404
    assert (await place.call("PATCH", "/orgs/acme", json={"labels": {}}, headers={"if-match": "99"})).status_code == 412
    for body in ({"state": "gone"}, {"name": "x"}, {"id": made["id"]}, {"labels": {"region": 3}}):
        assert (await place.call("PATCH", "/orgs/acme", json=body)).status_code == 400, body
    for body in ({"name": ""}, {"name": " "}, {"name": "a\nb"}, {"name": "x", "admin": "nobody"}, {"name": "x", "state": "active"}, {}):
        assert (await place.call("POST", "/orgs", json=body)).status_code == 400, body


@in_place
async def test_an_organisation_that_nobody_looks_after_is_given_somebody(place):
    made = (await place.call("POST", "/orgs", json={"name": "acme"})).json()
    assert made["invitation"] is None
    given = await place.call("PATCH", "/orgs/acme", json={"admin": "Boss@acme.example"})
    assert given.status_code == 200, given.text
    boss = await enter(place, given.json())
    assert (await place.http.get("/api/v1/users", headers=boss)).status_code == 200
    # somebody who is there already, and was shut out, comes back as an administrator
    op = (await place.http.post("/api/v1/users", headers=boss, json={"email": "op@acme.example", "role": "viewer"})).json()
    assert (await place.http.post("/api/v1/users/op@acme.example/disable", headers=boss)).status_code == 200
    again = (await place.call("PATCH", f"/orgs/{made['id']}", json={"admin": "op@acme.example", "labels": {"region": "eu"}})).json()
    assert (again["labels"], again["version"]) == ({"region": "eu"}, 3)
    assert (await place.http.get("/api/v1/users", headers=await enter(place, again))).status_code == 200
    assert op["id"] in [user["id"] for user in (await place.http.get("/api/v1/users", headers=boss)).json()["items"]]
    for wrong in ("nobody", "ci@service", ""):
        assert (await place.call("PATCH", "/orgs/acme", json={"admin": wrong})).status_code == 400, wrong
    assert (await place.call("PATCH", "/orgs/acme", json={"admin": "eve@x.org"}, headers={"if-match": "99"})).status_code == 412
    assert "eve@x.org" not in (await place.http.get("/api/v1/users", headers=boss)).text
    own = await place.http.patch("/api/v1/orgs/acme", headers=boss, json={"admin": "eve@x.org"})
    assert own.json()["error"]["code"] == "not_yours"


TAKING = [
    ("PATCH", "/users/{email}", {"role": "user"}),
    ("POST", "/users/{email}/disable", None),
    ("DELETE", "/users/{email}", None),
    ("DELETE", "/roles/admin/bindings?user={email}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), TAKING)
@pytest.mark.parametrize("bound", [False, True])
@in_place
async def test_the_last_administrator_of_an_organisation_stays(place, method, path, body, bound):
    """Whoever has an administrator's key, which belongs to nobody, could take them all away."""
    boss = await enter(place, await org(place))
    key = (await place.http.post("/api/v1/keys", json={"name": "k", "role": "admin"}, headers=boss)).json()["key"]
    own = {"authorization": f"Bearer {key}"}
    last = "boss@acme.example"
    if bound:  # an administrator by a binding, while the first one is none any more
        last = "ana@acme.example"
        assert (await place.http.post("/api/v1/users", json={"email": last}, headers=own)).status_code == 201
        assert (await place.http.post("/api/v1/roles/admin/bindings", json={"user": last}, headers=own)).status_code == 201
        assert (await place.http.patch("/api/v1/users/boss@acme.example", json={"role": "user"}, headers=own)).status_code == 200
    else:  # neither a program, nor who leads one team, nor who was shut out, could let anybody in
        assert (await place.http.post("/api/v1/service-accounts", json={"name": "ci", "role": "admin"}, headers=own)).status_code == 201
        assert (await place.http.post("/api/v1/users", json={"email": "out@acme.example", "role": "admin"}, headers=own)).status_code == 201
        assert (await place.http.post("/api/v1/users/out@acme.example/disable", headers=own)).status_code == 200
        await place.http.post("/api/v1/teams", json={"name": "t"}, headers=own)
        await place.http.post("/api/v1/users", json={"email": "lead@acme.example"}, headers=own)
        led = await place.http.post("/api/v1/roles/admin/bindings", json={"user": "lead@acme.example", "team": "t"}, headers=own)
        assert led.status_code == 201
    before = (await place.http.get(f"/api/v1/users/{last}", headers=own)).json()
    refused = await place.http.request(method, "/api/v1" + path.format(email=last), json=body, headers=own)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "last_admin"), refused.text
    assert "roles bind admin" in refused.json()["error"]["hint"]
    assert (await place.http.get(f"/api/v1/users/{last}", headers=own)).json() == before
    # with another one it goes
    assert (await place.http.post("/api/v1/users", json={"email": "eve@acme.example", "role": "admin"}, headers=own)).status_code == 201
    done = await place.http.request(method, "/api/v1" + path.format(email=last), json=body, headers=own)
    assert done.status_code == 200, done.text


@in_place
async def test_who_runs_the_server_may_be_nobody_but_a_key(place):
    """`mindgw init --new-admin-key` makes another administrator there."""
    gone = await place.call("PATCH", "/users/admin@localhost", json={"role": "user"}, headers=await _other_admin(place))
    assert gone.status_code == 200, gone.text


async def _other_admin(place):
    key = await place.new_key("other", role="admin")
    return {"authorization": f"Bearer {key['key']}"}
