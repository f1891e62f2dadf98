"""Limits as people set them: of whom, how much, and what becomes of it; nothing is changed by what is wrong."""

from datetime import UTC, date, datetime, timedelta
from itertools import product

import pytest

from mindgw import clock
from mindgw.control import quotas
from mindgw.control.quotas import Ground, QuotaChoice, QuotaWish
from mindgw.core.quota import Budget
from mindgw.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from mindgw.gateway.snapshot import EngineView, Snapshot, WorkerView
from mindgw.store import people
from mindgw_agent.wire import Model
from tests.control.world import Place, today


@pytest.fixture
async def place(database):
    return await Place(database).open()


def ground(*boxes, priced=True):
    """`boxes`: the models of one connected worker each."""
    engines = [[EngineView(id="e", models=list(models))] for models in boxes]
    workers = [
        WorkerView(id=str(n), name=f"box{n}", state="ready", slots=1, used=0, engines=e, gpus=[], rtt_ms=None, last_seen=None, epoch=1)
        for n, e in enumerate(engines)
    ]
    return Ground(priced, Snapshot(workers=workers, waiting=0, running=0, started_at=0.0))


async def put(place, scope="team:nlp", *, boxes=(), priced=True, version=None, **wish):
    here = ground(*boxes, priced=priced)
    return await quotas.put(place.database, "me", QuotaWish(scope=scope, **wish), place.changed, here, version=version)


async def items(place, scope=None):
    return (await quotas.listing(place.database, scope)).items


# -- setting -----------------------------------------------------------------------------------------------------------


async def test_limits_of_one_scope_are_set_together_and_count_what_was_used(place):
    await place.use("r1", prompt_tokens=70, cost=2_500_000)
    done = await put(place, tokens=["5M/month", "100/day", "1_000/total"], usd=["12.50/month"], on_exceed="alert")
    assert done.warnings == [] and place.told == 1
    shown = {(one.unit, one.period): one for one in await items(place)}
    assert list(shown.values()) == done.items
    month = shown["tokens", "month"]
    assert (month.scope, month.name, month.window, month.limit) == ("team:nlp", "nlp", today()[:7], 5_000_000)
    assert (month.used, month.reserved, month.left, month.over, month.forgiven) == (75, 0, 4_999_925, 0, 0)
    assert (month.on_exceed, month.version) == ("alert", 1)
    assert shown["tokens", "day"].window == today() and shown["tokens", "day"].left == 25
    assert (shown["tokens", "total"].window, shown["tokens", "total"].resets_at) == ("total", None)
    money = shown["usd", "month"]
    assert (money.limit, money.used, money.reserved, money.left) == ("12.50", "2.50", "0.00", "10.00")


async def test_windows_end_at_midnight_of_utc(place):
    done = await put(place, tokens=["1/day", "1/month"])
    now = date.fromisoformat(today())
    first = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    ends = {one.period: one.resets_at for one in done.items}
    assert ends["day"] == datetime.combine(now + timedelta(days=1), datetime.min.time(), UTC)
    assert ends["month"] == datetime.combine(first, datetime.min.time(), UTC)


async def test_every_change_is_audited_with_what_was_before(place):
    await put(place, tokens=["10/day"], on_exceed="soft")
    await put(place, tokens=["20/day"])
    await quotas.reset(place.database, "me", QuotaChoice(scope="team:nlp"), place.changed)
    await quotas.clear(place.database, "you", QuotaChoice(scope="team:nlp"), place.changed)
    what = {"unit": "tokens", "period": "day"}
    scope = f"team:{place.team}"
    assert await place.audited() == [
        ("me", "quota.set", scope, {**what, "limit": 10, "on_exceed": "soft"}),
        ("me", "quota.set", scope, {**what, "limit": 20, "on_exceed": "soft", "was": 10, "was_on_exceed": "soft"}),
        ("me", "quota.reset", scope, {**what, "window": today(), "forgiven": 0}),
        ("you", "quota.clear", scope, what),
    ]
    assert place.told == 4 and await items(place) == []


