from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mindgw import errors
from mindgw.config import Limits
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import Flow, rank
from mindgw.gateway.queue import Queue
from mindgw.gateway.route import Needs, Placement, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.ticket import Ticket
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine, ids


class Holder:
    """Whose place it is: the test says what it does and what it has produced."""

    def produced(self) -> None:
        return None


class Slots:
    """A queue before one box for each model; nobody has a slot until it is given."""

    def __init__(self, models: str = "ab", **limits: int) -> None:
        self.now = 1000.0
        #: Slots that each model may have taken at a time.
        self.open = Counter[str]()
        self.fleet = Fleet(lambda: None)
        for model in models:
            worker = Worker(model, model, 1, Link(lambda: None, 0.0))
            self.fleet.attach(worker, approved=True)
            self.fleet.report(worker, wire.Report(1, [engine(model, slots=100, kinds=("chat", "embeddings"))]))
        self.queue = Queue(self._place, self.fleet, Limits(**limits))
        #: Tickets in the order in which they got their turn, with their slots.
        self.granted: list[Ticket] = []
        self.placements: dict[str, Placement] = {}
        #: Tickets that were turned away, and why.
        self.refused: dict[str, errors.MindGWError] = {}
        self._count = 0

    def _place(self, needs: Needs, now: float) -> Placement | None:
        if not self.open[needs.model]:
            return None
        self.open[needs.model] -= 1
        return place(self.fleet, needs, now)

    def ticket(self, model: str = "a", kind: str = "chat", priority: str = "normal", *names: str) -> Ticket:
        self._count += 1
        path = ("o", *(names or ("t", "u", "k", "")))

        ticket = Ticket(f"r{self._count}", Needs(model, kind), Flow(path, rank(priority, "")), Holder())
        ticket.holder.granted = lambda placement: self.took(ticket, placement)
        ticket.holder.turned_out = lambda wrong: self.refused.update({ticket.id: wrong})
        ticket.size, ticket.prompt = 1, 10
        return ticket

    def took(self, ticket: Ticket, placement: Placement) -> None:
        self.granted.append(ticket)
        self.placements[ticket.id] = placement

    def join(self, *about: str, identity: bytes = b"") -> Ticket:
        ticket = self.ticket(*about)
        if (placement := self.queue.join(ticket, self.now, identity)) is not None:
            self.took(ticket, placement)
        return ticket

    def give(self, **free: int) -> None:
        self.open.update(free)
        self.queue.wake(self.now)

    def end(self, ticket: Ticket, prompt: int = 10, completion: int = 10) -> None:
        """It is served, its slot is gone with it."""
        self.queue.settle(ticket, prompt, completion, self.now)
        self.placements.pop(ticket.id).release()


def test_a_free_slot_is_given_at_once():
    slots = Slots()
    slots.open["a"] = 1
    ticket = slots.join()
    assert slots.granted == [ticket]
    assert (ticket.position, slots.queue.waiting) == (0, 0)


def test_turns_of_one_flow_come_in_the_order_of_arrival():
    slots = Slots()
    tickets = [slots.join() for _ in range(5)]
    slots.give(a=2)
    slots.give(a=3)
    assert slots.granted == tickets


def test_a_newcomer_does_not_stand_behind_all_that_another_wants():
    slots = Slots()
    greedy = [slots.join("a", "chat", "normal", "t", "u", "greedy", "") for _ in range(5)]
    light = slots.join("a", "chat", "normal", "t", "u", "light", "")
    slots.give(a=2)
    assert slots.granted == [greedy[0], light]
    assert slots.queue.outlook(greedy[1], slots.now).position == 1


def test_a_higher_class_goes_first():
    slots = Slots()
    batch, high = slots.join("a", "chat", "batch"), slots.join("a", "chat", "high")
    slots.give(a=1)
    assert slots.granted == [high]
    assert slots.queue.classes(batch.line) == {"bumped": 0, "high": 0, "normal": 0, "batch": 1, "sheddable": 0}
    assert slots.queue.classes()["batch"] == 1


def test_nobody_overtakes_those_who_wait():
    """A slot that is free while somebody stands in line is theirs, though they were not told yet."""
    slots = Slots()
    first = slots.join()
    slots.open["a"] = 1
    second = slots.join()
    slots.queue.wake(slots.now)
    assert slots.granted == [first]
    assert second.waiting


