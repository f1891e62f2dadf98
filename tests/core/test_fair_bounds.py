"""How far the order may be from ideal, as numbers that hold for every run: differences of service, and what may pass a class."""

import random
from collections import defaultdict
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.fair import Fair, Path, Ticket

INF = float("inf")
#: Units of a token that was read, and of one that was written.
READ, WRITTEN = 1.0, 2.0
SEEDS = st.integers(0, 2**32)
WEIGHTS = st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0])


class Run:
    """One ticket that has a slot: what it has still to write."""

    def __init__(self, ticket: Ticket, path: Path, left: int) -> None:
        self.ticket = ticket
        self.path = path
        self.left = left


class Pool:
    """Slots that all serve the same lines, for flows that write at random speeds."""

    def __init__(self, fair: Fair, slots: int, seed: int, longest: tuple[int, int] = (50, 40), lines: tuple[str, ...] = ("X",)) -> None:
        self.fair = fair
        self.slots = slots
        self.random = random.Random(seed)
        self.read, self.write = longest
        self.lines = lines
        self.running: list[Run] = []
        #: Units that each flow got, by path, at all levels.
        self.got: defaultdict[Path, float] = defaultdict(float)
        #: Turns in their order: path, line, rank and all work until then.
        self.turns: list[tuple[Path, str, int, float]] = []
        self.work = 0.0

    @property
    def largest(self) -> float:
        """The most that a ticket costs."""
        return READ * self.read + WRITTEN * self.write

    def join(self, path: Path, line: str = "X", rank: int = 2) -> Ticket:
        ticket = Ticket((path, line, rank), self.largest / 2)
        self.fair.join(ticket, path, line, rank)
        return ticket

    def charge(self, run: Run, units: float) -> None:
        self.work += units
        self.fair.charge(run.ticket, units)
        for level in range(1, len(run.path) + 1):
            self.got[run.path[:level]] += units

    def fill(self, refill: bool = True) -> None:
        """Gives all free slots away; whoever is about to have a turn joins again, and so never stops waiting."""
        blocked = set(self.fair.lines()) - set(self.lines)
        while len(self.running) < self.slots and (ticket := self.fair.best(blocked)) is not None:
            path, line, rank = ticket.item
            if refill:
                self.join(path, line, rank)
            self.fair.take(ticket, self.lines)
            self.turns.append((path, line, rank, self.work))
            run = Run(ticket, path, self.random.randint(1, self.write))
            self.running.append(run)
            self.charge(run, READ * self.random.randint(1, self.read))

    def go_on(self) -> None:
        """Somebody who runs writes something."""
        if self.running:
            run = self.random.choice(self.running)
            tokens = min(run.left, self.random.choice([1, 5, self.write]))
            run.left -= tokens
            self.charge(run, WRITTEN * tokens)
            if run.left == 0:
                self.running.remove(run)
                self.fair.finish(run.ticket)


def unfair(pool: Pool, paths: list[Path], weight: dict[Path, float]) -> float:
    """The greatest difference of service per weight, in the scale of the lighter one of each pair."""
    differences = [
        abs(pool.got[one] / weight[one] - pool.got[other] / weight[other]) * min(weight[one], weight[other])
        for one, other in combinations(paths, 2)
    ]
    return max(differences, default=0.0)


def bound(pool: Pool) -> float:
    """What was published: U = max(w_in x L_in, w_out x M) with M = slots x largest output; two flows never differ by more than 2 U."""
    return 2 * max(READ * pool.read, WRITTEN * pool.slots * pool.write)


@given(
    seed=SEEDS,
    slots=st.integers(1, 12),
    weights=st.lists(WEIGHTS, min_size=2, max_size=8),
    longest=st.tuples(st.sampled_from([1, 20, 500]), st.sampled_from([1, 20, 100])),
)
def test_flows_that_always_wait_get_the_same_within_the_published_bound(seed, slots, weights, longest):
    weight = {(f"f{n}",): weight for n, weight in enumerate(weights)}
    pool = Pool(Fair(1, weight.__getitem__, lead=1e9), slots, seed, longest)
    for path in weight:
        pool.join(path)
    history = []
    for _ in range(150):
        pool.fill()
        assert unfair(pool, [*weight], weight) <= bound(pool)
        history.append([pool.got[path] / weight[path] for path in weight])
        pool.go_on()
    # Over any interval: the difference may turn from one extreme to the other.
    widest = 2 * (READ * pool.read + WRITTEN * pool.slots * pool.write)
    for (a, one), (b, other) in combinations(enumerate(weight), 2):
        gaps = [then[a] - then[b] for then in history]
        assert (max(gaps) - min(gaps)) * min(weight[one], weight[other]) <= widest


