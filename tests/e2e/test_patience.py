"""Engines that keep everybody waiting: each limit of the settings ends a request with its code, and the slot is free again.

A real server and agent with small limits, a FAKE engine behind.
"""

from collections.abc import Iterator

import pytest
from openai import APIStatusError, OpenAI

from tests.e2e.raw import Raw, head
from tests.e2e.stage import Stage, said, stream_error
from tests.e2e.stage import stage as open_stage
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

LIMITS = "timeouts: {hold: 0.1, first_token: 0.5, idle: 0.6, total: 2, queue: 1, keepalive: 0.2}\n"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("patience"), LIMITS) as made:
        yield made


@pytest.fixture(autouse=True)
def _slots_come_back(stage: Stage) -> Iterator[None]:
    yield
    stage.idle()


def test_no_first_token_in_a_stream(stage: Stage) -> None:
    answer = stage.play("silence", stream=True)
    error = answer.error if answer.status != 200 else stream_error(answer)
    assert error["code"] == "engine_timeout"
    row = stage.row(answer.headers["x-request-id"])
    assert (row["outcome"], row["error_code"], row["status"]) == ("failed", "engine_timeout", answer.status)
    assert 400 <= row["total_ms"] < 1900


def test_pings_come_while_nothing_else_does(stage: Stage) -> None:
    answer = stage.play("silence", stream=True)
    assert answer.status == 200 and answer.body.startswith(b": ping\n") and b"\n\n: ping\n\n" not in answer.body


def test_silence_inside_a_stream(stage: Stage) -> None:
    answer = stage.play("pause", stream=True)
    assert stream_error(answer)["code"] == "engine_timeout" and b"one" in answer.body
    assert stage.row(answer.headers["x-request-id"])["total_ms"] < 1900


def test_answer_in_one_piece_that_never_comes(stage: Stage) -> None:
    answer = stage.play("silence")
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    assert 1500 <= stage.row(answer.headers["x-request-id"])["total_ms"] < 6000


def test_stream_that_never_ends(stage: Stage) -> None:
    answer = stage.play("drip", stream=True)
    assert stream_error(answer)["code"] == "engine_timeout" and answer.body.count(b"one") > 3
    assert 1500 <= stage.row(answer.headers["x-request-id"])["total_ms"] < 6000


def test_sdk_raises_the_status(stage: Stage) -> None:
    with OpenAI(base_url=stage.world.base_url, api_key=stage.world.key, max_retries=0) as ai, pytest.raises(APIStatusError) as late:
        ai.chat.completions.create(model="fake", messages=[{"role": "user", "content": "silence"}])
    assert late.value.status_code == 504 and late.value.code == "engine_timeout"


def test_wait_in_the_queue_ends(stage: Stage) -> None:
    busy = [stage.begin("drip", stream=True) for _ in range(2)]
    until(lambda: stage.queue()["running"] == 2, "both slots are taken")
    whole = stage.play("plain")
    assert (whole.status, whole.error["code"]) == (503, "queue_timeout") and "retry-after" in whole.headers
    for raw in busy:
        with raw:
            assert stream_error(raw.answer())["code"] == "engine_timeout"


def test_what_is_in_time_is_not_disturbed(stage: Stage) -> None:
    assert said(stage.play("plain", stream=True)) == "one two"


def test_heads_that_never_end_are_cut_off(stage: Stage) -> None:
    silent, begun, nearly = (Raw(stage.world.port) for _ in range(3))
    with silent, begun, nearly:
        begun.send(b"GET /v1")
        nearly.send(head("/v1/models", "x: y", method="GET")[:-2])
        for raw in (begun, nearly):
            answer = raw.answer()
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
            assert raw.ended()
        assert silent.ended()
