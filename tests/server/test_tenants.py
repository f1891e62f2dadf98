"""Two organisations on every route: neither finds out what the other has, or that it has anything."""

import asyncio
import re
from datetime import timedelta

import pytest
from sqlmodel import select

from mindgw.clock import utcnow
from mindgw.core import access
from mindgw.server.management import guard
from mindgw.store import keys, users
from mindgw.store.tables import (
    AccessRule,
    AuditEntry,
    DeadLetter,
    Identity,
    Key,
    LedgerRow,
    Org,
    Quota,
    Rate,
    Receipt,
    Role,
    RoleBinding,
    Session,
    Story,
    Team,
    User,
)
from tests.gateway.world import Box, engine, knows
from tests.server.test_access import doors, in_place
from tests.store.test_tenants import ledger_row

#: Stands in everything that the other organisation has; what answers with it says too much.
MARK = "zebra"
#: Whoever runs the server knows whom it is run for, and what each of them may use in all; and what became of every request.
REQUESTS = {"/api/v1/requests", "/api/v1/requests/x"}
WHOLE = {"/api/v1/orgs", "/api/v1/quotas", "/api/v1/rates"} | REQUESTS
#: Routes of whoever runs the server, which say so to everybody else whatever they name.
SHARED = 403, "not_yours"


class Other:
    """An organisation with something in every table, and what its things are called."""

    def __init__(self, name: str, pepper: bytes, number: int = 7_777_777) -> None:
        self.id, self._pepper = f"{name}org", pepper
        #: Every figure of it.
        self.number = number
        self.email = f"{name}@x.org"
        #: What somebody may call what it has, by the word that routes use for it.
        self.names = {
            "key": [f"{name}key0"[:10].ljust(10, "0"), f"{name}-key"],
            "user": [self.email, f"{name}user".ljust(26, "0")],
            "team": [f"{name}-team", f"{name}team"],
            "role": [f"{name}-role"],
            "letter": [f"{name}letter", f"{name}-request"],
            "rule": [f"{name}rule"],
            "identity": [f"{name}identity", f"{name}-provider"],
            "session": [f"{name}sess0"[:10].ljust(10, "0")],
            "entry": [f"{name}-request"],
            "worker": [f"{name}worker"],
            "token": [f"{name}token"],
            "request": [f"{name}-request"],
            "request_id": [f"{name}-request"],
        }

    def rows(self):
        now, one = utcnow(), {kind: found[0] for kind, found in self.names.items()}
        team, user = self.names["team"][1], self.names["user"][1]
        yield Org(id=self.id, name=f"{self.id}-name")
        yield Team(id=team, org_id=self.id, name=one["team"])
        yield User(id=user, org_id=self.id, email=self.email, role="admin")
        yield Key(id=one["key"], name=self.names["key"][1], org_id=self.id, team_id=team, user_id=user, digest=b"d")
        yield Role(org_id=self.id, name=one["role"], permissions=["read:keys"], rank=1)
        yield RoleBinding(user_id=user, role=one["role"])
        yield AccessRule(id=one["rule"], org_id=self.id, subject=f"team:{team}", effect="deny", pattern=f"{self.id}*")
        yield Session(id=one["session"], user_id=user, digest=b"d", expires_at=now + timedelta(days=1), agent=f"{self.id}-agent")
        facts = {"issuer": f"https://{self.id}.example", "subject": f"{self.id}-subject", "provider": self.names["identity"][1]}
        yield Identity(id=one["identity"], user_id=user, key_id=one["key"], claims_at=now, **facts)
        for scope in (f"org:{self.id}", f"team:{team}", f"user:{user}", f"key:{one['key']}"):
            yield Quota(scope=scope, unit="tokens", period="day", lim=self.number)
            yield Rate(scope=scope, rpm=self.number)
        facts = {"request_id": one["request"], "key_id": one["key"], "model": f"{self.id}-model", "endpoint": "/", "fault": "fleet"}
        letter = {"status": 503, "code": "c", "message": f"{self.id} said", "started_at": now, "failed_at": now}
        yield DeadLetter(id=one["letter"], org_id=self.id, team_id=team, user_id=user, **facts, **letter)
        told = {"asked": f"{self.id}-model", "outcome": "done", "status": 200, "end_user": f"{self.id}-end", "document": b""}
        whose = {"key_id": one["key"], "team_id": team, "user_id": user, "model": f"{self.id}-model", "tokens_in": self.number}
        yield Story(
            id=f"{self.id}story", request_id=one["request"], org_id=self.id, worker_id=one["worker"], started_at=now, **told, **whose
        )
        booked = {"key_id": one["key"], "team_id": team, "user_id": user, "model": f"{self.id}-model", "prompt_tokens": self.number}
        row = ledger_row(self.id, now) | booked | {"request_id": one["request"], "day": now.date().isoformat(), "source": "engine"}
        yield LedgerRow(**row)
        yield Receipt(
            worker_id=one["worker"], seq=1, tag=b"", request_id=one["request"], attempt=1, outcome="done", prompt=self.number, completion=1,
            cached=0, source="engine", events=1, bytes_out=1, prev=b"", hash=b"", at=now,
        )  # fmt: skip

    async def settle(self, database):
        async with database.write() as session:
            for row in self.rows():
                session.add(row)
                await session.flush()

    async def key(self, database, role="admin"):
        """A key of it, as headers."""
        async with database.write() as session:
            _, text = await keys.create(session, keys.NewKey(name="own", org_id=self.id, role=role), self._pepper)
        return {"authorization": f"Bearer {text}"}


