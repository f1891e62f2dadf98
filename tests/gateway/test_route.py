import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.gateway import ejection
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.route import TRIES, TURNED_DOWN, Ended, Needs, Outcome, attempts, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine, ids

M = Needs("m", "chat")


def fleet(**slots: int) -> Fleet:
    """Workers with one engine each, by their slots."""
    made = Fleet(lambda: None, "least-busy")
    for id, count in slots.items():
        worker = Worker(id, id, 1, Link(lambda: None, 0.0))
        made.attach(worker, approved=True)
        made.report(worker, wire.Report(0, [engine("m", slots=count)]))
    return made


def chosen(made: Fleet, count: int = 1, needs: Needs = M) -> str:
    placements = [place(made, needs, 0.0) for _ in range(count)]
    return "".join(placement.seat.worker.id if placement else "-" for placement in placements)


def test_the_least_busy_worker_is_chosen_by_share():
    made = fleet(a=4, b=2)
    assert sorted(chosen(made, 3)) == ["a", "a", "b"]
    assert sorted(chosen(made, 4)) == ["-", "a", "a", "b"]


def test_ties_go_to_the_one_that_waited_longest():
    made = fleet(a=1, b=1, c=1)
    order = ""
    for _ in range(6):
        placement = place(made, M, 0.0)
        order += placement.seat.worker.id
        placement.release()
    assert order == order[:3] * 2
    assert sorted(order[:3]) == ["a", "b", "c"]


def test_a_worker_to_avoid_is_the_last_choice_but_a_choice():
    for avoided, order in (("a", "bba-"), ("b", "abb-")):
        assert chosen(fleet(a=1, b=2), 4, Needs("m", "chat", ids(avoided))) == order


def test_nobody_is_chosen_without_slots_model_or_kind():
    made = fleet(a=0, b=1)
    assert chosen(made, needs=Needs("x", "chat")) == "-"
    assert chosen(made, needs=Needs("m", "embeddings")) == "-"
    assert chosen(made, 2) == "b-"


def test_a_slot_is_leased_with_the_placement_and_released_once():
    made = fleet(a=1)
    placement = place(made, M, 0.0)
    assert (placement.model, placement.seat.used) == ("m", 1)
    placement.release()
    placement.release()
    assert placement.seat.used == 0


def run(*outcomes: tuple[Outcome, str], may=lambda needs, now: True, tries: int = TRIES) -> list[Needs]:
    """What each attempt needs, until there is no other."""
    policy = attempts(M, may, tries)
    needed = [next(policy)]
    for outcome, worker in outcomes:
        try:
            needed.append(policy.send(Ended(outcome, ids([worker]), 7.0)))
        except StopIteration:
            break
    return needed


def test_a_request_is_lost_on_so_many_workers():
    assert [needs.avoid for needs in run(*[(Outcome.LOST, id) for id in "abcdef"])] == [ids("abcdef"[:i]) for i in range(TRIES)]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNABLE])
def test_a_worker_that_failed_a_request_is_not_asked_again(outcome):
    assert [needs.shun for needs in run(*[(outcome, id) for id in "abcdef"])] == [ids("abcdef"[:i]) for i in range(TRIES)]


@pytest.mark.parametrize("count", [1, 50])
def test_being_turned_down_costs_no_try(count):
    needed = run(*[(Outcome.BUSY, f"w{i}") for i in range(count)], (Outcome.LOST, "x"))
    assert len(needed) == count + 2
    assert needed[-1].avoid == ids([*(f"w{i}" for i in range(count)), "x"])


def test_an_engine_that_is_full_costs_nothing_the_first_time():
    asked = []

    def may(needs, now):
        asked.append(needs.avoid)
        return len(asked) < 2

    needed = run(*[(Outcome.FULL, id) for id in "abcabc"], may=may)
    assert (len(needed), asked) == (5, [ids("abc")] * 2)


