"""Of each worker and each matter one event a minute is told, and nothing that was left out is forgotten."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mindgw.control.complaints import MINUTE, Complaints


def told(complaints, now, *notes, worker="w"):
    due = complaints.due(worker, notes, now)
    complaints.noted(worker, notes, now)
    return due


def test_the_next_event_says_what_was_left_out_before():
    complaints = Complaints()
    assert told(complaints, 0.0, ("a", {"count": 3})) == [("a", {"count": 3})]
    assert told(complaints, 1.0, ("a", {"count": 4}), ("b", {})) == [("b", {})]
    assert told(complaints, 2.0, ("a", {}), worker="v") == [("a", {})]
    assert told(complaints, MINUTE, ("a", {"why": "x"})) == [("a", {"why": "x", "left_out": 4})]
    assert told(complaints, 2 * MINUTE, ("a", {})) == [("a", {})]


def test_what_was_due_and_could_not_be_written_is_due_again():
    complaints = Complaints()
    for _ in range(2):
        assert complaints.due("w", [("a", {})], 0.0) == [("a", {})]


NOTES = st.lists(st.tuples(st.sampled_from("wv"), st.sampled_from("ab"), st.integers(1, 9), st.floats(0, 100), st.booleans()), max_size=50)


@given(NOTES)
def test_there_is_one_a_minute_and_all_is_counted(notes):
    complaints, now, events, told_of, given_in = Complaints(), 0.0, {}, 0, 0

    def tell(worker, due):
        nonlocal told_of
        for action, detail in due:
            events.setdefault((worker, action), []).append(now)
            told_of += detail.get("count", 0) + detail.get("left_out", 0)

    for worker, action, count, later, looks in [
        *notes,
        ("w", "a", 1, MINUTE, True),
        ("w", "a", 1, MINUTE, True),
        ("w", "a", 1, 100.0, True),
    ]:
        now += later
        if looks:
            for each, note in complaints.rest(now):
                tell(each, [note])
            complaints.tidy(now)
        tell(worker, told(complaints, now, (action, {"count": count}), worker=worker))
        given_in += count
    now += MINUTE + 1
    for each, note in complaints.rest(now):
        tell(each, [note])
    complaints.tidy(now)
    assert told_of == given_in
    assert all(after - before >= MINUTE for moments in events.values() for before, after in pairwise(moments))
    complaints.tidy(now + MINUTE + 1)
    assert not complaints._last
