from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from mindgw import errors
from mindgw.core.worker import State
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import REST, Worker
from mindgw.gateway.serving import Serving
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine, knows


@dataclass
class Yard:
    """A fleet, and how often it said that something changed."""

    changes: int = 0
    fleet: Fleet = field(init=False)

    def __post_init__(self):
        self.fleet = Fleet(self._changed)

    def _changed(self):
        self.changes += 1

    def worker(self, id: str = "w", *engines: wire.EngineReport, approved: bool = True, epoch: int = 1) -> Worker:
        worker = Worker(id, id, epoch, Link(lambda: None, 0.0))
        self.fleet.attach(worker, approved)
        self.fleet.report(worker, wire.Report(0, list(engines) or [engine("m", slots=2)]))
        return worker


def free(worker: Worker, now: float = 0.0) -> list[str]:
    return [seat.engine.id for seat in worker.seats.values() if seat.free(now)]


def test_a_worker_is_ready_once_its_engine_is():
    yard = Yard()
    worker = yard.worker("w", engine("m", healthy=False))
    assert (worker.state, free(worker)) == (State.OFFLINE, [])
    yard.fleet.report(worker, wire.Report(1, [engine("m")]))
    assert (worker.state, free(worker)) == (State.READY, ["e"])


def test_many_that_come_or_go_at_once_are_one_change(monkeypatch):
    looks = []
    look = Serving._look
    monkeypatch.setattr(Serving, "_look", lambda fleet: (looks.append(1), look(fleet)))
    yard = Yard()
    workers = [yard.worker(f"w{number}", engine("m", f"m{number}")) for number in range(100)]
    assert not looks
    assert len(list(yard.fleet.seats("m", "chat"))) == 100
    assert yard.fleet.canonical["m7"] == "m7"
    for worker in workers[1:]:
        yard.fleet.detach(worker)
    assert len(looks) == 1
    assert [seat.worker for seat in yard.fleet.seats("m", "chat")] == workers[:1]
    assert not yard.fleet.has_choice("m", "chat")
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("change", "is_news"),
    [({}, False), ({"loaded": False}, False), ({"context": 5}, False), ({"created": 5}, False),
     ({"aliases": ["n"]}, True), ({"kinds": ["chat", "completions"]}, True), ({"id": "n"}, True)],
)  # fmt: skip
def test_what_says_nothing_about_who_can_serve_what_is_no_reason_to_look_at_all_workers(change, is_news):
    yard = Yard()
    model = wire.Model("m", kinds=["chat"])
    worker = yard.worker("w", engine(models=[model]))
    other = yard.worker("other", engine(models=[model]))
    (seat,) = worker.seats.values()
    yard.fleet.doubt(seat, "m", "chat", 0.0)
    assert [seat.worker for seat in yard.fleet.seats("m", "chat")] == [other]
    canonical, changes = yard.fleet.canonical, yard.fleet.changes
    yard.fleet.report(worker, wire.Report(1, [engine(models=[replace(model, **change)])]))
    assert yard.fleet._is_stale == is_news
    assert bool(seat.unable) != is_news
    assert seat.engine.models == [replace(model, **change)]
    assert yard.fleet.changes > changes
    assert (yard.fleet.canonical == canonical) != ("id" in change)


def test_a_worker_without_engines_is_offline():
    worker = Yard().worker("w", engine("m"))
    Yard().fleet.report(worker, wire.Report(1, []))
    assert worker.state is State.OFFLINE


def test_one_healthy_engine_of_two_is_enough():
    worker = Yard().worker("w", engine("m", id="a"), engine("m", id="b", healthy=False))
    assert (worker.state, free(worker)) == (State.READY, ["a"])


def test_an_unapproved_worker_takes_nothing():
    yard = Yard()
    worker = yard.worker(approved=False)
    assert (worker.state, free(worker)) == (State.PENDING, [])
    yard.fleet.drain(worker)
    yard.fleet.accuse(worker, "it lies")
    yard.fleet.release(worker)
    assert worker.state is State.PENDING


