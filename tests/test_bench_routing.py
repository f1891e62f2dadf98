"""The benchmark of routing on real engines: that it runs, that its workload is the same for all, and that it sees what is wrong."""

import asyncio
import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import conversations, routing
from bench.conversations import Heard
from bench.meter import Reading
from tests.house import ROOT


@pytest.mark.e2e
def test_a_quick_run_has_all_answers_of_real_engines():
    words = [sys.executable, "-m", "bench.routing", "--quick", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [(one["strategy"], one["answers"], one["wrong"]) for one in printed["all"]] == [(name, 4, []) for name in routing.STRATEGIES]
    assert all(sum(one["boxes"].values()) == one["answers"] for one in printed["windows"])
    assert all(0 < one["first_p50"] <= one["first_p95"] for one in printed["windows"])
    assert all(one["ours"] > 0 for one in printed["windows"])


def test_a_workload_is_the_same_but_for_its_mark():
    one, other = (conversations.made(3, 4, 7, mark) for mark in ("one", "two"))
    assert one != other
    for ours, theirs in zip(one, other, strict=True):
        assert [turn.wait for turn in ours] == [turn.wait for turn in theirs]
        assert [turn.messages[1:] for turn in ours] == [turn.messages[1:] for turn in theirs]
        assert all(turn.messages[0]["content"].startswith("one ") for turn in ours)
        for before, after in itertools.pairwise(ours):
            assert after.messages[: len(before.messages)] == before.messages
    assert conversations.made(3, 4, 8, "one") != one


def stream(*events: str, status: str = "200 OK", headers: str = "") -> bytes:
    body = "".join(f"{len(event):x}\r\n{event}\r\n" for event in events) + "0\r\n\r\n"
    return f"HTTP/1.1 {status}\r\n{headers}transfer-encoding: chunked\r\n\r\n{body}".encode()


SERVED = "X-Mindgw-Served-By: Slow; model=m\r\n"
USAGE = 'data: {"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
ENDS = [
    (stream(": ping\n", 'data: {"usage":null}\n\n', USAGE, "data: [DONE]\n\n", headers=SERVED), "", (9, 4, "slow")),
    (stream('data: {"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}\n\n', "data: [DONE]\n\n"), "", (9, 0, "")),
    (stream("", status="503 Away"), "status 503", (0, 0, "")),
    (stream('data: {"error":{"code":"lost"}}\n\n', "data: [DONE]\n\n"), "an error in its stream: {'code': 'lost'}", (0, 0, "")),
    (stream(USAGE), "it stopped without an end", (0, 0, "")),
    (stream("data: x\n\n"), "DecodeError", (0, 0, "")),
    (b"HTTP/1.1 2", "IncompleteReadError", (0, 0, "")),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "wrong", "facts"), ENDS)
async def test_an_answer_is_read_to_its_end_and_what_is_none_is_told(sent, wrong, facts):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        heard = await conversations.ask(server.sockets[0].getsockname()[1], "key", "m", [{"role": "user", "content": "x"}])
    assert (heard.wrong.partition(":")[0] if wrong.endswith("Error") else heard.wrong) == wrong
    assert (heard.prompt, heard.cached, heard.by) == facts
    assert (0 < heard.first <= heard.whole) == (not wrong)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_half_of_the_answers_are_not_above_the_median(firsts):
    found = routing.summary("score", 1, [Heard(first, first, 10, 5, "quick") for first in firsts])
    for part, value in ((0.5, found.first_p50), (0.95, found.first_p95)):
        assert value in firsts
        assert sum(first <= value for first in firsts) >= part * len(firsts) - 1e-9
        assert sum(first < value for first in firsts) < part * len(firsts)
    assert (found.answers, found.cached, found.boxes) == (len(firsts), 0.5, {"quick": len(firsts), "middle": 0, "slow": 0})


def test_what_the_machine_did_meanwhile_is_told():
    before, after = Reading({"server": 0}, 10, 1000, 100), Reading({"server": 10**9}, 20, 1200, 200)
    found = routing.summary("score", 1, [Heard(0.0, 0.0, 0, 0, wrong="status 503")], before, after)
    assert (found.steal, found.busy, found.ours) == (0.05, 0.5, routing._TICKS / 200)
    assert (found.answers, found.wrong, found.first_p95) == (0, ["status 503"], 0.0)