def test_a_head_that_cannot_be_placed_blocks_no_other_line():
    slots = Slots()
    slots.join("a")
    other = slots.join("b")
    slots.give(b=1)
    assert slots.granted == [other]


def test_kinds_of_one_model_are_lines_of_their_own():
    slots = Slots()
    slots.join("a", "chat")
    slots.join("a", "embeddings")
    assert sorted(slots.queue.order.lines()) == [("a", "chat"), ("a", "embeddings")]


@pytest.mark.parametrize(
    ("limit", "kind", "code"),
    [
        ("queue", errors.QueueFull, "queue_full"),
        ("queue_bytes", errors.QueueFull, "queue_full"),
        ("queue_org", errors.QueueFull, "queue_full"),
        ("queue_model", errors.QueueFull, "queue_full"),
        ("queue_key", errors.RateLimited, "key_queue_full"),
    ],
)
def test_a_full_queue_refuses_and_says_when_to_come_again(limit, kind, code):
    slots = Slots(**{limit: 1})
    slots.join()
    with pytest.raises(kind) as caught:
        slots.join()
    assert caught.value.code == code
    assert 1 <= caught.value.retry_after <= 120
    assert slots.queue.waiting == 1


def test_a_full_queue_takes_back_who_was_turned_down():
    slots = Slots(queue=1)
    slots.open["a"] = 1
    back = slots.join()
    waits = slots.join()
    slots.placements.pop(back.id).release()
    assert slots.queue.rejoin(back, slots.now) is None
    slots.give(a=1)
    assert slots.granted == [back, back]
    assert waits.waiting


def test_who_may_be_shed_makes_room_for_others():
    slots = Slots(queue=2)
    first, second = slots.join("a", "chat", "sheddable"), slots.join("a", "chat", "sheddable")
    with pytest.raises(errors.QueueFull):
        slots.join("a", "chat", "sheddable")
    slots.join("a", "chat", "batch")
    assert list(slots.refused) == [second.id]
    assert slots.refused[second.id].code == "queue_full"
    assert first.waiting
    assert not second.waiting


def test_a_full_queue_is_no_obstacle_when_a_slot_is_free():
    slots = Slots(queue=1)
    slots.join("a")
    slots.open["b"] = 1
    assert slots.join("b") in slots.granted


def test_whoever_comes_back_goes_to_the_head_of_its_flow_and_has_not_paid():
    slots = Slots()
    slots.open["a"] = 1
    back = slots.join()
    waiting = [slots.join() for _ in range(2)]
    slots.placements.pop(back.id).release()
    slots.queue.rejoin(back, slots.now)
    assert slots.queue.outlook(back, slots.now).position == 1
    assert back.booked == 0
    slots.give(a=3)
    assert slots.granted == [back, back, *waiting]


def test_whoever_comes_back_may_be_placed_at_once():
    slots = Slots()
    slots.open["a"] = 2
    back = slots.join()
    slots.placements.pop(back.id).release()
    assert slots.queue.rejoin(back, slots.now) is not None


def test_whoever_leaves_is_forgotten():
    slots = Slots()
    first, second, third = (slots.join() for _ in range(3))
    slots.queue.leave(second, slots.now)
    slots.queue.leave(second, slots.now)
    places = [slots.queue.outlook(ticket, slots.now).position for ticket in (second, third)]
    assert (slots.queue.waiting, slots.queue.held, places) == (2, 2, [0, 2])
    slots.give(a=3)
    assert slots.granted == [first, third]


def test_a_place_is_kept_for_a_while_and_for_one():
    slots = Slots()
    left = slots.join()
    behind = slots.join()
    name = slots.queue.identity(left, "/v1/chat/completions", b"{}")
    slots.queue.vacate(left, name, slots.now)
    slots.now += 29
    again, twice = slots.join(identity=name), slots.join(identity=name)
    slots.give(a=3)
    assert slots.granted == [again, behind, twice]


def test_a_place_is_not_kept_for_ever():
    slots = Slots()
    left = slots.join()
    behind = slots.join()
    name = slots.queue.identity(left, "/v1/chat/completions", b"{}")
    slots.queue.vacate(left, name, slots.now)
    slots.now += 31
    again = slots.join(identity=name)
    slots.give(a=2)
    assert slots.granted == [behind, again]


