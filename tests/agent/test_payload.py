"""What bodies may carry, and that everything else passes as it was written."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import payload

DATA = "data:image/png;base64,iVBORw0KGgo="


def user(*parts) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


INLINE = [
    {},
    {"messages": [{"role": "user", "content": "look at https://example.com/cat.png and file:///etc/passwd"}]},
    user({"type": "image_url", "image_url": {"url": DATA}}),
    user({"type": "image_url", "image_url": {"url": DATA.replace("data:", "DATA:")}}),
    user({"type": "image_url", "image_url": DATA}),
    user({"type": "input_audio", "input_audio": {"data": "/9j/4AAQSkZJRg==", "format": "wav"}}),
    user({"type": "file", "file": {"filename": "C:\\notes.pdf", "file_data": "data:application/pdf;base64,AA=="}}),
    {"tools": [{"function": {"parameters": {"properties": {"image_url": {"type": "string", "description": "http://x"}}}}}]},
    {"audio": {"voice": "alloy", "format": "wav"}, "metadata": {"image": "v1.2", "url": "https://example.com"}},
]
FETCHED = [
    (user({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}), "http://169.254.169.254/latest"),
    (user({"type": "image_url", "image_url": "HTTPS://example.com"}), "HTTPS://example.com"),
    (user({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), "/etc/passwd"),
    (user({"type": "image_url", "Image_URL": {"URL": "ftp://x"}}), "ftp://x"),
    (user({"type": "video_url", "video_url": {"url": "file:///x"}}), "file:///x"),
    (user({"type": "audio_url", "audio_url": {"url": " http://x"}}), " http://x"),
    (user({"type": "input_audio", "input_audio": {"data": "file:///x"}}), "file:///x"),
    (user({"type": "input_audio", "input_audio": {"url": "//host/x"}}), "//host/x"),
    (user({"type": "file", "file": {"file_url": "gopher://x"}}), "gopher://x"),
    (user({"type": "file", "file": {"file_data": "s3://bucket"}}), "s3://bucket"),
    (user({"type": "input_image", "image_url": "http://x"}), "http://x"),
    (user({"type": "image", "image": "../x"}), "../x"),
    ({"messages": [{"role": "tool", "content": [[{"deep": {"image_url": {"url": "http://x"}}}]]}]}, "http://x"),
    ({"input": [{"image_url": "http://x"}]}, "http://x"),
]


@pytest.mark.parametrize("document", INLINE, ids=str)
def test_inline_media_pass(document):
    assert payload.media_violation(json.dumps(document).encode()) is None


@pytest.mark.parametrize(("document", "address"), FETCHED, ids=str)
def test_addresses_are_found_at_every_depth(document, address):
    assert payload.media_violation(json.dumps(document).encode()) == address


def test_letters_spelled_as_escapes_hide_nothing():
    body = rb'{"messages":[{"content":[{"\u0069mage_ur\u006c":{"ur\u006C":"http://x"}}]}]}'
    assert payload.media_violation(body) == "http://x"


def test_what_a_laxer_parser_might_read_is_refused():
    assert payload.media_violation(b'{"image_url":"http://x","t":NaN}') is not None
    assert payload.media_violation(b'{"image_url":' + b"[" * 5000) is not None


def test_media_are_not_decoded_where_a_glance_will_do(monkeypatch):
    picture = DATA + "A" * 1_000_000
    parts = [
        {"type": "text", "text": 'see "file": "http://x", or \\"image_url": "http://x"'},
        {"type": "image_url", "image_url": {"detail": "low", "url": picture}},
        {"image_url": picture},
        {"type": "input_audio", "input_audio": {"data": "/9j/" + "A" * 1000, "format": "wav"}},
        {"type": "file", "file": {"filename": "C:\\notes.pdf", "file_data": picture}},
        {"image": "AAAA", "video_url": None, "audio": ["x"], "file": 3},
    ]
    body = json.dumps(user(*parts)).encode()
    monkeypatch.setattr(payload, "_decode", None)
    assert payload.media_violation(body) is None
    with pytest.raises(TypeError):
        payload.media_violation(json.dumps(user({"image_url": "http://x"})).encode())


def test_many_fields_of_media_are_judged_as_few():
    parts = [{"image": {}}] * 5000
    assert payload.media_violation(json.dumps(user(*parts)).encode()) is None
    assert payload.media_violation(json.dumps(user(*parts, {"image": "http://x"})).encode()) == "http://x"


words = st.sampled_from(["image_url", "url", "file", "input_audio", "data", "video", "text", "Image_Url"])
leaves = st.sampled_from([DATA, "http://x", "file:///x", "plain words", "AAAA"]) | st.none() | st.integers() | st.booleans()
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=12)


@given(documents)
def test_image_addresses_never_pass(document):
    """An oracle by brute force: whatever stands under image_url as text, or as its url, is inline, or the body is refused."""

    def images(value) -> list:
        if isinstance(value, list):
            return [found for item in value for found in images(item)]
        if not isinstance(value, dict):
            return []
        own = [
            item["url"] if isinstance(item, dict) and "url" in item else item for name, item in value.items() if name.lower() == "image_url"
        ]
        return [item for item in own if isinstance(item, str)] + [found for item in value.values() for found in images(item)]

    violation = payload.media_violation(json.dumps(document).encode())
    if any(not text.startswith("data:") for text in images(document)):
        assert violation is not None
    if violation is not None:
        assert not violation.startswith("data:")


strange = st.text(st.sampled_from('"\\/:.~{}u 0069AaDdt\t')) | st.sampled_from(["//h", "data", "Data:,", "c:/x", "\\\\h\\x", " http://x"])


@given(st.recursive(leaves | strange, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | strange, inner, max_size=3)))
def test_a_glance_and_a_reading_find_the_same(document):
    for body in (json.dumps({"x": document}), json.dumps({"x": document}, indent=1), msgspec.json.encode({"x": document}).decode()):
        assert payload.media_violation(body.encode()) == payload._read(body.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_a_crash(body):
    assert payload.media_violation(body) is None or isinstance(payload.media_violation(body), str)
    try:
        payload.scrub(payload.parse(body))
    except payload.Refused:
        pass


names = st.sampled_from(["id_slot", "RID", "lora", "priority", "bootstrap_host", "return_prompt_tokens", "chat_template"])
others = st.text(max_size=6).filter(lambda name: not payload.denied(name))
numbers = st.sampled_from(["1.0", "1e2", "-0", "123456789012345678901234567890", "0.10000000000000000555", '"\\u00e9"', "[ 1,2 ]"])


@given(st.dictionaries(others, numbers, max_size=4), st.sets(names))
def test_denied_fields_go_and_the_others_stay_byte_for_byte(kept, denied):
    fields = kept | dict.fromkeys(denied, "1")
    body = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"
    parsed = payload.parse(body.encode())
    assert set(payload.scrub(parsed)) == denied
    assert {name: bytes(value).decode() for name, value in parsed.items()} == kept
    for value in kept.values():
        assert value.encode() in payload.render(parsed)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"a":', b'"x"', b"\xff", b'{"a":1}x', b"{" * 5000])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(payload.Refused):
        payload.parse(body)


@pytest.mark.parametrize(("body", "answers"), [(b"{}", 1), (b'{"n":null}', 1), (b'{"n":8}', 8), (b'{"n":2,"best_of":3}', 3)])
def test_answers_are_counted(body, answers):
    assert payload.answers(payload.parse(body)) == answers


@pytest.mark.parametrize("n", [b"0", b"-1", b"9", b"1.5", b'"2"', b"true", b"[]", b"1e99"])
def test_too_many_answers_and_odd_numbers_are_refused(n):
    with pytest.raises(payload.Refused) as refused:
        payload.answers(payload.parse(b'{"n":' + n + b"}"))
    assert refused.value.param == "n"


def test_a_field_that_only_looks_like_json_is_refused_by_its_name():
    """Values pass unread, so bytes that are no text are found when somebody asks for them."""
    with pytest.raises(payload.Refused) as refused:
        payload.answers(payload.parse(b'{"best_of":"\xff"}'))
    assert refused.value.param == "best_of"
    assert "cannot be read" in refused.value.message


@pytest.mark.parametrize(
    ("options", "asked"), [(b"null", {"include_usage": True}), (b'{"include_usage":false,"x":[1]}', {"include_usage": True, "x": [1]})]
)
def test_usage_is_asked_for_beside_the_callers_options(options, asked):
    fields = payload.parse(b'{"stream_options":' + options + b"}")
    payload.ask_usage(fields)
    assert msgspec.json.decode(fields["stream_options"]) == asked


def test_an_estimate_leaves_media_out():
    body = json.dumps(user({"image_url": {"url": "data:image/png;base64," + "A" * 100_000}})).encode()
    assert payload.estimate_tokens(body) < 50
    assert payload.estimate_tokens(b"") == 1
    assert payload.estimate_tokens(msgspec.json.encode("x" * 400)) == 100
