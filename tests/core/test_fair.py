"""What the order refuses, forgets and keeps."""

import gc
import random
import re
from collections import Counter
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.fair import FANOUT, LEAD, OTHERS, Fair, Ticket


def join(fair: Fair, *path: str, line: str = "X", rank: int = 2, cost: float = 1.0) -> Ticket:
    ticket = Ticket(path, cost)
    fair.join(ticket, path, line, rank)
    return ticket


def turn(fair: Fair, cost: float) -> tuple[str, ...] | None:
    """One ticket is served; whose it was."""
    if (ticket := fair.best()) is None:
        return None
    fair.take(ticket)
    fair.charge(ticket, cost)
    fair.finish(ticket)
    path: tuple[str, ...] = ticket.item
    return path


def nothing_is_left(fair: Fair) -> bool:
    return fair.waiting() == 0 and fair.best() is None and not [*fair.tickets()] and not fair.lines()


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [-1, 5, 10**9])
@pytest.mark.parametrize("way", ["join", "serve"])
def test_a_rank_that_is_none_is_refused(rank, way):
    fair = Fair(1)
    with pytest.raises(ValueError, match=f"no priority class has the rank {rank}"):
        getattr(fair, way)(Ticket(None, 1.0), ("a",), "X", rank)
    assert nothing_is_left(fair)


@pytest.mark.parametrize("path", [(), ("a",), ("a", "b", "c")])
def test_a_path_of_another_depth_is_refused(path):
    fair = Fair(2)
    with pytest.raises(ValueError, match=f"a path has 2 names, not {len(path)}"):
        fair.join(Ticket(None, 1.0), path, "X", 2)
    assert nothing_is_left(fair)


@pytest.mark.parametrize("cost", [nan, inf, -inf, -1.0, 1e16, 1e308])
def test_a_cost_that_is_absurd_is_refused(cost):
    fair = Fair(1)
    with pytest.raises(ValueError, match="a ticket cannot cost"):
        fair.join(Ticket(None, cost), ("a",), "X", 2)
    assert nothing_is_left(fair)


@pytest.mark.parametrize("units", [nan, inf, -inf, 1e16, -1e308])
def test_a_charge_that_is_absurd_is_refused_and_changes_nothing(units):
    fair = Fair(1)
    ticket, _ = join(fair, "a"), join(fair, "b")
    fair.take(ticket)
    with pytest.raises(ValueError, match="cannot charge"):
        fair.charge(ticket, units)
    fair.charge(ticket, 5.0)
    assert dict(fair.counters()) == {("a",): 5.0, ("b",): 0.0}


@pytest.mark.parametrize("weight", [0, 0.0, -1.0, nan, inf, -inf, 1e-300, 1e300])
@pytest.mark.parametrize("bad", ["org", "team"])
def test_a_weight_that_is_absurd_is_refused_and_leaves_nothing_behind(weight, bad):
    fair = Fair(2, lambda path: weight if path[-1] == bad else 1.0, fanout=1)
    for _ in range(3):
        with pytest.raises(ValueError, match=re.escape(f"the weight of '{bad}' is {weight}, but must lie between 1e-06 and 1e+06")):
            join(fair, "org", "team")
    assert nothing_is_left(fair)
    join(fair, "other", "one")
    assert {path[0] for path, _ in fair.counters()} == {"other"}, "what was begun has made room"


def test_a_ticket_cannot_wait_twice():
    fair = Fair(1)
    ticket = join(fair, "a")
    for way in (fair.join, fair.serve):
        with pytest.raises(ValueError, match="the ticket waits already"):
            way(ticket, ("a",), "X", 2)
    assert fair.waiting() == 1


def test_leaving_and_ending_twice_is_nothing():
    fair = Fair(1)
    gone, ran = join(fair, "a"), join(fair, "a")
    for _ in range(2):
        fair.leave(gone)
        assert fair.waiting(("a",)) == 1
    fair.take(ran)
    fair.leave(ran)
    assert ran.leaf is not None, "who runs cannot leave"
    for _ in range(2):
        fair.finish(ran)
        fair.charge(ran, 100.0)
    assert dict(fair.counters()) == {("a",): 0.0}
    assert nothing_is_left(fair)


def test_who_ends_while_waiting_waits_no_more():
    fair = Fair(1)
    fair.finish(join(fair, "a"))
    assert nothing_is_left(fair)


