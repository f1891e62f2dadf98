"""Who waits and why, as operators see it."""

import asyncio
import random
from itertools import islice

import pytest

from mindgw.config import Limits
from mindgw.gateway import lineup, pace, signals
from mindgw.gateway.lineup import Wanted
from mindgw.gateway.signals import State
from mindgw.gateway.turns import turns
from mindgw_agent import wire
from tests.gateway.world import EVENT, JSON, Box, World, engine


def teams(world: World) -> tuple[str, str]:
    """Keys of two teams."""
    return world.add_key(name="one", team="nlp"), world.add_key(name="two", team="vision")


def test_who_waits_stands_in_the_order_of_turns_before_who_runs():
    world = World()
    Box(world)
    first = world.ask()
    world.clock.now += 1
    second, third = world.ask(), world.ask()
    world.clock.now += 2
    found = world.pipeline.lineup()
    assert [entry.id for entry in found] == [second.request_id, third.request_id, first.request_id]
    assert [(entry.state, entry.position) for entry in found] == [("waiting", 1), ("waiting", 2), ("running", 0)]
    assert [entry.waited_s for entry in found] == [2.0, 2.0, 0.0]
    assert (found[2].running_s, found[2].worker, found[2].reason) == (3.0, "box", "")
    assert found[0].key == "k"


def test_why_somebody_waits():
    world = World()
    box = Box(world, "box", engine("m", slots=2))
    running, _ = world.ask(), world.ask()
    low = world.ask(service_tier="flex")
    assert next(entry.reason for entry in world.pipeline.lineup()) == "no free slot 2/2"
    world.ask()
    assert world.pipeline.place_of(low.request_id).reason == "no free slot 2/2, batch yields to normal"
    world.pipeline.pause_queue("m")
    assert world.pipeline.place_of(low.request_id).reason == "paused by an operator"
    world.pipeline.resume_queue()
    box.says(engine("m", healthy=False))
    assert world.pipeline.place_of(low.request_id).reason == "no worker is ready for m"
    assert world.pipeline.place_of(running.request_id).state == "running"
    assert world.pipeline.place_of("req-unknown") is None


def test_whose_share_was_large_is_told_so():
    world = World()
    box = Box(world)
    one, two = teams(world)
    for key, tokens in ((one, 300), (two, 100)):
        world.ask(key=key, stream=True)
        box.head()
        box.data(EVENT * tokens)
        box.close(usage=wire.Usage(5, tokens, source="engine"))
    world.ask(key=two)
    waits = [world.ask(key=key) for key in (one, one)]
    reason = world.pipeline.place_of(waits[1].request_id).reason
    assert reason.startswith("no free slot 1/1, fair share: nlp used 7")
    shares = world.pipeline.queue_stats().shares
    assert [share.team for share in shares] == ["nlp", "vision"]
    assert sum(share.share for share in shares) == pytest.approx(1, abs=0.001)


def test_the_queue_in_numbers():
    world = World()
    box = Box(world)
    world.ask()
    waits = world.ask(service_tier="flex")
    world.clock.now += 7
    stats = world.pipeline.queue_stats()
    assert (stats.waiting, stats.running, stats.oldest_s) == (1, 1, 7.0)
    assert stats.classes == {"bumped": 0, "high": 0, "normal": 0, "batch": 1, "sheddable": 0}
    assert (stats.eta_error_median, stats.paused, stats.paused_models) == (None, False, [])
    assert stats.bytes > 0
    box.head(content_type=JSON)
    box.data(b"{}")
    box.close()
    assert waits.state is State.SENT
    assert world.pipeline.queue_stats().oldest_s == 0


def use(world: World, box: Box, key: str, tokens: int, **fields) -> None:
    """A request of a key that is answered at length."""
    world.ask(key=key, stream=True, **fields)
    box.head()
    box.data(EVENT)
    box.close(usage=wire.Usage(5, tokens, source="engine"))


def test_of_a_long_queue_those_are_shown_whose_turn_comes_first(monkeypatch):
    monkeypatch.setattr(lineup, "MOST", 3)
    world = World()
    Box(world)
    greedy, modest = world.add_key(), world.add_key()
    running = world.ask(key=greedy)
    early = []
    for _ in range(6):
        world.clock.now += 0.1
        early.append(world.ask(key=greedy))
    late = world.ask(key=modest)
    found = [entry.id for entry in world.pipeline.lineup()]
    assert late.request_id in found and len(found) == 4 and found[-1] == running.request_id
    assert [id for id in found if id != late.request_id] == [early[0].request_id, early[1].request_id, running.request_id]
    assert world.pipeline.queue_stats().waiting == 7


