"""The benchmark: that it runs and all answers arrive (never how fast), and that its callers see what is wrong with one."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from bench import answers, load, report
from bench.load import Load
from bench.meter import Meter
from tests.house import ROOT

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
CHUNKS = 3
EVENTS = [answers.event(index) for index in range(CHUNKS)]
ENDING = answers.ending(CHUNKS, with_usage=False)
STREAM = b"".join(EVENTS) + ENDING


@pytest.mark.e2e
def test_every_answer_of_a_quick_run_is_right():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    answered = {row["case"]: row["answers"] for row in printed["best"]}
    kinds = ("hello", "engine", "gateway")
    # every caller had at least one answer before its window, one within it and one to end with
    least = {f"{kind} {size}": times for size, times in {"c8": 24, "c1": 3, "8x2ms": 24}.items() for kind in kinds}
    del least["hello 8x2ms"]
    assert answered.keys() == least.keys()
    assert all(answered[case] >= least[case] for case in least), answered
    assert all(row["errors"] == {} for row in printed["rounds"])


def test_the_engines_own_answers_are_right():
    assert answers.wrong_unary(200, answers.UNARY) == ""
    assert answers.wrong_stream(200, STREAM, CHUNKS) == ""
    assert answers.wrong_stream(200, b": ping\n" + STREAM, CHUNKS) == ""
    assert answers.count(STREAM) == CHUNKS


def test_sizes_are_those_of_real_answers():
    assert 550 < len(answers.UNARY) < 700
    assert 180 < len(answers.event(20)) < 240
    msgspec.json.decode(answers.UNARY)


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"".join(EVENTS), "[DONE]"),
        (STREAM + answers.DONE, "[DONE]"),
        (STREAM + EVENTS[0], "[DONE]"),
        (b"".join(EVENTS[1:]) + ENDING, "lost or out of order"),
        (b"".join(reversed(EVENTS)) + ENDING, "lost or out of order"),
        (b"".join(EVENTS) + answers.DONE, "finish reason"),
        (b"".join(EVENTS) + answers.ending(CHUNKS, with_usage=True), "usage"),
        (b"data: <html>\n\n" + STREAM, "no chunk"),
        (b"", "[DONE]"),
    ],
)
def test_a_stream_that_is_not_the_engines_is_seen(stream, what):
    assert what in answers.wrong_stream(200, stream, CHUNKS)


def test_an_error_is_no_answer():
    assert answers.wrong_unary(503, answers.UNARY) == "status 503"
    assert answers.wrong_stream(429, STREAM, CHUNKS) == "status 429"
    assert answers.wrong_unary(200, answers.UNARY[:-300])


@asynccontextmanager
async def replying(*replies: bytes) -> AsyncIterator[int]:
    """The port of a listener that sends these, one a request, and closes after the last."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


RIGHT = whole(answers.UNARY)


@pytest.mark.parametrize(
    ("replies", "right", "wrong"),
    [
        ([RIGHT, RIGHT[:-5]], 1, {"connection lost": 1}),
        ([b""], 0, {"connection lost": 1}),
        ([b"SSH-2.0\r\n"], 0, {"not HTTP": 1}),
        ([whole(b"busy", "503 Busy")], 0, {"status 503": 1}),
    ],
)
async def test_callers_count_what_goes_wrong_and_go_on(replies, right, wrong):
    async with replying(*replies) as port:
        window = await load.run(Load("127.0.0.1", port, REQUEST, answers.wrong_unary, 1), Meter({}), 0.0)
    assert (window.right, window.wrong) == (right, wrong)


def test_percentiles_are_values_that_were_seen():
    assert report.percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 3.0
    assert report.percentile(range(100), 0.99) == 99
    assert report.percentile([], 0.99) == 0.0


def test_the_best_of_rounds_keeps_every_error():
    fast = report.Row("gateway c1", "server", 1, "request", 100.0, 1.0, 2.0, None, {"server": 30.0}, 1.1, 0.0, 10, {"status 503": 1})
    slow = msgspec.structs.replace(
        fast, round=2, rate=50.0, p99_ms=1.5, cpu_us={"server": 40.0}, ratio=1.0, steal=0.2, errors={"status 503": 2}
    )
    (best,) = report.fold([fast, slow])
    assert (best.rate, best.p99_ms, best.cpu_us, best.ratio, best.steal) == (100.0, 1.5, {"server": 30.0}, 1.0, 0.2)
    assert (best.answers, best.errors) == (20, {"status 503": 3})
    assert "gateway c1" in report.table([best], rounds=2)
