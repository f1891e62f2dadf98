"""Segments of the audit log leave for files whole and signed, can be checked there, and are missed nowhere."""

import asyncio
import json
import shutil
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlmodel import select

from mindgw.control import audit as management
from mindgw.control import replica, search, secrets, segments
from mindgw.control.principal import Principal
from mindgw.core.access import BUILT_IN, combine
from mindgw.errors import BadRequest
from mindgw.store import audit, audit_chain
from mindgw.store.tables import AuditEntry

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
KEEP = 10 * DAY


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return secrets.obtain(tmp_path_factory.mktemp("secrets"))


@pytest.fixture
async def log(database, own, monkeypatch, tmp_path):
    """Entries 1 to 9 on three days, the first one by which the database is known."""
    database.audit_key = own.audit_key
    for day in range(3):
        monkeypatch.setattr(audit, "utcnow", lambda at=NOON + day * DAY: at)
        async with database.write() as session:
            if not day:
                await replica.mark(session, own, "local")
            for number in range(2 if not day else 3):
                await audit.record(session, "local", f"team.create{number}", f"t{day}", name="ü" * number)
        await segments.tend(database, own, tmp_path, KEEP, NOON + day * DAY)
    return database


async def left(log):
    async with log.read() as session:
        return list((await session.exec(select(AuditEntry.seq).order_by(AuditEntry.seq))).all())


async def checked(log, own, directory):
    words = [word async for word in management.check(log, own, directory)]
    return [(word.seq, word.what) for word in words[:-1] if isinstance(word, management.Wrong)], words[-1]


@pytest.fixture
def hashed(monkeypatch):
    """Numbers of entries that were hashed to be checked, each with its thread; and what is done before that."""
    seen, link = [], audit_chain._link

    def look(key, prev, entry):
        seen.append((entry["seq"], threading.get_ident()))
        before[0](entry["seq"])
        return link(key, prev, entry)

    before = [lambda seq: None]
    monkeypatch.setattr(audit_chain, "_link", look)
    return seen, before


async def test_nothing_is_hashed_where_requests_are_served(log, own, tmp_path, hashed):
    wrong, last = await checked(log, own, tmp_path)
    assert (wrong, last.ok, [seq for seq, _ in hashed[0]]) == ([], True, list(range(1, 10)))
    await segments.tend(log, own, tmp_path, KEEP, NOON + KEEP + DAY)
    assert [seq for seq, _ in hashed[0][9:]] == [1, 2, 3]
    assert threading.get_ident() not in {thread for _, thread in hashed[0]}


async def test_a_long_check_says_how_far_it_is(log, own, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(search, "PERIOD", 0.01)
    monkeypatch.setattr(audit_chain, "PAGE", 2)
    go = threading.Event()
    hashed[1][0] = lambda seq: seq < 7 or go.wait()
    told = []
    async for word in management.check(log, own, tmp_path):
        told.append(word)
        if told[-2:] == [management.Checking(checked={"heads": 2, "entries": 6, "older than the chain": 0})] * 2:
            go.set()
    assert go.is_set() and told[-1].ok and told[-1].checked["entries"] == 9


async def test_whoever_stops_listening_ends_the_check(log, own, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(search, "PERIOD", 0.01)
    monkeypatch.setattr(audit_chain, "PAGE", 2)
    begun, go = threading.Event(), threading.Event()
    hashed[1][0] = lambda seq: seq < 3 or begun.set() or go.wait()
    check = management.check(log, own, tmp_path)
    async for word in check:
        if word.checked.get("entries") == 2:
            break
    assert await asyncio.to_thread(begun.wait, 60)
    closing = asyncio.create_task(check.aclose())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert [seq for seq, _ in hashed[0]] == [1, 2, 3, 4], "the page at hand is the last one"


async def test_old_segments_go_to_files_and_the_rest_stays(log, own, tmp_path):
    assert await left(log) == list(range(1, 10))
    await segments.tend(log, own, tmp_path, KEEP, NOON + KEEP + DAY)
    # the first day is gone; by which the database is known is said again, and what has left
    assert await left(log) == list(range(4, 12))
    path = segments.file_of(tmp_path, "2026-03-01")
    assert path.stat().st_mode & 0o777 == 0o600
    *entries, head = map(json.loads, path.read_text().splitlines())
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    assert entries[2]["detail"] == {"name": "ü"}
    assert (head["day"], head["seq"], head["hash"]) == ("2026-03-01", 3, entries[-1]["hash"])
    wrong, last = await checked(log, own, tmp_path)
    assert (wrong, last.ok, last.first, last.checked["archives"]) == ([], True, None, 1)
    async with log.read() as session:
        assert await replica.owner(session, own) == "us"


async def test_a_segment_is_archived_once(log, own, tmp_path):
    for _ in range(3):
        await segments.tend(log, own, tmp_path, KEEP, NOON + 20 * DAY)
    async with log.read() as session:
        told = (await session.exec(select(AuditEntry.object).where(AuditEntry.action == "audit.archive"))).all()
    assert sorted(told) == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert (await checked(log, own, tmp_path))[0] == []


async def test_a_file_may_be_moved_elsewhere(log, own, tmp_path):
    await segments.tend(log, own, tmp_path, KEEP, NOON + 20 * DAY)
    shutil.rmtree(tmp_path / segments.FOLDER)
    wrong, last = await checked(log, own, tmp_path)
    assert (wrong, last.checked["archives elsewhere"]) == ([], 3)


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (lambda lines: [lines[0].replace("team.create0", "team.remove0"), *lines[1:]], 4),
        (lambda lines: [*lines[:1], *lines[2:]], 5),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 4),
        (lambda lines: lines[:-1], 6),
        (lambda lines: [*lines[:-2], lines[-1]], 6),
        (lambda lines: [*lines[:-1], lines[-1].replace("2026-03-02", "2026-03-01")], 6),
        (lambda lines: ["{", *lines[1:]], 4),
        (lambda lines: [], 4),
    ],
)
async def test_a_file_that_was_changed_is_found_out(log, own, tmp_path, spoil, first):
    await segments.tend(log, own, tmp_path, KEEP, NOON + 20 * DAY)
    path = segments.file_of(tmp_path, "2026-03-02")
    path.write_text("".join(line + "\n" for line in spoil(path.read_text().splitlines())))
    wrong, last = await checked(log, own, tmp_path)
    assert (min(seq for seq, _ in wrong), last.first, last.ok) == (first, first, False)


