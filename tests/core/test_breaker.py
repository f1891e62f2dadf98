import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mindgw.core import breaker
from mindgw.core.breaker import (
    ALL,
    ENOUGH,
    FORGOTTEN,
    LONG_PATIENCE,
    LONGEST,
    NOBODY,
    PATIENCE,
    SHUT,
    TRANSITIONS,
    WINDOW,
    Breaker,
    Circuit,
    End,
    Event,
    Probe,
    State,
    Who,
)  # fmt: skip

#: Letters stand for engines.
AB, ABCD = ("a", "b"), ("a", "b", "c", "d")
A = ("a", "m")


def fails(made: Breaker, count: int, pool=AB, place=A, now: float = 0.0) -> bool:
    """Whether the last of so many failures tripped its circuit."""
    return [made.ended(place, False, pool, now) for _ in range(count)][-1]


def held(made: Breaker, present=AB, now: float = 0.0, model: str = "m") -> frozenset[str]:
    places = [place for place in made.tripped if place[0] in present and place[1] == model]
    return made.held(places, present, now)


def test_failures_in_a_row_trip():
    made = Breaker(row=5)
    assert not fails(made, 4)
    assert held(made) == NOBODY
    assert fails(made, 1)
    assert held(made) == {"a"}


def test_a_good_end_breaks_the_row():
    made = Breaker(row=5)
    fails(made, 4)
    made.ended(A, True, AB, 0.0)
    assert not fails(made, 4)


