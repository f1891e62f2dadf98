"""What people are by the word of a provider, and what is left of it when the word is another one."""

from mindgw import clock
from mindgw.store.tables import Identity, Key, RoleBinding, Team, User
from tests.identity_provider import OTHER
from tests.server.site import site
from tests.server.test_rechecks import BOB, identity, look, told
from tests.server.test_sign_on import ADA, ROLES, Desk, ago, everything, provider, statuses, visit

__all__ = ["provider", "visit"]


async def team_names(desk):
    return {team.id: team.name for team in await desk.rows(Team)}


async def test_a_provider_with_another_name_is_the_same(tmp_path, provider):
    data, settings = tmp_path / "data", provider.settings(**ROLES)
    async with site(data, settings) as place:
        desk = Desk(place, provider)
        session = await desk.enter(roles=["Gw.User"], groups=["g-nlp"])
    async with site(data, settings.replace("  work:", "  other:")) as place:
        desk = Desk(place, provider)
        assert [row.team_id for row in await desk.rows(RoleBinding) if row.team_id] != []
        provider.person["groups"] = []
        await look(desk, 1900)
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200
        assert [row.team_id for row in await desk.rows(RoleBinding) if row.team_id] == []


async def test_settings_that_say_nothing_any_more_leave_nothing_that_they_gave(tmp_path, provider):
    data = tmp_path / "data"
    async with site(data, provider.settings(roles="Gw.Admin=admin", teams="g-nlp=nlp")) as place:
        await Desk(place, provider).enter(roles=["Gw.Admin"], groups=["g-nlp"])
        await Desk(place, provider).enter(roles=["Gw.Admin"], **BOB)
    async with site(data, provider.settings()) as place:
        desk = Desk(place, provider)
        assert (await place.call("PATCH", "/users/bob@corp.example", json={"role": "operator"})).status_code == 200
        await desk.enter()
        await desk.enter(oid=(await desk.rows(Identity))[0].subject, preferred_username=ADA)
        roles = {user.email: user.role for user in await desk.rows(User)}
        assert (roles[ADA], roles["bob@corp.example"]) == ("user", "operator")
        assert [row.team_id for row in await desk.rows(RoleBinding) if row.team_id] == []


async def test_a_token_that_leaves_claims_out_takes_nothing_away(visit, provider):
    async with visit(**{**ROLES, "default_role": "user"}) as desk:

        async def are():
            names = await team_names(desk)
            return (await desk.user()).role, [names[row.team_id] for row in await desk.rows(RoleBinding) if row.team_id]

        assert await desk.code("GET", "/v1/models", provider.token(roles="gone", groups="gone")) == (200, "")
        assert await are() == ("user", []), "who never signed in is what everybody is"
        await desk.enter(roles=["Gw.Admin"], groups=["g-nlp"])
        assert await desk.code("GET", "/v1/models", provider.token(roles="gone", groups="gone", jti="1")) == (200, "")
        assert await are() == ("admin", ["nlp"])
        changes = len(await told(desk, "user.update"))
        assert await desk.code("GET", "/v1/models", provider.token(roles=[], groups=[], jti="2")) == (200, "")
        assert await are() == ("user", []), "what is there and empty is said"
        assert len(await told(desk, "user.update")) > changes


async def test_who_has_no_role_but_by_a_claim_keeps_it_with_a_token_that_says_none(visit, provider):
    async with visit(**ROLES) as desk:
        assert await desk.code("GET", "/v1/models", provider.token(roles="gone")) == (401, "not_assigned")
        await desk.enter(roles=["Gw.User"])
        assert await desk.code("GET", "/v1/models", provider.token(roles="gone", jti="1")) == (200, "")
        assert await desk.code("GET", "/v1/models", provider.token(roles=[], jti="2")) == (401, "not_assigned")
        await ago(desk, 90_000)
        assert await desk.code("GET", "/v1/models", provider.token(roles="gone", jti="3")) == (401, "not_assigned"), "not for ever"


