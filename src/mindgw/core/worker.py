"""The life of a worker as the server sees it: a table of states and events, nothing else.

A worker is *ready* when requests may be sent to it. Whether it is busy is no state: its slots are all used.
"""

from enum import StrEnum


class State(StrEnum):
    """What a worker is."""

    CONNECTING = "connecting"  # its link is being authenticated
    PENDING = "pending"  # authenticated, but no operator has approved it yet
    READY = "ready"  # takes requests
    DRAINING = "draining"  # finishes what it has and takes nothing new
    OFFLINE = "offline"  # no link, or its engine does not answer
    LOCKED = "locked"  # its identity was used twice; an operator must look


class Event(StrEnum):
    """What can happen to a worker."""

    DIALLED = "dialled"
    WELCOMED = "welcomed"
    HELD = "held"
    ENGINE_UP = "engine_up"
    ENGINE_DOWN = "engine_down"
    DRAIN = "drain"
    LOST = "lost"


_S, _E = State, Event


def _deaf(state: State) -> dict[Event, State]:
    """What an agent says of itself does not move it: only an operator, or the loss of its link, does."""
    return {_E.ENGINE_UP: state, _E.ENGINE_DOWN: state, _E.DRAIN: state}


TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.OFFLINE: {
        _E.DIALLED: _S.CONNECTING,
        _E.ENGINE_UP: _S.READY,
        _E.ENGINE_DOWN: _S.OFFLINE,
        _E.DRAIN: _S.DRAINING,
        _E.LOST: _S.OFFLINE,
    },
    _S.CONNECTING: {_E.WELCOMED: _S.READY, _E.HELD: _S.PENDING, _E.LOST: _S.OFFLINE},
    _S.READY: {_E.ENGINE_UP: _S.READY, _E.ENGINE_DOWN: _S.OFFLINE, _E.DRAIN: _S.DRAINING, _E.LOST: _S.OFFLINE},
    _S.DRAINING: {**_deaf(_S.DRAINING), _E.LOST: _S.OFFLINE},
    _S.PENDING: {**_deaf(_S.PENDING), _E.LOST: _S.OFFLINE},
    _S.LOCKED: {**_deaf(_S.LOCKED), _E.LOST: _S.LOCKED},
}


class IllegalTransition(ValueError):
    """This event cannot happen to a worker in this state."""


def step(state: State, event: Event) -> State:
    """The state after `event`; raises IllegalTransition when the table has no such arrow."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event} cannot happen to a worker that is {state}") from None
