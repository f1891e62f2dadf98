import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindgw.core import fault

words = st.sampled_from(["error", "message", "detail", "code", "param", "type", "object"])
leaves = st.none() | st.booleans() | st.integers(-1, 700) | st.floats() | st.text(max_size=8) | st.just("context length exceeded")
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4), max_leaves=12)
statuses = st.integers(0, 999)
BLAMES = {"caller", "context", "model", "route", "engine"}


@given(statuses, st.binary(max_size=40) | documents.map(lambda document: json.dumps(document).encode()))
@example(400, b"<html><body>502 Bad Gateway</body></html>")
@example(400, b'{"error":{"message":"\\ud800"}}')
@example(400, b'{"error":{"code":' + b"9" * 5000 + b"}}")
def test_any_answer_is_some_fault(status, body):
    found = fault.read(status, body)
    assert found.blame in BLAMES
    assert 0 < len(found.message) <= 2000


@pytest.mark.parametrize("depth", [*range(880, 1010), 100_000])
def test_a_deep_document_is_a_fault_of_the_engine(depth):
    for opening, closing in ((b"[", b"]"), (b'{"error":', b"}"), (b'{"error":{"a":', b"}}")):
        assert fault.read(500, opening * depth + b"1" + closing * depth).blame == "engine"


@given(st.integers(0, 999), documents)
def test_any_document_is_some_fault(status, document):
    assert fault.from_document(status, document).blame in BLAMES


@pytest.mark.parametrize(
    ("status", "body", "blame", "message"),
    [
        # llama.cpp
        (400, {"error": {"message": "exceeds the available context size", "type": "exceed_context_size_error"}}, "context", ...),
        (500, {"error": {"code": 500, "message": "input is too large to process"}}, "context", ...),
        (501, {"error": {"message": "This feature is not supported"}}, "caller", ...),
        # vLLM
        (400, {"error": {"message": "This model's maximum context length is 128 tokens.", "param": "messages"}}, "context", ...),
        (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}, "model", ...),
        (401, {"error": "Unauthorized"}, "engine", "Unauthorized"),
        # SGLang, Ollama, frameworks, proxies
        (400, {"object": "error", "message": "top_p must be in (0, 1]", "code": 400}, "caller", "top_p must be in (0, 1]"),
        (404, {"error": 'model "x" not found, try pulling it first'}, "model", 'model "x" not found, try pulling it first'),
        (422, {"detail": "Field required"}, "caller", "Field required"),
        (404, {"detail": "Not Found"}, "route", "Not Found"),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, "route", "File Not Found"),
        (405, {"detail": "Method Not Allowed"}, "route", "Method Not Allowed"),
        (501, {"error": "not implemented"}, "route", "not implemented"),
        (404, {"error": {"message": "Response 'resp_1' not found"}}, "caller", ...),
        (501, {"error": {"message": "out of luck"}}, "engine", ...),
        (400, {"detail": "Not Found"}, "caller", "Not Found"),
        # what is wrong with a request, as llama.cpp sees it
        (500, {"error": {"message": "Failed to parse tools: [json.exception.out_of_range.403] key 'function' not found"}}, "caller", ...),
        (500, {"error": {"message": "Failed to parse messages: [json.exception.type_error.302] type must be string"}}, "caller", ...),
        (500, {"error": {"message": "Unknown reasoning format: zzz"}}, "caller", ...),
        (500, {"error": {"message": "Conversation roles must alternate user/assistant"}}, "caller", ...),
        (500, {"error": {"message": "[json.exception.type_error.316] invalid UTF-8 byte at index 3"}}, "engine", ...),
        (500, {"detail": [{"msg": "bad"}]}, "engine", "The engine answered with an error."),
        (429, {"error": {"message": " "}}, "engine", "The engine answered with an error."),
    ],
)  # fmt: skip
def test_each_dialect_is_understood(status, body, blame, message):
    found = fault.read(status, json.dumps(body).encode())
    assert (found.blame, found.status) == (blame, status)
    assert found.message == (body["error"]["message"] if message is ... else message)


def test_the_kind_of_error_counts_when_the_message_says_nothing():
    assert fault.from_document(400, {"error": {"message": "no", "type": "exceed_context_size_error"}}).blame == "context"


@pytest.mark.parametrize(("code", "status"), [(400, 400), (599, 599), (399, 0), (600, 0), ("400", 0), (True, 0), (None, 0), (4.5, 0)])
def test_an_error_event_brings_its_status_as_a_code(code, status):
    assert fault.from_document(0, {"error": {"message": "m", "code": code}}).status == status


@pytest.mark.parametrize(("param", "kept"), [("messages", "messages"), (None, ""), (7, "")])
def test_the_field_at_fault_is_kept_when_it_is_a_name(param, kept):
    assert fault.from_document(400, {"error": {"message": "m", "param": param}}).param == kept


@pytest.mark.parametrize("status", [401, 403, 407, 408, 429])
def test_a_refusal_of_the_gateway_itself_is_not_the_callers_fault(status):
    assert fault.from_document(status, {"error": "no"}).blame == "engine"


def test_a_long_message_is_cut():
    assert len(fault.from_document(400, {"error": "x" * 9000}).message) == 2000


@pytest.mark.parametrize("body", [b"", b"404 page not found\n", b"<html>404</html>"])
def test_a_path_that_an_engine_does_not_know_is_no_fault_of_the_caller(body):
    assert fault.read(404, body).blame == "route"
