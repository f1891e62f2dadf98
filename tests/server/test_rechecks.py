"""Whether a provider still vouches for somebody: what is taken for a no, what is not, and what hangs on it."""

import threading
from datetime import timedelta

import pytest
from sqlmodel import select

from mindgw import clock
from mindgw.control.idp import flows
from mindgw.control.idp.source import AWAY, UNKNOWN
from mindgw.control.rechecks import LANES, MISSES
from mindgw.store.tables import AuditEntry, Identity, Key, Session, User
from tests.identity_provider import OTHER
from tests.server.test_sign_on import ADA, ago, everything, provider, statuses, visit

__all__ = ["provider", "visit"]

BOB = {"oid": OTHER, "preferred_username": "bob@corp.example"}


async def look(desk, seconds=0.0):
    """One round, after some time."""
    await ago(desk, seconds)
    await desk.place.server.app.state.rechecks.all()


async def identity(desk):
    (found,) = await desk.rows(Identity)
    return found


async def told(desk, action):
    return [entry for entry in await desk.rows(AuditEntry) if entry.action == action]


# -- what is no proof


async def test_what_a_provider_is_asked_with_next_is_kept_before_its_answer_is_judged(visit, provider):
    """Its keys could not be fetched: what it was asked with is spent at many, and the next question would be the last."""
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        source = desk.place.server.app.state.sign_on.sources["work"]
        provider.rotate()
        provider.trouble, provider.troubled = "broken", ("/keys",)
        source._ticks = lambda: clock.monotonic() + UNKNOWN
        await look(desk, 1900)
        assert await statuses(desk, ways) == [200] * 4
        provider.trouble = ""
        source._ticks = lambda: clock.monotonic() + UNKNOWN + AWAY
        await look(desk, 400)
        assert await statuses(desk, ways) == [200] * 4
        assert (await desk.rows(Session))[0].expires_at > clock.utcnow() + timedelta(minutes=55)


