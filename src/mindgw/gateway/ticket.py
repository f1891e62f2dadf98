"""One request's place in the queue and, once it has a slot, what it takes of it."""

from typing import Protocol

from mindgw import errors
from mindgw.core import fair
from mindgw.gateway.flows import Flow
from mindgw.gateway.places import Line
from mindgw.gateway.route import Needs, Placement

#: What is served to it is counted in units: a token of the prompt is one, a token of the answer two.
W_IN, W_OUT = 1.0, 2.0


class Holder(Protocol):
    """Whose place it is."""

    def granted(self, placement: Placement) -> None:
        """Its turn has come; called once. The slot is the holder's from then on."""

    def turned_out(self, wrong: errors.MindGWError) -> None:
        """It has to leave, for this reason."""

    def produced(self) -> int | None:
        """Tokens of its answer so far, None for one that comes in one piece; asked now and then while it runs."""


class Ticket:
    """The same one however often its request comes back."""

    __slots__ = (
        "booked", "cap", "entered", "entry", "eta", "flow", "holder", "id", "line", "needs", "placed", "position", "prompt", "rank",
        "seen", "size", "sort",
    )  # fmt: skip

    def __init__(self, id: str, needs: Needs, flow: Flow, holder: Holder) -> None:
        #: Of the request.
        self.id = id
        #: What it needs now; changes when a worker turned it down. Only while it does not wait.
        self.needs = needs
        self.flow = flow
        #: Its class now: an operator may have put it before all others.
        self.rank = flow.rank
        #: What the same slots can serve.
        self.line: Line = (needs.model, needs.kind, needs.where) if needs.where else (needs.model, needs.kind)
        #: Whose answers are about as long as its own will be; None before it joined.
        self.sort: tuple[fair.Path, Line] | None = None
        self.holder = holder
        #: Bytes that it keeps in memory while it waits.
        self.size = 0
        #: Tokens of the prompt, estimated, and the most that its answer may have.
        self.prompt = 0
        self.cap: int | None = None

        #: Its place in the fair order; None before it joined and after it was settled.
        self.entry: fair.Ticket | None = None
        #: Monotonic seconds when it joined first, and when it got its slot; None while it has none.
        self.entered = 0.0
        self.placed: float | None = None
        #: Where it stood when it joined, 0 for whoever did not have to wait, and the seconds that it was told; None: nobody knows.
        self.position = 0
        self.eta: float | None = None
        #: Units that were charged for it, and until when its time in the slot was counted.
        self.booked = 0.0
        self.seen = 0.0

    @property
    def whose(self) -> tuple[fair.Path, Line, int]:
        """What is served as one with it."""
        return self.flow.path, self.line, self.flow.rank

    @property
    def cost(self) -> float:
        """Units that it was expected to cost when it joined."""
        return self.entry.cost if self.entry is not None else 0.0

    @property
    def waiting(self) -> bool:
        """True while it stands in line."""
        return self.entry is not None and self.entry.branch is not None

    @property
    def running(self) -> bool:
        """True while it has a slot."""
        return self.placed is not None