async def test_keys_leave_a_team_with_their_person(visit, provider):
    async with visit(**ROLES) as desk:
        session = await desk.enter(roles=["Gw.User"], groups=["g-nlp"])
        own = (await desk.say("POST", "/api/v1/me/keys", session, json={"name": "own"})).json()
        old = (await desk.say("POST", "/api/v1/me/keys", session, json={"name": "old"})).json()
        assert (own["team"], (await desk.say("DELETE", f"/api/v1/me/keys/{old['id']}", session)).status_code) == ("nlp", 200)
        provider.person["groups"] = []
        await look(desk, 1900)
        names = await team_names(desk)
        assert {names[key.team_id] for key in await desk.rows(Key) if key.user_id == (await desk.user()).id} == {"default"}
        (entry,) = [one for one in await told(desk, "user.update") if one.detail.get("keys")]
        assert entry.detail["keys"] == [own["id"]]
        made = await desk.say("POST", "/api/v1/me/keys", session, json={"name": "again", "team": "nlp"})
        assert made.status_code in (400, 403), "not by an old key either"
        assert (await desk.say("GET", "/v1/models", own["key"])).status_code == 200


async def test_keys_stay_in_a_team_that_somebody_here_has_given(visit, provider):
    async with visit(**ROLES) as desk:
        session = await desk.enter(roles=["Gw.User"], groups=["g-nlp"])
        own = (await desk.say("POST", "/api/v1/me/keys", session, json={"name": "own"})).json()
        bound = await desk.place.call("POST", "/roles/operator/bindings", json={"user": ADA, "team": "nlp"})
        assert bound.status_code == 201, bound.text
        provider.person["groups"] = []
        await look(desk, 1900)
        names = await team_names(desk)
        assert [names[key.team_id] for key in await desk.rows(Key) if key.id == own["id"]] == ["nlp"]


async def test_the_last_administrator_goes_too_and_it_is_told(visit, provider):
    async with visit(org="acme", roles="Gw.Admin=admin, Gw.User=user", default_role="none") as desk:
        await desk.place.call("POST", "/orgs", json={"name": "acme"})
        await desk.enter(roles=["Gw.Admin"])
        provider.person["roles"] = ["Gw.User"]
        await look(desk, 1900)
        (entry,) = [one for one in await told(desk, "user.update") if one.detail.get("role") == "user"]
        assert entry.detail["last_admin"] is True
        await desk.enter(roles=["Gw.Admin"])
        provider.person["roles"] = []
        await look(desk, 1900)
        (entry,) = await told(desk, "user.lapse")
        assert entry.detail["last_admin"] is True


async def test_whoever_is_removed_does_not_come_back_by_a_token_of_before(visit, provider):
    async with visit() as desk:
        token = provider.token()
        assert (await desk.say("GET", "/api/v1/me", token)).status_code == 200
        assert (await desk.place.call("DELETE", f"/users/{ADA}")).status_code == 200
        assert await desk.code("GET", "/api/v1/me", token) == (401, "sign_on_lost")
        assert await desk.code("GET", "/api/v1/me", provider.token(jti="x", iat=int(clock.wall()) - 5)) == (401, "sign_on_lost")
        assert await desk.rows(Identity) == []
        await desk.place.call("POST", "/users", json={"email": ADA})
        assert await desk.refused() == (403, "address_taken"), "an invitation makes nobody the one of before"
        assert (await desk.place.call("DELETE", f"/users/{ADA}")).status_code == 200
        assert (await desk.sign_on()).status_code == 201


async def test_another_provider_does_not_bring_back_whom_one_has_put_out(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        mine = await identity(desk)
        async with desk.place.database.write() as db:
            db.add(Identity(**mine.model_dump() | {"id": "other", "subject": OTHER, "refresh": None, "due_at": None}))
        provider.thrown_out = True
        await look(desk, 1900)
        assert await statuses(desk, ways) == [401] * 4
        provider.thrown_out = False
        assert await desk.refused(oid=OTHER) == (401, "sign_on_lost")
        provider.person["oid"] = mine.subject
        assert (await desk.sign_on()).status_code == 201
