"""Whom providers are asked about, and what is made of what they say, and of what they do not say."""

from datetime import timedelta

import pytest
from msgspec import structs
from sqlmodel import select

from mindgw import clock
from mindgw.control.rechecks import AT_ONCE
from mindgw.store import identities
from mindgw.store.tables import Identity, Key, RoleBinding, Session, User
from tests.identity_provider import OTHER
from tests.server.site import site
from tests.server.test_sign_on import ADA, ROLES, Desk, ago, everything, provider, statuses, visit

__all__ = ["provider", "visit"]

BOB = {"oid": OTHER, "preferred_username": "bob@corp.example"}


def state_of(desk):
    return desk.place.server.app.state


async def look(desk, seconds=0):
    """That much later the server asks."""
    await ago(desk, seconds)
    await state_of(desk).rechecks.all()


async def silence(desk, seconds):
    """Nobody has vouched for anybody for that long."""
    async with desk.place.database.write() as session:
        for row in (await session.exec(select(Identity))).all():
            row.vouched_at -= timedelta(seconds=seconds)
            session.add(row)


async def test_keys_that_cannot_be_fetched_cost_nobody_their_sign_on(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.rotate()
        provider.trouble, provider.troubled = "broken", ("/keys",)
        source = state_of(desk).sign_on.sources["work"]
        source._tried -= 100
        await look(desk, 3000)
        provider.trouble = ""
        source._keys_due = source._tried = 0
        await look(desk)
        assert await statuses(desk, ways[:2]) == [200] * 2
        assert (await desk.rows(Session))[0].expires_at > clock.utcnow() + timedelta(minutes=55)


async def test_an_answer_that_never_came_is_no_word_against_anybody(visit, provider):
    """What was shown may be spent by now: that it is good no longer says nothing."""
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        granted, http = provider._token, state_of(desk).sign_on.sources["work"].http

        def late(form):
            said = granted(form)
            provider.released.wait(5)
            return said

        provider._token, http._time = late, 0.3
        await look(desk, 3000)
        assert await statuses(desk, ways) == [200] * 4
        provider.released.set()
        provider._token, http._time = granted, 20.0
        await look(desk)
        assert (await desk.user()).state == "active"
        assert await statuses(desk, ways) == [401, 200, 200, 200], "that session is over, and nothing else"


async def test_a_provider_that_refuses_connections_was_not_asked(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        source = state_of(desk).sign_on.sources["work"]
        known = source._metadata
        source._metadata = structs.replace(known, token_endpoint="http://127.0.0.1:9/")
        await look(desk, 3000)
        source._metadata, provider.thrown_out = known, True
        await look(desk)
        assert await statuses(desk, ways) == [401] * 4


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("invalid_grant", "AADSTS700082: The refresh token has expired due to inactivity."),
        ("invalid_grant", "AADSTS50173: A fresh one is needed."),
        ("interaction_required", "AADSTS50076: You must use multi-factor authentication."),
        ("login_required", ""),
        ("consent_required", ""),
    ],
)
async def test_a_sign_on_that_is_too_old_ends_and_no_more(visit, provider, error, words):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider._token = lambda form: (400, {"error": error, "error_description": words})
        await look(desk, 3000)
        assert await statuses(desk, ways) == [401, 200, 200, 200]
        assert (await desk.user()).state == "active"


async def test_the_settings_say_what_it_means_that_nothing_is_renewed(visit, provider):
    async with visit(lost="end") as desk:
        ways = await everything(desk, await desk.enter())
        provider.thrown_out = True
        await look(desk, 3000)
        assert await statuses(desk, ways) == [401, 200, 200, 200]


async def test_a_provider_may_have_nothing_new_to_say(visit, provider):
    """OpenID Connect Core 12.2: there need be no ID token."""
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.granted = {"id_token": None}
        for _ in range(3):
            await silence(desk, 3000)
            await look(desk, 3000)
            assert await statuses(desk, ways) == [200] * 4
        assert (await desk.rows(Identity))[0].vouched_at > clock.utcnow() - timedelta(minutes=1)
        assert (await desk.refused()) == (502, "provider_failed"), "at a sign-on there must be one"


async def test_one_who_cannot_be_asked_about_keeps_nobody_else_waiting(visit, provider):
    async with visit() as desk:
        await desk.enter()
        (bad,), granted = provider._refresh, provider._token
        second = await desk.enter(**BOB)
        provider._token = lambda form: (400, {"error": "invalid_client"}) if form.get("refresh_token") == bad else granted(form)
        await look(desk, 3000)
        await ago(desk, 2000)
        assert (await desk.say("GET", "/api/v1/me", second)).status_code == 200


async def test_all_who_are_due_are_asked_about_in_one_round(visit, provider):
    async with visit() as desk:
        await desk.enter()
        (row,), safe = await desk.rows(Session), state_of(desk).sign_on.refreshes
        held, many = safe.open(row.id, row.refresh), identities.ROUND + 2 * AT_ONCE
        async with desk.place.database.write() as session:
            for number in range(many):
                provider._refresh.add(f"t{number}")
                facts = row.model_dump() | {"id": f"s{number:09d}"}
                session.add(Session(**facts | {"refresh": safe.seal(facts["id"], held._replace(token=f"t{number}"))}))
        asked = provider.asked.count("/token")
        await look(desk, 3000)
        assert provider.asked.count("/token") - asked == many + 1


async def test_a_provider_that_is_away_is_left_alone_after_a_few_tries(visit, provider):
    async with visit() as desk:
        for _ in range(12):
            await desk.enter()
        provider.trouble, provider.troubled = "broken", ("/token",)
        asked = provider.asked.count("/token")
        await look(desk, 3000)
        assert provider.asked.count("/token") - asked <= AT_ONCE


