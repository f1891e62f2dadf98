"""The audit log is a chain: whoever changes, drops or swaps entries is found out, and the first bad number is named."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlmodel import select

from mindgw import clock
from mindgw.store import audit, audit_chain
from mindgw.store.audit_chain import ARCHIVE, Broken, End, Kept
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry, AuditHead
from mindgw_agent import identity

KEY = b"k" * 32
SERVER = b"s" * 32
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Who:
    actor, org_id, address, user_id, email = "k1", "o1", "192.0.2.1", "", ""


@pytest.fixture
def log(database):
    database.audit_key = KEY
    return database


def signed(message):
    return identity.sign(SERVER, message)


def vouched(signature, message):
    return identity.verify(identity.public_half(SERVER), signature, message)


async def write(log, *actions, who="local", at=None, monkeypatch=None):
    if at is not None:
        monkeypatch.setattr(audit, "utcnow", lambda: at)
    for action in actions:
        async with log.write() as session:
            await audit.record(session, who, action, "x", name="ü", many=2**40, deep={"b": [1, None, True], "a": "\n"})


async def found(log, key=KEY, kept=audit_chain.NOTHING):
    counts = Counter()
    async with log.read() as session:
        return [wrong async for wrong in audit_chain.broken(session, key, vouched, counts, kept)], counts


async def execute(log, statement, **values):
    async with log.write() as session:
        done = await (await session.connection()).execute(text(statement), values)
        assert done.rowcount, "the test has done nothing"


async def entries(log):
    async with log.read() as session:
        return (await session.exec(select(AuditEntry).order_by(AuditEntry.seq))).all()


async def test_entries_are_numbered_and_linked_when_they_are_committed(log):
    async with log.write() as session:
        await audit.record(session, "local", "key.create", "k1")
        await audit.refused(session, Who, "key.revoke", "k1", code="forbidden")
    await write(log, "team.create")
    rows = await entries(log)
    assert [(row.seq, row.action, row.outcome) for row in rows] == [
        (1, "key.create", "ok"), (2, "key.revoke", "refused"), (3, "team.create", "ok"),
    ]  # fmt: skip
    assert (rows[1].actor, rows[1].org_id, rows[1].address) == ("k1", "o1", "192.0.2.1")
    assert (rows[0].org_id, rows[0].address) == (None, "")
    assert len({row.hash for row in rows}) == 3
    assert (await found(log))[0] == []


async def test_a_change_that_fails_leaves_neither_an_entry_nor_a_gap(log):
    await write(log, "one")
    with pytest.raises(RuntimeError, match="late"):
        async with log.write() as session:
            await audit.record(session, "local", "two", "x")
            raise RuntimeError("late")
    await write(log, "three")
    assert [(row.seq, row.action) for row in await entries(log)] == [(1, "one"), (2, "three")]
    assert (await found(log))[0] == []


async def test_many_writers_make_one_chain(log):
    others = [Database(log.url.render_as_string(hide_password=False)) for _ in range(3)]
    for other in others:
        other.audit_key = KEY
    await asyncio.gather(*(write(one, *[f"a{number}" for number in range(15)]) for one in [log, *others]))
    assert [row.seq for row in await entries(log)] == list(range(1, 61))
    wrong, counts = await found(log)
    assert (wrong, counts["entries"]) == ([], 60)
    await asyncio.gather(*(other.close() for other in others))


@pytest.mark.parametrize("detail", [{"x": 0.5}, {"x": [{"y": 1.0}]}, {"x": "\udc00"}, {"x": object()}])
async def test_what_databases_may_write_in_another_way_is_refused(log, detail):
    with pytest.raises((TypeError, ValueError)):
        async with log.write() as session:
            await audit.record(session, "local", "a.b", "x", **detail)
    assert await entries(log) == []


# -- tampering ---------------------------------------------------------------------------------------------------------

EDITS = {
    "actor": "UPDATE audit SET actor = 'somebody' WHERE seq = 4",
    "action": "UPDATE audit SET action = 'key.list' WHERE seq = 4",
    "object": "UPDATE audit SET object = 'y' WHERE seq = 4",
    "detail": """UPDATE audit SET detail = '{"name": "other"}' WHERE seq = 4""",
    "at": "UPDATE audit SET at = '2020-01-01 00:00:00+00' WHERE seq = 4",
    "org_id": "UPDATE audit SET org_id = 'other' WHERE seq = 4",
    "address": "UPDATE audit SET address = '192.0.2.9' WHERE seq = 4",
    "outcome": "UPDATE audit SET outcome = 'refused' WHERE seq = 4",
    "id": "UPDATE audit SET id = 'other' WHERE seq = 4",
    "hash": "UPDATE audit SET hash = (SELECT hash FROM audit WHERE seq = 5) WHERE seq = 4",
    "dropped": "DELETE FROM audit WHERE seq = 4",
    "the first ones dropped": "DELETE FROM audit WHERE seq < 4",
    "moved": "UPDATE audit SET seq = 99 WHERE seq = 4",
}
FIRST = {"the first ones dropped": 1}


@pytest.mark.parametrize("edit", EDITS)
async def test_an_entry_that_was_changed_is_named(log, edit):
    await write(log, *[f"a.{number}" for number in range(8)])
    assert (await found(log))[0] == []
    await execute(log, EDITS[edit])
    wrong, _ = await found(log)
    assert min(one.seq for one in wrong) == FIRST.get(edit, 4)


async def test_entries_that_changed_places_are_found(log):
    await write(log, *[f"a.{number}" for number in range(8)])
    for before, after in ((3, 99), (6, 3), (99, 6)):
        await execute(log, f"UPDATE audit SET seq = {after} WHERE seq = {before}")
    wrong, _ = await found(log)
    assert min(one.seq for one in wrong) == 3


async def test_who_does_not_have_the_key_cannot_make_links(log):
    await write(log, "one", "two", "three")
    await execute(log, "DELETE FROM audit WHERE seq > 1")
    log.audit_key = b"guessed"
    await write(log, "forged")
    assert [one.seq for one in (await found(log))[0]] == [2]


@pytest.mark.parametrize("blank", ["''", "NULL"])
async def test_what_is_older_than_the_chain_is_counted_and_no_more(log, blank):
    await write(log, "one", "two")
    await execute(log, f"UPDATE audit SET hash = {blank}")
    async with log.read() as session:
        kept = Kept(await audit_chain.first_linked(session), await audit_chain.last(session))
    assert kept == Kept(3, End(2, b""))
    await write(log, "three")
    wrong, counts = await found(log, kept=kept)
    assert (wrong, counts["entries"], counts["older than the chain"]) == ([], 3, 2)


@pytest.mark.parametrize("blank", ["''", "NULL"])
async def test_what_was_made_to_look_older_than_the_chain_is_found(log, blank):
    await write(log, "one", "two", "three")
    async with log.read() as session:
        kept = Kept(await audit_chain.first_linked(session), await audit_chain.last(session))
    await execute(log, f"UPDATE audit SET hash = {blank}, actor = 'innocent'")
    assert [one.seq for one in (await found(log, kept=kept))[0]] == [1, 2, 3, 3]
    await write(log, "four")  # its link has none before it
    assert {one.seq for one in (await found(log, kept=kept))[0]} >= {1, 2, 3}


async def test_what_was_cut_off_with_its_heads_is_missed_by_who_knows_the_end(days):
    async with days.read() as session:
        kept = Kept(1, await audit_chain.last(session))
    assert (await found(days, kept=kept))[0] == []
    await execute(days, "DELETE FROM audit_heads")
    await execute(days, "DELETE FROM audit WHERE seq > 4")
    assert (await found(days))[0] == []
    assert [one.seq for one in (await found(days, kept=kept))[0]] == [5]
    await write(days, *"abcdefg")
    assert [one.seq for one in (await found(days, kept=kept))[0]] == [9]


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def days(log, monkeypatch):
    """Three entries on each of three days; heads of the first two."""
    for day in range(3):
        await write(log, "a", "b", "c", at=NOON + timedelta(days=day), monkeypatch=monkeypatch)
        async with log.write() as session:
            await audit_chain.sign(session, NOON + timedelta(days=day), signed)
    return log


async def test_a_day_that_is_over_gets_one_signed_head(days):
    async with days.write() as session:
        assert await audit_chain.sign(session, NOON + timedelta(days=2), signed) is None
        heads = await audit_chain.heads(session)
        assert await audit_chain.last(session) == End(9, (await entries(days))[-1].hash)
    assert [(head.day, head.seq, head.archived_at) for head in heads] == [("2026-03-01", 3, None), ("2026-03-02", 6, None)]
    assert (await found(days)) == ([], {"heads": 2, "entries": 9, "older than the chain": 0})


async def test_a_server_that_was_away_signs_all_of_it_at_once(days):
    async with days.write() as session:
        head = await audit_chain.sign(session, NOON + timedelta(days=30), signed)
    assert (head.day, head.seq) == ("2026-03-03", 9)


async def test_two_servers_sign_a_day_once(days):
    other = Database(days.url.render_as_string(hide_password=False))

    async def sign(database):
        async with database.write() as session:
            await audit_chain.sign(session, NOON + timedelta(days=3), signed)

    await asyncio.gather(sign(days), sign(other))
    assert (await found(days))[1]["heads"] == 3
    await other.close()


@pytest.mark.parametrize(
    ("edit", "first"),
    [
        ("DELETE FROM audit WHERE seq > 5", 6),
        ("UPDATE audit_heads SET signature = hash WHERE seq = 6", 6),
        ("UPDATE audit_heads SET seq = 5 WHERE seq = 6", 5),
        ("UPDATE audit_heads SET day = '2026-03-09' WHERE seq = 6", 6),
    ],
)
async def test_a_head_shows_what_was_cut_off_and_cannot_be_changed(days, edit, first):
    await execute(days, edit)
    wrong, _ = await found(days)
    assert min(one.seq for one in wrong) == first


async def test_the_head_of_another_server_is_none(days):
    async with days.write() as session:
        entry = (await entries(days))[8]
        message = audit_chain.transcript("2026-03-03", entry.seq, entry.hash)
        session.add(AuditHead(day="2026-03-03", seq=entry.seq, hash=entry.hash, signature=identity.sign(b"o" * 32, message)))
    assert (await found(days))[0] == [Broken(9, "the signature of the head of 2026-03-03 is not this server's")]


# -- segments ----------------------------------------------------------------------------------------------------------


async def test_a_segment_leaves_whole_and_the_chain_says_so(days):
    async with days.write() as session:
        head = (await audit_chain.heads(session))[0]
        await audit.record(session, "local", ARCHIVE, head.day, hash=head.hash.hex())
        assert await audit_chain.leave(session, head, 1, clock.utcnow()) == 3
    assert [row.seq for row in await entries(days)] == [4, 5, 6, 7, 8, 9, 10]
    assert (await found(days))[0] == []


async def test_who_only_says_that_a_segment_was_archived_is_found_out(days):
    async with days.write() as session:
        head = (await audit_chain.heads(session))[0]
        await audit_chain.leave(session, head, 1, clock.utcnow())
    wrong, _ = await found(days)
    assert [(one.seq, "no entry does" in one.what) for one in wrong] == [(1, True)]


async def test_a_log_from_which_everything_has_left_goes_on(days):
    async with days.write() as session:
        head = await audit_chain.sign(session, NOON + timedelta(days=9), signed)
    async with days.write() as session:
        head = await session.merge(head)
        await audit_chain.leave(session, head, 1, clock.utcnow())
        assert await audit_chain.last(session) == End(9, head.hash)
    async with days.write() as session:
        await audit.record(session, "local", ARCHIVE, head.day, hash=head.hash.hex())
    assert [row.seq for row in await entries(days)] == [10]
    assert (await found(days))[0] == []
