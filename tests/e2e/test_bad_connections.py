"""What is wrong with a connection: bodies without end, clients that leave, stall or talk over each other, heads without end.

A real server and agent, raw sockets, a FAKE engine behind; at the end nothing may have leaked and nothing be lost.
"""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI

from tests.e2e.raw import CHAT, Raw, head, request
from tests.e2e.stage import Stage, chat, said, stream_error
from tests.e2e.stage import stage as open_stage
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

GOOD = chat("plain")
MIB = 2**20


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("connections"), "limits: {body: 2MiB}\n") as made:
        yield made


# -- bodies that are not read ------------------------------------------------------------------------------------


def upload(stage: Stage, key: str, path: str, size: int, *, chunked: bool) -> Raw:
    """Sends a body of `size` bytes, whatever the server says meanwhile."""
    raw = Raw(stage.world.port)
    length = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    raw.send(head(path, f"authorization: Bearer {key}", length))
    piece = b"x" * 65536
    for _ in range(size // len(piece)):
        raw.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        raw.send(b"0\r\n\r\n")
    return raw


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused_and_the_client_hears_it(stage: Stage, chunked: bool) -> None:
    with upload(stage, stage.world.key, CHAT, 20 * MIB, chunked=chunked) as raw:
        answer = raw.answer()
        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (413, "request_too_large", "close")
        assert raw.ended()


@pytest.mark.parametrize(("key", "path", "status"), [("bad", CHAT, 401), ("bad", "/v1/nope", 404), ("bad", "/nope", 404)])
@pytest.mark.parametrize("chunked", [False, True])
def test_refusal_by_the_head_is_heard_behind_a_large_body(stage: Stage, key: str, path: str, status: int, chunked: bool) -> None:
    with upload(stage, key, path, 10 * MIB, chunked=chunked) as raw:
        assert raw.answer().status == status


@pytest.mark.parametrize("length", [b"2097153", b"99999999999", b"9" * 19])
def test_body_over_the_limit_is_refused_before_it_is_sent(stage: Stage, length: bytes) -> None:
    with Raw(stage.world.port) as raw:
        raw.send(head(CHAT, f"authorization: Bearer {stage.world.key}", b"content-length: " + length))
        assert raw.answer().status == 413


def test_sdk_sees_the_status_of_a_body_over_the_limit(stage: Stage) -> None:
    with OpenAI(base_url=stage.world.base_url, api_key=stage.world.key, max_retries=0) as ai, pytest.raises(APIStatusError) as refused:
        ai.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * (8 * MIB)}])
    assert refused.value.status_code == 413 and refused.value.code == "request_too_large"


def test_sdk_sees_the_status_of_a_bad_key_behind_a_large_body(stage: Stage) -> None:
    with OpenAI(base_url=stage.world.base_url, api_key="bad", max_retries=0) as ai, pytest.raises(APIStatusError) as refused:
        ai.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * MIB}])
    assert refused.value.status_code == 401


def test_body_up_to_the_limit_is_taken(stage: Stage) -> None:
    pad = 2 * MIB - len(chat("plain", pad=""))
    assert stage.play("plain", pad="x" * pad).status == 200
    assert stage.play("plain", pad="x" * (pad + 1)).status == 413


def test_chunked_body_is_taken(stage: Stage) -> None:
    with Raw(stage.world.port) as raw:
        raw.send(head(CHAT, f"authorization: Bearer {stage.world.key}", "transfer-encoding: chunked"))
        for byte in GOOD:
            raw.send(b"1\r\n%c\r\n" % byte)
        raw.send(b"0\r\n\r\n")
        assert raw.answer().status == 200


