"""What is wrong with a request: its body, its key, its method, its path. Each answer has its status, OpenAI's form and no more in it.

A real server and agent, raw sockets, a FAKE engine behind; at the end nothing may have leaked and nothing be lost.
"""

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mindgw_agent.tokens import make_key
from tests.e2e.raw import CHAT, Answer, Raw, fetch, head, request
from tests.e2e.stage import Stage
from tests.e2e.stage import stage as open_stage
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

GOOD = b'{"model":"fake","messages":[{"role":"user","content":"plain"}]}'
COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("bad")) as made:
        yield made


def with_field(name: str, value: str) -> bytes:
    """A good chat request with one field written otherwise."""
    fields = {"model": '"fake"', "messages": '[{"role":"user","content":"plain"}]', name: value}
    return ("{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}").encode()


# -- bodies ------------------------------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "cut": GOOD[:-5],
    "brackets": b"[" * 100_000,
    "deep": b'{"model":"fake","messages":[{"role":"user","content":"plain"}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nonsense": bytes(range(256)) * 4096,
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"1e999",
    "not UTF-8": GOOD.replace(b"plain", b"\xff\xfe"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf" + GOOD,
    "half a pair": GOOD.replace(b"plain", b"\\ud83d"),
    "a raw NUL": GOOD.replace(b"plain", b"a\x00b"),
    "a NUL behind": GOOD + b"\x00",
    "more behind": GOOD + b"{}",
    "compressed": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("name", BROKEN)
def test_body_that_is_not_json_is_refused(stage: Stage, name: str) -> None:
    before = len(stage.engine.requests)
    answer = stage.ask(BROKEN[name])
    assert answer.status == 400 and answer.error["code"] == "invalid_request"
    assert answer.error["type"] == "invalid_request_error" and len(answer.body) < 1000
    assert len(stage.engine.requests) == before


def test_text_cut_inside_a_character_is_named(stage: Stage) -> None:
    assert "surrogate" in stage.ask(BROKEN["half a pair"]).error["message"]


@pytest.mark.parametrize("text", ["\\u0000", "\\ud83d\\ude00", "\\\\ud83d", "\\u001b[31m", "\\r\\ndata: [DONE]"])
def test_escapes_reach_the_engine_as_they_are(stage: Stage, text: str) -> None:
    body = json.dumps({"model": "fake", "messages": [{"role": "system", "content": "@"}, {"role": "user", "content": "plain"}]})
    assert stage.ask(body.replace("@", text).encode()).status == 200
    assert stage.engine.requests[-1][0]["messages"][0]["content"] == json.loads(f'"{text}"')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "1"), ("model", "[]"), ("model", "{}"), ("model", '""'), ("model", "null"), ("model", f'"{"m" * 10_240}"'),
        ("stream", '"yes"'), ("stream", "1"), ("stream_options", "[]"), ("stream_options", '{"include_usage":"x"}'),
        ("n", '"2"'), ("n", "0"), ("n", "-1"), ("n", "1.5"), ("n", "1e999"), ("n", "9" * 300), ("n", "true"),
        ("max_tokens", '"9"'), ("max_tokens", "-2"), ("max_tokens", "[]"), ("max_completion_tokens", "{}"),
        ("messages", "null"), ("messages", '"x"'), ("messages", "[]"), ("messages", "[1]"), ("messages", "{}"), ("messages", "[null]"),
        ("tools", "[" + ",".join(["{}"] * 200) + "]"),
    ],
)  # fmt: skip
def test_field_of_the_wrong_kind_is_named(stage: Stage, name: str, value: str) -> None:
    before = len(stage.engine.requests)
    answer = stage.ask(with_field(name, value))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", name)
    assert len(answer.body) < 1000 and len(stage.engine.requests) == before


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (CHAT, b'{"model":"fake"}', "messages"),
        (COMPLETIONS, b'{"model":"fake"}', "prompt"),
        (COMPLETIONS, b'{"model":"fake","prompt":5}', "prompt"),
        (EMBEDDINGS, b'{"model":"fake"}', "input"),
        (EMBEDDINGS, b'{"model":"fake","input":{}}', "input"),
        (EMBEDDINGS, b'{"model":"fake","input":"x","stream":true}', "stream"),
    ],
)
def test_missing_field_is_named(stage: Stage, path: str, body: bytes, param: str) -> None:
    answer = stage.ask(body, path)
    assert (answer.status, answer.error["param"]) == (400, param)


@pytest.mark.parametrize("name", ["nope", "FAKE", "модель😀", "a\r\nset-cookie: x=1\x00\x1b[31m", "../fake", "' OR 1=1--", "x" * 512])
def test_unknown_model_is_not_found_whatever_its_name(stage: Stage, name: str) -> None:
    answer = stage.ask(with_field("model", json.dumps(name)))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "set-cookie" not in answer.headers and b"\x1b" not in answer.body and b"\x00" not in answer.body


