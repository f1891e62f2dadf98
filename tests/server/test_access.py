"""Who may do what: every route against every role, by the table of routes itself."""

import functools
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from litestar import Litestar, Router, get
from litestar.routes import ASGIRoute, BaseRoute, HTTPRoute

from mindgw.core import access
from mindgw.server import management
from mindgw.server.management import guard
from mindgw.server.management.guard import Need, needs
from mindgw.store.tables import Role
from tests.server.site import site

#: Ways in, for whoever has no credential yet, and the description of the rest: all that may stand open.
OPEN = {
    ("POST", "/api/v1/invitations/accept"),
    ("GET", "/api/v1/sign-on"),
    ("POST", "/api/v1/sign-on/begin"),
    ("POST", "/api/v1/sign-on/finish"),
    ("POST", "/api/v1/sign-on/poll"),
    ("GET", "/api/v1"),
    ("GET", "/api/v1/x"),
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/docs"),
}
#: Routes beside the management API, each with what it says to whoever has no key: 200 has nothing of anybody, all others are refused.
ELSEWHERE = {
    ("GET", "/v1"): 404,
    ("GET", "/agent/v1/link"): 426,
    ("POST", "/agent/v1/join/challenge"): 400,
    ("POST", "/agent/v1/join"): 400,
    ("POST", "/agent/v1/leave"): 400,
    ("GET", "/.well-known/mindgw/ca.pem"): 200,
    ("GET", "/me"): 200,
    ("GET", "/sign-on/by/x"): 404,
    ("GET", "/sign-on/callback/x"): 401,
    ("GET", "/sign-on/session"): 200,
    ("POST", "/sign-on/out"): 403,
    ("GET", "/"): 200,
    ("HEAD", "/"): 200,
    ("GET", "/healthz"): 200,
    ("GET", "/readyz"): 200,
}
ROLES = (*access.BUILT_IN, "little", "nothing")


class Door(NamedTuple):
    """A route: how it is asked for, and what it takes."""

    method: str
    path: str
    need: Need | None


def doors(app: Litestar) -> list[Door]:
    """All routes but those of `ELSEWHERE`: whatever is added to the application, wherever, is among them."""
    return [door for route in app.routes for door in _doors(route) if (door.method, door.path) not in ELSEWHERE]


def _doors(route: BaseRoute) -> Iterator[Door]:
    path = re.sub(r"{\w+(:\w+)?}", "x", route.path)
    if isinstance(route, ASGIRoute):
        yield Door("GET", path, guard.need_of(route.route_handler))
        return
    assert isinstance(route, HTTPRoute), f"{route.path}: a kind of route that no test of this file knows"
    for handler in route.route_handlers:
        for method in sorted(handler.http_methods - {"OPTIONS"}):
            yield Door(method, path, guard.need_of(handler))


