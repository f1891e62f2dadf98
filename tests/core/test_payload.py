import json
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from mindgw.core import ceiling, payload
from mindgw.core.payload import CHAT, COMPLETIONS, EMBEDDINGS, Invalid, Peek, StreamOptions
from mindgw_agent import payload as media

FIELDS = [*payload.Body.__struct_fields__, "include_usage"]
leaves = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=4)
names = st.sampled_from(FIELDS)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8)
bodies = st.dictionaries(names, values).map(lambda fields: json.dumps(fields).encode())
endpoints = st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS])


def peek(endpoint: str = CHAT, **fields: object) -> Peek | Invalid:
    fields = {"model": "m", "messages": [{}]} | fields
    return payload.peek(json.dumps({k: v for k, v in fields.items() if v is not ...}).encode(), endpoint, most_n=8)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return b'{"model":"m","messages":[{}],"x":' + (opening * depth + "1" + closing * depth).encode() + b"}"


@given(st.binary(max_size=60) | bodies, endpoints)
@example(b'{"model":"m","messages":[{"x":"\xff"}]}', CHAT)
@example(b'{"model":"m","messages":[{"x":"\xff","y":' + b"[" * 70 + b"]" * 70 + b"}]}", CHAT)
def test_any_bytes_are_a_request_or_a_reason(body, endpoint):
    seen = payload.peek(body, endpoint, most_n=8)
    if isinstance(seen, Peek):
        assert seen.model
        body.decode()
    else:
        assert seen.message


@given(bodies, endpoints, st.data())
def test_damaged_bodies_are_a_request_or_a_reason(body, endpoint, data):
    place = data.draw(st.integers(0, len(body)))
    damaged = body[:place] + data.draw(st.binary(max_size=3)) + body[place + data.draw(st.integers(0, 3)) :]
    assert isinstance(payload.peek(damaged, endpoint, most_n=8), Peek | Invalid)


@pytest.mark.parametrize("depth", [*range(880, 1010), 90_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_depth_bomb_is_a_reason_whatever_its_depth(depth, opening, closing):
    assert payload.peek(nested(depth, opening, closing), CHAT, most_n=8) == Invalid("The request body is nested deeper than 64 levels.")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_sixty_four_levels_are_the_deepest(opening):
    closing = "]" if opening == "[" else "}"
    assert isinstance(payload.peek(nested(63, opening, closing), CHAT, most_n=8), Peek)
    assert isinstance(payload.peek(nested(64, opening, closing), CHAT, most_n=8), Invalid)


def test_many_shallow_brackets_are_not_deep():
    assert isinstance(peek(logit_bias=[[]] * 500), Peek)


CROWDED = {
    "numbers": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":[' + b"1," * 110_000 + b"1]}",
    "objects": b'{"model":"m","messages":[{"role":"user","content":["file",' + b"{}," * 110_000 + b"{}]}]}",
    "lists": b'{"model":"m","messages":[{"role":"user","content":[' + b"[]," * 110_000 + b"[]]}]}",
    "messages": b'{"model":"m","messages":[' + b'{"role":"","content":""},' * 60_000 + b"{}]}",
    "texts": b'{"model":"m","messages":[{"role":"user","content":"x"}],"stop":[' + b'"\\\\",' * 110_000 + b'""]}',
    "names": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":{' + b'"":1,' * 210_000 + b'"":1}}',
}


@pytest.mark.parametrize("body", CROWDED.values(), ids=CROWDED)
def test_too_many_values_are_refused_and_nothing_is_made_of_them(body, monkeypatch):
    json.loads(body)
    for name in ("_decode_plain", "_DECODER", "_LIST"):
        monkeypatch.setattr(payload, name, None)
    assert payload.peek(body, CHAT, most_n=8) == Invalid("The request body has more than 100000 values.")


@pytest.mark.parametrize("text", ["{[,", '\\"{[,', '\\\\\\"{[,', '"{[,'])
def test_a_long_text_is_one_value_whatever_it_says(text):
    said = text * 100_000
    assert isinstance(peek(messages=[{"role": "user", "content": said}]), Peek)
    assert isinstance(peek(messages=[{"role": "user", "content": [{"type": "text", "text": said}]}]), Peek)


def test_as_many_token_ids_as_one_embeds_are_taken():
    assert isinstance(peek(EMBEDDINGS, input=[[7] * 8191] * 36), Peek)


@given(values)
def test_values_and_levels_are_counted_without_reading_them(document):
    """An oracle that reads them. A list or object that is empty counts as one value more."""

    def count(value) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, inner)) + (isinstance(value, dict | list) and not value)

    def levels(value) -> int:
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(levels, inner), default=0) if isinstance(value, dict | list) else 0

    body = json.dumps(document).encode()
    for most in range(count(document) + 2):
        crowded = Invalid(f"The request body has more than {most} values.")
        assert (payload._too_much(body, most) == crowded) == (count(document) - 1 > most)
    assert payload._depth(payload._structure(body)) == levels(document)


