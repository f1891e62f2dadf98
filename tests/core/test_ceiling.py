import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mindgw.core import ceiling
from mindgw.core.ceiling import (
    AUDIO,
    CAPS,
    IMAGE,
    MESSAGE,
    MODELS,
    MOST_OUTPUT,
    MOST_OVERHEAD,
    VIDEO,
    Ceiling,
    Overheads,
    is_capped,
    with_cap,
)

CHAT, COMPLETIONS, EMBEDDINGS = "chat", "completions", "embeddings"
PNG = "data:image/png;base64," + "iVBORw0KGgo" * 100
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8)
dumps = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def measured(endpoint: str = CHAT, **fields: object) -> Ceiling:
    return ceiling.prompt_ceiling(json.dumps({"model": "m", **fields}).encode(), endpoint)


def said(message: dict[str, object], **fields: object) -> Ceiling:
    return measured(messages=[message], **fields)


# -- the prompt --------------------------------------------------------------------------------------------------------


def test_text_counts_its_bytes_and_not_those_of_its_json():
    found = measured(messages=[{"role": "user", "content": 'Grüß\n"Gott" 你好 😀'}, {"role": "assistant", "content": None}])
    assert found == Ceiling(len("user" + "assistant") + len('Grüß\n"Gott" 你好 😀'.encode()), messages=2)
    assert found.tokens() == found.text_bytes + 2 * MESSAGE
    assert found.tokens(7) == found.tokens() + 7


@given(st.lists(st.dictionaries(texts, values, max_size=4), max_size=4), dumps)
def test_no_text_in_a_message_is_forgotten(messages, style):
    def strings(value):
        if isinstance(value, str):
            return len(value.encode())
        nodes = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return sum(map(strings, nodes))

    body = json.dumps({"model": "m", "messages": messages}, **style).encode()
    found = ceiling.prompt_ceiling(body, CHAT)
    assert found.text_bytes >= strings(messages)
    assert found.messages == len(messages)
    assert found.tools_bytes == 0


@given(texts, dumps)
def test_a_text_counts_the_same_however_it_is_written(text, style):
    body = json.dumps({"messages": [{"role": "user", "content": text}]}, **style).encode()
    assert ceiling.prompt_ceiling(body, CHAT).text_bytes == 4 + len(text.encode())


def test_parts_of_text_count_as_text():
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "é"}, "plain"]
    assert said({"role": "user", "content": parts}).text_bytes == 4 + (4 + 5) + (4 + 2) + len('"plain"')


def test_tool_calls_reasoning_and_names_count():
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    bare = said({"role": "assistant", "content": ""}).text_bytes
    assert said({"role": "assistant", "content": "", "tool_calls": calls}).text_bytes - bare >= len(
        json.dumps(calls, separators=(",", ":"))
    )
    assert said({"role": "assistant", "content": "", "reasoning_content": "hmm"}).text_bytes - bare >= 3
    assert said({"role": "assistant", "content": "", "name": "bob"}).text_bytes - bare == len("name" + "bob")
    assert said({"role": "assistant", "content": [{"type": "text", "text": "", "note": "bob"}]}).text_bytes - bare == len(
        "text" + "note" + "bob"
    )
    assert said({"role": "assistant", "content": "", "never seen": {"a": [1, 2]}}).text_bytes - bare >= len('{"a":[1,2]}')


@pytest.mark.parametrize("field", ["tools", "functions", "response_format", "documents", "chat_template_kwargs", "Messages", "suffix"])
def test_what_a_template_may_print_counts_as_json(field):
    value = [{"type": "function", "function": {"name": "f", "description": "é" * 50}}]
    found = said({"role": "user", "content": ""}, **{field: value})
    assert found.tools_bytes >= len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert found.tokens() == found.text_bytes + MESSAGE + found.tools_bytes