# -- who is signed in nowhere


@pytest.mark.parametrize("how", ["signed out", "over"])
async def test_whoever_is_signed_in_nowhere_is_asked_about_while_they_have_keys(visit, provider, how):
    async with visit() as desk:
        session = await desk.enter()
        ways = await everything(desk, session)
        if how == "signed out":
            assert (await desk.say("DELETE", "/api/v1/me/sessions", session)).status_code == 200
        await ago(desk, 4000)
        await silence(desk, 4000)
        for _ in range(2):
            await look(desk)
            assert await statuses(desk, ways) == [401, 200, 200, 200], "what is over stays over"
        asked = provider.asked.count("/token")
        await look(desk)
        assert provider.asked.count("/token") == asked, "once an hour is enough"
        provider.thrown_out = True
        await silence(desk, 4000)
        await look(desk)
        assert await statuses(desk, ways) == [401] * 4
        assert (await desk.user()).state == "lapsed"


async def test_whoever_has_no_keys_is_not_asked_about(visit, provider):
    async with visit() as desk:
        await desk.enter()
        await silence(desk, 4000)
        await look(desk, 4000)
        assert provider.asked.count("/token") == 1


async def test_who_signs_in_anew_is_asked_about_by_that(visit):
    async with visit() as desk:
        first = await desk.enter()
        await desk.say("DELETE", "/api/v1/me/sessions", first)
        await desk.enter()
        assert sorted(row.refresh is None for row in await desk.rows(Session)) == [False, True]


async def test_for_whom_nobody_has_vouched_for_long_is_out(visit, provider):
    """However that came to be: no refresh tokens, a provider that is no more, sessions that have ended."""
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.trouble = "broken"
        await silence(desk, 31 * 86400)
        await look(desk)
        assert await statuses(desk, ways) == [401] * 4
        assert (await desk.user()).state == "lapsed"
        assert (await desk.place.call("POST", f"/users/{ADA}/enable")).status_code == 200
        await look(desk)
        assert (await desk.user()).state == "active", "an administrator has"
        assert (await statuses(desk, ways))[1] == 200


# -- what they leave behind


async def test_another_name_for_a_provider_changes_nothing(tmp_path, provider):
    settings = provider.settings(**ROLES)
    async with site(tmp_path / "data", settings) as place:
        await Desk(place, provider).enter(roles=["Gw.User"], groups=["g-nlp"])
    async with site(tmp_path / "data", settings.replace("  work:", "  other:")) as place:
        desk = Desk(place, provider)
        begun = await desk.begin(provider="other")
        provider.person["groups"] = []
        assert (await desk.finish(begun, await desk.browse(begun))).status_code == 201
        assert await desk.rows(RoleBinding) == []


async def test_a_role_that_a_provider_gave_goes_when_it_has_no_say_any_more(tmp_path, provider):
    async with site(tmp_path / "data", provider.settings(roles="Gw.Admin=admin, Gw.User=user", teams="g-nlp=nlp")) as place:
        desk = Desk(place, provider)
        await desk.enter(roles=["Gw.Admin"], groups=["g-nlp"])
        assert (await desk.user()).role == "admin"
    async with site(tmp_path / "data", provider.settings()) as place:
        desk = Desk(place, provider)
        await desk.enter()
        assert (await desk.user()).role == "user"
        assert await desk.rows(RoleBinding) == []


async def test_a_token_does_not_bring_back_whoever_was_removed(visit, provider):
    async with visit() as desk:
        token = provider.token()
        assert (await desk.say("GET", "/api/v1/me", token)).status_code == 200
        assert (await desk.place.call("DELETE", f"/users/{ADA}")).status_code == 200
        assert await desk.code("GET", "/api/v1/me", token) == (401, "user_disabled")
        assert (await desk.sign_on()).status_code == 201, "they have to sign in"
        assert [user.state for user in await desk.rows(User) if user.email == ADA] == ["active"]


async def test_nobody_ends_the_key_that_their_own_tokens_stand_for(visit, provider):
    async with visit() as desk:
        session = await desk.enter()
        (key,) = [key for key in await desk.rows(Key) if key.provider]
        assert await desk.code("DELETE", f"/api/v1/me/keys/{key.id}", session) == (409, "no_secret")
        assert (await desk.say("GET", "/api/v1/me", provider.token())).status_code == 200


async def test_yes_is_a_word_as_well(visit):
    async with visit(require="verified=true") as desk:
        assert (await desk.sign_on(verified=True)).status_code == 201
        assert await desk.refused(verified=False) == (401, "not_assigned")


# -- tokens that are none


@pytest.mark.parametrize("changes", [{"exp": 10**400}, {"iat": 10**400}, {"exp": 2**39}, {"exp": -(10**400)}])
async def test_moments_that_are_none_are_counted_against_whoever_sends_them(visit, provider, changes):
    async with visit() as desk:
        token = provider.token(**changes)
        for path in ("/v1/models", "/api/v1/me"):
            assert await desk.code("GET", path, token) == (401, "invalid_token")


@pytest.mark.parametrize("changes", [{"nonce": "n"}, {"at_hash": "x"}, {"c_hash": "x"}, {"typ": "ID"}, {"typ": "Refresh"}, {"azp": "gone"}])
async def test_a_token_that_says_who_has_signed_in_opens_nothing(visit, provider, changes):
    async with visit() as desk:
        assert await desk.code("GET", "/v1/models", provider.token(**changes)) == (401, "id_token")
        assert await desk.code("GET", "/api/v1/me", provider.token(**changes)) == (401, "id_token")