def test_a_draining_worker_takes_nothing_new_whatever_it_reports():
    yard = Yard()
    worker = yard.worker()
    yard.fleet.drain(worker)
    yard.fleet.report(worker, wire.Report(1, [engine("m")]))
    assert (worker.state, free(worker)) == (State.DRAINING, [])


def test_a_worker_may_say_in_its_report_that_it_drains():
    yard = Yard()
    worker = yard.worker()
    for serial in (1, 2):
        yard.fleet.report(worker, wire.Report(serial, [engine("m")], draining=True))
    assert worker.state is State.DRAINING


@pytest.mark.parametrize("serial", [0, 4, 5])
def test_an_older_report_is_dropped(serial):
    yard = Yard()
    worker = yard.worker()
    yard.fleet.report(worker, wire.Report(5, [engine("new")]))
    yard.fleet.report(worker, wire.Report(serial, [engine("old")]))
    assert [*yard.fleet.models()] == ["new"]


def test_slots_are_leased_one_by_one_and_given_back_once():
    yard = Yard()
    worker = yard.worker()
    seat = worker.seats["e"]
    leases = [yard.fleet.lease(seat), yard.fleet.lease(seat)]
    assert (worker.used, worker.slots, free(worker)) == (2, 2, [])
    before = yard.changes
    leases[0].release()
    leases[0].release()
    assert (worker.used, free(worker), yard.changes) == (1, ["e"], before + 1)


def test_leases_outlive_a_report():
    yard = Yard()
    worker = yard.worker()
    yard.fleet.lease(worker.seats["e"])
    yard.fleet.report(worker, wire.Report(1, [engine("m", slots=1)]))
    assert (worker.used, free(worker)) == (1, [])


def test_leases_outlive_an_engine_that_vanishes_and_comes_back():
    """Or its slots would be promised twice."""
    yard = Yard()
    worker = yard.worker("w", engine("m", slots=1))
    lease = yard.fleet.lease(worker.seats["e"])
    yard.fleet.report(worker, wire.Report(1, []))
    assert (worker.used, worker.slots, yard.fleet.models()) == (1, 0, {})
    yard.fleet.report(worker, wire.Report(2, [engine("m", slots=1)]))
    assert (worker.used, free(worker)) == (1, [])
    lease.release()
    assert free(worker) == ["e"]


def test_an_engine_that_vanished_is_forgotten_when_its_leases_are_back():
    yard = Yard()
    worker = yard.worker()
    yard.fleet.report(worker, wire.Report(1, [engine("m", id="other")]))
    assert [*worker.seats] == ["other"]


def test_a_seat_rests_for_a_moment():
    yard = Yard()
    worker = yard.worker()
    yard.fleet.rest(worker.seats["e"], 10.0)
    assert (free(worker, 10.0), free(worker, 10.0 + REST)) == ([], ["e"])


def test_models_are_found_by_name_alias_and_kind():
    yard = Yard()
    models = [wire.Model("m", kinds=["chat"], aliases=["n", "m"]), wire.Model("v", kinds=["embeddings"])]
    (seat,) = yard.worker("w", engine(models=models)).seats.values()
    assert [*yard.fleet.seats("m", "chat")] == [*yard.fleet.seats("n", "chat")] == [*yard.fleet.seats("v", "embeddings")] == [seat]
    assert [*yard.fleet.seats("m", "embeddings")] == [*yard.fleet.seats("x", "chat")] == []


def test_a_model_that_cannot_do_what_is_asked_is_no_missing_model():
    """Nobody waits minutes for a chat with an embedding model."""
    yard = Yard()
    yard.worker("w", engine("v", kinds=("embeddings",)))
    with pytest.raises(errors.BadRequest, match="does not support chat") as caught:
        yard.fleet.check("v", "chat")
    assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")
    yard.fleet.check("v", "embeddings")


