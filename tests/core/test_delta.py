from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mindgw.client import feed
from mindgw.core import delta

values = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2) | st.lists(st.integers(0, 2), max_size=2)
items = st.dictionaries(st.sampled_from("abc"), values)
pictures = st.dictionaries(st.sampled_from("xyz"), items).map(lambda found: {id: {**item, "id": id} for id, item in found.items()})


def as_sent(found: delta.Changes) -> dict:
    return {"set": found.set, "removed": found.removed}


@given(pictures, pictures)
def test_the_changes_lead_from_one_picture_to_the_other(before, after):
    assert feed.merged(before, as_sent(delta.changes(before, after))) == after


@given(st.lists(pictures, min_size=1))
def test_a_snapshot_and_all_changes_since_are_the_last_picture(seen):
    picture = seen[0]
    for before, after in pairwise(seen):
        picture = feed.merged(picture, as_sent(delta.changes(before, after)))
    assert picture == seen[-1]


@given(pictures)
def test_nothing_is_said_of_what_stays(picture):
    assert not delta.changes(picture, picture)


@given(pictures, pictures)
def test_only_fields_that_differ_are_said(before, after):
    found = delta.changes(before, after)
    assert bool(found) == (before != after)
    for said in found.set:
        earlier = {} if said["id"] in found.removed else before.get(said["id"], {})
        assert all(name == "id" or name not in earlier or earlier[name] != value for name, value in said.items())
    assert not set(found.removed) & {id for id, item in after.items() if item == before.get(id)}
