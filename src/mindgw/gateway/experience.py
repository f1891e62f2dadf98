"""What the gateway has seen of its workers, and what follows from it for the next request: how long it would take on each of them.

The fleet owns it. Nothing is learned of a seat that was chosen because there was no other: that costs nothing, and nobody asks.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from mindgw.core import score
from mindgw.core.affinity import Prefix, Prefixes, Sessions, numbers
from mindgw.core.learned import LOAD, Learned
from mindgw.core.score import BEGIN, Candidate
from mindgw_agent import wire

#: Seconds after which what is known is looked at anew.
_FRESH = 10.0
#: (worker, engine, model) and models that are remembered.
_KNOWN = 10_000
#: Tokens that an answer is expected to have as long as none was seen; how much the newest counts.
_ANSWER, _NEWEST = 256.0, 0.05
#: Tokens that must have been remembered before it is asked whether they were.
_TELLING = 64.0
#: Degrees from which on a GPU is slowed down, and from which on it hardly works; the share of memory beyond which nothing is loaded gladly.
_WARM, _HOT, _FULL = 83.0, 95.0, 0.95
#: Seconds that a round trip counts at most.
_FAR = 10.0
#: Bits of holders, and the share of a request's text that they remember.
Level = tuple[int, float]


class Traits(Struct, frozen=True, gc=False):
    """What a choice asks of a request."""

    #: Tokens of the prompt, estimated, 0 where nobody has looked; and the most that the answer may have.
    prompt: int = 0
    cap: int | None = None
    #: How it begins; None: nobody will remember that.
    prefix: Prefix | None = None
    #: Whose it is, and the conversation that it says it belongs to: (caller, its name); None for none.
    caller: str = ""
    session: tuple[str, str] | None = None
    #: Id of the caller's organisation.
    org: str = ""


NOTHING = Traits()


class Choice(Struct, frozen=True, gc=False):
    """Why a worker was chosen. Tokens and seconds are those that were expected."""

    strategy: str
    #: Name of the model that what is learned goes by.
    model: str
    #: (worker id, seconds that they are compared by) of all that were looked at, when that decided.
    considered: tuple[tuple[str, float], ...]
    #: Of the one that was taken.
    prompt: int
    cached: float
    cold: float
    ahead: float
    reading: float
    #: Where the end of its prompt is in all that the seat was sent to read.
    mark: float


class Past:
    """What is known of a seat beyond its report. Seconds are monotonic."""

    __slots__ = ("bit", "epoch", "known", "number", "read", "read_at", "sent")

    def __init__(self) -> None:
        #: Model -> what is known of it here.
        # bounded: by the models of its reports
        self.known: dict[str, Known] = {}
        #: Its number in the index of prefixes, of which epoch, and its bit there.
        self.number = self.epoch = -1
        self.bit = 0
        #: Seconds of reading that it was sent so far, those that are certainly behind it, and when they were.
        self.sent = self.read = self.read_at = 0.0


class Seat(Protocol):
    """One engine of a worker."""

    @property
    def owner(self) -> str: ...
    @property
    def used(self) -> int: ...
    @property
    def turn(self) -> int: ...
    @property
    def share(self) -> float: ...
    @property
    def past(self) -> Past: ...
    @property
    def engine(self) -> wire.EngineReport: ...
    @property
    def worker(self) -> Any: ...
    def model(self, name: str) -> wire.Model | None: ...


class Known:
    """What is known of one model on one seat."""

    __slots__ = ("at", "candidate", "elsewhere", "learned", "line", "loading", "named", "report", "sent", "tells")

    def __init__(self, learned: Learned, line: "Line") -> None:
        self.learned = learned
        #: Of all workers that have the model.
        self.line = line
        self.candidate = Candidate()
        #: When that was brought up to date, with which report, and who else works there by that.
        self.at = float("-inf")
        self.report: wire.EngineReport | None = None
        self.elsewhere = 0
        #: With which report a request was sent here last, and until when the model is probably being loaded for that.
        self.sent: wire.EngineReport | None = None
        self.loading = 0.0
        #: Whether the model has to be loaded, as the report has it.
        self.named = False
        #: Whether the engine ever told how much it remembered.
        self.tells = False


class Line(Struct, gc=False):
    """What is known of a model wherever it is."""

    learned: Learned
    #: Tokens of an answer.
    answer: float = _ANSWER


class Experience:
    """Of all workers. Lives as long as the server."""

    def __init__(self) -> None:
        self.prefixes = Prefixes()
        self.sessions = Sessions()
        #: Survives the sessions of workers; longest unmet first.
        self._learned: OrderedDict[tuple[str, str, str], Learned] = OrderedDict()
        self._lines: OrderedDict[str, Line] = OrderedDict()
        #: Number -> seat, of one epoch.
        # bounded: by the numbers of an epoch
        self._numbers: dict[int, Any] = {}
        self._epoch = self.prefixes.epoch

    # -- before -------------------------------------------------------------------------------------------------------

    def levels(self, prefix: Prefix) -> list[Level]:
        """Who remembers which share of how a request begins, most first."""
        ends, size = prefix.ends, prefix.size
        return [(holders, ends[depth - 1] / size) for holders, depth in self.prefixes.match(prefix.hashes)]

    def holders(self, levels: Sequence[Level], most: int) -> list[Any]:
        """The seats that remember most, no more than `most` of them; some may have left."""
        found: list[Any] = []
        for bits, _ in levels:
            found += [self._numbers[number] for number in numbers(bits, most - len(found)) if number in self._numbers]
            if len(found) >= most:
                break
        return found

    def totals(self, seats: Sequence[Seat], model: str, traits: Traits, levels: Sequence[Level], now: float) -> list[float]:
        """What each of them would take, in seconds; see `core.score`."""
        prompt, epoch, total = float(traits.prompt), self.prefixes.epoch, score.total
        answer, found = -1.0, []
        for seat in seats:
            past = seat.past
            known = past.known.get(model)
            if known is None or seat.engine is not known.report or now - known.at > _FRESH:
                known = self._renew(seat, model, now)
            if answer < 0.0:
                answer = _answer(known, traits)
            candidate = known.candidate
            left = past.sent - past.read - (now - past.read_at)
            candidate.ahead = left if left > 0.0 else 0.0  # noqa: FURB136 (max() is a call)
            candidate.used = seat.used + known.elsewhere
            if known.named:
                candidate.cold = _cold(known, now)
            if levels and past.epoch == epoch:
                candidate.cached = prompt * known.learned.trust * _shared(past.bit, levels)
            else:
                candidate.cached = 0.0
            found.append(total(candidate, prompt, answer))
        return found

    def _meet(self, seat: Seat, model: str) -> Known:
        """Somebody of whom nothing was asked so far."""
        key = (seat.owner, seat.engine.id, model)
        learned, line = self._learned.get(key), self._lines.get(model)
        if learned is None:
            learned = self._learned[key] = Learned()
        if line is None:
            line = self._lines[model] = Line(Learned())
        self._learned.move_to_end(key)
        self._lines.move_to_end(model)
        if len(self._learned) > _KNOWN:
            self._learned.popitem(last=False)
        if len(self._lines) > _KNOWN:
            self._lines.popitem(last=False)
        known = seat.past.known[model] = Known(learned, line)
        return known

    def _renew(self, seat: Seat, model: str, now: float) -> Known:
        """What a report says, and what fades with time."""
        known = seat.past.known.get(model) or self._meet(seat, model)
        known.report, known.at, known.elsewhere = seat.engine, now, seat.engine.elsewhere
        offer = seat.model(model)
        known.named = offer is not None and not offer.loaded
        known.learned.fade(now)
        candidate, worker = known.candidate, seat.worker
        candidate.cold = 0.0
        candidate.rtt = score.sound(worker.rtt, _FAR) if worker.rtt is not None else 0.0
        candidate.pressure = max((_pressure(gpu, loads=known.named) for gpu in worker.gpus), default=0.0)
        _set_speed(known)
        return known

    # -- when one is taken --------------------------------------------------------------------------------------------

    def take(self, seat: Seat, model: str, traits: Traits, levels: Sequence[Level], chosen: tuple[str, Any], now: float) -> Choice:
        """To be called with the seat that the request goes to, as it does; `chosen`: the strategy, and what was considered."""
        past, prefix = seat.past, traits.prefix
        if prefix is not None and past.epoch != self.prefixes.epoch:
            self._number(seat)
        if not chosen[1]:  # not all rules have looked at it
            self.totals((seat,), model, traits, levels, now)
        known = past.known[model]
        candidate = known.candidate
        cached = candidate.cached
        if prefix is not None:
            self.prefixes.note(prefix.hashes, past.number)
        reading = (traits.prompt - cached + BEGIN) * candidate.prefill
        if candidate.ahead <= 0.0:
            past.read, past.read_at = past.sent, now
        past.sent += reading
        if candidate.cold > 0.0 and known.loading <= now:
            known.loading = now + candidate.cold
        known.sent = seat.engine
        return Choice(chosen[0], model, chosen[1], traits.prompt, cached, candidate.cold, candidate.ahead, reading, past.sent)

    def spared(self, seat: Seat, choice: Choice) -> None:
        """Nothing of it was begun there: nobody waits until it is read. How its prompt begins may be believed to be known there."""
        past = seat.past
        if choice.mark > past.read:
            past.read = min(past.read + choice.reading, past.sent)

    def _number(self, seat: Seat) -> None:
        past = seat.past
        past.number = self.prefixes.holder()
        past.bit = 1 << past.number
        if self._epoch != self.prefixes.epoch:
            self._numbers.clear()
        past.epoch = self._epoch = self.prefixes.epoch
        self._numbers[past.number] = seat

    def left(self, seat: Seat) -> None:
        """It is gone, and what it remembered."""
        if self._numbers.get(seat.past.number) is seat:
            del self._numbers[seat.past.number]
            self.prefixes.leave(seat.past.number)

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def heard(self, seat: Seat, choice: Choice, seconds: float, now: float) -> None:
        """The first token of a stream came so many seconds after its request was sent."""
        past, known = seat.past, seat.past.known.get(choice.model)
        if known is None:
            return
        if choice.mark > past.read:
            past.read, past.read_at = choice.mark, now
        candidate, expected = known.candidate, choice.ahead + choice.reading
        if choice.cold > 0.0:
            known.learned.has_loaded(seconds - expected)
            known.loading = min(known.loading, now)
        elif choice.reading > 0.0 and choice.prompt:
            # what it was expected to take per token when it was sent may have changed since
            tokens = expected * (choice.prompt - choice.cached + BEGIN) / choice.reading
            for learned in (known.learned, known.line.learned):
                learned.has_read(tokens, seconds - candidate.rtt, tokens * candidate.prefill)
        _set_speed(known)

    def outrun(self, seat: Seat, choice: Choice, seconds: float) -> None:
        """No first token came in so many seconds, and nobody waits for it any longer. It would have taken longer yet: that is said of a
        worker that is slower than was expected, and nothing of one that had no time to show what it can."""
        known = seat.past.known.get(choice.model)
        expected = choice.ahead + choice.reading
        if known is None or choice.cold > 0.0 or choice.reading <= 0.0 or not choice.prompt or seconds - known.candidate.rtt <= expected:
            return
        tokens = expected * (choice.prompt - choice.cached + BEGIN) / choice.reading
        for learned in (known.learned, known.line.learned):
            learned.has_read(tokens, seconds - known.candidate.rtt, tokens * known.candidate.prefill)
        _set_speed(known)

    def ended(self, seat: Seat, choice: Choice, tokens: int, seconds: float, *, failed: bool) -> None:
        """A try is over: so many tokens of an answer were written in so many seconds."""
        known = seat.past.known.get(choice.model)
        if known is None:
            return
        known.learned.ended(failed)
        if tokens > 0:
            line, expected = known.line, tokens * known.candidate.decode
            for learned in (known.learned, line.learned):
                learned.has_written(tokens, seconds, expected)
            line.answer += _NEWEST * (tokens - line.answer)
        _set_speed(known)

    def remembered(self, seat: Seat, choice: Choice, tokens: int) -> None:
        """So many tokens of the prompt its engine says that it remembered; one that never says so is believed to."""
        known = seat.past.known.get(choice.model)
        if known is not None:
            known.tells = known.tells or tokens > 0
            if known.tells and choice.cached >= _TELLING:
                known.learned.has_remembered(tokens, choice.cached / max(known.learned.trust, 0.01))


def _answer(known: Known, traits: Traits) -> float:
    expected = known.line.answer
    return expected if traits.cap is None or expected <= traits.cap else traits.cap


def _shared(bit: int, levels: Sequence[Level]) -> float:
    for holders, share in levels:
        if holders & bit:
            return share
    return 0.0


def _cold(known: Known, now: float) -> float:
    """Seconds until a model that has to be loaded is. Who was sent a request since the report has begun."""
    if known.sent is known.report:
        return max(0.0, known.loading - now)
    return known.learned.load or known.line.learned.load or LOAD


def _pressure(gpu: wire.Gpu, *, loads: bool) -> float:
    heat = (gpu.temperature - _WARM) / (_HOT - _WARM)
    full = (gpu.memory_used / gpu.memory_total - _FULL) / (1 - _FULL) if loads and gpu.memory_total else 0.0
    return score.sound(max(heat, full, 0.0), 1.0)


def _set_speed(known: Known) -> None:
    learned, others, candidate = known.learned, known.line.learned, known.candidate
    candidate.prefill = learned.prefill(others.prefill())
    candidate.decode = learned.decode(others.decode())
    candidate.errors = learned.errors
