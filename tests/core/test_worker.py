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


@pytest.mark.parametrize("event", [Event.ENGINE_UP, Event.ENGINE_DOWN, Event.DRAIN])
@pytest.mark.parametrize("state", sorted(set(State) - {State.CONNECTING}))
def test_what_an_agent_says_of_itself_never_breaks_its_link(state, event):
    """It may speak at any time after the welcome."""
    assert step(state, event) in State


@pytest.mark.parametrize("state", [State.PENDING, State.LOCKED])
def test_a_worker_that_is_held_back_takes_requests_only_with_a_new_link(state):
    """Whatever its agent says of itself."""
    assert {step(state, event) for event in TRANSITIONS[state] if event is not Event.LOST} == {state}
