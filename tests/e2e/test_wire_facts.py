"""What real clients need on the wire: the openai SDK (and langchain, and curl) against the real server and agent, a FAKE engine behind."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from openai import APIError, APIStatusError, AuthenticationError, BadRequestError, OpenAI

from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e


class Stage:
    """A world with the FAKE engine behind one worker."""

    def __init__(self, made: World, engine: FakeEngine, ai: OpenAI) -> None:
        self.world, self.engine, self.ai = made, engine, ai

    def ask(self, scene: str, **fields: Any) -> Any:
        """One chat request that plays a scene."""
        return self.ai.chat.completions.create(model="fake", messages=[{"role": "user", "content": scene}], **fields)

    def stream(self, scene: str, **fields: Any) -> list[Any]:
        """All chunks of a streamed scene."""
        return list(self.ask(scene, stream=True, **fields))

    def raw(self, scene: str, *args: str, **fields: Any) -> str:
        """What curl shows of a scene."""
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": scene}], **fields})
        command = ["curl", "-sSN", "-i", *args, "-H", f"authorization: Bearer {self.world.key}", "-H", "content-type: application/json"]
        command += ["-d", body, f"{self.world.base_url}/chat/completions"]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with world(tmp_path_factory.mktemp("wire")) as made, fake_engine() as engine:
        made.serve()
        made.join("fake", engine.url, "--slots", "4")
        with OpenAI(base_url=made.base_url, api_key=made.key, max_retries=0) as ai:
            yield Stage(made, engine, ai)


def text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# -- the request on its way in -----------------------------------------------------------------------------------


def test_unknown_fields_reach_the_engine_untouched(stage: Stage) -> None:
    extra = {"guided_regex": "a+", "top_k": 5, "min_p": 0.1, "made_up": {"deep": [1, 2.50, None]}, "metadata": {"a": "b"}}
    stage.ask("plain", extra_body=extra, temperature=0.5)
    body, _ = stage.engine.requests[-1]
    assert {name: body[name] for name in extra} == extra and body["temperature"] == 0.5


def test_dangerous_fields_do_not_reach_the_engine(stage: Stage) -> None:
    bad = {
        "id_slot": 3,
        "rid": "x",
        "lora": [],
        "bootstrap_host": "h",
        "return_prompt_text": True,
        "chat_template": "{{x}}",
        "priority": -9,
    }
    stage.ask("plain", extra_body=bad)
    assert not set(bad) & set(stage.engine.requests[-1][0])


def test_callers_key_never_reaches_the_engine(stage: Stage) -> None:
    stage.ask("plain", extra_headers={"x-secret": "1", "cookie": "a=b", "origin": "http://evil.example"})
    headers = stage.engine.requests[-1][1]
    assert not {"authorization", "x-secret", "cookie", "origin"} & set(headers)
    assert stage.world.key not in json.dumps(stage.engine.requests[-1])


def test_usage_is_always_asked_and_shown_only_to_who_asked(stage: Stage) -> None:
    silent = stage.stream("plain")
    assert stage.engine.requests[-1][0]["stream_options"] == {"include_usage": True}
    told = stage.stream("plain", stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in silent)
    assert told[-1].usage.completion_tokens == 3 and told[-1].choices == []


def test_usage_in_the_last_chunk_becomes_a_chunk_of_its_own(stage: Stage) -> None:
    told = stage.stream("usage with choices", stream_options={"include_usage": True})
    assert told[-1].choices == [] and told[-1].usage.total_tokens == 10
    assert told[-2].choices[0].finish_reason == "stop" and told[-2].usage is None


def test_engine_that_refuses_stream_options_is_remembered(stage: Stage) -> None:
    assert text(stage.stream("no options")) == "one two"
    before = len(stage.engine.requests)
    assert text(stage.stream("no options")) == "one two"
    assert len(stage.engine.requests) == before + 1
    row = until(lambda: [r for r in stage.world.rows() if r["source"] != "engine"], "a row that was counted")[-1]
    assert row["completion_tokens"] > 0


@pytest.mark.parametrize("url", ["http://169.254.169.254/x", "https://example.com/a.png", "file:///etc/passwd"])
def test_media_addresses_are_refused(stage: Stage, url: str) -> None:
    before = len(stage.engine.requests)
    with pytest.raises(BadRequestError) as refused:
        stage.ask([{"type": "text", "text": "plain"}, {"type": "image_url", "image_url": {"url": url}}])  # type: ignore[arg-type]
    assert refused.value.code == "unsupported_media_url" and len(stage.engine.requests) == before


def test_n_is_bounded(stage: Stage) -> None:
    with pytest.raises(BadRequestError) as refused:
        stage.ask("plain", n=1_000_000)
    assert refused.value.param == "n"


# -- the answer on its way out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["reasoning", "reasoning_content"])
def test_reasoning_has_both_names_in_a_stream(stage: Stage, scene: str) -> None:
    said = [chunk.choices[0].delta.model_dump() for chunk in stage.stream(scene)]
    thoughts = [part for part in said if part.get("reasoning")]
    assert thoughts and all(part["reasoning"] == part["reasoning_content"] for part in thoughts)


def test_reasoning_has_both_names_in_one_piece(stage: Stage) -> None:
    message = stage.ask("plain").choices[0].message.model_dump()
    assert message["reasoning"] == message["reasoning_content"] == "hm"


def test_engine_comments_ids_and_retries_do_not_reach_the_client(stage: Stage) -> None:
    assert text(stage.stream("comments")) == "one two"
    raw = stage.raw("comments", stream=True)
    assert raw.count("data: [DONE]") == 1
    assert not any(line.startswith(("id:", "retry:", ": ping\r", "event:")) for line in raw.split("\r\n\r\n", 1)[1].splitlines())


def test_stream_headers_are_what_proxies_need(stage: Stage) -> None:
    head = stage.raw("plain", stream=True).split("\r\n\r\n")[0].lower()
    for line in (
        "content-type: text/event-stream; charset=utf-8",
        "cache-control: no-cache",
        "x-accel-buffering: no",
        "x-request-id: req-",
    ):
        assert line in head
    assert "content-encoding" not in head


def test_request_id_is_on_success_and_on_errors(stage: Stage) -> None:
    assert stage.ask("plain")._request_id.startswith("req-")
    with pytest.raises(APIStatusError) as refused:
        stage.ask("error at once")
    assert refused.value.request_id and refused.value.request_id.startswith("req-")


def test_callers_own_id_comes_back_and_ours_is_beside_it(stage: Stage) -> None:
    asked = stage.ai.chat.completions.with_raw_response.create(
        model="fake", messages=[{"role": "user", "content": "plain"}], extra_headers={"x-request-id": "mine-1.2_3"}
    )
    ours = asked.headers["x-mindgw-request-id"]
    assert asked.parse()._request_id == asked.headers["x-request-id"] == "mine-1.2_3" and ours.startswith("req-")
    until(lambda: ours in {row["request_id"] for row in stage.world.rows()}, "the row has our id")
    with pytest.raises(APIStatusError) as refused:
        stage.ask("error at once", extra_headers={"x-request-id": "mine"})
    assert refused.value.request_id == "mine" and refused.value.body["request_id"].startswith("req-")  # type: ignore[index]
    assert stage.ask("plain", extra_headers={"x-request-id": "not sane"})._request_id.startswith("req-")


def test_answers_name_the_organisation_but_refusals_of_a_key_do_not(stage: Stage) -> None:
    named = stage.ai.models.with_raw_response.list().headers["openai-organization"]
    with stage.ai.chat.completions.with_streaming_response.create(
        model="fake", messages=[{"role": "user", "content": "plain"}], stream=True
    ) as streamed:
        assert streamed.headers["openai-organization"] == named != ""
    with pytest.raises(AuthenticationError) as refused:
        stage.ai.with_options(api_key="nonsense").models.list()
    assert "openai-organization" not in refused.value.response.headers


def test_request_without_a_key_leaves_a_line_in_the_log(stage: Stage) -> None:
    with pytest.raises(AuthenticationError) as refused:
        stage.ai.with_options(api_key="nonsense").chat.completions.create(model="fake", messages=[{"role": "user", "content": "plain"}])
    said = refused.value.request_id
    assert said is not None
    lines = until(lambda: [line for one in stage.world.processes for line in one.said.splitlines() if said in line], "a line")
    (line,) = [json.loads(line) for line in lines]
    assert (line["logger"], line["endpoint"], line["status"]) == ("mindgw.request", "/v1/chat/completions", 401)


@pytest.mark.parametrize("scene", ["error inside", "garbage", "nothing", "cut", "no end"])
def test_stream_that_goes_wrong_ends_in_an_error_never_in_silence(stage: Stage, scene: str) -> None:
    with pytest.raises(APIError):
        stage.stream(scene)
    raw = stage.raw(scene, stream=True)
    assert '"error"' in raw and "[DONE]" not in raw and "Traceback" not in raw


@pytest.mark.parametrize(
    ("scene", "status", "code"),
    [
        ("error at once", 502, "engine_error"),
        ("html", 502, "engine_error"),
        ("html error", 502, "engine_error"),
        ("no reply", 502, None),
        ("too long", 400, "context_length_exceeded"),
        ("key", 502, "engine_error"),
        ("redirect", 502, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_engine_that_fails_gives_the_documented_error(stage: Stage, scene: str, status: int, code: str | None, stream: bool) -> None:
    with pytest.raises(APIStatusError) as failed:
        stage.ask(scene, stream=stream)
    assert failed.value.status_code == status
    assert failed.value.code == code or code is None
    assert {"message", "type", "param", "code"} <= set(failed.value.body)  # type: ignore[arg-type]


def test_no_slot_leaks_whatever_happened_before(stage: Stage) -> None:
    for scene in ("error inside", "garbage", "cut", "no reply", "html"):
        with pytest.raises(APIError):
            stage.stream(scene)
    until(lambda: stage.world.worker("fake")["used"] == 0, "all leases are back")


def test_client_that_leaves_closes_the_engines_connection(stage: Stage) -> None:
    stage.engine.left.clear()
    stream = stage.ask("patience", stream=True)
    next(iter(stream))
    stream.close()
    assert stage.engine.left.wait(5)
    until(lambda: stage.world.worker("fake")["used"] == 0, "the lease is back")


# -- other clients -----------------------------------------------------------------------------------------------


def test_langchain_works_both_ways(stage: Stage) -> None:
    chat = ChatOpenAI(model="fake", base_url=stage.world.base_url, api_key=stage.world.key)  # type: ignore[arg-type]
    assert chat.invoke("plain").content == "one two"
    assert "".join(str(chunk.content) for chunk in chat.stream("plain")) == "one two"


def test_curl_sees_the_stream_as_it_is(stage: Stage) -> None:
    raw = stage.raw("plain", stream=True)
    assert raw.rstrip().endswith("data: [DONE]") and raw.count("data: ") == 5


def test_models_with_slashes_are_found_or_not(stage: Stage, tmp_path: Path) -> None:
    assert stage.world.get("/v1/models/fake", stage.world.key)[0] == 200
    for name in ("org/model", "org%2Fmodel", "a/b/c"):
        status, body = stage.world.get(f"/v1/models/{name}", stage.world.key)
        assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found"


def test_head_and_get_of_the_root(stage: Stage) -> None:
    head = subprocess.run(["curl", "-sSI", stage.world.root + "/"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert head.startswith("HTTP/1.1 200") and "server: mindgw" in head.lower()
    assert b"MindGateway" in stage.world.get("/")[1]
