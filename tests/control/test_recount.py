"""What a receipt comes to: no more than a body of the sealed size and an answer can hold; under a hard limit guesses cost no more than was
reserved, and what the engine says counts."""

import pytest
from msgspec.structs import replace

from mindgw.control import recount
from mindgw.gateway.bill import UNSEEN
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
    assert row(LOOSE, prompt=38, completion=50) == (38, 50, 44)


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
@pytest.mark.parametrize("facts", [{"bytes": 0}, {"stream": False}])
def test_who_got_nothing_of_an_answer_pays_nothing(outcome, facts):
    """Whether its server lives or not: a stream of which no event left, and an answer in one piece that did not arrive whole."""
    said = {"stream": True, "bytes": 100} | facts
    receipt = Receipt(seq=1, tag=b"t", outcome=outcome, source="counted", prompt=20, completion=3, bytes=said["bytes"])
    made = recount.recovered("w", replace(TAG, stream=said["stream"]), receipt)
    assert (made.kind, made.draws, made.over) == ("wasted", (), 0)
    assert (made.prompt_tokens, made.completion_tokens) == (20, 3), "what it cost its worker is still told"


# -- what nobody can have used -------------------------------------------------------------------------------------------

#: The same without a hard limit: nothing is known of the prompt but the size of the body.
LOOSE = replace(TAG, prompt=0, size=500)
HUGE = 2**40


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("source", ["engine", "counted", "estimated"])
def test_an_agent_cannot_charge_what_it_likes_after_a_restart(stream, source):
    """It says how many bytes its answer had, too."""
    claims = {"prompt": HUGE, "completion": HUGE, "bytes": 2**41, "source": source, "outcome": "done"}
    said = Receipt(seq=1, tag=b"t", **claims)
    tag = replace(LOOSE, stream=stream)
    tokens = recount.billed(said, tag)
    assert (tokens.prompt, tokens.completion) == (500 + UNSEEN, recount.MADE + UNSEEN)
    assert recount.is_absurd(said, tag)


def test_under_a_hard_limit_it_cannot_charge_more_than_the_prompt_and_what_is_paid():
    said = Receipt(seq=1, tag=b"t", outcome="done", prompt=HUGE, completion=HUGE, bytes=2**41, source="engine")
    tokens = recount.billed(said, replace(TAG, size=500))
    assert (tokens.prompt, tokens.completion) == (500 + UNSEEN, 12)


def test_a_prompt_is_bounded_by_the_body_that_the_server_sealed():
    large = replace(LOOSE, size=10**7)
    assert row(large, prompt=10**7, completion=1, source="engine") == (10**7, 1, 10**7 + 1 - 44)
    assert row(large, prompt=HUGE, completion=1, source="engine")[0] == 10**7 + UNSEEN


def test_an_answer_is_bounded_by_its_bytes_and_thoughts_that_were_not_sent():
    assert row(LOOSE, prompt=1, completion=1000 + UNSEEN)[1] == 1000 + UNSEEN
    assert row(LOOSE, prompt=1, completion=1001 + UNSEEN)[1] == 1000 + UNSEEN


@pytest.mark.parametrize(
    ("said", "tag", "absurd"),
    [
        ({}, LOOSE, False),
        ({"prompt": 500 + UNSEEN}, LOOSE, False),
        ({"prompt": 501 + UNSEEN}, LOOSE, True),
        ({"prompt": 501 + UNSEEN}, replace(LOOSE, size=501), False),
        ({"completion": 1000 + UNSEEN}, LOOSE, False),
        ({"completion": 1001 + UNSEEN}, LOOSE, True),
        ({"cached": 9}, LOOSE, True),
        ({"completion": 12 + recount.FEW}, TAG, False),
        ({"completion": 13 + recount.FEW}, TAG, True),
        ({"prompt": 100, "source": "counted"}, TAG, False),
    ],
)
def test_a_claim_is_absurd_when_it_cannot_be_or_is_clearly_more_than_was_paid_for(said, tag, absurd):
    facts = {"outcome": "done", "source": "engine", "prompt": 8, "completion": 1, "bytes": 1000} | said
    assert recount.is_absurd(Receipt(seq=1, tag=b"t", **facts), tag) == absurd
