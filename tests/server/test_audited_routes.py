"""Every route that changes something leaves an entry in the audit log, with who, from where, and whose organisation; by the table of
routes itself."""

from mindgw.clock import utcnow
from mindgw.control.audit import Wanted, export
from mindgw.control.principal import Principal
from mindgw.store.tables import DeadLetter, Worker
from tests.house import ROOT
from tests.server.test_access import doors, in_place, invite

#: Changes that take a crowd of requests, or an identity provider: the tests that make one look for their entries.
ELSEWHERE = {
    ("POST", "/api/v1/queue/x/bump"): ("tests/server/test_queue.py", "queue.bump"),
    ("DELETE", "/api/v1/queue/x"): ("tests/server/test_queue.py", "queue.cancel"),
    ("POST", "/api/v1/workers/x/commands"): ("tests/e2e/test_worker_life.py", "worker.restart"),
    ("POST", "/api/v1/dead-letters/x/retry"): ("tests/server/test_dead_letters.py", "dead_letter.retry"),
    ("POST", "/api/v1/users/x/identities"): ("tests/server/test_identities.py", "identity.link"),
    ("DELETE", "/api/v1/users/x/identities/x"): ("tests/server/test_identities.py", "identity.unlink"),
}
#: What changes nothing: a short-lived token of a session that is in the log already, and that it lasts longer. What a provider says of
#: somebody is in the log when it is something new: tests/server/test_sign_on.py.
HARMLESS = {("POST", "/api/v1/me/token"), ("POST", "/api/v1/me/sessions/renew")}


class Story:
    """Changes, each with what it left."""

    def __init__(self, place):
        self.place = place
        self.org = ""
        #: (method, pattern of the path) of what was done.
        self.told = set()

    async def entries(self):
        home = Principal(org_id=self.org, is_home=True)
        return [view async for view in export(self.place.database, home, Wanted())]

    async def does(self, action, method, path, body=None, *, as_=None, pattern=None, **more):
        """A change, and the entries that it leaves: the first one is `action`, by somebody of this organisation from this address."""
        before = len(await self.entries())
        headers = as_ or {}
        answer = await self.place.http.request(method, f"/api/v1{path}", json=body, headers=headers, **more)
        assert answer.status_code in (200, 201), (method, path, answer.text)
        fresh = (await self.entries())[before:]
        assert [view.action for view in fresh][:1] == [action], (method, path, fresh)
        assert {(view.org_id, view.address, view.outcome) for view in fresh} == {(self.org, "127.0.0.1", "ok")}, (method, path, fresh)
        assert all(view.actor and view.name for view in fresh), (method, path, fresh)
        self.told.add((method, f"/api/v1{pattern or path}"))
        return answer.json()


