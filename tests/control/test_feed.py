"""The feed over a real pipeline; what a listener hears is put together as the client does it."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.client.feed import Picture, told
from mindgw.control import feed
from mindgw.control.feed import BACKLOG, LISTENERS, Feed
from mindgw.errors import RateLimited
from mindgw_agent import wire
from tests.gateway.world import Box, World, engine

#: Longer than any test: looks are taken when the test says so.
NEVER = 1e6


def wall(world: World):
    """The wall's clock, as the world's goes."""
    return lambda: datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=world.clock.now)


@pytest.fixture
def world() -> World:
    made = World()
    Box(made, "box", engine("m", slots=1))
    return made


@pytest.fixture
async def watched(world):
    """A feed that looks when it is told to, and its first listener."""
    made = Feed(world.pipeline, NEVER, wall(world))
    listener = made.listen()
    yield made, listener
    listener.close()


async def heard(listener) -> dict:
    async with asyncio.timeout(5):
        message = await listener.next()
    assert message is not None
    return json.loads(message)


def silent(listener) -> bool:
    return not listener._ready.is_set()


async def test_a_listener_hears_the_picture_and_then_what_changes(world, watched):
    made, listener = watched
    first = await heard(listener)
    assert (first["type"], first["queue"], first["stats"]["waiting"]) == ("snapshot", [], 0)
    assert [(worker["name"], worker["slots"], worker["used"], worker["models"]) for worker in first["workers"]] == [("box", 1, 0, ["m"])]
    running, waiting = world.ask(), world.ask()
    made.look()
    news = await heard(listener)
    assert (news["type"], news["seq"]) == ("delta", first["seq"] + 1)
    states = {row["id"]: (row["state"], row["position"]) for row in news["queue"]["set"]}
    assert states == {running.request_id: ("running", 0), waiting.request_id: ("waiting", 1)}
    assert news["workers"] == {"set": [{"id": "box", "used": 1}], "removed": []}
    assert news["stats"]["waiting"] == 1


async def test_time_that_goes_by_is_no_news_of_a_request(world, watched):
    made, listener = watched
    world.ask(), world.ask()
    made.look()
    await heard(listener)
    for _ in range(5):
        world.clock.now += 0.7
        made.look()
        news = await heard(listener)  # the age of the oldest, at least
        moments = {"waiting_since", "running_since"}
        assert not [row for row in news.get("queue", {"set": []})["set"] if moments & row.keys()]


async def test_moments_are_right_though_they_are_steady(world, watched):
    made, listener = watched
    running, waiting = world.ask(), world.ask()
    began = wall(world)()
    world.clock.now += 9
    made.look()
    rows = {row["id"]: row for row in (await heard(listener))["queue"]}
    assert datetime.fromisoformat(rows[waiting.request_id]["waiting_since"]) == began
    assert datetime.fromisoformat(rows[running.request_id]["running_since"]) == began
    assert rows[waiting.request_id]["running_since"] is None


async def test_nothing_is_said_while_nothing_happens_but_a_sign_of_life(world, watched, monkeypatch):
    made, listener = watched
    first = await heard(listener)
    made.look()
    assert silent(listener)
    monkeypatch.setattr(feed, "SILENCE", 0.0)
    made.look()
    sign = await heard(listener)
    assert sign.keys() == {"type", "seq", "at"}
    assert (sign["type"], sign["seq"]) == ("delta", first["seq"] + 1)


async def test_who_reads_slowly_gets_a_fresh_picture_instead_of_all_he_missed(world, watched):
    made, listener = watched
    await heard(listener)
    for _ in range(3 * BACKLOG):
        world.ask()
        made.look()
        assert len(listener._pending) <= BACKLOG
    fresh = await heard(listener)
    assert (fresh["type"], len(fresh["queue"])) == ("snapshot", 3 * BACKLOG)
    assert silent(listener)
    world.ask()
    made.look()
    assert (await heard(listener))["seq"] == fresh["seq"] + 1


async def test_all_listeners_are_handed_the_same_message(world, watched):
    made, first = watched
    others = [made.listen() for _ in range(3)]
    snapshots = [await listener.next() for listener in (first, *others)]
    assert all(message is snapshots[0] for message in snapshots)
    world.ask()
    made.look()
    deltas = [await listener.next() for listener in (first, *others)]
    assert all(message is deltas[0] for message in deltas)
    for listener in others:
        listener.close()


async def test_more_listeners_than_there_may_be_are_refused(watched):
    made, _ = watched
    others = [made.listen() for _ in range(LISTENERS - 1)]
    with pytest.raises(RateLimited) as refused:
        made.listen()
    assert refused.value.code == "too_many_listeners"
    others[0].close()
    others[0].close()
    made.listen().close()
    for listener in others:
        listener.close()


class Counted:
    """A pipeline whose looks are counted; it may be told to fail."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.looks = 0
        self.broken = False

    def lineup(self):
        self.looks += 1
        if self.broken:
            raise ZeroDivisionError
        return self._world.pipeline.lineup()

    def __getattr__(self, name):
        return getattr(self._world.pipeline, name)


