"""A worker's life as operators and owners lead it: real server, real agents, real signals. The engines are FAKES."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import fake_ollama as ollama_program
from tests.e2e.fake_engine import fake_engine
from tests.e2e.fake_ollama import fake_ollama
from tests.e2e.raw import Raw, ask, request
from tests.e2e.stage import chat
from tests.e2e.world import World, free_port, until, world

pytestmark = pytest.mark.e2e


def told(made: World, *args: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(made.admin(*args, "--json").stdout)


def box(made: World, name: str, *args: str, code: int | None = 0) -> Any:
    """`mindgw agent ARGS` on a box."""
    return made.run("agent", *args, "--state-dir", str(made.folder / f"agent-{name}"), code=code)


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_worker_is_drained_finishes_its_work_and_comes_back(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as engine:
        made.serve()
        made.join("fake", engine.url)
        with Raw(made.port) as raw:
            raw.send(request(made.key, chat("patience", stream=True)))
            raw.until(b"wait")
            assert "1 requests run on" in made.admin("workers", "drain", "fake", "--yes").stderr
            assert made.worker("fake")["state"] == "draining"
            late = made.admin("workers", "wait", "fake", "--drained", "--within", "1s", code=3)
            assert "is draining and not drained" in late.stderr
            engine.gate.set()
            raw.until(b"[DONE]")
        assert told(made, "workers", "wait", "fake", "--drained", "--within", "30s")["used"] == 0
        until(lambda: json.loads(box(made, "fake", "status", "--json").stdout)["standing"] == "draining", "the box knows")
        assert made.server is not None
        made.server.stop()
        made.serve()
        until(lambda: made.worker("fake").get("epoch", 0) > 1 and made.worker("fake")["state"] != "offline", "it is back")
        assert made.worker("fake")["state"] == "draining"  # a drain outlives both ends
        told(made, "workers", "undrain", "fake")
        told(made, "workers", "wait", "fake", "--ready", "--within", "30s")
        assert ask(made, chat("plain")).status == 200
        audit = [entry["action"] for entry in made.items("audit", "list")]
        assert {"worker.drain", "worker.undrain"} <= set(audit)


def test_an_agent_gives_its_log_and_begins_anew_when_it_is_told_to(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as engine:
        made.serve()
        agent = made.join("fake", engine.url)
        before = json.loads(box(made, "fake", "status", "--json").stdout)
        until(lambda: "connected as fake" in agent.said, "it has said so itself")
        lines = made.admin("workers", "logs", "fake", "-n", "50").stdout
        assert "connected as fake" in lines
        assert str(made.init["api_key"]) not in lines
        reader = made.spawn("reader", "workers", "logs", "fake", "-f", "--interval", "0.1")
        until(lambda: "connected as fake" in reader.said, "what was logged is shown")
        made.admin("workers", "restart", "fake", "--yes")
        until(lambda: made.worker("fake").get("epoch", 0) > 1, "a new session")
        told(made, "workers", "wait", "fake", "--within", "30s")
        after = json.loads(box(made, "fake", "status", "--json").stdout)
        assert before["pid"] == after["pid"] == agent.child.pid  # the same process, begun anew
        assert "beginning anew" in agent.said
        assert {"worker.logs", "worker.restart"} <= {entry["action"] for entry in made.items("audit", "list")}
        until(lambda: reader.said.count("connected as fake") > 1, "what the new session logs is shown")
        assert "logs +" not in reader.said
        audited = [entry["action"] for entry in made.items("audit", "list")].count("worker.logs")
        reader.stop()
        assert audited == 2  # the first reader, and the one that follows
        assert ask(made, chat("plain")).status == 200
        assert agent.stop() == 0


def test_models_are_loaded_pulled_and_unloaded_where_the_engine_can_and_the_owner_lets_them(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as vllm, fake_ollama() as ollama:
        made.serve()
        agent = made.join("box", ollama.url, "--engine-url", vllm.url)
        assert [(e["id"], e["kind"]) for e in made.worker("box")["engines"]] == [("e1", "ollama"), ("e2", "vllm")]
        done = made.admin("models", "load", "tiny", "--worker", "box")
        assert "tiny is loaded" in done.stderr
        assert ollama.loaded == {"tiny:latest"}
        made.admin("models", "unload", "tiny:latest", "--worker", "box")
        assert ollama.loaded == set()
        never = made.admin("models", "load", "fake", "--worker", "box", "--json", code=1)
        assert json.loads(never.stderr)["error"]["code"] == "unsupported"
        refused = made.admin("models", "pull", "new", "--worker", "box", "--json", code=1)
        assert json.loads(refused.stderr)["error"]["code"] == "not_allowed"
        assert [path for path, _ in ollama.asked] == ["/api/generate", "/api/generate"]
        agent.stop()
        again = made.spawn("again", "agent", "join", "--allow-pull", "--state-dir", str(made.folder / "agent-box"))
        until(lambda: made.worker("box").get("state") == "ready", "it is back")
        made.admin("models", "pull", "new", "--worker", "box")
        until(lambda: "new:latest" in {model["id"] for model in made.worker("box")["models"]}, "the server knows of it")
        missing = made.admin("models", "pull", "missing", "--worker", "box", "--json", code=1)
        assert "does not exist" in json.loads(missing.stderr)["error"]["message"]
        evil = made.admin("models", "pull", "evil.example/a/b", "--worker", "box", "--json", code=1)
        assert json.loads(evil.stderr)["error"]["code"] == "bad_argument"
        assert [body["model"] for path, body in ollama.asked if path == "/api/pull"] == ["new", "missing"]
        assert "Traceback" not in again.said


def test_several_engines_of_one_box_carry_their_own_models(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as vllm, fake_ollama() as ollama:
        ollama.models.append("hidden:latest")
        made.serve()
        made.join("box", vllm.url, "--engine-url", ollama.url, "--models", "fake,tiny*")
        assert {model["id"] for model in made.worker("box")["models"]} == {"fake", "tiny:latest"}
        assert ask(made, chat("plain")).status == 200
        assert ask(made, chat("plain", model="tiny")).status == 200
        assert (len(vllm.requests), len(ollama.asked)) == (1, 1)
        assert ask(made, chat("plain", model="hidden")).status == 404


def test_the_owner_of_a_box_pauses_it_and_keeps_it_for_a_team(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as mine, fake_engine() as theirs:
        made.serve()
        made.join("mine", mine.url, "--teams", "nlp")
        assert made.worker("mine")["teams"] == ["nlp"]
        made.join("theirs", theirs.url)
        for _ in range(4):
            assert ask(made, chat("plain")).status == 200
        assert (len(mine.requests), len(theirs.requests)) == (0, 4)
        made.admin("workers", "drain", "theirs", "--yes")
        key = made.admin("keys", "create", "k", "--team", "nlp", "-q").stdout.strip()
        with Raw(made.port) as raw:
            raw.send(request(key, chat("plain")))
            assert b"200" in raw.until(b"\r\n")
        assert len(mine.requests) == 1
        made.admin("workers", "undrain", "theirs")
        box(made, "theirs", "pause", "2h")
        found = made.worker("theirs")
        assert (found["state"], bool(found["paused_until"])) == ("paused", True)
        assert json.loads(box(made, "theirs", "status", "--json").stdout)["paused_until"] is not None
        box(made, "theirs", "resume")
        until(lambda: made.worker("theirs")["state"] == "ready", "it takes requests again")
        box(made, "theirs", "pause", "1s")
        until(lambda: made.worker("theirs")["state"] == "ready", "the pause is over by itself")
        box(made, "theirs", "pause", "soon", code=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process trees are read from /proc")
def test_an_engine_of_the_agents_own_is_begun_anew_and_ends_with_it(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        made.serve()
        port = free_port()
        command = f"{sys.executable} {ollama_program.__file__} {port}"
        agent = made.join("box", f"http://127.0.0.1:{port}", "--exec", command)

        def engine() -> int:
            said = [line for line in agent.said.splitlines() if "the engine runs" in line]
            return int(said[-1].rpartition("process ")[2].rstrip(")"))

        first = engine()
        os.kill(first, signal.SIGKILL)
        until(lambda: engine() != first and lives(engine()), "it is begun anew")
        told(made, "workers", "wait", "box", "--within", "60s")
        second = engine()
        assert agent.stop() == 0
        assert not lives(second)
        killed = made.spawn("killed", "agent", "run", "--state-dir", str(made.folder / "agent-box"))
        until(lambda: "the engine runs" in killed.said, "it runs again")
        third = int(killed.said.split("process ")[1].partition(")")[0])
        killed.kill()
        until(lambda: not lives(third), "nothing is left of it")
