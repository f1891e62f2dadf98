from itertools import product

import pytest

from mindgw.core.worker import TRANSITIONS, Event, IllegalTransition, State, step

#: States that operators' commands will lead to; nothing sets them yet.
RESERVED = {State.PAUSED, State.QUARANTINED}


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
    assert reachable(State.OFFLINE) == set(State) - RESERVED


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


def test_a_worker_that_waits_for_approval_takes_requests_only_after_it():
    """No way leads from pending to ready but approval, or a new link."""
    seen, edge = {State.PENDING}, [State.PENDING]
    while edge:
        for event, state in TRANSITIONS[edge.pop()].items():
            if event not in {Event.APPROVED, Event.LOST} and state not in seen:
                seen.add(state)
                edge.append(state)
    assert State.READY not in seen
