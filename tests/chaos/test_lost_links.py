"""How soon it is known that an agent is gone, and how soon all are back: by their sockets, by their silence, after a restart.

Server and agents are real, the engines are FAKES. What the clock says is measured with `--long` alone, and printed.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.boxes import boxes
from tests.chaos.counting_engine import loop_aside
from tests.e2e.fake_engine import fake_engine
from tests.e2e.raw import ask
from tests.e2e.stage import chat, said
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

#: Seconds that a figure may be above its target, on a machine that does other things as well.
MARGIN = 5.0


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with loop_aside() as made:
        yield made


def test_a_killed_agent_is_found_by_its_socket_and_not_by_its_silence(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """One that was frozen before, and has been silent for longer, is still taken for one that lives when this one is known to be gone."""
    with boxes(tmp_path, loop) as here, fake_engine() as third:
        frozen = here.world.join("frozen", third.url)
        here.world.admin_post("/api/v1/workers/frozen/drain", None)
        os.kill(frozen.child.pid, signal.SIGSTOP)
        try:
            here.calm()  # the others have spoken after that
            with here.begin("waits", stream=True) as raw:
                until(lambda: here.near.worker["used"] == 1, "its request is under way")
                killed = time.monotonic()
                here.near.process.kill()
                answer = raw.answer()
                moved = time.monotonic() - killed
            assert said(answer) == "one two"
            assert here.near.state == "offline"
            assert here.world.worker("frozen")["state"] == "draining"
        finally:
            os.kill(frozen.child.pid, signal.SIGCONT)
        assert here.rows(answer) == [("settled", "done"), ("wasted", "worker_lost")]
        print(f"\na killed agent's request was answered by another one {moved * 1000:.0f} ms after the kill")


@pytest.mark.real_install
def test_a_half_open_link_is_found_in_25_seconds_from_both_ends(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Half a minute, so with `--long` alone; tests/gateway/test_half_open.py shows the same by a clock of its own."""
    with boxes(tmp_path, loop, hasty=False) as here:
        epoch = here.near.worker["epoch"]
        with here.begin("waits", stream=True) as raw:
            here.near.link.half_open(future=True)
            broke = time.monotonic()
            until(lambda: here.near.state == "offline", "the server knows")
            known = time.monotonic() - broke
            assert said(raw.answer()) == "one two"
            moved = time.monotonic() - broke
        until(lambda: "the server fell silent" in here.near.process.said, "the agent knows")
        told = time.monotonic() - broke
        here.near.link.heal()
        until(lambda: here.near.worker["epoch"] > epoch and here.near.state == "ready", "it is back")
        back = time.monotonic() - broke
        print(f"\na half-open link: the server knew after {known:.1f} s, its request was answered after {moved:.1f} s,")
        print(f"the agent knew after {told:.1f} s and was back after {back:.1f} s")
        assert max(known, moved, told) <= 25.0 + MARGIN


@pytest.mark.real_install
def test_all_agents_are_back_30_seconds_after_a_restart(tmp_path: Path) -> None:
    """Minutes, so with `--long` alone. The longer a server is away, the later its agents may try again: up to 20 s."""
    with world(tmp_path) as made, fake_engine() as engine:
        made.serve()
        names = [f"box-{number}" for number in range(5)]
        for name in names:
            made.join(name, engine.url)
        for away in (0.0, 5.0, 40.0):
            took = _restart(made, names, away)
            print(f"\n{len(names)} agents were back {took:.1f} s after a server that was killed and away for {away:.0f} s")
            assert took <= 30.0 + MARGIN
        assert ask(made, chat("plain")).status == 200


def _restart(made: World, names: list[str], away: float) -> float:
    """Seconds from a new server to the last agent."""
    assert made.server is not None
    made.server.kill()
    time.sleep(away)  # what is measured
    made.serve()
    begun = time.monotonic()
    until(lambda: all(made.worker(name).get("state") == "ready" for name in names), "all are back", 90)
    return time.monotonic() - begun
