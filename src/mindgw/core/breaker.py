"""Which workers are left alone because a model fails there: a table of states and events, and the rules about how many may be.

A *circuit* is what is known of one model on one worker: how its last requests ended. It trips when they fail in a row, or half of many do,
and nothing is sent there until a pause is over. Then one request is a probe: if it goes well all is as before, if not the pause is
twice as long. No more than half of those who serve a model are left alone; should more than half be, as others went away, nobody is
(whatever is wrong is wrong with all of them, and half of a fleet would break under the load of the whole). The only worker of a model is
left alone when nothing at all goes well there. Sources: Envoy's outlier detection (`max_ejection_percent`, panic threshold), LiteLLM's
cooldowns (a deployment without others). Pure: `now` is given, monotonic seconds.
"""

from collections import deque
from collections.abc import Collection, Iterable
from enum import StrEnum

#: Seconds for which an end counts, how many are remembered of a circuit, and how many say something of the share that fails.
WINDOW, RECENT, ENOUGH = 30.0, 20, 10
#: Seconds of the longest pause.
LONGEST = 60.0
#: Seconds after which a circuit that nobody wants to probe is forgotten.
FORGOTTEN = 600.0
NOBODY: frozenset[str] = frozenset()


class State(StrEnum):
    """What is sent to a worker for a model."""

    CLOSED = "closed"  # whatever comes
    OPEN = "open"  # nothing, until its pause is over
    HALF_OPEN = "half-open"  # one request, the probe
    PROBING = "probing"  # nothing, until it is known how the probe ended


class Event(StrEnum):
    """What can happen to a circuit."""

    TRIPPED = "tripped"
    RESTED = "rested"
    TRIED = "tried"
    GOOD = "good"
    BAD = "bad"
    VOID = "void"  # the probe ended, and nothing is known by that


_S, _E = State, Event
#: The last three are those of a probe: how requests end that were sent before the circuit tripped moves nothing.
TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.CLOSED: {_E.TRIPPED: _S.OPEN},
    _S.OPEN: {_E.RESTED: _S.HALF_OPEN},
    _S.HALF_OPEN: {_E.TRIED: _S.PROBING},
    _S.PROBING: {_E.GOOD: _S.CLOSED, _E.BAD: _S.OPEN, _E.VOID: _S.HALF_OPEN},
}
#: States in which nothing more is sent there.
SHUT = frozenset({_S.OPEN, _S.PROBING})
#: (worker id, model id).
Place = tuple[str, str]


class Circuit:
    """What is known of a model on a worker."""

    __slots__ = ("alone", "pause", "place", "recent", "state", "until")

    def __init__(self, place: Place, pause: float) -> None:
        self.place = place
        self.state = State.CLOSED
        #: (when, whether it went well) of the last requests, since one failed; the newest last.
        self.recent: deque[tuple[float, bool]] = deque(maxlen=RECENT)
        #: Seconds of the next pause, and when the last one is over.
        self.pause = pause
        self.until = 0.0
        #: Whether it tripped as the only one of its model.
        self.alone = False

    def step(self, event: Event) -> None:
        """KeyError when the table has no such arrow."""
        self.state = TRANSITIONS[self.state][event]

    def note(self, good: bool, now: float) -> None:
        """One more request ended."""
        recent = self.recent
        recent.append((now, good))
        while recent[0][0] < now - WINDOW:
            recent.popleft()

    @property
    def failed(self) -> int:
        """How many of its last requests failed."""
        return sum(not good for _when, good in self.recent)

    @property
    def row(self) -> int:
        """How many of them did so in a row, up to the last."""
        count = 0
        for _when, good in reversed(self.recent):
            if good:
                break
            count += 1
        return count