async def test_an_answer_that_never_came_lapses_nobody(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        answer, source, gone = provider._token, desk.place.server.app.state.sign_on.sources["work"], threading.Event()

        def late(form):
            said = answer(form)
            gone.wait(30)
            return said

        provider._token, source.http._time = late, 0.3
        await look(desk, 1900)
        gone.set()
        provider._token, source.http._time = answer, 10
        assert await statuses(desk, ways) == [200] * 4
        await look(desk, 400)
        assert await statuses(desk, ways) == [401, 200, 200, 200], "they sign in again, that is all"
        assert (await desk.user()).state == "active"


@pytest.mark.parametrize(
    "said",
    [
        {"error": "invalid_grant"}, {"error": "invalid_grant", "error_description": "Session not active"},
        {"error": "interaction_required"},
        {"error": "invalid_grant", "error_description": "AADSTS50173: A password was changed.", "error_codes": [50173]},
    ],
)  # fmt: skip
async def test_a_refresh_token_that_is_worth_nothing_ends_sessions_and_says_nothing_of_the_person(visit, provider, said):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        second = await desk.enter()
        provider.refusal = said
        await look(desk, 1900)
        assert await statuses(desk, [*ways, ("/api/v1/me", second)]) == [401, 200, 200, 200, 401]
        assert (await desk.user()).state == "active"
        (entry,) = [one for one in await told(desk, "session.end") if one.detail.get("why")]
        assert (entry.detail["sessions"], entry.detail["provider"]) == (2, "work")
        asked = provider.asked.count("/token")
        await look(desk, 1900)
        assert provider.asked.count("/token") == asked, "there is nothing to ask with"


@pytest.mark.parametrize(
    "said",
    [
        {"error_description": "User disabled"}, {"error_codes": [50034]}, {"error_codes": [50105, 1]},
        {"error_description": "AADSTS500341: The user account has been deleted."},
    ],
)  # fmt: skip
async def test_a_provider_that_says_that_the_account_is_gone_is_believed(visit, provider, said):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.refusal = {"error": "invalid_grant", **said}
        await look(desk, 1900)
        assert await statuses(desk, ways) == [401] * 4
        assert (await identity(desk)).refresh is None


@pytest.mark.parametrize(
    "said", [{"error": ["invalid_grant"]}, {"error": {}}, {}, {"error": "server_error", "error_codes": "x", "error_description": [1]}]
)
async def test_a_refusal_that_makes_no_sense_changes_nothing(visit, provider, said):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider._token = lambda form: (400, said)
        await look(desk, 1900)
        assert await statuses(desk, ways) == [200] * 4
        assert await desk.code("POST", "/api/v1/me/sessions/renew", ways[0][1]) == (200, ""), "later"
        begun = await desk.begin()
        answer = await desk.finish(begun, await desk.browse(begun))
        assert answer.status_code in (401, 502), answer.text


@pytest.mark.parametrize("codes", [[[50057]], ["50057"], {"x": 1}, [None, True], "50057"])
async def test_numbers_that_are_none_are_no_proof(visit, provider, codes):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.refusal = {"error": "invalid_grant", "error_codes": codes, "error_description": ["AADSTS"]}
        await look(desk, 1900)
        assert await statuses(desk, ways) == [401, 200, 200, 200]


async def test_a_provider_that_says_nothing_new_vouches(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.granted = {"id_token": None}
        for _ in range(3):
            await look(desk, 1900)
            assert await statuses(desk, ways) == [200] * 4
        assert (await desk.rows(Session))[0].expires_at > clock.utcnow() + timedelta(minutes=55)


async def test_who_signs_in_meanwhile_is_not_put_out_by_what_was_asked_before(visit, provider, monkeypatch):
    async with visit() as desk:
        await desk.enter()
        refresh, entered = flows.refresh, []

        async def asked(source, token, *, public):
            if not entered:
                entered.append(await desk.enter())
                provider._refresh.discard(token)
            return await refresh(source, token, public=public)

        monkeypatch.setattr(flows, "refresh", asked)
        await look(desk, 1900)
        assert await statuses(desk, [("/api/v1/me", entered[0])]) == [200]
        assert (await identity(desk)).refresh is not None


async def test_a_session_that_is_over_is_not_brought_back(visit):
    async with visit() as desk:
        session = await desk.enter()
        await everything(desk, session)
        await ago(desk, 3650)
        await desk.place.server.app.state.rechecks.all()
        assert await desk.code("GET", "/api/v1/me", session) == (401, "expired_session")
        assert (await identity(desk)).vouched_at > clock.utcnow() - timedelta(minutes=1), "asked for the key's sake"


# -- who is asked about


async def test_who_leaves_keeps_no_key_by_signing_out_first(visit, provider):
    async with visit() as desk:
        session = await desk.enter()
        ways = await everything(desk, session)
        assert (await desk.say("DELETE", "/api/v1/me/sessions/current", session)).status_code == 200
        await look(desk, 1900)
        assert await statuses(desk, ways[1:2]) == [200]
        provider.thrown_out = True
        await look(desk, 1900)
        assert await statuses(desk, ways[1:2]) == [401]
        assert (await desk.user()).state == "lapsed"


async def test_a_provider_that_is_away_for_long_is_asked_when_it_is_back(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.trouble = "broken"
        await look(desk, 3000)
        provider.trouble, provider.thrown_out = "", True
        await look(desk, 700)
        assert await statuses(desk, ways[:2]) == [401] * 2
        assert (await desk.user()).state == "lapsed"


async def test_whoever_nobody_vouches_for_does_not_keep_keys_for_ever(visit, provider):
    async with visit() as desk:
        ways = await everything(desk, await desk.enter())
        provider.refusal = {"error": "invalid_grant"}
        await look(desk, 1900)
        await look(desk, 29 * 86400)
        assert await statuses(desk, ways[1:2]) == [200]
        await look(desk, 86400)
        assert await statuses(desk, ways[1:2]) == [401]
        (entry,) = await told(desk, "user.lapse")
        assert entry.detail["why"] == "unvouched"
        assert (await desk.place.call("POST", f"/users/{ADA}/enable")).status_code == 200
        await look(desk)
        assert await statuses(desk, ways[1:2]) == [200], "somebody here vouches for them"
        await look(desk, 31 * 86400)
        assert await statuses(desk, ways[1:2]) == [401]
        assert await desk.code("GET", "/v1/models", provider.token(jti="new")) == (200, ""), "nothing was said against them"
        assert await statuses(desk, ways[1:2]) == [200]


async def test_one_who_cannot_be_asked_about_holds_up_nobody(visit, provider):
    async with visit() as desk:
        await desk.enter()
        bad = next(iter(provider._refresh))
        await desk.enter(**BOB)
        answer = provider._token
        provider._token = lambda form: (400, {"error": "invalid_client"}) if form.get("refresh_token") == bad else answer(form)
        await look(desk, 1900)
        left = sorted((row.expires_at - clock.utcnow()).total_seconds() for row in await desk.rows(Session))
        assert left[0] < 1800
        assert left[1] > 3500
        asked = provider.asked.count("/token")
        await look(desk)
        assert provider.asked.count("/token") == asked, "not at once again"
        await look(desk, 400)
        assert provider.asked.count("/token") == asked + 1


async def people(desk, number):
    """So many others who are signed in by the provider."""
    await desk.enter()
    (mine,), (row,) = await desk.rows(Identity), await desk.rows(Session)
    refreshes = desk.place.server.app.state.sign_on.refreshes
    held = refreshes.open(mine.id, mine.refresh)
    async with desk.place.database.write() as db:
        user = (await db.exec(select(User).where(User.id == mine.user_id))).one()
        for each in range(number):
            other = User(org_id=user.org_id, email=f"u{each}@x.org")
            key = Key(id=f"k{each}", name=f"k{each}", org_id=user.org_id, user_id=other.id, digest=b"d", provider="work")
            for made in (other, key):
                db.add(made)
                await db.flush()
            token = f"t{each}"
            desk.provider._refresh.add(token)
            facts = mine.model_dump() | {"id": f"i{each}", "subject": f"s{each}", "user_id": other.id, "key_id": key.id}
            db.add(Identity(**facts | {"refresh": refreshes.seal(f"i{each}", held._replace(token=token))}))
            await db.flush()
            db.add(Session(**row.model_dump() | {"id": f"s{each}", "user_id": other.id, "identity_id": f"i{each}"}))


async def test_all_who_are_due_are_asked_about_and_each_once(visit, provider):
    async with visit() as desk:
        await people(desk, 4 * LANES)
        await desk.enter()
        provider.granted = {"id_token": None}
        asked = provider.asked.count("/token")
        await look(desk, 1900)
        assert provider.asked.count("/token") == asked + 4 * LANES + 1, "somebody with two sessions is asked about once"
        assert all(row.expires_at > clock.utcnow() + timedelta(minutes=55) for row in await desk.rows(Session))


async def test_a_provider_that_does_not_answer_is_not_asked_about_everybody(visit, provider):
    async with visit() as desk:
        await people(desk, MISSES + 2 * LANES)
        provider.trouble = "broken"
        asked = provider.asked.count("/token")
        await look(desk, 1900)
        assert provider.asked.count("/token") <= asked + MISSES + LANES
        provider.trouble, provider.granted = "", {"id_token": None}
        await look(desk, 60)
        assert all(row.expires_at > clock.utcnow() + timedelta(minutes=55) for row in await desk.rows(Session))


async def test_what_a_provider_would_be_asked_with_goes_when_nothing_hangs_on_it(visit, provider):
    async with visit() as desk:
        session = await desk.enter()
        (held,) = provider._refresh
        await look(desk)
        assert provider.revoked == []
        await desk.say("DELETE", "/api/v1/me/sessions/current", session)
        await look(desk)
        assert provider.revoked == [held]
        assert (await identity(desk)).refresh is None
        assert (await desk.sign_on()).json()["renewable"] is True


async def test_a_provider_that_gives_a_refresh_token_once_is_asked_with_that(visit, provider):
    async with visit() as desk:
        await desk.enter()
        provider.granted = {"refresh_token": ""}
        assert (await desk.sign_on()).json()["renewable"] is True
        await look(desk, 1900)
        assert all(row.expires_at > clock.utcnow() + timedelta(minutes=55) for row in await desk.rows(Session))


async def test_keys_that_cannot_be_fetched_make_no_token_a_forgery(visit, provider):
    async with visit() as desk:
        assert (await desk.say("GET", "/v1/models", provider.token())).status_code == 200
        source = desk.place.server.app.state.sign_on.sources["work"]
        provider.rotate()
        provider.trouble, provider.troubled = "broken", ("/keys",)
        source._ticks = lambda: clock.monotonic() + UNKNOWN
        assert await desk.code("GET", "/v1/models", provider.token(jti="a")) == (502, "provider_unreachable")
        provider.trouble = ""
        assert await desk.code("GET", "/v1/models", provider.token(jti="b")) == (502, "provider_unreachable"), "not as often as one likes"
        source._ticks = lambda: clock.monotonic() + UNKNOWN + AWAY
        assert await desk.code("GET", "/v1/models", provider.token(jti="c")) == (200, "")
        asked = provider.asked.count("/keys")
        assert await desk.code("GET", "/v1/models", provider.token(header={"kid": "made-up"})) == (401, "invalid_token")
        assert provider.asked.count("/keys") == asked, "once a minute where all is well"
