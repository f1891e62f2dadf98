"""Stories of requests: written once, paged from the newest, found by their request, and gone when they are too old or too many."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import InvalidRequestError
from sqlmodel import col, select

from mindgw.store import ids, stories
from mindgw.store.stories import Choice, Document, Limit, Moment, Story
from mindgw.store.tables import Story as Row
from mindgw.store.tenants import View

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


def told(number: int = 0, **fields) -> Story:
    at = NOON + timedelta(seconds=number)
    facts = {
        "id": ids.new_id(at.timestamp()), "request_id": f"req-{number}", "key_id": "k", "org_id": "o", "asked": "m", "model": "m",
        "outcome": "done", "status": 200, "started_at": at,
    }  # fmt: skip
    return Story(**(facts | fields))


async def requests(session, *where, **options) -> list[str]:
    return [row.request_id for row in await stories.page(session, *where, **options)]


async def test_a_story_comes_back_as_it_went_in(session):
    sent = told(
        user_id="u", team_id="t", end_user="e", worker_id="w", error_code="c", attempts=3, tokens_in=2**40, tokens_out=5, queued_ms=1,
        ttft_ms=2, total_ms=3, speed=1.5, document=b"\0\xff", started_at=NOON + timedelta(microseconds=1),
    )  # fmt: skip
    await stories.append(session, [sent, told(1, ttft_ms=None, speed=None)])
    assert await stories.find(session, "req-0") == sent
    assert (await stories.find(session, "req-1")).ttft_ms is None
    assert await stories.find(session, "req-2") is None


async def test_a_batch_may_be_sent_again(session):
    first = told(1)
    await stories.append(session, [first])
    await stories.append(session, [first, told(2), told(3, request_id="req-1")])
    await stories.append(session, [])
    assert await requests(session) == ["req-2", "req-1"]
    assert (await stories.find(session, "req-1")).started_at == first.started_at


async def test_pages_begin_with_the_newest_and_join(session):
    made = [told(number) for number in range(5)]
    await stories.append(session, made)
    assert await requests(session, limit=2) == ["req-4", "req-3"]
    assert await requests(session, before=made[3].id, limit=2) == ["req-2", "req-1"]
    assert await requests(session, before=made[0].id) == []
    assert await requests(session, col(Row.status) == 500) == []


async def test_a_page_holds_no_documents(session):
    await stories.append(session, [told(document=b"x")])
    session.expunge_all()
    (row,) = await stories.page(session)
    with pytest.raises(InvalidRequestError):
        _ = row.document


async def goes(session, before=NOON, most=100) -> int:
    """Takes away what one look finds; how many that was."""
    doomed = await stories.surplus(session, before, most)
    await stories.drop(session, doomed)
    return len(doomed)


async def test_those_that_are_too_old_go(session):
    await stories.append(session, [told(number) for number in range(10)])
    assert await goes(session, NOON + timedelta(seconds=4)) == 4
    assert await goes(session, NOON + timedelta(seconds=4)) == 0
    assert await requests(session) == [f"req-{number}" for number in range(9, 3, -1)]


async def test_of_too_many_the_oldest_go_look_by_look(session, monkeypatch):
    monkeypatch.setattr(stories, "LOT", 3)
    await stories.append(session, [told(number) for number in range(12)])
    assert [await goes(session, most=4) for _ in range(4)] == [3, 3, 2, 0]
    assert await requests(session) == ["req-11", "req-10", "req-9", "req-8"]


async def test_both_at_once(session):
    await stories.append(session, [told(number) for number in range(10)])
    assert await goes(session, NOON + timedelta(seconds=8), 5) == 8
    assert await requests(session) == ["req-9", "req-8"]
    await stories.append(session, [told(number) for number in range(10, 20)])
    assert await goes(session, NOON + timedelta(seconds=9), 5) == 1 + 6
    assert await requests(session) == [f"req-{number}" for number in range(19, 14, -1)]


def crowd(*held):
    """Stories that came one after the other, of (organisation, key, how many)."""
    every = [(org, key) for org, key, count in held for _ in range(count)]
    return [told(number, org_id=org, key_id=key) for number, (org, key) in enumerate(every)]


async def left(session):
    found = Counter((row.org_id, row.key_id) for row in await stories.page(session, limit=1000))
    return [(org, key, count) for (org, key), count in sorted(found.items())]


@pytest.mark.parametrize("exact", [True, False])
async def test_who_has_more_than_a_share_makes_room_for_the_others(session, monkeypatch, exact):
    monkeypatch.setattr(stories, "EXACT", 1000 if exact else 10)
    monkeypatch.setattr(stories, "_PART", 1)  # as if one of each of them had been looked at
    monkeypatch.setattr(stories, "_SAMPLED", "")
    held = crowd(("a", "quiet", 5), ("b", "idle", 3), ("a", "loud", 40), ("a", "busy", 12), ("c", "x", 10))
    await stories.append(session, held)
    assert await goes(session, most=60) == 10
    assert await left(session) == [("a", "busy", 12), ("a", "loud", 30), ("a", "quiet", 5), ("b", "idle", 3), ("c", "x", 10)]
    newest = [row.request_id for row in await stories.page(session, col(Row.key_id) == "loud", limit=1000)]
    assert newest == [f"req-{number}" for number in range(47, 17, -1)], "its oldest are gone"
    assert await goes(session, most=30) == 30  # shares of three
    assert await left(session) == [("a", "busy", 6), ("a", "loud", 6), ("a", "quiet", 5), ("b", "idle", 3), ("c", "x", 10)]


@given(st.dictionaries(st.text("abc", max_size=2), st.integers(1, 50)), st.integers(0, 300), st.integers(0, 30))
def test_the_largest_come_down_to_one_level(counts, excess, share):
    given = dict(stories._beyond(Counter(counts), excess, share))
    after = {name: count - given.get(name, 0) for name, count in counts.items()}
    assert sum(given.values()) == min(excess, sum(max(0, count - share) for count in counts.values()))
    assert all(after[name] >= share for name in given)
    level = min((after[name] for name in given), default=max(after.values(), default=0))
    assert sum(max(0, count - level) for count in after.values()) < max(1, len(counts)), "but for what does not divide"


async def test_where_nobody_has_more_than_a_share_the_oldest_of_all_go(session):
    await stories.append(session, crowd(*((f"o{number}", "k", 2) for number in range(15))))
    assert await goes(session, most=25) == 5
    assert await left(session) == sorted([("o2", "k", 1), *((f"o{number}", "k", 2) for number in range(3, 15))])


async def test_an_organisation_with_many_keys_has_no_more_than_one(session):
    await stories.append(session, crowd(("b", "b", 10), *(("a", f"k{number:02}", 2) for number in range(45))))
    assert await goes(session, most=90) == 10
    assert await left(session) == [*(("a", f"k{number:02}", 2) for number in range(5, 45)), ("b", "b", 10)]


async def test_of_many_some_tell_who_they_are_of(session, monkeypatch):
    """Every 32nd, by the last character of its id: here they take turns."""
    monkeypatch.setattr(stories, "EXACT", 100)
    held = crowd(("o", "quiet", 40), ("o", "loud", 400))
    turns = "0123456789abcdefghjkmnpqrstvwxyz"
    await stories.append(session, [msgspec.structs.replace(one, id=one.id[:-1] + turns[n % 32]) for n, one in enumerate(held)])
    assert await goes(session, most=300) == 140
    assert await left(session) == [("o", "loud", 260), ("o", "quiet", 40)]


async def test_no_organisation_sees_those_of_another(database):
    async with database.write() as session:
        await stories.append(session, [told(1, org_id="a"), told(2, org_id="b")])
    for org, mine, others in (("a", "req-1", "req-2"), ("b", "req-2", "req-1")):
        async with database.within(View(org, True)).read() as session:
            assert await requests(session) == [mine]
            assert (await stories.find(session, mine)).org_id == org
            assert await stories.find(session, others) is None


async def test_the_newest_of_one_organisation_are_found_by_an_index(database):
    """Not by a look at all that there are."""
    async with database.read() as session:
        connection = await session.connection()
        wanted = select(Row.id).where(Row.org_id == "o", col(Row.id) < "x").order_by(col(Row.id).desc()).limit(10)
        text = str(wanted.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
        if connection.dialect.name == "sqlite":
            plan = " ".join(str(line) for line in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}"))
            assert "USING COVERING INDEX ix_stories_org_id_id" in plan
        else:
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            await connection.exec_driver_sql("SET LOCAL enable_sort = off")
            plan = " ".join(str(line) for line in await connection.exec_driver_sql(f"EXPLAIN {text}"))
            assert "ix_stories_org_id_id" in plan


def test_ids_sort_by_the_moment_that_they_are_of():
    at = NOON.timestamp()
    made = [ids.new_id(at + number / 1000) for number in range(50)]
    assert made == sorted(made) and len(set(made)) == 50 and {len(id) for id in made} == {26}
    assert ids.bound(at) <= made[0] < ids.bound(at + 0.001) <= made[1]
    assert ids.bound(-5.0) == "0" * 26


def test_a_document_is_small_and_what_nobody_can_read_is_empty():
    choice = Choice("score", (("w", 0.5), ("x", 1.25)), 700, 300, 0.0, 0.1, 0.2)
    said = Document(
        endpoint="/v1/chat/completions",
        stream=True,
        limits=(Limit("org:o", "tokens", 5),),
        moments=(Moment(0, "arrived"), Moment(5, "sent", "first", "w", "m", ("region=eu",), choice=choice), Moment(9, "ended", status=200)),
    )
    packed = stories.pack(said)
    assert stories.unpack(packed) == said and len(packed) < 400
    assert stories.unpack(b"") == stories.unpack(b"\xc1nonsense") == stories.unpack(msgspec.msgpack.encode({"moments": 5})) == Document()
    later = msgspec.msgpack.encode({"endpoint": "/x", "what_comes_later": [1]})
    assert stories.unpack(later).endpoint == "/x"
