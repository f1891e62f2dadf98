"""`If-Match` is honoured wherever something that has a version is changed: each such route is asked with a version that nothing has. A new
route that is not must say here why not."""

import json

from mindgw.server import management
from mindgw.store.tables import Worker
from tests.server.test_access import in_place, invite

#: (method, path) -> why there is no version to match.
WITHOUT = {
    ("DELETE", "/queue/{entry:str}"): "requests that are under way",
    ("POST", "/queue/{entry:str}/bump"): "requests that are under way",
    ("DELETE", "/dead-letters/{letter:str}"): "letters never change",
    ("POST", "/dead-letters/{letter:str}/retry"): "letters never change",
    ("DELETE", "/users/{user:str}/sessions"): "sessions never change, they end",
    ("DELETE", "/me/sessions/{session:str}"): "sessions never change, they end",
    ("DELETE", "/me/sessions"): "sessions never change, they end",
    ("POST", "/me/sessions/renew"): "sessions have no version",
    ("POST", "/users/{user:str}/identities"): "identities are made and taken away",
    ("DELETE", "/users/{user:str}/identities/{identity:str}"): "identities are made and taken away",
    # what makes something new, or holds for all of the server
    ("POST", "/queue/pause"): "nothing is stored",
    ("POST", "/queue/resume"): "nothing is stored",
    ("POST", "/me/token"): "nothing is stored",
    ("POST", "/workers/{worker:str}/commands"): "nothing is stored",
}
#: What makes a new object has no version of it to match.
MAKES = {"/keys", "/join-tokens", "/users", "/service-accounts", "/me/keys", "/roles", "/access/rules", "/orgs", "/teams", "/routes"}
#: A change of each of the others, of what `settle` has made: (method, path) -> path in this test, query, body. The last ones take away.
CHANGES = {
    ("PATCH", "/keys/{key:str}"): ("/keys/bot", {}, {"rpm": 7}),
    ("POST", "/keys/{key:str}/rotate"): ("/keys/bot/rotate", {}, {"grace_seconds": 60}),
    ("PUT", "/quotas"): ("/quotas", {}, {"scope": "team:nlp", "tokens": ["7/day"]}),
    ("POST", "/quotas/reset"): ("/quotas/reset", {}, {"scope": "team:nlp"}),
    ("PUT", "/rates"): ("/rates", {}, {"scope": "team:nlp", "rpm": 7}),
    ("PATCH", "/users/{user:str}"): ("/users/ada@x.org", {}, {"name": "Ada"}),
    ("POST", "/users/{user:str}/disable"): ("/users/ada@x.org/disable", {}, None),
    ("POST", "/users/{user:str}/enable"): ("/users/eve@x.org/enable", {}, None),
    ("POST", "/roles/{role:str}/bindings"): ("/roles/viewer/bindings", {}, {"user": "bob@x.org"}),
    ("PATCH", "/orgs/{org:str}"): ("/orgs/acme", {}, {"labels": {"region": "eu"}}),
    ("PATCH", "/routes/{route:path}"): ("/routes/fast", {}, {"spill": True}),
    ("PATCH", "/workers/{worker:str}/tags"): ("/workers/box/tags", {}, {"tags": {"zone": "lab"}}),
    ("POST", "/workers/{worker:str}/drain"): ("/workers/box/drain", {}, None),
    ("POST", "/workers/{worker:str}/undrain"): ("/workers/box/undrain", {}, None),
    ("POST", "/workers/{worker:str}/release"): ("/workers/liar/release", {}, None),
    ("DELETE", "/routes/{route:path}"): ("/routes/fast", {}, None),
    ("DELETE", "/quotas"): ("/quotas", {"scope": "team:nlp"}, None),
    ("DELETE", "/rates"): ("/rates", {"scope": "team:nlp"}, None),
    ("DELETE", "/roles/{role:str}/bindings"): ("/roles/auditor/bindings", {"user": "bob@x.org"}, None),
    ("DELETE", "/roles/{role:str}"): ("/roles/idle", {}, None),
    ("DELETE", "/access/rules/{rule:str}"): ("/access/rules/RULE", {}, None),
    ("DELETE", "/join-tokens/{token:str}"): ("/join-tokens/TOKEN", {}, None),
    ("DELETE", "/workers/{worker:str}"): ("/workers/box", {}, None),
    ("DELETE", "/me/keys/{key:str}"): ("/me/keys/own", {}, None),
    ("DELETE", "/keys/{key:str}"): ("/keys/bot", {}, None),
    ("DELETE", "/users/{user:str}"): ("/users/eve@x.org", {}, None),
}
#: What no version is yet.
STALE = "999999"


