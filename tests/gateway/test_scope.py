"""Bounds of keys within those of others: what is seen to be narrower is, whatever name is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import access
from mindgw.gateway import scope

GLOBS = st.text("ab*?[]!-", min_size=1, max_size=6)


@given(GLOBS, st.lists(GLOBS, min_size=1, max_size=3), st.text("ab*?[]!-", max_size=6))
def test_what_is_seen_as_narrower_lets_nothing_more_in(pattern, others, name):
    if scope.within("models", [pattern], others) and access.glob([pattern]).match(name):
        assert access.glob(others).match(name)


@pytest.mark.parametrize(
    ("field", "said", "bounds", "good"),
    [
        ("models", ["a"], [], True), ("models", [], ["a"], False), ("models", [], [], True), ("models", ["a", "b"], ["a"], False),
        ("models", ["ab*"], ["a*"], True), ("models", ["a*"], ["ab*"], False), ("models", ["a*c"], ["a*"], True),
        ("models", ["a?"], ["a*"], True), ("models", ["a*"], ["a?"], False), ("models", ["a?b*c"], ["*?b*"], True),
        ("models", ["[ab]"], ["[ab]"], True), ("models", ["[ab]"], ["*"], True), ("models", ["a"], ["[ab]"], False),
        ("routes", ["chat"], ["/v1"], True), ("routes", ["/v1"], ["chat"], False), ("routes", ["/v1x"], ["/v1"], False),
        ("routes", ["/v1/chat/completions/"], ["chat"], True), ("routes", ["chat"], ["/"], True),
        ("addresses", ["10.1.0.0/16"], ["10.0.0.0/8"], True), ("addresses", ["10.0.0.0/8"], ["10.1.0.0/16"], False),
        ("addresses", ["::/0"], ["0.0.0.0/0"], False), ("addresses", ["10.0.0.1"], ["192.0.2.1", "10.0.0.1/32"], True),
    ],
)  # fmt: skip
def test_a_list_of_bounds_within_another(field, said, bounds, good):
    assert scope.within(field, said, bounds) is good


def test_no_glob_takes_its_time():
    assert not scope.within("models", ["a" * 200], ["a*" * 99 + "b"] * 100)
