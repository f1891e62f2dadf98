import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.gateway.admission import Caller
from mindgw.gateway.flows import BUMPED, CLASSES, flow, rank, weigher

KEY = Caller("k", "name", "o", team="nlp", user="ada@example.org")
PROXY = Caller("k", "name", "o", team="nlp", user="ada@example.org", trusted_proxy=True)
WEBUI, CLAUDE = b"x-openwebui-user-id", b"x-claude-code-session-id"


def test_a_flow_goes_from_the_organisation_down_to_the_end_user():
    assert flow(PROXY, [], "bob", "").path == ("o", "nlp", "ada@example.org", "k", "bob")


def test_only_a_trusted_proxy_is_believed_who_is_behind_it():
    assert flow(KEY, [(WEBUI, b"u1")], "bob", "").path[-1] == ""


@pytest.mark.parametrize(
    ("headers", "named", "end_user"),
    [
        ([], "", ""),
        ([], "bob", "bob"),
        ([(WEBUI, b"u1")], "bob", "u1"),
        ([(CLAUDE, b"s1")], "bob", "s1"),
        ([(CLAUDE, b"s1"), (WEBUI, b"u1")], "", "u1"),
        ([(WEBUI, b"")], "bob", "bob"),
    ],
)
def test_a_header_goes_before_the_body(headers, named, end_user):
    assert flow(PROXY, headers, named, "").path[-1] == end_user


@given(st.text() | st.text(alphabet=st.characters(), min_size=60))
def test_whatever_an_end_user_is_called_fits_on_one_line(name):
    shown = flow(PROXY, [], name, "").path[-1]
    assert shown.isprintable()
    assert shown.isascii()
    assert len(shown) <= 64
    assert bool(shown) == bool(name)


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_two_end_users_do_not_become_one(one, other):
    shown = {flow(PROXY, [(WEBUI, name)], "", "").path[-1] for name in (one, other)}
    assert len(shown) == len({one, other})


@pytest.mark.parametrize(
    ("priority", "tier", "class_"),
    [
        ("", "", "normal"),
        ("unheard of", "", "normal"),
        ("high", "", "high"),
        ("high", "priority", "high"),
        ("high", "flex", "batch"),
        ("normal", "priority", "normal"),
        ("normal", "default", "normal"),
        ("normal", "flex", "batch"),
        ("batch", "priority", "batch"),
        ("sheddable", "flex", "sheddable"),
        ("bumped", "", "normal"),
    ],
)
def test_a_tier_asks_for_a_class_within_what_the_key_may_have(priority, tier, class_):
    assert CLASSES[rank(priority, tier)] == class_


@given(st.text(), st.text())
def test_nobody_bumps_himself(priority, tier):
    assert rank(priority, tier) > BUMPED


def test_weights_are_those_of_teams_and_users():
    weight = weigher({"team:nlp": 2.0, "user:ada@example.org": 0.5})
    path = flow(PROXY, [], "nlp", "").path
    assert [weight(path[:depth]) for depth in range(1, 6)] == [1.0, 2.0, 0.5, 1.0, 1.0]