@pytest.mark.parametrize(("length", "key", "statuses"), [(len(GOOD), "", [100, 200]), (2**30, "", [413]), (len(GOOD), "bad", [401])])
def test_client_that_asks_before_sending_is_told(stage: Stage, length: int, key: str, statuses: list[int]) -> None:
    with Raw(stage.world.port) as raw:
        raw.send(head(CHAT, f"authorization: Bearer {key or stage.world.key}", "expect: 100-continue", f"content-length: {length}"))
        found = [raw.answer().status]
        if found == [100]:
            raw.send(GOOD)
            found.append(raw.answer().status)
        assert found == statuses


# -- several requests on one connection --------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    key = stage.world.key
    with Raw(stage.world.port) as raw:
        models = head("/v1/models", f"authorization: Bearer {key}", method="GET")
        raw.send(request(key, chat("numbered", count=50, stream=True)) + request(key, b"{") + models + request(key, GOOD))
        assert said(raw.answer()) == "".join(f"{number} " for number in range(50))
        assert [raw.answer().status for _ in range(3)] == [400, 200, 200]


BROKEN = {
    "two lengths": head(CHAT, "content-length: 5", "content-length: 6"),
    "a length and chunks": head(CHAT, "content-length: 5", "transfer-encoding: chunked"),
    "a negative length": head(CHAT, "content-length: -1"),
    "a length with a sign": head(CHAT, "content-length: +5"),
    "an endless length": head(CHAT, b"content-length: " + b"9" * 40),
    "a chunk without size": head(CHAT, "transfer-encoding: chunked") + b"zz\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "bare line feeds": b"GET /v1/models HTTP/1.1\nhost: x\n\n",
    "a folded line": b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "a blank before the colon": b"GET /v1/models HTTP/1.1\r\nhost : x\r\n\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    "no such method": b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a proxy's method": b"CONNECT evil:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000100"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_http_is_refused_in_the_same_form(stage: Stage, name: str) -> None:
    with Raw(stage.world.port) as raw:
        raw.send(BROKEN[name])
        answer = raw.answer()
        assert (answer.status, answer.error["type"], answer.headers["connection"]) == (400, "invalid_request_error", "close")
        assert raw.ended()


@pytest.mark.parametrize("line", [b"x: " + b"a" * 2 * MIB, b"\r\n".join(b"x%d: %s" % (i, b"a" * 100) for i in range(2000))])
def test_endless_head_is_refused(stage: Stage, line: bytes) -> None:
    with Raw(stage.world.port) as raw:
        raw.send(head("/v1/models", line, method="GET"))
        answer = raw.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


def test_garbage_behind_a_running_answer_does_not_appear_in_it(stage: Stage) -> None:
    stage.engine.gate.clear()
    with stage.begin("patience", stream=True) as raw:
        raw.until(b"wait")
        raw.send(b"\x00garbage\r\n\r\n")
        rest = b""
        while raw.more():
            rest = raw.held
        assert b"HTTP/1.1" not in rest
    stage.idle()


# -- clients that leave ------------------------------------------------------------------------------------------


def test_client_that_leaves_in_its_body_holds_nothing(stage: Stage) -> None:
    before = len(stage.engine.requests)
    for cut in (0, 1, len(GOOD) // 2, len(GOOD) - 1):
        with Raw(stage.world.port) as raw:
            raw.send(request(stage.world.key, GOOD)[: cut - len(GOOD)])
    assert stage.play("plain").status == 200
    assert len(stage.engine.requests) == before + 1 and stage.queue() == {"waiting": 0, "running": 0}


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_leaves_its_stream_frees_the_engine(stage: Stage, reset: bool) -> None:
    stage.engine.gate.clear()
    stage.engine.left.clear()
    with stage.begin("patience", stream=True) as raw:
        raw.until(b"wait")
        if reset:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert stage.engine.left.wait(5)
    stage.idle()


def test_client_that_closes_its_half_counts_as_gone(stage: Stage) -> None:
    stage.engine.gate.clear()
    with stage.begin("patience", stream=True) as raw:
        raw.until(b"wait")
        raw.socket.shutdown(socket.SHUT_WR)
        stage.idle()
        assert b"[DONE]" not in raw.held


def test_client_that_leaves_the_queue_is_forgotten(stage: Stage) -> None:
    stage.engine.gate.clear()
    before = len(stage.engine.requests)
    running = [stage.begin("gated", count=1, stream=True) for _ in range(2)]
    until(lambda: stage.queue()["running"] == 2, "both slots are taken")
    with stage.begin("gated", count=1, stream=True):
        until(lambda: stage.queue()["waiting"] == 1, "one waits")
    until(lambda: stage.queue()["waiting"] == 0, "nobody waits", 5)
    stage.engine.gate.set()
    for raw in running:
        with raw:
            assert said(raw.answer()) == "0 "
    assert len(stage.engine.requests) == before + 2


# -- clients that do not read, clients that all come at once ------------------------------------------------------


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_client_that_does_not_read_stops_the_engine_and_costs_no_memory(stage: Stage) -> None:
    count, pad = 2000, 16 * 1024
    processes = [process.child.pid for process in stage.world.processes]
    assert said(stage.play("numbered", count=100, pad=pad, stream=True))
    before = [memory(pid) for pid in processes]
    stage.engine.sent = 0
    with stage.begin("numbered", window=64 * 1024, count=count, pad=pad, stream=True) as raw:
        raw.until(b"0 xxx")
        seen: list[int] = []
        until(lambda: seen.append(stage.engine.sent) or (len(seen) > 25 and seen[-25] == seen[-1]), "the engine stands still", 20)
        assert stage.engine.sent < count // 2
        assert all(memory(pid) < old + 8 * MIB for pid, old in zip(processes, before, strict=True))
        text = bytearray()
        while b"[DONE]" not in text[-200:]:
            assert raw.more()
            text += raw.held
            raw.held = b""
    numbers = [int(n) for n in re.findall(rb'"content": ?"(\d+) ', text)]
    assert numbers == list(range(count - len(numbers), count)) and len(numbers) > count // 2
    stage.idle()


def test_many_streams_pass_two_slots_in_the_order_they_came(stage: Stage) -> None:
    stage.engine.gate.clear()
    stage.engine.busiest = 0
    before = len(stage.engine.requests)
    running = []
    for number in range(50):
        running.append(stage.begin("gated", count=20, stream=True, user=str(number)))
        until(lambda number=number: sum(stage.queue().values()) == number + 1, "it has come")  # type: ignore[misc]
    assert stage.queue() == {"waiting": 48, "running": 2}
    stage.engine.gate.set()
    for raw in running:
        with raw:
            answer = raw.answer()
            stage.paid.append(answer.headers["x-request-id"])
            assert said(answer) == "".join(f"{number} " for number in range(20))
    assert stage.engine.busiest == 2
    came = [int(body["user"]) for body, _ in stage.engine.requests[before:]]
    assert sorted(came) == list(range(50))
    # whoever has a slot has at most one beside it: of those before it, that one alone can be later at the engine
    assert all(sum(later < number for later in came[place:]) <= 1 for place, number in enumerate(came))


# -- events that are too much ------------------------------------------------------------------------------------


def test_event_of_a_mebibyte_arrives_whole(stage: Stage) -> None:
    assert said(stage.play("huge event", stream=True)) == "y" * MIB + "one two"


@pytest.mark.parametrize("scene", ["monstrous event", "not JSON"])
def test_event_that_cannot_be_passed_on_ends_the_stream_with_an_error(stage: Stage, scene: str) -> None:
    answer = stage.play(scene, stream=True)
    assert stream_error(answer)["code"] == "engine_error"
    assert stage.row(answer.headers["x-request-id"])["outcome"] == "failed"


def test_every_event_of_a_stream_is_json(stage: Stage) -> None:
    answer = stage.play("numbered", count=100, stream=True, stream_options={"include_usage": True})
    events = [line[6:] for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 3 and len(events) == 103