def test_settings_count_nothing():
    settings = {"stream": True, "temperature": 0.7, "user": "x" * 100, "metadata": {"a": "b" * 100}, "max_tokens": 5, "stop": ["x" * 50]}
    assert said({"role": "user", "content": "hi"}, **settings) == said({"role": "user", "content": "hi"})


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, "images"),
        ({"type": "image_url", "image_url": {"url": PNG, "detail": "high"}}, "images"),
        ({"type": "image_url", "image_url": PNG}, "images"),
        ({"type": "input_image", "image_url": PNG}, "images"),
        ({"type": "image", "image": "iVBORw0KGgo" * 100}, "images"),
        ({"image_url": {"url": PNG.replace("data:", "DATA:")}}, "images"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg" * 200, "format": "wav"}}, "sounds"),
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + "UklGRg" * 200}}, "sounds"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "AAAA" * 200}}, "films"),
    ],
)
def test_media_are_flat(part, kind):
    found = said({"role": "user", "content": [part, {"type": "text", "text": "hi"}]})
    assert found.text_bytes < 100
    assert (found.images, found.sounds, found.films) == tuple(int(kind == each) for each in ("images", "sounds", "films"))
    assert found.has_media
    flat = {"images": IMAGE, "sounds": AUDIO, "films": VIDEO}[kind]
    assert found.tokens() == found.text_bytes + MESSAGE + flat
    assert found.tokens(image=1, audio=1, video=1) == found.text_bytes + MESSAGE + 1


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a text with blanks " * 20}},
        {"type": "image_url", "image_url": "data:text/plain," + "a text, " * 20},
        {"type": "image_url", "image_url": {"url": {"url": PNG}}},
        {"type": "image_url", "image_url": {"url": PNG, "caption": "a text " * 20}},
        {"type": "image_url", "image_url": [PNG]},
        {"type": "image_url", "image_url": {"url": PNG}, "text": "a text " * 20},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo" * 100}},
        {"type": "image_embeds", "image_embeds": "AAAA" * 50},
    ],
)
def test_what_is_not_plainly_a_picture_counts_its_bytes_too(part):
    found = said({"role": "user", "content": [part]})
    assert found.images == 1
    assert found.text_bytes >= 140


def test_a_data_url_in_a_text_is_text():
    assert said({"role": "user", "content": PNG}) == Ceiling(4 + len(PNG), 1)
    assert said({"role": "user", "content": [{"type": "text", "text": PNG}]}).text_bytes >= len(PNG)
    assert said({"role": "user", "content": [{"type": "file", "file": {"file_data": PNG}}]}).text_bytes >= len(PNG)
    assert said({"role": "user", "content": [{"type": 7, "text": PNG}]}).text_bytes >= len(PNG)


@pytest.mark.parametrize(
    ("prompt", "text", "prompts"),
    [
        ("héllo", 6, 1),
        (["héllo", "a"], 7, 2),
        ([1, 2, 300], 3, 1),
        ([[1, 2], [3], []], 3, 3),
        ([1, "ab", 3], 6, 1),  # llama.cpp's mixed form: the text counts with its quotes
        ([], 0, 1),
        ([["ab", 1]], 5, 1),
        ({"a": "b"}, 9, 1),
        (7, 1, 1),
    ],
)
def test_prompts_are_texts_or_token_ids(prompt, text, prompts):
    for endpoint, field in [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input"), (CHAT, "prompt")]:
        answers = prompts if endpoint == COMPLETIONS else 1
        assert measured(endpoint, **{field: prompt}) == Ceiling(text, prompts, answers=answers)


def test_pictures_beside_a_prompt_count():
    found = measured(COMPLETIONS, prompt=[{"prompt_string": "what?", "multimodal_data": ["AAAA", "AAAA"]}, {"multimodal_data": 7}])
    assert found.images == 2
    assert found.answers == 2


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 3.0}, 3),
        ({"n": 2.5}, 3),
        ({"n": None}, 1),
        ({"n": -5}, 1),
        ({"n": True}, 1),
        ({"n": "4"}, 1),
        ({"n": 10**9}, 1),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": 2, "prompt": ["a", "b", "c"]}, 6),
    ],
)
def test_answers_are_counted(fields, answers):
    assert measured(COMPLETIONS, **{"prompt": "a", **fields}).answers == answers


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_a_number_that_is_too_large_hides_nothing(number):
    body = b'{"x":%b,"n":2,"prompt":["aaa","bbb",%b],"messages":[{"content":"aaa"},{"content":"bbb","y":%b,"image":1}]}' % ((number,) * 3)
    found = ceiling.prompt_ceiling(body, COMPLETIONS)
    assert found.answers == 6
    assert found.messages == 5
    assert found.text_bytes >= 12 + 3 * len(number)
    assert found.tools_bytes >= len(number)
    assert found.images == 1


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"x", b'"data:image"', b'{"messages":[{"content":"\\ud800"}]}', b"[" * 10_000, b'{"a":' * 10_000]
)
def test_what_cannot_be_read_counts_whole(body):
    assert ceiling.prompt_ceiling(body, CHAT).text_bytes == len(body)


def test_bytes_that_are_no_text_count():
    assert ceiling.prompt_ceiling(b'{"messages":[{"content":"\xff\xff\xff"}]}', CHAT).text_bytes >= 3


def test_what_may_be_a_picture_in_what_cannot_be_read_counts():
    assert ceiling.prompt_ceiling(b'{"type":"IMAGE_url","x":"\\ud800"}', CHAT).images == 1
    assert measured(messages=[["an image"]]).images == 1
    assert measured(messages="an image").tools_bytes >= 8


