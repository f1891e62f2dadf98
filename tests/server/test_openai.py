"""The OpenAI door as plain ASGI, over the real pipeline and a real agent's session: what marks a request and its answer."""

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.server.cors import Cors
from mindgw.server.marks import Mark
from mindgw.server.openai import OpenAIDoor
from tests.gateway.world import JSON, Box, World, make_key

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ANSWER = b'{"choices":[]}'


class Hall:
    """A world with one box and a door."""

    def __init__(self) -> None:
        self.world = World()
        self.box = Box(self.world)
        self.door = OpenAIDoor(self.world.pipeline, 2**20, Cors())

    async def ask(self, method="POST", path="/v1/chat/completions", *, key=None, headers=(), stays=True):
        """One request and the box's answer to it."""
        carried = [(b"authorization", b"Bearer " + (self.world.key if key is None else key).encode()), *headers]
        parts = [{"type": "http.request", "body": json.dumps({"model": "m", "messages": [{}]}).encode()}] if stays else []
        sent = []

        async def receive():
            return parts.pop() if parts else await asyncio.Future() if stays else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        asked = asyncio.create_task(self.door({"type": "http", "method": method, "path": path, "headers": carried}, receive, send))
        async with asyncio.timeout(5):
            while not asked.done():
                self.world.pump()
                if self.box.requests:
                    self.meta = self.box.requests[self.box.stream].meta
                    self.box.head(200, JSON, ANSWER)
                    self.box.close()
                await asyncio.sleep(0)
        await asked
        if not sent:
            return None
        named = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        assert len(named) == len(dict(named))
        return SimpleNamespace(status=sent[0]["status"], headers=dict(named), body=b"".join(part.get("body", b"") for part in sent[1:]))


def lines(caplog):
    """The fields of every line: the meter says many in one record."""
    records = [record for record in caplog.records if record.name == "mindgw.request"]
    many = [getattr(record, "lines", None) or [("", record.fields)] for record in records]
    return [fields for lines in many for _, fields in lines]


@pytest.fixture(autouse=True)
def _all_lines(caplog):
    caplog.set_level(logging.INFO, "mindgw.request")


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_id", ["a", "req_1.2-3", "x" * 128])
async def test_a_callers_own_id_comes_back_and_ours_keys_the_ledger(given_id):
    hall = Hall()
    for _ in range(2):  # callers repeat themselves
        answer = await hall.ask(headers=[(b"x-request-id", given_id.encode())])
        assert (answer.status, answer.headers["x-request-id"]) == (200, given_id)
        ours = answer.headers["x-mindgw-request-id"]
        assert ours.startswith("req-") and ours == hall.meta.request_id == hall.world.settled()[-1].request_id
    assert len({row.request_id for row in hall.world.rows}) == 2


@pytest.mark.parametrize("bad", [b"", b"a b", b"x" * 129, b"\xff", b"a\x00", "ä".encode(), b'"', b"a,b"])
async def test_an_id_that_is_not_sane_does_not_come_back(bad):
    answer = await Hall().ask(headers=[(b"x-request-id", bad)])
    assert answer.headers["x-request-id"] == answer.headers["x-mindgw-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", "/v1/chat/completions", "", 401),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/models/nothing", None, 404),
        ("POST", "/v1/models", None, 405),
    ],
)
async def test_every_answer_has_both_ids(method, path, key, status):
    answer = await Hall().ask(method, path, key=key, headers=[(b"x-request-id", b"mine")])
    assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")
    assert answer.headers["x-mindgw-request-id"].startswith("req-")
    if status >= 400:
        assert json.loads(answer.body)["error"]["request_id"] == answer.headers["x-mindgw-request-id"]


