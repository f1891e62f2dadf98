import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindgw import errors
from mindgw.core import fault, sse
from mindgw.core.usage import Tokens
from mindgw.gateway import relay
from mindgw.gateway.relay import StreamRelay, Whole
from mindgw_agent import wire
from tests.gateway.world import CHUNK, DONE, EVENT

COUNTS = {"prompt_tokens": 3, "completion_tokens": 2}


def chunk(**fields: object) -> bytes:
    return sse.event(json.dumps({"id": "c", "choices": [{"delta": {"content": "x"}}]} | fields).encode())


USAGE = chunk(choices=[], usage=COUNTS)
PIECES = [
    EVENT, EVENT, USAGE, DONE, b": comment\n", b": comment\n\n", b"event: x\n", b"id: 7\n", b"retry: 1\n\n", b"\r\n",
    b"data: {\ndata: }\n\n", chunk(usage=None), chunk(choices=[{"delta": {"reasoning": "r"}}]),
    chunk(choices=[{"delta": {"reasoning_content": "r"}}]),
    chunk(choices=[{"delta": {"content": 'say "usage" and "error"'}}]), chunk(error=None), b'data:{"a":1}\r\n\r\n',
]  # fmt: skip
BAD = [chunk(error={"message": "m"}), b"data: <html>\n\n", b"data: [1]\n\n", b"data: \xff\n\n", b"data", b"\n"]
streams = st.lists(st.sampled_from(PIECES + BAD), max_size=8).map(b"".join)


def through(pieces: list[bytes], include_usage: bool = False) -> tuple[bytes, StreamRelay]:
    stream = StreamRelay(include_usage)
    out = b"".join(stream.feed(piece) for piece in pieces)
    return out + (b"" if stream.fault else stream.end()), stream


def read(stream: bytes) -> list[bytes]:
    return sse.Splitter().feed(stream)


@given(streams, st.booleans())
@example(EVENT + b"data: {\ndata: }\n\n", False)
def test_a_stream_cut_at_every_byte_leaves_as_the_whole_does(stream, include_usage):
    whole, one = through([stream], include_usage)
    parts, other = through([stream[i : i + 1] for i in range(len(stream))], include_usage)
    assert parts == whole
    assert (other.tokens, other.fault, other.between) == (one.tokens, one.fault, one.between)
    assert other.events == one.events


@given(st.lists(st.sampled_from(PIECES + BAD), max_size=8), st.booleans())
@example([b"data", EVENT], False)
def test_a_stream_cut_anywhere_leaves_as_the_whole_does(pieces, include_usage):
    assert through(pieces, include_usage)[0] == through([b"".join(pieces)], include_usage)[0]


@given(streams, st.booleans())
def test_what_leaves_is_whole_events_of_json(stream, include_usage):
    out, _ = through([stream], include_usage)
    assert b"".join(map(sse.event, read(out))) == out
    for event in read(out):
        document = json.loads(event)
        assert not document.get("error")
        assert include_usage or "usage" not in document


@given(st.lists(st.sampled_from([EVENT, chunk(usage=None), chunk(choices=[{"delta": {"reasoning": "r"}}])])), st.booleans())
def test_every_chunk_that_comes_is_counted_and_leaves(events, include_usage):
    out, stream = through(events, include_usage)
    assert stream.events == len(read(out)) == len(events)


def test_a_plain_stream_leaves_as_it_came():
    stream = EVENT * 3
    assert through([stream])[0] == stream


def test_the_engines_end_mark_and_comments_are_swallowed():
    assert through([b": hi\n\n" + EVENT + b": hi\n" + DONE])[0] == EVENT


def test_ids_and_retries_are_swallowed():
    """After an `id:` every SDK chokes on the next comment."""
    assert through([b"id: 1\nretry: 5\nevent: x\n" + EVENT])[0] == EVENT


def test_usage_that_was_not_asked_for_is_kept_back():
    out, stream = through([EVENT + USAGE])
    assert out == EVENT
    assert stream.tokens == Tokens(3, 2, 0, "engine")