@pytest.mark.parametrize("name", ["", "\x00", "\x1b[31m", "\ud800", "a" * 10_000, OTHERS, "../..", "ＡＢ", "a\nb"])
def test_a_name_is_only_a_name(name):
    fair = Fair(2)
    mine, theirs = join(fair, name, name, line=name), join(fair, "a", "b", line=name)
    assert [turn(fair, 10.0), turn(fair, 10.0)] == [mine.item, theirs.item]
    assert (name, name) in dict(fair.counters())


def test_a_thousand_million_tokens_are_just_a_number():
    fair = Fair(1)
    huge, small = join(fair, "huge", cost=1e9), join(fair, "small")
    assert fair.backlog("X") == 1e9 + 1
    fair.take(huge)
    fair.charge(huge, 1e9)
    assert fair.best() is small
    fair.finish(huge)
    assert dict(fair.counters()) == {("huge",): LEAD, ("small",): 0.0}


def test_a_charge_that_is_taken_back_counts_at_once():
    fair = Fair(1)
    first, _, other = join(fair, "a"), join(fair, "a"), join(fair, "b")
    fair.take(first)
    fair.charge(first, 100.0)
    assert fair.best() is other
    fair.charge(first, -100.0)
    assert fair.best() is not other


def test_a_ticket_that_comes_back_is_not_expected_to_cost_twice():
    fair = Fair(1)
    ticket, _ = join(fair, "a", cost=10.0), join(fair, "a", cost=10.0)
    for _ in range(3):
        number = ticket.number
        fair.take(ticket)
        assert ticket.leaf is not None
        assert ticket.leaf.owed == 10.0
        fair.join(ticket, ("a",), "X", 2, number)
        assert ticket.leaf.owed == 0.0
    assert len([*fair.tickets()]) == fair.waiting() == 2
    assert fair.best() is ticket


def test_a_ticket_that_comes_back_may_find_a_free_slot():
    fair = Fair(1)
    ticket = join(fair, "a")
    fair.take(ticket)
    fair.serve(ticket, ("a",), "Y", 1)
    fair.charge(ticket, 3.0)
    fair.finish(ticket)
    flow = fair._root.children["a"]
    assert (flow.counter, flow.owed, flow.claims) == (3.0, 0.0, 0)


def test_who_found_a_free_slot_has_had_a_turn():
    fair = Fair(1)
    for _ in range(5):
        ticket = Ticket(("a",), 10.0)
        fair.serve(ticket, ("a",), "X", 2, ("X",))
        fair.charge(ticket, 10.0)
        fair.finish(ticket)
    second, first = join(fair, "a"), join(fair, "b")
    assert fair.best() is second, "b begins where the last one is, and a was there first"
    another = Ticket(("b",), 1.0)
    fair.serve(another, ("b",), "X", 2)
    fair.charge(another, 1.0)
    assert fair.best() is second
    fair.charge(another, -2.0)
    assert fair.best() is first


# -- many -----------------------------------------------------------------------------------------------------------------


def test_ten_thousand_flows_below_one_key_share_what_room_there_is_and_all_are_served():
    fair = Fair(2)
    for n in range(10_000):
        join(fair, "key", f"user{n}")
    join(fair, "other", "")
    assert fair.waiting() == 10_001
    assert fair.waiting(("key",)) == 10_000
    assert fair.waiting(("key", OTHERS)) == 10_000 - FANOUT
    assert fair.waiting(("key", "user9999")) == fair.waiting(("nobody",)) == fair.waiting(("nobody", "at all")) == 0
    assert len([*fair.counters()]) <= FANOUT + 4
    served = Counter(turn(fair, 10.0) for _ in range(10_001))
    assert len(served) == 10_001, "each once"
    assert nothing_is_left(fair)


def test_flows_that_were_idle_for_longest_make_room_and_those_who_wait_never():
    fair = Fair(1, fanout=3)
    waiting = join(fair, "waiting")
    for n in range(100):
        ticket = Ticket(None, 1.0)
        fair.serve(ticket, (f"f{n}",), "X", 2)
        fair.finish(ticket)
    assert {path for path, _ in fair.counters()} == {("waiting",), ("f98",), ("f99",)}
    assert fair.best() is waiting


def test_the_others_come_and_go_without_one_flow_more():
    fair = Fair(1, fanout=2)
    for n in range(200):
        tickets = [join(fair, f"{n}.{m}") for m in range(4)]
        assert len([*fair.counters()]) <= 3
        for ticket in tickets[n % 3 :]:
            fair.leave(ticket)
    assert fair.waiting((OTHERS,)) > 0


