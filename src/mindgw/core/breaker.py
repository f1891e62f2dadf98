"""Which engines are left alone because a model fails there: a table of states and events, and the rules about how many may be.

A *circuit* is what is known of one model on one engine: how its last requests ended. It trips when they fail in a row, or half of many do,
and nothing is sent there until a pause is over. Then one request is a probe: if it goes well all is as before, if not the pause is
twice as long. No more than half of those who serve a model are left alone; should more than half be, as others went away, nobody is
(whatever is wrong is wrong with all of them, and half of a fleet would break under the load of the whole). The only engine of a model is
left alone when nothing at all goes well there. Sources: Envoy's outlier detection (`max_ejection_percent`, panic threshold), LiteLLM's
cooldowns (a deployment without others).

What fails may be the request, and whoever sends it may send many. So an engine is never left alone on the word of one caller while others
are about: it takes two organisations; where only one is about, two people; where only one person is, two of their keys, if these are told
apart, since many programs may share a person that stands for all; where there is only one, that one. Nobody can know who
will be about, so whoever comes for the model closes what tripped on the word of others that is not enough any more. For the same reason a
request that failed on two engines, and on none went well, says nothing of them (`withdraw`), and two probes of the same caller count as
one. An organisation that has not seen the only engine fail may find out, the first pause after it did. Pure: `now` is given, monotonic
seconds.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

#: Seconds for which an end counts, how many are remembered of a circuit, and how many say something of the share that fails.
WINDOW, RECENT, ENOUGH = 30.0, 20, 10
#: Seconds of the longest pause.
LONGEST = 60.0
#: Seconds after which a probe of which nothing is known has another one beside it: of the only engine of a model, and of one of several.
PATIENCE, LONG_PATIENCE = 5.0, 30.0
NEVER = float("inf")
#: Seconds after which a circuit that nobody wants to probe is forgotten.
FORGOTTEN = 600.0


class State(StrEnum):
    """What is sent to an engine for a model."""

    CLOSED = "closed"  # whatever comes
    OPEN = "open"  # nothing, until its pause is over
    HALF_OPEN = "half-open"  # one request, the probe
    PROBING = "probing"  # nothing, until it is known how the probe ended, or that took too long


class Event(StrEnum):
    """What can happen to a circuit."""

    TRIPPED = "tripped"
    RESTED = "rested"
    TRIED = "tried"
    GOOD = "good"
    BAD = "bad"
    VOID = "void"  # the probe ended, and nothing is known by that
    LATE = "late"  # nothing is known of it yet
    CLEARED = "cleared"  # those who said that it fails are not enough


_S, _E = State, Event
#: How requests end that were sent before the circuit tripped moves nothing.
TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.CLOSED: {_E.TRIPPED: _S.OPEN},
    _S.OPEN: {_E.RESTED: _S.HALF_OPEN, _E.CLEARED: _S.CLOSED},
    # a probe that took too long may be under way
    _S.HALF_OPEN: {_E.TRIED: _S.PROBING, _E.GOOD: _S.CLOSED, _E.BAD: _S.OPEN, _E.CLEARED: _S.CLOSED},
    _S.PROBING: {_E.GOOD: _S.CLOSED, _E.BAD: _S.OPEN, _E.VOID: _S.HALF_OPEN, _E.LATE: _S.HALF_OPEN, _E.CLEARED: _S.CLOSED},
}
#: States in which nothing more is sent there.
SHUT = frozenset({_S.OPEN, _S.PROBING})
#: (worker id, engine id): the engines of one worker are as separate as those of several.
Seat = tuple[str, str]
#: Engine, model id.
Place = tuple[Seat, str]
NOBODY: frozenset[Seat] = frozenset()


class Who(NamedTuple):
    """Who sent a request: of an organisation a person, and of one that stands for many, such as a team, a key."""

    org: str
    person: str
    key: str = ""


#: What no caller can be blamed for has the word of everybody.
ALL = Who("", "")
NO_WORD: frozenset[Who] = frozenset()
T = TypeVar("T")


class _Latest(Generic[T]):
    """The last two that came, of any number, and when."""

    __slots__ = ("_first", "_second", "_then", "_when")

    def __init__(self) -> None:
        self._first: T | None = None
        self._second: T | None = None
        self._when = self._then = 0.0

    def note(self, one: T, now: float) -> None:
        if one != self._first:
            self._second, self._then, self._first = self._first, self._when, one
        self._when = now

    def has_others(self, one: T, since: float) -> bool:
        """Whether another one came."""
        return (self._first not in (None, one) and self._when >= since) or (self._second not in (None, one) and self._then >= since)


class _Crowd:
    """Who came for a model of late."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        #: Organisations, people of them, keys of these.
        self._latest: tuple[_Latest[Sequence[str]], ...] = (_Latest(), _Latest(), _Latest())

    def note(self, who: Who, now: float) -> None:
        if who is not ALL:
            for depth, latest in enumerate(self._latest, 1):
                latest.note(who[:depth], now)

    def believes(self, word: Collection[Who], now: float) -> bool:
        """Whether these are enough to leave an engine alone because of what happened to them."""
        if ALL in word:
            return True
        one, since = next(iter(word)), now - WINDOW
        for depth, latest in enumerate(self._latest, 1):
            if len({who[:depth] for who in word}) > 1:
                return True
            if latest.has_others(one[:depth], since):
                return False
        return True