def test_a_request_is_known_again_by_whose_it_is_and_what_it_says():
    slots = Slots()
    mine, yours = slots.ticket(), slots.ticket("a", "chat", "normal", "t", "u", "k", "other")
    name = slots.queue.identity(mine, "/v1/x", b"{}")
    assert name == slots.queue.identity(slots.ticket(), "/v1/x", b"{}")
    others = {slots.queue.identity(*what) for what in ((yours, "/v1/x", b"{}"), (mine, "/v1/y", b"{}"), (mine, "/v1/x", b""))}
    assert name not in others
    assert len(others) == 3
    assert name != Slots().queue.identity(mine, "/v1/x", b"{}")


def test_a_paused_model_waits_and_others_do_not():
    slots = Slots()
    slots.queue.pause("a")
    held, served = slots.join("a"), slots.join("b")
    slots.give(a=1, b=1)
    assert slots.granted == [served]
    slots.queue.resume("a")
    slots.queue.wake(slots.now)
    assert slots.granted == [served, held]


def test_a_pause_of_all_holds_even_who_finds_a_slot():
    slots = Slots()
    slots.queue.pause()
    slots.open["a"] = 1
    ticket = slots.join()
    slots.queue.wake(slots.now)
    assert ticket.waiting
    slots.queue.pause("b")
    slots.queue.resume()
    slots.queue.wake(slots.now)
    assert slots.granted == [ticket]
    assert slots.queue.paused_models == set()


def test_who_is_bumped_goes_before_all():
    slots = Slots()
    slots.join("a", "chat", "high")
    last = slots.join("a", "chat", "batch", "t", "u", "other", "")
    slots.queue.bump(last, slots.now)
    slots.give(a=1)
    assert slots.granted == [last]
    slots.queue.bump(last, slots.now)
    assert not last.waiting


def test_what_was_used_is_settled_once():
    slots = Slots()
    slots.open["a"] = 1
    ticket = slots.join()
    assert ticket.booked == 10
    slots.end(ticket, 100, 50)
    slots.queue.settle(ticket, 100, 50, slots.now)
    assert slots.queue.pace.shares["o", "t"] == 100 + 2 * 50


def test_who_waits_is_told_how_long():
    slots = Slots()
    slots.open["a"] = 2
    running = [slots.join(), slots.join()]
    running[0].holder.produced = running[1].holder.produced = lambda: 10 * round(slots.now - 1000)
    for _ in range(20):
        slots.now += 1
        slots.queue.pace.measure(slots.now)
    waits = [slots.join() for _ in range(5)]
    times = [slots.queue.outlook(ticket, slots.now).eta for ticket in waits]
    assert None not in times
    assert times == sorted(times)
    assert waits[0].eta == times[0]
    slots.give(a=1)
    assert len(slots.queue.pace.errors) == 1


def test_a_grant_may_free_a_slot_or_leave_or_join():
    """What a grant leads to happens in the same stack."""
    slots = Slots()
    first, second = slots.ticket(), slots.ticket()
    more: list[Ticket] = []

    def grant(placement):
        slots.took(first, placement)
        slots.queue.leave(second, slots.now)
        more.append(slots.join())
        slots.give(a=1)

    first.holder.granted = grant
    for ticket in (first, second):
        slots.queue.join(ticket, slots.now)
    slots.give(a=1)
    assert slots.granted == [first, *more]
    assert slots.queue.waiting == 0


def test_a_grant_that_fails_leaves_the_queue_at_work():
    slots = Slots()
    bad = slots.ticket()

    def grant(_placement):
        raise ValueError("a bug")

    bad.holder.granted = grant
    slots.queue.join(bad, slots.now)
    with pytest.raises(ValueError, match="a bug"):
        slots.give(a=1)
    second = slots.join()
    slots.give(a=1)
    assert slots.granted == [second]


