"""People whom a provider knows, over the API of the real server: in, what they may do, and out again."""

import asyncio
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from sqlmodel import select

from mindgw import clock
from mindgw.config import Keys
from mindgw.control import key_policy
from mindgw.control.idp.source import UNKNOWN
from mindgw.control.sign_on import BEGUN, POLLED
from mindgw.errors import RateLimited
from mindgw.store.tables import AuditEntry, Identity, Key, RoleBinding, Session, Team, Ticket, User
from mindgw_agent import tokens
from tests.identity_provider import OID, STRANGER, Provider
from tests.server.site import site

ADA = "ada@corp.example"
BACK = "http://localhost:4711"


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


class Desk:
    """Somebody at a terminal."""

    def __init__(self, place, provider):
        self.place, self.provider = place, provider
        self.http = httpx.AsyncClient(transport=place.http._transport, base_url="http://127.0.0.1:8420", timeout=60)

    async def say(self, method, path, credential="", **more):
        headers = {**({"authorization": f"Bearer {credential}"} if credential else {}), **more.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **more)

    async def code(self, method, path, credential="", **more):
        answer = await self.say(method, path, credential, **more)
        return answer.status_code, answer.json().get("error", {}).get("code", "") if answer.content else ""

    async def begin(self, redirect_uri=BACK, provider="work"):
        answer = await self.say("POST", "/api/v1/sign-on/begin", json={"provider": provider, "redirect_uri": redirect_uri})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def browse(self, begun):
        """What the browser brings back."""
        async with httpx.AsyncClient(timeout=60) as browser:
            answer = await browser.get(begun["url"])
        assert answer.headers["location"].startswith(BACK), answer.text
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def finish(self, begun, back):
        return await self.say("POST", "/api/v1/sign-on/finish", json={"ticket": begun["ticket"], **back})

    async def sign_on(self, **person):
        """All of it; the answer."""
        self.provider.person |= person
        begun = await self.begin()
        return await self.finish(begun, await self.browse(begun))

    async def enter(self, **person):
        answer = await self.sign_on(**person)
        assert answer.status_code == 201, answer.text
        return answer.json()["session"]

    async def refused(self, **person):
        answer = await self.sign_on(**person)
        return answer.status_code, answer.json()["error"]["code"]

    async def rows(self, table):
        async with self.place.database.read() as session:
            return (await session.exec(select(table))).all()

    async def user(self, email=ADA):
        return next(user for user in await self.rows(User) if user.email == email)

    async def actions(self):
        return [entry.action for entry in sorted(await self.rows(AuditEntry), key=lambda entry: entry.seq)]


@pytest.fixture
def visit(tmp_path, provider):
    """Opens a server with settings of the provider; it ends in the task that began it."""

    def open(**settings):
        class Visit:
            async def __aenter__(self):
                self.site = site(tmp_path / "data", provider.settings(**settings))
                return Desk(await self.site.__aenter__(), provider)

            async def __aexit__(self, *wrong):
                await self.site.__aexit__(*wrong)

        return Visit()

    return open


# -- in


async def test_somebody_signs_in_and_is_made_on_the_way(visit):
    async with visit() as desk:
        listed = (await desk.say("GET", "/api/v1/sign-on")).json()["items"]
        assert listed == [{"name": "work", "title": "work", "redirect": "http://localhost"}]
        answer = await desk.sign_on()
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert (made["user"], made["role"], made["renewable"], made["expires_in"]) == (ADA, "user", True, 3600)
        me = (await desk.say("GET", "/api/v1/me", made["session"])).json()
        assert (me["kind"], me["user"], me["name"], me["roles"]) == ("session", ADA, "Ada", ["user"])
        again = await desk.enter(preferred_username="ada.king@corp.example", name="Ada King")
        assert (await desk.say("GET", "/api/v1/me", again)).json()["user"] == ADA, "an address is no identity"
        assert len(await desk.rows(Identity)) == 1
        told = [action for action in await desk.actions() if action.startswith(("user", "session"))]
        assert told[-3:] == ["user.create", "session.create", "session.create"]