async def test_a_limit_keeps_its_mode_unless_another_is_named(place):
    assert [one.on_exceed for one in (await put(place, tokens=["10/day"])).items] == ["block"]
    await put(place, tokens=["10/day"], on_exceed="queue-low")
    (kept,) = (await put(place, tokens=["30/day"])).items
    assert (kept.on_exceed, kept.limit, kept.version) == ("queue-low", 30, 3)
    assert [one.on_exceed for one in (await put(place, tokens=["30/day"], on_exceed="block")).items] == ["block"]


async def test_a_limit_of_nothing_and_the_largest_one_are_limits(place):
    done = await put(place, tokens=["0/day", f"{2**53}/total"])
    assert [one.left for one in done.items] == [0, 2**53]


async def test_dollars_without_prices_are_set_with_a_warning(place):
    done = await put(place, usd=["1/day"], priced=False)
    assert done.items[0].limit == "1.00" and "prices" in done.warnings[0]
    assert (await put(place, tokens=["1/day"], priced=False)).warnings == []


async def test_a_limit_of_a_model_that_nobody_has_is_set_with_a_warning(place):
    boxes = [[Model("llama3:8b", aliases=["llama3"])], [Model("llama3:70b", aliases=["llama3", "big"]), Model("qwen")]]
    for known in ("llama3:8b", "qwen"):
        assert (await put(place, f"model:{known}", boxes=boxes, tokens=["1/day"])).warnings == []
    (warning,) = (await put(place, "model:no-such-model", boxes=boxes, tokens=["1/day"])).warnings
    assert "No connected worker has a model 'no-such-model' now" in warning
    assert len((await put(place, "model:no-such-model", usd=["1/day"], priced=False)).warnings) == 2
    assert (await put(place, "team:nlp", tokens=["1/day"])).warnings == []


async def test_a_limit_of_an_alias_is_set_with_a_warning_that_names_the_model(place):
    boxes = [[Model("llama3:8b", aliases=["llama3"])], [Model("llama3:8b", aliases=[]), Model("llama3:70b", aliases=["llama3", "big"])]]
    (warning,) = (await put(place, "model:big", boxes=boxes, tokens=["1/day"])).warnings
    assert "another name of 'llama3:70b'" in warning and "Set one for model:llama3:70b" in warning
    (warning,) = (await put(place, "model:llama3", boxes=boxes, tokens=["1/day"])).warnings
    assert "'llama3:70b' and 'llama3:8b'" in warning
    many = [[Model(f"m{n}", aliases=["m"])] for n in range(9)]
    (warning,) = (await put(place, "model:m", boxes=many, tokens=["1/day"])).warnings
    assert "'m2' and others" in warning and "m3" not in warning
    assert (await put(place, "model:big", boxes=[*boxes, [Model("big")]], tokens=["1/day"])).warnings == []


WRITTEN = [
    ("key:{place.key}", "key:{place.key}", "bot"), ("key: bot", "key:{place.key}", "bot"),
    ("user:Ana@Example.ORG", "user:ana@example.org", "ana@example.org"), ("user:{place.user}", "user:ana@example.org", "ana@example.org"),
    ("team:nlp", "team:nlp", "nlp"), (" team:{place.team} ", "team:nlp", "nlp"), ("org:default", "org:default", "default"),
    ("model:meta/llama-3:70b", "model:meta/llama-3:70b", "meta/llama-3:70b"),
]  # fmt: skip


async def test_whose_limit_it_is_may_be_said_by_name_or_id(place):
    for text, scope, name in WRITTEN:
        said, shown = text.format(place=place), scope.format(place=place)
        (made,) = (await put(place, said, tokens=["1/day"])).items
        assert (made.scope, made.name) == (shown, name)
        assert await items(place, said) == await items(place, shown) == [made]
    assert len(await items(place)) == 5


