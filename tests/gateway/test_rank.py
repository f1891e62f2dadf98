"""Many seats are taken in the same order as few, and without looking at all of them."""

from hypothesis import given
from hypothesis import strategies as st

from mindgw.gateway.fleet import Fleet
from mindgw.gateway.rank import FEW, FULL, Rank
from mindgw.gateway.route import Needs, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine, ids

MANY = 2 * FEW
STEPS = st.lists(
    st.tuples(st.sampled_from(["place", "avoid", "release", "rest", "report", "drain", "later", "hide"]), st.integers(0, 10**6)),
    max_size=60,
)


def worker(fleet: Fleet, number: int, slots: int) -> Worker:
    made = Worker(f"w{number}", f"w{number}", 1, Link(lambda: None, 0.0))
    fleet.attach(made, approved=True)
    fleet.report(made, wire.Report(0, [engine("m", slots=slots)]))
    return made


@given(st.lists(st.integers(0, 3), min_size=MANY, max_size=MANY), STEPS)
def test_many_are_taken_in_the_order_in_which_one_by_one_they_would_be(slots, steps):
    fleet = Fleet(lambda: None, "least-busy")
    workers = [worker(fleet, number, count) for number, count in enumerate(slots)]
    held, now = [], 0.0
    for step, n in steps:
        chosen = workers[n % MANY]
        seat = chosen.seats["e"]
        if step in {"place", "avoid"}:
            needs = Needs("m", "chat", ids({f"w{n % MANY}", "w0"} if step == "avoid" else ()))
            free = [one.seats["e"] for one in workers if one.seats["e"].free(now)]
            wanted = min(free, key=lambda one: (one.id in needs.avoid, one.used / one.engine.slots, one.turn), default=None)
            placement = place(fleet, needs, now)
            assert (placement and placement.seat) is wanted
            held += [placement] if placement else []
        elif step == "release" and held:
            held.pop(n % len(held)).release()
        elif step == "rest":
            fleet.rest(seat, now)
        elif step == "later":
            now += 0.3
        elif step == "drain" and n % 4 == 0:
            fleet.drain(chosen)
        elif step in {"report", "hide"}:
            models = ["m"] if step == "report" else ["m"] * (n % 2)
            changed = engine(*models, slots=n % 4, elsewhere=n % 3, healthy=n % 5 > 0)
            fleet.report(chosen, wire.Report(chosen.serial + 1, [changed]))


class Counted:
    """A seat that counts how often it is looked at."""

    looks = 0

    def __init__(self, number: int) -> None:
        self.share, self.turn, self.stamp, self.id = 0.0, number, 0, (str(number), "e")

    def free(self, now: float) -> bool:
        type(self).looks += 1
        return self.share < FULL


def test_among_a_thousand_few_are_looked_at():
    seats = [Counted(number) for number in range(1000)]
    rank = Rank(seats)
    for turn in range(5000):
        seat = rank.best(frozenset(), 0.0)
        assert seat is seats[turn % 1000]
        seat.turn, seat.stamp = 1000 + turn, seat.stamp + 1
        rank.offer(seat)
    assert Counted.looks == 5000
    assert len(rank._heap) <= 2 * len(seats) + FEW
