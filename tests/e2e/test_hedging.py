"""Of two workers one does not begin to answer: who asked hears the other, one attempt is billed, and the slot comes back.

A real server and two real agents, each in front of a FAKE engine: of one the test says what it does.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from mindgw.core.hedging import ENOUGH
from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import Answer, Raw, ask, request
from tests.e2e.stage import chat, said
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

SETTINGS = """
routing:
  strategy: round-robin
  retries: 100
"""


class Pair(NamedTuple):
    world: World
    good: FakeEngine
    bad: FakeEngine

    def play(self) -> Answer:
        """One stream, which must come as if nothing were wrong."""
        answer = ask(self.world, chat("plain", stream=True))
        assert (answer.status, said(answer)) == (200, "one two")
        return answer

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The rows of a request, once there are two."""

        def found() -> list[dict[str, Any]]:
            rows = [row for row in self.world.rows() if row["request_id"] == request_id]
            return rows if len(rows) == 2 else []

        return until(found, "the rows are written", 10)

    def hedges(self, outcome: str) -> float:
        page = self.world.get("/metrics", self.world.key)[1].decode()
        lines = [line for line in page.split("\n") if line.startswith(f'mindgw_hedges_total{{outcome="{outcome}"}}')]
        return float(lines[0].split()[-1]) if lines else 0.0

    def idle(self) -> None:
        until(lambda: not any(self.world.worker(name)["used"] for name in ("good", "bad")), "all slots are free", 10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with world(tmp_path_factory.mktemp("hedging")) as made, fake_engine() as good, fake_engine() as bad:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(SETTINGS)
        made.serve()
        made.join("good", good.url, "--slots", "4")
        made.join("bad", bad.url, "--slots", "4")
        made.admin("routes", "create", "quick", "--match", "fake", "--hedge")
        pair = Pair(made, good, bad)
        for _ in range(ENOUGH + 10):
            pair.play()
        assert json.loads(made.admin("routes", "test", "fake", "--json").stdout)["way"]["hedge"] is True
        yield pair
        good.gate.set()
        bad.gate.set()


def test_the_other_one_answers_and_the_engine_that_stalls_is_told_to_stop(pair: Pair) -> None:
    pair.bad.scene, before = "silence", len(pair.bad.requests)
    answers: list[Answer] = []

    def stalled() -> bool:
        answers.append(pair.play())
        return len(pair.bad.requests) > before

    until(stalled, "it was asked")
    pair.idle()  # its agent hung up on it, as it never says a word
    rows = pair.rows(answers[-1].headers["x-request-id"])
    assert sorted((row["kind"], row["outcome"]) for row in rows) == [("settled", "done"), ("wasted", "outrun")]
    assert sorted(row["attempt"] for row in rows) == [1, 2]
    assert pair.hedges("won") + pair.hedges("lost") >= 1
    assert not pair.world.worker("bad")["circuits"]
    pair.world.admin("ledger", "verify")
    pair.bad.gate.set()
    pair.bad.scene = ""
    pair.bad.gate.clear()


def test_a_client_that_goes_leaves_no_slot_taken_at_either(pair: Pair) -> None:
    pair.good.scene = pair.bad.scene = "silence"
    before, ended = [len(engine.requests) for engine in (pair.good, pair.bad)], pair.hedges("ended")
    with Raw(pair.world.port) as raw:
        raw.send(request(pair.world.key, chat("plain", stream=True)))
        until(lambda: [len(engine.requests) for engine in (pair.good, pair.bad)] == [number + 1 for number in before], "both were asked")
    pair.idle()
    assert pair.hedges("ended") == ended + 1
    pair.good.scene = pair.bad.scene = ""


def test_of_two_that_ran_when_the_server_was_killed_the_one_that_answered_is_billed(pair: Pair) -> None:
    """Neither has its row by then, and both agents bring a receipt that says that something came."""
    made, engines = pair.world, {"good": pair.good, "bad": pair.bad}
    before = {name: len(engine.requests) for name, engine in engines.items()}
    for engine in engines.values():
        engine.scene, engine.sent = "waits", 0
        engine.gate.clear()
    with closing(sqlite3.connect(made.data_dir / "mindgw.db", isolation_level=None)) as other, Raw(made.port) as raw:
        other.execute("BEGIN IMMEDIATE")  # nobody else writes
        raw.send(request(made.key, chat("plain", stream=True)))
        first = until(lambda: next((name for name in engines if len(engines[name].requests) > before[name]), ""), "one was asked")
        second = next(name for name in engines if name != first)
        engines[second].scene = "silent start"
        until(lambda: engines[second].sent, "the other one has begun")
        engines[first].gate.set()
        answer = raw.answer()
        assert said(answer) == "one two"
        assert made.server is not None
        made.server.kill()
    made.serve()
    id = answer.headers["x-request-id"]
    until(lambda: len(made.query(f"select * from receipts where request_id = '{id}'")) == 2, "both receipts are here", 60)
    receipts = {row["attempt"]: row["bytes_out"] for row in made.query(f"select * from receipts where request_id = '{id}'")}
    assert receipts.keys() == {1, 2} and all(receipts.values())
    names = {worker["id"]: worker["name"] for worker in made.items("workers", "list")}
    billed = Counter[tuple[str, int]]()
    for row in made.rows():
        if row["request_id"] == id and row["kind"] != "wasted":
            billed[names[row["worker_id"]], row["attempt"]] += row["prompt_tokens"] + row["completion_tokens"]
    assert +billed == {(first, 1): 10}
    made.admin("ledger", "verify")
    for engine in engines.values():
        engine.gate.set()
