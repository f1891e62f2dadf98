"""The benchmark: that it runs and all answers arrive (never how fast), that it sees what is wrong with one, that its tables are right."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from bench import answers, bystanders, cases, cores, document, load, meter, profiled, report, tables, targets, where
from bench.__main__ import main
from bench.cases import Case, Door, Size
from bench.load import Load
from bench.meter import Meter, Reading
from bench.profiled import Profile
from bench.report import Row
from bench.targets import Target
from tests.house import ROOT

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
CHUNKS = 3
EVENTS = [answers.event(index, at=index + 1) for index in range(CHUNKS)]
ENDING = answers.ending(CHUNKS, with_usage=False)
STREAM = b"".join(EVENTS) + ENDING

# -- the whole -------------------------------------------------------------------------------------------------------------

#: One of each kind.
NAMES = ("start", "c1", "rps50", "burst", "slow-200", "limit", "agents-100", "keys-10000", "open-10000")
ON = ("hello", "engine", "aiohttp", "gateway", "asgi", "peer")
#: A setting that the server for the ASGI lane does not take.
UNKNOWN = "no_such_setting: 1"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.e2e
def test_every_answer_of_a_quick_run_is_right():
    """The peer is the mock engine itself; a server that does not take a setting is left out, and that is said."""
    port = free_port()
    words = ["--quick", "--json", "--peer", f"http://127.0.0.1:{port}/v1", "--engine-port", str(port), "--asgi-line", UNKNOWN]
    words += [word for name in NAMES for word in ("--case", name)] + [word for name in ON for word in ("--target", name)]
    done = subprocess.run([sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    wanted = {(case.name, case.target) for case in cases.chosen(NAMES, ON) if case.target != "asgi"}
    assert {(row["case"], row["target"]) for row in printed["best"]} == wanted
    assert {name for name, _ in wanted} == set(NAMES)
    assert [row for row in printed["rounds"] if row["errors"] or not row["answers"]] == []
    rows = {(row["case"], row["target"]): row for row in printed["rounds"]}
    # every caller had at least one answer before its window, one within it and one to end with
    assert rows["burst", "gateway"]["answers"] >= 3 * Size(quick=True).count(64)
    assert rows["c1", "gateway"]["cpu_us"].keys() == {"server", "agent", "engine", "callers"}
    assert rows["c1", "peer"]["cpu_us"].keys() == {"server", "engine", "callers"}
    assert rows["agents-100", "gateway"]["cpu_us"].keys() == {"server", "engine", "callers"}
    assert rows["start", "gateway"]["start_s"] > 0
    assert rows["burst", "gateway"]["lag_p50_ms"] > 0
    assert {each["met"] for each in printed["targets"]} <= {"yes", "no", "not measured"}
    (note,) = printed["notes"]
    assert note.startswith("asgi is not measured")
    assert "no_such_setting" in note


@pytest.mark.parametrize(
    "words", [["--case", "nothing"], ["--target", "peer"], ["--chunks", "0"], ["--chunks", "5000"], ["--rounds", "0"], ["--seconds", "nan"]]
)
def test_a_wish_that_cannot_be_fulfilled_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


# -- answers ---------------------------------------------------------------------------------------------------------------


def test_the_engines_own_answers_are_right():
    assert answers.wrong_unary(200, answers.UNARY) == ""
    assert answers.wrong_stream(200, STREAM, CHUNKS) == ""
    assert answers.wrong_stream(200, b": ping\n" + STREAM, CHUNKS) == ""
    assert answers.count(STREAM, CHUNKS) == CHUNKS
    assert answers.count(b"".join(EVENTS[:2]), CHUNKS) == 2


def test_sizes_are_those_of_real_answers():
    assert 550 < len(answers.UNARY) < 700
    assert 180 < len(answers.event(20)) < 240
    msgspec.json.decode(answers.UNARY)


def test_a_chunk_says_when_it_left():
    assert answers.left_at(answers.event(1, at=255)) == 255
    assert answers.left_at(b"HTTP/1.1 200 OK\r\n\r\n" + STREAM) == 1
    assert answers.left_at(ENDING) is None
    event = answers.event(1, at=255)
    assert all(answers.left_at(event[:cut]) in {None, 255} for cut in range(len(event)))


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


def test_the_beginning_of_a_stream_is_checked_as_far_as_it_goes():
    assert [answers.wrong_beginning(200, STREAM[:cut], CHUNKS) for cut in range(len(STREAM) + 1) if cut != 1] == [""] * len(STREAM)
    assert "lost" in answers.wrong_beginning(200, EVENTS[0] + EVENTS[2], CHUNKS)
    assert "no chunk" in answers.wrong_beginning(200, b"data: {\n\n", CHUNKS)
    assert answers.wrong_beginning(429, b"", CHUNKS) == "status 429"


def test_an_error_is_no_answer():
    assert answers.wrong_unary(503, answers.UNARY) == "status 503"
    assert answers.wrong_stream(429, STREAM, CHUNKS) == "status 429"
    assert answers.wrong_unary(200, answers.UNARY[:-300])


# -- callers ---------------------------------------------------------------------------------------------------------------


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """The port of a listener that talks so; each connection is closed at the end of its talk."""
    talks: set[asyncio.Task[None] | None] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await talk(reader, writer)

    async with await asyncio.start_server(one, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait([task for task in talks if task is not None], timeout=30)


@asynccontextmanager
async def replying(*replies: bytes) -> AsyncIterator[int]:
    """The port of a listener that sends these, one a request, and closes after the last."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)

    async with listening(talk) as port:
        yield port


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