def test_usage_that_was_asked_for_leaves_last_and_once():
    out, _ = through([EVENT + USAGE + chunk(usage=None)], include_usage=True)
    *_, last = map(json.loads, read(out))
    assert last == {"id": "c", "choices": [], "usage": COUNTS}
    assert out.count(b"prompt_tokens") == 1


@pytest.mark.parametrize("include_usage", [True, False])
def test_usage_beside_choices_is_taken_out_and_the_choices_stay(include_usage):
    """As some engines send it: in the chunk with the finish reason."""
    finish = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": COUNTS, "id": "c"}
    out, stream = through([sse.event(json.dumps(finish).encode())], include_usage)
    first, *rest = map(json.loads, read(out))
    assert first == {"choices": finish["choices"], "id": "c"} | ({"usage": None} if include_usage else {})
    assert rest == ([{"id": "c", "choices": [], "usage": COUNTS}] if include_usage else [])
    assert stream.tokens == Tokens(3, 2, 0, "engine")


def test_an_empty_usage_field_stays_for_those_who_asked():
    (document,) = map(json.loads, read(through([chunk(usage=None)], include_usage=True)[0]))
    assert document["usage"] is None
    assert b"usage" not in through([chunk(usage=None)])[0]


def test_running_counts_end_with_the_last():
    assert through([chunk(usage={"prompt_tokens": 3, "completion_tokens": n}) for n in range(5)])[1].tokens == Tokens(3, 4, 0, "engine")


@pytest.mark.parametrize("counts", [{"prompt_tokens": "many"}, {"prompt_tokens": [1]}])
def test_counts_that_are_no_numbers_are_not_believed(counts):
    assert through([USAGE, chunk(usage=counts)])[1].tokens == Tokens(3, 2, 0, "engine")


def test_no_usage_chunk_is_made_up():
    assert through([EVENT], include_usage=True)[0] == EVENT.replace(b"}\n\n", b',"usage":null}\n\n')


def test_a_chunk_without_choices_leaves_before_there_is_usage():
    empty = chunk(choices=[], note='"usage')
    assert through([empty])[0] == empty


@pytest.mark.parametrize(("have", "missing"), [("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")])
@pytest.mark.parametrize("part", ["delta", "message"])
def test_reasoning_leaves_under_both_names(have, missing, part):
    out, _ = through([chunk(choices=[{part: {have: "hm"}}, {part: {"content": "x"}}])])
    (document,) = map(json.loads, read(out))
    assert document["choices"] == [{part: {have: "hm", missing: "hm"}}, {part: {"content": "x"}}]


@pytest.mark.parametrize(
    "choices", [[{"delta": {"reasoning": "a", "reasoning_content": "b"}}], [{"delta": None}], ["reasoning"], {"reasoning": 1}, None, [[]]]
)
def test_other_forms_of_choices_are_left_alone(choices):
    event = chunk(choices=choices, note='"reasoning')
    assert through([event])[0] == event


def test_an_error_within_a_stream_becomes_a_fault_and_nothing_follows():
    out, stream = through([EVENT + chunk(error={"message": "boom", "code": 500}) + EVENT + USAGE, EVENT + DONE])
    assert out == EVENT
    assert stream.fault == fault.Fault("engine", "boom", 500)


def test_an_event_that_is_not_json_is_a_fault():
    assert through([EVENT, b"data: oops\n\n"])[1].fault == fault.Fault("engine", "The engine sent an event that is not JSON.", 0)


@pytest.mark.parametrize("depth", range(880, 1010))
def test_a_deep_event_is_a_fault_or_leaves(depth):
    for name in ("usage", "error", "reasoning"):
        stream = StreamRelay(True)
        event = b'data: {"%b":{"a":%b1%b}}\n\n' % (name.encode(), b"[" * depth, b"]" * depth)
        assert stream.feed(event) or stream.end() or stream.fault


def test_an_event_of_several_lines_leaves_as_one():
    (event,) = read(through([b'data: {"a":\ndata: 1}\n\n'])[0])
    assert json.loads(event) == {"a": 1}


def test_an_event_without_end_is_refused():
    stream = StreamRelay(False)
    with pytest.raises(errors.EngineFailed, match="larger than"):
        for _ in range(200):
            stream.feed(b"data: " + b"x" * 2**16)


