"""Two boxes, one of which is reached by ways that misbehave: between it and the server, and between its agent and its engine.

Server and agents are real, the engines are FAKES.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.proxy import Proxy, chaos_proxy
from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import Answer, Raw, ask, request
from tests.e2e.stage import chat
from tests.e2e.world import Process, World, until, world

HASTY = Path(__file__).with_name("hasty_agent.py")


class Box:
    """An agent, its engine, and the ways between. `hasty`: it does not wait long before it comes back."""

    def __init__(self, made: World, name: str, engine: FakeEngine, link: Proxy, way: Proxy, *, hasty: bool) -> None:
        self._world = made
        self.name = name
        self.engine = engine
        #: From the agent to the server, and from the agent to the engine.
        self.link, self.way = link, way
        state = made.folder / f"agent-{name}"
        token, own = made.admin("join-tokens", "create", "-q").stdout.strip(), ("--state-dir", str(state))
        made.run("agent", "join", token, "--name", name, "--engine-url", way.url, "--slots", "4", *own, "--enroll-only")
        file = state / "agent.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"servers": [link.url]}))
        command = [sys.executable, str(HASTY), str(state)] if hasty else [sys.executable, "-m", "mindgw", "agent", "run", *own]
        self.process = Process(command, made.env, made.folder / f"{name}.log")
        made.processes.append(self.process)

    @property
    def worker(self) -> dict[str, Any]:
        return self._world.worker(self.name)

    @property
    def state(self) -> str:
        return str(self.worker.get("state"))

    def drain(self) -> None:
        """Nothing new is sent there."""
        self._world.admin_post(f"/api/v1/workers/{self.name}/drain", None)

    def undrain(self) -> None:
        self._world.admin_post(f"/api/v1/workers/{self.name}/undrain", None)


class Boxes:
    """`near` is the one whose ways misbehave."""

    def __init__(self, made: World, near: Box, far: Box) -> None:
        self.world, self.near, self.far = made, near, far
        self.calm()

    def calm(self) -> None:
        """Both are ready, nothing runs, and the last request at either went well."""
        until(lambda: {self.near.state, self.far.state} == {"ready"}, "both are ready")
        for box, other in ((self.near, self.far), (self.far, self.near)):
            other.drain()
            until(lambda: ask(self.world, chat("plain")).status == 200, f"{box.name} serves")
            other.undrain()
        until(lambda: not self.near.worker["used"] and not self.far.worker["used"], "all slots are free")
        # on a connection that was used before a request would be sent to the same engine once more, as engines close such ones at any time
        self.near.way.cut()
        self.near.engine.gate.clear()
        self.far.engine.gate.set()

    def begin(self, scene: str, **fields: Any) -> Raw:
        """A request that `near` has; who asks for it anew gets `far`."""
        self.far.drain()
        raw = Raw(self.world.port, seconds=120)
        before = len(self.near.engine.requests)
        raw.send(request(self.world.key, chat(scene, **fields)))
        until(lambda: len(self.near.engine.requests) > before, "its engine has it")
        self.far.undrain()
        return raw

    def rows(self, answer: Answer) -> list[tuple[str, str]]:
        """Kind and outcome of each row of a request, once the last one is there."""

        def found() -> list[tuple[str, str]]:
            rows = [row for row in self.world.rows() if row["request_id"] == answer.headers["x-request-id"]]
            return sorted((row["kind"], row["outcome"]) for row in rows if any(row["kind"] == "settled" for row in rows))

        return until(found, "its rows")


@contextmanager
def boxes(folder: Path, loop: asyncio.AbstractEventLoop, settings: str = "", *, hasty: bool = True) -> Iterator[Boxes]:
    """`settings` are more lines of the server's settings file. At the end no slot may be taken and no log hold a traceback."""
    with world(folder) as made, fake_engine() as one, fake_engine() as two:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(settings)
        made.serve()
        with (
            chaos_proxy(loop, made.port) as near_link,
            chaos_proxy(loop, _port(one)) as near_way,
            chaos_proxy(loop, made.port) as far_link,
            chaos_proxy(loop, _port(two)) as far_way,
        ):
            near, far = Box(made, "near", one, near_link, near_way, hasty=hasty), Box(made, "far", two, far_link, far_way, hasty=hasty)
            here = Boxes(made, near, far)
            yield here
            one.gate.set()
            until(lambda: not here.near.worker["used"] and not here.far.worker["used"], "all slots are free")
            for process in made.processes:
                assert "Traceback" not in process.said, process.said


def _port(engine: FakeEngine) -> int:
    return int(engine.url.rpartition(":")[2])