def crowd(world: World, count: int, keys: int) -> None:
    """Requests of many keys and classes that wait, with use of late that differs."""
    chance = random.Random(count)
    names = [world.add_key(team=f"t{number % 5}", user_id=None) for number in range(keys)]
    for number in range(count):
        text = "x" * chance.randrange(1, 4000)
        tier = chance.choice(["flex", "auto", "auto"])
        world.ask("mn"[number % 2], chance.choice(names), messages=[{"role": "user", "content": text}], service_tier=tier)


@pytest.mark.parametrize("keys", [1, 7, 60])
def test_turns_come_in_the_order_in_which_they_are_taken(keys):
    world = World()
    box = Box(world)
    use(world, box, world.key, 500)
    chance = random.Random(keys)
    names = [world.add_key(team=f"t{number % 5}", user=f"u{number % 3}") for number in range(keys)]
    for _ in range(150):
        world.ask(key=chance.choice(names), messages=[{"role": "user", "content": "x" * chance.randrange(1, 40_000)}])
    order, line = world.pipeline.queue.order, ("m", "chat")
    world.pipeline.queue.settle(next(e for e in world.pipeline._running if e.ticket.running).ticket, 0, 0, 1000.0)
    told = [ticket.id for ticket in turns(world.pipeline.queue)]
    assert len(told) == 149
    taken = []
    while (entry := order.best()) is not None:
        order.take(entry, [line])
        order.charge(entry, entry.cost)
        order.finish(entry)
        taken.append(entry.item.id)
    assert told == taken


def test_a_picture_has_the_first_of_all_lines_and_few_of_a_class_that_yields(monkeypatch):
    monkeypatch.setattr(lineup, "MOST", 30)
    world = World()
    Box(world, "box", engine("m", "n", slots=1))
    batch = [world.ask(service_tier="flex").request_id for _ in range(41)][1:]
    both = {model: [world.ask(model).request_id for _ in range(20)] for model in ("m", "n")}
    shown = [entry for entry in world.pipeline.lineup() if entry.state == "waiting"]
    ids = {entry.id for entry in shown}
    assert [entry.position for entry in shown] == sorted(entry.position for entry in shown) and len(shown) == 30
    for model in ("m", "n"):
        there = [id for id in both[model] if id in ids]
        assert there == both[model][: len(there)] and len(there) >= 12
    assert [id for id in batch if id in ids] == batch[: len(ids & set(batch))] and len(ids & set(batch)) <= 5


def test_nobody_waits_in_no_order():
    assert list(turns(World().pipeline.queue)) == []


def test_to_know_the_first_not_everybody_is_looked_at(monkeypatch):
    world = World()
    Box(world)
    crowd(world, 300, 300)
    order, looks = world.pipeline.queue.order, []
    ahead = order.ahead
    monkeypatch.setattr(order, "ahead", lambda entry: looks.append(entry) or ahead(entry))
    assert len(list(islice(turns(world.pipeline.queue), 10))) == 10
    assert len(looks) <= 10 + 4  # there are four bands


async def test_all_who_wait_are_ranked_while_others_have_their_turn():
    world = World(limits=Limits(queue_key=2000))
    Box(world)
    for _ in range(1200):
        world.ask()
    ticks, over = 0, asyncio.Event()

    async def tick() -> None:
        nonlocal ticks
        while not over.is_set():
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    ids = await world.pipeline.ranking(Wanted(state="waiting"))
    ranked = ticks
    entries = await world.pipeline.places_of([*ids, "req-unknown"])
    over.set()
    await ticking
    assert ranked >= 10 and ticks - ranked >= 10
    assert [entry.id for entry in entries] == ids
    assert [entry.position for entry in entries] == list(range(1, 1200))


async def test_who_is_wanted_is_told_by_model_team_user_key_and_state():
    world = World()
    Box(world, "box", engine("m", "n", slots=1))
    nlp = world.add_key(name="bot", team="nlp", team_id="t1", trusted_proxy=True)
    first, second, third = world.ask(), world.ask(key=nlp, user="ana"), world.ask("n", nlp)
    key_id = second.exchange.caller.key_id

    async def among(**wanted) -> list[str]:
        return await world.pipeline.ranking(Wanted(**wanted))

    waiting = {second.request_id, third.request_id}
    assert set(await among(state="waiting")) == waiting and await among(state="running") == [first.request_id]
    assert (await among())[-1] == first.request_id and len(await among()) == 3
    assert set(await among(team="nlp")) == set(await among(key="bot")) == set(await among(key=key_id)) == waiting
    assert await among(user="ana") == await among(team="nlp", model="m") == [second.request_id]
    assert await among(model="n") == [third.request_id]
    assert await among(team="nlp", state="running") == await among(model="x") == await among(user="x") == []