RIGHT = whole(answers.UNARY)
#: The head of a stream that has begun.
BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def calling(port: int, rate: float = 0.0) -> Load:
    return Load("127.0.0.1", port, [REQUEST], answers.wrong_unary, 1, rate=rate)


@pytest.mark.parametrize(
    ("replies", "right", "wrong"),
    [
        ([RIGHT, RIGHT[:-5]], 1, {"connection lost": 1}),
        ([b""], 0, {"connection lost": 1}),
        ([b"SSH-2.0\r\n"], 0, {"not HTTP": 1}),
        ([whole(b"busy", "503 Busy")], 0, {"status 503": 1}),
    ],
)
async def test_callers_count_what_goes_wrong_and_go_on(replies, right, wrong, monkeypatch):
    monkeypatch.setattr(load, "PATIENCE", 0.5)  # some never have an answer
    async with replying(*replies) as port:
        window = await load.run(calling(port), Meter({}), 0.0)
    assert (window.right, window.wrong) == (right, wrong)


async def test_requests_at_a_rate_do_not_wait_for_answers():
    """The first connection never has an answer; the requests that follow take others."""
    seen: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        is_first = len(seen) == 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"" if is_first else RIGHT)

    async with listening(talk) as port:
        running = asyncio.create_task(load.run(calling(port, rate=500), Meter({}), 0.05))
        async with asyncio.timeout(30):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        seen[0].transport.abort()
        window = await running
    assert window.right >= 1
    assert window.wrong == {"connection lost": 1}


async def test_keys_take_turns():
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(int(heads[-1].partition(b"content-length: ")[2].split(b"\r\n")[0]))
            writer.write(RIGHT)

    async with listening(talk) as port:
        door = Door(f"http://127.0.0.1:{port}/v1", ["one", "two"])
        await load.run(cases.load(Case("c1", "gateway", 1), Size(quick=True), door), Meter({}), 0.0)
    assert [head.partition(b"Bearer ")[2].split(b"\r\n")[0] for head in heads] == [b"one", b"two", b"one", b"two"]
    assert heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_every_key_was_used_before_a_window_opens():
    """What the first request of a key costs is not what the next one does."""
    keys: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                keys.append(head.partition(b"Bearer ")[2].split(b"\r\n")[0])
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
                writer.write(RIGHT)

    async with listening(talk) as port:
        door = Door(f"http://127.0.0.1:{port}/v1", [str(number) for number in range(50)])
        window = await load.run(cases.load(Case("c1", "gateway", 1), Size(quick=True), door), Meter({}), 0.0)
    assert {*keys} == {b"%d" % number for number in range(50)}
    assert window.answers <= window.right - 50