def test_what_was_asked_is_seen():
    body = peek(stream=True, stream_options={"include_usage": True, "other": 1}, max_tokens=5, n=8, foo={"any": "thing"})
    assert body == Peek("m", True, True, 5)


def test_silence_is_the_plain_question():
    assert peek() == Peek("m", False, False, None)


@pytest.mark.parametrize("name", ["stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "tools"])
def test_null_is_the_same_as_nothing(name):
    assert peek(**{name: None}) == Peek("m", False, False, None)


def test_the_newer_name_of_the_cap_wins():
    seen = peek(max_tokens=5, max_completion_tokens=7)
    assert isinstance(seen, Peek)
    assert seen.max_tokens == 7


def test_the_body_must_be_an_object():
    for body in (b"[]", b'"x"', b"1", b"null"):
        seen = payload.peek(body, CHAT, most_n=8)
        assert isinstance(seen, Invalid)
        assert "must be a JSON object" in seen.message


@pytest.mark.parametrize("body", [b"", b"{", b"{]", b'{"model":"m"} x', b"<html>", b"model=m", b"\xff\xfe", b'{"model":"\xed\xa0\x80"}'])
def test_what_is_not_json_is_called_so(body):
    seen = payload.peek(body, CHAT, most_n=8)
    assert isinstance(seen, Invalid)
    assert seen.message.startswith("The request body is not valid JSON")
    assert seen.param == ""


@pytest.mark.parametrize("value", [..., None, ""])
def test_a_model_is_needed(value):
    assert peek(model=value) == Invalid("you must provide a model parameter", "model")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 1), ("model", "m" * 513), ("stream", "yes"), ("stream", 1), ("stream_options", []), ("n", 0), ("n", 9), ("n", "1"),
        ("n", 1.5), ("max_tokens", -2), ("max_tokens", "5"), ("max_completion_tokens", -2), ("messages", ...), ("messages", None),
        ("messages", "hi"), ("messages", {}), ("messages", []), ("messages", [{}] * 4097), ("messages", ["hi"]), ("messages", [{}, None]),
        ("tools", [{}] * 129),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field, value):
    seen = peek(**{field: value})
    assert isinstance(seen, Invalid)
    assert seen.param == field
    assert field in seen.message


def test_a_wrong_inner_field_is_found_under_its_outer_name():
    seen = peek(stream_options={"include_usage": "yes"})
    assert isinstance(seen, Invalid)
    assert seen.param == "stream_options"


@pytest.mark.parametrize(("endpoint", "field"), [(CHAT, "messages"), (COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_each_endpoint_needs_its_own_field(endpoint, field):
    assert payload.peek(b'{"model":"m"}', endpoint, most_n=8) == Invalid(f"Missing required parameter: '{field}'.", field)


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2], [[1], [2]]])
def test_prompts_and_inputs_come_in_four_forms(value):
    assert isinstance(peek(COMPLETIONS, prompt=value), Peek)
    assert isinstance(peek(EMBEDDINGS, input=value), Peek)


