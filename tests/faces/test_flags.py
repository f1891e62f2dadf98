"""Global flags stand before or after the verb."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.cli.settings import hoist, read_environment, wants_json

GLOBAL = [["--json"], ["-q"], ["-vv"], ["-qy"], ["-o", "json"], ["-ojson"], ["--output=name"], ["--server", "http://h"], ["--no-input"]]
words = st.lists(
    st.one_of(
        st.sampled_from(GLOBAL),
        st.sampled_from([["keys"], ["list"], ["agent"], ["--team", "t"], ["--name=x"], ["-m"], [""], ["-"], ["-h"]]),
        st.text(max_size=5).map(lambda text: [text]),
    ),
    max_size=8,
).map(lambda parts: [word for part in parts for word in part])


@given(words, st.lists(st.text(max_size=4), max_size=3))
def test_hoisting_only_moves_words_and_leaves_what_is_behind_the_double_dash(front, tail):
    argv = [*front, "--", *tail]
    moved = hoist(argv)
    assert sorted(moved) == sorted(argv)
    behind = argv[argv.index("--") :]
    assert moved[len(moved) - len(behind) :] == behind


@given(words)
def test_hoisting_twice_changes_nothing_more(argv):
    assert hoist(hoist(argv)) == hoist(argv)


@given(
    st.lists(st.sampled_from(GLOBAL), max_size=4), st.lists(st.sampled_from(["keys", "list", "x", "--team", "-m"]), max_size=5), st.data()
)
def test_it_does_not_matter_where_the_flags_stand(flags, rest, data):
    mixed = [[word] for word in rest]
    for flag in flags:
        mixed.insert(data.draw(st.integers(0, len(mixed))), flag)
    hoisted = hoist([word for part in mixed for word in part])
    cut = len(hoisted) - len(rest)
    assert hoisted[cut:] == rest
    assert sorted(hoisted[:cut]) == sorted(word for flag in flags for word in flag)


@pytest.mark.parametrize(
    ("argv", "hoisted"),
    [
        ("keys list --json", "--json keys list"),
        ("keys create n -q --team t -o json", "-q -o json keys create n --team t"),
        ("agent join T --server http://h -v", "--server http://h agent join T -v"),
        ("-v agent run", "-v agent run"),
        ("keys list -o", "keys list -o"),
        ("keys list -o -- x", "keys list -o -- x"),
        ("chat -- --json", "chat -- --json"),
    ],
)
def test_hoisting_by_example(argv, hoisted):
    assert hoist(argv.split()) == hoisted.split()


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ("keys list --json", True),
        ("-o json keys", True),
        ("keys -ojson", True),
        ("--output=json", True),
        ("", False),
        ("keys -o name", False),
        ("chat -- --json", False),
        ("-o", False),
    ],
)
def test_errors_are_json_when_data_would_be(argv, wanted):
    assert wants_json(argv.split()) is wanted


def test_the_environment_speaks_of_colours_as_others_do():
    assert read_environment({}).plain is False
    assert read_environment({"NO_COLOR": ""}).plain is False
    assert read_environment({"NO_COLOR": "1"}).plain is True
    assert read_environment({"TERM": "dumb"}).plain is True
    assert read_environment({"FORCE_COLOR": "0"}).forced_colour is False
    assert read_environment({"CLICOLOR_FORCE": "1"}).forced_colour is True
