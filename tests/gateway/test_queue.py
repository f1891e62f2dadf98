from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from mindgw import errors
from mindgw.gateway.admission import Caller
from mindgw.gateway.queue import Queue, Ticket
from mindgw.gateway.route import Needs

PAYER = Caller("k", "n", "o")


class Slots:
    """Free slots of each model; a placement is the name of its model."""

    def __init__(self, capacity: int = 100, memory: int = 2**30, **free: int) -> None:
        self.free = Counter(free)
        self.queue = Queue(self._place, capacity, memory)
        #: Tickets in the order in which they got their turn.
        self.granted: list[Ticket] = []

    def _place(self, needs: Needs):
        if not self.free[needs.model]:
            return None
        self.free[needs.model] -= 1
        return needs.model

    def ticket(self, model: str = "a", kind: str = "chat") -> Ticket:
        ticket = Ticket(Needs(model, kind), PAYER, 1, lambda placement: self.granted.append(ticket))
        return ticket

    def join(self, model: str = "a") -> Ticket:
        ticket = self.ticket(model)
        if self.queue.join(ticket) is not None:
            self.granted.append(ticket)
        return ticket

    def give(self, **free: int) -> None:
        self.free.update(free)
        self.queue.wake()


def test_a_free_slot_is_given_at_once():
    slots = Slots(a=1)
    assert slots.queue.join(slots.ticket()) == "a"
    assert slots.queue.waiting == 0


def test_turns_come_in_the_order_of_arrival():
    slots = Slots()
    tickets = [slots.join() for _ in range(5)]
    slots.give(a=2)
    slots.give(a=3)
    assert slots.granted == tickets


def test_nobody_overtakes_those_who_wait():
    """A slot that is free while somebody stands in line is theirs, though they were not told yet."""
    slots = Slots()
    first = slots.join()
    slots.free["a"] = 1
    second = slots.join()
    slots.queue.wake()
    assert slots.granted == [first]
    assert second.waiting


def test_a_head_that_cannot_be_placed_blocks_no_other_line():
    slots = Slots()
    slots.join("a")
    other = slots.join("b")
    slots.give(b=1)
    assert slots.granted == [other]


def test_the_oldest_of_all_lines_is_served_first():
    """Two models of one engine: whoever came first gets the first slot, and so on, line by line in turn."""
    free: list[str] = []
    granted: list[int] = []
    queue = Queue(lambda needs: free.pop() if free else None, 100, 2**30)
    for i in range(6):
        queue.join(Ticket(Needs("ab"[i % 2], "chat"), PAYER, 1, lambda _, i=i: granted.append(i)))
    free += ["slot"] * 4
    queue.wake()
    assert granted == [0, 1, 2, 3]


def test_kinds_of_one_model_are_lines_of_their_own():
    slots = Slots()
    slots.queue.join(slots.ticket("a", "chat"))
    slots.queue.join(slots.ticket("a", "embeddings"))
    assert slots.queue.waiting == 2
    assert len(slots.queue._lines) == 2


def test_a_full_queue_refuses_but_takes_back():
    slots = Slots(capacity=1)
    slots.join()
    with pytest.raises(errors.QueueFull, match="1 requests are waiting"):
        slots.join()
    back = slots.ticket()
    assert slots.queue.rejoin(back) is None
    slots.give(a=1)
    assert slots.granted == [back]


def test_a_full_queue_is_no_obstacle_when_a_slot_is_free():
    slots = Slots(capacity=1)
    slots.join("a")
    slots.free["b"] = 1
    assert slots.queue.join(slots.ticket("b")) == "b"


def test_whoever_comes_back_goes_to_the_head():
    slots = Slots()
    waiting = [slots.join() for _ in range(2)]
    back = slots.ticket()
    slots.queue.rejoin(back)
    assert slots.queue.position(back) == 1
    slots.give(a=3)
    assert slots.granted == [back, *waiting]


def test_whoever_comes_back_is_older_than_other_lines():
    slots = Slots()
    slots.join("b")
    back = slots.ticket("a")
    slots.queue.rejoin(back)
    slots.give(a=1, b=1)
    assert slots.granted[0] is back


