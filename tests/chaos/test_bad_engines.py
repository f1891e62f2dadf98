"""Engines out of their minds: they stream for ever, end twice, answer twice, change what they have. Before the first byte nobody notices,
after it a stream ends once and cleanly, and no slot is lost. (tests/e2e/test_failover.py and test_wire_facts.py have those that just fail.)

A real server and two real agents: one in front of a FAKE that does its part, one in front of a FAKE whose bytes the test writes.
"""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.bad_engine import (
    BEGUN,
    CHUNKED,
    HEAD,
    LAST,
    PATIENCE,
    BadEngine,
    Play,
    bad_engine,
    bytes_of,
    chunk,
    for_ever,
    good,
    said,
    when_told,
    whole,
)
from tests.e2e.fake_engine import DONE, WORDS, FakeEngine, delta, event, fake_engine
from tests.e2e.raw import Answer, Raw, ask, request
from tests.e2e.stage import chat, stream_error
from tests.e2e.stage import said as text_of
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

SETTINGS = """
timeouts:
  first_token: 1500ms
  idle: 1s
  total: 4s
  worker_return: 2s
routing:
  retries: 100
  eject_for: 1s
"""


class Pair:
    """Requests go to the bad one first."""

    def __init__(self, made: World, bad: BadEngine, fine: FakeEngine) -> None:
        self.world, self.bad, self.fine = made, bad, fine

    def calm(self) -> None:
        """The bad one does its part for once."""
        self.bad.play = good
        self.bad.gate.clear()
        self._drain()
        until(lambda: ask(self.world, chat("plain")).status == 200 and not self.world.worker("bad")["circuits"], "it serves")
        self._undrain()
        self.idle()

    def idle(self) -> None:
        until(lambda: not any(self.world.worker(name)["used"] for name in ("bad", "fine")), "all slots are free")

    def begin(self, play: Play, *, model: str = "fake", **fields: object) -> Raw:
        """A request that the bad one has, and answers as soon as another one might."""
        before, held = len(self.bad.requests), threading.Event()

        def played(engine: BadEngine, sock: socket.socket, body: dict[str, Any]) -> None:
            held.wait(PATIENCE)
            play(engine, sock, body)

        self.bad.play = played
        self._drain()
        raw = Raw(self.world.port, seconds=120)
        raw.send(request(self.world.key, chat("plain", model=model, **fields)))
        until(lambda: len(self.bad.requests) > before, "it was asked")
        self._undrain()
        held.set()
        return raw

    def ask(self, play: Play, **fields: object) -> Answer:
        with self.begin(play, **fields) as raw:
            answer = raw.answer()
        self.bad.play = good
        self.idle()
        return answer

    def _drain(self) -> None:
        self.world.admin_post("/api/v1/workers/fine/drain", None)

    def _undrain(self) -> None:
        self.world.admin_post("/api/v1/workers/fine/undrain", None)


@contextmanager
def two(folder: Path, settings: str) -> Iterator[Pair]:
    with world(folder) as made, bad_engine() as bad, fake_engine() as fine:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(settings)
        made.serve()
        made.join("bad", bad.url, "--slots", "2")
        made.join("fine", fine.url, "--slots", "4")
        pair = Pair(made, bad, fine)
        yield pair
        bad.gate.set()
        pair.idle()
        for process in made.processes:
            assert "Traceback" not in process.said, process.said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two(tmp_path_factory.mktemp("engines"), SETTINGS) as pair:
        yield pair


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two(tmp_path_factory.mktemp("patient"), "timeouts:\n  worker_return: 2s\n") as pair:
        yield pair


@pytest.fixture
def pair(made: Pair) -> Pair:
    made.calm()
    return made


# -- before the first byte ---------------------------------------------------------------------------------------------

