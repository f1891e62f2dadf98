"""The engine that an agent owns ends with it, however it ends, and is begun anew when it ended by itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindgw_agent import child, errors

#: An agent that does nothing but to run an engine.
AGENT = """
import asyncio, sys
from mindgw_agent import child
child.GRACE = 0.2
asyncio.run(child.supervise(sys.argv[2:], lambda pid: open(sys.argv[1], "w").close()))
"""
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".part", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(4242)
"""
#: Engines: one with a child of its own, and one that does not end when asked to. Each writes the ids of its processes.
SCENES = {
    "a wrapper": ["sh", "-c", 'sleep 4242 & echo $$ $! > "$0.part"; mv "$0.part" "$0"; wait'],
    "who hears nothing": [
        sys.executable,
        "-c",
        STUBBORN,
    ],
}


def is_alive(pid: int) -> bool:
    """False for one that has ended, too, whom nobody has asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(done, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_of_the_engine_is_left_when_its_agent_ends(tmp_path, scene, end):
    file, known = tmp_path / "pids", tmp_path / "known"
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(known), *SCENES[scene], str(file)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: file.exists() and known.exists())
        pids = [int(word) for word in file.read_text().split()]
        assert all(map(is_alive, pids))
        agent.send_signal(end)
        agent.wait(30)
        until(lambda: not any(map(is_alive, pids)))
    finally:
        agent.kill()
        agent.wait()


async def lives(words: list[str], count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of that many lives of an engine."""
    monkeypatch.setattr(child, "FIRST_DELAY", 0.0)
    began: list[int] = []
    enough = asyncio.Event()

    def note(pid: int) -> None:
        began.append(pid)
        if len(began) == count:
            enough.set()

    task = asyncio.create_task(child.supervise(words, note))
    async with asyncio.timeout(30):
        await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return began


async def test_an_engine_that_ends_is_begun_anew(monkeypatch):
    assert len(set(await lives(["true"], 3, monkeypatch))) == 3


async def test_a_guard_goes_with_its_engine(monkeypatch):
    (pid,) = await lives(["sleep", "4242"], 1, monkeypatch)
    assert not is_alive(pid)
    children = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    assert "read -r group" not in children


async def test_a_command_that_is_not_there_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(child, "FIRST_DELAY", 0.0)
    task = asyncio.create_task(child.supervise(["/nowhere/engine"]))
    async with asyncio.timeout(30):
        while caplog.text.count("cannot be begun") < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("command", ["", "  ", "llama-server 'x"])
def test_what_is_no_command_is_told(command):
    with pytest.raises(errors.Misuse, match="--exec"):
        child.words_of(command)


def test_the_pause_grows_up_to_a_minute():
    assert [child.delay(failures, 1.0) for failures in (1, 2, 3, 7, 99)] == [1.0, 2.0, 4.0, 60.0, 60.0]
    assert child.delay(3, 0.0) == 2.0
