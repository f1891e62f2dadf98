"""What an agent says during one session, handed on: to the fleet, and to whoever keeps it."""

from collections.abc import Callable

from mindgw.clock import wall
from mindgw.gateway.fleet import Fleet, Worker
from mindgw_agent import wire


class News:
    """Who else is told."""

    __slots__ = ("on_receipts", "on_report", "on_unlinked")

    def __init__(self) -> None:
        #: Called with a worker's receipts, and with whom to tell which of them are kept. Raises ProtocolError when there are too many.
        self.on_receipts: Callable[[str, wire.Receipts, Callable[[int], None]], None] = lambda worker_id, batch, acknowledge: None
        #: Called with the same when a link is gone.
        self.on_unlinked: Callable[[str, Callable[[int], None]], None] = lambda worker_id, acknowledge: None
        #: Called with what a worker last reported, to be written down when there is time.
        self.on_report: Callable[[Worker, wire.Report], None] = lambda worker, report: None


class Session:
    """One session of one worker, as its link's owner (`tunnel.Owner`)."""

    def __init__(self, fleet: Fleet, news: News, worker: Worker) -> None:
        self._fleet = fleet
        self._news = news
        self.worker = worker

    def reported(self, report: wire.Report) -> None:
        """What the agent has to offer now; of a session that a newer one replaced, it is void."""
        if self._fleet.workers.get(self.worker.id) is not self.worker:
            return
        self.worker.last_seen = wall()
        self._fleet.report(self.worker, report)
        self._news.on_report(self.worker, report)

    def drains(self) -> None:
        """The agent takes nothing new."""
        self._fleet.drain(self.worker)

    def receipts(self, batch: wire.Receipts) -> None:
        """What requests cost, by the agent's own book."""
        self._news.on_receipts(self.worker.id, batch, self.worker.link.received)

    def heard(self) -> None:
        """A message came in."""
        self.worker.last_seen = wall()

    def detach(self) -> None:
        """The socket is gone: what ran here is tried elsewhere or ends with an error."""
        self._news.on_unlinked(self.worker.id, self.worker.link.received)
        self._fleet.detach(self.worker)
        self.worker.link.lost()
