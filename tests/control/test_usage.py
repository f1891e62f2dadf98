"""Sums of what was used, by whom, over which days."""

from datetime import date, timedelta

import pytest

from mindgw.control import usage
from mindgw.control.amounts import dollars
from mindgw.errors import BadRequest, NotFound
from mindgw.store import fleet
from tests.control.world import Place, today


def ago(days):
    return (date.fromisoformat(today()) - timedelta(days=days)).isoformat()


@pytest.fixture
async def place(database):
    made = await Place(database).open()
    async with database.write() as session:
        made.worker = (await fleet.add_worker(session, "box", b"k" * 32)).id
    made.other = await made.new_key("other")
    await made.use("r1", worker_id=made.worker, cached_tokens=4)
    await made.use("r2", cost=1_500_000, model="n", day=ago(3))
    await made.use("r3", key_id=made.other, user_id=None, team_id=None, day=ago(40))
    await made.use("r4", kind="wasted")
    await made.use("r5", kind="refused", attempt=0, prompt_tokens=0, completion_tokens=0)
    return made


async def summary(place, by="key", since="", until="", **narrowed):
    return await usage.summary(place.database, by, since, until, narrowed)


async def test_use_is_summed_by_key_with_its_name(place):
    found = await summary(place, since=ago(60))
    assert {one.name: (one.id, one.requests, one.tokens_in, one.tokens_out, one.tokens_cached, one.cost_usd) for one in found.items} == {
        "bot": (place.key, 2, 20, 10, 4, "1.500003"),
        "other": (place.other, 1, 10, 5, 0, "0.000003"),
    }
    total = found.total
    assert (total.name, total.requests, total.tokens_in, total.tokens_out, total.tokens_cached) == ("total", 3, 30, 15, 4)
    assert total.cost_usd == "1.500006"


BY = [
    ("user", ["", "ana@example.org"]), ("team", ["", "nlp"]), ("org", ["default"]), ("model", ["m:1", "n"]), ("worker", ["box", "w"]),
    ("day", [ago(40), ago(3), ago(0)]),
]  # fmt: skip


async def test_lines_are_called_as_people_call_them(place):
    for by, names in BY:
        assert sorted(one.name for one in (await summary(place, by, since="100d")).items) == names


DAYS = [
    ("", "", 2), ("1d", "", 1), ("3d", "", 1), ("4d", "", 2), ("41d", "", 3), (ago(3), "", 2), (ago(3), ago(1), 1), (ago(40), ago(39), 1),
    (ago(-5), "", 0), ("", ago(0), 2), (ago(0), ago(0), 1), ("2026-11-01", "9999-12-31", None),
]  # fmt: skip


async def test_both_ends_of_the_days_count(place):
    for since, until, requests in DAYS:
        found = await summary(place, since=since, until=until)
        assert requests is None or found.total.requests == requests
        assert found.since <= found.until


async def test_sums_can_be_narrowed(place):
    assert (await summary(place, "model", key="bot", since="99d")).total.requests == 2
    assert (await summary(place, "model", key=place.other, since="99d")).total.requests == 1
    assert (await summary(place, team="nlp", model="n")).total.tokens_in == 10
    assert (await summary(place, user="Ana@example.org", model="nothing")).items == []


NO_DAYS = [
    ({"by": "colour"}, "by"), ({"by": ""}, "by"), ({"since": "soon"}, "since"), ({"since": "0d"}, "since"), ({"since": "99999d"}, "since"),
    ({"since": "2026-13-01"}, "since"), ({"since": "2026-02-30"}, "since"), ({"since": "-1d"}, "since"), ({"since": "7 d"}, "since"),
    ({"since": "٧d"}, "since"), ({"since": "9" * 5000 + "d"}, "since"), ({"until": "7d"}, "until"), ({"until": "2026-1-1"}, "until"),
    ({"since": ago(1), "until": ago(2)}, "since"), ({"since": "20261101"}, "since"),
]  # fmt: skip


async def test_what_is_no_day_is_named(place):
    for asked, param in NO_DAYS:
        with pytest.raises(BadRequest) as refused:
            await summary(place, **asked)
        assert refused.value.param == param


async def test_whoever_is_not_there_has_used_nothing_that_could_be_told(place):
    for narrowed in ({"key": "nobody"}, {"team": "nobody"}, {"user": "x@example.org"}):
        with pytest.raises(NotFound):
            await summary(place, **narrowed)
    with pytest.raises(BadRequest):
        await summary(place, team=" ")


@pytest.mark.parametrize(
    ("micro", "shown"),
    [
        (0, "0.00"), (1, "0.000001"), (10, "0.00001"), (500_000, "0.50"), (12_500_000, "12.50"), (2**53, "9007199254.740992"),
        (-3_000_000, "-3.00"), (-1, "-0.000001"),
    ],
)  # fmt: skip
def test_dollars_are_exact(micro, shown):
    assert dollars(micro) == shown
