"""Ways that misbehave, between an agent and its server and between an agent and its engine: before the first byte nobody notices, after it
a stream ends with an error, and what is only late or slow comes whole."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.boxes import Boxes, boxes
from tests.chaos.counting_engine import loop_aside
from tests.chaos.proxy import Proxy
from tests.e2e.raw import ask
from tests.e2e.stage import chat, said
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

SETTINGS = """
timeouts:
  first_token: 5s
  idle: 3s
routing:
  retries: 100
  eject_for: 1s
"""
BREAKS: dict[str, Callable[[Proxy], None]] = {"reset": Proxy.reset, "cut": Proxy.cut}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with loop_aside() as made:
        yield made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, loop: asyncio.AbstractEventLoop) -> Iterator[Boxes]:
    with boxes(tmp_path_factory.mktemp("ways"), loop, SETTINGS) as here:
        yield here


@pytest.fixture
def here(made: Boxes) -> Boxes:
    made.calm()
    return made


# -- between an agent and its server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", BREAKS)
def test_a_link_that_breaks_before_the_first_byte_is_not_noticed(here: Boxes, how: str, stream: bool) -> None:
    with here.begin("waits", stream=stream) as raw:
        BREAKS[how](here.near.link)
        answer = raw.answer()
    assert answer.status == 200
    assert not stream or said(answer) == "one two"
    assert here.rows(answer) == [("settled", "done"), ("wasted", "worker_lost")]


@pytest.mark.parametrize("how", BREAKS)
def test_a_link_that_breaks_in_a_stream_ends_it_with_an_error(here: Boxes, how: str) -> None:
    with here.begin("drip", stream=True) as raw:
        raw.until(b"one")
        BREAKS[how](here.near.link)
        raw.until(b"worker_lost")
        raw.until(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [0, 5, 500])
def test_a_link_that_breaks_in_the_middle_of_a_request_is_not_noticed(here: Boxes, size: int) -> None:
    here.far.drain()
    here.near.link.down.left = size
    before = len(here.near.engine.requests)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, here.world, chat("plain", pad="x" * 5000))
        until(lambda: here.near.state == "offline", "its link has broken")
        here.near.link.down.left = None
        here.far.undrain()
        answer = asked.result(120)
    assert answer.status == 200
    assert len(here.near.engine.requests) == before
    assert here.rows(answer)[0] == ("settled", "done")


def test_a_link_that_breaks_in_the_middle_of_an_answer_in_one_piece_is_not_noticed(here: Boxes) -> None:
    with here.begin("waits") as raw:
        here.near.link.up.left = 50
        here.near.engine.gate.set()
        answer = raw.answer()
        here.near.link.up.left = None
    assert answer.status == 200
    assert here.rows(answer) == [("settled", "done"), ("wasted", "worker_lost")]


def test_late_uneven_and_slow_links_bring_every_byte_in_its_order(here: Boxes) -> None:
    link = here.near.link
    here.near.engine.gate.set()
    here.far.drain()
    for way in (link.up, link.down):
        way.delay, way.jitter, way.rate = 0.02, 0.05, 200_000
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, here.world, chat("numbered", count=count, pad=40, stream=True)) for count in (1, 50, 100, 200)]
        answers = [one.result(120) for one in asked]
    for way in (link.up, link.down):
        way.delay = way.jitter = way.rate = 0
    here.far.undrain()
    for answer, count in zip(answers, (1, 50, 100, 200), strict=True):
        assert said(answer) == "".join(f"{number} " + "x" * 40 for number in range(count))


def test_a_link_that_stands_still_for_a_moment_loses_nothing(here: Boxes) -> None:
    with here.begin("gated", count=50, stream=True) as raw:
        here.near.link.stall()
        here.near.engine.gate.set()
        until(lambda: not here.near.engine.running, "its engine has said all")
        here.near.link.go_on()
        answer = raw.answer()
    assert said(answer) == "".join(f"{number} " for number in range(50))
    assert here.rows(answer) == [("settled", "done")]


# -- between an agent and its engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", BREAKS)
def test_an_engine_that_is_lost_before_the_first_byte_is_not_noticed(here: Boxes, how: str, stream: bool) -> None:
    with here.begin("waits", stream=stream) as raw:
        BREAKS[how](here.near.way)
        answer = raw.answer()
    assert answer.status == 200
    assert here.rows(answer) == [("settled", "done"), ("wasted", "engine_error")]


@pytest.mark.parametrize("how", BREAKS)
def test_an_engine_that_is_lost_in_a_stream_ends_it_with_an_error(here: Boxes, how: str) -> None:
    with here.begin("drip", stream=True) as raw:
        raw.until(b"one")
        BREAKS[how](here.near.way)
        raw.until(b"engine_error")
        raw.until(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [0, 20, 200])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_cut_before_its_first_event_is_whole_is_not_noticed(here: Boxes, size: int, stream: bool) -> None:
    with here.begin("waits", stream=stream) as raw:
        here.near.way.down.left = size
        here.near.engine.gate.set()
        answer = raw.answer()
        here.near.way.down.left = None
    assert answer.status == 200
    assert ("wasted", "engine_error") in here.rows(answer)


@pytest.mark.parametrize("how", [Proxy.stall, Proxy.half_open], ids=["stall", "half-open"])
def test_an_engine_that_falls_silent_before_the_first_byte_is_not_noticed(here: Boxes, how: Callable[[Proxy], None]) -> None:
    with here.begin("waits", stream=True) as raw:
        how(here.near.way)
        answer = raw.answer()
        here.near.way.go_on()
    assert said(answer) == "one two"
    assert here.rows(answer) == [("settled", "done"), ("wasted", "engine_timeout")]


@pytest.mark.parametrize("how", [Proxy.stall, Proxy.half_open], ids=["stall", "half-open"])
def test_an_engine_that_falls_silent_in_a_stream_ends_it_with_an_error(here: Boxes, how: Callable[[Proxy], None]) -> None:
    with here.begin("drip", stream=True) as raw:
        raw.until(b"one")
        how(here.near.way)
        raw.until(b"engine_timeout")
        raw.until(b"\r\n0\r\n\r\n")
        here.near.way.go_on()