async def test_what_came_back_is_good_once_and_for_who_asked(visit):
    async with visit() as desk:
        begun, other = await desk.begin(), await desk.begin()
        back, others = await desk.browse(begun), await desk.browse(other)
        assert (await desk.finish(begun, {**back, "state": others["state"]})).json()["error"]["code"] == "wrong_state"
        assert (await desk.finish(other, back)).json()["error"]["code"] == "wrong_state"
        assert (await desk.finish(begun, {**back, "state": ""})).json()["error"]["code"] == "wrong_state"
        assert (await desk.finish(begun, {**back, "code": others["code"]})).json()["error"]["code"] == "sign_on_refused", "another verifier"
        assert (await desk.finish(begun, back)).json()["error"]["code"] == "used_sign_on"
        begun = await desk.begin()
        back = await desk.browse(begun)
        answers = await asyncio.gather(*(desk.finish(begun, back) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 401, 401, 401, 401]
        assert (await desk.finish(begun, back)).json()["error"]["code"] == "used_sign_on"
        assert len(await desk.rows(Session)) == 1
        assert len(await desk.rows(Ticket)) == 2


@pytest.mark.parametrize("ticket", ["", "x", "é", "A" * 400, "A" * 3999])
async def test_what_is_no_ticket_begins_nothing(visit, ticket, provider):
    async with visit() as desk:
        assert (await desk.finish({"ticket": ticket}, {"code": "c", "state": "s"})).json()["error"]["code"] == "invalid_sign_on"
        assert provider.asked == []


async def test_a_ticket_of_another_kind_or_too_old_is_none(visit, monkeypatch):
    async with visit() as desk:
        device = (await desk.say("POST", "/api/v1/sign-on/begin", json={"provider": "work"})).json()
        assert (await desk.finish(device, {"code": "c", "state": ""})).json()["error"]["code"] == "invalid_sign_on"
        begun = await desk.begin()
        back = await desk.browse(begun)
        monkeypatch.setattr(desk.place.server.app.state.sign_on, "_now", lambda: clock.wall() + 601)
        assert (await desk.finish(begun, back)).json()["error"]["code"] == "expired_sign_on"
        changed = begun["ticket"][:-6] + ("AAAAAA" if begun["ticket"][-6:] != "AAAAAA" else "BBBBBB")
        assert (await desk.finish({"ticket": changed}, back)).json()["error"]["code"] == "invalid_sign_on"


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "http://evil.example:4711", "https://localhost:4711", "http://localhost", "http://localhost:4711/x", "http://localhost:4711?x=1",
        "http://localhost:4711#x", "http://u@localhost:4711", "http://127.0.0.1:4711", "http://localhost:0", "http://localhost:99999",
        "http://localhost:4711@evil.example", "javascript:alert(1)", "http://localhost.evil.example:4711", "http://[::1]:4711", "x",
    ],
)  # fmt: skip
async def test_a_code_is_led_to_the_machine_itself_alone(visit, redirect_uri):
    async with visit() as desk:
        assert await desk.code("POST", "/api/v1/sign-on/begin", json={"provider": "work", "redirect_uri": redirect_uri}) == (
            400,
            "invalid_request",
        )


async def test_a_port_that_the_settings_name_is_the_only_one(visit):
    async with visit(redirect="http://127.0.0.1:4711/back") as desk:
        assert (await desk.begin("http://127.0.0.1:4711/back"))["url"]
        wished = {"provider": "work", "redirect_uri": "http://127.0.0.1:4712/back"}
        assert await desk.code("POST", "/api/v1/sign-on/begin", json=wished) == (400, "invalid_request")
        assert await desk.code("POST", "/api/v1/sign-on/begin", json={"provider": "nobody"}) == (404, "not_found")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"nonce": "another"}, "wrong_nonce"), ({"nonce": "gone"}, "wrong_nonce"), ({"aud": "other"}, "wrong_audience"),
        ({"aud": ["x"]}, "wrong_audience"), ({"tid": "other"}, "wrong_tenant"), ({"iss": "https://evil.example"}, "wrong_issuer"),
        ({"exp": 1}, "expired_token"), ({"iat": 2**35, "nbf": "gone"}, "token_from_the_future"), ({"oid": "gone"}, "no_subject"),
        ({"sub": "gone"}, "invalid_token"), ({"acct": 1}, "guest_refused"), ({"idp": "live.com"}, "guest_refused"),
    ],
)  # fmt: skip
async def test_an_id_token_that_is_not_as_it_must_be_lets_nobody_in(visit, provider, changes, code):
    async with visit() as desk:
        provider.id_token = changes
        assert await desk.refused() == (401, code)
        assert await desk.rows(Session) == []
        assert [user.email for user in await desk.rows(User)] == ["admin@localhost"]


