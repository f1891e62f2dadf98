"""Whom providers know, and which of their sessions are to be asked about, on both databases."""

import asyncio
from datetime import timedelta

import pytest

from mindgw.clock import utcnow
from mindgw.store import access, identities, people, sessions, users
from mindgw.store.tables import Identity, Key, Session, Team, User

PEPPER = b"p" * 32
NOW = utcnow()
HOUR = timedelta(hours=1)


@pytest.fixture
async def ada(database):
    """A user with an identity."""
    async with database.write() as session:
        org = await people.get_or_create_org(session)
        user = await people.get_or_create_user(session, org.id, "ada@x.org")
        session.add(Key(id="k", name="sign-on", org_id=org.id, user_id=user.id, digest=b"d", provider="work"))
        await session.flush()
        made = Identity(issuer="i", subject="ada", user_id=user.id, provider="work", key_id="k", claims_at=NOW)
        session.add(made)
    return made


async def test_a_person_is_one_row_however_many_come_at_once(database, ada):
    async with database.write() as session:
        again = Identity(issuer="i", subject="ada", user_id=ada.user_id, provider="other", key_id="k", claims_at=NOW)
        assert not await identities.add(session, again)
        assert await identities.add(
            session, Identity(issuer="i2", subject="ada", user_id=ada.user_id, provider="p", key_id="k", claims_at=NOW)
        )
    async with database.write() as session:
        found = await identities.find(session, "i", "ada", lock=True)
        assert (found.identity.id, found.user.email, found.identity.provider) == (ada.id, "ada@x.org", "work")
        assert await identities.find(session, "i", "Ada") is None
        assert (await identities.key_of(session, found.identity)).id == "k"


async def test_what_people_have_said_of_teams_a_provider_does_not_take_back(database, ada):
    async with database.write() as session:
        org = (await session.get(User, ada.user_id)).org_id
        teams = {name: (await people.get_or_create_team(session, org, name)).id for name in ("nlp", "ops", "hci")}
        await access.bind(session, ada.user_id, "user", teams["hci"])
        await access.bind(session, ada.user_id, "operator", teams["ops"])

    async def bound(*wanted):
        async with database.write() as session:
            changed = await identities.bind_teams(session, ada.user_id, "work", [teams[name] for name in wanted])
        async with database.read() as session:
            rows = await access.bindings(session, [ada.user_id])
            named = {row.id: row.name for row in [await session.get(Team, id) for id in teams.values()]}
        return changed.is_changed, sorted((named[row.team_id], row.role, row.provider) for row in rows)

    mine = [("hci", "user", ""), ("ops", "operator", "")]
    assert await bound("nlp", "hci") == (True, sorted([*mine, ("nlp", "user", "work")]))
    assert (await bound("nlp", "hci"))[0] is False
    assert await bound("ops") == (True, sorted([*mine, ("ops", "user", "work")]))
    assert await bound() == (True, mine)


async def signed_in(database, identity, *, until=HOUR / 4, end=24 * HOUR, refresh=b"r"):
    async with database.write() as session:
        row, _ = await sessions.create(session, identity.user_id, PEPPER, at=NOW, until=NOW + until, identity=identity)
        row.refresh, row.ends_at = refresh, NOW + end
    return row.id


async def test_sessions_that_end_soon_are_asked_about_by_one(database, ada):
    soon = await signed_in(database, ada)
    for facts in ({"until": 2 * HOUR}, {"refresh": None}, {"until": -HOUR}, {"end": HOUR / 4}):
        await signed_in(database, ada, **facts)
    ended = await signed_in(database, ada)
    async with database.write() as session:
        await sessions.end(session, ada.user_id, NOW, ended)
    pause = timedelta(seconds=30)

    async def begin(at):
        async with database.write() as session:
            return await identities.begin_check(session, soon, at, pause)

    async with database.read() as session:
        assert await identities.due(session, NOW, HOUR, pause) == [(soon, "work")]
        assert await identities.others(session, ada.id, soon, NOW) == 2
        assert await identities.others(session, ada.id, "", NOW) == 3
    assert sorted(await asyncio.gather(*(begin(NOW) for _ in range(5)))) == [False] * 4 + [True]
    async with database.read() as session:
        assert await identities.due(session, NOW, HOUR, pause) == []
        assert await identities.due(session, NOW + HOUR / 8, HOUR, pause) == [(soon, "work")]
    assert await begin(NOW + HOUR / 8)


async def test_a_session_knows_by_whom_it_was_made(database, ada):
    made = await signed_in(database, ada)
    async with database.write() as session:
        assert (await identities.of_session(session, await session.get(Session, made))).identity.subject == "ada"
        plain, _ = await sessions.create(session, ada.user_id, PEPPER, at=NOW, until=NOW + HOUR)
        assert await identities.of_session(session, plain) is None


async def test_who_is_removed_is_known_no_more(database, ada):
    made = await signed_in(database, ada)
    async with database.write() as session:
        row = await session.get(User, ada.user_id)
        await users.remove(session, row, NOW)
    async with database.read() as session:
        assert await identities.find(session, "i", "ada") is None
        left = await session.get(Session, made)
        assert (left.identity_id, left.refresh) == ("", None)


async def test_a_sign_on_is_finished_once(database):
    async def spend():
        async with database.write() as session:
            return await identities.spend(session, "t", NOW + HOUR)

    assert sorted(await asyncio.gather(*(spend() for _ in range(5)))) == [False] * 4 + [True]
    async with database.write() as session:
        assert await identities.forget_tickets(session, NOW) == 0
        assert await identities.forget_tickets(session, NOW + 2 * HOUR) == 1
    assert await spend()
