"""One slot, and more who want it than it can serve: the real server, agent and llama.cpp engine."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import openai
import pytest

from tests.e2e.raw import CHAT, Raw, request
from tests.e2e.world import World, until, world
from tests.real_engine import SLOW, start_engine

pytestmark = pytest.mark.e2e

#: Tokens of each answer; about a third of a second's work.
TOKENS = 30


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A box with one slot, and a server that tells those who wait at once."""
    with world(tmp_path_factory.mktemp("queue")) as made, start_engine(slots=1, shape=SLOW) as engine:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write("timeouts:\n  hold: 100ms\n  news: 100ms\n")
        made.serve()
        made.join("box", engine.url)
        made.model = engine.alias
        yield made


def client(one_slot: World, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=one_slot.base_url, api_key=key, max_retries=0, timeout=60)


def body(one_slot: World, tokens: int, **fields: object) -> dict[str, object]:
    return {"model": one_slot.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, **fields}


def waiting(one_slot: World) -> list[dict[str, object]]:
    status, answer = one_slot.get("/api/v1/queue", one_slot.key)
    assert status == 200
    items: list[dict[str, object]] = json.loads(answer)["items"]
    return items


def test_a_light_key_does_not_wait_for_all_that_a_greedy_one_wants(one_slot: World) -> None:
    """Eight requests of one key stand in line when the first of another comes: it is served after at most two of them."""
    greedy, light = (one_slot.admin("keys", "create", name, "-q").stdout.strip() for name in ("greedy", "light"))
    ended: list[str] = []
    lock = Lock()

    def ask(who: str, key: str) -> None:
        client(one_slot, key).chat.completions.create(**body(one_slot, TOKENS))
        with lock:
            ended.append(who)

    with ThreadPoolExecutor(10) as pool:
        for _ in range(8):
            pool.submit(ask, "greedy", greedy)
        until(lambda: len(waiting(one_slot)) >= 7, "seven of them wait")
        before = len(ended)
        lights = [pool.submit(ask, "light", light) for _ in range(2)]
        for future in lights:
            future.result(60)
        served = ended[before:]
    assert served.count("light") == 2
    assert served.count("greedy") <= 4
    assert ended.count("greedy") == 8


def test_who_waits_sees_where_and_for_how_long_in_the_raw_stream(one_slot: World) -> None:
    with Raw(one_slot.port) as first, Raw(one_slot.port) as second:
        first.send(request(one_slot.key, json.dumps(body(one_slot, 200, stream=True)).encode()))
        first.until(b"data: ")
        second.send(request(one_slot.key, json.dumps(body(one_slot, 5, stream=True)).encode()))
        second.until(b": mindgw queue=1")
        (entry,) = waiting(one_slot)
        assert (entry["state"], entry["position"], entry["reason"]) == ("waiting", 1, "no free slot 1/1")
        told = second.until(b"data: [DONE]\n\n")
    assert re.search(rb"queue=1 eta=[0-9]+s\n", told)
    assert told.count(b"[DONE]") == 1


def test_the_sdk_takes_no_notice_of_the_news(one_slot: World) -> None:
    """Neither of comments, nor of chunks that it asked for: the text is whole."""
    with Raw(one_slot.port) as first:
        first.send(request(one_slot.key, json.dumps(body(one_slot, 100, stream=True)).encode()))
        first.until(b"data: ")
        stream = client(one_slot, one_slot.key).chat.completions.create(
            **body(one_slot, 5, stream=True), extra_headers={"X-MindGW-Events": "1"}
        )
        chunks = list(stream)
        first.until(b"[DONE]")
    told = [chunk.model_extra["mindgw"] for chunk in chunks if "mindgw" in (chunk.model_extra or {})]
    assert told and all(news["queue"] == 1 for news in told)
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_an_answer_in_one_piece_says_how_long_it_waited(one_slot: World) -> None:
    with Raw(one_slot.port) as first, Raw(one_slot.port) as second:
        first.send(request(one_slot.key, json.dumps(body(one_slot, 30, stream=True)).encode()))
        first.until(b"data: ")
        second.send(request(one_slot.key, json.dumps(body(one_slot, 5)).encode()))
        answer = second.answer()
        first.until(b"[DONE]")
    assert answer.status == 200
    assert answer.headers["x-mindgw-queue-position"] == "1"
    assert int(answer.headers["x-mindgw-queue-ms"]) > 0


def test_a_paused_queue_serves_nobody_until_it_is_resumed(one_slot: World) -> None:
    one_slot.admin_post("/api/v1/queue/pause", {})
    with Raw(one_slot.port) as raw:
        raw.send(request(one_slot.key, json.dumps(body(one_slot, 5)).encode()))
        (entry,) = until(lambda: waiting(one_slot), "it waits")
        assert entry["reason"] == "paused by an operator"
        one_slot.admin_post("/api/v1/queue/resume", {})
        assert raw.answer().status == 200


def test_an_operator_ends_a_request_that_waits(one_slot: World) -> None:
    one_slot.admin_post("/api/v1/queue/pause", {"model": one_slot.model})
    with Raw(one_slot.port) as raw:
        raw.send(request(one_slot.key, json.dumps(body(one_slot, 5)).encode()))
        (entry,) = until(lambda: waiting(one_slot), "it waits")
        one_slot.admin_post(f"/api/v1/queue/{entry['id']}", None, "DELETE")
        answer = raw.answer()
    one_slot.admin_post("/api/v1/queue/resume", {})
    assert answer.status == 503
    assert answer.error["code"] == "cancelled_by_operator"
    assert answer.headers["x-should-retry"] == "false"


def test_a_deadline_that_cannot_be_met_fails_at_once(one_slot: World, tmp_path: Path) -> None:
    with Raw(one_slot.port) as first, Raw(one_slot.port) as second, Raw(one_slot.port) as third:
        for raw in (first, second):
            raw.send(request(one_slot.key, json.dumps(body(one_slot, 300, stream=True)).encode()))
        first.until(b"data: ")
        third.send(request(one_slot.key, json.dumps(body(one_slot, 5)).encode(), CHAT, "X-MindGW-Deadline: 0.2"))
        answer = third.answer()
    assert answer.status == 503
    assert answer.error["code"] == "deadline_unmeetable"
    assert 1 <= int(answer.headers["retry-after"]) <= 120