@pytest.mark.e2e
def test_what_runs_on_a_server_of_its_own_runs_by_itself():
    words = ["--quick", "--json", "--case", "keys-10", "--target", "gateway"]
    done = subprocess.run([sys.executable, "-m", "bench", *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert [(row["case"], row["answers"] > 0) for row in json.loads(done.stdout)["best"]] == [("keys-10", True)]


async def test_the_parts_of_a_stream_are_timed():
    parts = [
        BEGUN,
        b"%x\r\n%b\r\n" % (len(EVENTS[0]), EVENTS[0]),
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM) - len(EVENTS[0]), STREAM[len(EVENTS[0]) :]),
    ]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    async with listening(talk) as port:
        right = lambda status, body: answers.wrong_stream(status, body, CHUNKS)  # noqa: E731
        there = Load("127.0.0.1", port, [REQUEST], right, 1, CHUNKS)
        window = await load.run(there, Meter({}), 0.05)
    assert window.wrong == {}
    assert window.right >= 2
    assert len(window.firsts) >= 1
    assert len(window.lags) >= len(window.firsts)
    assert window.chunks >= 1


# -- bystanders ------------------------------------------------------------------------------------------------------------


async def test_a_stream_that_does_not_begin_is_told():
    async with replying(whole(b"no", "503 Busy")) as port:
        with pytest.raises(ConnectionError, match="503 Busy"):
            async with bystanders.Held("127.0.0.1", port, REQUEST, 1):
                pass


async def test_a_stream_that_is_lost_while_it_is_held_is_counted():
    async with replying(BEGUN + EVENTS[0]) as port, bystanders.Held("127.0.0.1", port, REQUEST, 2) as held, asyncio.timeout(30):
        while held.wrong.total() < 2:
            await asyncio.sleep(0.01)


async def test_streams_that_are_let_go_are_not_lost():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BEGUN + EVENTS[0])
        await reader.read()

    async with listening(talk) as port, bystanders.Held("127.0.0.1", port, REQUEST, 3) as held:
        pass
    assert held.wrong == {}


async def test_what_slow_readers_read_is_checked():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        told.append(writer)
        event = EVENTS[1] if len(told) == 1 else EVENTS[0]
        writer.write(BEGUN + b"%x\r\n%b\r\n" % (len(event), event))
        if len(told) < 3:
            await reader.read()

    told: list[asyncio.StreamWriter] = []
    async with (
        listening(talk) as port,
        asyncio.timeout(30),
        bystanders.SlowReaders("127.0.0.1", port, [REQUEST], 3, CHUNKS) as slow,
    ):
        while not slow.wrong:  # the one that was closed
            await asyncio.sleep(0.01)
    assert slow.wrong["a slow reader: connection lost"] == 1
    assert slow.wrong["a slow reader: chunks lost or out of order"] == 1


# -- figures ---------------------------------------------------------------------------------------------------------------


def test_percentiles_are_values_that_were_seen():
    assert report.percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 3.0
    assert report.percentile(range(100), 0.99) == 99
    assert report.percentile([], 0.99) == 0.0


def test_a_window_becomes_a_row():
    before = Reading({"server": 0, "agent": 0, "engine": 0, "callers": 0, "hello": 0}, steal=10, ticks=1000, used=300)
    after = Reading(
        {"server": 500_000_000, "agent": 100_000_000, "engine": 50_000_000, "callers": 250_000_000, "hello": 100_000_000},
        30,
        1200,
        300 + 130,
    )
    window = load.Window(2.0, 1000, 0, [1_000_000] * 99 + [5_000_000], [], [], [], before, after, 1200, {})
    row = report.row(Case("c64", "gateway", 64), 1, window, report.Roles("server", "agent", "engine"), others=1)
    assert (row.rate, row.p50_ms, row.p99_ms, row.per) == (500.0, 1.0, 5.0, "request")
    assert row.cpu_us == {"server": 500.0, "agent": 100.0, "engine": 50.0, "callers": 250.0}
    assert (row.busy, row.busy_others, row.steal) == (0.25, 0.2, 0.1)
    ours = 1.0 * os.sysconf("SC_CLK_TCK")  # a second of ours, and that of those who have no part in this case
    assert row.foreign == pytest.approx(max(0.0, (130 - ours) / 200))
    assert (row.answers, row.errors, row.gap_p99_ms, row.rss_mb) == (1200, {}, None, None)