def probes(other: Other, nothing: Other):
    """Ways to name what another organisation has, each with the same way to name what nobody has: path's words, query, body."""
    for kind, names in other.names.items():
        for known, unknown in zip(names, nothing.names[kind], strict=True):
            yield kind, known, unknown


def asked_with(path: str, kind: str, name: str):
    """(query, body) in which a route may be told of somebody or something."""
    scopes = {f"{kind}:{name}" for _ in "x" if kind in {"key", "user", "team"}}
    words = {kind: name, "scope": next(iter(scopes), ""), "subject": next(iter(scopes), f"role:{name}")}
    query = {
        "/api/v1/usage": {word: words[word] for word in ("key", "team", "user") if word in words},
        "/api/v1/quotas": {"scope": words["scope"]},
        "/api/v1/rates": {"scope": words["scope"]},
        "/api/v1/access/rules": {"subject": words["subject"]},
        "/api/v1/access/check": {"user": name, "verb": "read", "resource": "keys"},
        "/api/v1/access/models": {"user": name, "model": "m"},
        "/api/v1/routing": {"user": name, "model": "m"},
        "/api/v1/ledger": {"request": name},
        "/api/v1/receipts": {"request": name},
        "/api/v1/queue": {word: words[word] for word in ("key", "team", "user") if word in words},
        "/api/v1/requests": {word: words[word] for word in ("key", "team", "user") if word in words},
        "/api/v1/audit": {"object": name},
        "/api/v1/audit/export": {"actor": name},
        "/api/v1/roles/x/bindings": {"user": name},
    }.get(path, {})
    body = {
        "/api/v1/quotas": {"scope": words["scope"], "tokens": ["5/day"]},
        "/api/v1/quotas/reset": {"scope": words["scope"]},
        "/api/v1/rates": {"scope": words["scope"], "rpm": 5},
        "/api/v1/access/rules": {"subject": words["subject"], "effect": "deny", "pattern": "*"},
        "/api/v1/roles/x/bindings": {"user": name},
        "/api/v1/users": {"email": name if "@" in name else ""},
        "/api/v1/me/keys": {"name": "probe", "team": name},
        "/api/v1/users/x/identities": {"provider": name, "subject": "s"},
    }.get(path, {})
    return query, body


async def everything(database, org):
    """All that an organisation has, as it is stored."""
    async with database.read() as session:
        found = []
        for table in (Team, User, Key, Role, RoleBinding, AccessRule, Session, Identity, Quota, Rate, DeadLetter, LedgerRow, Story):
            rows = (await session.exec(select(table))).all()
            found += sorted(str(row.model_dump()) for row in rows if org in str(row.model_dump()))
        return found


def plain(answer, name: str):
    """Status and body without what is of that one request, and without the name that was asked for."""
    text = re.sub(r'"request_id":"[^"]*"', "", answer.text.replace(name, "@").replace(name.lower(), "@"))
    text = re.sub(r'"end":{[^}]*}', "", text)  # of the audit log, which refusals are written into meanwhile
    return answer.status_code, re.sub(
        r'"(id|created_at|key|masked|at|uptime_s|token|expires_at|invitation|invite_expires_at)":("[^"]*"|[0-9.]+)', "", text
    )