def reasons(world: World) -> list[str]:
    return [entry.reason for entry in world.pipeline.lineup() if entry.state == "waiting"]


def test_a_share_is_told_down_to_the_key():
    world = World()
    box = Box(world)
    one, two = world.add_key(name="greedy", team="nlp", team_id="t1"), world.add_key(name="modest", team="nlp", team_id="t1")
    use(world, box, one, 2000)
    use(world, box, two, 10)
    world.ask(key=two)
    waits = [world.ask(key=one) for _ in range(3)]
    modest = world.ask(key=two)
    for client in waits[1:]:
        assert "fair share: greedy used 9" in world.pipeline.place_of(client.request_id).reason
    assert "fair share" not in world.pipeline.place_of(modest.request_id).reason


def test_a_share_is_told_down_to_the_end_user():
    world = World()
    box = Box(world)
    proxy = world.add_key(trusted_proxy=True)
    use(world, box, proxy, 2000, user="ana")
    use(world, box, proxy, 10, user="ben")
    use(world, box, proxy, 900)
    world.ask(key=proxy, user="ben")
    ana = [world.ask(key=proxy, user="ana") for _ in range(2)][1]
    nobody = [world.ask(key=proxy) for _ in range(3)][2]
    assert "fair share: ana used 6" in world.pipeline.place_of(ana.request_id).reason
    assert "fair share" not in world.pipeline.place_of(nobody.request_id).reason
    use_more = world.pipeline.queue.pace.shares
    path = nobody.exchange.ticket.flow.path
    use_more[path] += 20_000
    assert "fair share: requests without an end user used" in world.pipeline.place_of(nobody.request_id).reason


def test_who_used_no_more_than_others_waits_for_no_share_of_his():
    world = World()
    box = Box(world)
    nlp, bio = world.add_key(team="nlp", team_id="t1"), world.add_key(team="bio", team_id="t2")
    use(world, box, nlp, 4000)
    use(world, box, bio, 10)
    world.ask(key=nlp)
    for _ in range(2):
        world.ask(key=bio)
    assert reasons(world) == ["no free slot 1/1"] * 2


def test_who_was_alone_until_somebody_else_came_is_told_his_share():
    world = World()
    box = Box(world)
    nlp, bio = world.add_key(team="nlp", team_id="t1"), world.add_key(team="bio", team_id="t2")
    use(world, box, nlp, 4000)
    world.ask(key=nlp)
    waits = [world.ask(key=nlp) for _ in range(2)]
    assert reasons(world) == ["no free slot 1/1"] * 2  # nobody is beside it
    world.ask(key=bio)
    assert "fair share: nlp used 100 %" in world.pipeline.place_of(waits[1].request_id).reason


def test_end_users_without_number_are_not_all_remembered(monkeypatch):
    monkeypatch.setattr(pace, "_END_USERS", 6)
    world = World()
    box = Box(world)
    proxy = world.add_key(trusted_proxy=True, team="nlp", team_id="t1")
    for number in range(20):
        use(world, box, proxy, 100, user=f"u{number}")
    shares = world.pipeline.queue.pace.shares
    assert sum(len(path) == 5 for path in shares) == 3
    assert shares["o", "nlp"] > 20 * 200


def test_what_is_paused_without_a_worker_is_named():
    world = World()
    Box(world, "box", engine(models=[wire.Model("m", kinds=["chat"], aliases=["also"])]))
    for model in ("m", "also", "mm"):
        world.pipeline.pause_queue(model)
    assert world.pipeline.queue_stats().paused_unserved == ["mm"]


def test_a_request_whose_client_is_gone_cannot_be_cancelled_again():
    world = World()
    box = Box(world)
    client = world.ask(stream=True)
    client.post(signals.Gone())
    world.pump()
    assert client.state is State.CLOSING
    assert not world.pipeline.cancel_request(client.request_id)
    box.close("cancelled")
    assert client.state is State.DONE


def test_an_operator_moves_and_ends_requests():
    world = World()
    box = Box(world)
    world.ask()
    first, second = world.ask(), world.ask()
    assert world.pipeline.bump_request(second.request_id)
    assert world.pipeline.place_of(second.request_id).priority == "bumped"
    assert world.pipeline.cancel_request(first.request_id)
    assert first.code == "cancelled_by_operator"
    assert not world.pipeline.cancel_request(first.request_id)
    box.head(content_type=JSON)
    box.data(b"{}")
    box.close()
    assert second.state is State.SENT
    assert not world.pipeline.bump_request(second.request_id)
    assert not world.pipeline.bump_request("req-unknown")


def test_a_full_queue_can_be_looked_at_less_often():
    world = World()
    Box(world)
    assert world.pipeline.queue.leisure == 1