@given(seed=SEEDS, slots=st.integers(1, 8), data=st.data())
def test_siblings_get_the_same_within_the_bound_at_every_level(seed, slots, data):
    names = st.sets(st.sampled_from("abcd"), min_size=1, max_size=3)
    paths = [(org, team, user) for org in data.draw(names) for team in data.draw(names) for user in data.draw(names)]
    below = defaultdict(set)
    for path in paths:
        for level in range(3):
            below[path[:level]].add(path[: level + 1])
    weight = {flow: data.draw(WEIGHTS) for flows in below.values() for flow in sorted(flows)}
    pool = Pool(Fair(3, weight.__getitem__, lead=1e9), slots, seed)
    for path in paths:
        pool.join(path)
    for _ in range(150):
        pool.fill()
        assert all(unfair(pool, [*flows], weight) <= bound(pool) for flows in below.values())
        pool.go_on()


@given(seed=SEEDS, slots=st.integers(1, 6), flows=st.integers(1, 5))
def test_no_slot_is_free_while_somebody_waits(seed, slots, flows):
    pool = Pool(Fair(1), slots, seed)
    tickets = [pool.join((f"f{n % flows}",)) for n in range(40)]
    gone = set(pool.random.sample(tickets, 10))
    for _ in range(2000):
        pool.fill(refill=False)
        assert len(pool.running) == slots or pool.fair.best() is None
        if gone and pool.random.random() < 0.1:
            pool.fair.leave(gone.pop())
        pool.go_on()
    assert pool.fair.waiting() == 0
    assert len(pool.turns) >= 30


# -- priority classes -----------------------------------------------------------------------------------------------------

AGING = (INF, 300.0, 500.0, 1000.0, 4000.0)


def may_pass(aging: float, classes: int, slots: int, largest: float) -> float:
    """Units of work between two turns of a class that waits all the time.

    Until the class is late, `aging` units are charged. What is charged then is of those who run (at most `slots` at that moment, the
    one that made it late among them) or of those who have a turn before it. Each other class that waits can be later only once, as its
    own turn sets it back to a moment after; `classes` counts all that age and wait for the same slots, in all lines. None costs more
    than `largest`."""
    return aging + (slots + classes - 1) * largest


def passed(turns: list[tuple[Path, str, int, float]], line: str, rank: int, since: float, until: float) -> float:
    """The most work between two turns of a class, from when it began to wait."""
    marks = [since, *(work for _, where, of, work in turns if (where, of) == (line, rank)), until]
    return max(later - earlier for earlier, later in pairwise(marks))


@given(
    seed=SEEDS,
    slots=st.integers(1, 6),
    lines=st.integers(1, 3),
    classes=st.sets(st.tuples(st.sampled_from("XYZ"), st.integers(1, 4)), min_size=2),
    aging=st.just(AGING) | st.tuples(st.just(INF), *[st.sampled_from([0.0, 100.0, 700.0])] * 4),
)
def test_what_passes_a_class_that_waits_is_bounded_also_over_lines_that_share_their_slots(seed, slots, lines, classes, aging):
    names = tuple("XYZ"[:lines])
    classes = sorted({(names[ord(line) % lines], rank) for line, rank in classes})
    pool = Pool(Fair(1, aging=aging), slots, seed, lines=names)
    for line, rank in classes:
        pool.join((f"{line}{rank}",), line, rank)
        pool.join((f"{line}{rank} too",), line, rank)
    for _ in range(400):
        pool.fill()
        pool.go_on()
    for line, rank in classes:
        allowed = may_pass(aging[rank], len(classes), slots, pool.largest)
        assert passed(pool.turns, line, rank, 0.0, pool.work) <= allowed


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_the_number_is_not_far_from_what_happens(rank):
    """It is no bound that nothing could break: a class does wait for its whole aging."""
    pool = Pool(Fair(1, aging=AGING), 2, seed=1)
    pool.join(("urgent",), rank=1)
    pool.join(("patient",), rank=rank)
    for _ in range(4000):
        pool.fill()
        pool.go_on()
    most = passed(pool.turns, "X", rank, 0.0, pool.work)
    assert AGING[rank] <= most <= may_pass(AGING[rank], 2, 2, pool.largest)