def changing():
    """(method, path) of all routes that change something, by the table of routes."""
    return {
        (method, path)
        for room in management.ROOMS
        for handler in room.HANDLERS
        for path in handler.paths
        for method in getattr(handler, "http_methods", ())
        if method not in {"GET", "HEAD", "OPTIONS"}
    }


def test_every_route_that_changes_something_is_asked_or_says_why_not():
    made = {("POST", path) for path in MAKES}
    assert set(CHANGES) | set(WITHOUT) | made == changing()
    assert not set(CHANGES) & (set(WITHOUT) | made)


async def settle(place):
    """What there is to change; the session with which one's own is changed, and the ids that nobody chooses."""
    bob = await invite(place, "bob@x.org")
    for email in ("ada@x.org", "eve@x.org"):
        await invite(place, email)
    said = [
        ("POST", "/users/eve@x.org/disable", None),
        ("POST", "/keys", {"name": "bot", "team": "nlp"}),
        ("PUT", "/quotas", {"scope": "team:nlp", "tokens": ["5/day"]}),
        ("PUT", "/rates", {"scope": "team:nlp", "rpm": 5}),
        ("POST", "/orgs", {"name": "acme"}),
        ("POST", "/routes", {"name": "fast", "to": ["m"]}),
        ("POST", "/roles", {"name": "idle", "permissions": ["read:keys"], "rank": 5}),
        ("POST", "/roles", {"name": "auditor", "permissions": ["read:audit"], "rank": 5}),
        ("POST", "/roles/auditor/bindings", {"user": "bob@x.org"}),
    ]
    for method, path, body in said:
        done = await place.call(method, path, json=body)
        assert done.status_code in {200, 201}, (path, done.text)
    assert (await place.call("POST", "/me/keys", headers=bob, json={"name": "own"})).status_code == 201
    rule = await place.call("POST", "/access/rules", json={"subject": "role:user", "effect": "deny", "pattern": "x*"})
    token = await place.call("POST", "/join-tokens", json={})
    async with place.database.write() as session:
        session.add(Worker(id="w1", name="box", public_key=b"p" * 32))
        session.add(Worker(id="w2", name="liar", public_key=b"q" * 32, state_admin="quarantined", reason="it lies"))
    return bob, {"RULE": rule.json()["id"], "TOKEN": token.json()["id"]}


@in_place
async def test_a_change_is_held_to_the_version_that_its_maker_saw(place):
    bob, ids = await settle(place)

    async def change(what, version):
        path, query, body = CHANGES[what]
        for word, found in ids.items():
            path = path.replace(word, found)
        headers = {"if-match": version} | (bob if path.startswith("/me/") else {})
        return await place.call(what[0], path, headers=headers, params=query, content=json.dumps(body) if body is not None else None)

    entries = (await place.call("GET", "/audit")).json()["items"]
    stale = {what: await change(what, STALE) for what in CHANGES}
    assert {what: (answer.status_code, answer.json()["error"]["code"]) for what, answer in stale.items()} == dict.fromkeys(
        CHANGES, (412, "version_mismatch")
    )
    assert (await place.call("GET", "/audit")).json()["items"] == entries, "nothing was changed"
    done = {what: (await change(what, "*")).status_code for what in CHANGES}
    assert {what: status for what, status in done.items() if status not in {200, 201}} == {}, "the version was all that was wrong"
