"""A worker that was removed, with real processes: what the agent on its box says of that, then and later."""

import json
from pathlib import Path

import pytest

from tests.e2e.fake_engine import fake_engine
from tests.e2e.world import world

pytestmark = pytest.mark.e2e


def test_an_agent_whose_worker_was_removed_says_so_and_what_to_do(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as engine:
        made.serve()
        agent = made.join("fake", engine.url)
        state = ("--state-dir", str(tmp_path / "agent-fake"))
        assert json.loads(made.run("agent", "status", "--json", *state).stdout)["tunnel"] == "ready"
        assert f"engine {engine.url}: " in agent.said
        made.admin("workers", "remove", "fake", "--yes")
        assert agent.child.wait(30) == 4
        for _ in range(2):
            shown = made.run("agent", "status", *state, code=3).stdout
            assert "tunnel  removed" in shown
            assert "mindgw agent leave" in shown
            assert "then join with a new token" in shown
            made.run("agent", "run", *state, code=4)
        made.run("agent", "leave", *state)
        assert json.loads(made.run("agent", "status", "--json", *state, code=3).stdout)["tunnel"] == "offline"


def test_the_server_itself_is_no_engine(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        made.serve()
        token = made.admin("join-tokens", "create", "-q").stdout.strip()
        said = made.run("agent", "join", token, "--engine-url", made.root, "--state-dir", str(tmp_path / "a"), code=2).stderr
        assert "a MindGateway answers" in said
        assert made.items("workers", "list") == []