class Probe:
    """A request that shows whether a model is well again."""

    __slots__ = ("circuit",)

    def __init__(self, circuit: "Circuit") -> None:
        self.circuit = circuit


class End(NamedTuple):
    """How a request ended."""

    when: float
    good: bool
    who: Who


class Circuit:
    """What is known of a model on an engine."""

    __slots__ = ("alone", "late", "pause", "place", "probe", "recent", "since", "spoiler", "state", "until", "word")

    def __init__(self, place: Place, pause: float) -> None:
        self.place = place
        self.state = State.CLOSED
        #: The last requests, since one failed; the newest last.
        self.recent: deque[End] = deque(maxlen=RECENT)
        #: Seconds of the next pause, when the last one began, and when it is over.
        self.pause = pause
        self.since = self.until = 0.0
        #: Whether it tripped as the only one of its model, and on whose word.
        self.alone = False
        # bounded: by `recent`, and two for each pause
        self.word = NO_WORD
        #: The newest probe, and when there may be another one beside it: known once somebody else came. And the last one that failed.
        self.probe: Probe | None = None
        self.late = NEVER
        self.spoiler: End | None = None

    def step(self, event: Event) -> None:
        """KeyError when the table has no such arrow."""
        self.state = TRANSITIONS[self.state][event]

    def note(self, end: End) -> None:
        """One more request ended."""
        recent = self.recent
        recent.append(end)
        while recent[0].when < end.when - WINDOW:
            recent.popleft()

    @property
    def failed(self) -> int:
        """How many of its last requests failed."""
        return sum(not end.good for end in self.recent)

    def is_news_to(self, who: Who) -> bool:
        """Whether nobody of that organisation has said that it fails."""
        return ALL not in self.word and all(one.org != who.org for one in self.word)

    def failing(self, row: int) -> frozenset[Who]:
        """Those whose requests failed so often that it should trip: `row` of them one after the other, or half of many; nobody when it
        should not."""
        ends, failed = self.recent, [end for end in self.recent if not end.good]
        if len(ends) >= ENOUGH and (len(failed) == len(ends) if self.alone else 2 * len(failed) >= len(ends)):
            word = _word(failed, ENOUGH if self.alone else ENOUGH // 2)
            if word:
                return word
        return NO_WORD if self.alone else _word(list(takewhile(lambda end: not end.good, reversed(ends))), row)


def _word(failed: Sequence[End], needed: int) -> frozenset[Who]:
    """Those to whom that happened, if it was often enough. Of several none has more than half of a say: who fails all the time needs more
    than somebody else's mishap."""
    if len(failed) < needed:
        return NO_WORD
    word = frozenset(end.who for end in failed)
    if len(word) > 1 and ALL not in word:
        depth = next(depth for depth in range(1, len(ALL) + 1) if len({who[:depth] for who in word}) > 1)
        says = Counter(end.who[:depth] for end in failed)
        if sum(min(count, (needed + 1) // 2) for count in says.values()) < needed:
            return NO_WORD
    return word


class Breaker:
    """All circuits in which something failed of late; what is not here is closed."""

    __slots__ = ("_circuits", "_crowds", "_rest", "_row", "changes", "tripped")

    def __init__(self, row: int = 3, rest: float = 5.0) -> None:
        """`row`: failures one after the other that trip a circuit; `rest`: seconds of its first pause."""
        self._row = row
        self._rest = rest
        # bounded: by the places where something failed within WINDOW, and those that are tripped
        self._circuits: dict[Place, Circuit] = {}
        #: model id -> who comes for it, since something failed there.
        # bounded: by `_circuits`
        self._crowds: dict[str, _Crowd] = {}
        #: Those of them that are not closed. Empty for most of a server's life, and looked at for every request.
        self.tripped: dict[Place, Circuit] = {}
        #: Counts what changed about them, for who remembers what `held` said.
        self.changes = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing failed of late: to be told of what goes well would change nothing."""
        return not self._circuits

    def comes(self, models: Iterable[str], who: Who, now: float) -> None:
        """Somebody asks for a model, or waits for it, that goes by one of these ids. To be called unless it is quiet."""
        for model in models:
            crowd = self._crowds.get(model)
            if crowd is None:
                continue
            crowd.note(who, now)
            for circuit in [each for place, each in self.tripped.items() if place[1] == model]:
                if not crowd.believes(circuit.word, now):
                    self._clear(circuit)
                elif circuit.alone and circuit.state is State.OPEN and now >= circuit.since + self._rest and circuit.is_news_to(who):
                    circuit.until = now
                    self.changes += 1

    def tried(self, place: Place) -> Probe | None:
        """A request is sent there. It is the probe that is returned; `ended` or `void` must follow, once."""
        circuit = self.tripped.get(place)
        if circuit is None or circuit.state is not State.HALF_OPEN:
            return None
        self._step(circuit, Event.TRIED)
        circuit.late, circuit.probe = NEVER, Probe(circuit)
        return circuit.probe

    def ended(self, place: Place, good: bool, pool: Collection[Seat], now: float, probe: Probe | None = None, who: Who = ALL) -> bool:
        """A request ended there, well or by the engine's fault; `pool`: all engines that might have had it. True: nothing is sent
        there from now on."""
        circuit = self._circuits.get(place)
        if circuit is None:
            if good:
                return False
            circuit = self._circuits[place] = Circuit(place, self._rest)
        end = End(now, good, who)
        if not good:
            self._crowds.setdefault(place[1], _Crowd()).note(who, now)
        if circuit.state is not State.CLOSED:
            # how a probe ended that took too long is still worth knowing
            is_probe = probe is not None and probe.circuit is circuit and circuit.state is not State.OPEN
            return is_probe and self._probed(circuit, end, probe is circuit.probe)
        circuit.note(end)
        if good:
            self._drop_if_well(circuit)
            return False
        return self._trip(circuit, pool, now)

    def withdraw(self, place: Place, end: End) -> None:
        """It was the request's fault that it failed there; `end` as it was given to `ended`."""
        circuit = self._circuits.get(place)
        if circuit is None:
            return
        if circuit.state is State.OPEN and circuit.spoiler == end:
            circuit.until, circuit.pause, circuit.spoiler = end.when, max(self._rest, circuit.pause / 2), None
            self.changes += 1
        elif end in circuit.recent:
            circuit.recent.remove(end)
            if circuit.state is State.CLOSED:
                self._drop_if_well(circuit)
            elif circuit.spoiler is None:
                word = circuit.failing(self._row)
                if not word or not self._crowds[place[1]].believes(word, end.when):
                    self._clear(circuit)

    def void(self, probe: Probe) -> None:
        """The probe is over, and it is not known whether the engine is well: the next request is another one."""
        circuit = probe.circuit
        if circuit.state is State.PROBING and circuit.probe is probe:
            self._step(circuit, Event.VOID)

    def shuts(self, place: Place) -> float:
        """Until when what `held` says of it stays so, unless something happens."""
        circuit = self.tripped[place]
        return circuit.until if circuit.state is State.OPEN else circuit.late if circuit.state is State.PROBING else NEVER

    def held(self, places: Iterable[Place], present: Iterable[Seat], now: float) -> frozenset[Seat]:
        """The engines that take nothing. `places` are those of `tripped` whose engines are present and might serve the request, `present`
        all engines that might."""
        out = {place[0]: self.tripped[place] for place in places if self._is_shut(self.tripped[place], now)}
        if not out:
            return NOBODY
        seen: set[Seat] = set()
        for seat in present:
            seen.add(seat)
            if len(seen) >= 2 * len(out):
                return frozenset(out)
        alone = len(seen) == 1 and all(circuit.alone for circuit in out.values())
        return frozenset(out) if alone else NOBODY

    def sweep(self, now: float) -> None:
        """To be called now and then: what is long over is forgotten."""
        for place, circuit in list(self._circuits.items()):
            last = circuit.recent[-1].when + WINDOW if circuit.state is State.CLOSED else circuit.until + FORGOTTEN
            if now > last and circuit.state is not State.PROBING:
                del self._circuits[place]
                self.changes += self.tripped.pop(place, None) is not None
        if len(self._crowds) > 0:
            failing = {model for _seat, model in self._circuits}
            for model in self._crowds.keys() - failing:
                del self._crowds[model]

    def _is_shut(self, circuit: Circuit, now: float) -> bool:
        if circuit.state is State.OPEN and now >= circuit.until:
            self._step(circuit, Event.RESTED)
        elif circuit.state is State.PROBING:
            if circuit.late == NEVER:
                circuit.late = now + (PATIENCE if circuit.alone else LONG_PATIENCE)
            elif now >= circuit.late:
                self._step(circuit, Event.LATE)
        return circuit.state in SHUT

    def _step(self, circuit: Circuit, event: Event) -> None:
        circuit.step(event)
        self.changes += 1

    def _clear(self, circuit: Circuit) -> None:
        """Whatever is said of it is not enough."""
        self._step(circuit, Event.CLEARED)
        del self.tripped[circuit.place]
        circuit.pause, circuit.spoiler, circuit.word = self._rest, None, NO_WORD
        self._drop_if_well(circuit)

    def _drop_if_well(self, circuit: Circuit) -> None:
        if not circuit.failed:
            del self._circuits[circuit.place]

    def _probed(self, circuit: Circuit, end: End, is_last: bool) -> bool:
        if end.good:
            self._step(circuit, Event.GOOD)
            del self._circuits[circuit.place], self.tripped[circuit.place]
            return False
        spoiler = circuit.spoiler
        if spoiler is not None and not self._crowds[circuit.place[1]].believes({spoiler.who, end.who}, end.when):
            if is_last and circuit.state is State.PROBING:
                self._step(circuit, Event.VOID)
            return False
        self._step(circuit, Event.BAD)
        circuit.spoiler, circuit.word = end, circuit.word | {end.who} if spoiler is None else frozenset((spoiler.who, end.who))
        self._open(circuit, end.when)
        return True

    def _trip(self, circuit: Circuit, pool: Collection[Seat], now: float) -> bool:
        circuit.alone = len(pool) <= 1
        word = circuit.failing(self._row)
        if not word or not self._crowds[circuit.place[1]].believes(word, now):
            return False
        if not circuit.alone:
            others = {seat for seat, model in self.tripped if model == circuit.place[1] and seat in pool}
            if 2 * (len(others) + 1) > len(pool):
                return False
        circuit.word = word
        self._step(circuit, Event.TRIPPED)
        self.tripped[circuit.place] = circuit
        self._open(circuit, now)
        return True

    def _open(self, circuit: Circuit, now: float) -> None:
        circuit.since, circuit.until = now, now + circuit.pause
        circuit.pause = min(2 * circuit.pause, LONGEST)