class QueueMachine(RuleBasedStateMachine):
    """Any order of joining, leaving and coming back: each ticket is served once, in its flow's order, as soon as there is a slot."""

    tickets = Bundle("tickets")
    models = st.sampled_from("abc")
    keys = st.sampled_from("xy")

    @initialize()
    def begin(self):
        self.slots = Slots("abc", queue=6)
        #: What each flow's line should look like.
        self.lines: dict[tuple[str, str], list[Ticket]] = {(model, key): [] for model in "abc" for key in "xy"}
        self.seen = 0

    def serve(self) -> None:
        """Whatever was granted stood at the head of its flow."""
        for ticket in self.slots.granted[self.seen :]:
            assert self.lines[self.whose(ticket)].pop(0) is ticket
        self.seen = len(self.slots.granted)

    @staticmethod
    def whose(ticket: Ticket) -> tuple[str, str]:
        return ticket.needs.model, ticket.flow.path[3]

    def waiting(self, model: str | None = None) -> int:
        return sum(len(line) for (name, _), line in self.lines.items() if model in (None, name))

    @rule(target=tickets, model=models, key=keys)
    def join(self, model, key):
        free = self.slots.open[model] and not self.waiting(model)
        if self.waiting() >= 6 and not free:
            with pytest.raises(errors.QueueFull):
                self.slots.join(model, "chat", "normal", "t", "u", key, "")
            return multiple()
        ticket = self.slots.join(model, "chat", "normal", "t", "u", key, "")
        self.lines[self.whose(ticket)].append(ticket)
        self.serve()
        return ticket

    @rule(ticket=tickets)
    def turned_down(self, ticket):
        if ticket.running:
            self.slots.placements.pop(ticket.id).release()
            self.lines[self.whose(ticket)].insert(0, ticket)
            if (placement := self.slots.queue.rejoin(ticket, self.slots.now)) is not None:
                self.slots.took(ticket, placement)
                self.serve()

    @rule(ticket=consumes(tickets))
    def over(self, ticket):
        line = self.lines[self.whose(ticket)]
        if ticket in line:
            self.slots.queue.leave(ticket, self.slots.now)
            line.remove(ticket)
        elif ticket.running:
            self.slots.end(ticket)

    @rule(model=models, count=st.integers(1, 3))
    def free(self, model, count):
        self.slots.give(**{model: count})
        self.serve()

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.slots.now += seconds
        self.slots.queue.pace.measure(self.slots.now)

    @invariant()
    def all_who_wait_are_counted(self):
        if not hasattr(self, "lines"):
            return
        waiting = [ticket for line in self.lines.values() for ticket in line]
        assert self.slots.queue.waiting == self.slots.queue.held == len(waiting)
        assert {*self.slots.queue.tickets()} == {*waiting}
        for line in self.lines.values():
            places = [self.slots.queue.outlook(ticket, self.slots.now).position for ticket in line]
            assert places == sorted(places)
            assert all(place >= 1 for place in places)

    @invariant()
    def no_slot_is_free_while_somebody_waits_for_it(self):
        for (model, _), line in getattr(self, "lines", {}).items():
            assert not (line and self.slots.open[model])


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase


# -- one model, many names -----------------------------------------------------------------------------------------------


def named(slots: Slots, *aliases: str, of: str = "a") -> None:
    """From now on the box of a model knows it by these names, too."""
    worker = slots.fleet.workers[of]
    model = wire.Model(of, kinds=["chat", "completions"], aliases=list(aliases))
    slots.fleet.report(worker, wire.Report(worker.serial + 1, [engine(of, slots=100, models=[model])]))
    slots.queue.rename(slots.now)


def test_an_alias_stands_in_the_line_of_its_model():
    slots = Slots()
    named(slots, "alias")
    for _ in range(3):
        slots.join("a")
    assert slots.join("alias").position == 4


@pytest.mark.parametrize("kind", ["completions", "chat"])
@pytest.mark.parametrize("model", ["a", "alias"])
def test_whoever_runs_in_the_same_slots_is_waited_for(model, kind):
    slots = Slots()
    named(slots, "alias")
    slots.open["a"] = 1
    runs = slots.join("a")
    runs.holder.produced = lambda: 10 * round(slots.now - 1000)
    for _ in range(20):
        slots.now += 1
        slots.queue.pace.measure(slots.now)
    for _ in range(5):
        slots.join("a")
    last = slots.join(model, kind)
    assert last.position == 6
    assert last.eta is not None
    assert last.eta > 0


def test_the_limit_of_a_model_counts_all_its_names_and_kinds():
    slots = Slots(queue_model=2)
    named(slots, "alias")
    slots.join("a")
    slots.join("alias")
    with pytest.raises(errors.QueueFull):
        slots.join("a", "completions")