SILENT = {
    "comments for ever": for_ever(CHUNKED, chunk(b": still here\n\n")),
    "a head for ever": for_ever(HEAD, b"x-more: yes\r\n"),
    "an event for ever": for_ever(CHUNKED + chunk(b'data: {"choices":[{"delta":{"content":"'), chunk(b"x")),
    "empty events for ever": for_ever(CHUNKED, chunk(b"\n\n")),
    "other fields for ever": for_ever(CHUNKED, chunk(b"id: 7\nretry: 5\n\n")),
    "a chunk for ever": for_ever(CHUNKED + b"ffff\r\n", b"x"),
    "nothing at all": for_ever(b"", b""),
    "stops in an event": when_told(CHUNKED + chunk(b'data: {"choices":[{"in'), b""),
}


@pytest.mark.parametrize("scene", SILENT)
def test_who_says_much_and_no_event_is_replaced_in_time(pair: Pair, scene: str) -> None:
    assert text_of(pair.ask(SILENT[scene], stream=True)) == "one two"


WRONG = {
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    "a length and chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n") + BEGUN,
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "a chunk that is no number": CHUNKED + b"zz\r\n",
    "a chunk of 2^64": CHUNKED + b"fffffffffffffffff\r\n",
    "status 99": b"HTTP/1.1 99 What\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 What\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    "200 and an error": whole({"error": {"message": "CUDA out of memory", "code": 500}}),
    "200 and an error as text": whole({"error": "out of memory"}),
    "200 and an error as an event": CHUNKED + chunk(event({"error": {"message": "no", "code": 500}})) + chunk(DONE) + LAST,
    "200 and null": whole(None),
    "200 and a list": whole([]),
    "only its end": CHUNKED + chunk(DONE) + LAST,
    "only its end, twice": CHUNKED + chunk(DONE + DONE) + LAST,
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("scene", WRONG)
def test_what_is_no_answer_is_not_noticed(pair: Pair, scene: str, stream: bool) -> None:
    answer = pair.ask(bytes_of(WRONG[scene]), stream=stream)
    assert answer.status == 200, answer
    assert (text_of(answer) if stream else json.loads(answer.body)["choices"][0]["message"]["content"]) == "one two"