def test_model_that_cannot_do_it_is_refused(stage: Stage) -> None:
    answer = stage.ask(b'{"model":"fake","input":"x"}', EMBEDDINGS)
    assert answer.status == 400 and answer.error["param"] == "model"


# -- keys --------------------------------------------------------------------------------------------------------


def as_chat(stage: Stage, *lines: str | bytes) -> Answer:
    """A good request, but for these headers."""
    with Raw(stage.world.port) as raw:
        raw.send(head(CHAT, *lines, f"content-length: {len(GOOD)}") + GOOD)
        return raw.answer()


HOSTILE = {
    "a word": b"x",
    "SQL": b"' OR 1=1; DROP TABLE keys--",
    "latin-1": b"mgw_\xe9\xff\x80",
    "8 kB": b"a" * 8192,
    "a tab": b"mgw_a\tb",
    "only a prefix": b"mgw_",
    "the shape of one": b"mgw_" + b"a" * 10 + b"_" + b"b" * 38,
}


@pytest.mark.parametrize("carrier", ["authorization: Bearer ", "authorization: bearer ", "x-api-key: ", "api-key: "])
@pytest.mark.parametrize("name", HOSTILE)
def test_garbage_for_a_key_is_refused(stage: Stage, name: str, carrier: str) -> None:
    line = carrier.encode() + HOSTILE[name]
    for answer in (as_chat(stage, line), fetch(stage.world, "/v1/models", line), fetch(stage.world, "/api/v1/keys", line)):
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] in ("invalid_api_key", "missing_api_key") and answer.error["type"] == "authentication_error"
        assert HOSTILE[name][8:] not in answer.body or len(HOSTILE[name]) <= 8


@pytest.mark.parametrize("byte", [b"\x00", b"\x01", b"\x7f", b"\r", b"\n"])
def test_control_characters_in_a_header_are_refused(stage: Stage, byte: bytes) -> None:
    answer = as_chat(stage, b"authorization: Bearer a" + byte + b"b")
    assert answer.status == 400 and answer.error["code"] == "invalid_request" and answer.headers["connection"] == "close"


@pytest.mark.parametrize("lines", [(), ("authorization:",), ("authorization: Bearer ",), ("authorization: bearer",), ("x-api-key: ",)])
def test_no_key_is_said_to_be_missing(stage: Stage, lines: tuple[str, ...]) -> None:
    for answer in (as_chat(stage, *lines), fetch(stage.world, "/v1/models", *lines)):
        assert answer.status == 401 and answer.error["code"] in ("missing_api_key", "invalid_api_key")
        assert "Bearer KEY" in answer.error["message"]


@pytest.mark.parametrize("value", ["Basic abc", "Token abc", "abc", "Bearerabc", "Digest x"])
def test_other_schemes_are_refused(stage: Stage, value: str) -> None:
    assert as_chat(stage, f"authorization: {value}").status == 401


def test_key_may_come_in_any_of_three_headers_or_in_all(stage: Stage) -> None:
    key = stage.world.key
    lines = [f"authorization: Bearer {key}", f"x-api-key: {key}", f"api-key: {key}"]
    for chosen in ([lines[0]], [lines[1]], [lines[2]], lines, [lines[0], lines[0]], [f"authorization: bearer   {key}"]):
        assert as_chat(stage, *chosen).status == 200
        assert fetch(stage.world, "/v1/models", *chosen).status == 200
        assert fetch(stage.world, "/api/v1/keys", *chosen).status == 200


def test_two_different_keys_are_refused(stage: Stage) -> None:
    good = f"authorization: Bearer {stage.world.key}"
    for other in ("authorization: Bearer other", "x-api-key: other", "api-key: other"):
        pairs = ((good, other), (other, good))
        elsewhere = [fetch(stage.world, path, *lines) for path in ("/v1/models", "/api/v1/keys") for lines in pairs]
        for answer in (as_chat(stage, good, other), as_chat(stage, other, good), *elsewhere):
            assert (answer.status, answer.error["code"]) == (400, "ambiguous_credentials")


def test_wrong_secret_with_a_right_checksum_is_refused(stage: Stage) -> None:
    answer = as_chat(stage, f"authorization: Bearer {make_key().text}")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


def test_revoked_key_is_refused_by_name(stage: Stage) -> None:
    key = stage.world.admin("keys", "create", "guest", "-q").stdout.strip()
    line = f"authorization: Bearer {key}"
    assert as_chat(stage, line).status == 200
    stage.world.admin("keys", "revoke", key.split("_")[1], "--yes")
    for answer in (as_chat(stage, line), fetch(stage.world, "/v1/models", line)):
        assert (answer.status, answer.error["code"]) == (401, "revoked_api_key")
        assert answer.headers["x-should-retry"] == "false" and key not in answer.body.decode()