async def test_a_segment_that_is_not_right_stays_where_it_is(log, own, tmp_path, caplog):
    async with log.write() as session:
        await (await session.connection()).execute(text("UPDATE audit SET actor = 'other' WHERE seq = 5"))
    before = await left(log)
    await segments.tend(log, own, tmp_path, KEEP, NOON + 20 * DAY)
    assert set(before) - set(await left(log)) == {1, 2, 3}  # the day before is right
    assert "2026-03-02 is not archived" in caplog.text
    _, last = await checked(log, own, tmp_path)
    assert (last.first, last.ok) == (5, False)


# -- what management sees ----------------------------------------------------------------------------------------------

ADMIN = combine([(BUILT_IN["admin"], None)])
HOME = Principal(org_id="home", is_home=True, rights=ADMIN)
GUEST = Principal(org_id="guest", is_home=False, rights=ADMIN)


@pytest.fixture
async def two(database):
    """An entry of each of two organisations, and one of the whole installation."""
    for who in (HOME, GUEST):
        async with database.write() as session:
            await audit.record(
                session, Principal(org_id=who.org_id, is_home=False, key_id="k", address="192.0.2.1"), "key.create", who.org_id
            )
    async with database.write() as session:
        await audit.refused(session, "agent:w1", "worker_x", "w1")
    return database


async def seen(database, who, **wanted):
    page = await management.listing(database, who, management.Wanted(**wanted), limit=10)
    return [item.seq for item in page.items]


async def test_an_organisation_sees_its_own_entries_alone(two):
    assert await seen(two, HOME) == [3, 1]
    assert await seen(two, GUEST) == [2]
    assert [view.seq async for view in management.export(two, GUEST, management.Wanted())] == [2]
    page = await management.news(two, GUEST, management.Wanted(), after=0, limit=5)
    assert ([item.seq for item in page.items], page.next) == ([2], "2")
    assert (await management.news(two, GUEST, management.Wanted(), after=2, limit=5)).next == "2"


@pytest.mark.parametrize(
    ("wanted", "seqs"),
    [
        ({"action": "key.*"}, [1]),
        ({"action": "worker%x"}, []),
        ({"action": "worker_x"}, [3]),
        ({"action": "key_create"}, []),
        ({"outcome": "refused"}, [3]),
        ({"object": "home"}, [1]),
        ({"actor": "agent:w1"}, [3]),
        ({"actor": "k"}, [1]),
        ({"actor": "nobody@example.org"}, []),
        ({"since": "1h"}, [3, 1]),
        ({"until": "2020-01-01"}, []),
        ({"since": "2020-01-01", "until": "2999-01-01"}, [3, 1]),
    ],
)
async def test_entries_are_chosen(two, wanted, seqs):
    assert await seen(two, HOME, **wanted) == seqs


@pytest.mark.parametrize("wanted", [{"since": "yesterday"}, {"until": "7x"}, {"outcome": "maybe"}, {"since": "9999999999d"}])
async def test_what_cannot_be_meant_is_refused(two, wanted):
    with pytest.raises(BadRequest) as refused:
        await seen(two, HOME, **wanted)
    assert refused.value.param in wanted


async def test_a_list_is_read_page_by_page(two):
    first = await management.listing(two, HOME, management.Wanted(), limit=1)
    second = await management.listing(two, HOME, management.Wanted(), before=int(first.next), limit=1)
    assert [page.items[0].seq for page in (first, second)] == [3, 1]
    assert Counter(view.hash for view in [*first.items, *second.items]).most_common(1)[0][1] == 1