def test_whoever_comes_back_may_be_placed_at_once():
    slots = Slots(a=1)
    assert slots.queue.rejoin(slots.ticket()) == "a"


def test_whoever_leaves_is_forgotten():
    slots = Slots()
    first, second, third = (slots.join() for _ in range(3))
    slots.queue.leave(second)
    slots.queue.leave(second)
    assert (slots.queue.waiting, slots.queue.position(second), slots.queue.position(third)) == (2, 0, 2)
    slots.give(a=3)
    assert slots.granted == [first, third]


def test_a_line_that_is_empty_leaves_nothing_behind():
    slots = Slots()
    slots.queue.leave(slots.join())
    slots.join("b")
    slots.give(b=1)
    assert slots.queue._lines == {}


def test_a_grant_may_free_a_slot_or_leave_or_join():
    """What a grant leads to happens in the same stack."""
    slots = Slots()
    tickets: list[Ticket] = []

    def grant(_placement):
        slots.granted.append(tickets[0])
        slots.queue.leave(tickets[1])
        tickets.append(slots.join())
        slots.give(a=1)

    tickets += [Ticket(Needs("a", "chat"), PAYER, 1, grant), slots.ticket()]
    for ticket in tickets:
        slots.queue.join(ticket)
    slots.give(a=1)
    assert slots.granted == [tickets[0], tickets[2]]
    assert slots.queue.waiting == 0


def test_a_grant_that_fails_leaves_the_queue_at_work():
    slots = Slots()

    def grant(_placement):
        raise ValueError("a bug")

    slots.queue.join(Ticket(Needs("a", "chat"), PAYER, 1, grant))
    with pytest.raises(ValueError, match="a bug"):
        slots.give(a=1)
    second = slots.join()
    slots.give(a=1)
    assert slots.granted == [second]


class QueueMachine(RuleBasedStateMachine):
    """Any order of joining, leaving and coming back: each ticket is served once, in its line's order, as soon as there is a slot."""

    tickets = Bundle("tickets")
    models = st.sampled_from("abc")

    @initialize()
    def begin(self):
        self.slots = Slots(capacity=6)
        #: What each line should look like.
        self.lines: dict[str, list[Ticket]] = {"a": [], "b": [], "c": []}
        self.seen = 0

    def serve(self) -> None:
        """Whatever was granted stood at the head of its line."""
        for ticket in self.slots.granted[self.seen :]:
            line = self.lines[ticket.needs.model]
            assert line
            assert line.pop(0) is ticket
        self.seen = len(self.slots.granted)

    @rule(target=tickets, model=models)
    def join(self, model):
        ticket = self.slots.ticket(model)
        full = sum(map(len, self.lines.values())) >= 6
        free = self.slots.free[model] and not self.lines[model]
        if full and not free:
            with pytest.raises(errors.QueueFull):
                self.slots.queue.join(ticket)
            return multiple()
        assert (self.slots.queue.join(ticket) is not None) == bool(free)
        if not free:
            self.lines[model].append(ticket)
        return ticket

    @rule(target=tickets, model=models)
    def rejoin(self, model):
        ticket = self.slots.ticket(model)
        if self.slots.queue.rejoin(ticket) is None:
            self.lines[model].insert(0, ticket)
        return ticket

    @rule(ticket=consumes(tickets))
    def leave(self, ticket):
        self.slots.queue.leave(ticket)
        line = self.lines[ticket.needs.model]
        if ticket in line:
            line.remove(ticket)

    @rule(model=models, count=st.integers(1, 3))
    def free(self, model, count):
        self.slots.give(**{model: count})
        self.serve()

    @invariant()
    def all_who_wait_are_counted(self):
        if not hasattr(self, "lines"):
            return
        assert self.slots.queue.waiting == sum(map(len, self.lines.values()))
        for line in self.lines.values():
            assert [self.slots.queue.position(ticket) for ticket in line] == [*range(1, len(line) + 1)]

    @invariant()
    def no_slot_is_free_while_somebody_waits_for_it(self):
        for model, line in getattr(self, "lines", {}).items():
            assert not (line and self.slots.free[model])


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
