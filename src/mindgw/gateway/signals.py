"""What can happen to a request, and what a lane is asked to do about it: the words between lanes and exchanges."""

from enum import Enum

from msgspec import Struct

from mindgw import errors
from mindgw.core.routing import Where
from mindgw.gateway.admission import Caller
from mindgw.gateway.reservation import Reservation
from mindgw.gateway.route import Placement
from mindgw_agent import wire


class Head(Struct, frozen=True, gc=False):
    """The head of a request, as a lane saw it."""

    request_id: str
    path: str
    headers: list[tuple[bytes, bytes]]
    traceparent: str = ""
    #: Network address of who asks, "" for none.
    address: str = ""


# What can happen to an exchange.


class Identified(Struct, frozen=True):
    """The key was looked up."""

    caller: Caller


class Refused(Struct, frozen=True):
    """The key was looked up in vain, or the lane cannot read the request."""

    error: errors.MindGWError


class Received(Struct, frozen=True, gc=False):
    """The whole body is here."""

    body: bytes


class Recalled(Struct, frozen=True):
    """Nobody knows of a request with its Idempotency-Key: it is run."""


class Copied(Struct, frozen=True):
    """The answer that another request with its Idempotency-Key has had: its status, the code of its error, and how to give it again."""

    status: int
    code: str
    effects: "list[Effect]"


class Turn(Struct, frozen=True):
    """A slot was granted; this exchange owns it now."""

    placement: Placement


class Funded(Struct, frozen=True):
    """What it reserves is held."""


class Answered(Struct, frozen=True, gc=False):
    """The answer began: the engine's status line and content type, its first bytes, and how it ended when that is all of it."""

    head: wire.Head
    close: wire.Close | None = None


class Data(Struct, frozen=True, gc=False):
    """Bytes of the answer."""

    data: bytes


class Closed(Struct, frozen=True, gc=False):
    """The agent is done with the request and its slot is free."""

    close: wire.Close


class Lost(Struct, frozen=True, gc=False):
    """The link to the worker is gone."""


class Drained(Struct, frozen=True, gc=False):
    """All that was written has left for the client."""


class Gone(Struct, frozen=True, gc=False):
    """The client hung up."""


class Stopped(Struct, frozen=True):
    """Somebody else ends it: the key was revoked, the server stops."""

    error: errors.MindGWError


class Bound(Struct, frozen=True):
    """Its caller may go no further than this from now on, nor than it might before."""

    where: Where


class Tick(Struct, frozen=True, gc=False):
    """Time has passed; sent when `due` is over."""


class Beside(Struct, frozen=True, gc=False):
    """News of the other one of two tries that run at once: Answered, Data, Closed or Lost."""

    event: "Event"


Event = (
    Identified | Refused | Received | Recalled | Copied | Turn | Funded | Answered | Data | Closed | Lost | Drained | Gone | Stopped | Bound
    | Tick | Beside
)  # fmt: skip


# What a lane is asked to do.


class LookUp(Struct, frozen=True):
    """Look the key up and post Identified or Refused."""

    key: str


class Recall(Struct, frozen=True):
    """Ask the database about a request with an Idempotency-Key, by its identity, and post Recalled, Copied or Refused."""

    identity: bytes


class Fund(Struct, frozen=True):
    """Borrow what the reservation wants and post Funded or Refused."""

    reservation: Reservation


class Answer(Struct, frozen=True, gc=False):
    """Send a whole answer; `headers` besides the usual ones."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = []


class Begin(Struct, frozen=True, gc=False):
    """Send the head of a stream of events; `headers` besides the usual ones."""

    headers: list[tuple[bytes, bytes]] = []


class Write(Struct, frozen=True, gc=False):
    """Send bytes of the stream; post Drained when all of them have left."""

    data: bytes


class End(Struct, frozen=True, gc=False):
    """The stream is complete."""


class Fail(Struct, frozen=True):
    """Send an error: an answer, or an error event and the end when the stream has begun."""

    error: errors.MindGWError
    begun: bool


Effect = LookUp | Recall | Fund | Answer | Begin | Write | End | Fail


class State(Enum):
    """How far a request has come."""

    __hash__ = object.__hash__  # an Enum's own is slow, and looks at names

    OPENED = "opened"  # its key or its body is still missing
    ATTACHED = "attached"  # its Idempotency-Key may name a request that runs or is over: it waits to hear
    WAITING = "waiting"  # stands in the queue
    FUNDING = "funding"  # waits for the database to say that somebody pays: with its slot, or in doubt before it stands in line
    SENT = "sent"  # on a worker, which has not answered yet
    RELAYING = "relaying"  # the answer is coming
    CLOSING = "closing"  # the client is served, the worker has not confirmed the end
    DONE = "done"


#: The states by themselves: to ask an Enum for a member costs more than a call.
OPENED, ATTACHED, WAITING, FUNDING, SENT, RELAYING, CLOSING, DONE = State
