"""Which of several workers is taken, by each rule; what is seen of them changes it, and nobody is taken who must not be."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.config import ConfigError, parse
from mindgw.core.affinity import prefix
from mindgw.core.routing import Rules, where
from mindgw.gateway.experience import Traits
from mindgw.gateway.fleet import Fleet, Placement
from mindgw.gateway.route import Needs, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.strategy import STRATEGIES
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine, ids

#: So many are all looked at; of so many only some are.
FEW, MANY = 4, 40


def join(fleet: Fleet, id: str, *models: str, **fields) -> Worker:
    worker = Worker(id, id, 1, Link(lambda: None, 0.0))
    fleet.attach(worker, approved=True)
    fleet.report(worker, wire.Report(0, [engine(*(models or ("m",)), **({"slots": 8} | fields))]))
    return worker


def world(count: int, strategy: str = "score", **fields) -> Fleet:
    fleet = Fleet(lambda: None, strategy)
    for number in range(count):
        join(fleet, f"w{number}", **fields)
    return fleet


def needs(text: bytes = b"", prompt: int = 1000, session: str = "", **fields) -> Needs:
    begins = prefix(text, 0, "seed") if text else None
    return Needs("m", "chat", traits=Traits(prompt, None, begins, "key", ("key", session) if session else None), **fields)


def put(fleet: Fleet, wanted: Needs, now: float = 0.0) -> Placement:
    placement = place(fleet, wanted, now)
    assert placement is not None
    return placement


def answer(fleet: Fleet, placement: Placement, seconds: float, now: float = 0.0, cached: int = 0, *, failed: bool = False) -> None:
    """It is over: the first token took so long."""
    seen, choice = fleet.experience, placement.choice
    assert choice is not None
    seen.heard(placement.seat, choice, seconds, now)
    seen.ended(placement.seat, choice, 100, 1.0, failed=failed)
    seen.remembered(placement.seat, choice, cached)
    placement.release()


def taught(fleet: Fleet, slow: str, times: int = 30) -> None:
    """One of the workers takes ten times as long to read as the others."""
    for worker in fleet.workers.values():
        others = ids(fleet.workers.keys() - {worker.id})
        for _ in range(times):
            answer(fleet, put(fleet, needs(avoid=others), 0.0), 2.0 if worker.id == slow else 0.2)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_the_one_that_reads_slowly_is_left_out_as_long_as_others_have_room(count):
    fleet = world(count)
    taught(fleet, "w1")
    assert "w1" not in {put(fleet, needs(), 60.0).seat.owner for _ in range(2 * count)}


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_conversation_goes_where_its_beginning_is_remembered(count):
    fleet, text = world(count), b"a conversation" * 500
    first = put(fleet, needs(text))
    for turn in range(1, 6):
        placement = put(fleet, needs(text + b"more" * 200 * turn), 10.0 * turn)
        assert placement.seat is first.seat
        assert placement.choice.cached > 500
        placement.release()


def test_memory_gives_way_to_load():
    fleet, text = world(FEW, slots=100), b"a conversation" * 500
    first = put(fleet, needs(text)).seat
    others = ids(fleet.workers.keys() - {first.owner})
    for _ in range(50):  # long prompts that only this one is to read
        assert put(fleet, needs(prompt=8000, avoid=others)).seat is first
    assert put(fleet, needs(text)).seat is not first


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_session_stays_where_it_is_when_that_is_as_good(count):
    fleet = world(count)
    first = put(fleet, needs(session="s"))
    first.release()
    for turn in range(1, 6):
        placement = put(fleet, needs(session="s"), 10.0 * turn)
        assert placement.seat is first.seat
        placement.release()
    assert len({put(fleet, needs(session=f"t{n}")).seat.owner for n in range(count)}) > 1


@pytest.mark.parametrize("strategy", ["score", "sticky"])
def test_a_caller_that_uses_two_models_sticks_with_each_of_them(strategy):
    fleet = Fleet(lambda: None, strategy)
    for name in ("a", "b"):
        join(fleet, f"{name}-m", "m"), join(fleet, f"{name}-n", "n")
    session = "s" if strategy == "score" else ""
    wanted = {model: replace(needs(session=session), model=model) for model in ("m", "n")}
    first = {model: put(fleet, each) for model, each in wanted.items()}
    for placement in first.values():
        placement.release()
    for turn in range(1, 6):
        for model, each in wanted.items():
            placement = put(fleet, each, 10.0 * turn)
            assert placement.seat is first[model].seat
            placement.release()


def test_a_model_that_is_loaded_goes_before_one_that_is_not_until_it_was_asked_for():
    fleet = Fleet(lambda: None)
    cold, warm = join(fleet, "cold"), join(fleet, "warm")
    report = engine(slots=8)
    fleet.report(cold, wire.Report(1, [replace(report, models=[wire.Model("m", kinds=["chat"], loaded=False)])]))
    taken = [put(fleet, needs(prompt=10)) for _ in range(6)]
    assert {placement.seat.worker for placement in taken} == {warm}
    loading = put(fleet, needs(avoid=ids({"warm"})), 1.0)
    assert loading.choice.cold == 10.0
    assert put(fleet, needs(avoid=ids({"warm"})), 4.0).choice.cold == pytest.approx(7.0)
    answer(fleet, loading, 3.25, 4.25)
    assert put(fleet, needs(avoid=ids({"warm"})), 4.5).choice.cold == 0.0
    fleet.report(cold, wire.Report(2, [replace(report, models=[wire.Model("m", kinds=["chat"], loaded=False)])]))
    assert put(fleet, needs(avoid=ids({"warm"})), 5.0).choice.cold == pytest.approx(3.0, abs=0.3)


def test_who_fails_is_left_alone_for_a_while():
    fleet = world(2)
    for _ in range(10):
        answer(fleet, put(fleet, needs(avoid=ids({"w1"}))), 0.01, failed=True)
        answer(fleet, put(fleet, needs(avoid=ids({"w0"}))), 0.2)
    assert {put(fleet, needs(), 20.0).seat.owner for _ in range(4)} == {"w1"}
    assert "w0" in {put(fleet, needs(), 2000.0 + n).seat.owner for n in range(8)}


@pytest.mark.parametrize(
    "gpu",
    [wire.Gpu("hot", temperature=95.0), wire.Gpu("absurd", temperature=1e308)],
)
def test_a_gpu_that_is_too_hot_is_spared(gpu):
    fleet = world(2)
    hot = fleet.workers["w0"]
    fleet.report(hot, wire.Report(1, [hot.seats["e"].engine], gpus=[gpu]))
    assert {put(fleet, needs()).seat.owner for _ in range(4)} == {"w1"}


def test_what_an_engine_says_that_it_remembered_is_believed_more_than_what_it_was_sent():
    fleet, text = world(2), b"a conversation" * 500
    placement = put(fleet, needs(text))
    answer(fleet, placement, 0.2, cached=1)
    expected = []
    for _ in range(20):
        placement = put(fleet, needs(text, avoid=ids({"w0", "w1"} - {placement.seat.owner})))
        expected.append(placement.choice.cached)
        answer(fleet, placement, 0.2, cached=0)
    assert expected[0] > 900
    assert expected[-1] < 250


@pytest.mark.parametrize("count", [FEW, MANY])
def test_each_has_its_turn(count):
    fleet = world(count, "round-robin")
    owners = [put(fleet, needs()).seat.owner for _ in range(3 * count)]
    assert owners[:count] == owners[count : 2 * count] == owners[2 * count :]
    assert len(set(owners)) == count
    assert put(fleet, needs(avoid=ids({"w0"}))).seat.owner == "w1"


@pytest.mark.parametrize("count", [FEW, MANY])
def test_who_has_more_slots_is_drawn_more_often(count):
    fleet = Fleet(lambda: None, "weighted")
    for number in range(count):
        join(fleet, f"w{number}", slots=3 if number % 2 else 1)
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        placement = put(fleet, needs())
        drawn[int(placement.seat.owner[1:]) % 2] += 1
        placement.release()
    assert 2.4 < drawn[1] / drawn[0] < 3.6


@pytest.mark.parametrize("count", [FEW, MANY])
def test_who_sticks_goes_where_the_session_or_the_key_was_last(count):
    fleet = world(count, "sticky", slots=1)
    for wanted in (needs(session="s"), needs()):
        first = put(fleet, wanted)
        other = put(fleet, needs(session="other"))
        assert other.seat is not first.seat
        first.release()
        again = put(fleet, wanted)
        assert again.seat is first.seat
        full = put(fleet, wanted)
        assert full.seat is not again.seat
        for placement in (other, again, full):
            placement.release()


@given(
    st.sampled_from(STRATEGIES),
    st.sampled_from([2, FEW, MANY]),
    st.lists(st.tuples(st.sampled_from(["place", "answer", "fail", "leave", "join", "rest", "cold"]), st.integers(0, 10**6)), max_size=60),
)
def test_whatever_happens_only_who_is_free_is_taken_and_no_slot_is_lost(strategy, count, steps):
    fleet, held, now, serial = world(count, strategy, slots=2), [], 0.0, 0
    for step, n in steps:
        now, name = now + n % 7, f"w{n % count}"
        worker = fleet.workers.get(name)
        if step == "place":
            wanted = needs(b"%d" % (n % 3) * 1000, n % 5000, str(n % 4), avoid=ids({name}))
            free = {seat.owner for seat in fleet.seats("m", "chat") if seat.free(now)}
            placement = place(fleet, wanted, now)
            assert (placement.seat.owner in (free - {name} or free)) if free else placement is None
            held += [placement] if placement else []
        elif step in {"answer", "fail"} and held:
            placement = held.pop(n % len(held))
            if placement.choice is not None:
                answer(fleet, placement, n % 11 / 10, now, n % 900, failed=step == "fail")
            placement.release()
        elif step == "leave" and worker is not None:
            fleet.detach(worker)
        elif step == "join" and worker is None:
            join(fleet, name, slots=2)
        elif step == "rest" and worker is not None:
            fleet.rest(worker.seats["e"], now)
        elif step == "cold" and worker is not None:
            serial += 1
            models = [wire.Model("m", kinds=["chat"], loaded=n % 2 == 0)]
            fleet.report(worker, wire.Report(serial, [engine(slots=2, models=models)]))
    for placement in held:
        placement.release()
    assert fleet.used == 0


def test_what_was_learned_outlives_a_session():
    fleet = world(2)
    taught(fleet, "w1")
    fleet.detach(fleet.workers["w1"])
    join(fleet, "w1")
    assert {put(fleet, needs(), 5.0).seat.owner for _ in range(4)} == {"w0"}


def test_who_left_is_not_kept_for_what_it_remembered():
    fleet = world(MANY)
    seat = put(fleet, needs(b"x" * 4096)).seat
    fleet.detach(fleet.workers[seat.owner])
    assert fleet.experience.holders(fleet.experience.levels(needs(b"x" * 4096).traits.prefix), 3) == []
    assert put(fleet, needs(b"x" * 4096)).seat is not seat


@pytest.mark.parametrize("strategy", ["score", "sticky"])
@pytest.mark.parametrize("count", [FEW, MANY])
def test_nothing_is_sent_to_a_session_that_a_newer_one_replaced(count, strategy):
    fleet, text = world(count, strategy), b"a conversation" * 500
    placement = put(fleet, needs(text, session="s"))
    placement.release()
    older = placement.seat.worker
    newer = join(fleet, older.id)
    assert older.state == "offline"
    fleet.detach(older)
    for turn in range(5):
        again = put(fleet, needs(text + b"more" * 50, session="s"), 10.0 * turn)
        assert again.seat.worker is fleet.workers[again.seat.owner]
        again.release()
    assert fleet.workers[older.id] is newer
    assert placement.seat not in fleet.experience.holders(fleet.experience.levels(needs(text).traits.prefix), MANY)


@pytest.mark.parametrize("strategy", ["score", "sticky"])
def test_nothing_is_sent_to_an_engine_that_its_agent_does_not_name_any_more(strategy):
    fleet, text = world(MANY, strategy), b"a conversation" * 500
    placement = put(fleet, needs(text, session="s"))
    placement.release()
    fleet.report(placement.seat.worker, wire.Report(1, [engine("m", slots=8, id="other")]))
    for turn in range(5):
        again = put(fleet, needs(text, session="s"), 10.0 * turn)
        assert again.seat in again.seat.worker.seats.values()
        again.release()


def test_who_changed_its_place_is_not_found_there_for_what_it_remembers():
    fleet, text = world(MANY), b"a conversation" * 500
    tags = {id: {"region": "eu"} for id in fleet.workers}
    fleet.adopt(Rules(), tags)
    there = where(["region=eu"])
    moved = put(fleet, needs(text, where=there)).seat
    fleet.adopt(Rules(), {**tags, moved.owner: {"region": "us"}})
    for turn in range(5):
        assert put(fleet, needs(text, where=there), 10.0 * turn).seat is not moved


def test_nothing_is_learned_of_a_prompt_that_nobody_has_looked_at():
    fleet = world(2)
    placement = put(fleet, Needs("m", "chat"))
    known = placement.seat.past.known["m"]
    before = known.learned.prefill()
    fleet.experience.heard(placement.seat, placement.choice, 9.0, 9.0)
    fleet.experience.outrun(placement.seat, placement.choice, 9.0)
    assert (known.learned.prefill(), known.learned.read) == (before, 0.0)


def test_sessions_that_come_and_go_leave_nothing_behind():
    fleet = world(2)
    for turn in range(500):
        seat = put(fleet, needs(b"%d" % turn * 1000)).seat
        fleet.detach(seat.worker)
        join(fleet, seat.owner)
    put(fleet, needs(b"x" * 4096))
    assert len(fleet.experience._numbers) <= 2
    assert max(fleet.experience._numbers) < 256
    assert fleet.experience.prefixes.epoch == 0


def test_a_burst_on_an_unknown_worker_is_measured_for_what_it_was():
    """What a token takes is learned while requests that were sent before are still being read."""
    fleet = world(2, slots=30)
    sent = [put(fleet, needs(avoid=ids({"w1"}))) for _ in range(20)]
    for turn, placement in enumerate(sent, start=1):
        answer(fleet, placement, 1.128 * turn, 1.128 * turn)
    assert sent[0].seat.past.known["m"].learned.prefill() == pytest.approx(0.001, rel=0.2)


def test_a_decision_says_who_was_considered_and_what_was_expected():
    fleet = world(3)
    choice = put(fleet, needs(b"x" * 4096)).choice
    assert (choice.strategy, choice.model, choice.prompt) == ("score", "m", 1000)
    assert sorted(owner for owner, _ in choice.considered) == ["w0", "w1", "w2"]
    assert choice.reading == pytest.approx((1000 + 128) * 0.00025)
    assert put(world(1), needs()).choice is None


def test_settings_name_every_strategy_and_no_other(tmp_path):
    text = "data_dir: {}\nrouting:\n  strategy: {}\n"
    for strategy in STRATEGIES:
        assert parse(text.format(tmp_path, strategy), "f").routing.strategy == strategy
    with pytest.raises(ConfigError, match="round-robin"):
        parse(text.format(tmp_path, "best"), "f")


# -- places ------------------------------------------------------------------------------------------------------------

TEXT = b"You are a helpful assistant. " * 200
EU = (("region", ("eu",)),)


def divided(dice: Random, strategy: str) -> Fleet:
    """A fleet of one to forty-eight workers, each in one of two regions; some were here before, in an older session."""
    fleet, count = Fleet(lambda: None, strategy), dice.choice((1, 3, 12, 26, 48))
    tags = {f"w{number}": {"worker": f"w{number}", "region": dice.choice(("eu", "us"))} for number in range(count)}
    for id in tags:
        join(fleet, id, "m", slots=2)
    fleet.adopt(Rules(), tags)
    return fleet


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_is_bound_to_a_place_goes_nowhere_else_whoever_remembers_it(strategy):
    """Every seat has heard the text and the session, those of the wrong region last of all."""
    dice, bound, far = Random(7), 0, 0
    for _ in range(60):
        fleet, held = divided(dice, strategy), []
        for now in range(dice.randint(1, 60)):
            where = EU if dice.random() < 0.6 else ()
            placement = place(fleet, needs(TEXT, session="talk", where=where), float(now))
            if placement is None:
                assert where == () or not any(seat.free(float(now)) for seat in fleet.seats("m", "chat", EU))
                continue
            if where:
                bound += 1
                assert placement.seat.tags["region"] == "eu"
            else:
                far += placement.seat.tags["region"] == "us"
            held.append(placement)
            while len(held) > 2 * len(fleet.workers) - 1 or (held and dice.random() < 0.5):
                ended = held.pop(dice.randrange(len(held)))
                if ended.choice is None:  # there was no other
                    ended.release()
                else:
                    answer(fleet, ended, 0.1, float(now), cached=900)
            if dice.random() < 0.1:  # an agent dials again, its worker is told to be elsewhere
                id = dice.choice([*fleet.workers])
                join(fleet, id, "m", slots=2)
                elsewhere = {**fleet.tags, id: {"worker": id, "region": dice.choice(("eu", "us"))}}
                fleet.adopt(Rules(), elsewhere)
    assert bound > 300
    assert far > 100
