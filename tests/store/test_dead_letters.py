"""Dead letters: written once, paged from the newest, found by either id, and gone when they are too old or too many."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import InvalidRequestError
from sqlmodel import func, select

from mindgw.errors import NotFound
from mindgw.store import dead_letters
from mindgw.store.dead_letters import Letter
from mindgw.store.tables import DeadLetter

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


def letter(number: int = 0, **fields) -> Letter:
    at = NOON + timedelta(seconds=number)
    facts = {
        "id": f"l{number:03}", "request_id": f"req-{number}", "key_id": "k", "org_id": "o", "model": "m", "endpoint": "/v1/completions",
        "fault": "fleet", "status": 503, "code": "queue_timeout", "message": "too late", "started_at": at, "failed_at": at,
    }  # fmt: skip
    return Letter(**(facts | fields))


async def ids(session, **options) -> list[str]:
    return [row.id for row in await dead_letters.page(session, **options)]


async def test_a_letter_comes_back_as_it_went_in(session):
    sent = letter(
        user_id="u", team_id="t", stream=True, attempts=[{"worker": "w", "outcome": "busy"}], size=2**40, sealed=b"\0\xff", end_user="e"
    )
    await dead_letters.append(session, [sent])
    found = await dead_letters.find(session, "l000")
    assert {name: getattr(found, name) for name in sent.__struct_fields__} == {name: getattr(sent, name) for name in sent.__struct_fields__}
    assert (found.retries, found.retried_at, found.retry_code) == (0, None, "")


async def test_a_batch_may_be_sent_again(session):
    await dead_letters.append(session, [letter(1)])
    await dead_letters.append(session, [letter(1), letter(2), letter(3, request_id="req-1")])
    await dead_letters.append(session, [])
    assert await ids(session) == ["l002", "l001"]


async def test_pages_begin_with_the_newest_and_join(session):
    await dead_letters.append(session, [letter(number) for number in range(5)])
    assert await ids(session, limit=2) == ["l004", "l003"]
    assert await ids(session, before="l003", limit=2) == ["l002", "l001"]
    assert await ids(session, before="l000") == []


async def test_a_page_holds_no_bodies(session):
    await dead_letters.append(session, [letter(sealed=b"x" * 1000)])
    (row,) = await dead_letters.page(session)
    with pytest.raises(InvalidRequestError):
        _ = row.sealed


async def test_a_letter_is_found_by_the_id_of_its_request(session):
    await dead_letters.append(session, [letter(1), letter(2)])
    assert (await dead_letters.find(session, "req-2")).id == (await dead_letters.find(session, "l002")).id == "l002"
    for nobody in ("", "l003", "x" * 5000):
        with pytest.raises(NotFound):
            await dead_letters.find(session, nobody)


async def test_retries_are_counted(session):
    await dead_letters.append(session, [letter(1), letter(2)])
    await dead_letters.note_retry(session, "l001", NOON, "worker_lost")
    await dead_letters.note_retry(session, "l001", NOON + timedelta(hours=1), "")
    await dead_letters.note_retry(session, "nobody", NOON, "")
    found = await dead_letters.find(session, "l001")
    await session.refresh(found)
    assert (found.retries, found.retried_at, found.retry_code) == (2, NOON + timedelta(hours=1), "")
    assert (await dead_letters.find(session, "l002")).retries == 0


async def test_a_dropped_letter_is_gone(session):
    await dead_letters.append(session, [letter(1), letter(2)])
    await dead_letters.drop(session, "l001")
    await dead_letters.drop(session, "l001")
    assert await ids(session) == ["l002"]


@pytest.mark.parametrize(
    ("after", "most", "left"), [(-1, 100, 5), (2, 100, 3), (-1, 2, 2), (4, 3, 1), (99, 100, 0), (-1, 5, 5), (-1, 1, 1)]
)
async def test_what_is_too_old_or_too_much_goes_the_oldest_first(session, after, most, left):
    await dead_letters.append(session, [letter(number) for number in range(5)])
    assert await dead_letters.drop_old(session, NOON + timedelta(seconds=after), most) == 5 - left
    assert await ids(session) == ["l004", "l003", "l002", "l001", "l000"][:left]


async def test_one_call_takes_away_a_bounded_number(session, monkeypatch):
    monkeypatch.setattr(dead_letters, "STEP", 2)
    await dead_letters.append(session, [letter(number) for number in range(5)])
    gone = [await dead_letters.drop_old(session, NOON + timedelta(hours=1), 100) for _ in range(4)]
    assert gone == [2, 2, 1, 0]
    assert (await session.exec(select(func.count()).select_from(DeadLetter))).one() == 0