@pytest.mark.parametrize("value", [1, {}, True])
def test_other_forms_of_a_prompt_are_refused(value):
    assert peek(COMPLETIONS, prompt=value) == Invalid("'prompt' must be a text or a list.", "prompt")


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"[]", "The request body must be a JSON object, not a list.", ""),
        (b'"x"', "The request body must be a JSON object, not a text.", ""),
        (b'{"model":1}', "'model' must be a text, not a whole number.", "model"),
        (b'{"model":"m","stream":"yes"}', "'stream' must be true or false, not a text.", "stream"),
        (b'{"model":"m","n":1.5}', "'n' must be a whole number, not a number with a fraction.", "n"),
        (b'{"model":"m","max_tokens":"5"}', "'max_tokens' must be a whole number, not a text.", "max_tokens"),
        (b'{"model":"m","max_tokens":true}', "'max_tokens' must be a whole number, not true or false.", "max_tokens"),
        (b'{"model":"m","stream_options":[]}', "'stream_options' must be an object, not a list.", "stream_options"),
        (b'{"model":"m","stream_options":{"include_usage":1}}', "'stream_options.include_usage' must be true or false, not a whole number.",
         "stream_options"),
        (b'{"model":"m","messages":"hi"}', "'messages' must be a list.", "messages"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_in_plain_words(body, message, param):
    assert payload.peek(body, CHAT, most_n=8) == Invalid(message, param)


@pytest.mark.parametrize(
    ("kind", "document", "words"),
    [
        (Annotated[str, Meta(min_length=1)], "", "must have at least 1 character"),
        (Annotated[str, Meta(max_length=2)], "abc", "must have at most 2 characters"),
        (Annotated[list[int], Meta(min_length=2)], [], "must have at least 2 entries"),
        (Annotated[str, Meta(pattern="^a$")], "b", "has characters that are not allowed"),
        (Annotated[int, Meta(ge=1)], 0, "must be at least 1"),
        (Annotated[float, Meta(gt=1)], 0.5, "must be more than 1.0"),
        (Annotated[int, Meta(le=9)], 10, "must be at most 9"),
        (Annotated[float, Meta(lt=9)], 10.5, "must be less than 9.0"),
        (Literal["a", "b"], "c", "must not be 'c'"),
        (int | str, 1.5, "must be a whole number or a text, not a number with a fraction"),
        (StreamOptions, None, "must be an object, not null"),
        (list[str], {}, "must be a list, not an object"),
        (bytes, 1, "must be a text, not a whole number"),
    ],
)
def test_what_a_decoder_says_is_put_into_plain_words(kind, document, words):
    with pytest.raises(msgspec.ValidationError) as wrong:
        msgspec.convert(document, kind)
    assert payload.plain(str(wrong.value)) == words


def test_fields_that_are_missing_or_unknown_are_told_plainly():
    class Form(msgspec.Struct, forbid_unknown_fields=True):
        name: str

    for document, words in (({}, "'name' is missing"), ({"name": "a", "x": 1}, "there is no field 'x'")):
        with pytest.raises(msgspec.ValidationError) as wrong:
            msgspec.convert(document, Form)
        assert payload.plain(str(wrong.value)) == words


@given(st.text())
def test_what_is_not_known_is_left_as_it_is(text):
    assert payload.plain(text) == text


def test_embeddings_are_not_streamed():
    assert peek(EMBEDDINGS, input="x", stream=True) == Invalid("Embeddings are not streamed.", "stream")


def test_as_many_messages_and_tools_as_allowed_are_taken():
    assert isinstance(peek(messages=[{}] * 4096, tools=[{}] * 128), Peek)


def test_minus_one_means_no_cap():
    assert peek(max_tokens=-1) == peek()


WORDS = st.sampled_from(["", "x", "image_url", "http://x", "\u00e9", "\ud800", "data:"])
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "image_url", "x"]), WORDS | values, max_size=4)
    | st.fixed_dictionaries({"role": WORDS, "content": WORDS}, optional={"name": st.none() | WORDS}),
    max_size=3,
)
CHATS = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "", None]), "messages": MESSAGES},
    optional={
        "stream": st.booleans() | WORDS, "stream_options": st.fixed_dictionaries({}, optional={"include_usage": leaves, "url": values}),
        "n": st.integers(-1, 9), "max_tokens": st.none() | st.integers(-3, 9), "max_completion_tokens": st.none() | st.integers(-3, 9),
        "temperature": leaves, "seed": leaves, "stop": leaves | st.lists(WORDS, max_size=2), "user": leaves | WORDS,
        "safety_identifier": WORDS, "service_tier": WORDS | leaves, "image": values, "tools": values, "Messages": values,
    },
)  # fmt: skip


@given(CHATS, st.booleans(), st.data())
def test_a_plain_chat_is_read_as_any_other_and_has_nothing_in_it_that_must_be_looked_for(document, damaged, data):
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    if damaged:
        place = data.draw(st.integers(0, len(body)))
        body = (
            body[:place] + data.draw(st.sampled_from([b"", b"\xff", b'"', b",", b'"messages":[{"image_url":"http://x"}],'])) + body[place:]
        )
    seen = payload.peek(body, CHAT, most_n=8)
    decode, payload._decode_plain = payload._decode_plain, msgspec.json.Decoder(int).decode
    try:
        wanted = payload.peek(body, CHAT, most_n=8)
    finally:
        payload._decode_plain = decode
    assert seen == (msgspec.structs.replace(wanted, text=seen.text) if isinstance(seen, Peek) and isinstance(wanted, Peek) else wanted)
    if isinstance(seen, Peek) and seen.text is not None:
        assert media.media_violation(body) is None
        body.decode()
        found = ceiling.Ceiling(seen.text.bytes, seen.text.messages, answers=seen.text.answers)
        assert found == ceiling.prompt_ceiling(body, CHAT)
        assert seen.text.caps == len({"max_tokens", "max_completion_tokens"} & json.loads(body).keys())
    assert not isinstance(wanted, Peek) or wanted.text is None


def test_what_most_ask_for_is_plain():
    hello = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is an image_url?"}]
    assert peek(messages=hello, stream=True, stream_options={"include_usage": True}, temperature=0.7, stop=["x"], max_tokens=5).text
    for extra in ({"tools": []}, {"image": "x"}, {"stream_options": {"url": "x"}}, {"messages": [{"role": "user", "content": []}]}):
        assert peek(**({"messages": hello} | extra)).text is None


def test_what_a_plain_chat_comes_to():
    said = [{"role": "system", "content": "brief"}, {"role": "user", "name": "zoë", "content": "é"}]
    assert peek(messages=said, n=2, max_tokens=5).text == payload.Text(len("systembrief") + len("user" + "name") + 4 + 2, 2, 2, 1)
    for name in ("max_tokens", "max_completion_tokens"):
        assert peek(messages=said, **{name: None}).text is None


def test_half_a_character_is_called_by_its_name():
    seen = payload.peek(b'{"model": "m", "messages": [{"role": "user", "content": "cut \\ud83d"}]}', CHAT, most_n=8)
    assert isinstance(seen, Invalid)
    assert "one half of a surrogate pair" in seen.message
