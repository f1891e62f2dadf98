"""Watching a real server: over TLS with its own authority, while a box works, and across a restart."""

import json
import signal
from pathlib import Path

import pytest

from tests.e2e.fake_engine import fake_engine
from tests.e2e.raw import Raw, request
from tests.e2e.stage import chat
from tests.e2e.world import Process, World, free_port, until, world

pytestmark = pytest.mark.e2e


def watch(made: World, url: str) -> Process:
    """`queue watch --json` with what `init` left in this user's settings; stdout and stderr go to one file."""
    return made.spawn("watch", "queue", "watch", "--json", env={"MINDGW_TOKEN": made.key, "MINDGW_SERVER": url})


def messages(watching: Process) -> list[dict]:
    return [json.loads(line) for line in watching.said.split("\n")[:-1] if line.startswith("{")]


def test_a_watch_outlives_the_server_and_begins_anew(tmp_path: Path) -> None:
    port = free_port()
    with world(tmp_path) as made, fake_engine() as engine:
        url = f"https://127.0.0.1:{port}"
        made.initialise("--public-url", url, "--listen", f"127.0.0.1:{port}")
        server = made.serve()
        made.join("fake", engine.url)
        watching = watch(made, url)
        until(lambda: messages(watching), "the first picture")
        with Raw(made.port) as raw:
            raw.send(request(made.key, chat("patience", stream=True)))
            raw.until(b"wait")
            until(lambda: any("queue" in news for news in messages(watching)[1:]), "news of the request")
            (row,) = next(news for news in messages(watching)[1:] if "queue" in news)["queue"]["set"]
            assert (row["state"], row["worker"], row["model"]) == ("running", "fake", "fake")
            engine.gate.set()
        until(lambda: any(row["id"] in news.get("queue", {}).get("removed", []) for news in messages(watching)[1:]), "news of its end")
        assert server.stop() == 0
        until(lambda: "went away (1012); trying again" in watching.said, "it says that the server is gone")
        seen = len(messages(watching))
        made.serve()
        until(lambda: len(messages(watching)) > seen, "it is back")
        assert messages(watching)[seen]["type"] == "snapshot"
        watching.child.send_signal(signal.SIGINT)
        assert watching.child.wait(30) == 130
        assert watching.said.count("trying again") == 1
        assert "Traceback" not in watching.said + server.said