async def test_the_organisation_is_named_once_it_is_known():
    hall = Hall()
    assert (await hall.ask()).headers["openai-organization"] == "o"
    assert (await hall.ask("GET", "/v1/models")).headers["openai-organization"] == "o"
    assert "openai-organization" not in (await hall.ask(key="nonsense")).headers
    assert "openai-organization" not in (await hall.ask("GET", "/v1/models", key="nonsense")).headers


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "code"),
    [
        ("POST", "/v1/embeddings", "nonsense", 401, "invalid_api_key"),
        pytest.param("POST", "/v1/embeddings", make_key()[0], 401, "invalid_api_key", id="unknown"),
        ("GET", "/v1/embeddings", None, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", None, 404, "unknown_url"),
        ("GET", "/v1/models", "nonsense", 401, "invalid_api_key"),
        ("GET", "/v1/models", None, 200, ""),
        ("GET", "/v1/models/x", None, 404, "model_not_found"),
        ("DELETE", "/v1/models/m", None, 405, "method_not_allowed"),
    ],
)
async def test_requests_that_leave_no_row_leave_one_line(caplog, method, path, key, status, code):
    hall = Hall()
    answer = await hall.ask(method, path, key=key, headers=[(b"x-request-id", b"mine")])
    (line,) = lines(caplog)
    assert (line["request_id"], line["client_request_id"]) == (answer.headers["x-mindgw-request-id"], "mine")
    assert (line["endpoint"], line["status"], line["error_code"]) == (path, status, code)
    assert line["outcome"] == ("failed" if code else "done") and line["total_ms"] >= 0
    assert ("key_id" in line) == (path.startswith("/v1/models") and key is None and method == "GET")
    assert hall.world.settled() == []


async def test_a_client_that_leaves_before_it_is_known_leaves_a_line(caplog):
    assert await Hall().ask(stays=False) is None
    (line,) = lines(caplog)
    assert (line["status"], line["error_code"]) == (499, "client_disconnected")


async def test_requests_with_a_row_are_left_to_the_meter(caplog):
    hall = Hall()
    await hall.ask()
    before = len(lines(caplog))
    hall.world.settled()
    assert (before, len(lines(caplog))) == (0, 1)


async def test_a_hostile_path_is_cut_in_the_log(caplog):
    await Hall().ask("GET", "/v1/" + "x" * 5000)
    assert len(caplog.text) < 1000


# -- traces ------------------------------------------------------------------------------------------------------------


async def test_a_trace_reaches_the_agent():
    hall = Hall()
    await hall.ask(headers=[(b"traceparent", TRACE.encode())])
    assert hall.meta.traceparent == TRACE
    await hall.ask(headers=[(b"traceparent", b"nonsense")])
    assert hall.meta.traceparent == ""


@pytest.mark.parametrize("value", [TRACE, TRACE.replace("00-", "cc-", 1), TRACE[:-2] + "00"])
def test_a_trace_in_its_form_is_taken(value):
    assert Mark([(b"traceparent", value.encode())]).traceparent == value


def test_what_a_later_version_adds_is_left_out():
    assert Mark([(b"traceparent", b"cc" + TRACE[2:].encode() + b"-what-the-future-brings")]).traceparent == "cc" + TRACE[2:]


@pytest.mark.parametrize(
    "value",
    [
        "", "ff" + TRACE[2:], TRACE.upper(), TRACE + "-00", TRACE + " ", TRACE + "\n", TRACE[:-1], "cc" + TRACE[2:] + "x",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", TRACE.replace("-", "_"),
    ],
)  # fmt: skip
def test_a_trace_in_any_other_form_is_not(value):
    assert Mark([(b"traceparent", value.encode())]).traceparent == ""


def test_two_traces_are_none():
    assert Mark([(b"traceparent", TRACE.encode())] * 2).traceparent == ""


@given(st.lists(st.tuples(st.sampled_from([b"traceparent", b"x-request-id"]), st.binary(max_size=150))))
def test_headers_of_any_bytes_make_a_mark(headers):
    mark = Mark(headers)
    assert all(value.isascii() and b"\n" not in value and b"\r" not in value for _, value in mark.headers())


async def test_a_page_may_read_that_the_gateway_failed(monkeypatch):
    door = OpenAIDoor(World().pipeline, 2**20, Cors("https://a.example"))
    monkeypatch.setattr(door, "_serve_one", None)
    for origin, allowed in ((b"https://a.example", b"https://a.example"), (b"https://b.example", None)):
        sent = []

        async def send(message, sent=sent):
            sent.append(message)

        await door({"type": "http", "path": "/v1/models", "headers": [(b"Origin", origin)]}, None, send)
        assert sent[0]["status"] == 500
        assert dict(sent[0]["headers"]).get(b"access-control-allow-origin") == allowed
