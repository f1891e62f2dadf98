from mindgw.config import Timeouts
from mindgw.core.payload import Peek
from mindgw.gateway import signals
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.attempt import Attempt
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import Flow
from mindgw.gateway.route import Needs, place
from mindgw.gateway.seat import Worker
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire
from tests.gateway.world import engine

HEAD = signals.Head("r", "/v1/completions", [])
HEAD_OF_ANSWER = wire.Head(200, "t", b"")
ASK = Ask(Caller("k", "n", "o"), "/v1/completions", Peek("m", False, False), Needs("m", "chat"), Flow(("o", "", "", "k", ""), 2), 1, None)


class Try:
    """An attempt on a worker with one slot, and what it told."""

    def __init__(self) -> None:
        self.link = Link(lambda: None, 0.0)
        fleet = Fleet(lambda: None)
        self.worker = Worker("w", "w", 1, self.link)
        fleet.attach(self.worker, approved=True)
        fleet.report(self.worker, wire.Report(0, [engine("m")]))
        self.told: list[signals.Event] = []
        placement = place(fleet, Needs("m", "chat"), 0.0)
        assert placement is not None
        self.attempt = Attempt(self._tell, self, placement)

    def _tell(self, exchange: object, event: signals.Event) -> None:
        assert exchange is self
        self.told.append(event)

    def hear_everything(self) -> None:
        self.attempt.answered(HEAD_OF_ANSWER, None)
        self.attempt.data(b"x")
        self.attempt.closed(wire.Close("done"))
        self.attempt.lost()


def test_what_the_stream_says_becomes_events():
    made = Try()
    made.hear_everything()
    assert made.told == [signals.Answered(HEAD_OF_ANSWER), signals.Data(b"x"), signals.Closed(wire.Close("done")), signals.Lost()]


def test_nothing_is_told_once_it_is_over():
    made = Try()
    made.attempt.open(HEAD, ASK, Timeouts(), b"", b"")
    made.attempt.end()
    made.hear_everything()
    assert (made.told, made.worker.used) == ([], 0)


def test_a_cancel_of_what_was_never_sent_is_confirmed_at_once():
    made = Try()
    made.attempt.cancel()
    assert made.told == [signals.Closed(wire.Close("cancelled"))]


def test_a_cancel_of_what_was_sent_waits_for_the_agent():
    made = Try()
    made.attempt.open(HEAD, ASK, Timeouts(), b"", b"")
    made.link.take()
    made.attempt.cancel()
    assert (made.told, made.worker.used) == ([], 1)
    assert [frame.kind for frame in wire.Decoder().feed(made.link.take())] == [wire.CANCEL]


def test_bytes_that_moved_on_are_credited():
    made = Try()
    made.attempt.open(HEAD, ASK, Timeouts(), b"", b"")
    made.link.take()
    made.attempt.consumed(wire.CREDIT_LEVEL)
    (frame,) = wire.Decoder().feed(made.link.take())
    assert wire.parse_credit(frame.payload) == wire.CREDIT_LEVEL