@pytest.mark.parametrize("from_home", [True, False])
@in_place
async def test_neither_finds_anything_of_the_other_by_its_name(place, from_home):
    pepper = place.server.app.state.secrets.pepper
    other, nothing, mine = Other(MARK, pepper), Other("quagg", pepper), Other("gnu", pepper, 5)
    await other.settle(place.database)
    await mine.settle(place.database)
    headers = dict(place.http.headers) if from_home else await mine.key(place.database)
    before, asked = await everything(place.database, other.id), 0
    for door in doors(place.server.app):
        if door.need is None or (from_home and door.path in REQUESTS):
            continue
        template = next(route.path for route in place.server.app.routes if re.sub(r"{\w+(:\w+)?}", "x", route.path) == door.path)
        word = re.findall(r"{(\w+)", template)
        for kind, known, unknown in probes(other, nothing):
            if word and word[0] not in {kind, "role"}:
                continue
            query, body = asked_with(door.path, kind, known)
            if word[:1] != [kind] and not (query if door.method in {"GET", "DELETE"} else body):
                continue  # there is no place for a name in it
            answers = []
            for name in (known, unknown):
                query, body = asked_with(door.path, kind, name)
                path = door.path if not word or word[0] != kind else re.sub(r"/x(?=/|$)", f"/{name}", door.path, count=1)
                path = path if word != ["role"] or kind == "role" else path.replace("/roles/x", "/roles/viewer")
                answers.append(await place.http.request(door.method, path, headers=headers, params=query, json=body))
            asked += 1
            theirs, nobodys = (plain(answer, name) for answer, name in zip(answers, (known, unknown), strict=True))
            assert theirs == nobodys, (door, kind, known)
            assert theirs[0] < 500
            if from_home and door.path in WHOLE and door.method == "GET":
                continue
            assert MARK not in theirs[1].replace("@", ""), (door, kind)
            assert "7777777" not in theirs[1]
    assert asked > 70
    assert await everything(place.database, other.id) == before


@pytest.mark.parametrize("from_home", [True, False])
@in_place
async def test_no_list_has_anything_of_the_other(place, from_home):
    pepper = place.server.app.state.secrets.pepper
    other, mine = Other(MARK, pepper), Other("gnu", pepper, 5)
    await other.settle(place.database)
    await mine.settle(place.database)
    theirs = await other.key(place.database)
    made = await place.call("POST", "/keys", headers=theirs, json={"name": f"{MARK}-made", "user": f"{MARK}2@x.org"})
    assert made.status_code == 201  # which the audit log knows
    headers = dict(place.http.headers) if from_home else await mine.key(place.database)
    for door in doors(place.server.app):
        if door.need is None or door.method != "GET" or "/x" in door.path:
            continue
        if from_home and door.path in WHOLE:
            continue
        for query in ({}, {"by": "team"}, {"by": "user"}, {"by": "model"}, {"by": "org"}):
            answer = await place.http.request("GET", door.path, headers=headers, params=query)
            assert MARK not in answer.text, door
            assert "7777777" not in answer.text, door
    own = await place.call("GET", "/keys", headers=theirs)
    assert MARK in own.text  # it is there, for whom it is


