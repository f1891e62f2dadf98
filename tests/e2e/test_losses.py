"""What breaks: agents die, clients leave, keys are revoked, servers restart. Each test has a world of its own."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, AuthenticationError, OpenAI

from tests.e2e.world import World, until, world
from tests.real_engine import SLOW, start_engine

pytestmark = pytest.mark.e2e

ASK: Any = [{"role": "user", "content": "hello world"}]


def client(made: World, key: str = "") -> OpenAI:
    return OpenAI(base_url=made.base_url, api_key=key or made.key, max_retries=0)


def slots(engine_url: str) -> list[bool]:
    """Which slots of a llama.cpp server are at work; asked for at most once a second."""
    import urllib.request

    time.sleep(1.05)  # more often would switch off its own detection of a client that left
    with urllib.request.urlopen(engine_url + "/slots", timeout=30) as answer:
        return [slot["is_processing"] for slot in json.loads(answer.read())]


def test_killed_agent_ends_its_stream_with_an_error_and_the_other_goes_on(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine(shape=SLOW, alias="slow") as first, start_engine(shape=SLOW, alias="slow") as second:
        made.serve()
        agents = {"one": made.join("one", first.url), "two": made.join("two", second.url)}
        with client(made) as ai:
            stream = ai.chat.completions.create(model="slow", messages=ASK, max_tokens=2000, stream=True)
            next(iter(stream))
            busy = until(lambda: next((name for name in agents if made.worker(name).get("used")), ""), "a worker is busy")
            agents[busy].kill()
            with pytest.raises(APIError) as lost:
                list(stream)
            assert lost.value.code == "worker_lost"
            until(lambda: made.worker(busy)["state"] == "offline", "the worker is seen as gone")
            answer = ai.chat.completions.create(model="slow", messages=ASK, max_tokens=4)
            assert answer.usage is not None and answer.usage.completion_tokens == 4


def test_agent_killed_before_the_first_byte_is_not_noticed(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine(shape=SLOW, alias="slow") as first, start_engine(shape=SLOW, alias="slow") as second:
        made.serve()
        agents = {"one": made.join("one", first.url), "two": made.join("two", second.url)}
        answers: list[Any] = []
        with client(made) as ai:
            ask = threading.Thread(target=lambda: answers.append(ai.chat.completions.create(model="slow", messages=ASK, max_tokens=100)))
            ask.start()
            busy = until(lambda: next((name for name in agents if made.worker(name).get("used")), ""), "a worker is busy")
            agents[busy].kill()
            ask.join(60)
        assert answers[0].usage.completion_tokens == 100


def test_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine(shape=SLOW, alias="slow", slots=1) as engine:
        made.serve()
        made.join("one", engine.url)
        with client(made) as ai:
            stream = ai.chat.completions.create(model="slow", messages=ASK, max_tokens=2000, stream=True)
            for _ in zip(range(3), stream, strict=False):
                pass
            stream.close()
        until(lambda: not any(slots(engine.url)), "the engine's slot is free", 10)
        until(lambda: made.worker("one")["used"] == 0, "the lease is back", 10)
        row = until(lambda: next(iter(made.rows()), None), "the row is written")
        assert row["outcome"] == "cancelled" and 0 < row["completion_tokens"] < 2000


def test_revoked_key_is_refused_at_once_and_its_stream_is_cut(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine(shape=SLOW, alias="slow") as engine:
        made.serve()
        made.join("one", engine.url)
        key = made.admin("keys", "create", "guest", "-q").stdout.strip()
        with client(made, key) as ai:
            stream = ai.chat.completions.create(model="slow", messages=ASK, max_tokens=2000, stream=True)
            next(iter(stream))
            made.admin("keys", "revoke", key.split("_")[1], "--yes")
            with pytest.raises(APIError) as cut:
                list(stream)
            assert cut.value.code == "revoked_api_key"
            with pytest.raises(AuthenticationError):
                ai.models.list()


def test_agents_come_back_by_themselves_after_a_restart(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine() as engine:
        server = made.serve()
        made.join("one", engine.url)
        epoch = made.worker("one")["epoch"]
        assert server.stop() == 0
        made.serve()
        until(lambda: made.worker("one").get("state") == "ready", "the agent is back")
        assert made.worker("one")["epoch"] > epoch
        with client(made) as ai:
            assert ai.chat.completions.create(model="tiny-babbler", messages=ASK, max_tokens=2).usage


def test_request_waits_for_a_worker_that_is_coming_back(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine() as engine:
        made.serve()
        agent = made.join("one", engine.url)
        agent.stop()
        until(lambda: made.worker("one")["state"] == "offline", "the agent left")
        answers: list[Any] = []
        with client(made) as ai:
            ask = threading.Thread(
                target=lambda: answers.append(ai.chat.completions.create(model="tiny-babbler", messages=ASK, max_tokens=2))
            )
            ask.start()
            made.spawn("again", "agent", "run", "--state-dir", str(made.folder / "agent-one"))
            ask.join(60)
        assert answers


def test_removed_worker_is_cut_off_and_told_so(tmp_path: Path) -> None:
    with world(tmp_path) as made, start_engine() as engine:
        made.serve()
        agent = made.join("one", engine.url)
        made.admin("workers", "remove", "one", "--yes")
        assert agent.child.wait(30) == 4, agent.said
        with client(made) as ai, pytest.raises(APIStatusError) as refused:
            ai.with_options(timeout=60).chat.completions.create(model="nobody-has-it", messages=ASK)
        assert refused.value.status_code == 404


def test_second_server_on_one_data_dir_is_refused(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        made.serve()
        done = made.run("serve", "--data-dir", str(made.data_dir), code=7)
        assert "already serves" in done.stderr and "Traceback" not in done.stderr


def test_idle_server_leaves_within_two_seconds(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        server = made.serve()
        assert server.stop(2) == 0
