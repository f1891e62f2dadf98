"""Reading streams of chat. The server here is a FAKE that says exactly what a test wants."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.client.errors import ClientError
from mindgw.client.streaming import MAX_LINE, pieces
from tests.faces.conftest import Terminal

DONE = b"data: [DONE]\n"


def event(**delta):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def said(*parts):
    return "".join(piece.text for piece in pieces([line + b"\n" for part in parts for line in part.split(b"\n")]))


def test_text_comments_and_blank_lines():
    assert (
        said(b": ping\n\n", event(role="assistant", content=""), event(content="He"), b": ping\n\n", event(content="llo"), DONE) == "Hello"
    )


def test_reasoning_finish_and_usage_are_kept_apart():
    last = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}\n'
    found = list(pieces([event(reasoning_content="hm"), event(reasoning="hm"), event(content="x"), last, DONE]))
    assert [piece.reasoning for piece in found] == ["hm", "hm", "", ""]
    assert (found[-1].finish, found[-1].usage) == ("stop", {"completion_tokens": 2})


def test_an_answer_without_its_end_is_an_error():
    with pytest.raises(ClientError, match="broke off"):
        said(event(content="He"))


def test_an_error_event_is_an_error():
    with pytest.raises(ClientError, match="worker lost") as failed:
        said(event(content="He"), b'data: {"error":{"message":"worker lost","code":"worker_lost"}}\n', DONE)
    assert failed.value.code == "worker_lost"


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([b"data: {}", b"data: [DONE]", b"data: null", b"data: [", b"data:"]))))
def test_no_stream_makes_the_reader_fail_in_another_way(lines):
    try:
        list(pieces(lines))
    except ClientError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "delta", "content", "usage", "error", "finish_reason", "message"]), inner, max_size=4)
    ),
)


@given(json_values)
def test_no_event_of_another_shape_does_either(value):
    try:
        list(pieces([b"data: " + json.dumps(value).encode(), DONE]))
    except ClientError:
        pass


# -- the command --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def talking(fake):
    """A fake whose model says hello."""
    fake.headers["content-type"] = "text/event-stream"
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    fake.body = event(content="Hel") + event(content="lo\x1b[2J") + usage + DONE
    return fake


def test_the_answer_is_data(cli, talking):
    answer = cli("chat", "hi", "-m", "x/y", "-s", "Be brief.")
    assert (answer.code, answer.out, answer.err) == (0, "Hello\x1b[2J\n", "")
    (asked,) = talking.asked
    assert json.loads(asked[3])["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


def test_the_answer_as_json(cli, talking):
    answer = json.loads(cli("chat", "hi", "-m", "x", "--json").out)
    assert (answer["model"], answer["content"]) == ("x", "Hello\x1b[2J")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_stats_are_talk(cli, talking):
    answer = cli("chat", "hi", "-m", "x", "--stats", "--no-stream")
    assert answer.out == "Hello\x1b[2J\n"
    assert "2 tokens" in answer.err


def test_without_a_model_the_first_that_is_served_is_asked(cli, talking):
    stream, talking.body = talking.body, b'{"object":"list","data":[{"id":"only/one"}]}'
    talking.then = [stream]
    assert cli("chat", "hi").code == 0
    assert json.loads(talking.asked[1][3])["model"] == "only/one"


@pytest.mark.parametrize("words", [["-"], []])
def test_the_question_may_come_through_a_pipe(cli, talking, monkeypatch, words):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert cli("chat", "-m", "x", *words).code == 0
    assert json.loads(talking.asked[0][3])["messages"][0]["content"] == "from a pipe"


def test_no_question_is_a_wrong_command(cli, talking, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli("chat", "-m", "x").code == 2


def test_a_broken_answer_ends_with_1_after_what_was_said(cli, talking):
    talking.body = event(content="Hel")
    answer = cli("chat", "hi", "-m", "x")
    assert (answer.code, answer.out) == (1, "Hel")
    assert "broke off" in answer.err


def test_an_endless_line_is_cut(cli, talking):
    talking.body = b"data: " + b"x" * (MAX_LINE + 10)
    assert cli("chat", "hi", "-m", "x").code == 1


def test_a_conversation_remembers_forgets_and_survives_a_failed_answer(talking):
    good, bad = talking.body, b'data: {"error":{"message":"worker lost"}}\n'
    talking.then = [good, bad, good, good]
    terminal = Terminal("chat", "-m", "x", "-s", "Be brief.")
    terminal.hear(">")
    for said in ("one\n", "two\n", "three\n", "\n", "four\n", "/clear\n", "five\n"):
        terminal.type(said)
        heard = terminal.hear(">")
        assert ("worker lost" in heard) is (said == "three\n")
    terminal.type("/exit\n")
    ended = terminal.end()
    assert ended.code == 0
    assert ended.out.count("Hello") == 4
    asked = [[message["content"] for message in json.loads(body)["messages"]] for _, _, _, body in talking.asked]
    answer = "Hello\x1b[2J"
    assert asked == [
        ["Be brief.", "one"],
        ["Be brief.", "one", answer, "two"],
        ["Be brief.", "one", answer, "two", answer, "three"],
        ["Be brief.", "one", answer, "two", answer, "four"],
        ["Be brief.", "five"],
    ]


@pytest.mark.parametrize(("last", "code"), [("\x04", 0), ("\x03", 130)])
def test_a_conversation_ends_with_the_terminal(talking, last, code):
    terminal = Terminal("chat", "-m", "x")
    terminal.hear(">")
    terminal.type(last)
    assert terminal.end().code == code
