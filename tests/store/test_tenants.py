"""A session that is confined to one organisation: no statement finds a row of another, on both databases."""

import pytest
from sqlalchemy import delete, update
from sqlmodel import col, func, select

from mindgw.clock import utcnow
from mindgw.errors import Forbidden, InternalError
from mindgw.store import tenants
from mindgw.store.tables import (
    AccessRule,
    AuditEntry,
    DeadLetter,
    Identity,
    Key,
    LedgerRow,
    Org,
    Quota,
    Rate,
    Role,
    RoleBinding,
    Session,
    Story,
    Team,
    User,
    metadata,
)
from mindgw.store.tenants import View

#: Tables that belong to whoever runs the server, and those that nobody's request reads by their class.
OF_THE_SERVER = {
    "workers", "join_tokens", "audit_heads", "epochs", "epoch_workers", "ledger_commits", "receipts", "receipt_heads", "flow_counters",
    "replays", "budgets", "leases", "key_changes", "routes", "series_blocks", "tickets", "departures",
}  # fmt: skip
SEEN = (AccessRule, AuditEntry, DeadLetter, Identity, Key, LedgerRow, Org, Quota, Rate, Role, RoleBinding, Session, Story, Team, User)


def belongings(org: str) -> list:
    """One row of each table that an organisation has something in."""
    now, name = utcnow(), f"of {org}"
    letter = {"request_id": f"d-{org}", "key_id": f"k-{org}", "model": "m", "endpoint": "/", "fault": "fleet", "status": 503, "code": "c"}
    story = {"key_id": f"k-{org}", "asked": "m", "model": "m", "outcome": "done", "status": 200}
    return [
        Org(id=org, name=name),
        Team(id=f"t-{org}", org_id=org, name=name),
        User(id=f"u-{org}", org_id=org, email=f"u@{org}"),
        Key(id=f"k-{org}", name=name, org_id=org, digest=b"d"),
        Identity(id=f"i-{org}", issuer="i", subject=org, user_id=f"u-{org}", provider="p", key_id=f"k-{org}", claims_at=now),
        Role(id=f"r-{org}", org_id=org, name=name),
        RoleBinding(id=f"b-{org}", user_id=f"u-{org}", role=name),
        AccessRule(id=f"a-{org}", org_id=org, subject="role:user", effect="deny", pattern="*"),
        Session(id=f"s-{org}", user_id=f"u-{org}", digest=b"d", expires_at=now),
        *(Rate(scope=scope) for scope in (f"org:{org}", f"team:t-{org}", f"user:u-{org}")),
        *(Quota(scope=scope, unit="tokens", period="day", lim=1) for scope in (f"org:{org}", f"key:k-{org}")),
        AuditEntry(id=f"e-{org}", actor="a", action="a.b", object="o", seq=len(org), org_id=org),
        DeadLetter(id=f"d-{org}", org_id=org, message="", started_at=now, failed_at=now, **letter),
        LedgerRow(**ledger_row(org, now)),
        Story(id=f"y-{org}", request_id=f"y-{org}", org_id=org, **story, started_at=now, document=b""),
    ]


def ledger_row(org, now):
    texts = ("key_id", "model", "worker_id", "endpoint", "outcome", "error_code", "source", "price_version")
    numbers = ("status", "prompt_tokens", "completion_tokens", "cached_tokens", "queued_ms", "total_ms", "bytes_out", "cost", "over")
    facts = {"request_id": f"l-{org}", "attempt": 1, "kind": "settled", "stream": False, "day": "2026-11-21", "epoch": 1, "seq": len(org)}
    return {**dict.fromkeys(texts, ""), **dict.fromkeys(numbers, 0), **facts, "org_id": org, "started_at": now}


@pytest.fixture
async def two(database):
    """A database with two organisations, and a quota for a model."""
    async with database.write() as session:
        for org in ("a", "bb"):
            for row in belongings(org):
                session.add(row)
                await session.flush()
        session.add(Quota(scope="model:m", unit="tokens", period="day", lim=1))
        session.add(AuditEntry(id="e", actor="local", action="server.init", object="o", seq=9))
    return database