@pytest.mark.parametrize("way", ["served at once", "waited"])
def test_what_is_forgotten_leaves_no_garbage(way):
    """More flows than there is room for come and go, once in a request."""
    fair = Fair(3, fanout=3)
    gc.collect()
    gc.disable()
    try:
        for number in range(100):
            path = (f"team {number % 7}", f"key {number}", "")
            ticket = Ticket(path, 1.0)
            if way == "waited":
                fair.join(ticket, path, "X", 2)
                turn(fair, 1.0)
            else:
                fair.serve(ticket, path, "X", 2)
                fair.settle(ticket, 1.0)
            del ticket
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert nothing_is_left(fair)


def test_lines_where_nobody_waits_are_forgotten():
    fair = Fair(1)
    kept = join(fair, "a", line="kept")
    for n in range(3000):
        fair.leave(join(fair, "a", line=f"line{n}"))
    assert len(fair._lines) <= 1001
    assert len(fair._root.children["a"].branches) <= 64
    assert fair.lines() == ["kept"]
    assert fair.best() is kept


def test_a_flow_that_waits_in_very_many_lines_waits_in_all_of_them():
    fair = Fair(1)
    tickets = [join(fair, "a", line=f"line{n}") for n in range(100)]
    assert {id(ticket) for ticket in fair.tickets()} == {id(ticket) for ticket in tickets}
    for n, ticket in enumerate(tickets):
        assert fair.standing(f"line{n}") == 1
        fair.leave(ticket)
        assert fair.standing(f"line{n}") == 0
    assert fair.standing("no line") == fair.backlog("no line") == 0
    assert nothing_is_left(fair)


def test_work_of_a_line_that_was_forgotten_meanwhile_is_charged_to_its_flow_alone():
    fair = Fair(1)
    ticket = join(fair, "a", line="gone")
    fair.take(ticket)
    for n in range(1001):
        fair.leave(join(fair, "a", line=f"line{n}"))
    fair.charge(ticket, 5.0)
    fair.finish(ticket)
    assert fair._root.children["a"].counter == 5.0


@pytest.mark.parametrize("flows", [1, 1000])
def test_who_left_is_not_held_for_long(flows):
    """Tickets hold requests; a queue that shrinks gives them back."""
    fair = Fair(1)
    tickets = [join(fair, f"f{n % flows}") for n in range(1000)]
    for ticket in tickets[:10:-1]:
        fair.leave(ticket)
    root = fair._lines["X"].bands[2].root
    leaf = tickets[0].branch
    assert leaf is not None
    assert len(root.heap) <= 2 * root.live + 17
    assert len(leaf.heap) <= 2 * leaf.live + 17
    for ticket in tickets:
        fair.leave(ticket)
    assert (root.heap, leaf.heap) == ([], [])


# -- over a restart -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abc")


