"""The life of a worker as the server sees it: a table of states and events, nothing else.

A worker is *ready* when requests may be sent to it. Whether it is busy is no state: its slots are all used. What is true of it at the same
time (its engine is down, its owner paused it, an operator drains it) does not stand here: whoever steps back to *ready* says it again.
"""

from enum import StrEnum


class State(StrEnum):
    """What a worker is."""

    CONNECTING = "connecting"  # its link is being authenticated
    PENDING = "pending"  # authenticated, but no operator has approved it yet
    READY = "ready"  # takes requests
    DRAINING = "draining"  # finishes what it has and takes nothing new: an operator or its own end wants it so
    PAUSED = "paused"  # the same, because whoever owns the box wants it for a while
    OFFLINE = "offline"  # no link, or its engine does not answer
    QUARANTINED = "quarantined"  # it said what cannot be true; an operator must look and release it
    LOCKED = "locked"  # its identity was used twice; an operator must look


class Event(StrEnum):
    """What can happen to a worker: first what its link does, then what its agent says, then what is decided here."""

    DIALLED = "dialled"
    WELCOMED = "welcomed"
    HELD = "held"
    LOST = "lost"
    ENGINE_UP = "engine_up"
    ENGINE_DOWN = "engine_down"
    DRAIN = "drain"
    PAUSE = "pause"
    RESUME = "resume"
    UNDRAIN = "undrain"
    ACCUSE = "accuse"
    RELEASE = "release"


_S, _E = State, Event
#: What may happen to a worker at any time once it was let in.
_SAID = (_E.ENGINE_UP, _E.ENGINE_DOWN, _E.DRAIN, _E.PAUSE, _E.RESUME, _E.UNDRAIN, _E.ACCUSE, _E.RELEASE)


def _deaf(state: State, **arrows: State) -> dict[Event, State]:
    """Nothing moves it but these events and the loss of its link."""
    return {**dict.fromkeys(_SAID, state), _E.LOST: _S.OFFLINE, **{Event(name): to for name, to in arrows.items()}}


TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.OFFLINE: {
        **_deaf(_S.OFFLINE, engine_up=_S.READY, drain=_S.DRAINING, pause=_S.PAUSED, accuse=_S.QUARANTINED),
        _E.DIALLED: _S.CONNECTING,
    },
    _S.CONNECTING: {_E.WELCOMED: _S.READY, _E.HELD: _S.PENDING, _E.LOST: _S.OFFLINE},
    _S.READY: _deaf(_S.READY, engine_down=_S.OFFLINE, drain=_S.DRAINING, pause=_S.PAUSED, accuse=_S.QUARANTINED),
    _S.PAUSED: _deaf(_S.PAUSED, resume=_S.READY, drain=_S.DRAINING, accuse=_S.QUARANTINED),
    _S.DRAINING: _deaf(_S.DRAINING, undrain=_S.READY, accuse=_S.QUARANTINED),
    _S.QUARANTINED: _deaf(_S.QUARANTINED, release=_S.READY),
    _S.PENDING: _deaf(_S.PENDING),
    _S.LOCKED: _deaf(_S.LOCKED, lost=_S.LOCKED),
}


class IllegalTransition(ValueError):
    """This event cannot happen to a worker in this state."""


def step(state: State, event: Event) -> State:
    """The state after `event`; raises IllegalTransition when the table has no such arrow."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event} cannot happen to a worker that is {state}") from None
