"""A world with the FAKE engine behind one worker, for raw requests; when it ends, nothing may have leaked and nothing be lost."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import CHAT, Answer, Raw, ask, request
from tests.e2e.world import World, until, world


class Stage:
    """The world, its engine, and what was asked of them."""

    def __init__(self, made: World, engine: FakeEngine) -> None:
        self.world, self.engine = made, engine
        #: Request ids of what was answered to somebody with a good key, each of which leaves one row.
        self.paid: list[str] = []

    def ask(self, body: bytes, path: str = CHAT, *lines: str | bytes) -> Answer:
        """One request with a good key."""
        answer = ask(self.world, body, path, *lines)
        self.paid.append(answer.headers["x-request-id"])
        return answer

    def play(self, scene: str, **fields: Any) -> Answer:
        """One chat request that plays a scene."""
        return self.ask(chat(scene, **fields))

    def begin(self, scene: str, *, window: int = 0, **fields: Any) -> Raw:
        """The same, on a connection whose answer is read by the caller."""
        raw = Raw(self.world.port, window=window)
        raw.send(request(self.world.key, chat(scene, **fields)))
        return raw

    def queue(self) -> dict[str, int]:
        """How many requests wait and run."""
        queue: dict[str, int] = json.loads(self.world.get("/api/v1/status", self.world.key)[1])["queue"]
        return queue

    def row(self, request_id: str) -> dict[str, Any]:
        """The row of a request, once it is there."""
        return until(lambda: next((row for row in self.world.rows() if row["request_id"] == request_id), None), "the row", 10) or {}

    def idle(self) -> None:
        """Waits until every slot is free."""
        until(lambda: self.world.worker("fake")["used"] == 0, "all slots are free", 10)


def chat(scene: str, **fields: Any) -> bytes:
    """The body of a chat request that plays a scene."""
    return json.dumps({"model": "fake", "messages": [{"role": "user", "content": scene}], **fields}).encode()


def said(answer: Answer) -> str:
    """All text of a streamed answer, which must have come to its end."""
    assert answer.status == 200 and answer.body.count(b"data: [DONE]") == 1 and answer.body.endswith(b"data: [DONE]\n\n"), answer
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in events for choice in chunk["choices"])


def stream_error(answer: Answer) -> dict[str, Any]:
    """The error that ended a stream which had begun."""
    assert answer.status == 200 and b"[DONE]" not in answer.body, answer
    last = [line for line in answer.body.decode().split("\n") if line.startswith("data: ")][-1]
    error: dict[str, Any] = json.loads(last[6:])["error"]
    return error


@contextmanager
def stage(folder: Path, settings: str = "") -> Iterator[Stage]:
    """Two slots; `settings` are more lines of the server's settings file."""
    with world(folder) as made, fake_engine() as engine:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(settings)
        made.serve()
        made.join("fake", engine.url, "--slots", "2")
        here = Stage(made, engine)
        yield here
        engine.gate.set()
        _nothing_leaked_and_nothing_is_lost(here)


def _nothing_leaked_and_nothing_is_lost(here: Stage) -> None:
    """Every slot is free, every request with a good key has one row, and the logs hold no traceback and no key."""
    here.idle()
    until(lambda: set(here.paid) <= {row["request_id"] for row in here.world.rows()}, "all rows are written", 10)
    rows = [row["request_id"] for row in here.world.rows()]
    assert len(rows) == len(set(rows))
    for process in here.world.processes:
        assert "Traceback" not in process.said, process.said
        assert here.world.key.rsplit("_", 1)[1] not in process.said