@given(
    st.binary(max_size=40)
    | st.dictionaries(st.sampled_from(["messages", "prompt", "input", "n", "x"]), values).map(json.dumps).map(str.encode)
)
def test_any_bytes_have_a_ceiling(body):
    for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS):
        found = ceiling.prompt_ceiling(body, endpoint)
        assert found.tokens() >= 0
        assert found.answers >= 1


# -- what templates add ------------------------------------------------------------------------------------------------


def test_the_most_that_a_template_added_is_remembered():
    overheads, short = Overheads(), Ceiling(10, 1)
    assert overheads.of("m") == 0
    overheads.learn("m", short, short.tokens() - 5)
    assert overheads.of("m") == 0
    overheads.learn("m", short, short.tokens() + 30)
    overheads.learn("m", short, short.tokens() + 20)
    assert overheads.of("m") == 30
    assert short.tokens(overheads.of("m")) == short.tokens() + 30
    assert overheads.of("other") == 0


def test_media_teach_nothing():
    overheads = Overheads()
    overheads.learn("m", Ceiling(10, 1, images=1), 10**6)
    assert overheads.of("m") == 0


def test_an_engine_that_lies_is_believed_only_so_far():
    overheads = Overheads()
    overheads.learn("m", Ceiling(10, 1), 2**53)
    overheads.learn("m", Ceiling(10, 1), -(2**53))
    assert overheads.of("m") == MOST_OVERHEAD


def test_the_model_that_taught_nothing_for_long_is_forgotten():
    overheads, empty = Overheads(), Ceiling(0)
    for number in range(MODELS):
        overheads.learn(f"m{number}", empty, 1)
    overheads.learn("m0", empty, 2)
    overheads.learn("new", empty, 1)
    assert overheads.of("m1") == 0
    assert (overheads.of("m0"), overheads.of("m2"), overheads.of("new")) == (2, 1, 1)


# -- the cap of an answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "default", "context", "guess", "more", "expected"),
    [
        (None, None, None, 0, {}, MOST_OUTPUT),
        (None, 512, None, 0, {}, 512),
        (100, 512, None, 0, {}, 100),
        (1000, 512, None, 0, {}, 1000),  # the default is for those who ask for none
        (0, 512, None, 0, {}, 1),
        (1000, None, 4096, 3500, {}, 596),
        (1000, None, 4096, 5000, {}, 1),  # the engine refuses it, not the guess
        (1000, None, None, 0, {"left": 300}, 300),
        (1000, None, None, 0, {"left": 300, "answers": 4}, 75),
        (1000, None, None, 0, {"left": 3, "answers": 4}, 0),
        (1000, None, None, 0, {"left": -3}, 0),
        (1000, None, None, 0, {"left": 300, "answers": 0}, 300),
    ],
)
def test_a_cap_is_the_least_of_its_bounds(asked, default, context, guess, more, expected):
    assert ceiling.cap(asked, default, context, guess, **more) == expected


#: Names that some engine takes for a cap.
NAMES = [*CAPS, "Max_Tokens", "MAX_COMPLETION_TOKENS", "max_toKens", "max_tokenſ", "n_predict"]
#: Names that none does.
OTHERS = ["model", "max_tokens_", "xmax_tokens", "max_images", "n_predict_", '"max_tokens":9', "max tokens", ""]
olds = st.none() | st.integers(-1, 10**9) | st.booleans() | texts | st.floats(allow_nan=False, allow_infinity=False)
pairs = st.lists(st.tuples(st.sampled_from(NAMES), olds) | st.tuples(st.sampled_from(OTHERS) | texts, values), max_size=6)
blanks = st.text(" \t\r\n", max_size=3)


@st.composite
def documents(draw):
    """An object, with whatever blanks, escapes and duplicates JSON allows: (bytes, names in order, what is read by those for whom the
    last duplicate wins)."""
    entries = draw(pairs)
    style, escaped = draw(dumps), draw(st.booleans())
    parts = []
    for name, value in entries:
        key = json.dumps(name)
        if escaped and name.isalnum():
            key = '"' + "".join(f"\\u{ord(letter):04x}" for letter in name if ord(letter) < 0x10000) + '"'
            assume(json.loads(key) == name)
        parts.append(draw(blanks) + key + draw(blanks) + ":" + draw(blanks) + json.dumps(value, **style) + draw(blanks))
    text = draw(blanks) + "{" + (",".join(parts) or draw(blanks)) + "}" + draw(blanks)
    return text.encode(), dict(entries)


def is_cap(name: str) -> bool:
    return name.casefold() in {*CAPS, "n_predict"}


