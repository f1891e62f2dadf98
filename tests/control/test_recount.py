"""What a receipt comes to under a hard limit: guesses cost no more than was reserved, and what the engine says counts."""

from mindgw.control import recount
from mindgw.gateway.tag import Tag
from mindgw_agent.wire import Receipt

#: 32 tokens were reserved for the prompt, and 12 for the answer.
TAG = Tag(
    "r1", 1, "k", "", "", "o", "m", "/v1/chat/completions", True, "2026-11-21", "", (0, 0), 44, 1, 0, 0,
    (("key:k", "tokens", "total"),), 32,
)  # fmt: skip


def row(tag: Tag = TAG, **facts):
    entry = recount.recovered("w", tag, Receipt(seq=1, tag=b"t", bytes=1000, **({"outcome": "cancelled", "source": "counted"} | facts)))
    return entry.prompt_tokens, entry.completion_tokens, entry.over


def test_a_guess_at_the_prompt_is_no_more_than_its_ceiling():
    assert row(prompt=38, completion=12) == (32, 12, 0)
    assert row(prompt=30, completion=12) == (30, 12, 0)


def test_what_the_engine_says_of_the_prompt_counts_and_what_is_beyond_is_noted():
    assert row(prompt=38, completion=12, source="engine", outcome="done") == (38, 12, 6)


def test_what_an_engine_makes_beyond_its_cap_nobody_ordered():
    assert row(prompt=20, completion=50) == (20, 12, 0)


def test_without_a_hard_limit_everything_counts():
    loose = Tag(*(getattr(TAG, name) for name in TAG.__struct_fields__[:-1]))
    assert row(loose, prompt=38, completion=50) == (38, 50, 44)
