"""People and their sessions: what the functions promise, on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from mindgw.errors import Conflict, NotFound, PreconditionFailed
from mindgw.store import keys, people, rows, sessions, users
from mindgw.store.tables import RoleBinding, Session, User
from mindgw.store.users import NewUser
from mindgw_agent.tokens import parse_invitation, parse_session

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=30)
PEPPER = b"p" * 32
ANA = "ana@example.com"


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


@pytest.fixture
async def org(session):
    return await people.get_or_create_org(session)


async def made(session, org, email=ANA, **facts):
    row, fresh = await users.obtain(session, NewUser(org_id=org.id, email=email, **facts))
    assert fresh
    return row


async def signed_in(session, user, *, at=NOON, until=LATER, **facts):
    return await sessions.create(session, user.id, PEPPER, at=at, until=until, **facts)


async def test_somebody_is_made_once_and_found_by_address_and_id(session, org):
    row = await made(session, org, role="viewer", state=users.INVITED)
    again, fresh = await users.obtain(session, NewUser(org_id=org.id, email=ANA, role="admin"))
    assert (again.id, again.role, again.state, fresh) == (row.id, "viewer", "invited", False)
    for reference in (row.id, ANA, "  ANA@Example.com "):
        assert (await users.find(session, org.id, reference)).id == row.id
    for nobody in ("", "bob@example.com", row.id[:-1], "' OR 1=1--"):
        with pytest.raises(NotFound):
            await users.find(session, org.id, nobody)


async def test_organisations_know_nothing_of_each_others_people(session, org):
    row = await made(session, org)
    other = await people.get_or_create_org(session, "other")
    for reference in (row.id, ANA):
        with pytest.raises(NotFound):
            await users.find(session, other.id, reference)
    assert list(await users.page(session, other.id)) == []
    theirs = await made(session, other, role="viewer")
    assert (theirs.id != row.id, theirs.email, theirs.org_id) == (True, ANA, other.id)
    assert (await people.get_or_create_user(session, other.id, ANA)).id == theirs.id
    assert (await users.find(session, org.id, ANA)).id == row.id


async def test_an_invitation_replaces_the_one_before_it(session, org):
    row = await made(session, org)
    first, second = await users.invite(session, row, PEPPER, LATER), await users.invite(session, row, PEPPER, LATER)
    (_, old), (whom, new) = parse_invitation(first), parse_invitation(second)
    assert (whom, row.invite_expires_at, row.version) == (row.id, LATER, 3)
    assert row.invite_digest == keys.digest(PEPPER, new) != keys.digest(PEPPER, old)
    assert new not in str(row.model_dump())


async def test_who_is_removed_leaves_nothing_but_a_name(session, org):
    row = await made(session, org, role="admin")
    team = await people.get_or_create_team(session, org.id)
    session.add(RoleBinding(user_id=row.id, role="operator", team_id=team.id))
    key, _ = await keys.create(session, keys.NewKey(name="k", org_id=org.id, user_id=row.id), PEPPER)
    old, _ = await keys.create(session, keys.NewKey(name="old", org_id=org.id, user_id=row.id), PEPPER)
    await keys.revoke(session, old.id, NOON - timedelta(days=1))
    assert list(await users.key_ids(session, row.id)) == [key.id]
    await users.invite(session, row, PEPPER, LATER)
    await users.remove(session, row, NOON)
    await session.refresh(key)
    await session.refresh(old)
    assert (key.revoked_at, key.version, old.revoked_at) == (NOON, 2, NOON - timedelta(days=1))
    assert (row.state, row.role, row.invite_digest) == ("removed", "user", None)
    assert (await session.exec(select(RoleBinding))).all() == []
    assert list(await users.page(session, org.id)) == []
    with pytest.raises(NotFound):
        await users.find(session, org.id, row.id)
    with pytest.raises(Conflict):
        await people.get_or_create_user(session, org.id, ANA)
    back, fresh = await users.obtain(session, NewUser(org_id=org.id, email=ANA, role="viewer", state=users.INVITED))
    assert (back.id, back.role, back.state, fresh) == (row.id, "viewer", "invited", True)


async def test_a_change_is_refused_when_somebody_was_faster(session, org):
    row = await made(session, org)
    rows.change(row, 1, name="Ana")
    with pytest.raises(PreconditionFailed):
        rows.change(row, 1, name="Anna")


@pytest.mark.parametrize("state", ["active", "invited", "disabled", "removed"])
@pytest.mark.parametrize("org_state", ["active", "disabled"])
async def test_a_key_tells_whether_its_holder_is_welcome(session, org, state, org_state):
    row = await made(session, org, role="viewer")
    key, _ = await keys.create(session, keys.NewKey(name="k", org_id=org.id, user_id=row.id), PEPPER)
    nobodys, _ = await keys.create(session, keys.NewKey(name="n", org_id=org.id), PEPPER)
    row.state, org.state = state, org_state
    await session.flush()
    found = await keys.holder(session, key.id)
    assert (found.user, found.rights.roles, found.welcome) == (ANA, ("viewer",), state in {"active", "invited"} and org_state == "active")
    assert (await keys.holder(session, nobodys.id)).welcome == (org_state == "active")


# -- sessions


async def test_a_session_is_stored_as_a_keyed_digest(session, org):
    user = await made(session, org)
    row, text = await signed_in(session, user, agent="mindgw/1 \x1b[2J\n" + "x" * 500)
    session_id, secret = parse_session(text)
    found = await sessions.find(session, session_id)
    assert (found.session.id, found.user.id, found.org.id) == (row.id, user.id, org.id)
    assert found.session.digest == keys.digest(PEPPER, secret)
    assert not [value for value in row.model_dump().values() if secret in str(value)]
    assert row.agent.isprintable()
    assert len(row.agent) <= sessions.MAX_AGENT
    assert await sessions.find(session, "0" * 10) is None


async def test_sessions_are_ended_one_by_one_and_all_at_once(session, org):
    user, other = await made(session, org), await made(session, org, "bob@example.com")
    first, second, third = [(await signed_in(session, user, at=NOON + timedelta(seconds=n)))[0].id for n in range(3)]
    over, _ = await signed_in(session, user, until=NOON)
    bobs, _ = await signed_in(session, other)
    now = NOON + timedelta(hours=1)
    assert [row.id for row in await sessions.open_ones(session, user.id, now)] == [third, second, first]
    assert await sessions.end(session, user.id, now, first) == 1
    assert await sessions.end(session, user.id, now, first) == 0
    assert await sessions.end(session, user.id, now, bobs.id) == 0
    assert await sessions.end(session, user.id, now) == 2
    assert list(await sessions.open_ones(session, user.id, now)) == []
    assert [row.id for row in await sessions.open_ones(session, other.id, now)] == [bobs.id]
    await session.refresh(over)
    assert over.revoked_at is None


async def test_what_ended_long_ago_is_forgotten(session, org):
    user = await made(session, org)
    ended, _ = await signed_in(session, user)
    await sessions.end(session, user.id, NOON, ended.id)
    await signed_in(session, user, until=NOON)
    good, _ = await signed_in(session, user)
    assert await sessions.forget(session, NOON) == 0
    assert await sessions.forget(session, NOON + timedelta(seconds=1)) == 2
    assert (await session.exec(select(Session.id))).all() == [good.id]


async def test_when_they_were_seen_never_goes_back(session, org):
    user = await made(session, org)
    one, _ = await signed_in(session, user)
    two, _ = await signed_in(session, user)
    await sessions.touch(session, {one.id: (user.id, NOON), two.id: (user.id, LATER)})
    await sessions.touch(session, {one.id: (user.id, LATER), two.id: (user.id, NOON), "0" * 10: ("nobody", NOON)})
    for row in (one, two, user):
        await session.refresh(row)
        assert row.last_seen_at == LATER
    assert user.version == 1


async def test_two_who_invite_the_same_person_make_one(database):
    async with database.write() as session:
        org = (await people.get_or_create_org(session)).id

    async def once():
        async with database.write() as session:
            row, fresh = await users.obtain(session, NewUser(org_id=org, email=ANA))
            return row.id, fresh

    found = await asyncio.gather(*[once() for _ in range(8)])
    assert len({row for row, _ in found}) == 1
    assert [fresh for _, fresh in found].count(True) == 1
    async with database.read() as session:
        assert len((await session.exec(select(User))).all()) == 1
