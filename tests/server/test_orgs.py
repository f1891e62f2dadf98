"""Organisations and teams over HTTP: made, labelled, shut out."""

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
