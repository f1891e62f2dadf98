"""What a scraper reads: plain counters and the pipeline's snapshot, and the listener that serves them without a key."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mindgw import clock, metrics
from mindgw.gateway.lineup import Share, Stats
from mindgw.gateway.snapshot import Snapshot
from mindgw.server import scrape
from mindgw.server.collector import Collector
from mindgw.store.ledger import Entry
from tests.gateway.world import JSON, Box, World, engine


def row(**columns) -> Entry:
    facts = {"request_id": "r", "key_id": "k", "org_id": "o", "model": "m", "endpoint": "chat", "status": 200, "outcome": "done"}
    return Entry(**{**facts, "started_at": clock.utcnow(), **columns})


def read(collector: Collector) -> dict:
    """(name, values of the labels by their names) -> value, as Prometheus' own parser reads the page."""
    found = {}
    for family in text_string_to_metric_families(collector.render().decode()):
        for sample in family.samples:
            found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def nobody() -> Snapshot:
    return Snapshot(workers=[], waiting=3, running=2, started_at=0.0)


def nothing(**numbers) -> Stats:
    facts = {
        "waiting": 0, "running": 0, "classes": {}, "oldest_s": 0.0, "eta_error_median": None, "eta_error_p90": None, "shares": [],
        "bytes": 0, "paused": False, "paused_models": [],
    }  # fmt: skip
    return Stats(**{**facts, **numbers})


def test_finished_requests_are_counted_by_what_became_of_them():
    counters = metrics.Counters()
    counters.finished(row(prompt_tokens=5, completion_tokens=7, ttft_ms=40, total_ms=700))
    counters.finished(row(prompt_tokens=1, completion_tokens=2, ttft_ms=None, total_ms=20))
    counters.finished(row(status=504, outcome="failed", ttft_ms=None, total_ms=9_000_000))
    found = read(Collector(counters, nobody, nothing, lambda: 4))
    assert found["mindgw_requests_total", "chat", "m", "done", "200"] == 2
    assert found["mindgw_requests_total", "chat", "m", "failed", "504"] == 1
    assert (found["mindgw_tokens_total", "input", "m"], found["mindgw_tokens_total", "output", "m"]) == (6, 9)
    assert found["mindgw_time_to_first_token_seconds_count",] == 1
    assert (found["mindgw_queue_waiting",], found["mindgw_requests_running",], found["mindgw_usage_rows_unwritten",]) == (3, 2, 4)


def test_buckets_hold_all_that_is_at_or_under_their_bound():
    counters = metrics.Counters()
    for total_ms in (20, 50, 700, 9_000_000):
        counters.finished(row(total_ms=total_ms))
    found = read(Collector(counters, nobody, nothing, lambda: 0))
    name = "mindgw_request_duration_seconds"
    counts = {bound: found[f"{name}_bucket", bound] for bound in ("0.05", "0.5", "1.0", "3600.0", "+Inf")}
    assert counts == {"0.05": 2, "0.5": 2, "1.0": 3, "3600.0": 3, "+Inf": 4}
    assert (found[f"{name}_count",], found[f"{name}_sum",]) == (4, pytest.approx(9000.77))


def test_workers_show_their_slots_and_whether_they_are_ready():
    world = World()
    box = Box(world, "box", engine("m", slots=3))
    world.ask("m")
    collector = Collector(metrics.Counters(), world.pipeline.snapshot, world.pipeline.queue_stats, lambda: world.meter.unwritten)
    busy = read(collector)
    assert (busy["mindgw_worker_slots", "box"], busy["mindgw_worker_slots_used", "box"], busy["mindgw_worker_ready", "box"]) == (3, 1, 1)
    box.head(200, JSON, b"{}")
    box.close()
    assert read(collector)["mindgw_worker_slots_used", "box"] == 0
    box.says()
    assert read(collector)["mindgw_worker_ready", "box"] == 0


def test_failovers_and_workers_that_are_left_alone_are_shown():
    world = World()
    for name in ("one", "two"):
        Box(world, name)
    collector = Collector(world.meter.counters, world.pipeline.snapshot, world.pipeline.queue_stats, lambda: 0)
    assert read(collector)["mindgw_retries_refused_total",] == 0
    while not world.meter.counters.ejections:
        client = world.ask("m")
        while client.end is None:
            box = next(box for box in world.boxes if box.requests)
            box.head(*((500, JSON, b"") if box.name == "one" else (200, JSON, b"{}")))
            box.close()
    found = read(collector)
    assert (found["mindgw_failovers_total", "engine_error"], found["mindgw_worker_ejections_total", "m", "one"]) == (3, 1)
    assert found["mindgw_worker_ejected", "m", "one"] == 1
    assert ("mindgw_worker_ejected", "m", "two") not in found
    world.meter.counters.hedges["won"] += 2
    assert read(collector)["mindgw_hedges_total", "won"] == 2
    (shown, other) = world.pipeline.snapshot().workers
    assert [(circuit.model, circuit.state, circuit.retry_s) for circuit in shown.circuits] == [("m", "open", 5.0)]
    assert other.circuits == []


