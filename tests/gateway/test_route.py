import pytest

from mindgw.gateway.fleet import Fleet, Worker
from mindgw.gateway.route import TRIES, Needs, Outcome, attempts, place
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine

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
        assert chosen(fleet(a=1, b=2), 4, Needs("m", "chat", frozenset(avoided))) == order


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


def run(*outcomes: tuple[Outcome, str]) -> list[frozenset[str]]:
    """What each attempt avoids, until there is no other."""
    policy = attempts(M)
    avoided = [next(policy).avoid]
    for outcome in outcomes:
        try:
            avoided.append(policy.send(outcome).avoid)
        except StopIteration:
            break
    return avoided


def test_a_request_is_lost_on_so_many_workers():
    assert run(*[(Outcome.LOST, id) for id in "abcdef"]) == [frozenset("abcdef"[:i]) for i in range(TRIES)]


@pytest.mark.parametrize("count", [1, 50])
def test_being_turned_down_costs_no_try(count):
    avoided = run(*[(Outcome.BUSY, f"w{i}") for i in range(count)], (Outcome.LOST, "x"))
    assert len(avoided) == count + 2
    assert avoided[-1] == {*(f"w{i}" for i in range(count)), "x"}