def test_half_of_many_trips():
    made = Breaker(row=5)
    tripped = [made.ended(A, end, AB, 0.0) for _ in range(ENOUGH // 2) for end in (False, True)]
    assert not any(tripped)
    assert made.ended(A, False, AB, 0.0)


def test_what_is_long_ago_does_not_count():
    made = Breaker(row=5)
    fails(made, 4)
    assert not fails(made, 1, now=WINDOW + 1)
    assert not fails(made, 3, now=WINDOW + 1)
    assert fails(made, 1, now=WINDOW + 1)


def test_where_nothing_failed_nothing_is_known():
    made = Breaker()
    made.ended(A, True, AB, 0.0)
    assert made._circuits == {}
    fails(made, 1)
    made.ended(A, True, AB, WINDOW + 1)
    assert made._circuits == {}


def test_other_models_of_the_worker_go_on():
    made = Breaker()
    fails(made, 9)
    assert held(made, model="n") == NOBODY


def test_one_request_is_the_probe():
    made = Breaker(row=5, rest=5.0)
    fails(made, 5)
    assert held(made, now=4.9) == {"a"}
    assert made.tried(A) is None
    assert held(made, now=5.0) == NOBODY
    probe = made.tried(A)
    assert probe is not None
    assert made.tried(A) is None
    assert held(made, now=5.0) == {"a"}


@pytest.mark.parametrize("good", [True, False])
def test_the_probe_decides(good):
    made = Breaker(row=5, rest=5.0)
    fails(made, 5)
    held(made, now=5.0)
    probe = made.tried(A)
    assert made.ended(A, good, AB, 6.0, probe) is not good
    assert held(made, now=6.0) == (NOBODY if good else {"a"})
    assert held(made, now=15.9) == (NOBODY if good else {"a"})
    assert held(made, now=16.0) == NOBODY
    assert bool(made.tripped) is not good


def test_a_probe_that_says_nothing_is_followed_by_another():
    made = Breaker(rest=5.0)
    fails(made, 5)
    held(made, now=5.0)
    probe = made.tried(A)
    made.void(probe)
    made.void(probe)
    assert held(made, now=5.0) == NOBODY
    another = made.tried(A)
    made.void(probe)
    assert held(made, now=5.0) == {"a"}
    assert not made.ended(A, True, AB, 5.0, another)
    assert made.tripped == {}


def test_requests_of_before_do_not_move_a_circuit_that_tripped():
    made = Breaker(rest=5.0)
    fails(made, 5)
    for good in (True, False):
        assert not made.ended(A, good, AB, 1.0)
    held(made, now=5.0)
    probe = made.tried(A)
    assert not made.ended(A, False, AB, 5.0)
    assert not made.ended(A, False, AB, 5.0, Probe(Circuit(A, 1.0)))
    assert probe.circuit.state is State.PROBING


def test_pauses_grow_to_a_minute_at_most():
    made, now = Breaker(rest=5.0), 0.0
    fails(made, 5)
    pauses = []
    for _ in range(7):
        circuit = made.tripped[A]
        pauses.append(circuit.until - now)
        now = circuit.until
        held(made, now=now)
        made.ended(A, False, AB, now, made.tried(A))
    assert pauses == [5.0, 10.0, 20.0, 40.0, LONGEST, LONGEST, LONGEST]


@pytest.mark.parametrize(("pool", "most"), [(AB, 1), (("a", "b", "c"), 1), (ABCD, 2)])
def test_half_of_a_pool_is_left_alone_at_most(pool, most):
    made = Breaker()
    tripped = [fails(made, 9, pool, (worker, "m")) for worker in pool]
    assert len(made.tripped) == most
    assert len(held(made, pool)) == most
    assert tripped == [False] * len(pool)  # it was the fifth that did


def test_the_only_worker_is_left_alone_when_nothing_goes_well():
    made = Breaker()
    assert not fails(made, ENOUGH - 1, ("a",))
    assert fails(made, 1, ("a",))
    assert held(made, ("a",)) == {"a"}


def test_the_only_worker_goes_on_when_anything_goes_well():
    made = Breaker()
    fails(made, 1, ("a",))
    made.ended(A, True, ("a",), 0.0)
    assert not fails(made, 9, ("a",))


def test_nobody_is_left_alone_once_the_others_are_away():
    made = Breaker()
    fails(made, 5)
    assert held(made, ("a",)) == NOBODY
    assert held(made, ("a", "b")) == {"a"}


def test_nobody_is_left_alone_when_more_than_half_would_be():
    made = Breaker()
    for worker in "ab":
        fails(made, 5, ABCD, (worker, "m"))
    assert held(made, ABCD) == {"a", "b"}
    assert held(made, ("a", "b", "c")) == NOBODY


def test_a_pool_that_counts_a_worker_twice_is_no_larger():
    made = Breaker()
    fails(made, 5)
    assert held(made, ("a", "a", "a")) == NOBODY


def test_what_is_over_is_forgotten():
    made = Breaker(rest=5.0)
    fails(made, 1)
    made.sweep(WINDOW)
    assert A in made._circuits
    made.sweep(WINDOW + 1)
    assert made._circuits == {}
    fails(made, 5)
    made.sweep(FORGOTTEN)
    assert A in made.tripped
    made.sweep(FORGOTTEN + 6)
    assert made._circuits == made.tripped == {}


def test_a_probe_under_way_is_not_forgotten():
    made = Breaker(rest=5.0)
    fails(made, 5)
    held(made, now=5.0)
    probe = made.tried(A)
    made.sweep(1e9)
    assert made.tripped == {A: probe.circuit}


# -- whose word it is ---------------------------------------------------------------------------------------------------

ANN, BEN, EVE = Who("x", "ann"), Who("x", "ben"), Who("z", "eve")


def says(made: Breaker, who: Who, count: int = 1, pool=AB, now: float = 0.0) -> bool:
    """Whether the last of so many failures of one caller tripped it."""
    return [made.ended(A, False, pool, now, who=who) for _ in range(count)][-1]


def test_one_caller_is_enough_where_there_is_no_other():
    made = Breaker()
    assert says(made, ANN, 3)


@pytest.mark.parametrize(("pool", "count"), [(AB, 50), (("a",), 50)])
@pytest.mark.parametrize("other", [BEN, EVE])
def test_one_caller_is_not_enough_while_others_are_about(pool, count, other):
    made = Breaker()
    says(made, ANN, 1, pool)
    made.comes(["m"], other, 0.0)
    assert not says(made, ANN, count, pool)
    needed = (ENOUGH if len(pool) == 1 else 3) // 2
    assert not any(says(made, other, 1, pool) for _ in range(needed - 1)), "that may be a mishap"
    assert says(made, other, 1, pool)


def test_an_organisation_has_one_word_however_many_keys_it_has():
    made = Breaker()
    says(made, ANN)
    made.comes(["m"], EVE, 0.0)
    assert not any(says(made, Who("x", str(number))) for number in range(50))
    assert says(made, EVE)


def test_two_people_are_enough_in_one_organisation():
    made = Breaker()
    says(made, ANN, 2)
    assert says(made, BEN)


#: Keys of nobody, of two teams.
ONE, TWO, SIX = Who("x", "team", "1"), Who("x", "team", "2"), Who("x", "others", "6")


@pytest.mark.parametrize("other", [ANN, EVE, SIX])
def test_keys_of_nobody_have_one_word_while_others_are_about(other):
    made = Breaker()
    says(made, ONE)
    made.comes(["m"], other, 0.0)
    assert not any(says(made, who) for _ in range(20) for who in (ONE, TWO))
    assert says(made, other)


def test_one_key_is_not_enough_where_all_are_of_nobody():
    made = Breaker()
    says(made, ONE)
    made.comes(["m"], TWO, 0.0)
    assert not says(made, ONE, 50)
    assert says(made, TWO)
    made.comes(["m"], ANN, 1.0)
    assert made.tripped == {}


def test_one_key_is_enough_where_there_is_no_other():
    assert says(Breaker(), ONE, 3)


@pytest.mark.parametrize("later", [0.0, 5.0, 5.1])
@pytest.mark.parametrize("pool", [AB, ("a",)])
def test_who_comes_later_finds_it_open(later, pool):
    made = Breaker(rest=5.0)
    assert says(made, ANN, ENOUGH, pool) or A in made.tripped
    held(made, pool, later)
    if later > 5.0:
        made.tried(A)
    made.comes(["m"], ANN, later)
    made.comes(["n"], EVE, later)
    assert A in made.tripped
    made.comes(["m"], EVE, later)
    assert held(made, pool, later) == NOBODY
    assert made.tripped == {}
    assert not says(made, ANN, 50, pool, later)


def test_half_of_many_is_more_than_the_mishaps_of_one():
    made = Breaker(row=50)
    made.comes(["m"], EVE, 0.0)
    for _ in range(ENOUGH):
        made.ended(A, False, AB, 0.0, who=ANN)
        made.ended(A, True, AB, 0.0, who=EVE)
        made.comes(["m"], EVE, 0.0)
    assert not says(made, EVE)
    assert says(made, EVE)


def test_what_everybody_sees_counts_beside_what_one_does():
    made = Breaker()
    says(made, ANN)
    made.comes(["m"], EVE, 0.0)
    says(made, ANN)
    assert says(made, ALL)


def test_who_came_long_ago_is_not_about():
    made = Breaker()
    says(made, ANN)
    made.comes(["m"], EVE, 0.0)
    says(made, ANN, 5)
    assert says(made, ANN, 3, now=WINDOW + 1)


def test_what_nobody_can_cause_needs_no_second_word():
    made = Breaker()
    says(made, ANN)
    made.comes(["m"], EVE, 0.0)
    says(made, ALL)
    assert says(made, ALL)


def test_what_two_said_stays_when_a_third_comes():
    made = Breaker()
    says(made, ANN, 2)
    assert says(made, EVE)
    made.comes(["m"], BEN, 1.0)
    assert held(made, now=1.0) == {"a"}


@pytest.mark.parametrize(("pool", "who", "probes"), [(("a",), "y", True), (("a",), "x", False), (AB, "y", False)])
def test_an_organisation_that_has_not_seen_the_only_worker_fail_may_find_out(pool, who, probes):
    made = Breaker(rest=5.0)
    for _ in range(ENOUGH):
        says(made, ANN, 1, pool)
        says(made, EVE, 1, pool)
    for now in (5.0, 15.0):
        held(made, pool, now)
        made.ended(A, False, pool, now, made.tried(A), ANN if now < 10 else EVE)
    made.comes(["m"], Who(who, "1"), 19.9)
    assert held(made, pool, 19.9) == {"a"}
    made.comes(["m"], Who(who, "1"), 20.0)
    assert held(made, pool, 20.0) == (NOBODY if probes else {"a"})


def test_what_everybody_saw_is_news_to_nobody():
    made = Breaker(rest=5.0)
    says(made, ALL, ENOUGH, ("a",))
    held(made, ("a",), 5.0)
    made.ended(A, False, ("a",), 5.0, made.tried(A))
    made.comes(["m"], ANN, 14.9)
    assert held(made, ("a",), 14.9) == {"a"}


def test_who_comes_is_forgotten_with_what_failed():
    made = Breaker()
    says(made, ANN)
    made.comes(["m"], EVE, 0.0)
    made.sweep(WINDOW + 1)
    assert made.is_quiet and made._crowds == {}


# -- what was the request's fault ---------------------------------------------------------------------------------------


def test_what_is_withdrawn_does_not_count():
    made = Breaker()
    for now in range(20):
        assert not made.ended(A, False, AB, float(now), who=ANN)
        made.withdraw(A, End(float(now), False, ANN))
    assert made.is_quiet
    made.withdraw(A, End(1.0, False, ANN))


def test_what_is_withdrawn_opens_what_it_shut():
    made = Breaker()
    ends = [End(float(now), False, ANN) for now in range(3)]
    assert [made.ended(A, False, AB, end.when, who=ANN) for end in ends] == [False, False, True]
    made.withdraw(A, ends[1])
    assert (held(made, now=3.0), made.tripped) == (NOBODY, {})
    made.withdraw(A, ends[1])
    made.withdraw(A, ends[0])
    made.withdraw(A, ends[2])
    assert made.is_quiet


def test_what_rests_on_enough_stays_shut():
    made = Breaker(row=3)
    for now in range(3):
        made.ended(A, False, AB, float(now), who=ANN)
    made.withdraw(A, End(9.0, False, ANN))
    assert held(made, now=3.0) == {"a"}


def test_what_is_left_may_be_enough():
    made = Breaker(rest=5.0)
    fails(made, 3, place=("b", "m"))
    assert not fails(made, 5)  # one of two is left alone already
    held(made, now=5.0)
    assert not made.ended(("b", "m"), True, AB, 5.0, made.tried(("b", "m")))
    assert made.ended(A, False, AB, 5.0, who=ANN)
    made.withdraw(A, End(5.0, False, ANN))
    assert held(made, now=6.0) == {"a"}


def test_what_a_probe_has_shown_since_stays():
    made = Breaker(rest=5.0)
    says(made, ANN, 3)
    held(made, now=5.0)
    made.ended(A, False, AB, 6.0, made.tried(A), ANN)
    made.withdraw(A, End(0.0, False, ANN))
    assert held(made, now=7.0) == {"a"}


def test_a_probe_that_was_no_fault_of_the_worker_is_made_again():
    made = Breaker(rest=5.0)
    says(made, ANN, 3)
    held(made, now=5.0)
    assert made.ended(A, False, AB, 6.0, made.tried(A), ANN)
    assert held(made, now=7.0) == {"a"}
    made.withdraw(A, End(6.0, False, ANN))
    assert held(made, now=7.0) == NOBODY
    assert made.tried(A) is not None
    assert made.tripped[A].pause == 10.0


# -- probes that say nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "patience"), [(("a",), PATIENCE), (AB, LONG_PATIENCE)])
@pytest.mark.parametrize("good", [True, False])
def test_a_probe_that_takes_long_has_another_one_beside_it(pool, patience, good):
    made = Breaker(rest=5.0)
    says(made, ANN, ENOUGH, pool)
    held(made, pool, 5.0)
    first = made.tried(A)
    assert made.shuts(A) == float("inf")
    assert held(made, pool, 100.0) == {"a"}, "nobody waited for it"
    assert made.shuts(A) == 100.0 + patience
    assert held(made, pool, 100.0 + patience) == NOBODY
    second = made.tried(A)
    assert second is not None is not first
    assert made.ended(A, good, pool, 200.0, first, ANN) is not good
    assert held(made, pool, 200.0) == (NOBODY if good else {"a"})
    assert not made.ended(A, True, pool, 201.0, second, ANN)


def test_two_probes_of_one_caller_are_one():
    made = Breaker(rest=5.0)
    says(made, ANN, 2)
    says(made, EVE)
    held(made, now=5.0)
    assert made.ended(A, False, AB, 5.0, made.tried(A), ANN)
    held(made, now=15.0)
    made.comes(["m"], EVE, 15.0)
    assert not made.ended(A, False, AB, 15.0, made.tried(A), BEN)
    assert held(made, now=15.0) == NOBODY, "the next one may say more"
    assert made.ended(A, False, AB, 15.0, made.tried(A), EVE)
    assert held(made, now=34.0) == {"a"}


def test_two_probes_of_one_caller_are_one_though_the_first_was_late():
    made = Breaker(rest=5.0)
    says(made, ANN, 2)
    says(made, EVE)
    held(made, now=5.0)
    assert made.ended(A, False, AB, 5.0, made.tried(A), ANN)
    held(made, now=15.0)
    late = made.tried(A)
    held(made, now=15.0)
    assert held(made, now=44.0) == {"a"}
    held(made, now=45.0)
    assert made.tried(A) is not None
    made.comes(["m"], EVE, 45.0)
    assert not made.ended(A, False, AB, 45.0, late, ANN)
    assert made.tripped[A].state is State.PROBING, "the other one may say more"


def test_the_probes_of_an_only_caller_count():
    made = Breaker(rest=5.0)
    says(made, ANN, 3)
    for now in (5.0, 15.0, 35.0):
        held(made, now=now)
        assert made.ended(A, False, AB, now, made.tried(A), ANN)


def test_the_table_has_an_arrow_out_of_every_state():
    assert set(TRANSITIONS) == set(State)
    assert {event for arrows in TRANSITIONS.values() for event in arrows} == set(Event)
    assert {end for arrows in TRANSITIONS.values() for end in arrows.values()} == set(State)
    with pytest.raises(KeyError):
        Circuit(A, 1.0).step(Event.GOOD)


PEOPLE = st.sampled_from([ALL, *(Who(org, person, key) for org in "xy" for person in "12" for key in ("", "k"))])


class Fleet(RuleBasedStateMachine):
    """Four workers, two models, requests that end as they like."""

    def __init__(self):
        super().__init__()
        self.made = Breaker(row=3, rest=5.0)
        self.now = 0.0
        self.there = set(ABCD)
        #: Requests under way: their place, and the probe that they are.
        self.running: list[tuple[breaker.Place, Probe | None]] = []
        #: Ends of each place of late.
        self.ends: dict[breaker.Place, list[tuple[float, bool]]] = {}

    def held(self, model: str) -> frozenset[str]:
        return held(self.made, sorted(self.there), self.now, model)

    @rule(worker=st.sampled_from(ABCD), model=st.sampled_from("mn"), who=PEOPLE)
    def send(self, worker, model, who):
        self.made.comes([model], who, self.now)
        if worker in self.there and worker not in self.held(model):
            self.running.append(((worker, model), self.made.tried((worker, model))))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from([False, False, False, True, None]), who=PEOPLE, is_theirs=st.booleans())
    def end(self, data, end, who, is_theirs):
        place, probe = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if end is None:
            if probe is not None:
                self.made.void(probe)
            return
        self.ends.setdefault(place, []).append((self.now, end))
        was = place in self.made.tripped
        tripped = self.made.ended(place, end, self.there, self.now, probe, who)
        assert not (tripped and end)
        if is_theirs:
            self.made.withdraw(place, End(self.now, end, who))
            return
        if tripped and not was:
            assert any(not good for when, good in self.ends[place] if when >= self.now - WINDOW)

    @rule(worker=st.sampled_from(ABCD))
    def comes_or_goes(self, worker):
        self.there ^= {worker}

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0, 1000.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.made.sweep(self.now)

    @invariant()
    def enough_of_a_pool_take_requests(self):
        for model in "mn":
            out = self.held(model)
            assert out <= self.there
            if len(self.there) == 1 and out:
                assert all(self.made.tripped[worker, model].alone for worker in out)
            else:
                assert 2 * len(out) <= len(self.there)

    @invariant()
    def who_is_waited_for_as_a_probe_is_under_way(self):
        probing = [circuit for circuit in self.made.tripped.values() if circuit.state is State.PROBING]
        assert {circuit.probe for circuit in probing} <= {probe for _place, probe in self.running}

    @invariant()
    def what_is_tripped_is_not_closed(self):
        assert all(circuit.state is not State.CLOSED for circuit in self.made.tripped.values())
        assert all(circuit.state is State.CLOSED for place, circuit in self.made._circuits.items() if place not in self.made.tripped)
        assert set(State) > SHUT


Fleet.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