@given(
    used=st.dictionaries(st.tuples(NAMES, NAMES), st.integers(0, 100).map(float), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_counters_keep_their_order_over_a_restart(used, seed):
    """Whoever got less is not behind whoever got more, at any level, whatever order they come back in."""
    fair = Fair(2)
    running = []
    for path, units in used.items():
        ticket = join(fair, *path)
        fair.take(ticket)
        running.append((ticket, units))
    for ticket, units in running:
        fair.charge(ticket, units)
        fair.finish(ticket)
    kept = [*fair.counters()]
    again = Fair(2)
    again.restore(kept)
    assert sorted(again.counters()) == sorted(kept)
    orgs = Counter[str]()
    for (org, _), units in used.items():
        orgs[org] += int(units)
    came = list(used)
    random.Random(seed).shuffle(came)
    for path in came:
        join(again, *path)
    first = again.best()
    assert first is not None
    assert orgs[first.item[0]] <= orgs[came[0][0]], "others are lifted to who came back first"
    ahead = {org: again._root.children[org].lag() for org in orgs}
    assert all(ahead[one] <= ahead[other] for one in orgs for other in orgs if orgs[one] <= orgs[other])


def test_what_was_got_before_a_restart_still_counts():
    fair = Fair(1)
    fair.restore([(("much",), 500.0), (("some",), 250.0), (("little",), 100.0)])
    for name in ("little", "some", "much", "new"):
        for _ in range(9):
            join(fair, name)
    assert Counter(turn(fair, 50.0) for _ in range(20)) == {("little",): 8, ("new",): 7, ("some",): 5}


def test_who_is_far_ahead_is_kept_as_far_ahead_as_counts():
    """Also in a line where all are: what is kept is how far each is ahead of the others."""
    fair = Fair(1, lead=1000.0)
    for name in ("a", "b"):
        for _ in range(1000):
            join(fair, name)
    for _ in range(1001):
        turn(fair, 100.0)
    assert dict(fair.counters()) == {("a",): 100.0, ("b",): 0.0}


@pytest.mark.parametrize(
    "malformed",
    [
        (("b",), nan),
        (("b",), inf),
        (("b",), -inf),
        ((), 1.0),
        (("b", "c"), 1.0),
        (("a", "b", "c"), 1.0),
        (("no", "parent"), 1.0),
    ],
)
def test_what_is_malformed_is_left_out_at_a_restart(malformed):
    fair = Fair(2)
    fair.restore([(("a",), 7.0), malformed, (("a", "b"), 3.0)])
    assert dict(fair.counters()) == {("a",): 7.0, ("a", "b"): 3.0}


def test_what_is_absurd_is_capped_at_a_restart_and_the_last_of_two_counts():
    fair = Fair(2, fanout=2, lead=10.0)
    fair.restore([(("a",), 1e300), (("a", "x"), 1.0), (("a",), 2.0), (("b",), -5.0), (("too many",), 1.0), (("b",), 1e300)])
    assert dict(fair.counters()) == {("a",): 2.0, ("a", "x"): 1.0, ("b",): 10.0}
    for _ in range(20):
        join(fair, "a", "x")
        join(fair, "b", "y")
    assert Counter(turn(fair, 4.0) for _ in range(20)) == {("a", "x"): 11, ("b", "y"): 9}
    for ticket in [*fair.tickets()]:
        fair.leave(ticket)
    join(fair, "c", "new")
    assert {path[0] for path, _ in fair.counters()} == {"b", "c"}, "what was restored makes room as well"


def slowly(fair, ticket, path, line, units):
    """What `serve` must come to, without its short cuts."""
    band, leaf = fair._band(line, 2), fair._claim(ticket, path)
    ticket.leaf, ticket.band, ticket.serves = leaf, band, (line,)
    band.line.shares, ticket.owed, band.mark = (line,), ticket.cost, band.line.work
    above = band.root
    for flow in leaf.chain:
        branch = flow.branch(band)
        if branch.waiting == 0:
            fair._fit(branch, above, lifted=True)
        above.latest = branch
        flow.owed += ticket.cost
        above = branch
    fair.charge(ticket, units)


def pictured(fair):
    """Everything that turns are decided by."""
    out, stack = [], list(fair._root.children.values())
    while stack:
        flow = stack.pop()
        stack.extend(flow.children.values())
        parts = [
            (band.line.name, branch.shift, branch.limit, branch.key(), branch.latest and branch.latest.flow.path, branch.parent.flow.path)
            for band, branch in flow.branches.items()
        ]
        home = flow.home.band.line.name if flow.home is not None else None
        out.append((flow.path, flow.counter, flow.owed, flow.claims, flow.lag(), home, parts))
    return sorted(out), [(line.name, line.work, line.bands[2].mark) for line in fair._lines.values()]


SERVED = st.tuples(st.sampled_from("ab"), st.sampled_from("ab"), st.sampled_from("XY"), st.integers(0, 40), st.integers(0, 60))


@given(st.lists(SERVED | st.integers(0, 50), max_size=40), st.booleans())
def test_who_is_served_at_once_is_served_by_the_same_rules_as_everybody(steps, crowded):
    quick, slow = [Fair(2, lambda path: 1.0 + (path[-1] == "b"), lead=50.0) for _ in range(2)]
    if crowded:
        for fair in (quick, slow):
            fair.join(Ticket("waits", 8.0), ("a", "c"), "Y", 2)
    running = []
    for step in steps:
        if isinstance(step, tuple):
            *path, line, cost, units = step
            running.append((Ticket("quick", float(cost)), Ticket("slow", float(cost))))
            quick.serve(running[-1][0], tuple(path), line, 2, (line,), float(units))
            slowly(slow, running[-1][1], tuple(path), line, float(units))
        elif running:
            one, other = running.pop(step % len(running))
            quick.settle(one, step - 20.0)
            slow.charge(other, step - 20.0)
            slow.finish(other)
        assert pictured(quick) == pictured(slow)


def test_nothing_absurd_is_charged_at_either_end():
    fair, ticket = Fair(1), Ticket("x", 1.0)
    with pytest.raises(ValueError, match="cannot charge"):
        fair.serve(ticket, ("a",), "X", 2, (), -1.0)
    fair.serve(ticket, ("a",), "X", 2)
    with pytest.raises(ValueError, match="cannot charge"):
        fair.settle(ticket, float("nan"))
    waits = join(fair, "a")
    with pytest.raises(ValueError, match="waits"):
        fair.settle(waits, 1.0)