def in_place(test):
    """The test with a `place`: a new server at work, ended by the task that began it, as a fixture is not."""

    @functools.wraps(test)
    async def wrapped(tmp_path, **more):
        async with site(tmp_path / "data") as made:
            await test(made, **more)

    told = inspect.signature(test)
    others = [each for name, each in told.parameters.items() if name != "place"]
    path = inspect.Parameter("tmp_path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wrapped.__signature__ = told.replace(parameters=[path, *others])
    return wrapped


async def keys_of(place):
    """Role -> a key that acts with it. `little` may read models and keys, `nothing` has a role without a permission."""
    org = await place.server.app.state.home.id()
    async with place.database.write() as session:
        session.add(Role(org_id=org, name="little", permissions=["read:models", "read:keys", "fly:away"], rank=1))
        session.add(Role(org_id=org, name="nothing", permissions=[], rank=1))
    return {role: (await place.new_key(role, role=role))["key"] for role in ROLES}


@in_place
async def test_every_route_says_what_it_takes(place):
    found = doors(place.server.app)
    assert len(found) > 60
    assert all((door.need.verb, door.need.resource) in access.BITS for door in found if door.need is not None)


@in_place
async def test_the_rooms_hold_all_routes(place):
    told = {(door.method, door.path) for door in doors(place.server.app)} - OPEN - {("GET", "/metrics")}
    assert told == {(door.method, f"/api/v1{door.path}") for door in rooms()} | {("GET", "/api/v1/events")}


@in_place
async def test_there_is_no_route_that_this_file_does_not_know(place):
    known = {(door.method, door.path) for route in place.server.app.routes for door in _doors(route)}
    assert set(ELSEWHERE) <= known
    assert {(door.method, door.path) for door in doors(place.server.app) if door.need is None} == OPEN

    @get("/debug")
    async def debug() -> None:
        raise AssertionError("it was let in")

    place.server.app.register(debug)
    assert {(door.method, door.path) for door in doors(place.server.app) if door.need is None} - OPEN == {("GET", "/debug")}


@in_place
async def test_beside_the_management_api_nothing_of_anybody_is_said_without_a_key(place):
    place.http.headers.pop("authorization")
    said = {}
    for method, path in ELSEWHERE:
        answer = await place.http.request(method, path, content=b"{" if method == "POST" else None)
        said[method, path] = answer.status_code
        assert "mgw_" not in answer.text
    assert said == ELSEWHERE


@in_place
async def test_there_is_no_permission_that_nothing_takes(place):
    taken = {(door.need.verb, door.need.resource) for door in doors(place.server.app) if door.need is not None}
    assert set(access.BITS) - taken == {("use", "models")}  # which the doors of data take


def rooms():
    return [
        Door(method, re.sub(r"{\w+(:\w+)?}", "x", path), guard.need_of(handler))
        for room in management.ROOMS
        for handler in room.HANDLERS
        for path in handler.paths
        for method in handler.http_methods
    ]


@pytest.mark.parametrize("role", ROLES)
@in_place
async def test_every_route_is_open_to_whoever_has_the_permission_and_to_nobody_else(place, role):
    keys = await keys_of(place)
    known = access.BUILT_IN.get(role)
    mask = known.mask if known is not None else access.known(["read:models", "read:keys"] if role == "little" else [])
    for door in doors(place.server.app):
        if door.need is None:
            continue
        answer = await place.http.request(door.method, door.path, headers={"authorization": f"Bearer {keys[role]}"}, content=b"{")
        let_in = bool(mask & access.BITS[door.need.verb, door.need.resource])
        refused = answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden"
        assert refused is not let_in, (door, answer.status_code, answer.text)
        assert answer.status_code != 401
        if not let_in:
            assert f"{door.need.verb}:{door.need.resource}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("credential", "code"), [(None, "missing_api_key"), ("x", "invalid_api_key")])
@in_place
async def test_without_a_key_no_route_says_anything(place, credential, code):
    place.http.headers.pop("authorization")
    headers = {} if credential is None else {"x-api-key": credential}
    for door in doors(place.server.app):
        if door.need is None:
            continue
        answer = await place.http.request(door.method, door.path, headers=headers, content=b"{")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), door


@in_place
async def test_a_route_that_says_nothing_is_nobodys(place):
    @get("/forgotten")
    async def forgotten() -> None:
        raise AssertionError("it was let in")

    place.server.app.register(Router(path="/api/v1", guards=[guard.require], route_handlers=[forgotten]))
    assert (await place.call("GET", "/forgotten")).status_code == 403


def test_what_is_no_permission_cannot_be_asked_for():
    with pytest.raises(KeyError):
        needs("fly", "keys")


# -- roles that are given ----------------------------------------------------------------------------------------------


async def invite(place, email, role="user"):
    made = await place.call("POST", "/users", json={"email": email, "role": role})
    assert made.status_code == 201, made.text
    accepted = await place.http.post(
        "/api/v1/invitations/accept", json={"invitation": made.json()["invitation"]}, headers={"authorization": ""}
    )
    assert accepted.status_code == 201, accepted.text
    return {"authorization": f"Bearer {accepted.json()['session']}"}


@in_place
async def test_a_role_that_is_given_holds_from_the_next_request_on_and_ends_as_soon(place):
    ada = await invite(place, "ada@x.org")
    key = (await place.new_key("adas", user="ada@x.org"))["key"]
    mine = {"authorization": f"Bearer {key}"}
    for headers in (ada, mine):
        assert (await place.call("GET", "/queue", headers=headers)).status_code == 403
    bound = await place.call("POST", "/roles/operator/bindings", json={"user": "ADA@x.org"})
    assert (bound.status_code, bound.json()["user"], bound.json()["team"]) == (201, "ada@x.org", None)
    for headers in (ada, mine):
        assert (await place.call("GET", "/queue", headers=headers)).status_code == 200
    can = (await place.call("GET", "/access/check?user=ada@x.org&verb=read&resource=queue")).json()
    assert (can["allowed"], can["roles"]) == (True, ["operator"])
    gone = await place.call("DELETE", "/roles/operator/bindings?user=ada@x.org")
    assert gone.status_code == 200
    for headers in (ada, mine):
        assert (await place.call("GET", "/queue", headers=headers)).status_code == 403
    assert (await place.call("DELETE", "/roles/operator/bindings?user=ada@x.org")).status_code == 404


