"""Keys, people, fleet, audit: what their functions promise, on both databases."""

import asyncio
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from mindgw.errors import BadRequest, Conflict, Forbidden, NotFound, PreconditionFailed
from mindgw.store import fleet, keys, people
from mindgw.store.ids import new_id
from mindgw.store.tables import JoinToken, Org, Team
from mindgw_agent import tokens

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEPPER = b"p" * 32


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


@pytest.fixture
async def org(session):
    return await people.get_or_create_org(session)


async def make_key(session, org, name="k", **facts):
    return await keys.create(session, keys.NewKey(name=name, org_id=org.id, **facts), PEPPER)


def test_ids_sort_by_the_moment_of_their_making():
    made = [new_id() for _ in range(200)]
    assert [text[:10] for text in made] == sorted(text[:10] for text in made)
    assert len(set(made)) == 200
    assert {len(text) for text in made} == {26}


async def test_a_key_is_stored_as_a_keyed_digest(session, org):
    row, text = await make_key(session, org, role="admin", priority="high", trusted_proxy=True, expires_at=NOON)
    key_id, secret = tokens.parse_key(text)
    found = await keys.get(session, key_id)
    assert found.digest == hmac.new(PEPPER, secret.encode(), hashlib.sha256).digest()
    assert found.last4 == text[-4:]
    assert (found.role, found.priority, found.trusted_proxy, found.expires_at, found.version) == ("admin", "high", True, NOON, 1)
    assert not [value for value in found.model_dump().values() if secret in str(value)]
    assert row.id == key_id


async def test_a_key_is_revoked_once(session, org):
    row, _ = await make_key(session, org)
    assert (await keys.revoke(session, row.id, NOON)).revoked_at == NOON
    again = await keys.revoke(session, row.id, NOON + timedelta(days=1))
    assert (again.revoked_at, again.version) == (NOON, 2)


async def test_a_key_that_changed_meanwhile_is_not_revoked(session, org):
    row, _ = await make_key(session, org)
    with pytest.raises(PreconditionFailed):
        await keys.revoke(session, row.id, NOON, version=7)
    assert (await keys.revoke(session, row.id, NOON, version=1)).version == 2


async def test_a_key_that_never_was_cannot_be_revoked(session):
    assert await keys.get(session, "0123456789") is None
    with pytest.raises(NotFound):
        await keys.revoke(session, "0123456789", NOON)


async def test_keys_come_in_pages_in_the_order_of_their_making(session, org):
    made = [(await make_key(session, org, f"k{number}"))[0] for number in range(7)]
    await keys.revoke(session, made[2].id, NOON)
    pages, after = [], None
    while page := await keys.page(session, after=after, limit=3):
        pages.append([row.name for row in page])
        after = page[-1].id
    assert pages == [["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6"]]
    assert "k2" not in [row.name for row in await keys.page(session, revoked=False)]


async def test_rows_of_the_same_moment_are_on_one_page_each(session, org):
    made = [(await make_key(session, org, f"k{number}"))[0] for number in range(5)]
    for row in made:
        row.created_at = NOON
    await session.flush()
    seen, after = [], None
    while page := await keys.page(session, after=after, limit=2):
        seen += [row.id for row in page]
        after = page[-1].id
    assert sorted(seen) == sorted(row.id for row in made)


async def test_a_use_that_is_told_late_does_not_turn_time_back(session, org):
    row, _ = await make_key(session, org)
    for at in (NOON, NOON - timedelta(minutes=1)):
        await keys.touch(session, {row.id: at, "unknown": at})
    await session.refresh(row)
    assert (row.last_used_at, row.version) == (NOON, 1)


async def test_people_who_are_named_twice_are_made_once(session, org):
    team = await people.get_or_create_team(session, org.id, " search ")
    user = await people.get_or_create_user(session, org.id, "Ada@Example.org", name="Ada")
    assert (await people.get_or_create_org(session)).id == org.id
    assert (await people.get_or_create_team(session, org.id, "search")).id == team.id
    again = await people.get_or_create_user(session, org.id, "ada@example.ORG", role="admin")
    assert (again.id, again.name, again.role, again.email) == (user.id, "Ada", "user", "ada@example.org")
    assert await people.names(session, Team, {team.id, "unknown"}) == {team.id: "search"}
    assert await people.names(session, Org, {org.id}) == {org.id: people.DEFAULT}
    assert await people.emails(session, {user.id}) == {user.id: "ada@example.org"}


async def test_two_organisations_may_have_a_team_of_one_name(session, org):
    other = await people.get_or_create_org(session, "other")
    assert (await people.get_or_create_team(session, org.id)).id != (await people.get_or_create_team(session, other.id)).id


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "a\0b"])
async def test_a_name_that_nobody_can_read_is_refused(session, name):
    with pytest.raises(BadRequest):
        await people.get_or_create_org(session, name)


@pytest.mark.parametrize("email", ["", "ada", "@x", "ada@", "a@b@c", "a b@c", "ada@x\n"[:5] + "\x07"])
async def test_an_address_that_is_none_is_refused(session, org, email):
    with pytest.raises(BadRequest):
        await people.get_or_create_user(session, org.id, email)


async def add_token(session, number=0, **facts):
    row = JoinToken(**{"id": f"{number:016x}", "public_key": bytes(32), "expires_at": NOON, **facts})
    return await fleet.add_join_token(session, row)


