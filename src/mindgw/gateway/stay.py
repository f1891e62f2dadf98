"""One request's business with the queue, from the moment it may stand in line until what it used is booked."""

from collections.abc import Callable, Generator

from msgspec.structs import replace

from mindgw import errors
from mindgw.clock import wall
from mindgw.core import carrier, sse, usage
from mindgw.core.routing import Where, both
from mindgw.gateway.admission import Ask, Head
from mindgw.gateway.course import Ground
from mindgw.gateway.moments import Samples
from mindgw.gateway.queue import LATER, Queue
from mindgw.gateway.rank import NOBODY
from mindgw.gateway.route import Ended, Needs, Outcome, Placement, attempts
from mindgw.gateway.ticket import Holder, Ticket

#: Header by which a client asks for news of the queue as events.
_EVENTS = b"x-mindgw-events"
#: Leisure of the queue beyond which a sign of life says nothing of places.
BUSTLE = 5.0
#: An estimate may be this much too long without anybody being turned away for it.
_DOUBT = 1.6


class Stay(Ticket):
    """The ticket of a request, and what the request does with it. What it returns as a placement belongs to the caller."""

    __slots__ = ("_ask", "_beside", "_head", "_leg", "_longest", "_policy", "_queue", "_spent", "stood")

    def __init__(self, queue: Queue, head: Head, ask: Ask, size: int, longest: float, holder: Holder) -> None:
        """`size` is that of the body, in bytes; `longest`: seconds that anybody may wait."""
        Ticket.__init__(self, head.request_id, ask.needs, ask.flow, holder)  # super() costs as much again
        self.size, self.prompt, self.cap = size, ask.prompt, ask.peek.max_tokens
        self._queue = queue
        self._head = head
        self._ask = ask
        self._longest = longest
        #: Decides whether another worker is tried; None before one came to nothing.
        self._policy: Generator[Needs, Ended, None] | None = None
        #: One of two tries that ran at once, which came to nothing while the other went on.
        self._beside: Ended | None = None
        #: Number of the leg of its course that it is on, and how many, from the first on, it has come to the end of.
        self._leg = ask.course.first if ask.course is not None else 0
        self._spent = 0
        #: Where it stood when its client was told so; None: that did not happen.
        self.stood: Samples | None = None

    @property
    def goal(self) -> tuple[str, Where]:
        """The model that it needs now, and where."""
        return self.needs.model, self.needs.where

    def join(self, body: bytes, now: float) -> Placement | None:
        """A slot, or None: it waits. Raises QueueFull, RateLimited, and TooLate when its deadline cannot be met."""
        identity = self._identity(body) if self._ask.again else b""
        placement = self._queue.join(self, now, identity)
        if placement is None and self.eta is not None:
            self._check(self.eta, identity, body, now)
        return placement

    def _check(self, eta: float, identity: bytes, body: bytes, now: float) -> None:
        """Whether a wait of so many seconds is worth it."""
        wish = self._ask.deadline
        longest = self._longest if wish is None else min(wish, self._longest)
        if eta > longest * _DOUBT:
            self._queue.vacate(self, identity or self._identity(body), now)
            whose = "the deadline of" if wish is not None and wish <= self._longest else "anybody may wait here:"
            raise errors.TooLate(f"The wait would be about {eta:.0f} s, longer than {whose} {longest:g} s.", retry_after=_later(eta))

    def later(self, now: float) -> float:
        """Seconds after which it makes sense to ask again, when the wait was in vain."""
        return self._queue.later(self, now)

    def notes(self, ended: Ended) -> None:
        """One of two tries came to nothing; what follows is for `goes_on` to say, should the other one do so too."""
        self._beside = ended

    def goes_on(self, ended: Ended, may: Callable[[Needs, float], bool], tries: int, ground: Ground) -> bool:
        """Whether another worker is tried after an attempt that came to nothing; see `route.attempts`. Where one leg of its course has come
        to its end, it goes on with the next."""
        if self._beside is not None:
            ended, self._beside = replace(ended, beside=self._beside), None
        if self._policy is None:
            self._policy = attempts(self.needs, may, tries)
            next(self._policy)
        try:
            self.needs = self._policy.send(ended)
        except StopIteration:
            while (leg := self._over(ground)) is not None:
                self.needs = self._turn(leg)
                if ended.outcome is Outcome.LOST or may(self.needs, ended.now):
                    return True
            return False
        if not ground.present(*self.goal) and (leg := self._next(ground)) is not None:
            self.needs = self._turn(leg)
        return True

    def again(self, now: float) -> Placement | None:
        """Another slot, or None, it waits; to be called when it goes on and its slot is free."""
        return self._queue.rejoin(self, now)

    def elsewhere(self, ground: Ground, now: float, *, in_vain: bool = False) -> bool:
        """Whether it stands in another line now, as nobody is left whom it waits for (or it waits `in_vain`), and there is somebody to
        whom it may go instead. Wake the queue afterwards."""
        if self._ask.course is None or not self.waiting or (not in_vain and ground.present(*self.goal)):
            return False
        leg = self._over(ground) if in_vain else self._next(ground)
        if leg is None:
            return False
        self._queue.move(self, now, self._turn(leg))
        return True

    def skips(self, ground: Ground) -> bool:
        """The same before it stands anywhere, for a leg that nobody can be asked on."""
        leg = self._over(ground)
        if leg is not None:
            self.needs = self._turn(leg)
        return leg is not None

    def _over(self, ground: Ground) -> int | None:
        """It has come to the end of a leg: number of the next one; None: there is none. None of them is come to twice."""
        self._spent = self._leg + 1
        return self._next(ground)

    def _next(self, ground: Ground) -> int | None:
        """Number of another leg of its course."""
        return self._ask.course.after(self._leg, self._spent, ground) if self._ask.course is not None else None

    def _turn(self, number: int) -> Needs:
        """It is on that leg of its course now; what it needs there."""
        assert self._ask.course is not None
        needs, leg = self.needs, self._ask.course.legs[number]
        self._leg, self._policy = number, None
        if leg.model == needs.model:
            return replace(needs, where=leg.where)
        # whose engine failed it with one model may do well with another one, but remembers nothing of it by that name
        return replace(needs, model=leg.model, where=leg.where, shun=NOBODY, traits=replace(needs.traits, prefix=None))

    def bind(self, ask: Ask, now: float) -> None:
        """Its caller may go to fewer places by now, as `ask` says. Wake the queue afterwards."""
        self._ask, self._policy = ask, None
        needs = replace(self.needs, where=both(self.needs.where, ask.caller.home))
        if self.waiting:
            self._queue.move(self, now, needs)
        else:
            self.needs = needs

    def hang_up(self, body: bytes, now: float) -> None:
        """Its client is gone: it leaves the line, and has its place again should the client come back in a moment."""
        if self.waiting:
            self._queue.vacate(self, self._identity(body), now)

    def leave(self, now: float) -> None:
        """It leaves the line, if it stands there."""
        self._queue.leave(self, now)

    def settle(self, used: usage.Tokens, now: float) -> None:
        """Books what was used; to be called before its slot is given to anybody else. Does nothing the second time."""
        if self.entry is not None:
            self._queue.settle(self, used.prompt, used.completion, now)

    def news(self, now: float) -> bytes:
        """What its client may hear while it waits: a comment, and an event if it asked for such. Nothing of places when they are so many
        that to know them all would take too long."""
        if self._queue.leisure > BUSTLE:
            return sse.PING
        outlook = self._queue.outlook(self, now)
        if self.stood is None:
            self.stood = Samples()
        self.stood.add(now, outlook.position, outlook.eta)
        eta = f" eta={outlook.eta:.0f}s" if outlook.eta is not None else ""
        comment = f": mindgw queue={outlook.position}{eta}\n".encode()
        if _value(self._head, _EVENTS) != b"1":
            return comment
        facts = {"queue": outlook.position, "eta_s": round(outlook.eta, 1) if outlook.eta is not None else None}
        return comment + sse.event(carrier.chunk(self._ask.needs.kind, self.id, self._ask.peek.model, int(wall()), facts))

    def _identity(self, body: bytes) -> bytes:
        return self._queue.identity(self, self._ask.path, body)


def _later(eta: float) -> float:
    return min(max(eta, 1.0), LATER)


def _value(head: Head, wanted: bytes) -> bytes:
    for name, value in head.headers:
        if name == wanted:
            return value
    return b""
