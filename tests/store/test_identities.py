"""Whom providers know, on both databases."""

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
            gone, fresh = await identities.bind_teams(session, ada, [teams[name] for name in wanted])
        async with database.read() as session:
            rows = await access.bindings(session, [ada.user_id])
            named = {row.id: row.name for row in [await session.get(Team, id) for id in teams.values()]}
        return (len(gone), len(fresh)), sorted((named[row.team_id], row.role, row.identity_id) for row in rows)

    mine = [("hci", "user", ""), ("ops", "operator", "")]
    assert await bound("nlp", "hci") == ((0, 1), sorted([*mine, ("nlp", "user", ada.id)]))
    assert (await bound("nlp", "hci"))[0] == (0, 0)
    assert await bound("ops") == ((1, 1), sorted([*mine, ("ops", "user", ada.id)]))
    assert await bound() == ((1, 0), mine)


async def signed_in(database, identity, *, until=HOUR / 4, end=24 * HOUR):
    async with database.write() as session:
        row, _ = await sessions.create(session, identity.user_id, PEPPER, at=NOW, until=NOW + until, identity=identity)
        row.ends_at = NOW + end
    return row.id


async def test_who_is_removed_is_known_no_more_but_for_when_that_was(database, ada):
    made = await signed_in(database, ada)
    for _ in range(2):
        async with database.write() as session:
            await users.remove(session, await session.get(User, ada.user_id), NOW)
    async with database.write() as session:
        assert await identities.find(session, "i", "ada") is None
        assert (await session.get(Session, made)).identity_id == ""
        assert await identities.departed(session, "i", "ada") == NOW
        assert await identities.departed(session, "i", "bob") is None
        assert await identities.forget_departures(session, NOW) == 0
        assert await identities.forget_departures(session, NOW + HOUR) == 1


async def test_an_identity_that_is_taken_away_while_somebody_waits_for_it_is_none(database, ada):
    async with database.write() as session:
        found = await identities.find(session, "i", "ada")
        await session.delete(found.identity)
        await session.flush()
        assert await identities.find(session, "i", "ada", lock=True) is None


async def test_keys_leave_a_team_in_which_nothing_is_said_of_their_person(database, ada):
    async with database.write() as session:
        org = (await session.get(User, ada.user_id)).org_id
        nlp, ops = [(await people.get_or_create_team(session, org, name)).id for name in ("nlp", "ops")]
        facts = {"org_id": org, "user_id": ada.user_id, "digest": b"d"}
        session.add_all([Key(id="k1", name="k1", team_id=nlp, **facts), Key(id="k2", name="k2", team_id=ops, **facts)])
        session.add(Key(id="k3", name="k3", team_id=nlp, revoked_at=NOW, **facts))
        await session.flush()
        await access.bind(session, ada.user_id, "operator", ops)
        assert await identities.move_keys(session, ada.user_id, {ops}) == []
        assert await identities.move_keys(session, ada.user_id, {nlp, ops}) == ["k1"]
        assert {(await session.get(Key, key)).team_id for key in ("k1", "k2", "k3")} == {ops}
        await access.unbind(session, ada.user_id, "operator", ops)
        assert sorted(await identities.move_keys(session, ada.user_id, {ops})) == ["k1", "k2"]
        default = await people.get_or_create_team(session, org)
        assert (await session.get(Key, "k1")).team_id == default.id


async def test_a_sign_on_is_finished_once(database):
    async def spend():
        async with database.write() as session:
            return await identities.spend(session, "t", NOW + HOUR)

    assert sorted(await asyncio.gather(*(spend() for _ in range(5)))) == [False] * 4 + [True]
    async with database.write() as session:
        assert await identities.forget_tickets(session, NOW) == 0
        assert await identities.forget_tickets(session, NOW + 2 * HOUR) == 1
    assert await spend()
