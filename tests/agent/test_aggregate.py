"""A folded stream beside the real engine's own plain answer, and the fold by itself."""

import asyncio
import copy
import json

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.quickstart import tiny_model
from mindgw_agent import aggregate, payload, sse
from tests.agent.carrying import CHAT, HELLO
from tests.real_engine import ENDLESS, Shape, start_engine

#: Ends its turn as soon as it may.
TERSE = Shape(eos=40.0)
THINKER = Shape(thinks=True, eos=10.0)
TOKENS = [token.text for token in tiny_model.vocabulary(Shape())]
LOOK = {
    "name": "look",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["a", "b"]}}, "required": ["city"]},
}
TOOLS = {"tools": [{"type": "function", "function": LOOK}], "logit_bias": [[TOKENS.index("<tool_call>"), 100]]}
HALF_A_LETTER = {"logit_bias": [[TOKENS.index("<0xE2>"), 100]]}
CITY = {"type": "json_schema", "json_schema": {"name": "city", "schema": LOOK["parameters"]}}

FAITHFUL = [
    {"max_tokens": 30},
    {"max_tokens": 1},
    {"max_completion_tokens": 5},
    {"max_tokens": 8, "n": 2},
    {"max_tokens": 60, "n": 2, "temperature": 1},
    {"max_tokens": 6, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 6, "logprobs": True, "n": 2},
    {"max_tokens": 5, "logprobs": True, "post_sampling_probs": True},
    {"max_tokens": 30, "stop": ["o", "zzz"]},
    {"max_tokens": 40, "response_format": CITY},
    {"max_tokens": 20, "grammar": 'root ::= "a" "é" "b" "€  \\n"'},
    {"max_tokens": 12, "reasoning_format": "none"},
    {"max_tokens": 20, "grammar": 'root ::= "thought</think>\\n\\n so "'},
]
#: Ways to make the engine keep text back in a stream.
KEPT_BACK = [
    {"max_tokens": 4, **HALF_A_LETTER},
    {"max_tokens": 9, "grammar": 'root ::= "\\t\\t"'},
    {"max_tokens": 7, **TOOLS},
]


@pytest.fixture(scope="module", params=[Shape(), THINKER, TERSE, ENDLESS], ids=["plain", "thinks", "terse", "endless"])
def real(request):
    with start_engine(shape=request.param) as engine:
        yield engine


async def both(real, request: dict) -> tuple[dict, dict, bool]:
    """The engine's plain answer, the folded stream, and whether the fold vouches for it."""
    body = {"messages": HELLO, "temperature": 0, "seed": 5, **request}
    streamed = {**body, "stream": True, "timings_per_token": True, "stream_options": {"include_usage": True}}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(30):
        for _ in range(2):  # the second answer finds the prompt in the cache, as the stream will
            async with session.post(real.url + CHAT, json=body) as response:
                plain = json.loads(await response.read())
                assert response.status == 200, plain
        async with session.post(real.url + CHAT, json=streamed) as response:
            stream = await response.read()
    fold = aggregate.Fold(request.get("n", 1), stops="stop" in request)
    for data in sse.events(sse.Splitter().feed(stream)):
        if data != sse.DONE:
            fold.add(data)
    return plain, json.loads(fold.result()), fold.faithful


def comparable(answer: dict) -> dict:
    """The answer without what differs between any two of them: its id, its times, the ids of its calls."""
    answer = copy.deepcopy(answer)
    answer["id"] = answer["id"].partition("-")[0]
    answer["created"] = type(answer["created"]).__name__
    answer["timings"] = list(answer["timings"])
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", []):
            call["id"] = len(call["id"])
    return answer


@pytest.mark.parametrize("request_fields", FAITHFUL, ids=str)
async def test_the_fold_equals_the_engines_own_answer(real, request_fields):
    plain, folded, faithful = await both(real, request_fields)
    if faithful:
        assert comparable(folded) == comparable(plain)
        assert list(folded) == list(plain)


@pytest.mark.parametrize("request_fields", FAITHFUL[:8], ids=str)
async def test_ordinary_answers_need_no_second_call(real, request_fields):
    _, _, faithful = await both(real, request_fields)
    assert faithful


async def test_tool_calls_are_folded(real):
    plain, folded, faithful = await both(real, {"max_tokens": 90, **TOOLS})
    if faithful:
        assert comparable(folded) == comparable(plain)
    assert plain["choices"][0]["message"].keys() == folded["choices"][0]["message"].keys()