def test_every_table_is_somebodys():
    confined = {table.__tablename__ for table in tenants._criteria(View("o", False))}
    assert confined == {table.__tablename__ for table in SEEN}
    at_home = {table.__tablename__ for table in tenants._criteria(View("o", True))}
    assert confined - at_home == {"orgs"}
    assert confined | OF_THE_SERVER == set(metadata.tables)
    assert {name for name, table in metadata.tables.items() if "org_id" in table.columns} <= confined


@pytest.mark.parametrize("table", SEEN)
async def test_nothing_is_found_of_another_organisation(two, table):
    async with two.within(View("a", False)).read() as session:
        found = (await session.exec(select(table))).all()
        assert found
        assert all("bb" not in str(row.model_dump()) for row in found)
        counted = (await session.exec(select(func.count()).select_from(table))).one()
        assert counted == len(found)
    async with two.read() as session:
        assert len((await session.exec(select(table))).all()) > len(found)


@pytest.mark.parametrize("table", [Key, User, Team, Role, RoleBinding, AccessRule, DeadLetter, Session, Story, Org])
async def test_an_id_of_another_organisation_is_an_id_of_nothing(two, table):
    async with two.write() as session:
        theirs = next(row for row in (await session.exec(select(table))).all() if row.id.endswith("bb"))
    async with two.within(View("a", table is not Org)).write() as session:
        assert await session.get(table, theirs.id) is None
        assert await session.get(table, theirs.id, with_for_update=True, populate_existing=True) is None
        columns = select(col(table.id)).where(col(table.id) == theirs.id)
        assert (await session.exec(columns)).all() == []


async def test_no_change_reaches_another_organisation(two):
    async with two.within(View("a", True)).write() as session:
        await session.exec(update(Key).values(name="taken"))
        await session.exec(delete(AccessRule))
    async with two.read() as session:
        assert set((await session.exec(select(Key.id, Key.name))).all()) == {("k-a", "taken"), ("k-bb", "of bb")}
        assert (await session.exec(select(AccessRule.id))).all() == ["a-bb"]


async def test_a_join_is_confined_on_both_sides(two):
    async with two.write() as session:
        (await session.get(Key, "k-a")).team_id = "t-bb"  # which nothing that we have would do
    async with two.within(View("a", True)).read() as session:
        joined = select(Key.id, Team.name).join(Team, col(Key.team_id) == Team.id, isouter=True)
        assert (await session.exec(joined)).all() == [("k-a", None)]


async def test_what_is_nobodys_is_for_whoever_runs_the_server(two):
    for is_home in (True, False):
        async with two.within(View("a", is_home)).read() as session:
            scopes = set((await session.exec(select(Quota.scope))).all())
            assert ("model:m" in scopes) is is_home
            assert ("e" in (await session.exec(select(AuditEntry.id))).all()) is is_home


@pytest.mark.parametrize("is_home", [True, False])
async def test_nothing_is_stored_for_another_organisation(two, is_home):
    with pytest.raises(InternalError, match="Team"):
        async with two.within(View("a", is_home)).write() as session:
            session.add(Team(org_id="bb", name="ours now"))
    async with two.read() as session:
        assert (await session.exec(select(Team).where(Team.name == "ours now"))).all() == []


async def test_a_session_says_what_it_is_confined_to(two):
    async with two.within(View("a", False)).read() as session:
        assert tenants.org_of(session) == "a"
    async with two.read() as session:
        assert tenants.org_of(session) is None


async def test_rights_in_a_team_show_its_keys_and_no_others(two):
    async with two.write() as session:
        session.add(Team(id="t2", org_id="a", name="two"))
        await session.flush()
        session.add(Key(id="k2", name="k2", org_id="a", team_id="t2", digest=b"d"))
    async with two.within(View("a", teams=frozenset({"t2", "t-bb"}))).read() as session:
        assert (await session.exec(select(Key.id))).all() == ["k2"]
        assert (await session.exec(select(Team.id))).all() == ["t2"]
        assert await session.get(Key, "k-a") is None


@pytest.mark.parametrize("team", [None, "t-a"])
async def test_rights_in_a_team_make_no_keys_elsewhere(two, team):
    with pytest.raises(Forbidden):
        async with two.within(View("a", teams=frozenset({"t2"}))).write() as session:
            session.add(Key(id="k2", name="k2", org_id="a", team_id=team, digest=b"d"))