def test_who_may_not_is_not_tried_again():
    asked = []

    def may(needs, now):
        asked.append((needs.shun, now))
        return False

    assert len(run((Outcome.LOST, "a"), (Outcome.BUSY, "b"), (Outcome.FAILED, "c"), may=may)) == 3
    assert asked == [(ids("c"), 7.0)]


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from("abcdef")), max_size=30), st.integers(1, 5), st.booleans())
def test_the_policy_keeps_its_word_whatever_happens(outcomes, tries, allowed):
    needed = run(*outcomes, may=lambda needs, now: allowed, tries=tries)
    happened = outcomes[: len(needed) - 1]
    real = [worker for outcome, worker in happened if outcome not in TURNED_DOWN]
    assert len(real) < tries
    assert needed[-1].shun == ids(worker for outcome, worker in happened if outcome in {Outcome.FAILED, Outcome.UNABLE})
    assert needed[-1].avoid == ids(worker for outcome, worker in happened if outcome in TURNED_DOWN | {Outcome.LOST})
    assert allowed or not needed[-1].shun


# -- workers that are left alone ---------------------------------------------------------------------------------------


def fail(made: Fleet, worker: str, count: int = 5, now: float = 0.0, model: str = "m") -> None:
    pool = frozenset(ejection.present(made, model, "chat"))
    for _ in range(count):
        made.breaker.ended(((worker, "e"), model), False, pool, now)


@pytest.mark.parametrize("more", [0, 10])
def test_a_worker_that_fails_is_not_chosen(more):
    made = fleet(a=2, b=2, **{f"w{i}": 1 for i in range(more)})
    fail(made, "a")
    assert "a" not in chosen(made, 4 + more)


def test_a_worker_that_was_left_alone_is_given_one_request():
    made = fleet(a=2, b=1)
    fail(made, "a")
    assert chosen(made, 3) == "b--"
    first = place(made, M, 5.0)
    assert (first.seat.owner, place(made, M, 5.0)) == ("a", None)
    first.release()  # nothing is known of it
    assert place(made, M, 5.0).seat.owner == "a"


def test_nobody_is_left_alone_once_the_others_are_full_of_holes():
    """The other worker is away, or drains: whoever is left is better than nobody."""
    made = fleet(a=1, b=1)
    fail(made, "a")
    made.drain(made.workers["b"])
    assert chosen(made) == "a"


def test_what_is_known_of_a_worker_that_is_away_concerns_nobody():
    made = fleet(a=1, b=1, c=1)
    fail(made, "a")
    assert ejection.held(made, "m", "chat", 0.0) == ids("a")
    made.detach(made.workers["a"])
    assert ejection.held(made, "m", "chat", 0.0) == frozenset()


def test_models_are_told_apart_by_what_the_engine_calls_them():
    made = Fleet(lambda: None)
    for id in "ab":
        worker = Worker(id, id, 1, Link(lambda: None, 0.0))
        made.attach(worker, approved=True)
        models = [wire.Model("n", kinds=["chat"]), wire.Model(f"m-{id}", kinds=["chat"], aliases=["m"])]
        made.report(worker, wire.Report(0, [engine(models=models, slots=2)]))
    fail(made, "a", model="n")
    assert chosen(made, 4, Needs("n", "chat")) == "bb--"
    assert chosen(made, 2, Needs("m", "chat")) == "aa"


def test_only_the_only_worker_cuts_its_model_off():
    made = fleet(a=1)
    fail(made, "a", 10, now=1.0)
    assert ejection.cut_off(made, "m", "chat", 2.0) == 4.0
    assert not ejection.others(made, "m", "chat", frozenset(), 2.0)
    assert ejection.cut_off(made, "m", "chat", 6.0) is None  # the next one is a probe
    assert ejection.cut_off(made, "other", "chat", 2.0) is None


@pytest.mark.parametrize("count", [2, 20])
def test_a_worker_that_is_shunned_is_never_chosen(count):
    made = fleet(**{f"w{i}": 1 for i in range(count)})
    shun = ids(f"w{i}" for i in range(count - 1))
    assert chosen(made, 2, Needs("m", "chat", shun=shun)) == f"w{count - 1}-"
    assert "-" not in chosen(made, count - 1)
