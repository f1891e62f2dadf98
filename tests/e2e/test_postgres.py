"""Two real servers on one Postgres, each with an agent and a llama.cpp of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AuthenticationError, NotFoundError, OpenAI

from mindgw.store import schema
from tests.e2e.shared_postgres import PostgresWorld, postgres_world, two_servers
from tests.e2e.world import until
from tests.postgres import at
from tests.real_engine import SLOW, start_engine

pytestmark = pytest.mark.e2e

ASK: Any = [{"role": "user", "content": "hello world"}]

#: Seconds within which a server has heard of what another one did to a key, however busy the machine.
KNOWN = 5.0

Pair = tuple[PostgresWorld, PostgresWorld]


@pytest.fixture(scope="module")
def pair(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers at work, which were started at once: worker `one` with model-one at the first, `two` with model-two at the second."""
    import asyncio
    import uuid

    from tests.postgres import execute

    name = f"pair{uuid.uuid4().hex}"
    asyncio.run(execute(postgres, f"CREATE DATABASE {name} TEMPLATE template0"))
    engines = (start_engine(shape=SLOW, slots=2, alias=alias) for alias in ("model-one", "model-two"))
    with two_servers(tmp_path_factory.mktemp("pair"), at(postgres, name)) as servers:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        with next(engines) as one, next(engines) as two:
            servers[0].join("one", one.url)
            servers[1].join("two", two.url)
            yield servers
    asyncio.run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


def client(server: PostgresWorld, key: str = "") -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key=key or server.key, max_retries=0)


def chat(server: PostgresWorld, key: str = "", model: str = "") -> str:
    """The id of a request that was answered."""
    model = model or ("model-one" if server.folder.name == "first" else "model-two")
    with client(server, key) as ai:
        raw = ai.chat.completions.with_raw_response.create(model=model, messages=ASK, max_tokens=4)
        assert raw.parse().usage is not None
        return str(raw.headers["x-request-id"])


def refused(server: PostgresWorld, key: str) -> bool:
    try:
        with client(server, key) as ai:
            ai.models.list()
    except AuthenticationError:
        return True
    return False


def make_key(server: PostgresWorld, name: str) -> str:
    return server.admin("keys", "create", name, "-q").stdout.strip()


def test_chat_works_at_both_and_leaves_its_rows_in_one_ledger(pair: Pair) -> None:
    asked = {chat(server) for server in pair}
    until(lambda: asked <= {row["request_id"] for row in pair[0].rows()}, "both rows are written", 10)
    assert pair[0].key == pair[1].key


def test_each_serves_what_its_own_agents_have(pair: Pair) -> None:
    for server, model in zip(pair, ("model-one", "model-two"), strict=True):
        with client(server) as ai:
            assert [served.id for served in ai.models.list()] == [model]


def test_a_key_of_one_is_good_at_the_other_at_once(pair: Pair) -> None:
    for maker, other in (pair, pair[::-1]):
        key = make_key(maker, "guest")
        assert [chat(server, key) for server in (other, maker)]


def test_a_revoked_key_is_refused_at_once_where_it_was_revoked_and_soon_at_the_other(pair: Pair) -> None:
    first, second = pair
    mine, theirs = make_key(first, "leaver"), make_key(second, "leaver")
    assert not any(refused(server, key) for server in pair for key in (mine, theirs))
    first.admin("keys", "revoke", theirs.split("_")[1], "--yes")
    second.admin("keys", "revoke", mine.split("_")[1], "--yes")
    assert refused(first, theirs) and refused(second, mine)
    until(lambda: refused(first, mine) and refused(second, theirs), "the other servers have heard of it", KNOWN)


def test_workers_and_queue_are_each_servers_own(pair: Pair) -> None:
    first, second = pair
    states = [{worker["name"]: worker["state"] for worker in server.items("workers", "list")} for server in pair]
    assert states == [{"one": "ready", "two": "offline"}, {"one": "offline", "two": "ready"}]
    with client(first) as ai:
        stream = ai.chat.completions.create(model="model-one", messages=ASK, max_tokens=1000, stream=True)
        next(iter(stream))
        assert [entry["model"] for entry in first.items("queue", "list", "--running")] == ["model-one"]
        assert second.items("queue", "list", "--running") == []
        stream.close()
    until(lambda: first.worker("one")["used"] == 0, "its slot is free again", 10)