NOWHERE = [
    ("nlp", BadRequest), ("team", BadRequest), ("", BadRequest), ("worker:x", BadRequest), ("TEAM:nlp", BadRequest),
    ("team:", BadRequest), ("model: ", BadRequest), ("model:a\x1bb", BadRequest), ("team:a\x00", BadRequest),
    ("team:NLP", NotFound), ("team:nobody", NotFound), ("user:nobody@example.org", NotFound), ("key:nobody", NotFound),
    ("org:nobody", NotFound), ("user:" + "x" * 500, NotFound), ("team:'; DROP TABLE quotas; --", NotFound),
]  # fmt: skip


async def test_a_scope_that_is_not_there_has_no_limit(place):
    for scope, error in NOWHERE:
        with pytest.raises(error):
            await put(place, scope, tokens=["1/day"])
        for change in (quotas.reset, quotas.clear):
            with pytest.raises(error):
                await change(place.database, "me", QuotaChoice(scope=scope), place.changed)
        with pytest.raises(error):
            await items(place, scope)
    assert (await items(place), await place.audited(), place.told) == ([], [], 0)


async def test_of_two_with_one_name_the_id_decides(place):
    other = await place.new_key("bot")
    with pytest.raises(Conflict):
        await put(place, "key:bot", tokens=["1/day"])
    (made,) = (await put(place, f"key:{other}", tokens=["1/day"])).items
    assert (made.scope, made.name) == (f"key:{other}", "bot")


async def test_teams_of_two_organisations_may_have_one_name(place):
    async with place.database.write() as session:
        org = await people.get_or_create_org(session, "elsewhere")
        other = await people.get_or_create_team(session, org.id, "nlp")
    with pytest.raises(Conflict, match="Several teams"):
        await put(place, "team:nlp", tokens=["1/day"])
    (made,) = (await put(place, f"team:{other.id}", tokens=["1/day"])).items
    assert made.name == "nlp"


NO_LIMITS = [
    {}, {"tokens": ["5M"]}, {"tokens": ["-1/day"]}, {"tokens": ["nan/day"]}, {"tokens": ["NaN/day"]}, {"tokens": ["inf/day"]},
    {"tokens": ["1e3/day"]}, {"tokens": ["1/week"]}, {"tokens": ["1/"]}, {"tokens": ["/day"]}, {"tokens": [""]}, {"tokens": ["0.5/day"]},
    {"tokens": ["99999999999999999999/day"]}, {"tokens": ["9" * 60 + "/day"]}, {"tokens": ["1/day", "2/day"]}, {"tokens": ["١/day"]},
    {"usd": ["0.0000001/day"]}, {"usd": ["-0.5/day"]}, {"usd": ["$5/day"]}, {"usd": ["9999999999999/day"]}, {"usd": ["1/day", "1.0/day"]},
    {"tokens": ["1/day"], "usd": ["x"]}, {"tokens": ["1/day"], "on_exceed": "explode"}, {"tokens": ["1/day"], "on_exceed": "BLOCK"},
]  # fmt: skip


async def test_what_is_no_limit_changes_nothing(place):
    for wish in NO_LIMITS:
        with pytest.raises(BadRequest) as refused:
            await put(place, **wish)
        assert refused.value.param in {"tokens", "usd", "on_exceed"}
    assert (await items(place), await place.audited(), place.told) == ([], [], 0)


async def test_all_limits_of_a_command_are_set_or_none(place):
    await put(place, tokens=["10/day"])
    await put(place, tokens=["20/month"])
    await put(place, tokens=["30/month"])
    with pytest.raises(PreconditionFailed):
        await put(place, tokens=["11/day", "21/month"], version=1)
    assert [one.limit for one in await items(place)] == [10, 30]
    (changed,) = (await put(place, tokens=["40/month"], version=2)).items
    assert (changed.limit, changed.version) == (40, 3)
    with pytest.raises(PreconditionFailed, match="any more"):
        await put(place, tokens=["1/total"], version=1)