def test_classes_that_are_all_late_have_turns_by_turns():
    fair = Fair(1, aging=(INF, 1.0, 1.0, 1.0, 1.0))
    for rank in range(1, 5):
        join(fair, f"rank {rank}", rank=rank)
    turns = serve(fair, 40).values()
    assert max(turns) - min(turns) <= 2


def test_a_higher_class_goes_first_as_long_as_nobody_is_late():
    fair = Fair(1)
    tickets = {rank: Ticket(rank, 1.0) for rank in (4, 2, 3, 0, 1)}
    for rank, ticket in tickets.items():
        fair.join(ticket, ("a",), "X", rank)
    for rank in range(5):
        assert fair.best() is tickets[rank]
        fair.take(tickets[rank])


def test_a_class_ages_by_work_of_slots_that_it_could_have_had_only():
    fair = Fair(1, aging=AGING)
    fair.join(Ticket("mine", 1.0), ("a",), "X", 3)
    for serves, goes_first in ((("Y",), 1), (("X", "Y"), 3)):
        ticket = Ticket("theirs", 1.0)
        fair.join(ticket, ("b",), "Y", 1)
        fair.take(ticket, serves)
        fair.charge(ticket, AGING[3] + 1)
        fair.finish(ticket)
        urgent = Ticket("urgent", 1.0)
        fair.join(urgent, ("b",), "X", 1)
        best = fair.best()
        assert best is not None
        assert best.band is not None
        assert best.band.rank == goes_first
        fair.leave(urgent)


# -- no credit, no debt ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS, slots=st.integers(1, 6), idle=st.integers(0, 300), before=st.integers(0, 60), lines=st.sampled_from(["X", "XY"]))
def test_who_was_idle_has_saved_up_nothing(seed, slots, idle, before, lines):
    """From its return on, a flow gets what the one that was there all the time gets; also when it comes to another line of the slots."""
    pool = Pool(Fair(1), slots, seed, lines=tuple(lines))
    pool.join(("there",))
    for _ in range(before):
        ticket = pool.join(("back",))
        pool.fill(refill=False)
        pool.fair.leave(ticket)
        pool.join(("there",))
        pool.go_on()
    for _ in range(idle):
        pool.fill()
        pool.go_on()
    there, back = pool.got["there",], pool.got["back",]
    pool.join(("back",), lines[-1])
    most = READ * pool.read + WRITTEN * slots * pool.write
    for _ in range(200):
        pool.fill()
        assert (pool.got["back",] - back) - (pool.got["there",] - there) <= 2 * most
        pool.go_on()


def serve(fair: Fair, turns: int, blocked: frozenset[str] = frozenset(), cost: float = 100.0) -> defaultdict[str, int]:
    """One slot gives so many turns; nobody stops waiting. How many each flow had."""
    had: defaultdict[str, int] = defaultdict(int)
    for _ in range(turns):
        ticket = fair.best(blocked)
        assert ticket is not None
        path, line, rank = ticket.item
        fair.join(Ticket(ticket.item, cost), path, line, rank)
        fair.take(ticket)
        fair.charge(ticket, cost)
        fair.finish(ticket)
        had[path[0]] += 1
    return had


def join(fair: Fair, name: str, line: str = "X", rank: int = 2, cost: float = 100.0) -> Ticket:
    ticket = Ticket(((name,), line, rank), cost)
    fair.join(ticket, (name,), line, rank)
    return ticket


