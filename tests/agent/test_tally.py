"""What a whole answer comes to when its engine reports no usage: its text, four bytes a token."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent.tally import Tally
from mindgw_agent.wire import Usage
from tests.agent.carrying import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, ask, fake_engine, in_front_of, says

MODELS = {"data": [{"id": "m"}]}


def said(answer, answers=1):
    tally = Tally()
    tally.whole(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), answers)
    assert not tally.garbage
    return tally.said


def message(**fields):
    return {"choices": [{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


def calls(*arguments):
    return [{"id": "c", "type": "function", "function": {"name": "look", "arguments": text}} for text in arguments]


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (message(content="word " * 4000), 5000),
        (message(content="x"), 1), (message(content="12345"), 2), (message(content="ä" * 4), 2), (message(content="\U0001f600"), 1),
        (message(content=None), 0), (message(content=""), 0), (message(), 0),
        (message(content="1234", reasoning_content="12345678"), 3), (message(content="", reasoning="12345678"), 2),
        (message(reasoning="12345678", reasoning_content="12345678"), 2),  # the same thoughts under both names
        (message(refusal="12345678"), 2),
        (message(content=None, tool_calls=calls("1234", "12345678")), 5),  # two names of four bytes, twelve of arguments
        (message(content=None, tool_calls=calls({"city": "Oslo"})), 5),
        (message(content=None, function_call={"name": "look", "arguments": "1234"}), 2),
        (message(content=[{"type": "text", "text": "12345678"}]), 2),
        ({"choices": [{"text": "12345"}, {"text": "1"}, {"text": ""}]}, 3),
        ({"choices": []}, 0), ({"data": [{"embedding": [0.5]}]}, 0), ({"content": "1234"}, 0),
    ],
)  # fmt: skip
def test_text_is_four_bytes_a_token_and_one_at_least_for_each_choice(answer, tokens):
    assert said(answer) == tokens


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": None}, {"choices": "12345678"}, {"choices": {"message": {"content": "x"}}}, {"choices": [None, 3, "x", []]},
        {"choices": [{"message": "12345678"}]}, {"choices": [{"message": {"tool_calls": 3, "content": False}}]},
        {"choices": [{"message": {"tool_calls": [None, 3, {}, {"function": []}], "function_call": 7}}]},
    ],
)  # fmt: skip
def test_an_answer_in_no_known_shape_says_nothing(answer):
    assert said(answer) == 0


def test_objects_in_objects_cost_nothing_but_a_look():
    """Right at the depth that the decoder still reads, whatever that is here."""
    for depth in range(50, 2000, 1):
        tally = Tally()
        tally.whole(b'{"choices":[{"message":{"content":%s}}]}' % (b'{"a":' * depth + b"1" + b"}" * depth))
        if tally.garbage:
            break
    assert tally.garbage


def test_half_a_character_counts_too():
    assert said(b'{"choices":[{"text":"\\ud83d\\ude00"}]}') == 1
    assert said(b'{"choices":[{"text":"' + "é".encode() * 3 + b'"}]}') == 2


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": 0}])
def test_half_a_report_is_made_up_for(usage):
    tally = Tally()
    tally.whole(json.dumps(message(content="12345678") | {"usage": usage}).encode())
    assert tally.usage == Usage(prompt=usage.get("prompt_tokens", 0), completion=2, source="estimated")


def test_what_the_engine_reports_wins():
    tally = Tally()
    tally.whole(json.dumps(message(content="word " * 100) | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode())
    assert (tally.usage, tally.said) == (Usage(prompt=3, completion=4), 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "text", "function", "arguments"]), inner),
)


@given(choices=st.lists(st.fixed_dictionaries({}, optional={"message": JSON, "text": JSON}), max_size=4))
def test_no_shape_breaks_it_and_no_more_is_counted_than_was_sent(choices):
    body = json.dumps({"choices": choices}, ensure_ascii=False).encode(errors="replace")
    assert 0 <= said(body) <= len(body)


@pytest.mark.parametrize(
    ("path", "answer", "tokens"),
    [
        (CHAT, message(content="word " * 4000), 5000),
        (COMPLETIONS, {"choices": [{"index": 0, "text": "12345", "finish_reason": "stop"}]}, 2),
        (EMBEDDINGS, {"data": [{"index": 0, "embedding": [0.1] * 100}]}, 0),
    ],
)
async def test_a_whole_answer_without_usage_is_billed_for_its_text(path, answer, tokens):
    asked = {"model": "m", **({"messages": HELLO} if path == CHAT else {"prompt": "x"} if path == COMPLETIONS else {"input": "x"})}
    routes = {"GET /v1/models": says(MODELS), f"POST {path}": says(answer)}
    async with fake_engine(routes) as url, in_front_of(url) as engine:
        out = await ask(engine, path, asked)
    assert out.billed is out.end
    assert (out.end.usage.completion, out.end.usage.source) == (tokens, "estimated")
    assert out.end.usage.prompt > 0