def test_nothing_that_came_costs_nothing_that_could_be_said():
    reading = Reading({"server": 5}, 0, 0)
    window = load.Window(1.0, 0, 0, [], [], [], [], reading, reading, 0, {"status 503": 3})
    row = report.row(Case("c1", "gateway", 1), 1, window, report.Roles("server"), others=1)
    assert (row.cpu_us, row.steal, row.errors) == ({}, 0.0, {"status 503": 3})
    assert report.best([row]).cpu_us == {}


def row(case: str, target: str, server: float, **fields: object) -> Row:
    plain = {"round": 1, "answers": 10, "cpu_us": {"server": server, "agent": server / 2, "engine": 9.0, "callers": 9.0}}
    return Row(case=case, target=target, **(plain | fields))


def test_the_best_of_rounds_keeps_every_error():
    slow = row("c1", "gateway", 40.0, rate=50.0, p50_ms=1.0, p99_ms=1.5, rss_mb=7.0, steal=0.2, busy=0.2, errors={"status 503": 2})
    fast = row("c1", "gateway", 30.0, round=2, rate=100.0, p50_ms=1.0, p99_ms=2.0, rss_mb=5.0, busy=0.9, errors={"status 503": 1})
    (best,) = report.fold([slow, fast])
    assert best.busy == 0.9  # of the round that had this rate
    assert (best.rate, best.p99_ms, best.cpu_us["server"], best.steal, best.rss_mb) == (100.0, 1.5, 30.0, 0.2, 7.0)
    assert (best.answers, best.errors) == (20, {"status 503": 3})
    assert tables.errors([best]) == ["c1 gateway: 3 x status 503"]


def test_a_round_without_an_answer_is_not_the_best():
    none = row("c1", "gateway", 0.0, answers=0, cpu_us={}, p50_ms=0.0, errors={"not HTTP": 1})
    best = report.best([none, row("c1", "gateway", 30.0, round=2, p50_ms=4.0)])
    assert (best.p50_ms, best.cpu_us["server"], best.errors) == (4.0, 30.0, {"not HTTP": 1})


#: A run in which everything is known.
KNOWN = [
    row("start", "gateway", 0.0, cpu_us={}, start_s=1.25, rss_mb=100.0),
    row("c64", "hello", 20.0, busy=0.98, busy_others=0.4),
    row("c64", "aiohttp", 100.0),
    row("c64", "gateway", 22.0),
    row("c64", "asgi", 50.0),
    row("c1", "engine", 10.0, p50_ms=0.10),
    row("c1", "gateway", 90.0, p50_ms=0.30),
    row("400x20ms", "engine", 8.0, per="chunk", gap_p99_ms=21.0),
    row("400x20ms", "gateway", 12.0, per="chunk", gap_p99_ms=28.0),
    row("1000x20ms", "gateway", 11.0, per="chunk", rate=49_900.0, busy=0.56),
    row("agents-1", "gateway", 20.0),
    row("agents-1000", "gateway", 20.8),
    row("slow-none", "gateway", 20.0, per="chunk", gap_p99_ms=20.0),
    row("slow-200", "gateway", 20.0, per="chunk", gap_p99_ms=21.0, rss_mb=70.0),
    row("open-0", "gateway", 20.0),
    row("open-10000", "gateway", 30.0),
]


