"""Answers to requests with an Idempotency-Key: the first one of an identity stands, until it is too old or one of too many."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlmodel import func, select

from mindgw import clock
from mindgw.config import Idempotency
from mindgw.control import replays as sealed
from mindgw.control.sealing import REPLAYS, Safe
from mindgw.store import replays
from mindgw.store.replays import Ended
from mindgw.store.tables import Replay

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


def ended(number: int = 0, **fields) -> Ended:
    facts = {
        "identity": b"%032d" % number, "key_id": "k", "request_id": f"req-{number}", "fingerprint": b"f" * 32, "status": 200,
        "done_at": NOON + timedelta(seconds=number),
    }  # fmt: skip
    return Ended(**(facts | fields))


async def count(session) -> int:
    return (await session.exec(select(func.count()).select_from(Replay))).one()


async def test_what_went_in_comes_out(session):
    one = ended(1, code="engine_error", status=502, kind="sse", note="", sealed=b"\0\xff" * 1000, fingerprint=bytes(range(32)))
    await replays.append(session, [one, ended(2, note="off")], NOON)
    assert await replays.find(session, one.identity, NOON) == one
    assert await replays.find(session, ended(2).identity, NOON) == ended(2, note="off")
    assert await replays.find(session, b"nobody", NOON) is None
    await replays.append(session, [], NOON)


async def test_the_first_one_stands_until_it_is_too_old(session):
    await replays.append(session, [ended(status=200)], NOON - DAY)
    await replays.append(session, [ended(status=502, done_at=NOON + DAY), ended(1)], NOON - DAY)
    assert (await replays.find(session, ended().identity, NOON)).status == 200
    assert await replays.find(session, ended().identity, NOON + timedelta(seconds=1)) is None
    newer = ended(status=502, request_id="req-9", done_at=NOON + DAY + DAY, sealed=b"x")
    await replays.append(session, [newer], NOON + DAY)
    assert await replays.find(session, newer.identity, NOON) == newer
    assert await count(session) == 2


async def test_what_is_too_old_goes(session):
    await replays.append(session, [ended(number) for number in range(5)], NOON)
    assert await replays.drop_old(session, NOON + timedelta(seconds=2), 100) == 2
    assert await replays.drop_old(session, NOON + timedelta(seconds=2), 100) == 0
    assert await replays.find(session, ended(2).identity, NOON) == ended(2)


async def test_of_too_many_the_oldest_go_in_steps(session, monkeypatch):
    monkeypatch.setattr(replays, "STEP", 4)
    await replays.append(session, [ended(number, done_at=NOON) for number in range(9)], NOON)
    assert [await replays.drop_old(session, NOON, 3) for _ in range(3)] == [4, 2, 0]
    assert [bool(await replays.find(session, ended(number).identity, NOON)) for number in range(9)] == [False] * 6 + [True] * 3
    assert await replays.drop_old(session, NOON, 0) == 3 and await count(session) == 0


async def names(session) -> dict[str, int]:
    return dict((await session.exec(select(Replay.key_id, func.count()).group_by(Replay.key_id))).all())


async def drop(session, most: int) -> int:
    gone = 0
    while step := await replays.drop_old(session, NOON, most):
        gone += step
    return gone


async def test_one_key_cannot_push_the_others_out(session, monkeypatch):
    monkeypatch.setattr(replays, "STEP", 7)
    await replays.append(session, [ended(number, key_id="victim") for number in range(5)], NOON)
    await replays.append(session, [ended(number, key_id="greedy") for number in range(100, 200)], NOON)
    assert await drop(session, 50) == 55
    assert await names(session) == {"victim": 5, "greedy": 45}, "room that nobody needs is used"
    assert await replays.find(session, ended(155).identity, NOON) and not await replays.find(session, ended(154).identity, NOON)
    await replays.append(session, [ended(1000 + number, key_id=f"k{number}") for number in range(44)], NOON)
    assert await drop(session, 50) == 44
    assert await names(session) == {"victim": 1, "greedy": 5} | {f"k{number}": 1 for number in range(44)}


async def test_of_several_greedy_keys_the_one_with_most_goes_first(session):
    for key_id, start, number in (("a", 0, 30), ("b", 100, 20), ("c", 200, 2)):
        await replays.append(session, [ended(start + n, key_id=key_id) for n in range(number)], NOON)
    assert await drop(session, 20) == 32
    left = await names(session)
    assert left["c"] == 2 and left["a"] + left["b"] == 18 and min(left.values()) == 2


async def strip(session, most: int) -> list[str]:
    """Requests whose answers are left."""
    while await replays.strip(session, most):
        pass
    rows = (await session.exec(select(Replay).order_by(Replay.done_at))).all()
    assert all((row.note == "crowded") == (row.sealed is None) for row in rows)
    return [row.request_id for row in rows if row.sealed is not None]


async def test_of_too_many_bytes_the_oldest_answers_go_and_their_requests_stay(session, monkeypatch):
    monkeypatch.setattr(replays, "STEP", 2)
    await replays.append(session, [ended(number, sealed=b"x" * 100) for number in range(9)], NOON)
    assert len(await strip(session, 900)) == 9
    assert await strip(session, 350) == ["req-6", "req-7", "req-8"]
    assert await count(session) == 9
    assert await replays.find(session, ended(1).identity, NOON) == ended(1, note="crowded")
    assert await strip(session, 0) == []


async def test_one_key_cannot_push_out_the_answers_of_others(session):
    await replays.append(session, [ended(number, key_id="victim", sealed=b"x" * 10) for number in range(5)], NOON)
    await replays.append(session, [ended(100 + number, key_id="greedy", sealed=b"x" * 50) for number in range(20)], NOON)
    assert await strip(session, 550) == [f"req-{number}" for number in (*range(5), *range(110, 120))]


async def test_an_answer_is_sealed_on_its_way_in_and_opened_on_its_way_out(database):
    settings, safe = Idempotency(), Safe(b"s" * 32, REPLAYS)
    now = clock.utcnow()
    sent = [(ended(1, done_at=now), b"a secret"), (ended(2, done_at=now, note="off"), None)]
    await sealed.append(database, settings, sealed.seal(safe, sent))
    for one, body in sent:
        assert await sealed.find(database, safe, settings, one.identity) == (one, body)
    assert await sealed.find(database, safe, settings, b"nobody") is None
    async with database.read() as session:
        row = (await session.exec(select(Replay).where(Replay.identity == sent[0][0].identity))).one()
    assert b"secret" not in row.sealed
    unreadable = (msgspec.structs.replace(sent[0][0], note="unreadable"), None)
    assert await sealed.find(database, Safe(b"t" * 32, REPLAYS), settings, sent[0][0].identity) == unreadable
    assert await sealed.find(database, Safe(b"s" * 32), settings, sent[0][0].identity) == unreadable  # that of dead letters


async def test_what_nobody_may_ask_for_any_more_is_taken_away(database):
    settings, safe = Idempotency(keep=60, most=2), Safe(b"s" * 32, REPLAYS)
    now = clock.utcnow()
    rows = [ended(number, done_at=now - timedelta(seconds=30 * number)) for number in range(5)]
    async with database.write() as session:
        await replays.append(session, rows, now - DAY)
    assert await sealed.find(database, safe, settings, rows[3].identity) is None
    assert await sealed.forget(database, settings, now) == 3
    assert await sealed.forget(database, settings, now) == 0
    assert await sealed.find(database, safe, settings, rows[1].identity) == (rows[1], None)


async def test_answers_that_take_too_much_room_are_taken_away(database):
    settings, safe = Idempotency(keep_body=True, max_total=150), Safe(b"s" * 32, REPLAYS)
    now = clock.utcnow()
    rows = [ended(number, done_at=now - timedelta(seconds=number)) for number in range(3)]
    await sealed.append(database, settings, sealed.seal(safe, [(row, b"x" * 60) for row in rows]))
    assert await sealed.forget(database, settings, now) == 2
    assert [bool((await sealed.find(database, safe, settings, row.identity))[1]) for row in rows] == [True, False, False]