def test_a_stream_is_between_events_when_the_last_one_is_whole():
    stream = StreamRelay(False)
    stream.feed(EVENT + EVENT[:5])
    assert not stream.between
    stream.feed(EVENT[5:])
    assert stream.between


# -- answers in one piece ----------------------------------------------------------------------------------------------


def whole(body: bytes, limit: int = 10_000) -> Whole:
    answer = Whole(limit)
    for start in range(0, len(body), 7):
        answer.feed(body[start : start + 7])
    return answer


def test_an_answer_is_the_engines_bytes_and_its_usage():
    body = b'{ "x" : 1e3, "usage": {"prompt_tokens": 1} }'
    answer = whole(body)
    assert answer.answer() == answer.raw() == body
    assert answer.tokens == Tokens(1, 0, 0, "engine")


@pytest.mark.parametrize("usage", [b"null", b"7", b'"x"', b'{"prompt_tokens":"x"}'])
def test_an_answer_with_strange_usage_is_still_an_answer(usage):
    answer = whole(b'{"usage":%b}' % usage)
    assert answer.answer()
    assert answer.tokens is None


def test_reasoning_of_a_whole_answer_has_both_names():
    document = json.loads(whole(b'{"choices":[{"message":{"content":"x","reasoning":"r"}}]}').answer())
    assert document["choices"][0]["message"] == {"content": "x", "reasoning": "r", "reasoning_content": "r"}


def test_text_about_reasoning_changes_nothing():
    body = b'{"choices":[{"message":{"content":"\\"reasoning"}}]}'
    assert whole(body).answer() == body


@given(st.binary(max_size=30) | st.sampled_from([b'{"a":"\xff"}', b'{"a":"\xff","reasoning":1}', b'{"usage":"\xff"}']))
def test_any_bytes_are_an_answer_or_a_failure(body):
    with suppress(errors.EngineFailed):
        assert whole(body).answer()


@pytest.mark.parametrize("depth", range(880, 1010))
def test_a_deep_answer_is_an_answer_or_a_failure(depth):
    for body in (b'{"reasoning":%b%b}', b'{"usage":%b%b}'):
        with suppress(errors.EngineFailed):
            assert whole(body % (b"[" * depth, b"]" * depth)).answer()


def test_an_answer_at_the_limit_is_kept_and_one_over_it_is_not():
    assert len(whole(b"x" * 100, limit=100).raw()) == 100
    with pytest.raises(errors.EngineFailed, match="larger than 100 bytes"):
        whole(b"x" * 101, limit=100)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blame", "status", "kind", "seen"),
    [
        ("context", 400, errors.ContextTooLong, 400),
        ("context", 500, errors.ContextTooLong, 400),
        ("model", 404, errors.ModelNotFound, 404),
        ("caller", 422, errors.EngineRefused, 422),
        ("caller", 501, errors.EngineRefused, 400),
        ("caller", 0, errors.EngineRefused, 400),
        ("engine", 500, errors.EngineFailed, 502),
        ("engine", 401, errors.EngineFailed, 502),
    ],
)
def test_each_fault_has_its_error(blame, status, kind, seen):
    wrong = relay.error_of(fault.Fault(blame, "m", status, "p"))
    assert (type(wrong), wrong.status, wrong.message) == (kind, seen, "m")


def test_the_field_at_fault_is_passed_on():
    assert relay.error_of(fault.Fault("caller", "m", 400, "top_p")).param == "top_p"
    assert relay.error_of(fault.Fault("caller", "m", 400)).param is None


def test_an_agent_that_gives_no_reason_gets_a_sentence():
    assert relay.error_of_close(wire.Close("failed", "engine_timeout")).message == "The engine did not answer in time."
    assert relay.error_of_close(wire.Close("failed", "refused")).message == "No worker that serves this model is connected."


def test_an_agents_long_reason_is_cut():
    for code in ("refused", "engine_error"):
        assert len(relay.error_of_close(wire.Close("failed", code, "x" * 9000)).message) <= 2000


def test_the_chunk_of_these_tests_is_plain():
    assert sse.plain(sse.event(CHUNK))
