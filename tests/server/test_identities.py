"""By what identity providers know people: somebody who is here already is linked to a provider, and what came of it is taken away again."""

import pytest

from mindgw.store.tables import AuditEntry, Identity, Key, RoleBinding, Session, User
from tests.identity_provider import OID, OTHER
from tests.server.test_sign_on import ADA, provider, visit

__all__ = ["provider", "visit"]

PATH = f"/api/v1/users/{ADA}/identities"
SAID = {"provider": "work", "subject": OID}


async def accept(desk, made):
    """The session of somebody who was invited."""
    accepted = await desk.say("POST", "/api/v1/invitations/accept", json={"invitation": made.json()["invitation"]})
    assert accepted.status_code == 201, accepted.text
    return accepted.json()["session"]


async def ada_is_here(desk, role="user"):
    """Ada, by an invitation: her session."""
    made = await desk.say("POST", "/api/v1/users", desk.place.key, json={"email": ADA, "role": role})
    assert made.status_code == 201, made.text
    return await accept(desk, made)


async def link(desk, credential="", path=PATH, **changes):
    return await desk.say("POST", path, credential or desk.place.key, json=SAID | changes)


async def told(desk, action):
    return [entry for entry in await desk.rows(AuditEntry) if entry.action == action]


async def test_somebody_who_is_here_is_linked_and_keeps_what_is_theirs(visit):
    async with visit() as desk:
        session = await ada_is_here(desk, "operator")
        made = await desk.say("POST", "/api/v1/me/keys", session, json={"name": "laptop"})
        answer = await desk.sign_on()
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "address_taken")
        assert f"mindgw users link {ADA} work {OID}" in answer.json()["error"]["hint"]
        linked = await link(desk, subject=OID.upper())
        assert linked.status_code == 201, linked.text
        said = linked.json()
        assert (said["provider"], said["subject"], said["claims_at"]) == ("work", OID, None)
        (entry,) = await told(desk, "identity.link")
        assert (entry.object, entry.detail["subject"], entry.address) == ((await desk.user()).id, OID, "127.0.0.1")
        signed = await desk.enter()
        me = (await desk.say("GET", "/api/v1/me", signed)).json()
        assert (me["user"], me["roles"]) == (ADA, ["operator"]), "where the settings say nothing of roles, people do"
        assert (await desk.say("GET", "/api/v1/me", made.json()["key"])).status_code == 200
        (shown,) = (await desk.say("GET", PATH, desk.place.key)).json()["items"]
        assert shown["id"] == said["id"]
        assert shown["claims_at"] is not None
        assert len([user for user in await desk.rows(User) if user.email == ADA]) == 1


async def test_whoever_is_linked_may_send_tokens_and_is_what_the_claims_say(visit, provider):
    async with visit(roles="boss=operator", teams="g1=nlp") as desk:
        await ada_is_here(desk)
        assert (await link(desk)).status_code == 201
        me = (await desk.say("GET", "/api/v1/me", provider.token(roles=["boss"], groups=["g1"]))).json()
        assert (me["user"], me["roles"], me["team"]) == (ADA, ["operator"], "nlp")


async def test_whoever_was_invited_needs_no_invitation_any_more(visit):
    async with visit() as desk:
        made = await desk.say("POST", "/api/v1/users", desk.place.key, json={"email": ADA})
        assert (await link(desk)).status_code == 201
        await desk.enter()
        again = await desk.say("POST", "/api/v1/invitations/accept", json={"invitation": made.json()["invitation"]})
        assert again.status_code == 401
        assert (await desk.user()).state == "active"


async def test_a_key_of_tokens_is_in_a_team_of_ones_own(visit, provider):
    """What is said of a team is not got round by a token."""
    async with visit() as desk:
        await ada_is_here(desk)
        await desk.say("POST", "/api/v1/keys", desk.place.key, json={"name": "bot", "team": "nlp", "user": ADA})
        assert (await link(desk)).status_code == 201
        assert (await desk.say("GET", "/api/v1/me", provider.token())).json()["team"] == "nlp"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"provider": "play"}, 404, "not_found"),
        ({"subject": "ada"}, 400, "invalid_request"),
        ({"subject": OID + " x"}, 400, "invalid_request"),
        ({"subject": ""}, 400, "invalid_request"),
        ({"subject": "x" * 256}, 400, "invalid_request"),
        ({"issuer": "x"}, 400, "invalid_request"),
    ],
)
async def test_what_nobody_can_be_linked_to_is_refused(visit, changes, status, code):
    async with visit() as desk:
        await ada_is_here(desk)
        answer = await link(desk, **changes)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert await desk.rows(Identity) == []


async def test_one_is_known_by_a_provider_as_one(visit):
    async with visit() as desk:
        await ada_is_here(desk)
        assert (await link(desk)).status_code == 201
        assert (await link(desk)).json()["error"]["code"] == "identity_linked"
        assert (await link(desk, subject=OTHER)).json()["error"]["code"] == "identity_linked"
        await desk.say("POST", "/api/v1/users", desk.place.key, json={"email": "bob@x.org"})
        taken = await link(desk, path="/api/v1/users/bob@x.org/identities")
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "identity_taken")
        assert len(await desk.rows(Identity)) == 1
        assert len([key for key in await desk.rows(Key) if key.provider]) == 1, "nothing is left of what was refused"