def test_an_answer_in_one_piece_that_never_comes_to_its_length_ends_in_time(pair: Pair) -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9223372036854775808\r\n\r\n{"
    answer = pair.ask(bytes_of(endless))
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")


# -- in a stream -------------------------------------------------------------------------------------------------------

ENDLESS = {
    "events for ever": (for_ever(CHUNKED + chunk(WORDS[0]), chunk(WORDS[1])), "engine_timeout"),
    "events for ever, as fast as can be": (for_ever(CHUNKED + chunk(WORDS[0]), chunk(WORDS[1] * 50), 0.001), "engine_timeout"),
    "an event for ever": (for_ever(CHUNKED + chunk(WORDS[0] + b'data: {"choices":[{"delta":{"content":"'), chunk(b"x")), "engine_timeout"),
    "comments for ever": (for_ever(CHUNKED + chunk(WORDS[0]), chunk(b": still here\n\n")), "engine_timeout"),
    "nothing more": (for_ever(CHUNKED + chunk(WORDS[0]), b""), "engine_timeout"),
    "stops in an event": (bytes_of(CHUNKED + chunk(WORDS[0] + b'data: {"choices":[{"in') + LAST), "engine_error"),
    "stops in a chunk": (bytes_of(CHUNKED + chunk(WORDS[0]) + b"50\r\ndata: {", hangs_up=True), "engine_error"),
    "an error": (bytes_of(CHUNKED + chunk(WORDS[0]) + chunk(event({"error": {"message": "no"}}) + WORDS[1] + DONE) + LAST), "engine_error"),
}


@pytest.mark.parametrize("scene", ENDLESS)
def test_a_stream_that_goes_wrong_ends_once_and_with_an_error(pair: Pair, scene: str) -> None:
    play, code = ENDLESS[scene]
    answer = pair.ask(play, stream=True)
    assert stream_error(answer)["code"] == code
    assert answer.body.count(b'"error"') == 1


TWICE = {
    "two end marks": BEGUN + chunk(DONE + DONE) + LAST,
    "two end marks apart": BEGUN + chunk(DONE) + chunk(DONE) + LAST,
    "more behind its end mark": BEGUN + chunk(DONE + delta(content=" and more") + DONE) + LAST,
    "two reasons to end": BEGUN + chunk(delta(finish="stop") + DONE) + LAST,
    "an error behind its end mark": BEGUN + chunk(DONE + event({"error": {"message": "no"}})) + LAST,
    "two last chunks": BEGUN + chunk(DONE) + LAST + LAST,
    "another answer behind it": BEGUN + chunk(DONE) + LAST + said("somebody else's"),
    "another stream behind it": BEGUN + chunk(DONE) + LAST + CHUNKED + chunk(delta(content="somebody else's")) + chunk(DONE) + LAST,
}


@pytest.mark.parametrize("scene", TWICE)
def test_who_ends_twice_has_ended_once_and_the_next_answer_is_its_own(pair: Pair, scene: str) -> None:
    assert text_of(pair.ask(bytes_of(CHUNKED + TWICE[scene]), stream=True)) == "one two"
    assert_own_answers(pair)


def test_two_answers_in_one_piece_are_one(pair: Pair) -> None:
    answer = pair.ask(bytes_of(said("mine") + said("somebody else's")))
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "mine"
    assert_own_answers(pair)


def assert_own_answers(pair: Pair) -> None:
    """Whoever asks the bad one now hears what it has to say about that question."""
    pair._drain()
    for number in range(3):
        answer = ask(pair.world, json.dumps({"model": "fake", "messages": [{"role": "user", "content": f"q{number}"}]}).encode())
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == f"q{number}"
    pair._undrain()


# -- another list of models --------------------------------------------------------------------------------------------


def has(pair: Pair) -> set[str]:
    return {model["id"] for model in pair.world.worker("bad")["models"]}


def test_models_that_change_under_way_harm_nobody_who_has_an_answer(patient: Pair) -> None:
    pair = patient
    pair.calm()
    pair.bad.models = ["solo"]
    until(lambda: has(pair) == {"solo"}, "it has another model")
    slow = when_told(CHUNKED + chunk(WORDS[0]), b"".join(map(chunk, WORDS[1:])) + chunk(DONE) + LAST)
    with pair.begin(slow, model="solo", stream=True) as raw:
        pair.bad.models = ["later"]
        until(lambda: has(pair) == {"later"}, "it has yet another one")
        refused = ask(pair.world, chat("plain", model="solo"))
        assert refused.status in {404, 503}
        assert refused.error["code"] in {"model_not_found", "no_worker_available"}
        pair.bad.gate.set()
        assert text_of(raw.answer()) == "one two"
    pair.bad.play = good
    assert ask(pair.world, chat("plain", model="later")).status == 200
    pair.bad.models = ["fake"]
    until(lambda: has(pair) == {"fake"}, "it is as before")
    pair.idle()


def test_who_waits_for_a_model_that_goes_away_is_not_left_waiting(patient: Pair) -> None:
    pair = patient
    pair.calm()
    pair.bad.models = ["fake", "solo"]
    until(lambda: "solo" in has(pair), "it has another model")
    slow = when_told(CHUNKED + chunk(WORDS[0]), b"".join(map(chunk, WORDS[1:])) + chunk(DONE) + LAST)
    with (
        ThreadPoolExecutor() as pool,
        pair.begin(slow, model="solo", stream=True) as one,
        pair.begin(slow, model="solo", stream=True) as other,
    ):
        waits = pool.submit(ask, pair.world, chat("plain", model="solo"))
        until(lambda: json.loads(pair.world.get("/api/v1/status", pair.world.key)[1])["queue"]["waiting"] == 1, "it waits")
        pair.bad.models = ["fake"]
        assert waits.result(60).status == 503
        pair.bad.gate.set()
        assert text_of(one.answer()) == text_of(other.answer()) == "one two"
    until(lambda: has(pair) == {"fake"}, "it is as before")
    pair.idle()