@given(documents(), st.integers(0, 10**6), st.sampled_from(CAPS))
def test_only_the_cap_changes(document, cap, field):
    body, fields = document
    capped = with_cap(body, cap, field)
    pairs = json.loads(capped, object_pairs_hook=lambda pairs: pairs)
    after = json.loads(capped)
    assert {name: value for name, value in after.items() if not is_cap(name)} == {n: v for n, v in fields.items() if not is_cap(n)}
    caps = [(name, value) for name, value in pairs if is_cap(name)] if fields or pairs else []
    assert all(value == cap for name, value in caps if name.casefold() != "n_predict")
    assert all(type(value) is int and 0 <= value <= cap for _, value in caps)
    assert any(name in CAPS for name, _ in caps), "every engine finds one that it knows"
    if any(name in CAPS for name in fields):
        assert {name for name, _ in caps} == {name for name in fields if is_cap(name)}, "none is added to one that is there"
    else:
        assert after[field] == cap


@given(documents(), st.integers(0, 10**6))
def test_a_body_without_a_cap_only_grows(document, cap):
    body, fields = document
    assume(not any(map(is_cap, fields)))
    capped = with_cap(body, cap)
    stem = body.rstrip().removesuffix(b"}")
    assert capped.startswith(stem)
    assert capped[len(stem) :] == b'%b"max_tokens":%d}' % (b"," if fields else b"", cap)


@given(documents(), st.integers(0, 10**6))
def test_a_cap_that_is_there_stays_when_set_again(document, cap):
    once = with_cap(document[0], cap)
    assert json.loads(with_cap(once, cap)) == json.loads(once)


@pytest.mark.parametrize(
    ("body", "capped"),
    [
        (b"{}", b'{"max_tokens":7}'),
        (b" { } \n", b' { "max_tokens":7}'),
        (b'{"a": 1}  \n', b'{"a": 1,"max_tokens":7}'),
        (b'{"max_tokens":9}', b'{"max_tokens":7}'),
        (b'{"max_tokens":null}', b'{"max_tokens":7}'),
        (b'{"max_tokens":-1}', b'{"max_tokens":7}'),
        (b'{"max_completion_tokens": 9 }', b'{"max_completion_tokens":7}'),
        (b'{"max_tokens":9,"max_completion_tokens":5}', b'{"max_tokens":7,"max_completion_tokens":7}'),
        (b'{"max_tokens":9,"a":1,"max_tokens":5}', b'{"max_tokens":7,"a":1}'),
        (b'{"\\u006dax_tokens":9}', b'{"max_tokens":7}'),
        (b'{"Max_Tokens":9}', b'{"Max_Tokens":7,"max_tokens":7}'),
        (b'{"n_predict":9}', b'{"n_predict":7,"max_tokens":7}'),
        (b'{"n_predict":-2,"max_tokens":5}', b'{"n_predict":7,"max_tokens":7}'),
        (b'{"n_predict":3}', b'{"n_predict":3,"max_tokens":7}'),
        (b'{"n_predict":3.0}', b'{"n_predict":7,"max_tokens":7}'),
        (b'{"n_predict":%b}' % (b"1" * 5000), b'{"n_predict":7,"max_tokens":7}'),
        (b'{"options":{"max_tokens":9}}', b'{"options":{"max_tokens":9},"max_tokens":7}'),
        (b'{"a":"\\"max_tokens\\":9}"}', b'{"a":"\\"max_tokens\\":9}","max_tokens":7}'),
        (b'{"a": 1e999, "max_tokens": 9}', b'{"a":1e999,"max_tokens":7}'),
        ('{"a":"é","max_tokens":9}'.encode(), '{"a":"é","max_tokens":7}'.encode()),
    ],
)
def test_a_cap_is_put_where_engines_look_for_it(body, capped):
    assert with_cap(body, 7) == capped


@given(st.binary(max_size=20))
@example(b"")
@example(b"[]")
@example(b"null")
@example(b'{"a":1}x')
@example(b'{"a":1')
@example(b'{"a":' * 5000)
def test_what_is_no_object_takes_no_cap(body):
    try:
        assert isinstance(json.loads(body), dict)
    except (ValueError, RecursionError, AssertionError):
        with pytest.raises(ValueError, match="only be put into a JSON object"):
            with_cap(body, 7)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"{}", True),
        (b'{"max_tokens":7}', True),
        (b'{"max_tokens":8}', False),
        (b'{"max_tokens":7,"max_completion_tokens":3,"n_predict":0}', True),
        (b'{"max_tokens":7,"max_completion_tokens":9}', False),
        (b'{"max_tokens":7,"MAX_TOKENS":9}', False),
        (b'{"max_tokens":7,"n_predict":-1}', False),
        (b'{"max_tokens":7,"n_predict":9.0}', False),
        (b'{"max_tokens":7,"max_completion_tokens":null}', False),
        (b'{"max_tokens":9,"max_tokens":7}', True),
        (b'{"a":{"max_tokens":9},"max_tokens":7}', True),
    ],
)
def test_a_cap_under_any_name_counts(body, good):
    assert is_capped(body, 7) == good
    assert is_capped(with_cap(body, 7), 7)
