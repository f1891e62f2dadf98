"""One of two workers fails in every way that an engine can, before a byte of its answer has left: no caller notices, one attempt is billed.

A real server and two real agents, each in front of a FAKE engine: of one the test says how it fails.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import Answer, ask
from tests.e2e.stage import chat, said
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

SETTINGS = """
timeouts:
  first_token: 1s
routing:
  strategy: least-busy  # by score the bad one would be asked less and less
  retries: 100
  eject_for: 1s
"""
WAYS = [
    "error at once", "error with 200", "html", "html error", "garbage", "nothing", "no reply", "key", "redirect", "busy", "half an event",
]  # fmt: skip


class Pair(NamedTuple):
    world: World
    good: FakeEngine
    bad: FakeEngine

    def play(self, **fields: Any) -> Answer:
        """One request, which must be answered as if nothing were wrong."""
        answer = ask(self.world, chat("plain", **fields))
        assert answer.status == 200, answer
        if fields.get("stream"):
            assert said(answer) == "one two"
        else:
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == "one two"
        return answer

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The rows of a request, once its last one is there."""

        def found() -> list[dict[str, Any]]:
            rows = [row for row in self.world.rows() if row["request_id"] == request_id]
            return rows if any(row["kind"] == "settled" for row in rows) else []

        return until(found, "the rows are written", 10)

    def idle(self) -> None:
        until(lambda: not any(self.world.worker(name)["used"] for name in ("good", "bad")), "all slots are free", 10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with world(tmp_path_factory.mktemp("pair")) as made, fake_engine() as good, fake_engine() as bad:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(SETTINGS)
        made.serve()
        made.join("good", good.url, "--slots", "4")
        made.join("bad", bad.url, "--slots", "4")
        yield Pair(made, good, bad)
        good.gate.set()
        bad.gate.set()


def fails(pair: Pair, way: str, *, stream: bool) -> None:
    """Requests until the bad one was asked; some that go well before, so that it is not left alone."""
    pair.bad.scene, before = "", len(pair.bad.requests)
    until(lambda: [pair.play()] and len(pair.bad.requests) >= before + 4, "it has served some")
    pair.bad.scene, before = way, len(pair.bad.requests)
    answers: list[Answer] = []

    def asked() -> bool:
        answers.append(pair.play(stream=stream))
        return len(pair.bad.requests) > before

    until(asked, "it was asked")
    rows = pair.rows(answers[-1].headers["x-request-id"])
    pair.bad.gate.set()
    pair.idle()
    assert [row["kind"] for row in rows].count("settled") == 1, rows
    assert {row["kind"] for row in rows} <= {"settled", "wasted"}
    assert (len(rows) == 1) is (way == "busy"), rows


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_nobody_notices_that_an_engine_failed(pair: Pair, way: str, stream: bool) -> None:
    fails(pair, way, stream=stream)


@pytest.mark.parametrize("way", ["error first", "silence"])
def test_nobody_notices_that_a_stream_did_not_begin(pair: Pair, way: str) -> None:
    fails(pair, way, stream=True)


def test_a_worker_that_goes_on_failing_is_left_alone_until_a_probe_goes_well(pair: Pair) -> None:
    pair.bad.scene = "error at once"

    def circuits() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pair.world.worker("bad")["circuits"]
        return found

    until(lambda: [pair.play()] and circuits(), "it is left alone")
    assert circuits()[0]["model"] == "fake"
    assert "fake " in pair.world.admin("workers", "show", "bad").stdout
    assert 'mindgw_worker_ejections_total{model="fake",worker="bad"}' in pair.world.get("/metrics", pair.world.key)[1].decode()
    pair.bad.scene = ""
    until(lambda: [pair.play()] and not circuits(), "it is as before")
    assert "closed" in pair.world.admin("workers", "show", "bad").stdout
    pair.idle()


def test_an_engine_that_cannot_is_not_asked_again(pair: Pair) -> None:
    pair.bad.scene, before = "", len(pair.bad.requests)
    until(lambda: [pair.play()] and len(pair.bad.requests) > before, "it serves")
    pair.bad.scene = "no route"
    before = len(pair.bad.requests)
    for _ in range(20):
        pair.play()
    assert len(pair.bad.requests) == before + 1