def test_the_queue_is_shown_by_class_with_its_oldest_its_errors_and_its_shares():
    shares = [Share(team="nlp", share=0.5, units=500.0), Share(team="", share=0.3, units=300.0), Share(team="nlp", share=0.2, units=200.0)]
    stats = nothing(
        classes={"bumped": 0, "high": 2, "batch": 1}, oldest_s=7.5, bytes=99, eta_error_median=0.2, eta_error_p90=0.6, shares=shares
    )
    found = read(Collector(metrics.Counters(), nobody, lambda: stats, lambda: 0))
    assert [found["mindgw_queue_depth", name] for name in ("bumped", "high", "batch")] == [0, 2, 1]
    assert (found["mindgw_queue_oldest_seconds",], found["mindgw_queue_bytes",]) == (7.5, 99)
    assert (found["mindgw_queue_eta_error_ratio", "0.5"], found["mindgw_queue_eta_error_ratio", "0.9"]) == (0.2, 0.6)
    # two organisations have a team of that name
    assert (found["mindgw_team_units", "nlp"], found["mindgw_team_units", ""]) == (700, 300)
    assert found["mindgw_team_share_ratio", "nlp"] == pytest.approx(0.7)


def test_an_error_of_estimates_is_absent_until_there_was_one():
    names = {name for name, *_ in read(Collector(metrics.Counters(), nobody, nothing, lambda: 0))}
    assert "mindgw_queue_eta_error_ratio" not in names and "mindgw_queue_oldest_seconds" in names


def test_waits_are_those_of_requests_that_stood_in_the_queue():
    counters = metrics.Counters()
    counters.finished(row(worker_id="w", queued_ms=400))
    counters.finished(row(worker_id="", queued_ms=30_000, status=503, outcome="failed", error_code="queue_timeout"))
    counters.finished(row(worker_id="", queued_ms=2_000, status=499, outcome="cancelled", error_code="client_disconnected"))
    # one that never came to its body, one that was turned away, one that made no sense
    counters.finished(row(model="", worker_id="", queued_ms=9, status=499, outcome="cancelled", error_code="client_disconnected"))
    counters.finished(row(worker_id="", status=503, outcome="failed", error_code="queue_full"))
    counters.finished(row(model="", worker_id="", status=400, outcome="failed", error_code="invalid_request"))
    found = read(Collector(counters, nobody, nothing, lambda: 0))
    assert (found["mindgw_queue_wait_seconds_count",], found["mindgw_queue_wait_seconds_sum",]) == (3, pytest.approx(32.4))
    rejects = {labels[0]: value for (name, *labels), value in found.items() if name == "mindgw_rejects_total"}
    assert rejects == {"queue_timeout": 1, "queue_full": 1, "invalid_request": 1}


def test_dead_letters_are_counted_by_their_reason():
    counters = metrics.Counters()
    counters.dead_letters.update({"worker_lost": 2, "queue_timeout": 1})
    counters.dead_letters_lost = 4
    found = read(Collector(counters, nobody, nothing, lambda: 0))
    assert (found["mindgw_dead_letters_total", "worker_lost"], found["mindgw_dead_letters_total", "queue_timeout"]) == (2, 1)
    assert found["mindgw_dead_letters_lost_total",] == 4


def test_a_live_queue_can_be_scraped():
    world = World()
    Box(world, "box", engine("m", slots=1))
    for _ in range(3):
        world.ask("m")
    found = read(Collector(metrics.Counters(), world.pipeline.snapshot, world.pipeline.queue_stats, lambda: 0))
    assert (found["mindgw_queue_depth", "normal"], found["mindgw_queue_depth", "high"]) == (2, 0)
    assert found["mindgw_team_share_ratio", ""] == 1


@asynccontextmanager
async def listening():
    """Asks with these bytes and returns all that was answered until the connection ended."""
    server = await scrape.listen(socket.create_server(("127.0.0.1", 0)), Collector(metrics.Counters(), nobody, nothing, lambda: 0))
    port = server.sockets[0].getsockname()[1]

    async def ask(said: bytes, *, hang_up: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        if hang_up:
            writer.write_eof()
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()

    async with server:
        yield ask


@pytest.mark.parametrize("path", [b"/metrics", b"/metrics?name[]=mindgw_requests_total"])
async def test_the_listener_answers_a_scraper(path):
    async with listening() as ask:
        head, _, body = (await ask(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"content-length: %d" % len(body) in head
    assert b"mindgw_queue_waiting 3.0" in body


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /metrics HTTP/1.1", b"GET /metricsx HTTP/1.1", b"\x16\x03\x01"])
async def test_it_knows_nothing_else(line):
    async with listening() as ask:
        said = await ask(line + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 404 ") and b"mindgw_" not in said


async def test_whoever_is_no_scraper_is_hung_up_on_and_the_next_one_is_served(monkeypatch):
    monkeypatch.setattr(scrape, "PATIENCE", 0.2)
    async with listening() as ask:
        assert await ask(b"x" * 3 * scrape.MAX_REQUEST, hang_up=True) == b""
        assert await ask(b"GET /metr", hang_up=True) == b""
        assert await ask(b"GET /metr") == b""
        assert b" 200 OK" in await ask(b"GET /metrics HTTP/1.1\r\n\r\n")