@pytest.mark.parametrize("request_fields", KEPT_BACK, ids=str)
async def test_text_that_the_engine_kept_back_is_noticed(real, request_fields):
    """Whenever the two differ, the fold says so: no answer is ever silently shorter."""
    plain, folded, faithful = await both(real, request_fields)
    assert not faithful or comparable(folded) == comparable(plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [*HELLO, {"role": "assistant", "content": "I"}]},
        {"messages": HELLO, "echo": True},
        {"messages": HELLO, "continue_final_message": True},
        {"messages": "no list"},
        {"messages": [3]},
    ],
    ids=str,
)
def test_what_a_fold_cannot_know_is_not_folded(fields):
    assert not aggregate.can_aggregate(payload.parse(json.dumps(fields).encode()))


@pytest.mark.parametrize("fields", [{"messages": HELLO}, {"messages": HELLO, "n": 3, "stop": "x", "tools": []}, {}])
def test_ordinary_requests_are_folded(fields):
    assert aggregate.can_aggregate(payload.parse(json.dumps(fields).encode()))


texts = st.lists(st.text(min_size=1, max_size=5), max_size=6)


def chunks_of(answers: list[list[str]]) -> list[bytes]:
    """Chunks that say these answers, all of them interleaved."""
    chunks = []
    for place in range(max(map(len, answers))):
        chunks += [spoken(index, pieces[place], place + 1) for index, pieces in enumerate(answers) if place < len(pieces)]
    for index, pieces in enumerate(answers):
        timings = {"predicted_n": len(pieces)}
        chunks.append(chunk([{"index": index, "delta": {}, "finish_reason": "length"}], timings=timings))
        chunks.append(chunk([], usage={"completion_tokens": len(pieces)}, timings=timings))
    return chunks


def chunk(choices: list, **more) -> bytes:
    return msgspec.json.encode({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more})


def spoken(index: int, text: str, tokens: int) -> bytes:
    return chunk([{"index": index, "delta": {"content": text}, "finish_reason": None}], timings={"predicted_n": tokens})


@given(st.lists(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_piece_arrives_in_its_place(answers):
    fold = aggregate.Fold(len(answers))
    *others, finish, usage = chunks_of(answers)
    for data in others:
        fold.add(data)
    assert not fold.whole
    fold.add(finish)
    fold.add(usage)
    assert fold.faithful
    answer = json.loads(fold.result())
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["".join(pieces) for pieces in answers]
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answers)))
    assert (answer["object"], answer["usage"]["completion_tokens"]) == ("chat.completion", len(answers[0]))


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "index", "finish_reason", "logprobs", "content", "tool_calls", "function", "timings", "usage"]
                ),
                inner,
            )
        ),
    ).map(msgspec.json.encode)
)
def test_anything_else_is_broken_and_nothing_worse(data):
    fold = aggregate.Fold()
    try:
        fold.add(data)
        fold.result()
    except aggregate.Broken:
        pass


def test_a_stream_that_stops_early_is_no_answer():
    fold = aggregate.Fold()
    fold.add(spoken(0, "a", 1))
    with pytest.raises(aggregate.Broken):
        fold.result()
    assert not fold.faithful


def test_log_probabilities_keep_their_digits():
    fold = aggregate.Fold()
    entry = b'{"token":"a","logprob":-0.10000000000000000555}'
    logprobs = b'{"content":[' + entry + b"]}"
    fold.add(b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop","logprobs":' + logprobs + b"}]}")
    assert entry in fold.result()


def test_lists_of_log_probabilities_may_be_null():
    fold = aggregate.Fold()
    logprobs = b'{"content":null,"refusal":[{"token":"a"}]}'
    fold.add(b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop","logprobs":' + logprobs + b"}]}")
    assert json.loads(fold.result())["choices"][0]["logprobs"] == {"refusal": [{"token": "a"}]}


def test_an_answer_has_a_largest_size(monkeypatch):
    data = spoken(0, "a", 1)
    monkeypatch.setattr(aggregate, "MAX_ANSWER", 2 * len(data))
    fold = aggregate.Fold()
    fold.add(data)
    fold.add(data)
    with pytest.raises(aggregate.Broken, match=f"larger than {2 * len(data)} bytes"):
        fold.add(data)