@pytest.mark.parametrize("debt", [1e3, 1e9, 1e15])
def test_who_used_too_much_waits_for_lead_units_at_most_when_back(debt):
    fair = Fair(1, lead=1000.0)
    greedy, _ = join(fair, "greedy"), join(fair, "other")
    fair.take(greedy)
    fair.charge(greedy, debt)
    fair.finish(greedy)
    join(fair, "greedy")
    had = serve(fair, 12)
    assert had["other"] in {10, 11}
    assert had["greedy"] == 12 - had["other"]
    assert serve(fair, 40) == {"greedy": 20, "other": 20}, "then it is forgotten"


@pytest.mark.parametrize("at_once", [True, False])
def test_who_comes_when_nobody_waits_begins_where_the_last_one_is(at_once):
    fair = Fair(1)
    for _ in range(10):
        if at_once:
            ticket = Ticket(None, 100.0)
            fair.serve(ticket, ("there",), "X", 2)
        else:
            ticket = join(fair, "there")
            fair.take(ticket)
        fair.charge(ticket, 100.0)
        fair.finish(ticket)
    join(fair, "new")
    join(fair, "there")
    assert serve(fair, 20) == {"new": 10, "there": 10}


def test_who_is_ahead_is_as_far_ahead_in_a_line_that_it_comes_to_for_the_first_time():
    fair = Fair(1)
    ahead, _ = join(fair, "ahead"), join(fair, "even")
    fair.take(ahead)
    fair.charge(ahead, 300.0)
    join(fair, "there", "Y")
    serve(fair, 50, frozenset("X"))
    join(fair, "ahead", "Y")
    join(fair, "even", "Y")
    assert serve(fair, 9, frozenset("X")) == {"there": 4, "even": 4, "ahead": 1}


def test_who_comes_back_from_a_lost_slot_keeps_its_place_and_at_most_lead_units_of_credit():
    fair = Fair(1, lead=1000.0)
    lost = join(fair, "lost")
    number = lost.number
    fair.take(lost)
    join(fair, "other")
    serve(fair, 50)
    fair.join(lost, ("lost",), "X", 2, number, lifted=False)
    join(fair, "lost")
    assert fair.best() is lost
    assert serve(fair, 40)["lost"] == 25, "ten turns of credit, then every other one"


def test_who_floods_one_line_still_has_turns_in_another():
    """What is got elsewhere counts, but only up to `lead` between two turns."""
    fair = Fair(1, lead=1000.0)
    join(fair, "flood", "X")
    serve(fair, 1000)
    join(fair, "flood", "Y")
    join(fair, "other", "Y")
    turns = []
    for _ in range(60):
        serve(fair, 5, frozenset("Y"))
        turns += serve(fair, 1, frozenset("X"))
    gaps = [len(gap) for gap in "".join("f" if name == "flood" else "o" for name in turns).split("f")]
    assert max(gaps) <= 1000 / 100 + 1
    assert turns.count("flood") >= 4
    assert turns.count("other") > turns.count("flood"), "it counts"


@pytest.mark.parametrize("dead", ["dead", "too dead"])
def test_who_waits_in_a_line_that_nobody_serves_changes_nothing_elsewhere(dead):
    fair = Fair(1, lead=1000.0)
    join(fair, "parked", dead)
    join(fair, "a", dead)
    for name in "ab":
        join(fair, name)
    for _ in range(20):
        assert serve(fair, 50, frozenset({dead})) == {"a": 25, "b": 25}
    join(fair, "parked")
    assert serve(fair, 30, frozenset({dead})) == {"a": 10, "b": 10, "parked": 10}, "waiting there is no credit here"


def test_lines_with_other_slots_have_scales_of_their_own():
    """Few share one line and many another: counters part by more than `lead`, and in both everybody gets the same."""
    fair = Fair(1, lead=1000.0)
    for n in range(20):
        join(fair, f"many{n}", "X")
    for name in ("a", "b"):
        join(fair, name, "Y")
    for _ in range(200):
        serve(fair, 5, frozenset("Y"))
        serve(fair, 5, frozenset("X"))
    assert serve(fair, 20, frozenset("X")) == {"a": 10, "b": 10}
    join(fair, "many0", "Y")
    join(fair, "new", "Y")
    assert serve(fair, 40, frozenset("X")) == dict.fromkeys(("a", "b", "many0", "new"), 10)
    assert set(serve(fair, 20, frozenset("Y")).values()) <= {0, 1, 2}


