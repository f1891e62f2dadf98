from itertools import product

import pytest

from mindgw.core.worker import TRANSITIONS, Event, IllegalTransition, State, step

#: No event leads there: a locked worker's link is closed, and the store keeps the state.
STORED = {State.LOCKED}


def reachable(start: State) -> set[State]:
    seen, edge = {start}, [start]
    while edge:
        new = set(TRANSITIONS[edge.pop()].values()) - seen
        seen |= new
        edge.extend(new)
    return seen


@pytest.mark.parametrize(("state", "event"), [*product(State, Event)])
def test_an_arrow_stands_in_the_table_or_is_refused(state, event):
    if event in TRANSITIONS[state]:
        assert step(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{event} cannot happen to a worker that is {state}"):
            step(state, event)


def test_every_state_can_be_reached_from_the_first():
    assert reachable(State.OFFLINE) == set(State) - STORED


@pytest.mark.parametrize("state", sorted(set(State) - {State.LOCKED}))
def test_every_state_but_locked_leads_back_to_offline(state):
    assert State.OFFLINE in reachable(state)


def test_a_locked_worker_stays_locked():
    assert reachable(State.LOCKED) == {State.LOCKED}


@pytest.mark.parametrize("state", [*State])
def test_every_state_survives_the_loss_of_its_link(state):
    assert step(state, Event.LOST) in {State.OFFLINE, State.LOCKED}


def test_every_event_means_something_somewhere():
    assert {event for arrows in TRANSITIONS.values() for event in arrows} == set(Event)


@pytest.mark.parametrize("event", sorted(set(Event) - {Event.DIALLED, Event.WELCOMED, Event.HELD, Event.LOST}))
@pytest.mark.parametrize("state", sorted(set(State) - {State.CONNECTING}))
def test_what_an_agent_says_of_itself_never_breaks_its_link(state, event):
    """It may speak at any time after the welcome."""
    assert step(state, event) in State


@pytest.mark.parametrize("state", [State.PENDING, State.LOCKED])
def test_a_worker_that_is_held_back_takes_requests_only_with_a_new_link(state):
    """Whatever its agent says of itself."""
    assert {step(state, event) for event in TRANSITIONS[state] if event is not Event.LOST} == {state}


def leading_out(state: State) -> set[Event]:
    return {event for event, to in TRANSITIONS[state].items() if to is not state}


def test_nothing_that_an_agent_says_ends_its_quarantine():
    assert leading_out(State.QUARANTINED) == {Event.RELEASE, Event.LOST}


def test_only_an_operator_ends_what_an_operator_began():
    assert leading_out(State.DRAINING) == {Event.UNDRAIN, Event.ACCUSE, Event.LOST}


def test_a_pause_ends_when_its_owner_says_so():
    assert leading_out(State.PAUSED) == {Event.RESUME, Event.DRAIN, Event.ACCUSE, Event.LOST}
    assert step(State.PAUSED, Event.RESUME) is State.READY


@pytest.mark.parametrize("state", [State.READY, State.PAUSED, State.DRAINING, State.OFFLINE])
def test_who_lies_takes_nothing_from_wherever(state):
    assert step(state, Event.ACCUSE) is State.QUARANTINED