async def test_who_says_that_they_sent_somebody_is_compared(visit, provider):
    async with visit() as desk:
        provider.answer = {"iss": "https://evil.example"}
        assert await desk.refused() == (401, "wrong_issuer")
        provider.answer = {"iss": provider.issuer}
        assert (await desk.sign_on()).status_code == 201


async def test_a_provider_that_says_who_it_is_must_always_do_so(visit, provider):
    async with visit() as desk:
        provider.metadata = {"authorization_response_iss_parameter_supported": True}
        assert await desk.refused() == (401, "wrong_issuer")


async def test_somebody_signs_in_with_another_device(visit, provider):
    async with visit() as desk:
        begun = (await desk.say("POST", "/api/v1/sign-on/begin", json={"provider": "work"})).json()
        assert (begun["user_code"], begun["interval"], begun["url"], begun["state"]) == ("ABCD-1234", 1, "", "")
        assert begun["verification_uri"] == f"{provider.root}/typed"
        (device,) = provider.devices
        assert device not in begun["ticket"]
        waiting = await desk.say("POST", "/api/v1/sign-on/poll", json={"ticket": begun["ticket"]})
        assert (waiting.status_code, waiting.json()) == (202, {"state": "pending", "slower": 0})
        provider.devices[device] = True
        done = await desk.say("POST", "/api/v1/sign-on/poll", json={"ticket": begun["ticket"]})
        assert (done.status_code, done.json()["user"]) == (201, ADA)
        assert await desk.code("POST", "/api/v1/sign-on/poll", json={"ticket": begun["ticket"]}) == (401, "sign_on_refused")


async def test_where_the_settings_forbid_it_nobody_signs_in_with_another_device(visit, provider):
    async with visit(device="no") as desk:
        assert await desk.code("POST", "/api/v1/sign-on/begin", json={"provider": "work"}) == (409, "no_device_flow")


@pytest.mark.parametrize(
    ("trouble", "where", "code"),
    [
        ("broken", "/token", "provider_unreachable"), ("garbage", "/token", "provider_failed"), ("huge", "/token", "provider_failed"),
        ("redirect", "/token", "provider_failed"), ("broken", "/keys", "provider_unreachable"), ("garbage", "/keys", "provider_failed"),
    ],
)  # fmt: skip
async def test_a_provider_that_misbehaves_lets_nobody_in(visit, provider, trouble, where, code):
    async with visit() as desk:
        provider.trouble, provider.troubled = trouble, (where,)
        assert await desk.refused() == (502, code)
        assert await desk.rows(Session) == []


async def test_an_address_begins_no_more_sign_ons_than_it_may(visit):
    async with visit() as desk:
        sign_on = desk.place.server.app.state.sign_on
        for _ in range(30):
            sign_on._pace("192.0.2.7", BEGUN)
        with pytest.raises(RateLimited, match="too many sign-ons"):
            sign_on._pace("192.0.2.7", BEGUN)
        sign_on._pace("192.0.2.7", POLLED)
        sign_on._pace("192.0.2.8", BEGUN)
        for _ in range(100):
            sign_on._pace("127.0.0.1", BEGUN)