@pytest.mark.parametrize(("paused", "asked"), [("a", "alias"), ("alias", "a")])
def test_a_pause_holds_every_name_of_the_model(paused, asked):
    slots = Slots()
    named(slots, "alias")
    slots.queue.pause(paused)
    ticket = slots.join(asked)
    slots.give(a=1, alias=1)
    assert slots.granted == []
    slots.queue.resume(paused)
    slots.give()
    assert slots.granted == [ticket]


def test_a_pause_of_a_model_leaves_others_alone():
    slots = Slots()
    named(slots, "alias")
    slots.queue.pause("a")
    slots.open["b"] = 1
    assert slots.join("b") in slots.granted


def test_whoever_waits_is_sorted_anew_when_names_change():
    slots = Slots()
    first, second = slots.join("alias"), slots.join("a")
    assert (first.line, second.position) == (("alias", "chat"), 1)
    named(slots, "alias")
    assert first.line == second.line
    assert slots.queue.outlook(second, slots.now).position == 2
    named(slots)
    assert first.line == ("alias", "chat")
    slots.give(a=2)
    assert slots.granted == [second], "a name that nobody has any more blocks nobody"


# -- who waits in vain ---------------------------------------------------------------------------------------------------


def test_nobody_is_told_a_time_while_nobody_is_served():
    slots = Slots()
    slots.open["a"] = 1
    slots.join().holder.produced = lambda: 10 * round(slots.now - 1000)
    for _ in range(20):
        slots.now += 1
        slots.queue.pace.measure(slots.now)
    before = slots.join()
    slots.queue.pause()
    assert before.eta is None
    assert slots.join().eta is None
    assert slots.queue.outlook(before, slots.now).eta is None
    slots.now += 500
    slots.queue.resume()
    slots.give(a=2)
    assert not slots.queue.pace.errors, "nobody could know"


def test_a_place_survives_a_queue_that_is_full():
    slots = Slots(queue=2)
    first, _ = slots.join(), slots.join()
    slots.queue.vacate(first, b"first", slots.now)
    slots.join()
    with pytest.raises(errors.QueueFull):
        slots.join(identity=b"first")
    slots.give(a=1)
    assert slots.join(identity=b"first").position == 1


def test_every_key_has_its_limit_also_of_more_than_have_counters():
    slots = Slots(queue_key=2)
    for number in range(1001):
        slots.join("a", "chat", "normal", "t", "u", f"k{number}", "")
    slots.join("a", "chat", "normal", "t", "u", "k1000", "")
    with pytest.raises(errors.RateLimited):
        slots.join("a", "chat", "normal", "t", "u", "k1000", "")
    slots.join("a", "chat", "normal", "t", "u", "k1001", "")


def test_one_end_user_does_not_fill_the_room_of_its_key():
    slots = Slots(queue_end_user=2, queue_key=10)
    for _ in range(2):
        slots.join("a", "chat", "normal", "t", "u", "k", "greedy")
    with pytest.raises(errors.RateLimited) as caught:
        slots.join("a", "chat", "normal", "t", "u", "k", "greedy")
    assert caught.value.code == "end_user_queue_full"
    slots.join("a", "chat", "normal", "t", "u", "k", "modest")
    for _ in range(3):
        slots.join("a", "chat", "normal", "t", "u", "k", "")


def test_who_is_too_large_sheds_nobody():
    slots = Slots(queue_bytes=5)
    shed = slots.join("a", "chat", "sheddable")
    large = slots.ticket()
    large.size = 6
    with pytest.raises(errors.QueueFull):
        slots.queue.join(large, slots.now)
    assert shed.waiting


def test_the_oldest_is_the_oldest_whatever_was_done_to_it():
    slots = Slots()
    first = slots.join()
    slots.now += 50
    slots.join()
    slots.queue.bump(first, slots.now)
    assert slots.queue.oldest(slots.now) == 50


