"""Routes and residency with the real server, two real agents and a llama.cpp engine behind both; one of them is killed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.raw import Answer, Raw, request
from tests.e2e.world import Process, World, until, world
from tests.real_engine import start_engine

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, dict[str, Process]]]:
    """A server and two boxes, one in the EU and one in the US, by their tags."""
    with world(tmp_path_factory.mktemp("routes")) as made, start_engine(slots=4) as engine:
        made.initialise()
        made.serve()
        agents = {name: made.join(name, engine.url) for name in ("eu", "us")}
        made.model = engine.alias
        for name in agents:
            made.admin("workers", "tags", name, f"region={name}")
        yield made, agents


def say(made: World, key: str, model: str, **fields: Any) -> Answer:
    """One chat request."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **fields}
    with Raw(made.port) as raw:
        raw.send(request(key, json.dumps(body).encode()))
        return raw.answer()


def test_names_places_and_what_becomes_of_them_when_a_box_is_killed(fleet: tuple[World, dict[str, Process]]) -> None:
    made, agents = fleet
    bound = made.admin("keys", "create", "bound", "--label", "region=eu", "-q").stdout.strip()
    free = made.admin("keys", "create", "free", "-q").stdout.strip()
    made.admin("routes", "create", "fast", "--to", f"{made.model}@region=eu", "--fallback", made.model)
    for key in (bound, free):
        answer = say(made, key, "fast")
        assert (answer.status, json.loads(answer.body)["model"]) == (200, "fast")
        assert answer.headers["x-mindgw-served-by"] == f"eu; model={made.model}; region=eu"
    streamed = say(made, bound, "fast", stream=True)
    chunks = [json.loads(line[6:]) for line in streamed.body.decode().split("\n") if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"fast"}
    plain = say(made, free, made.model)
    assert plain.status == 200
    assert "x-mindgw-served-by" not in plain.headers
    assert json.loads(made.get("/v1/models", free)[1])["data"][0]["id"] in {"fast", made.model}

    agents["eu"].kill()
    until(lambda: made.worker("eu")["state"] == "offline", "the box is gone")
    answer = say(made, free, "fast")
    assert (answer.status, answer.headers["x-mindgw-served-by"]) == (200, f"us; model={made.model}")
    tried = made.admin("routes", "test", "fast", "--json", code=None)
    assert json.loads(tried.stdout)["way"]["chosen"] == 1
    made.admin("workers", "remove", "eu", "--yes")
    refused = until(lambda: (found := say(made, bound, "fast")).status == 503 and found, "nobody is left in the EU")
    assert refused.error["code"] == "residency_unmet"
    assert {row["worker_id"] for row in made.rows() if row["status"] == 200} <= {made.worker("us")["id"], *ids(made, "eu")}
    made.admin("workers", "tags", "us", "region=eu")
    assert say(made, bound, "fast").headers["x-mindgw-served-by"].startswith("us; ")


def ids(made: World, name: str) -> set[str]:
    """Of workers that had this name."""
    return {row["id"] for row in made.query("SELECT id, name FROM workers") if row["name"] == name}