async def until(done) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.002)


async def test_nobody_looks_while_nobody_watches(world):
    live = Counted(world)
    made = Feed(live, 0.001)
    assert live.looks == 0
    listener = made.listen()
    await until(lambda: live.looks > 3)
    producer = made._producer
    assert producer is not None
    listener.close()
    seen = live.looks
    await asyncio.wait([producer])
    assert (live.looks, made._producer) == (seen, None)
    again = made.listen()
    await until(lambda: live.looks > seen + 1)
    again.close()


async def test_those_who_come_and_go_quickly_do_not_make_it_work_more(world, monkeypatch):
    monkeypatch.setattr(feed, "REST", 1e9)
    live = Counted(world)
    made = Feed(live, 60.0)
    for _ in range(20):
        made.listen().close()
    assert live.looks == 1


async def test_a_feed_that_breaks_down_sends_everybody_away_and_starts_anew(world, caplog):
    live = Counted(world)
    made = Feed(live, 0.001)
    listeners = [made.listen(), made.listen()]
    live.broken = True
    async with asyncio.timeout(5):
        for listener in listeners:
            while await listener.next() is not None:
                pass
            listener.close()
    assert "broke down" in caplog.text and "ZeroDivisionError" in caplog.text
    live.broken = False
    with_hope = made.listen()
    assert (await heard(with_hope))["type"] == "snapshot"
    with_hope.close()


async def test_a_picture_holds_so_many_requests_and_no_more(world, watched, monkeypatch):
    monkeypatch.setattr(feed, "SHOWN", 2)
    made, listener = watched
    clients = [world.ask() for _ in range(5)]
    made.look()
    found = await heard(listener)
    assert [row["id"] for row in found["queue"]] == [clients[1].request_id, clients[2].request_id, clients[0].request_id]
    assert found["stats"]["waiting"] == 4


acts = st.lists(st.tuples(st.sampled_from("ask end cancel bump pause resume leave pass look read".split()), st.integers(0, 5)), max_size=40)


def do(world: World, box: Box, act: str, number: int) -> None:
    lineup = world.pipeline.lineup()
    match act:
        case "ask":
            world.ask(user=f"u{number}")
        case "end" if box.requests:
            box.head(200, "application/json", b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}')
            box.close()
        case "cancel" if lineup:
            world.pipeline.cancel_request(lineup[number % len(lineup)].id)
        case "bump" if lineup:
            world.pipeline.bump_request(lineup[number % len(lineup)].id)
        case "pause":
            world.pipeline.pause_queue("m" if number % 2 else "")
        case "resume":
            world.pipeline.resume_queue("m" if number % 2 else "")
        case "leave":
            box.says(*([] if number % 2 else [engine("m", slots=1 + number)]))
        case "pass":
            world.passes(number)
    world.pump()


@given(acts)
def test_whatever_happens_who_has_heard_it_all_knows_how_it_is(script):
    """Two listeners: one hears everything at once, one only now and then."""
    world = World()
    box = Box(world, "box", engine("m", slots=1))

    async def play() -> None:
        made = Feed(world.pipeline, NEVER, wall(world))
        listeners = [made.listen(), made.listen()]
        pictures: list[Picture | None] = [None, None]

        async def hear(which: int) -> None:
            while not silent(listeners[which]):
                pictures[which] = told(pictures[which], await heard(listeners[which]))

        for act, number in script:
            if act == "look":
                made.look()
                await hear(0)
            elif act == "read":
                await hear(1)
            else:
                do(world, box, act, number)
        made.look()
        for which, picture in enumerate(pictures):
            await hear(which)
            picture = pictures[which]
            assert picture is not None
            known = made._picture
            assert {name: getattr(picture, name) for name in ("queue", "workers", "budgets", "stats")} == msgspec.to_builtins(known)
        for listener in listeners:
            listener.close()

    asyncio.run(play())


async def test_budgets_are_shown_as_they_are_used(world):
    budget = world.limit(f"key:{next(iter(world.keys))}", 1000)
    world.vault.budgets[budget] = [0, 500]
    world.quotas.desk.leases.lend(budget, 500, 0, 500, 1000)
    made = Feed(world.pipeline, NEVER, wall(world))
    listener = made.listen()
    first = json.loads(await listener.next())
    assert first["budgets"] == [
        {"id": f"{budget.scope} tokens total", "scope": budget.scope, "unit": "tokens", "window": "total", "mode": "block",
         "limit": 1000, "used": 0, "reserved": 500},
    ]  # fmt: skip
    world.ask(max_tokens=10)
    box = world.boxes[0]
    box.head(content_type="application/json")
    box.data(b'{"usage":{"prompt_tokens":20,"completion_tokens":10}}')
    box.close(usage=wire.Usage(20, 10))
    made.look()
    news = json.loads(await listener.next())
    assert news["budgets"]["set"] == [{"id": f"{budget.scope} tokens total", "used": 30, "reserved": 470}]
    listener.close()