def test_a_turn_that_ends_without_a_word_of_what_it_used_costs_its_time():
    slots = Slots()
    slots.open["a"] = 1
    known = slots.join()
    known.holder.produced = lambda: 10 * round(slots.now - 1000)
    for _ in range(20):
        slots.now += 1
        slots.queue.pace.measure(slots.now)
    slots.end(known, 10, 200)
    used = slots.queue.pace.shares["o", "t"]
    slots.open["a"] = 1
    silent = slots.ticket()
    silent.prompt = 1000
    slots.took(silent, slots.queue.join(silent, slots.now))
    slots.now += 10
    slots.end(silent, 0, 0)
    assert used + 100 < slots.queue.pace.shares["o", "t"] < used + 1000


def test_an_absurd_length_is_not_believed():
    slots = Slots()
    slots.open["a"] = 2
    slots.end(slots.join(), 10, 10**9)
    assert slots.queue.pace.cost(slots.ticket()) < 10**6


class Crowd:
    """A queue before some boxes with one slot each, all of them taken."""

    def __init__(self, count: int, **limits: int) -> None:
        self.fleet = Fleet(lambda: None)
        self.names = [f"w{number}" for number in range(count)]
        for name in self.names:
            worker = Worker(name, name, 1, Link(lambda: None, 0.0))
            self.fleet.attach(worker, approved=True)
            self.fleet.report(worker, wire.Report(1, [engine("a")]))
        self.queue = Queue(lambda needs, now: place(self.fleet, needs, now), self.fleet, Limits(**limits))
        #: worker -> who has its slot.
        self.has: dict[str, tuple[Ticket, Placement]] = {}
        self._count = 0
        self.first = [self.join() for _ in self.names]

    def join(self, *shun: str, org: str = "o") -> Ticket:
        self._count += 1
        ticket = Ticket(f"r{self._count}", Needs("a", "chat", shun=ids(shun)), Flow((org, "t", "u", "k", ""), 2), Holder())
        ticket.holder.granted = lambda placement: self.took(ticket, placement)
        ticket.prompt = 10
        if (placement := self.queue.join(ticket, 1.0)) is not None:
            self.took(ticket, placement)
        return ticket

    def took(self, ticket: Ticket, placement: Placement) -> None:
        assert placement.seat.id not in ticket.needs.shun
        self.has[placement.seat.owner] = ticket, placement

    def free(self, worker: str) -> Ticket | None:
        """Whoever has its slot is served; who has it then."""
        ticket, placement = self.has.pop(worker)
        self.queue.settle(ticket, 10, 10, 1.0)
        placement.release()
        self.queue.wake(1.0)
        return self.has[worker][0] if worker in self.has else None


@pytest.mark.parametrize("sets", [1, 3, 40])
def test_those_whom_workers_failed_hold_up_nobody_who_could_have_these(sets):
    crowd = Crowd(3 + sets)
    others = [f"w{number}" for number in range(3, 3 + sets)]
    failed = [crowd.join("w0", "w1", others[number % sets], org="bad") for number in range(120)]
    victims = [crowd.join(org="good") for _ in range(2)]
    assert [crowd.free("w0") for _ in victims] == victims
    assert crowd.free("w0") is None
    assert crowd.free("w2") in failed
    assert crowd.queue.lines() == {("a", "chat")}


def test_who_was_failed_by_one_worker_is_not_held_up_by_those_whom_another_failed():
    crowd = Crowd(2)
    failed = [crowd.join("w0", org="bad") for _ in range(100)]
    victim = crowd.join("w1", org="good")
    assert (crowd.free("w0"), crowd.free("w1")) == (victim, failed[0])


def test_those_who_stand_apart_have_their_turn_among_all_who_wait():
    crowd = Crowd(2)
    tickets = [crowd.join(*(["w0"] if number % 2 else [])) for number in range(8)]
    assert [crowd.free("w1") for _ in tickets] == tickets
    assert crowd.queue.waiting == len(crowd.queue._apart) == 0


def test_those_who_stand_apart_count_for_their_model_and_are_paused_with_it():
    crowd = Crowd(2, queue_model=3)
    tickets = [crowd.join("w0") for _ in range(3)]
    with pytest.raises(errors.QueueFull):
        crowd.join()
    crowd.queue.pause("a")
    assert crowd.free("w1") is None
    crowd.queue.resume("a")
    crowd.queue.wake(1.0)
    assert crowd.has["w1"][0] is tickets[0]
    for ticket in tickets[1:]:
        crowd.queue.leave(ticket, 1.0)
    assert (crowd.queue._placed, crowd.queue._apart) == ({}, {})
