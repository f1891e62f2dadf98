"""What the client of one request gets: bytes of the engine in, effects for the lane out, and what was used along the way.

A delivery has no opinion about workers and time; the exchange tells it what came and when it is complete.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import carrier, fault, sse, usage
from mindgw.core.payload import Peek
from mindgw.gateway import relay
from mindgw.gateway.signals import Answer, Begin, Effect, End, Write
from mindgw_agent import wire

#: Largest error answer of an engine that is read, in bytes.
MAX_ERROR = 2**20
#: Events of an answer that hold no token: its beginning and its end. Where an engine counts its tokens, they are not taken for some.
UNSPOKEN = 2
#: Events beyond what is paid for that may be no tokens: roles, ends.
SLACK = 16
#: Why an answer is shorter than it might be.
CUT = {"cut": "quota"}
#: What one of two tries that run at once has come to: the fold of its answer, the engine's status, whether it is over.
Part = tuple[relay.StreamRelay | relay.Whole | None, int, bool]
UNBEGUN: Part = (None, 0, False)
_NO_FACTS: Mapping[str, str] = MappingProxyType({})


class Ending(Struct, frozen=True):
    """What a chunk of ours says of the answer that it stands in."""

    kind: str
    id: str
    model: str
    created: int

    def chunk(self, facts: Mapping[str, Any]) -> bytes:
        """The data of an event that carries `facts` and no text."""
        return carrier.chunk(self.kind, self.id, self.model, self.created, facts)


class Delivery:
    """One answer on its way."""

    __slots__ = ("_fold", "begun", "facts", "is_over", "paid", "spoken", "status")

    def __init__(self) -> None:
        #: Folds the answer; None until the engine's head came.
        self._fold: relay.StreamRelay | relay.Whole | None = None
        #: The engine's status; 0 until its head came.
        self.status = 0
        #: True when something of the answer has left for the client: nobody else can be asked any more.
        self.spoken = False
        #: True when the head of a stream has left for the client.
        self.begun = False
        #: Tokens that somebody pays for; 0: as many as come.
        self.paid = 0
        #: What the end of a stream tells of it, as its head could not.
        self.facts: Mapping[str, str] = _NO_FACTS
        #: True when nothing more may follow: there is a `fault`, or more passed by than is paid for, which an engine that keeps to its cap
        #: never comes to.
        self.is_over = False

    @property
    def started(self) -> bool:
        """True when the engine's head came."""
        return self._fold is not None

    @property
    def broke(self) -> bool:
        """True when its engine says that it could not do what it should."""
        return self.status >= 500

    @property
    def blame(self) -> str:
        """Whose fault it is, as the engine's error says; see `core.fault`. Only of an answer that came to its end."""
        assert self._fold is not None
        return fault.read(self.status, self._fold.raw()).blame if isinstance(self._fold, relay.Whole) else "engine"

    @property
    def between(self) -> bool:
        """True when a comment may be written: between events of a stream, or before the first."""
        return not isinstance(self._fold, relay.StreamRelay) or self._fold.between

    @property
    def fault(self) -> errors.MindGWError | None:
        """The error that the engine reported inside its stream; None while there is none."""
        found = self._fold.fault if isinstance(self._fold, relay.StreamRelay) else None
        return relay.error_of(found) if found is not None else None

    def delivered(self, known: usage.Tokens) -> usage.Tokens | None:
        """Tokens of an answer that was broken off: the events that reached its client, on top of the prompt as far as it is known. None
        when nothing did: an answer in one piece arrives whole or not at all."""
        fold = self._fold
        if not isinstance(fold, relay.StreamRelay) or not fold.events:
            return None
        if fold.tokens is None:
            return usage.bounded(known.prompt, fold.events, known.cached, "counted")
        # some engines say with each event how many tokens are in what was sent so far
        seen = fold.tokens
        return usage.bounded(seen.prompt or known.prompt, max(fold.events - UNSPOKEN, seen.completion), seen.cached, seen.source)

    def restart(self) -> None:
        """Another worker begins from the start; only while nothing is spoken."""
        self.turn(UNBEGUN)

    def turn(self, other: Part) -> Part:
        """Goes on with the answer of another worker, and returns how far this one has come; only while nothing is spoken."""
        mine = self._fold, self.status, self.is_over
        self._fold, self.status, self.is_over = other
        return mine

    def head(self, status: int, content_type: str, peek: Peek, limits: Limits, alias: str = "") -> None:
        """The engine's head; raises EngineFailed when a stream was asked for and this is none. `alias` is what the model is called in the
        answer, "" for what the engine calls it."""
        self.status = status
        good = 200 <= status < 300
        self._fold = relay.Whole(limits.answer if good else MAX_ERROR, alias)
        if good and peek.stream:
            if not content_type.startswith("text/event-stream"):
                raise errors.EngineFailed("The engine did not answer with a stream of events.")
            self._fold = relay.StreamRelay(peek.include_usage, alias)

    def feed(self, data: bytes) -> bytes:
        """What leaves for the client now; look at `is_over` afterwards. Raises EngineFailed when the answer is not one."""
        fold = self._fold
        assert fold is not None
        out = fold.feed(data)
        self.is_over = fold.fault is not None or 0 < self.paid < fold.events - SLACK
        return out

    def write(self, data: bytes) -> list[Effect]:
        """Writes to the stream, which begins with that when it has not."""
        if self.begun:
            return [Write(data)]
        self.begun = True
        return [Begin(), Write(data)]

    def complete(self, total: usage.Tokens, cut: bool, end: Callable[[], Ending]) -> list[Effect]:
        """The end of an answer that the agent calls complete; raises the error that it really is. `total` is what was used, of which the
        client hears as much as is paid for; `cut` is for an answer that ended where the quota did."""
        facts = {**self.facts, **CUT} if cut else self.facts
        if isinstance(self._fold, relay.StreamRelay):
            if not self._fold.between:
                raise errors.EngineFailed("The answer ended in the middle of an event.")
            if 0 < self.paid < total.completion:
                total = usage.bounded(total.prompt, self.paid, total.cached, total.source)
            why = sse.event(end().chunk(facts)) if facts else b""
            return [*self.write(why + self._fold.end(total) + sse.event(sse.DONE)), End()]
        assert self._fold is not None
        if not 200 <= self.status < 300:
            raise relay.error_of(fault.read(self.status, self._fold.raw()))
        return [Answer(200, relay.with_note(self._fold.answer(), facts) if facts else self._fold.answer())]

    def cut(self, total: usage.Tokens, answers: int, end: Ending) -> list[Effect]:
        """Ends a stream where what is paid for ends."""
        counts = {"prompt_tokens": total.prompt, "completion_tokens": total.completion, "total_tokens": total.prompt + total.completion}
        data = carrier.cut(end.kind, end.id, end.model, end.created, max(answers, 1), counts, {**self.facts, **CUT})
        return [*self.write(sse.event(data) + sse.event(sse.DONE)), End()]

    def produced(self) -> int | None:
        """Tokens that passed by so far; None for an answer in one piece."""
        return self._fold.events if isinstance(self._fold, relay.StreamRelay) else None

    def used(self, close: wire.Close | None, guess: usage.Tokens) -> usage.Tokens:
        """Tokens as the agent sums up what its engine reported (some report each choice apart), else as the engine's report passed by
        here, else as the agent counted them; without a word of it about that the events that passed by, on top of `guess`."""
        told = close.usage if close is not None else None
        if told is not None and told.source == "engine":
            return usage.bounded(told.prompt, told.completion, told.cached, told.source)
        seen = self._fold.tokens if self._fold is not None else None
        if seen is not None:
            return seen
        if told is not None:
            return usage.bounded(told.prompt, told.completion, told.cached, told.source)
        if isinstance(self._fold, relay.StreamRelay):
            return usage.bounded(guess.prompt, self._fold.events, 0, "counted" if close is None else "estimated")
        return guess