@in_place
async def test_a_role_in_a_team_holds_there_alone(place):
    lead = await invite(place, "lead@x.org")
    for name, team in (("one", "red"), ("two", "blue"), ("three", None)):
        await place.new_key(name, **({"team": team} if team else {}))
    bound = await place.call("POST", "/roles/operator/bindings", json={"user": "lead@x.org", "team": "red"})
    assert bound.json()["team"] == "red"
    listed = await place.call("GET", "/keys", headers=lead)
    assert [item["name"] for item in listed.json()["items"]] == ["one"]
    for name in ("two", "three"):
        assert (await place.call("GET", f"/keys/{name}", headers=lead)).status_code == 404
        assert (await place.call("DELETE", f"/keys/{name}", headers=lead)).status_code == 404
    assert (await place.call("POST", "/keys", headers=lead, json={"name": "mine", "team": "red"})).status_code == 201
    for team in ("blue", "green", None):
        refused = await place.call("POST", "/keys", headers=lead, json={"name": "theirs", "team": team})
        assert refused.status_code in {403, 409}, refused.text
    assert (await place.call("GET", "/queue", headers=lead)).status_code == 403
    can = (await place.call("GET", "/access/check?user=lead@x.org&verb=delete&resource=keys")).json()
    assert (can["allowed"], can["teams"]) == (False, ["red"])
    assert (await place.call("DELETE", "/keys/one", headers=lead)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/roles/operator/bindings", {"user": "ada@x.org"}),
        ("POST", "/roles/admin/bindings", {"user": "ada@x.org"}),
        ("POST", "/roles/user/bindings", {"user": "op@x.org"}),
        ("DELETE", "/roles/admin/bindings?user=admin@localhost", None),
        ("POST", "/roles", {"name": "mine", "permissions": ["read:keys"], "rank": 90}),
        ("POST", "/roles", {"name": "mine", "permissions": ["create:orgs"], "rank": 10}),
        ("POST", "/keys", {"name": "k", "role": "admin"}),
        ("POST", "/keys", {"name": "k", "user": "admin@localhost"}),
        ("POST", "/keys/admin/rotate", {}),
        ("PATCH", "/keys/admin", {"name": "mine"}),
        ("POST", "/access/rules", {"subject": "role:admin", "effect": "deny", "pattern": "*"}),
        ("POST", "/access/rules", {"subject": "user:admin@localhost", "effect": "deny", "pattern": "*"}),
    ],
)
@in_place
async def test_nobody_gives_what_they_do_not_stand_above(place, method, path, body):
    """Not even whoever may change roles: an operator with that permission beside the others."""
    made = await place.call("POST", "/roles", json={"name": "deputy", "permissions": ["*:roles", "*:access"], "rank": 20})
    assert made.status_code == 201, made.text
    op, _ = await invite(place, "op@x.org", "operator"), await invite(place, "ada@x.org")
    await place.call("POST", "/roles/deputy/bindings", json={"user": "op@x.org"})
    before = [(await place.call("GET", f"/roles/{name}")).json() for name in access.BUILT_IN]
    refused = await place.call(method, path, headers=op, **({} if body is None else {"json": body}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_too_high"), refused.text
    assert [(await place.call("GET", f"/roles/{name}")).json() for name in access.BUILT_IN] == before
    assert len((await place.call("GET", "/keys")).json()["items"]) == 1


@in_place
async def test_an_admin_makes_another_admin(place):
    ada = await invite(place, "ada@x.org")
    assert (await place.call("POST", "/roles/admin/bindings", json={"user": "ada@x.org"})).status_code == 201
    assert (await place.call("GET", "/roles", headers=ada)).status_code == 200


@in_place
async def test_a_role_of_ones_own(place):
    made = await place.call("POST", "/roles", json={"name": "auditor", "permissions": ["read:*"], "rank": 30})
    assert (made.status_code, made.json()["built_in"], made.json()["version"]) == (201, False, 1)
    assert set(made.json()["permissions"]) == {f"read:{what}" for verb, what in access.BITS if verb == "read"}
    assert (await place.call("POST", "/roles", json={"name": "auditor", "permissions": ["read:*"], "rank": 30})).status_code == 409
    names = [role["name"] for role in (await place.call("GET", "/roles")).json()["items"]]
    assert names == ["admin", "operator", "user", "auditor", "viewer"]
    auditor = await invite(place, "eva@x.org", "auditor")
    assert (await place.call("GET", "/audit", headers=auditor)).status_code == 200
    assert (await place.call("POST", "/keys", headers=auditor, json={"name": "k"})).status_code == 403
    shown = (await place.call("GET", "/roles/auditor")).json()
    assert [one["user"] for one in shown["bindings"]] == ["eva@x.org"]
    used = await place.call("DELETE", "/roles/auditor")
    assert (used.status_code, used.json()["error"]["code"]) == (409, "role_in_use")
    assert (await place.call("DELETE", "/roles/auditor/bindings?user=eva@x.org")).status_code == 200
    assert (await place.call("DELETE", "/roles/auditor", headers={"if-match": "7"})).status_code == 412
    assert (await place.call("DELETE", "/roles/auditor", headers={"if-match": "1"})).status_code == 200
    assert (await place.call("GET", "/roles/auditor")).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"permissions": ["read:keys"], "rank": 5}, "name"), ({"name": "A", "permissions": ["read:keys"], "rank": 5}, "name"),
        ({"name": "a b", "permissions": ["read:keys"], "rank": 5}, "name"), ({"name": "a", "permissions": [], "rank": 5}, "permissions"),
        ({"name": "a", "permissions": ["fly:keys"], "rank": 5}, "permissions"), ({"name": "a", "permissions": ["read:keys"]}, "rank"),
        ({"name": "a", "permissions": ["read:keys"], "rank": 100}, "rank"),
        ({"name": "a", "permissions": ["read:keys"], "rank": 0}, "rank"),
        ({"name": "a", "permissions": ["read:keys"], "rank": 5, "mask": 1}, None),
        ({"name": "a", "permissions": ["read:keys"], "rank": 5, "org_id": "o"}, None),
    ],
)  # fmt: skip
@in_place
async def test_a_role_that_makes_no_sense_is_refused(place, body, param):
    refused = await place.call("POST", "/roles", json=body)
    assert refused.status_code == 400
    assert param is None or param in refused.text