def test_only_ready_workers_are_listed_but_all_are_known():
    yard = Yard()
    yard.worker("on", engine("m"))
    yard.worker("off", engine("n", healthy=False))
    assert [*yard.fleet.models()] == ["m"]
    assert [knows(yard.fleet, name) for name in "mnx"] == [True, True, False]
    assert [yard.fleet.present(name) for name in "mnx"] == [True, False, False]


def test_a_model_whose_engine_is_down_is_not_listed_beside_one_that_is_up():
    yard = Yard()
    yard.worker("w", engine("m", id="e1"), engine("n", id="e2", healthy=False))
    assert ([*yard.fleet.models()], knows(yard.fleet, "n")) == (["m"], True)


def test_an_engine_that_gives_no_answer_for_a_while_still_has_its_models():
    """Its agent does not know which: whoever asks for them waits, and is not told that there are none."""
    yard = Yard()
    worker = yard.worker("w", engine("m"))
    down = engine(healthy=False)
    yard.fleet.report(worker, wire.Report(1, [down]))
    assert free(worker) == [] and not yard.fleet.present("m") and yard.fleet.models() == {}
    yard.fleet.check("m", "chat")
    yard.fleet.report(worker, wire.Report(2, [engine("other")]))
    with pytest.raises(errors.ModelNotFound):
        yard.fleet.check("m", "chat")


def test_models_of_a_worker_that_left_are_remembered_by_all_their_names():
    yard = Yard()
    worker = yard.worker("w", engine(models=[wire.Model("m", kinds=["chat"], aliases=["n"])]))
    yard.fleet.detach(worker)
    assert [knows(yard.fleet, name) for name in "mnx"] == [True, True, False]
    assert (yard.fleet.present("m"), worker.state, [*yard.fleet.seats("m", "chat")]) == (False, State.OFFLINE, [])


def test_a_newer_session_takes_over():
    yard = Yard()
    old = yard.worker(epoch=1)
    new = yard.worker(epoch=2)
    assert old.link.closing is not None
    assert old.link.closing.code == "replaced"
    assert [seat.worker for seat in yard.fleet.seats("m", "chat")] == [new]
    yard.fleet.detach(old)
    assert yard.fleet.workers == {"w": new}


def test_a_lease_of_an_older_session_frees_nothing_of_the_newer():
    yard = Yard()
    old = yard.worker(epoch=1)
    lease = yard.fleet.lease(old.seats["e"])
    new = yard.worker(epoch=2)
    yard.fleet.lease(new.seats["e"])
    lease.release()
    assert (old.used, new.used) == (0, 1)


def test_a_model_that_nobody_can_use_that_way_is_refused_at_once():
    yard = Yard()
    yard.worker("w", engine(models=[wire.Model("m", kinds=["embeddings"])]))
    yard.fleet.check("m", "embeddings")
    with pytest.raises(errors.BadRequest, match="does not support chat"):
        yard.fleet.check("m", "chat")
    with pytest.raises(errors.ModelNotFound):
        yard.fleet.check("x", "chat")


def test_what_a_name_stands_for_is_known_anew_with_each_report():
    yard = Yard()
    chat = [wire.Model("small", aliases=["chat"], kinds=["chat"])]
    yard.worker("a", engine("a", models=chat))
    big = yard.worker("b", engine("b", models=[wire.Model("big", aliases=["chat", "large"], kinds=["chat"])]))
    both = {"small": frozenset({"small", "chat"}), "big": frozenset({"big", "chat", "large"})}
    assert yard.fleet.offers("chat") == both
    assert yard.fleet.offers("chat") is yard.fleet.offers("chat")  # asked for by each request of some keys
    assert yard.fleet.offers("gone") == {}
    yard.fleet.report(big, wire.Report(1, [engine("b", models=chat)]))
    assert yard.fleet.offers("chat") == {"small": frozenset({"small", "chat"})}
