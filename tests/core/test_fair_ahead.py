"""What is said to stand before a ticket, against what then goes before it."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.fair import AGING, Ahead, Fair, Path, Ticket

COST = 100.0
#: Names of one path each, of three levels; few, so that they meet.
PATHS = st.lists(st.tuples(*[st.sampled_from("abcd")] * 3), min_size=1, max_size=50)
WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0, 3.0]))


def stand(fair: Fair, paths: list[Path], rank: int = 2) -> list[Ticket]:
    tickets = [Ticket(path, COST) for path in paths]
    for ticket in tickets:
        fair.join(ticket, ticket.item, "X", rank)
    return tickets


def served(fair: Fair) -> Iterator[Ticket]:
    """All who wait, in the order of their turns, when everybody costs what was expected."""
    while (ticket := fair.best()) is not None:
        yield ticket
        fair.take(ticket)
        fair.charge(ticket, ticket.cost)
        fair.finish(ticket)


@given(costs=st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=30))
def test_what_stands_before_a_ticket_of_the_only_flow_is_exact(costs):
    fair = Fair(2)
    tickets = [Ticket(cost, cost) for cost in costs]
    for ticket in tickets:
        fair.join(ticket, ("a", "b"), "X", 2)
    for index, ticket in enumerate(tickets):
        units = sum(costs[:index])
        assert fair.ahead(ticket) == pytest.approx((index, units, units))


@given(costs=st.lists(st.integers(1, 1000).map(float), min_size=1, max_size=30), used=st.randoms(use_true_random=False))
def test_what_stands_before_the_only_ticket_of_each_flow_is_exact(costs, used):
    """Counters that differ all, so that no two are equal."""
    places = list(range(len(costs)))
    used.shuffle(places)
    fair = Fair(1, lead=1e9)
    fair.restore([((f"f{n}",), 1e4 * place) for n, place in enumerate(places)])
    tickets = [Ticket(n, cost) for n, cost in enumerate(costs)]
    for ticket in sorted(tickets, key=lambda ticket: places[ticket.item]):
        fair.join(ticket, (f"f{ticket.item}",), "X", 2)
    expected = {ticket: fair.ahead(ticket) for ticket in tickets}
    went = 0.0
    for index, ticket in enumerate(served(fair)):
        assert expected[ticket].tickets == pytest.approx(index)
        assert expected[ticket].units == pytest.approx(went)
        went += ticket.cost


def tolerance(path: Path, paths: list[Path], weights: dict[str, float]) -> float:
    """Tickets that the forecast may be wrong by when all cost the same and nobody comes: one for each sibling of the flow, as a ticket
    is not served in parts; and what it is wrong by below shifts every sibling above, by their weights."""
    off = 0.0
    for level in (2, 1, 0):
        siblings = {other[level] for other in paths if other[:level] == path[:level]} - {path[level]}
        shifted = sum(weights.get(name, 1.0) for name in siblings) / weights.get(path[level], 1.0)
        off = len(siblings) + off * (1 + shifted)
    return off


@given(paths=PATHS, weights=WEIGHTS)
def test_the_forecast_is_within_its_tolerance_of_the_real_order(paths, weights):
    fair = Fair(3, lambda path: weights.get(path[-1], 1.0), lead=1e9)
    tickets = stand(fair, paths)
    expected = {ticket: fair.ahead(ticket) for ticket in tickets}
    for index, ticket in enumerate(served(fair)):
        off = tolerance(ticket.item, paths, weights)
        assert abs(expected[ticket].tickets - index) <= off + 1e-6
        assert abs(expected[ticket].units - index * COST) <= off * COST + 1e-6
        assert expected[ticket].own <= expected[ticket].units + 1e-6


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_flows_side_by_side_are_foreseen_to_one_ticket_a_flow(sizes):
    fair = Fair(1)
    tickets = stand(fair, [(f"f{flow}",) for flow, size in enumerate(sizes) for _ in range(size)])
    expected = {ticket: fair.ahead(ticket).tickets for ticket in tickets}
    for index, ticket in enumerate(served(fair)):
        assert abs(expected[ticket] - index) <= len(sizes) - 1


def test_what_runs_is_paid_for_first():
    """A flow whose ticket has just begun is behind one that runs nothing, although neither was charged."""
    fair = Fair(1)
    first, second = stand(fair, [("a",), ("a",)])
    fair.take(first)
    (other,) = stand(fair, [("b",)])
    assert fair.ahead(second).tickets == 1
    assert fair.ahead(other).tickets == 0
    fair.charge(first, COST)
    assert fair.ahead(second).tickets == 1


def test_tickets_that_cost_nothing_can_be_forecast():
    fair = Fair(1)
    tickets = [Ticket(n, 0.0) for n in range(4)]
    for ticket in tickets:
        fair.join(ticket, (str(ticket.item % 2),), "X", 2)
    assert all(0 <= fair.ahead(ticket).tickets <= 3 for ticket in tickets)
    assert all(fair.ahead(ticket).units == 0 for ticket in tickets)
    high = Ticket("high", 0.0)
    fair.join(high, ("0",), "X", 1)
    assert fair.ahead(tickets[0]).tickets >= 1, "a class above that costs nothing is counted whole"


def test_higher_classes_stand_before_a_ticket_as_far_as_its_own_does_not_age():
    fair = Fair(1)
    stand(fair, [("many",)] * 1000, rank=1)
    normal, batch, sheddable = (stand(fair, [("one",)], rank=rank)[0] for rank in (2, 3, 4))
    assert fair.ahead(normal).units == AGING[2]
    assert fair.ahead(normal).tickets == AGING[2] / COST
    assert fair.ahead(batch).units == AGING[3]
    assert fair.ahead(sheddable).units == 1002 * COST, "no more than there is"
    alone = stand(fair, [("one",)], rank=0)[0]
    assert fair.ahead(alone) == Ahead(0, 0, 0)


def test_lower_classes_and_other_lines_do_not_stand_before_a_ticket():
    fair = Fair(1)
    stand(fair, [("many",)] * 10, rank=3)
    fair.join(Ticket("elsewhere", COST), ("many",), "Y", 0)
    assert fair.ahead(stand(fair, [("one",)])[0]).tickets == 0


def test_ten_thousand_siblings_are_not_summed_up_anew_at_every_look():
    """While the queue moves, a sum over all of them serves until an eighth of them has changed."""
    fair = Fair(1, fanout=20_000)
    tickets = stand(fair, [(f"f{n}",) for n in range(10_000)])
    last = tickets[-1]
    assert last.branch is not None
    top = last.branch.parent
    assert top is not None
    sums = []
    for ticket in tickets[:2000]:
        assert fair.ahead(last).tickets <= 10_000
        if not sums or sums[-1] is not top.profile:
            sums.append(top.profile)
        fair.leave(ticket)
    assert len(sums) == 2


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4), gone=st.integers(0, 30))
def test_a_sum_that_is_a_little_old_is_off_by_an_eighth_at_most(sizes, gone):
    fair = Fair(1)
    *others, last = stand(fair, [(f"f{flow}",) for flow, size in enumerate(sizes) for _ in range(size)])
    fair.ahead(last)
    for ticket in others[:gone]:
        fair.leave(ticket)
    expected = fair.ahead(last).tickets
    real = next(index for index, ticket in enumerate(served(fair)) if ticket is last)
    assert abs(expected - real) <= max(sizes) / 8 + len(sizes)


def test_a_flow_that_falls_below_all_others_has_nothing_before_it_also_when_the_sum_is_old():
    fair = Fair(1)
    runs, mine, *others = stand(fair, [("a",), ("a",), *[(f"f{n}",) for n in range(20)]])
    fair.take(runs)
    fair.charge(runs, 2 * COST)
    assert fair.ahead(mine).tickets == fair.ahead(others[-1]).tickets + 1 == 20
    fair.charge(runs, -3 * COST)
    fair.finish(runs)
    assert fair.best() is mine
    assert fair.ahead(mine) == (0, 0, 0)


@given(
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("XY"), st.sampled_from([100.0])), min_size=2, max_size=40),
)
def test_who_waits_for_the_same_slots_by_another_name_is_foreseen_too(asked):
    """Both lines are served by one slot; what runs first tells so."""
    fair = Fair(1, lead=1e9)
    first = [Ticket("first", COST) for _ in "XY"]
    for line, ticket in zip("XY", first, strict=True):
        fair.serve(ticket, ("z",), line, 2, ("X", "Y"))
        fair.charge(ticket, COST)
        fair.finish(ticket)
    tickets = []
    for name, line, cost in asked:
        tickets.append(Ticket(name, cost))
        fair.join(tickets[-1], (name,), line, 2)
    expected = {ticket: fair.ahead(ticket).tickets for ticket in tickets}
    order = []
    while (ticket := fair.best()) is not None:
        order.append(ticket)
        fair.take(ticket, ("X", "Y"))
        fair.charge(ticket, ticket.cost)
        fair.finish(ticket)
    # a ticket for each part of a flow, as it is not served in parts, and one because each line compares flows on a scale of its own
    off = 2 * len({(name, line) for name, line, _ in asked})
    for index, ticket in enumerate(order):
        assert abs(expected[ticket] - index) <= off


def test_one_flow_in_two_lines_of_the_same_slots_is_counted_in_both():
    fair = Fair(1)
    runs = Ticket("runs", COST)
    fair.serve(runs, ("a",), "X", 2, ("X", "Y"))
    for line in "XXXXX":
        fair.join(Ticket("a", COST), ("a",), line, 2)
    last = Ticket("a", COST)
    fair.join(last, ("a",), "Y", 2)
    assert fair.ahead(last) == Ahead(5, 5 * COST, 5 * COST)
