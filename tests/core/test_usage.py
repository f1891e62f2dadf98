import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import usage
from mindgw.core.usage import CEILING, Details, Reported, Tokens

counts = st.none() | st.integers()


@given(counts)
def test_a_count_is_never_negative_nor_absurd(count):
    assert 0 <= usage.clamp(count) <= CEILING


@given(st.integers(0, CEILING))
def test_a_sane_count_stays(count):
    assert usage.clamp(count) == count


@given(counts, counts, st.none() | st.builds(Details, counts))
def test_reported_tokens_are_safe_to_add_up(prompt, completion, details):
    tokens = usage.tokens(Reported(prompt, completion, details))
    assert 0 <= tokens.cached <= tokens.prompt <= CEILING
    assert 0 <= tokens.completion <= CEILING
    assert tokens.source == "engine"


def test_an_engines_object_is_read_past_what_is_not_known():
    body = b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},"x":[]}'
    assert usage.tokens(msgspec.json.decode(body, type=Reported)) == Tokens(7, 2, 3, "engine")


def test_tokens_are_estimated_until_somebody_says():
    assert Tokens().source == "estimated"
