"""Where admitted requests wait for a slot: first come, first served, per model.

The order is one line for each (model, kind): a head that no free worker can serve never blocks the head of another line.
The fair queue takes this room over; its seams stay: `join`, `rejoin`, `leave`, `wake`, and the `place` that it is handed.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from mindgw import errors
from mindgw.gateway.route import Needs, Placement


class Payer(Protocol):
    """Whose request it is, as far as the order of the queue may depend on it."""

    @property
    def key_id(self) -> str: ...
    @property
    def priority(self) -> str: ...


class Ticket:
    """One request's place in the queue; the same one however often it comes back."""

    __slots__ = ("grant", "needs", "number", "payer", "size", "waiting")

    def __init__(self, needs: Needs, payer: Payer, size: int, grant: Callable[[Placement], None]) -> None:
        #: What it needs now; changes when a worker turned it down. Only while it does not wait.
        self.needs = needs
        self.payer = payer
        #: Bytes that it keeps in memory while it waits.
        self.size = size
        #: Called once with the slot when it is this ticket's turn; the receiver owns the slot from then on.
        self.grant = grant
        #: Order of arrival; negative for those that came back.
        self.number = 0
        #: True while it stands in a line.
        self.waiting = False


class Queue:
    """First-in-first-out lines, bounded in requests and in the bytes of their bodies."""

    def __init__(self, place: Callable[[Needs], Placement | None], capacity: int, memory: int) -> None:
        self._place = place
        self._capacity = capacity
        self._memory = memory
        #: (model, kind) -> tickets by number, oldest first; a line without tickets is removed.
        self._lines: dict[tuple[str, str], OrderedDict[int, Ticket]] = {}
        #: The last numbers given out at the back and at the front: who comes back is older than all who wait.
        self._numbers = self._front = 0
        self.waiting = 0
        #: Bytes that those who wait keep in memory.
        self.held = 0
        #: True while `wake` is at work: slots that become free meanwhile are seen by its next round.
        self._waking = False
        self._again = False

    def join(self, ticket: Ticket) -> Placement | None:
        """A slot at once when one is free and nobody waits for it; otherwise the ticket stands in line. Raises QueueFull."""
        line = self._lines.get(_line(ticket))
        if line is None and (placement := self._place(ticket.needs)) is not None:
            return placement
        if self.waiting >= self._capacity or self.held + ticket.size > self._memory:
            raise errors.QueueFull(f"The queue is full: {self.waiting} requests are waiting.", retry_after=5)
        self._numbers += 1
        ticket.number = self._numbers
        self._stand(ticket)
        return None

    def rejoin(self, ticket: Ticket) -> Placement | None:
        """As `join`, for a ticket whose turn came to nothing: it goes back to the head and is never refused."""
        if (placement := self._place(ticket.needs)) is not None:
            return placement
        self._front -= 1
        ticket.number = self._front
        self._stand(ticket)
        self._lines[_line(ticket)].move_to_end(ticket.number, last=False)
        return None

    def leave(self, ticket: Ticket) -> None:
        """Takes a ticket out; nothing happens when it does not wait."""
        if not ticket.waiting:
            return
        ticket.waiting = False
        self.waiting -= 1
        self.held -= ticket.size
        line = self._lines[_line(ticket)]
        del line[ticket.number]
        if not line:
            del self._lines[_line(ticket)]

    def position(self, ticket: Ticket) -> int:
        """1 for the head of its line; 0 when it does not wait. Costs the length of the line."""
        if not ticket.waiting:
            return 0
        return list(self._lines[_line(ticket)]).index(ticket.number) + 1

    def wake(self) -> None:
        """Gives every slot that is free to the oldest ticket that it can serve."""
        self._again = True
        if self._waking:
            return
        self._waking = True
        try:
            while self._again:
                self._again = False
                self._round()
        finally:
            self._waking = False

    def _round(self) -> None:
        """Serves the lines head by head, the oldest head first; a line whose head cannot be placed is left alone."""
        heads = [(next(iter(line)), key) for key, line in self._lines.items()]
        heapq.heapify(heads)
        while heads:
            _, key = heapq.heappop(heads)
            line = self._lines.get(key)
            if line is None or (placement := self._place(next(iter(line.values())).needs)) is None:
                continue
            head = next(iter(line.values()))
            self.leave(head)
            head.grant(placement)
            if line:
                heapq.heappush(heads, (next(iter(line)), key))

    def _stand(self, ticket: Ticket) -> None:
        ticket.waiting = True
        self.waiting += 1
        self.held += ticket.size
        self._lines.setdefault(_line(ticket), OrderedDict())[ticket.number] = ticket


def _line(ticket: Ticket) -> tuple[str, str]:
    return ticket.needs.model, ticket.needs.kind