def test_a_worker_is_heard_of_at_both_and_removed_at_its_own(pair: Pair) -> None:
    first, second = pair
    with start_engine(alias="model-three") as engine:
        agent = second.join("three", engine.url)
        chat(second, model="model-three")
        assert "three" in {worker["name"] for worker in first.items("workers", "list")}
        second.admin("workers", "remove", "three", "--yes")
        assert agent.child.wait(30) == 4, agent.said
        assert "three" not in {worker["name"] for worker in first.items("workers", "list")}
        with client(second) as ai, pytest.raises(NotFoundError):
            ai.chat.completions.create(model="model-three", messages=ASK)


def test_the_database_is_sound_while_both_work(pair: Pair) -> None:
    for server in pair:
        report = json.loads(server.run("db", "check", "--data-dir", str(server.data_dir), "--json").stdout)
        assert report["ok"], report
        status = json.loads(server.run("db", "status", "--data-dir", str(server.data_dir), "--json").stdout)
        assert (status["kind"], status["state"]) == ("postgresql", "current")
        assert status["serving"] == (server.server.child.pid if server.server else None)
    first, _ = pair
    taken = first.run("db", "downgrade", "--data-dir", str(first.data_dir), "--yes", code=7)
    assert "already serves" in taken.stderr


def test_neither_says_anything_of_trouble(pair: Pair) -> None:
    """The last one of those that share the two."""
    for server in pair:
        assert server.server is not None
        assert "Traceback" not in server.server.said, server.server.said


def test_servers_that_start_at_once_after_an_update_migrate_once(postgres_url: str, tmp_path: Path) -> None:
    with two_servers(tmp_path, postgres_url) as servers:
        first, second = servers
        first.run("db", "downgrade", "--data-dir", str(first.data_dir), "--yes")
        late = first.run("init", "--data-dir", str(tmp_path / "third"), "--db", postgres_url, "--secrets-from", str(first.data_dir), code=1)
        assert "mindgw db upgrade" in late.stderr
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        assert [row["version_num"] for row in first.query("select version_num from alembic_version")] == [schema.head()]
        first.run("db", "check", "--data-dir", str(first.data_dir))
        assert second.get("/api/v1/keys", second.key)[0] == 200


def test_a_server_on_postgres_is_killed_and_comes_back_with_its_agent(postgres_url: str, tmp_path: Path) -> None:
    with postgres_world(tmp_path, postgres_url) as made, start_engine(alias="model-one") as engine:
        made.serve()
        made.join("one", engine.url)
        asked = [chat(made, model="model-one") for _ in range(3)]
        until(lambda: len(made.rows()) == 3, "the rows are written", 10)
        assert made.server is not None
        made.server.kill()
        made.serve()
        until(lambda: made.worker("one").get("state") == "ready", "the agent is back")
        asked.append(chat(made, model="model-one"))
        until(lambda: sorted(asked) == sorted(row["request_id"] for row in made.rows()), "each request has one row", 10)
        assert made.server.stop() == 0


def test_a_request_with_an_idempotency_key_that_one_has_run_is_known_to_the_other(pair: Pair) -> None:
    """The other does not even have its model; what one has not written yet, the other cannot know."""
    asked: Any = {"model": "model-one", "messages": ASK, "max_tokens": 4, "extra_headers": {"idempotency-key": "once for all"}}
    with client(pair[0]) as ai:
        first = ai.chat.completions.with_raw_response.create(**asked)

    def told() -> str:
        with client(pair[1]) as ai, pytest.raises(APIStatusError) as caught:
            ai.chat.completions.create(**asked)
        return str(caught.value.message) if caught.value.status_code == 409 else ""

    assert first.headers["x-request-id"] in until(told, "the other server knows", 10)