@pytest.mark.parametrize("name", ["admin", "viewer"])
@in_place
async def test_what_is_built_in_stays(place, name):
    assert (await place.call("DELETE", f"/roles/{name}")).json()["error"]["code"] == "role_built_in"
    made = await place.call("POST", "/roles", json={"name": name, "permissions": ["read:keys"], "rank": 5})
    assert made.json()["error"]["code"] == "role_exists"


@in_place
async def test_a_change_of_rights_is_of_the_version_that_its_maker_saw(place):
    await invite(place, "ada@x.org")
    version = (await place.call("GET", "/users/ada@x.org")).json()["version"]
    bind = {"json": {"user": "ada@x.org"}}
    stale = await place.call("POST", "/roles/viewer/bindings", headers={"if-match": str(version + 1)}, **bind)
    assert stale.status_code == 412
    assert (await place.call("POST", "/roles/viewer/bindings", headers={"if-match": str(version)}, **bind)).status_code == 201
    again = await place.call("DELETE", "/roles/viewer/bindings?user=ada@x.org", headers={"if-match": str(version)})
    assert again.status_code == 412


@in_place
async def test_every_change_is_in_the_audit_log(place):
    await invite(place, "ada@x.org")
    await place.call("POST", "/roles", json={"name": "auditor", "permissions": ["read:*"], "rank": 30})
    await place.call("POST", "/roles/auditor/bindings", json={"user": "ada@x.org"})
    await place.call("DELETE", "/roles/auditor/bindings?user=ada@x.org")
    rule = (await place.call("POST", "/access/rules", json={"subject": "role:user", "effect": "deny", "pattern": "big*"})).json()
    await place.call("DELETE", f"/access/rules/{rule['id']}")
    await place.call("DELETE", "/roles/auditor")
    actions = [entry["action"] for entry in (await place.call("GET", "/audit")).json()["items"]]
    assert {"role.create", "role.bind", "role.unbind", "role.remove", "access.add", "access.remove"} <= set(actions)