def test_targets_are_judged():
    found = {each.what: each for each in targets.targets(KNOWN)}
    judged = {what: (each.met(each.must), each.met(each.aim)) for what, each in found.items()}
    assert judged == {
        "server / hello, 64 callers": ("yes", "no"),
        "server / aiohttp pass-through, 64 callers": ("yes", "no"),
        "server + agent / aiohttp pass-through": ("yes", "no"),
        "ASGI lane / hello, 64 callers": ("no", "no"),
        "per chunk / aiohttp pass-through, 100 x 5 ms": ("not measured", "not measured"),
        "1000 x 50 tokens/s: of the server's core": ("yes", "no"),
        "400 x 50 tokens/s: gap p99 beyond direct": ("no", "no"),
        "one caller: p50 beyond direct": ("yes", "no"),
        "1000 agents / 1, one asked by 64": ("yes", "yes"),
        "1000 agents / 1, all asked in turn": ("not measured", "not measured"),
        "10000 keys / 10, all in use": ("not measured", "not measured"),
        "memory, idle": ("yes", "no"),
        "cold start": ("yes", "yes"),
        "200 slow readers: memory": ("no", ""),
        "200 slow readers: gap p99 of the others": ("yes", ""),
    }
    assert found["server / hello, 64 callers"].value == pytest.approx(1.1)
    assert found["server + agent / aiohttp pass-through"].value == pytest.approx(0.33)
    assert dict(targets.observed(KNOWN))["10000 open streams / none"] == pytest.approx(1.5)


@pytest.mark.parametrize("fields", [{"rate": 40_000.0}, {"errors": {"chunks lost or out of order": 1}}])
def test_streams_that_come_late_or_broken_meet_no_target(fields):
    found = targets.targets([row("1000x20ms", "gateway", 11.0, per="chunk", **({"rate": 50_000.0, "busy": 0.1} | fields))])
    (held,) = [each for each in found if each.what.startswith("1000 x 50")]
    assert held.value == pytest.approx(10.0)
    assert (held.met(held.must), bool(held.spoilt)) == ("no", True)


def test_the_table_compares_with_the_yardsticks_of_the_same_case():
    lines = tables.cases(KNOWN).splitlines()
    (ours,) = [line.split() for line in lines if line.startswith("c64 /request") and "gateway" in line]
    assert ours[:3] == ["c64", "/request", "gateway"]
    assert "1.10" in ours
    assert "0.22" in ours
    assert not any(line.startswith("start") for line in lines)
    assert "hello with 64 callers: 98% of its core, 40% of the callers': the server is the limit" in tables.limit(KNOWN)
    assert "the callers are the limit" in tables.limit([row("c64", "hello", 20.0, busy=0.4, busy_others=0.99)])
    assert tables.limit([]) == ""
    rounds = [row("c1", "hello", 1.0, steal=0.02), row("c1", "gateway", 1.0, foreign=0.4), row("c1", "hello", 1.0, round=2, steal=0.1)]
    assert tables.quiet(rounds) == "at worst in each round: steal 2%, 10%; other programs 40%, 0% of the machine"


def test_columns_stand_below_each_other():
    shown = tables.columns(("what", "n", "met"), [("a", "1.5", "yes"), ("bbbbbb", "10", "not measured")])
    assert shown.splitlines() == ["what      n  met", "a       1.5  yes", "bbbbbb   10  not measured"]


def test_the_page_has_a_place_for_a_run(tmp_path):
    page = document.PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "page.md"
    copy.write_text(page, encoding="utf-8")
    run = document.Taken({"machine": "a box"}, ["asgi is not measured"], Size(), KNOWN, {"c64": SEEN})
    for _ in range(2):
        document.write(run, KNOWN, targets.targets(KNOWN), copy)
    text = copy.read_text(encoding="utf-8")
    assert text.count("- machine: a box") == 1
    assert text.partition(document.BEGIN)[0] == page.partition(document.BEGIN)[0]
    assert text.partition(document.END)[2] == page.partition(document.END)[2]
    assert "| mindgw/server/hot.py feed | 50% |" in text
    assert "| server / hello, 64 callers | 1.10 x | 1.25 | yes | 0.9 | no |" in text
    with pytest.raises(ValueError, match="marks"):
        document.put("nothing", "text")