# -- resetting and clearing --------------------------------------------------------------------------------------------


async def test_a_reset_forgives_what_was_used_now(place):
    await put(place, tokens=["100/day", "100/month"], usd=["1/day"])
    await place.use("r1")
    page = await quotas.reset(place.database, "me", QuotaChoice(scope="team:nlp", unit="tokens", period="day"), place.changed)
    assert [(one.period, one.used, one.forgiven, one.left) for one in page.items] == [("day", 0, 15, 100)]
    assert [(one.unit, one.period, one.used) for one in await items(place)] == [
        ("tokens", "day", 0), ("tokens", "month", 15), ("usd", "day", "0.000003")
    ]  # fmt: skip
    page = await quotas.reset(place.database, "me", QuotaChoice(scope="team:nlp"), place.changed)
    assert [one.used for one in page.items] == [0, 0, "0.00"]
    assert await place.books.broken() == []


CHOICES = [
    ({}, []), ({"unit": "usd"}, [("tokens", "day"), ("tokens", "month")]), ({"period": "day"}, [("tokens", "month")]),
    ({"unit": "tokens", "period": "month"}, [("tokens", "day"), ("usd", "day")]),
]  # fmt: skip


async def test_chosen_limits_are_cleared_and_no_others(place):
    await put(place, "org:default", tokens=["1/day"])
    for choice, left in CHOICES:
        await put(place, tokens=["100/day", "100/month"], usd=["1/day"])
        page = await quotas.clear(place.database, "me", QuotaChoice(scope="team:nlp", **choice), place.changed)
        assert len(page.items) == 3 - len(left)
        assert [(one.unit, one.period) for one in await items(place, "team:nlp")] == left
        assert len(await items(place)) == len(left) + 1


NO_CHOICES = [
    ({"unit": "usd"}, NotFound), ({"period": "total"}, NotFound), ({"unit": "usd", "period": "total"}, NotFound),
    ({"scope": "org:default"}, NotFound), ({"unit": "euro"}, BadRequest), ({"period": "week"}, BadRequest),
]  # fmt: skip


async def test_limits_that_are_not_there_are_not_changed(place):
    await put(place, tokens=["100/day"])
    before = await items(place)
    for (choice, error), change in product(NO_CHOICES, (quotas.reset, quotas.clear)):
        with pytest.raises(error):
            await change(place.database, "me", QuotaChoice(**({"scope": "team:nlp"} | choice)), place.changed)
    for change in (quotas.reset, quotas.clear):
        with pytest.raises(PreconditionFailed):
            await change(place.database, "me", QuotaChoice(scope="team:nlp"), place.changed, version=2)
    assert await items(place) == before


async def test_a_limit_of_a_key_that_is_revoked_can_still_be_cleared(place):
    await put(place, f"key:{place.key}", tokens=["1/day"])
    await place.revoke(place.key)
    with pytest.raises(NotFound):
        await items(place, "key:bot")
    assert (await items(place))[0].name == "bot"
    await quotas.clear(place.database, "me", QuotaChoice(scope=f"key:{place.key}"), place.changed)
    assert await items(place) == []


async def test_news_goes_out_when_the_change_is_on_the_disk(place):
    seen = []

    async def look():
        seen.append([one.limit for one in await items(place)])

    await quotas.put(place.database, "me", QuotaWish(scope="team:nlp", tokens=["7/day"]), look, ground())
    assert seen == [[7]]


async def test_what_others_have_reserved_is_shown_as_such(place):
    await put(place, tokens=["100/month"])
    month = clock.utcnow().date().isoformat()[:7]
    await place.books.borrow(Budget(f"team:{place.team}", "tokens", month), want=30)
    (one,) = await items(place)
    assert (one.used, one.reserved, one.left) == (0, 30, 70)