@in_place
async def test_every_change_is_in_the_log(place):
    story = Story(place)
    story.org = await place.server.app.state.home.id()
    does = story.does
    # keys
    await does("team.create", "POST", "/teams", {"name": "nlp"})
    key = await does("key.create", "POST", "/keys", {"name": "k", "team": "nlp"})
    await does("key.update", "PATCH", f"/keys/{key['id']}", {"rpm": 5}, pattern="/keys/x")
    await does("key.rotate", "POST", f"/keys/{key['id']}/rotate", {"grace_seconds": 60}, pattern="/keys/x/rotate")
    # limits
    await does("quota.set", "PUT", "/quotas", {"scope": "team:nlp", "tokens": ["5/day"]})
    await does("quota.reset", "POST", "/quotas/reset", {"scope": "team:nlp"})
    await does("quota.clear", "DELETE", "/quotas", params={"scope": "team:nlp"})
    await does("rate.set", "PUT", "/rates", {"scope": "team:nlp", "rpm": 5})
    await does("rate.clear", "DELETE", "/rates", params={"scope": "team:nlp"})
    await does("key.revoke", "DELETE", f"/keys/{key['id']}", pattern="/keys/x")
    # roles and models
    await does("role.create", "POST", "/roles", {"name": "auditor", "permissions": ["read:audit"], "rank": 30})
    await does("user.invite", "POST", "/users", {"email": "ana@x.org", "role": "user"})
    await does("role.bind", "POST", "/roles/auditor/bindings", {"user": "ana@x.org"}, pattern="/roles/x/bindings")
    await does("role.unbind", "DELETE", "/roles/auditor/bindings", params={"user": "ana@x.org"}, pattern="/roles/x/bindings")
    await does("role.remove", "DELETE", "/roles/auditor", pattern="/roles/x")
    rule = await does("access.add", "POST", "/access/rules", {"subject": "role:user", "effect": "deny", "pattern": "x*"})
    await does("access.remove", "DELETE", f"/access/rules/{rule['id']}", pattern="/access/rules/x")
    # organisations
    await does("org.create", "POST", "/orgs", {"name": "acme", "admin": "boss@acme.example"})
    await does("org.update", "PATCH", "/orgs/acme", {"labels": {"region": "eu"}}, pattern="/orgs/x")
    # people
    await does("user.create", "POST", "/service-accounts", {"name": "ci"})
    await does("user.update", "PATCH", "/users/ana@x.org", {"name": "Ana"}, pattern="/users/x")
    before = len(await story.entries())
    bea = await invite(place, "bea@x.org")
    assert [view.action for view in (await story.entries())[before:]] == ["user.invite", "session.create"]
    mine = await does("key.create", "POST", "/me/keys", {"name": "own"}, as_=bea)
    await does("key.revoke", "DELETE", f"/me/keys/{mine['id']}", as_=bea, pattern="/me/keys/x")
    await does("session.end", "DELETE", "/me/sessions/current", as_=bea, pattern="/me/sessions/x")
    await does("session.end", "DELETE", "/me/sessions", as_=await invite(place, "bea@x.org"))
    await invite(place, "bea@x.org")
    await does("session.end", "DELETE", "/users/bea@x.org/sessions", pattern="/users/x/sessions")
    await does("user.disable", "POST", "/users/bea@x.org/disable", pattern="/users/x/disable")
    await does("user.enable", "POST", "/users/bea@x.org/enable", pattern="/users/x/enable")
    await does("user.remove", "DELETE", "/users/bea@x.org", pattern="/users/x")
    # the fleet and what failed
    token = await does("join_token.create", "POST", "/join-tokens", {})
    await does("join_token.revoke", "DELETE", f"/join-tokens/{token['id']}", pattern="/join-tokens/x")
    now = utcnow()
    letter = {"status": 503, "code": "c", "message": "m", "started_at": now, "failed_at": now, "fault": "fleet", "endpoint": "/"}
    async with place.database.write() as session:
        session.add(Worker(id="w1", name="box", public_key=b"p" * 32))
        session.add(Worker(id="w2", name="liar", public_key=b"q" * 32, state_admin="quarantined", reason="it lies"))
        session.add(DeadLetter(id="d1", request_id="r", key_id="k", org_id=story.org, model="m", **letter))
    await does("worker.tag", "PATCH", "/workers/box/tags", {"tags": {"zone": "lab"}}, pattern="/workers/x/tags")
    await does("worker.drain", "POST", "/workers/box/drain", pattern="/workers/x/drain")
    await does("worker.undrain", "POST", "/workers/box/undrain", pattern="/workers/x/undrain")
    await does("worker.release", "POST", "/workers/liar/release", pattern="/workers/x/release")
    await does("worker.remove", "DELETE", "/workers/box", pattern="/workers/x")
    await does("dead_letter.drop", "DELETE", "/dead-letters/d1", pattern="/dead-letters/x")
    await does("route.create", "POST", "/routes", {"name": "fast", "to": ["m"]})
    await does("route.set", "PATCH", "/routes/fast", {"spill": True}, pattern="/routes/x")
    await does("route.remove", "DELETE", "/routes/fast", pattern="/routes/x")
    await does("queue.pause", "POST", "/queue/pause", {"model": ""})
    await does("queue.resume", "POST", "/queue/resume", {"model": ""})
    changing = {
        (door.method, door.path) for door in doors(place.server.app) if door.need is not None and door.method not in {"GET", "HEAD"}
    }
    assert changing - story.told - set(ELSEWHERE) - HARMLESS == set(), "changes that no test looks for in the audit log"
    assert (story.told | set(ELSEWHERE) | HARMLESS) - changing == set(), "routes that are not there"


def test_the_others_are_looked_for_where_it_is_said():
    for file, action in ELSEWHERE.values():
        assert action in (ROOT / file).read_text()