async def test_nobody_who_does_not_sign_in_is_linked(visit):
    async with visit() as desk:
        await desk.say("POST", "/api/v1/service-accounts", desk.place.key, json={"name": "ci"})
        assert (await link(desk, path="/api/v1/users/ci@service/identities")).status_code == 409
        await ada_is_here(desk)
        await desk.say("POST", f"/api/v1/users/{ADA}/disable", desk.place.key)
        assert (await link(desk)).json()["error"]["code"] == "user_disabled"


async def test_nobody_is_linked_by_whoever_does_not_stand_above_them(visit):
    """An operator who could link an administrator to a subject of their own would be one."""
    async with visit() as desk:
        desk_key = desk.place.key
        await desk.say("POST", "/api/v1/roles", desk_key, json={"name": "desk", "permissions": ["*:users", "*:me"], "rank": 50})
        made = await desk.say("POST", "/api/v1/users", desk_key, json={"email": "eve@x.org", "role": "desk"})
        eve = await accept(desk, made)
        await ada_is_here(desk, "operator")
        answer = await link(desk, eve)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_too_high")
        mine = await link(desk, eve, path="/api/v1/users/eve@x.org/identities")
        assert mine.status_code == 201, "oneself, by a session"
        made_pass = (await desk.say("POST", "/api/v1/me/token", eve)).json()["token"]
        assert (await link(desk, made_pass, path="/api/v1/users/eve@x.org/identities")).json()["error"]["code"] == "session_required"
        gone = await desk.say("DELETE", f"{PATH}/work", eve)
        assert gone.json()["error"]["code"] == "role_too_high"


async def test_an_organisation_links_nobody_to_the_provider_of_another(visit):
    """Whoever could would be handed the sign-ons of somebody else's people."""
    async with visit() as desk:
        made = await desk.say("POST", "/api/v1/orgs", desk.place.key, json={"name": "acme", "admin": "boss@acme.example"})
        boss = await accept(desk, made)
        for subject in (OID, OTHER):
            answer = await link(desk, boss, path="/api/v1/users/boss@acme.example/identities", subject=subject)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    async with visit(org="acme") as desk:
        answer = await link(desk, boss, path="/api/v1/users/boss@acme.example/identities")
        assert answer.status_code == 201, answer.text
        await ada_is_here(desk)
        assert (await link(desk)).status_code == 404


async def test_what_came_of_it_ends_with_it(visit, provider):
    async with visit(teams="g1=nlp") as desk:
        invited = await ada_is_here(desk)
        assert (await link(desk)).status_code == 201
        own = (await desk.say("POST", "/api/v1/me/keys", invited, json={"name": "laptop"})).json()["key"]
        signed, token = await desk.enter(groups=["g1"]), provider.token()
        assert (await desk.say("GET", "/api/v1/me", token)).status_code == 200
        assert [row for row in await desk.rows(RoleBinding) if row.provider] != []
        gone = await desk.say("DELETE", f"{PATH}/work", desk.place.key)
        assert (gone.status_code, gone.json()["subject"]) == (200, OID)
        assert (await desk.code("GET", "/api/v1/me", signed))[1] == "revoked_session"
        assert (await desk.code("GET", "/api/v1/me", token)) == (403, "address_taken")
        assert await desk.refused() == (403, "address_taken")
        assert (await desk.say("GET", "/api/v1/me", invited)).status_code == 200, "of the provider it had nothing"
        assert (await desk.say("GET", "/api/v1/me", own)).status_code == 200
        assert (await desk.rows(Identity), [row for row in await desk.rows(RoleBinding) if row.provider]) == ([], [])
        assert [row.refresh for row in await desk.rows(Session)] == [None, None]
        (entry,) = await told(desk, "identity.unlink")
        assert entry.detail["sessions"] == 1
        assert (await desk.say("DELETE", f"{PATH}/work", desk.place.key)).status_code == 404
        assert (await link(desk)).status_code == 201
        assert (await desk.say("GET", "/api/v1/me", await desk.enter())).json()["user"] == ADA


async def test_signing_out_everywhere_ends_all_sessions_of_ones_own(visit):
    async with visit() as desk:
        first, second = await desk.enter(), await desk.enter()
        other = await desk.enter(oid=OTHER, preferred_username="bob@corp.example")
        made = (await desk.say("POST", "/api/v1/me/keys", first, json={"name": "laptop"})).json()["key"]
        assert (await desk.code("DELETE", "/api/v1/me/sessions", made)) == (403, "session_required")
        ended = await desk.say("DELETE", "/api/v1/me/sessions", first)
        assert (ended.status_code, ended.json()) == (200, {"ended": 2})
        for session in (first, second):
            assert await desk.code("GET", "/api/v1/me", session) == (401, "revoked_session")
        assert (await desk.say("GET", "/api/v1/me", other)).status_code == 200
        assert (await desk.say("GET", "/api/v1/me", made)).status_code == 200
