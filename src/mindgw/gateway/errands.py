"""What operators ask of the workers: commands that travel over their links, and what became of them.

The agents are not trusted with more than their own box: whatever they say about a command is text to be shown, bounded by the wire. One
command of each verb goes on at a worker at a time. What is over is remembered for a while, for whoever asked.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from msgspec import Struct

from mindgw import errors
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import Worker
from mindgw_agent import wire

#: Errands that are remembered, those that go on among them.
MOST: Final = 500
#: Seconds without a word after which an agent is thought to have forgotten what it does.
QUIET: Final = 60.0

State = Literal["running", "done", "failed"]


class Errand(Struct, kw_only=True):
    """A command and what became of it."""

    id: str
    worker_id: str
    #: Name of the worker.
    worker: str
    verb: str
    argument: str = ""
    state: State = "running"
    #: How far it is: for people; and from 0 to 1, None where nobody knows.
    note: str = ""
    part: float | None = None
    #: Why it failed.
    error: str = ""
    #: What was asked for, the oldest line first.
    lines: list[str] = []
    #: Number of the last of them in the agent's count; 0: it does not count them.
    line: int = 0
    #: Who wants it.
    by: str = ""
    #: Monotonic seconds of the last word about it.
    heard: float = 0.0
    #: Has its link forget it; to be called when nothing more is expected.
    drop: Callable[[], None] = lambda: None


class Errands:
    """All of them. One owner: synchronous on the event loop."""

    def __init__(self, fleet: Fleet, now: Callable[[], float]) -> None:
        self._fleet = fleet
        self._now = now
        self._count = 0
        #: By id, the oldest first.
        # bounded: by MOST
        self._known: dict[str, Errand] = {}

    def drain(self, worker_id: str) -> None:
        """The worker takes nothing new until `undrain`; its agent is told if it is there."""
        self._fleet.arrivals.drain(worker_id, drained=True)
        worker = self._fleet.workers.get(worker_id)
        if worker is not None:
            self._fleet.drain(worker)
            self._mention(worker, "drain")

    def undrain(self, worker_id: str) -> None:
        """Ends what `drain` began."""
        self._fleet.arrivals.drain(worker_id, drained=False)
        worker = self._fleet.workers.get(worker_id)
        if worker is not None:
            self._fleet.undrain(worker)
            self._mention(worker, "undrain")

    def release(self, worker_id: str) -> None:
        """The worker comes out of quarantine."""
        self._fleet.arrivals.accuse(worker_id, "")
        worker = self._fleet.workers.get(worker_id)
        if worker is not None:
            self._fleet.release(worker)

    def goes_on(self, worker_id: str, verb: str, by: str) -> bool:
        """Whether somebody asked for the same of late: then this is more of it. What is over of that is forgotten."""
        same = [e for e in self._known.values() if (e.worker_id, e.verb, e.by) == (worker_id, verb, by)]
        for over in [e for e in same[:-1] if e.state != "running"]:
            del self._known[over.id]
        return bool(same) and self._now() - same[-1].heard <= QUIET

    def start(self, worker_id: str, name: str, verb: str, argument: str = "", by: str = "") -> Errand:
        """Sends a command. Raises Conflict: the worker is away (worker_offline), its agent is older than commands (agent_too_old), or it is
        at such a command already (worker_busy)."""
        worker = self._fleet.workers.get(worker_id)
        if worker is None or worker.link.is_lost or worker.link.closing is not None:
            raise errors.Conflict(f"Worker {name!r} is not connected.", code="worker_offline", hint="on the box: `mindgw agent status`")
        if not worker.link.takes_commands:
            raise errors.Conflict(f"The agent of worker {name!r} is older than commands.", code="agent_too_old", hint="upgrade it")
        if any(e.worker_id == worker_id and e.verb == verb and self._looked_at(e).state == "running" for e in self._known.values()):
            raise errors.Conflict(f"Worker {name!r} is at another {verb}.", code="worker_busy")
        self._make_room()
        self._count += 1
        errand = Errand(id=f"{worker.epoch}-{self._count}", worker_id=worker_id, worker=name, verb=verb, argument=argument, by=by)
        errand.heard = self._now()
        self._known[errand.id] = errand
        number = worker.link.command(verb, argument, lambda progress: self._hear(errand, progress))
        errand.drop = partial(worker.link.give_up, number)
        return errand

    def find(self, worker_id: str, errand_id: str) -> Errand | None:
        """None when there is none of this id at the worker, or it was long ago."""
        found = self._known.get(errand_id)
        return self._looked_at(found) if found is not None and found.worker_id == worker_id else None

    def _mention(self, worker: Worker, verb: str) -> None:
        """Tells the agent of what was decided here, for those who look at the box; it has nothing to do for it."""
        if worker.link.takes_commands:
            worker.link.command(verb, "")

    def _hear(self, errand: Errand, progress: wire.Progress | None) -> None:
        if errand.state != "running":
            return
        errand.heard = self._now()
        if progress is None:
            errand.state, errand.error, errand.note = "failed", "worker_lost", "the connection to the worker was lost"
            return
        errand.note, errand.part = progress.note[: wire.MAX_NOTE], progress.part
        if progress.done:
            errand.state, errand.error = "failed" if progress.error else "done", progress.error
            errand.lines, errand.line = progress.lines, progress.line

    def _looked_at(self, errand: Errand) -> Errand:
        if errand.state == "running" and self._now() - errand.heard > QUIET:
            errand.state, errand.error, errand.note = "failed", "no_answer", "the agent said nothing more about it"
            errand.drop()
        return errand

    def _make_room(self) -> None:
        """Raises Conflict when too many go on."""
        if len(self._known) < MOST:
            return
        over = next((e.id for e in self._known.values() if self._looked_at(e).state != "running"), None)
        if over is None:
            raise errors.Conflict("Too many commands go on.", code="worker_busy")
        del self._known[over]
