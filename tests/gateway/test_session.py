"""Two sessions of one agent at once: what the older one says, however late it comes, never touches the newer one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mindgw.core.worker import State
from mindgw.gateway.session import Standing
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import World, engine

BAD = b'{"serial": -1}'


class Life:
    """An agent that dials again and again while its older sockets live on, and what the server thinks of it."""

    def __init__(self) -> None:
        self.world = World()
        self.pipeline = self.world.pipeline
        #: Sessions so far, the newest last; the serial of each one's last report.
        self.doors = []
        self.serials = []
        #: Monotonic seconds: nobody says so much that it would have to wait.
        self.seconds = 0.0
        #: What was written down, by session: reports, receipts, charges, farewells.
        self.noted = []
        news = self.pipeline.news
        news.on_report = lambda worker, report: self.noted.append((worker.epoch, "report", report.serial))
        news.on_receipts = lambda id, batch, acknowledge: self.noted.append((acknowledge, "receipts", batch.last))
        news.on_charge = lambda worker: self.noted.append((worker.epoch, "charge", worker.charge))

    def dial(self, *_: int) -> None:
        link = Link(lambda: None, self.world.clock())
        epoch = len(self.doors) + 1
        self.doors.append(self.pipeline.attach(link, "box", "box", epoch, Standing(), wire.Report(0, [engine(f"m{epoch}", slots=epoch)])))
        self.serials.append(0)

    def report(self, which: int, serial: int) -> None:
        self.seconds += 1.0
        said = wire.Report(serial, [engine(f"m{which + 1}", slots=which + 1)])
        self.doors[which].worker.link.receive(wire.encode(wire.frame(said)), self.seconds)

    def drain(self, which: int, _: int) -> None:
        self.doors[which].worker.link.receive(wire.encode(wire.Frame(0, wire.DRAIN)), 0.0)

    def lie(self, which: int, _: int) -> None:
        self.seconds += 1.0
        self.doors[which].worker.link.receive(wire.encode(wire.Frame(0, wire.REPORT, BAD)), self.seconds)

    def account(self, which: int, number: int) -> None:
        batch = wire.Receipts(after=number, prev=b"h" * 32, head=b"h" * 32)
        self.doors[which].receipts(batch)

    def hang_up(self, which: int, _: int) -> None:
        self.doors[which].detach()


steps = st.lists(
    st.tuples(st.sampled_from(["dial", "report", "drain", "lie", "account", "hang_up"]), st.integers(0, 5), st.integers(0, 9)), max_size=25
)


def picture(life: Life) -> object:
    """All that the server knows of the newest session."""
    worker = life.pipeline.fleet.workers.get("box")
    if worker is None:
        return None
    seats = [(id, seat.engine, seat.used) for id, seat in worker.seats.items()]
    return worker.epoch, worker.state, worker.serial, seats, worker.draining, worker.charge, worker.link.is_lost, len(life.noted)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_an_older_session_never_touches_a_newer_one(said):
    life = Life()
    life.dial()
    for what, who, number in said:
        which = who % len(life.doors)
        older = which < len(life.doors) - 1
        before = picture(life)
        getattr(life, what)(which, number)
        if what == "dial":
            assert life.pipeline.fleet.workers["box"].epoch == len(life.doors)
        elif older:
            assert picture(life) == before, (what, which)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=20))
def test_a_report_that_is_older_than_the_last_changes_nothing(serials):
    life = Life()
    life.dial()
    for serial in serials:
        before, known = picture(life), life.doors[0].worker.serial
        life.report(0, serial)
        if serial <= known:
            assert picture(life) == before
        else:
            assert life.doors[0].worker.serial == serial


def test_a_slot_that_an_older_session_gives_back_late_is_its_own():
    life = Life()
    life.dial()
    fleet = life.pipeline.fleet
    old = fleet.lease(fleet.workers["box"].seats["e"])
    life.dial()
    new = fleet.lease(fleet.workers["box"].seats["e"])
    old.release()
    assert fleet.workers["box"].used == 1
    new.release()
    assert fleet.workers["box"].used == 0


def test_garbage_in_a_report_is_a_charge_and_ends_nothing():
    life = Life()
    life.dial()
    life.lie(0, 0)
    life.lie(0, 0)
    worker = life.pipeline.fleet.workers["box"]
    assert worker.state is State.QUARANTINED
    assert worker.charge.startswith("it reports what cannot be: bad Report: ")
    assert worker.link.closing is None
    assert [what for _, what, _ in life.noted] == ["report", "charge"]


def test_who_is_released_is_what_it_says_of_itself():
    life = Life()
    life.dial()
    fleet, worker = life.pipeline.fleet, life.doors[0].worker
    life.lie(0, 0)
    life.report(0, 1)
    assert worker.state is State.QUARANTINED
    fleet.release(worker)
    assert (worker.state, worker.charge) == (State.READY, "")
    life.lie(0, 0)
    fleet.report(worker, wire.Report(2, [engine("m", healthy=False)], paused_until=99))
    fleet.release(worker)
    assert worker.state is State.PAUSED
    fleet.report(worker, wire.Report(3, [engine("m", healthy=False)]))
    assert worker.state is State.OFFLINE


def test_a_drain_of_an_operator_ends_when_they_say_so_and_that_of_an_agent_never():
    life = Life()
    life.dial()
    fleet, worker = life.pipeline.fleet, life.doors[0].worker
    fleet.drain(worker)
    life.report(0, 1)
    assert worker.state is State.DRAINING
    fleet.undrain(worker)
    assert worker.state is State.READY
    life.drain(0, 0)
    fleet.undrain(worker)
    assert worker.state is State.DRAINING
