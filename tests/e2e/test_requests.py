"""`mindgw why` tells the true story of a request whose worker was killed: which one had it, what became of that, who answered and was paid.

A real server and two real agents, each in front of a FAKE engine; one of the agents is killed with SIGKILL.
"""

import json
import re
from pathlib import Path

import pytest

from tests.e2e.fake_engine import fake_engine
from tests.e2e.raw import Raw, request
from tests.e2e.stage import chat
from tests.e2e.world import until, world

pytestmark = pytest.mark.e2e


def test_the_story_of_a_request_whose_worker_was_killed(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as one, fake_engine() as two:
        made.serve()
        engines = {"one": one, "two": two}
        agents = {name: made.join(name, engine.url) for name, engine in engines.items()}
        made.admin("keys", "create", "payer", "--team", "nlp")
        with Raw(made.port) as raw:
            raw.send(request(made.key, chat("gated", stream=True)))
            first = until(lambda: next((name for name, engine in engines.items() if engine.requests), ""), "a worker has it")
            (running,) = made.items("queue", "list", "--running")
            assert f"sent to {first}" in made.admin("why", running["id"]).stdout, "the story so far"
            for engine in engines.values():
                engine.scene = "plain"
            agents[first].child.kill()
            answer = raw.answer()
            one.gate.set()
            two.gate.set()
        assert answer.status == 200 and b"[DONE]" in answer.body
        request_id = answer.headers["x-request-id"]
        assert request_id == running["id"]
        second = "two" if first == "one" else "one"

        said = until(lambda: text if "It was over" in (text := made.admin("why", request_id).stdout) else "", "the story is whole")
        at = [said.index(part) for part in (f"sent to {first}", f"{first} was lost", f"sent on to {second}", f"came from {second}")]
        assert at == sorted(at), said
        assert re.search(rf"why this worker +{second} .*not {first}: worker_lost", said)
        assert re.search(r"why so slow +[0-9.]+m?s: ", said)
        assert re.search(rf"who was paid .* USD for .* served by {second} .*one other try cost nothing", said)
        told = json.loads(made.admin("why", request_id, "--json").stdout)
        assert (told["attempts"], told["worker"], told["outcome"], told["paid"]["kind"]) == (2, second, "done", "settled")
        choice = told["moments"][3]["choice"]
        assert {each["worker"] for each in choice["considered"]} == {"one", "two"}

        def written() -> list[dict[str, object]]:
            return [item for item in made.items("requests", "list", "--worker", second) if item["id"] == request_id]

        assert until(written, "it is in the list")
        until(lambda: len(made.rows()) == 2, "both attempts have a row")
        (stored,) = made.query("select * from stories")
        assert stored["request_id"] == request_id and b"gated" not in stored["document"], "what it said is nowhere"
        assert sorted(row["kind"] for row in made.rows()) == ["settled", "wasted"]
        tail = made.admin("requests", "tail", "-n", "1", "-q").stdout.split()
        assert tail == [request_id]
