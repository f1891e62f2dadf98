"""What an agent says during one session, handed on: to the fleet, and to whoever keeps it."""

from collections.abc import Callable
from typing import NamedTuple

from mindgw.clock import wall
from mindgw.gateway.arrivals import Arrival
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import Worker
from mindgw_agent import wire


class Standing(NamedTuple):
    """What was decided about a worker before it came."""

    #: False: an operator has yet to let it in.
    approved: bool = True
    #: An operator wants it to take nothing new.
    drained: bool = False
    #: Why it is in quarantine; empty: it is not. And the same where that is not written down yet.
    charge: str = ""
    unwritten: str = ""

    def amended(self, arrival: Arrival) -> "Standing":
        """With what was decided since its greeting began."""
        drained = self.drained if arrival.drained is None else arrival.drained
        if arrival.charge is None:
            return self._replace(drained=drained)
        return self._replace(drained=drained, charge="", unwritten=arrival.charge)


class News:
    """Who else is told."""

    __slots__ = ("on_charge", "on_receipts", "on_report", "on_unlinked")

    def __init__(self) -> None:
        #: Called with a worker's receipts, and with whom to tell which of them are kept. Raises ProtocolError when there are too many.
        self.on_receipts: Callable[[str, wire.Receipts, Callable[[int], None]], None] = lambda worker_id, batch, acknowledge: None
        #: Called with the same when a link is gone.
        self.on_unlinked: Callable[[str, Callable[[int], None]], None] = lambda worker_id, acknowledge: None
        #: Called with what a worker last reported, to be written down when there is time.
        self.on_report: Callable[[Worker, wire.Report], None] = lambda worker, report: None
        #: Called when a worker was put into quarantine, with whom; its `charge` says why.
        self.on_charge: Callable[[Worker], None] = lambda worker: None


class Session:
    """One session of one worker, as its link's owner (`tunnel.Owner`). Once a newer one took its place whatever it says is void: its
    socket may live on for many minutes, and bring late what was said long ago."""

    def __init__(self, fleet: Fleet, news: News, worker: Worker) -> None:
        self._fleet = fleet
        self._news = news
        self.worker = worker

    @property
    def _is_current(self) -> bool:
        return self._fleet.workers.get(self.worker.id) is self.worker

    def reported(self, report: wire.Report) -> None:
        """What the agent has to offer now."""
        worker = self.worker
        if not self._is_current:
            return
        worker.last_seen = wall()
        known = worker.charge
        judged = self._fleet.report(worker, report)
        if judged is not None:
            self._news.on_report(worker, judged)
        if worker.charge != known:
            self._news.on_charge(worker)

    def lied(self, charge: str) -> None:
        """The agent said what no honest one can say."""
        worker = self.worker
        if self._is_current and not worker.charge:
            self._fleet.accuse(worker, charge)
            self._news.on_charge(worker)

    def drains(self) -> None:
        """The agent takes nothing new."""
        if self._is_current:
            self._fleet.leaves(self.worker)

    def parts(self) -> None:
        """The agent said goodbye: the same as if its socket was gone, which may take a while yet."""
        self.detach()

    def receipts(self, batch: wire.Receipts) -> None:
        """What requests cost, by the agent's own book. It says again over the newest link what was not acknowledged."""
        if self._is_current:
            self._news.on_receipts(self.worker.id, batch, self.worker.link.received)

    def heard(self) -> None:
        """A message came in."""
        self.worker.last_seen = wall()

    def detach(self) -> None:
        """The socket is gone: what ran here is tried elsewhere or ends with an error."""
        self._news.on_unlinked(self.worker.id, self.worker.link.received)
        self._fleet.detach(self.worker)
        self.worker.link.lost()