async def test_who_shows_rubbish_too_often_is_not_listened_to(visit):
    async with visit() as desk:
        transport = httpx.ASGITransport(desk.place.server.app, raise_app_exceptions=False, client=("192.0.2.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://gw") as far:
            said = {"ticket": "x", "code": "c", "state": "s"}
            codes = [(await far.post("/api/v1/sign-on/finish", json=said)).status_code for _ in range(62)]
        assert codes[:60] == [401] * 60
        assert codes[-1] == 429


# -- what they are


ROLES = {"roles": "Gw.Admin=admin, Gw.Ops=operator, Gw.User=user", "default_role": "none", "teams": "g-nlp=nlp, g-ops=ops"}


async def test_roles_and_teams_are_what_the_newest_word_says(visit):
    async with visit(**ROLES) as desk:
        first = await desk.enter(roles=["Gw.User", "Gw.Ops"], groups=["g-nlp", "unheard"])
        assert (await desk.say("GET", "/api/v1/me", first)).json()["roles"] == ["operator"]
        teams = {team.id: team.name for team in await desk.rows(Team)}
        bound = {(teams[row.team_id], row.role, row.identity_id != "") for row in await desk.rows(RoleBinding)}
        assert bound == {("nlp", "user", True)}
        made = await desk.say("POST", "/api/v1/me/keys", first, json={"name": "own"})
        assert made.json()["team"] == "nlp", "what is said of the team holds for own keys"
        await desk.enter(roles=["Gw.User"], groups=["g-ops"])
        me = (await desk.say("GET", "/api/v1/me", first)).json()
        assert me["roles"] == ["user"], "at once, for sessions of before, too"
        teams = {team.id: team.name for team in await desk.rows(Team)}
        assert {teams[row.team_id] for row in await desk.rows(RoleBinding)} == {"ops"}
        actions = await desk.actions()
        assert "user.create" in actions
        assert actions.count("user.update") == 3
        own = next(key for key in await desk.rows(Key) if key.name == "own")
        assert teams[own.team_id] == "ops", "no key stays in a team that its person is in no longer"


async def test_where_the_settings_say_nothing_of_roles_people_do(visit):
    async with visit() as desk:
        session = await desk.enter()
        assert (await desk.place.call("PATCH", f"/users/{ADA}", json={"role": "operator"})).status_code == 200
        again = await desk.enter()
        for held in (session, again):
            assert (await desk.say("GET", "/api/v1/me", held)).json()["roles"] == ["operator"]


async def test_who_has_no_role_by_a_claim_does_not_come_in(visit):
    async with visit(**ROLES) as desk:
        assert await desk.refused() == (401, "not_assigned")
        assert await desk.refused(roles=["Gw.Guest"]) == (401, "not_assigned")
        assert len(await desk.rows(User)) == 1


async def test_groups_that_are_left_out_are_not_taken_for_none(visit):
    async with visit(**ROLES) as desk:
        session = await desk.enter(roles=["Gw.User"], groups=["g-nlp"])
        overage = {
            "_claim_names": {"groups": "s"},
            "_claim_sources": {"s": {"endpoint": f"{desk.provider.root}/elsewhere"}},
            "groups": "gone",
        }
        assert await desk.refused(**overage) == (401, "groups_overage")
        assert "/elsewhere" not in desk.provider.asked
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200, "nobody is put out for having too many groups"


async def test_groups_that_are_left_out_are_asked_for_where_the_settings_say(visit, provider):
    settings = {**ROLES, "graph": provider.root}
    overage = {"_claim_names": {"groups": "s"}, "_claim_sources": {"s": {"endpoint": f"{provider.root}/elsewhere"}}, "groups": "gone"}
    async with visit(**settings) as desk:
        provider.members = ["g-ops", "another"]
        session = await desk.enter(roles=["Gw.User"], **overage)
        assert provider.told == [(["g-nlp", "g-ops"], "opaque")]
        assert f"{provider.root}/User.Read" in (await desk.begin())["url"].replace("%3A", ":").replace("%2F", "/")
        assert "/elsewhere" not in provider.asked
        teams = {team.id: team.name for team in await desk.rows(Team)}
        assert {teams[row.team_id] for row in await desk.rows(RoleBinding)} == {"ops"}
        provider.members = ["g-nlp"]
        await ago(desk, 3000)
        assert (await desk.say("POST", "/api/v1/me/sessions/renew", session)).status_code == 200
        teams = {team.id: team.name for team in await desk.rows(Team)}
        assert {teams[row.team_id] for row in await desk.rows(RoleBinding)} == {"nlp"}
        provider.members = None
        assert await desk.refused() == (502, "provider_failed")
        assert await desk.code("GET", "/v1/models", provider.token()) == (401, "groups_overage"), "a token alone cannot be asked about"


async def test_an_address_that_is_somebodys_makes_nobody_that_one(visit):
    async with visit() as desk:
        await desk.place.new_key("k", user=ADA)
        assert await desk.refused() == (403, "address_taken")
        assert {row.user_id for row in await desk.rows(Identity)}.isdisjoint({(await desk.user()).id})


@pytest.mark.parametrize(("settings", "code"), [({"org": "nowhere"}, "org_missing"), ({"default_role": "captain"}, "role_missing")])
async def test_settings_that_name_what_is_not_there_let_nobody_in(visit, settings, code):
    async with visit(**settings) as desk:
        assert await desk.refused() == (403, code)


async def test_people_of_a_provider_belong_to_its_organisation(visit):
    async with visit(org="acme") as desk:
        assert (await desk.place.call("POST", "/orgs", json={"name": "acme"})).status_code == 201
        session = await desk.enter()
        assert (await desk.say("GET", "/api/v1/me", session)).json()["org"] == "acme"
        assert (await desk.place.call("GET", f"/users/{ADA}")).status_code == 404


# -- out


async def ago(desk, seconds):
    """Moves all that is stored of sessions back in time."""
    async with desk.place.database.write() as session:
        for row in (await session.exec(select(Session))).all():
            row.expires_at -= timedelta(seconds=seconds)
            session.add(row)
        for row in (await session.exec(select(Identity))).all():
            for name in ("claims_at", "final_at", "vouched_at", "due_at", "checked_at"):
                at = getattr(row, name)
                setattr(row, name, at - timedelta(seconds=seconds) if at is not None else None)
            session.add(row)
    desk.place.server.app.state.sessions.forget()


async def test_a_session_is_renewed_before_it_ends(visit):
    async with visit() as desk:
        session = await desk.enter()
        await ago(desk, 3000)
        renewed = await desk.say("POST", "/api/v1/me/sessions/renew", session)
        assert renewed.status_code == 200, renewed.text
        assert 3500 < renewed.json()["expires_in"] <= 3600
        asked = desk.provider.asked.count("/token")
        assert (await desk.say("POST", "/api/v1/me/sessions/renew", session)).json()["expires_in"] > 3500
        assert desk.provider.asked.count("/token") == asked, "once is enough"
        await ago(desk, 3000)
        assert (await desk.say("POST", "/api/v1/me/sessions/renew", session)).status_code == 200, "the refresh token is another one by now"
        await ago(desk, 4000)
        assert await desk.code("POST", "/api/v1/me/sessions/renew", session) == (401, "expired_session")
        assert await desk.code("POST", "/api/v1/me/sessions/renew", desk.place.key) == (403, "session_required")


async def test_of_many_who_renew_at_once_one_asks(visit):
    async with visit() as desk:
        session = await desk.enter()
        await ago(desk, 3000)
        asked = desk.provider.asked.count("/token")
        answers = await asyncio.gather(*(desk.say("POST", "/api/v1/me/sessions/renew", session) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert desk.provider.asked.count("/token") == asked + 1


async def test_the_server_asks_by_itself(visit):
    async with visit() as desk:
        session = await desk.enter()
        await desk.place.server.app.state.rechecks.all()
        assert desk.provider.asked.count("/token") == 1, "not yet"
        await ago(desk, 3000)
        await desk.place.server.app.state.rechecks.all()
        assert (await desk.rows(Session))[0].expires_at > clock.utcnow() + timedelta(minutes=55)
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200


async def everything(desk, session):
    """Ways in that one person has: their session, a key, a token of the provider."""
    made = await desk.say("POST", "/api/v1/me/keys", session, json={"name": "own"})
    assert made.status_code == 201, made.text
    key = made.json()["key"]
    token = desk.provider.token()
    ways = [("/api/v1/me", session), ("/v1/models", key), ("/v1/models", token), ("/api/v1/me", token)]
    assert [(await desk.say("GET", path, held)).status_code for path, held in ways] == [200] * 4
    return ways


async def statuses(desk, ways):
    return [(await desk.say("GET", path, held)).status_code for path, held in ways]


@pytest.mark.parametrize("why", ["thrown out", "no role"])
async def test_whoever_the_provider_does_not_vouch_for_any_more_loses_everything(visit, provider, why):
    async with visit(**ROLES) as desk:
        ways = await everything(desk, await desk.enter(roles=["Gw.User"]))
        if why == "thrown out":
            provider.thrown_out = True
        else:
            provider.person["roles"] = []
        await ago(desk, 3000)
        assert await statuses(desk, ways) == [200] * 4
        await desk.place.server.app.state.rechecks.all()
        assert await statuses(desk, ways) == [401] * 4
        assert (await desk.user()).state == "lapsed"
        assert (await desk.place.call("GET", f"/users/{ADA}")).json()["state"] == "lapsed"
        assert "user.lapse" in await desk.actions()
        provider.thrown_out = False
        provider.person["roles"] = ["Gw.User"]
        again = await desk.enter()
        assert await statuses(desk, [("/api/v1/me", again), *ways[1:]]) == [200] * 4, "keys come back with their person"
        assert "user.return" in await desk.actions()


async def test_a_provider_that_is_away_puts_nobody_out_before_their_time(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.trouble = "broken"
        await ago(desk, 2000)
        await desk.place.server.app.state.rechecks.all()
        assert await desk.code("POST", "/api/v1/me/sessions/renew", ways[0][1]) == (200, ""), "somebody has just asked"
        await ago(desk, 60)
        assert await desk.code("POST", "/api/v1/me/sessions/renew", ways[0][1]) == (502, "provider_unreachable")
        assert await statuses(desk, ways) == [200] * 4
        provider.trouble = ""
        await ago(desk, 60)
        assert (await desk.say("POST", "/api/v1/me/sessions/renew", ways[0][1])).json()["expires_in"] > 3500


async def test_whoever_is_disabled_here_stays_out_whatever_the_provider_says(visit):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        assert (await desk.place.call("POST", f"/users/{ADA}/disable")).status_code == 200
        assert await statuses(desk, ways) == [401] * 4, "at once"
        assert await desk.refused() == (401, "user_disabled")
        assert await desk.code("GET", "/v1/models", desk.provider.token(jti="another")) == (401, "user_disabled")
        assert (await desk.place.call("POST", f"/users/{ADA}/enable")).status_code == 200
        assert await statuses(desk, ways[1:]) == [200] * 3
        assert (await desk.sign_on()).status_code == 201


async def test_whoever_is_removed_comes_back_as_somebody_new(visit):
    async with visit(**ROLES) as desk:
        ways = await everything(desk, await desk.enter(roles=["Gw.Ops"]))
        assert (await desk.place.call("DELETE", f"/users/{ADA}")).status_code == 200
        assert await statuses(desk, ways[:2]) == [401] * 2
        desk.provider.person["roles"] = ["Gw.User"]
        session = await desk.enter()
        assert (await desk.say("GET", "/api/v1/me", session)).json()["roles"] == ["user"]
        assert (await desk.say("GET", "/v1/models", ways[1][1])).status_code == 401, "the keys of before are gone for good"


async def test_a_session_has_an_end_however_often_it_is_renewed(visit):
    async with visit() as desk:
        session = await desk.enter()
        async with desk.place.database.write() as db:
            for row in (await db.exec(select(Session))).all():
                row.ends_at = clock.utcnow() + timedelta(minutes=20)
                db.add(row)
        await ago(desk, 3000)
        renewed = await desk.say("POST", "/api/v1/me/sessions/renew", session)
        assert 1100 < renewed.json()["expires_in"] <= 1200


async def test_what_another_key_has_sealed_renews_nothing(visit):
    async with visit() as desk:
        session = await desk.enter()
        async with desk.place.database.write() as db:
            for row in (await db.exec(select(Identity))).all():
                row.refresh = b"x" * 80
                db.add(row)
        await ago(desk, 3000)
        await desk.place.server.app.state.rechecks.all()
        assert await desk.code("POST", "/api/v1/me/sessions/renew", session) == (409, "not_renewable")
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200


async def test_a_session_of_an_invitation_is_not_renewed(visit):
    async with visit() as desk:
        made = await desk.place.call("POST", "/users", json={"email": "bob@x.org"})
        entered = await desk.say("POST", "/api/v1/invitations/accept", json={"invitation": made.json()["invitation"]})
        assert await desk.code("POST", "/api/v1/me/sessions/renew", entered.json()["session"]) == (409, "not_renewable")


async def test_nothing_of_the_provider_lies_open_in_the_database(visit, provider):
    async with visit() as desk:
        await desk.enter()
        (held,) = provider._refresh
        assert (await desk.rows(Identity))[0].refresh is not None
        kept = [str(row.model_dump()) for table in (Session, Identity, User, AuditEntry, Key, Ticket) for row in await desk.rows(table)]
        assert [text for text in kept if held in text] == []
        assert [key.last4 for key in await desk.rows(Key) if key.provider] == [""]


# -- tokens in place of keys


async def test_a_token_is_its_person_wherever_a_key_is(visit):
    async with visit() as desk:
        token = desk.provider.token()
        me = (await desk.say("GET", "/api/v1/me", token)).json()
        assert (me["kind"], me["user"], me["roles"], me["key"]["name"]) == ("key", ADA, ["user"], "sign-on work"), "made on the way"
        for carrier in ("x-api-key", "api-key"):
            assert (await desk.http.get("/v1/models", headers={carrier: token})).status_code == 200
        assert await desk.code("GET", "/api/v1/users", token) == (403, "forbidden")
        both = {"authorization": f"Bearer {token}", "x-api-key": desk.place.key}
        assert (await desk.http.get("/api/v1/me", headers=both)).json()["error"]["code"] == "ambiguous_credentials"
        assert (await desk.place.call("GET", "/keys/sign-on work")).json()["user"] == ADA


async def test_a_token_makes_nothing_that_lasts(visit):
    async with visit(roles="Gw.Admin=admin") as desk:
        token = desk.provider.token(roles=["Gw.Admin"])
        assert (await desk.say("GET", "/api/v1/users", token)).status_code == 200
        assert await desk.code("POST", "/api/v1/keys", token, json={"name": "k"}) == (403, "session_required")
        assert await desk.code("POST", "/api/v1/users", token, json={"email": "a@b.c"}) == (403, "session_required")
        assert await desk.code("POST", "/api/v1/me/keys", token, json={"name": "k"}) == (403, "session_required")
        assert await desk.code("POST", "/api/v1/me/token", token) == (403, "session_required")
        key = (await desk.place.call("GET", "/keys/sign-on work")).json()
        assert (await desk.place.call("POST", f"/keys/{key['id']}/rotate", json={})).json()["error"]["code"] == "no_secret"


async def test_an_older_token_does_not_take_back_what_a_newer_one_said(visit):
    async with visit(**ROLES) as desk:
        now = int(clock.wall())
        old = desk.provider.token(roles=["Gw.Admin"], iat=now - 30)
        new = desk.provider.token(roles=["Gw.User"], iat=now - 10)
        for token, role in ((old, "admin"), (new, "user"), (old, "user"), (desk.provider.token(roles=["Gw.Admin"], iat=now - 20), "user")):
            assert (await desk.say("GET", "/api/v1/me", token)).json()["roles"] == [role]


async def test_a_token_whose_claims_do_not_do_is_refused_and_takes_nothing_away(visit):
    async with visit(**ROLES) as desk:
        session = await desk.enter(roles=["Gw.User"])
        assert await desk.code("GET", "/v1/models", desk.provider.token(roles=[])) == (401, "not_assigned")
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200


async def test_a_token_that_was_good_is_remembered_until_it_ends(visit, provider):
    async with visit() as desk:
        now = int(clock.wall())
        token = provider.token(exp=now + 300)
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200
        auth = desk.place.pipeline._auth
        assert auth.known(token, clock.monotonic()).user == ADA
        auth._now = lambda: clock.utcnow() + timedelta(seconds=359)
        assert auth.known(token, clock.monotonic()) is not None, "a minute of skew"
        auth._now = lambda: clock.utcnow() + timedelta(seconds=361)
        assert auth.known(token, clock.monotonic()) is None
        desk.place.server.app.state.sign_on.tokens._now = lambda: clock.wall() + 361
        assert await desk.code("GET", "/v1/models", token) == (401, "expired_token")


async def test_tokens_with_one_beginning_are_not_taken_for_each_other(visit, provider):
    async with visit() as desk:
        token = provider.token()
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200
        for cut in (20, 40, 60, len(token) - 20):
            wrong = token[:cut] + ("A" if token[cut] != "A" else "B") + token[cut + 1 :]
            assert (await desk.say("GET", "/v1/models", wrong)).status_code == 401


async def test_the_keys_of_a_provider_may_change_while_somebody_works(visit, provider):
    async with visit() as desk:
        token = provider.token()
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200
        provider.rotate()
        source = desk.place.server.app.state.sign_on.sources["work"]
        source._ticks = lambda: clock.monotonic() + UNKNOWN
        assert (await desk.say("GET", "/v1/models", provider.token())).status_code == 200
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200, "what was good stays so"
        provider.trouble = "broken"
        assert (await desk.say("GET", "/v1/models", provider.token(jti="2"))).status_code == 200
        assert await desk.code("GET", "/v1/models", provider.token(STRANGER)) == (401, "invalid_token")


async def test_a_provider_that_was_never_reached_is_no_fault_of_the_caller(visit, provider):
    async with visit() as desk:
        provider.trouble = "broken"
        answer = await desk.say("GET", "/v1/models", provider.token())
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_unreachable")
        assert answer.headers["retry-after"] == "10"


async def test_without_settings_for_them_tokens_are_no_keys(visit, provider):
    async with visit(audiences="") as desk:
        for path in ("/v1/models", "/api/v1/me"):
            assert await desk.code("GET", path, provider.token()) == (401, "invalid_api_key")
        assert provider.asked == []


async def test_a_key_of_tokens_that_is_revoked_shuts_tokens_out(visit, provider):
    async with visit() as desk:
        session = await desk.enter()
        token = provider.token()
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200
        key = next(key for key in await desk.rows(Key) if key.provider)
        assert (await desk.place.call("DELETE", f"/keys/{key.id}")).status_code == 200
        assert await desk.code("GET", "/v1/models", token) == (401, "revoked_api_key")
        assert (await desk.say("GET", "/api/v1/me", session)).status_code == 200
        assert tokens.parse_key(f"mgw_{key.id}_" + "0" * 38) is None


async def test_policies_of_secrets_are_not_about_tokens(visit, tmp_path):
    async with visit() as desk:
        token = desk.provider.token()
        assert (await desk.say("GET", "/v1/models", token)).status_code == 200
        config = desk.place.server.app.state.config
        async with desk.place.database.read() as session:
            row = (await session.exec(select(Key).where(Key.provider == "work"))).one()
        assert config.keys == Keys()
        assert key_policy.ends(row, Keys(max_age=1, rotate_every=1, unused=1)) is None


# -- the check


async def test_the_check_is_for_who_runs_the_server(visit, provider):
    async with visit() as desk:
        found = (await desk.place.call("GET", "/providers/work/check")).json()["items"]
        assert {one["state"] for one in found} == {"good", "hint"}
        assert (await desk.place.call("GET", "/providers/nobody/check")).status_code == 404
        session = await desk.enter()
        assert await desk.code("GET", "/api/v1/providers/work/check", session) == (403, "forbidden")
        assert OID in str((await desk.rows(Identity))[0].subject)