@pytest.mark.parametrize(("line", "rank"), [("X", 3), ("Z", 1)])
def test_who_is_ahead_of_whom_outlasts_a_time_in_which_only_others_wait(line, rank):
    """Others: of another class, or in a line with other slots."""
    fair = Fair(1)
    more, less = join(fair, "more", rank=1), join(fair, "less", rank=1)
    for ticket in (more, less):
        fair.take(ticket)
    for ticket, units in ((more, 300.0), (less, 100.0)):
        fair.charge(ticket, units)
        fair.finish(ticket)
    join(fair, "others", line, rank)
    serve(fair, 50)
    join(fair, "less", rank=1)
    join(fair, "more", rank=1)
    assert serve(fair, 8, frozenset("Z")) == {"less": 5, "more": 3}


def test_a_detour_through_another_line_forgets_nothing():
    """One who always joins a poorer line in between would else begin each time at the smallest counter."""
    fair = Fair(1, lead=1000.0)
    join(fair, "poor", "X")
    for name in "abc":
        join(fair, name, "Y")
    serve(fair, 300, frozenset("X"))
    turns = 0
    for _ in range(100):
        for line in ("X", "Y"):
            ticket = join(fair, "clever", line)
            if line == "X":
                fair.leave(ticket)
        for _ in range(2):
            best = fair.best(frozenset("X"))
            assert best is not None
            fair.take(best)
            fair.charge(best, 100.0)
            fair.finish(best)
            if best is ticket:
                turns += 1
            else:
                join(fair, best.item[0][0], "Y")
        fair.leave(ticket)
    assert turns <= 200 / 4 + 1


def test_between_lines_the_older_ticket_of_a_flow_goes_first():
    fair = Fair(1)
    tickets = [join(fair, "a", line) for line in "YXXY"]
    for ticket in tickets:
        assert fair.best() is ticket
        fair.take(ticket)


def test_between_lines_the_higher_class_goes_first():
    fair = Fair(1)
    low, high = join(fair, "a", "X", 3), join(fair, "b", "Y", 2)
    assert fair.best() is high
    assert fair.best({"Y"}) is low


def test_lines_that_share_slots_share_them_by_counters():
    fair = Fair(1)
    join(fair, "flood", "X")
    for _ in range(100):
        ticket = fair.best()
        assert ticket is not None
        fair.take(ticket, ("X", "Y"))
        fair.charge(ticket, 100.0)
        fair.finish(ticket)
        join(fair, "flood", "X")
        join(fair, "flood", "X")
    join(fair, "new", "Y")
    assert serve(fair, 20) == {"flood": 10, "new": 10}


@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    cost=st.floats(1.0, 1e6),
    lines=st.lists(st.sampled_from("XY"), min_size=8, max_size=8),
)
def test_who_is_put_before_all_others_has_the_next_turn_however_late_they_are(ranks, cost, lines):
    fair = Fair(1)
    for index, rank in enumerate(ranks):
        for _ in range(3):
            fair.join(Ticket(rank, cost), (f"f{index}",), lines[index], rank)
    for _ in ranks:
        before = fair.best()
        fair.take(before)
        fair.charge(before, cost)
        fair.finish(before)
    bumped = Ticket("bumped", cost)
    fair.join(bumped, ("last",), "X", 0, fair.front())
    assert fair.best() is bumped


def test_a_place_that_is_kept_is_no_credit():
    """Who leaves and comes back to its number again and again, while others are served, does not save up turns."""
    fair = Fair(1)
    number = None
    for _ in range(50):
        mine = Ticket("mine", 100.0)
        fair.join(mine, ("a",), "X", 2, number)
        number = mine.number
        for _ in range(10):
            other = Ticket("other", 100.0)
            fair.join(other, ("b",), "X", 2)
        fair.leave(mine)
        served = fair.best()
        fair.take(served)
        fair.charge(served, 1000.0)
        fair.finish(served)
    for _ in range(20):
        fair.join(Ticket("mine", 100.0), ("a",), "X", 2, number)
    turns = []
    for _ in range(10):
        ticket = fair.best()
        turns.append(ticket.item)
        fair.take(ticket)
        fair.charge(ticket, 100.0)
        fair.finish(ticket)
    assert turns.count("mine") <= 6