#: A profile.
SEEN = Profile(user=3.0, system=1.0, seen={"mindgw/server/hot.py feed": 50, "mindgw/server/hot.py answer": 30, "the event loop": 20})


def test_the_profile_says_where_the_time_goes():
    assert where.table({"c64": SEEN}).splitlines() == [
        "room                   c64",
        "mindgw/server          80%",
        "the event loop         20%",
        "of all: in the kernel  25%",
        "",
        "function                     c64",
        "mindgw/server/hot.py feed    50%",
        "mindgw/server/hot.py answer  30%",
        "the event loop               20%",
    ]
    assert where.table({}) == ""
    assert where.room("asyncio/events.py Handle._run") == "asyncio"
    assert profiled.named(None) == "the event loop"
    assert profiled.named(asyncio.Runner.run.__code__) == "the event loop"
    assert profiled.named(json.loads.__code__) == "json/__init__.py loads"


def test_a_program_is_seen_at_work(tmp_path):
    """What the benchmark does with signals, by hand."""
    watch = profiled.Watch(tmp_path / "profile.json")
    before = signal.signal(signal.SIGPROF, watch.look)
    try:
        watch.begin(signal.SIGUSR1, None)
        end = time.process_time() + 0.1
        while time.process_time() < end:
            answers.text.__wrapped__(500)
        watch.write(signal.SIGUSR2, None)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    told = msgspec.json.decode((tmp_path / "profile.json").read_bytes(), type=Profile)
    assert any("answers.py" in place for place in told.seen)
    assert told.user + told.system > 0
    assert profiled.named(None) == "the event loop"
    assert profiled.named(profiled.named.__code__).endswith("bench/profiled.py named")


def test_a_target_without_a_wish_has_no_verdict():
    assert Target("x", "s", 1.0, None, 0.5).met(None) == ""


# -- the machine -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "parts"),
    [
        ([3], {"server": 3, "agent": 3, "engine": 3, "callers": 3}),
        ([0, 1], {"server": 0, "agent": 1, "engine": 1, "callers": 1}),
        ([0, 1, 2], {"server": 0, "agent": 1, "engine": 1, "callers": 2}),
        ([0, 2, 4, 6, 8], {"server": 0, "agent": 2, "engine": 4, "callers": 6}),
    ],
)
def test_what_is_measured_has_a_core_to_itself(available, parts):
    plan = cores.plan(available)
    assert plan.core == parts
    assert plan.others == max(1, len(set(parts.values())) - 1)
    assert ("little" in plan.words()) is (len(available) == 1)


def test_a_child_begins_on_its_core_and_we_stay_where_we_were():
    before = os.sched_getaffinity(0)
    core = max(before)
    with cores.kept_to(core):
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], capture_output=True, text=True, check=True
        ).stdout
    assert told.strip() == str({core})
    assert os.sched_getaffinity(0) == before
    assert sorted(cores.available()) == sorted(before)


def test_the_process_behind_a_port_is_found():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert meter.listening(port) == [os.getpid()]
    assert meter.listening(port) == []
    assert Meter({"us": [os.getpid()]}).memory("us") > 1_000_000
    assert Meter({"us": [os.getpid()]}).read().cpu["us"] > 0
    assert Meter({}).memory("nobody") == 0


def test_cases_are_chosen_by_the_beginning_of_their_names():
    assert {case.name for case in cases.chosen(["agents", "c1"], cases.TARGETS)} == {"agents-1", "agents-100", "agents-1000", "c1"}
    assert {case.name for case in cases.chosen(["agents-1"], cases.TARGETS)} == {"agents-1"}
    assert {case.target for case in cases.chosen(["c64"], ["hello", "peer"])} == {"hello", "peer"}
    assert [case for case in cases.chosen([], ["gateway"]) if case.target != "gateway"] == []
    assert cases.chosen(["nothing"], cases.TARGETS) == []
