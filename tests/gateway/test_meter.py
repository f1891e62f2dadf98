import asyncio
import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from mindgw import metrics
from mindgw.core.usage import Tokens
from mindgw.gateway.admission import Caller
from mindgw.gateway.meter import BATCH, REFUSALS, Meter, Money, Tally
from mindgw.store.ledger import Entry
from tests.gateway.world import finished

START = datetime(2026, 1, 1, tzinfo=UTC)
PAYER = Caller("k", "name", "o", "t", "")
#: A slot of worker w, which calls the model m.
SLOT = SimpleNamespace(seat=SimpleNamespace(owner="w"), model="m")


def row(number: int = 0) -> Entry:
    tally = Tally(0.0, START.timestamp())
    tally.stand(0.0)
    return tally.row((f"r{number}", "/v1/completions"), PAYER, "done", 1.0, tally.tokens)


class Ledger:
    """A database that can be away; what it has stored, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[Entry]] = []
        self.away = False
        self.meter = Meter(self._append, metrics.Counters(), capacity=5000)

    async def _append(self, rows: list[Entry]) -> None:
        if self.away:
            raise OSError("the database is away")
        self.batches.append(rows)

    @property
    def stored(self) -> list[Entry]:
        return [row for batch in self.batches for row in batch]


def test_a_row_says_what_is_known():
    tally = Tally(10.0, START.timestamp())
    tally.stand(10.0)
    tally.send(SLOT, 10.5)
    tally.first, tally.stream, tally.status, tally.bytes = 12.0, True, 200, 7
    tally.tokens = Tokens(1, 2, 1, "engine")
    made = tally.row(("r", "/p"), PAYER, "done", 13.25, tally.tokens)
    assert (made.queued_ms, made.ttft_ms, made.total_ms) == (500, 2000, 3250)
    assert (made.prompt_tokens, made.completion_tokens, made.cached_tokens, made.source) == (1, 2, 1, "engine")
    assert (made.key_id, made.org_id, made.team_id, made.user_id) == ("k", "o", "t", None)
    assert (made.started_at, made.bytes_out, made.worker_id) == (START, 7, "w")


def test_a_request_that_never_ran_waited_all_its_time():
    made = row()
    assert (made.queued_ms, made.ttft_ms, made.total_ms, made.status, made.worker_id) == (1000, None, 1000, 499, "")


def test_only_the_time_in_the_queue_is_waiting():
    """Neither the upload of the body nor an attempt that came to nothing."""
    tally = Tally(0.0, START.timestamp())
    tally.stand(40.0)
    tally.send(SLOT, 41.0)
    tally.stand(50.0)
    tally.send(SLOT, 52.0)
    assert tally.row(("r", "/p"), PAYER, "done", 60.0, tally.tokens).queued_ms == 3000


def test_a_clock_that_stumbles_makes_no_negative_times():
    made = Tally(10.0, START.timestamp()).row(("r", "/p"), PAYER, "done", 9.0, Tokens())
    assert (made.queued_ms, made.total_ms) == (0, 0)


def test_rows_are_written_in_batches_in_their_order():
    ledger = Ledger()
    rows = [row(i) for i in range(BATCH * 2 + 5)]
    for made in rows:
        ledger.meter.settle(made)
    assert finished(ledger.meter.flush()) == len(rows)
    assert [len(batch) for batch in ledger.batches] == [BATCH, BATCH, 5]
    assert ledger.stored == rows
    assert (ledger.meter.unwritten, finished(ledger.meter.flush())) == (0, 0)


def test_rows_outlive_a_database_that_is_away():
    ledger = Ledger()
    ledger.meter.settle(row(1))
    ledger.away = True
    with pytest.raises(OSError, match="away"):
        finished(ledger.meter.flush())
    ledger.meter.settle(row(2))
    assert ledger.meter.unwritten == 2
    ledger.away = False
    finished(ledger.meter.flush())
    assert ledger.stored == [row(1), row(2)]


def test_a_meter_is_full_at_its_capacity():
    ledger = Ledger()
    for i in range(5000):
        assert not ledger.meter.full
        ledger.meter.settle(row(i))
    assert ledger.meter.full


async def test_rows_that_come_during_a_write_are_in_the_next_batch():
    ledger = Ledger()
    gate, written = asyncio.Event(), []

    async def append(rows: list[Entry]) -> None:
        written.append(rows)
        await gate.wait()

    meter = Meter(append, metrics.Counters())
    meter.settle(row(1))
    flush = asyncio.create_task(meter.flush())
    while not written:
        await asyncio.sleep(0)
    meter.settle(row(2))
    gate.set()
    assert await flush == 2
    assert written == [[row(1)], [row(2)]]
    assert ledger.stored == []


async def test_a_write_that_is_cut_off_is_made_again():
    """The ledger leaves out what it has already: twice offered is once counted."""
    gate, offered = asyncio.Event(), []

    async def append(rows: list[Entry]) -> None:
        offered.append(rows)
        await gate.wait()

    meter = Meter(append, metrics.Counters())
    meter.settle(row(1))
    flush = asyncio.create_task(meter.flush())
    while not offered:
        await asyncio.sleep(0)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    gate.set()
    await meter.flush()
    assert offered == [[row(1)], [row(1)]]


def test_every_row_is_counted_and_said_once(caplog):
    caplog.set_level(logging.INFO, "mindgw.request")
    counters = metrics.Counters()
    ledger = Ledger()
    meter = Meter(ledger._append, counters)
    meter.settle(row(1))
    finished(meter.flush())
    assert counters.requests == {("", "/v1/completions", "499", "done"): 1}
    (record,) = caplog.records
    ((said, fields),) = record.lines
    assert fields["request_id"] == "r1"
    assert said == "r1 /v1/completions  499 done"


class Flood:
    """A meter whose clock is set, and what becomes of requests that are refused."""

    def __init__(self) -> None:
        self.now = 5.0
        self.counters = metrics.Counters()
        self.ledger = Ledger()
        self.meter = Meter(self.ledger._append, self.counters, now=lambda: self.now)

    def refuse(self, times: int, key_id: str = "k", outcome: str = "failed", kind: str = "refused") -> None:
        for _ in range(times):
            tally = Tally(0.0, START.timestamp())
            tally.error = "insufficient_quota"
            self.meter.settle(tally.row(("r", "/p"), Caller(key_id, "name", "o", "t", ""), outcome, 1.0, Tokens(), Money(0, kind)))

    def kept(self) -> int:
        before = len(self.ledger.stored)
        finished(self.meter.flush())
        return len(self.ledger.stored) - before


def test_a_flood_of_refusals_has_a_bounded_number_of_rows_a_second_and_is_counted_whole():
    flood = Flood()
    flood.refuse(REFUSALS)
    assert flood.kept() == REFUSALS
    flood.refuse(10_000)
    assert (flood.kept(), flood.counters.rejects["insufficient_quota"]) == (0, REFUSALS + 10_000)
    flood.refuse(1, key_id="other")
    assert flood.kept() == 1, "each key has its own share"
    flood.now += 1.0
    flood.refuse(REFUSALS + 1)
    assert flood.kept() == REFUSALS
    assert flood.meter.unwritten == 0


@pytest.mark.parametrize(("outcome", "kind"), [("done", "settled"), ("failed", "wasted"), ("failed", "settled"), ("cancelled", "refused")])
def test_whatever_was_not_refused_always_has_its_row(outcome, kind):
    flood = Flood()
    flood.refuse(REFUSALS + 1)
    flood.refuse(2 * REFUSALS, outcome=outcome, kind=kind)
    assert flood.kept() == 3 * REFUSALS


def test_refusals_without_a_row_are_told_once_a_second(caplog):
    caplog.set_level(logging.WARNING)
    flood = Flood()
    flood.refuse(REFUSALS + 7)
    flood.refuse(REFUSALS + 2, key_id="other")
    for flood.now in (5.0, 5.2, 5.9):
        flood.kept()
    assert [record.args[:3] for record in caplog.records] == [(9, 7, "k")]
    assert "9 refused requests were counted only" in caplog.text and "7 of them of key k" in caplog.text
    flood.refuse(5)
    flood.kept()
    flood.now = 6.0
    flood.kept(), flood.kept()
    assert [record.args[:3] for record in caplog.records] == [(9, 7, "k"), (5, 5, "k")]
    flood.now = 9.0
    flood.kept()
    assert len(caplog.records) == 2


def test_the_log_has_a_line_for_each_row_and_no_more(caplog):
    caplog.set_level(logging.INFO, "mindgw.request")
    flood = Flood()
    flood.refuse(REFUSALS + 50)
    flood.kept()
    assert sum(len(record.lines) for record in caplog.records if record.name == "mindgw.request") == REFUSALS
