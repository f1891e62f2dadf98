"""What a scraper reads: plain counters and the pipeline's snapshot, and the listener that serves them without a key."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mindgw import clock, metrics
from mindgw.gateway.snapshot import Snapshot
from mindgw.server import scrape
from mindgw.server.collector import Collector
from mindgw.store.ledger import UsageRow
from tests.gateway.world import JSON, Box, World, engine


def row(**columns) -> UsageRow:
    facts = {"request_id": "r", "key_id": "k", "org_id": "o", "model": "m", "endpoint": "chat", "status": 200, "outcome": "done"}
    return UsageRow(**{**facts, "started_at": clock.utcnow(), **columns})


def read(collector: Collector) -> dict:
    """(name, values of the labels by their names) -> value, as Prometheus' own parser reads the page."""
    found = {}
    for family in text_string_to_metric_families(collector.render().decode()):
        for sample in family.samples:
            found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def nobody() -> Snapshot:
    return Snapshot(workers=[], waiting=3, running=2, started_at=0.0)


def test_finished_requests_are_counted_by_what_became_of_them():
    counters = metrics.Counters()
    counters.finished(row(prompt_tokens=5, completion_tokens=7, ttft_ms=40, total_ms=700))
    counters.finished(row(prompt_tokens=1, completion_tokens=2, ttft_ms=None, total_ms=20))
    counters.finished(row(status=504, outcome="failed", ttft_ms=None, total_ms=9_000_000))
    found = read(Collector(counters, nobody, lambda: 4))
    assert found["mindgw_requests_total", "chat", "m", "done", "200"] == 2
    assert found["mindgw_requests_total", "chat", "m", "failed", "504"] == 1
    assert (found["mindgw_tokens_total", "input", "m"], found["mindgw_tokens_total", "output", "m"]) == (6, 9)
    assert found["mindgw_time_to_first_token_seconds_count",] == 1
    assert (found["mindgw_queue_waiting",], found["mindgw_requests_running",], found["mindgw_usage_rows_unwritten",]) == (3, 2, 4)


def test_buckets_hold_all_that_is_at_or_under_their_bound():
    counters = metrics.Counters()
    for total_ms in (20, 50, 700, 9_000_000):
        counters.finished(row(total_ms=total_ms))
    found = read(Collector(counters, nobody, lambda: 0))
    name = "mindgw_request_duration_seconds"
    counts = {bound: found[f"{name}_bucket", bound] for bound in ("0.05", "0.5", "1.0", "3600.0", "+Inf")}
    assert counts == {"0.05": 2, "0.5": 2, "1.0": 3, "3600.0": 3, "+Inf": 4}
    assert (found[f"{name}_count",], found[f"{name}_sum",]) == (4, pytest.approx(9000.77))


def test_workers_show_their_slots_and_whether_they_are_ready():
    world = World()
    box = Box(world, "box", engine("m", slots=3))
    world.ask("m")
    collector = Collector(metrics.Counters(), world.pipeline.snapshot, lambda: world.meter.unwritten)
    busy = read(collector)
    assert (busy["mindgw_worker_slots", "box"], busy["mindgw_worker_slots_used", "box"], busy["mindgw_worker_ready", "box"]) == (3, 1, 1)
    box.head(200, JSON, b"{}")
    box.close()
    assert read(collector)["mindgw_worker_slots_used", "box"] == 0
    box.says()
    assert read(collector)["mindgw_worker_ready", "box"] == 0


@asynccontextmanager
async def listening():
    """Asks with these bytes and returns all that was answered until the connection ended."""
    server = await scrape.listen(socket.create_server(("127.0.0.1", 0)), Collector(metrics.Counters(), nobody, lambda: 0))
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