@in_place
async def test_what_all_share_is_for_whoever_runs_the_server(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    headers, shared = await other.key(place.database), 0
    for door in doors(place.server.app):
        if door.need is None or not door.need.home:
            continue
        answer = await place.http.request(door.method, door.path, headers=headers, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == SHARED, door
        shared += 1
    assert shared > 12


@in_place
async def test_an_organisation_of_ones_own_is_whole(place):
    """What is refused to others works for whom it belongs to."""
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    headers = await other.key(place.database)
    for path in ("/keys/{key}", "/users/{user}", "/roles/{role}", "/dead-letters/{letter}", "/ledger?request={request}"):
        named = path.format(**{kind: names[0] for kind, names in other.names.items()})
        assert (await place.call("GET", named, headers=headers)).status_code == 200, path
    assert (await place.call("GET", f"/receipts?request={MARK}-request", headers=headers)).status_code == 200
    quotas = (await place.call("GET", "/quotas", headers=headers)).json()["items"]
    assert len(quotas) == 4
    usage = (await place.call("GET", "/usage", headers=headers)).json()
    assert usage["total"]["tokens_in"] == 7_777_777
    listed = (await place.call("GET", "/access/rules", headers=headers)).json()["items"]
    assert [rule["subject"] for rule in listed] == [f"team:{MARK}-team"]
    made = await place.call("POST", "/keys", headers=headers, json={"name": "k"})
    async with place.database.read() as session:
        assert (await session.get(Key, made.json()["id"])).org_id == other.id
        entry = (await session.exec(select(AuditEntry).where(AuditEntry.object == made.json()["id"]))).one()
        assert entry.org_id == other.id


@in_place
async def test_what_an_organisation_may_use_in_all_says_whoever_runs_the_server(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    theirs, whole = await other.key(place.database), f"org:{other.id}"
    for path, numbers in (("/rates", {"rpm": 5}), ("/quotas", {"tokens": ["1000/day"]})):
        assert (await place.call("PUT", path, json={"scope": whole} | numbers)).status_code == 200
        shown = await place.call("GET", f"{path}?scope={whole}", headers=theirs)
        assert (shown.status_code, len(shown.json()["items"]) > 0) == (200, True)
        for method, query, body in (("PUT", "", {"scope": whole} | numbers), ("DELETE", f"?scope={whole}", None)):
            refused = await place.call(method, path + query, headers=theirs, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours"), (method, path)
        listed = (await place.call("GET", path)).json()["items"]
        assert {one["scope"] for one in listed if MARK in one["scope"]} == {f"org:{MARK}org-name"}
    assert (await place.call("PUT", "/rates", headers=theirs, json={"scope": f"team:{MARK}-team", "rpm": 5})).status_code == 200


@in_place
async def test_nobody_but_who_runs_the_server_puts_a_key_before_all_others(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    theirs = await other.key(place.database)
    made = await place.call("POST", "/keys", headers=theirs, json={"name": "k", "priority": "normal"})
    assert made.status_code == 201
    changed = await place.call("PATCH", f"/keys/{made.json()['id']}", headers=theirs, json={"priority": "high"})
    for refused in (changed, await place.call("POST", "/keys", headers=theirs, json={"name": "k", "priority": "high"})):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours")
    assert (await place.call("POST", "/keys", json={"name": "k", "priority": "high"})).status_code == 201


@in_place
async def test_nobody_else_learns_which_machines_there_are(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    theirs = await other.key(place.database)
    mine = (await place.call("POST", "/keys", json={"name": "k", "role": "user"})).json()["key"]
    for path, key in (("/usage", theirs), ("/me/usage", theirs), ("/me/usage", {"authorization": f"Bearer {mine}"})):
        answer = await place.call("GET", f"{path}?by=worker", headers=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_yours"), path
    whole = await place.http.request("GET", "/v1/me/usage?by=worker", headers={"authorization": f"Bearer {mine}"})
    assert whole.status_code == 403
    assert (await place.call("GET", "/usage?by=worker")).status_code == 200


@in_place
async def test_the_doors_of_data_know_one_organisation_at_a_time(place):
    """Rules, usage and names of another are nowhere in `/v1`, whatever is asked of it."""
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    box = Box(place.world, "box", engine("llama"))
    await place.until(lambda: knows(place.pipeline.fleet, "llama"))
    theirs = await other.key(place.database, "user")
    mine = {"authorization": f"Bearer {(await place.new_key('k', role='user'))['key']}"}
    boss = await other.key(place.database)
    hidden = await place.call("POST", "/access/rules", headers=boss, json={"subject": "role:user", "effect": "deny", "pattern": "*"})
    assert hidden.status_code == 201

    async def said(path, headers):
        return await place.settled(asyncio.ensure_future(place.http.get(f"/v1{path}", headers=headers)))

    assert [model["id"] for model in (await said("/models", mine)).json()["data"]] == ["llama"]
    assert (await said("/models", theirs)).json()["data"] == []
    assert ((await said("/models/llama", mine)).status_code, (await said("/models/llama", theirs)).status_code) == (200, 404)
    for query in ("", *(f"?by={word}" for word in ("day", "model", "key", "team", "user", "org", "worker"))):
        for more in ("", "&key={key}", "&team={team}", "&user={user}", "&org_id={key}&since=2020-01-01"):
            names = {kind: found[0] for kind, found in other.names.items()}
            answer = await said(f"/me/usage{query}{more.format(**names) if query else ''}", mine)
            assert MARK not in answer.text, (query, more)
            assert "7777777" not in answer.text, (query, more)
    for path in (f"/models/{other.id}-model", "/models/nobodys-model"):
        assert (await said(path, mine)).status_code == 404
    del box


@in_place
async def test_a_team_of_the_same_name_is_another_one(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    made = await place.call("POST", "/keys", json={"name": "k", "team": f"{MARK}-team"})
    assert made.status_code == 201
    async with place.database.read() as session:
        teams = (await session.exec(select(Team.org_id).where(Team.name == f"{MARK}-team"))).all()
        assert sorted(teams) == sorted([other.id, await place.server.app.state.home.id()])


@in_place
async def test_an_address_of_the_other_is_as_good_as_any(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    for email in (other.email, "nobody@x.org"):
        made = await place.call("POST", "/keys", json={"name": "k", "user": email})
        assert (made.status_code, made.json()["user"]) == (201, email)
    assert (await place.call("POST", "/users", json={"email": other.email})).json()["role"] == "user"


@in_place
async def test_an_organisation_that_was_closed_is_let_in_nowhere(place):
    other = Other(MARK, place.server.app.state.secrets.pepper)
    await other.settle(place.database)
    headers = await other.key(place.database)
    async with place.database.write() as session:
        (await session.get(Org, other.id)).state = "disabled"
    for path in ("/api/v1/keys", "/v1/models"):
        assert (await place.http.get(path, headers=headers)).status_code == 401


def test_needs_are_found_by_their_handlers():
    assert guard.needs("read", "keys") == {"needs": guard.Need(access.READ, "keys")}
    assert users.REMOVED == "removed"