def test_expired_key_is_refused_by_name(stage: Stage) -> None:
    key = stage.world.admin("keys", "create", "late", "-q").stdout.strip()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with sqlite3.connect(stage.world.data_dir / "mindgw.db", timeout=30) as db:
        db.execute("update keys set expires_at = ? where id = ?", (yesterday.strftime("%Y-%m-%d %H:%M:%S.%f"), key.split("_")[1]))
    db.close()
    answer = as_chat(stage, f"authorization: Bearer {key}")
    assert (answer.status, answer.error["code"]) == (401, "expired_api_key")


# -- methods and paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_hot_paths_take_only_a_post(stage: Stage, path: str, method: str) -> None:
    answer = fetch(stage.world, path, f"authorization: Bearer {stage.world.key}", method=method)
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert method == "HEAD" or answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/healthz", "/api/v1/status"])
def test_what_is_read_is_not_posted_to(stage: Stage, path: str) -> None:
    answer = fetch(stage.world, path, f"authorization: Bearer {stage.world.key}", "content-length: 0", method="POST")
    assert answer.status == 405 and "GET" in answer.headers["allow"] and answer.error["code"] == "method_not_allowed"


def test_head_of_the_models_has_no_body(stage: Stage) -> None:
    with Raw(stage.world.port) as raw:
        line = f"authorization: Bearer {stage.world.key}"
        raw.send(head("/v1/models", line, method="HEAD") + head("/v1/models", line, method="GET"))
        assert raw.answer(head_only=True).status == 200
        assert json.loads(raw.answer().body)["data"][0]["id"] == "fake"


@pytest.mark.parametrize(
    "path",
    [
        "/nope", "/api/v1/nope", "/api/v1/keys/x/y", "/api/v1/nope.html", "/api", "/v1", "/v1/", "/v1/nope", "/v1/chat", "/agent/v1/nope",
        "/v1//chat/completions", "//v1/chat/completions", "/v1/chat/completions/", "/v1/chat%2fcompletions", "/v1/%63hat/completions",
        "/v1/models/../chat/completions/..", "/v1/%2e%2e/api/v1/keys", "/V1/chat/completions", "/v1/chat/completions;x", "/%00", "/..",
    ],
)  # fmt: skip
def test_unknown_path_is_not_found_in_the_same_form(stage: Stage, path: str) -> None:
    line = f"authorization: Bearer {stage.world.key}"
    for answer in (fetch(stage.world, path, line), fetch(stage.world, path, line, "content-length: 2", "", method="POST")):
        assert answer.status in (404, 405) and answer.headers["content-type"] == "application/json"
        assert answer.error["type"] == "invalid_request_error"
    assert fetch(stage.world, path, line).status == 404


@pytest.mark.parametrize("query", ["?beta=true", "?", "?a=%zz&b=%00", "?" + "x" * 4000])
def test_queries_do_no_harm(stage: Stage, query: str) -> None:
    assert stage.ask(GOOD, CHAT + query).status == 200
    assert fetch(stage.world, "/v1/models" + query, f"authorization: Bearer {stage.world.key}").status == 200


def test_a_request_id_of_ours_is_on_every_refusal(stage: Stage) -> None:
    for answer in (stage.ask(b"{"), as_chat(stage), fetch(stage.world, "/v1/nope")):
        assert answer.headers["x-request-id"] == answer.error["request_id"]


def test_each_request_with_a_good_key_leaves_exactly_one_row(stage: Stage) -> None:
    asked = [stage.ask(body).headers["x-request-id"] for body in (GOOD, b"{", with_field("model", '"nope"'), with_field("stream", "true"))]
    until(lambda: set(asked) <= {row["request_id"] for row in stage.world.rows()}, "all rows", 10)
    rows = [(row["status"], row["outcome"]) for row in stage.world.rows() if row["request_id"] in asked]
    assert sorted(rows) == [(200, "done"), (200, "done"), (400, "failed"), (404, "failed")]


def test_no_key_no_row(stage: Stage) -> None:
    refused = as_chat(stage, "authorization: Bearer x").headers["x-request-id"]
    paid = stage.ask(GOOD).headers["x-request-id"]
    until(lambda: paid in {row["request_id"] for row in stage.world.rows()}, "the later row", 10)
    assert refused not in {row["request_id"] for row in stage.world.rows()}


def test_requests_of_all_kinds_on_one_connection(stage: Stage) -> None:
    """Refusals keep the connection as long as their bodies were read or are small."""
    key = stage.world.key
    with Raw(stage.world.port) as raw:
        for sent, status in [
            (request(key, b"{"), 400), (request(key, GOOD, "/v1/nope"), 404), (request("bad", GOOD), 401),
            (head(CHAT, method="GET"), 405), (request(key, GOOD), 200), (request(key, GOOD, EMBEDDINGS), 400),
        ]:  # fmt: skip
            raw.send(sent)
            assert raw.answer().status == status