class Breaker:
    """All circuits in which something failed of late; what is not here is closed."""

    __slots__ = ("_circuits", "_rest", "_row", "changes", "tripped")

    def __init__(self, row: int = 3, rest: float = 5.0) -> None:
        """`row`: failures one after the other that trip a circuit; `rest`: seconds of its first pause."""
        self._row = row
        self._rest = rest
        # bounded: by the places where something failed within WINDOW, and those that are tripped
        self._circuits: dict[Place, Circuit] = {}
        #: Those of them that are not closed. Empty for most of a server's life, and looked at for every request.
        self.tripped: dict[Place, Circuit] = {}
        #: Counts what changed about them, for who remembers what `held` said.
        self.changes = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing failed of late: to be told of what goes well would change nothing."""
        return not self._circuits

    def tried(self, worker: str, model: str) -> Circuit | None:
        """A request is sent there. It is the probe of the circuit that is returned; `ended` or `void` must follow, once."""
        circuit = self.tripped.get((worker, model))
        if circuit is None or circuit.state is not State.HALF_OPEN:
            return None
        self._step(circuit, Event.TRIED)
        return circuit

    def ended(self, place: Place, good: bool, pool: Collection[str], now: float, probe: Circuit | None = None) -> bool:
        """A request ended there, well or by the engine's fault; `pool`: ids of all workers that might have had it. True: nothing is sent
        there from now on."""
        circuit = self._circuits.get(place)
        if circuit is None:
            if good:
                return False
            circuit = self._circuits[place] = Circuit(place, self._rest)
        if probe is circuit and circuit.state is State.PROBING:
            return self._probed(circuit, good, now)
        if circuit.state is not State.CLOSED:
            return False
        circuit.note(good, now)
        if good:
            if not circuit.failed:
                del self._circuits[place]
            return False
        return self._trip(circuit, pool, now)

    def void(self, probe: Circuit) -> None:
        """The probe is over, and it is not known whether the engine is well: the next request is another one."""
        if probe.state is State.PROBING:
            self._step(probe, Event.VOID)

    def held(self, places: Iterable[Place], present: Iterable[str], now: float) -> frozenset[str]:
        """Ids of the workers that take nothing. `places` are those of `tripped` whose workers are present and might serve the request,
        `present` all workers that might."""
        out = {place[0]: self.tripped[place] for place in places if self._is_shut(self.tripped[place], now)}
        if not out:
            return NOBODY
        seen: set[str] = set()
        for worker in present:
            seen.add(worker)
            if len(seen) >= 2 * len(out):
                return frozenset(out)
        alone = len(seen) == 1 and all(circuit.alone for circuit in out.values())
        return frozenset(out) if alone else NOBODY

    def sweep(self, now: float) -> None:
        """To be called now and then: what is long over is forgotten."""
        for place, circuit in list(self._circuits.items()):
            last = circuit.recent[-1][0] + WINDOW if circuit.state is State.CLOSED else circuit.until + FORGOTTEN
            if now > last and circuit.state is not State.PROBING:
                del self._circuits[place]
                self.changes += self.tripped.pop(place, None) is not None

    def _is_shut(self, circuit: Circuit, now: float) -> bool:
        if circuit.state is State.OPEN and now >= circuit.until:
            self._step(circuit, Event.RESTED)
        return circuit.state in SHUT

    def _step(self, circuit: Circuit, event: Event) -> None:
        circuit.step(event)
        self.changes += 1

    def _probed(self, circuit: Circuit, good: bool, now: float) -> bool:
        self._step(circuit, Event.GOOD if good else Event.BAD)
        if good:
            del self._circuits[circuit.place], self.tripped[circuit.place]
            return False
        self._open(circuit, now)
        return True

    def _trip(self, circuit: Circuit, pool: Collection[str], now: float) -> bool:
        count, failed = len(circuit.recent), circuit.failed
        if len(pool) <= 1:
            circuit.alone = True
            trips = count >= ENOUGH and failed == count
        else:
            circuit.alone = False
            others = {worker for worker, model in self.tripped if model == circuit.place[1] and worker in pool}
            trips = (circuit.row >= self._row or (count >= ENOUGH and 2 * failed >= count)) and 2 * (len(others) + 1) <= len(pool)
        if trips:
            self._step(circuit, Event.TRIPPED)
            self.tripped[circuit.place] = circuit
            self._open(circuit, now)
        return trips

    def _open(self, circuit: Circuit, now: float) -> None:
        circuit.until = now + circuit.pause
        circuit.pause = min(2 * circuit.pause, LONGEST)