@pytest.mark.parametrize(
    ("facts", "error", "code"),
    [
        ({"expires_at": NOON - timedelta(seconds=1)}, Forbidden, "join_token_expired"),
        ({"expires_at": NOON}, Forbidden, "join_token_expired"),
        ({"uses": 1, "expires_at": NOON + timedelta(1)}, Forbidden, "join_token_used"),
        ({"revoked_at": NOON, "expires_at": NOON + timedelta(1)}, Forbidden, "join_token_revoked"),
    ],
)
async def test_a_token_that_lets_nobody_in_says_why(session, facts, error, code):
    row = await add_token(session, **facts)
    with pytest.raises(error) as refused:
        await fleet.use_join_token(session, row.id, NOON)
    assert refused.value.code == code


async def test_a_token_that_never_was_says_so(session):
    with pytest.raises(NotFound) as refused:
        await fleet.use_join_token(session, "f" * 16, NOON)
    assert refused.value.code == "join_token_unknown"


async def test_tokens_are_listed_revoked_and_forgotten(session):
    old = await add_token(session, 1, expires_at=NOON - timedelta(days=31))
    new = await add_token(session, 2, expires_at=NOON + timedelta(hours=1))
    assert (await fleet.revoke_join_token(session, new.id, NOON, version=1)).version == 2
    assert (await fleet.revoke_join_token(session, new.id, NOON + timedelta(1))).revoked_at == NOON
    assert [row.id for row in await fleet.join_tokens(session)] == [old.id, new.id]
    await fleet.forget_join_tokens(session, NOON)
    assert [row.id for row in await fleet.join_tokens(session)] == [new.id]
    with pytest.raises(NotFound):
        await fleet.revoke_join_token(session, old.id, NOON)


async def test_a_name_belongs_to_one_worker_until_it_is_removed(session):
    first = await fleet.add_worker(session, "box", b"1" * 32, hostname="h", software="s")
    with pytest.raises(Conflict) as refused:
        await fleet.add_worker(session, "box", b"2" * 32)
    assert refused.value.code == "name_taken"
    second = await fleet.add_worker(session, "box", b"2" * 32, replace=True)
    assert (first.state_admin, first.version) == ("removed", 2)
    assert [row.id for row in await fleet.workers(session)] == [second.id]
    assert [row.id for row in await fleet.workers(session, removed=True)] == [first.id, second.id]
    await fleet.set_state(session, second.id, "removed")
    assert (await fleet.add_worker(session, "box", b"3" * 32)).state_admin == "active"


async def test_two_joins_of_one_name_in_the_same_moment_leave_one_worker(database):
    """Postgres lets both look before either leaps, and makes the second one wait for the first; SQLite lets in one at a time."""

    async def join(public_key):
        async with database.write() as session:
            return await fleet.add_worker(session, "box", public_key)

    async with database.write() as first:
        await fleet.add_worker(first, "box", b"1" * 32)
        second = asyncio.create_task(join(b"2" * 32))
        if not database.file:
            await until_somebody_waits_for_a_lock(database)
    with pytest.raises(Conflict) as refused:
        await second
    assert refused.value.code == "name_taken"
    async with database.read() as session:
        assert [row.public_key for row in await fleet.workers(session)] == [b"1" * 32]


async def until_somebody_waits_for_a_lock(database):
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    )
    async with asyncio.timeout(10):
        while True:
            async with database.read() as session:
                if (await (await session.connection()).execute(waiting)).scalar_one():
                    return


async def test_a_worker_is_found_by_name_or_id(session):
    row = await fleet.add_worker(session, "box", b"1" * 32)
    named_like_it = await fleet.add_worker(session, row.id, b"2" * 32)
    assert (await fleet.find_worker(session, "box")).id == row.id
    assert (await fleet.find_worker(session, row.id)).id == named_like_it.id
    assert (await fleet.worker(session, row.id)).name == "box"
    with pytest.raises(NotFound):
        await fleet.find_worker(session, "other")


async def test_a_removed_worker_does_not_come_back(session):
    row = await fleet.add_worker(session, "box", b"1" * 32, state="pending")
    assert (await fleet.set_state(session, row.id, "active", version=1)).version == 2
    assert (await fleet.set_state(session, row.id, "active")).version == 2
    await fleet.set_state(session, row.id, "removed", reason="sold")
    with pytest.raises(NotFound):
        await fleet.set_state(session, row.id, "active")
    with pytest.raises(NotFound):
        await fleet.set_state(session, "unknown", "locked")


async def test_every_session_has_a_higher_number(session):
    row = await fleet.add_worker(session, "box", b"1" * 32)
    assert [await fleet.advance_epoch(session, row.id) for _ in range(3)] == [1, 2, 3]
    assert await fleet.advance_epoch(session, row.id, at_least=40) == 41
    assert row.version == 1
    with pytest.raises(NotFound):
        await fleet.advance_epoch(session, "unknown")


async def test_the_last_report_of_a_worker_is_kept(session):
    row = await fleet.add_worker(session, "box", b"1" * 32, hostname="old")
    models, engine = [{"id": "org/model:7b", "context": 4096}], {"kind": "llama.cpp", "version": "b1"}
    await fleet.note_report(session, row.id, NOON, models=models, engine=engine, software="1.2")
    await session.refresh(row)
    assert (row.models, row.engine, row.hostname, row.software, row.last_seen_at, row.version) == (models, engine, "old", "1.2", NOON, 1)
