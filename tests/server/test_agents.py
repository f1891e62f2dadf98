"""The agents' door over a real registry, pipeline and agent's session; the WebSocket between them is a FAKE, so that it can stop."""

import asyncio
from collections.abc import Callable

import pytest
import uvicorn

from mindgw.gateway.registry import Registry
from mindgw.server import agents, run
from mindgw.server.agents import AgentsDoor
from mindgw.store import fleet as stored
from mindgw.store.database import Database
from mindgw_agent import identity, session, wire
from tests.gateway.world import AGENT, SERVER, World, engine

HOST = "127.0.0.1:1"


async def until(done: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.005)


class Dialled:
    """An agent that has dialled the door, over a FAKE WebSocket."""

    def __init__(self, door: AgentsDoor, worker_id: str, last_epoch: int) -> None:
        parties = session.Parties(
            agent_id=worker_id,
            host=HOST,
            server_identity=identity.public_half(SERVER),
            last_epoch=last_epoch,
            sign=lambda message: identity.sign(AGENT, message),
            verify=identity.verify,
        )
        self.session = session.Session(parties, wire.Report(0, [engine("m")]))
        # bounded: by the few messages of a test
        self._inbound: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        #: Cleared while the peer reads nothing: whoever sends then waits.
        self.reads = asyncio.Event()
        self.reads.set()
        self.events: list[session.Event] = []
        #: True when the door has closed the socket properly.
        self.closed = False
        self._inbound.put_nowait({"type": "websocket.connect"})
        self.session.start()
        scope = {"type": "websocket", "scheme": "ws", "headers": [(b"host", HOST.encode())], "subprotocols": [wire.SUBPROTOCOL]}
        self.door = asyncio.create_task(door(scope, self._inbound.get, self._take))

    def speak(self) -> None:
        while message := self.session.take():
            self._inbound.put_nowait({"type": "websocket.receive", "bytes": message})

    async def _take(self, message: dict[str, object]) -> None:
        await self.reads.wait()
        if message["type"] == "websocket.close":
            self.closed = True
            self._inbound.put_nowait({"type": "websocket.disconnect"})
        if message["type"] == "websocket.send":
            for event in self.session.receive(message["bytes"], 0.0):
                self.events.append(event)
                if isinstance(event, session.Proving):
                    self.session.prove()
        self.speak()


@pytest.fixture
async def hall(tmp_path):
    """A world, a function that lets the one agent dial in, and its id."""
    world = World()
    database = Database(f"sqlite:///{tmp_path}/test.db")
    await database.migrate()
    async with database.write() as opened:
        row = await stored.add_worker(opened, "box", identity.public_half(AGENT))
    linked: list[str] = []

    async def link(worker_id: str) -> None:
        linked.append(worker_id)

    door = AgentsDoor(world.pipeline, Registry(database, SERVER), HOST, link)
    made: list[Dialled] = []

    async def dial() -> Dialled:
        dialled = Dialled(door, row.id, len(made))
        made.append(dialled)
        await until(lambda: (worker := world.pipeline.fleet.workers.get(row.id)) and worker.epoch == len(made))
        return dialled

    yield world, dial, row.id
    for dialled in made:
        dialled.door.cancel()
    await asyncio.gather(*(dialled.door for dialled in made), return_exceptions=True)
    await database.close()


async def test_a_removed_agent_hears_why_and_its_socket_closes(hall):
    world, dial, id = hall
    agent = await dial()
    world.pipeline.remove_worker(id)
    await until(agent.door.done, 1.0)
    assert (agent.events[-1].code, agent.closed, world.pipeline.fleet.workers) == ("revoked", True, {})


async def test_a_removed_agent_that_does_not_read_is_cut_off_all_the_same(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.1)
    world, dial, id = hall
    agent = await dial()
    agent.reads.clear()
    client = world.ask(stream=True)
    world.pipeline.remove_worker(id)
    await until(agent.door.done)
    assert (world.pipeline.fleet.workers, agent.closed) == ({}, False)
    assert client.exchange.state.name == "WAITING"


async def test_the_older_socket_of_an_agent_that_dialled_again_is_given_up_though_it_takes_nothing(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.1)
    world, dial, id = hall
    old = await dial()
    old.reads.clear()
    client = world.ask(stream=True)
    new = await dial()
    await until(lambda: any(isinstance(event, session.Request) for event in new.events))
    await until(old.door.done)
    assert (client.exchange.state.name, world.pipeline.fleet.workers[id].epoch) == ("SENT", 2)
    assert not new.door.done()


async def test_a_link_that_is_well_is_not_timed(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.01)
    _, dial, _ = hall
    agent = await dial()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(agent.door), 0.1)


async def test_a_socket_that_nobody_reads_is_gone_soon_after_its_door_gave_it_up(monkeypatch):
    monkeypatch.setattr(run, "CLOSING", 0.1)

    async def app(scope, receive, send):
        """Writes until the peer's window is full, then leaves."""
        await send({"type": "websocket.accept"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await send({"type": "websocket.send", "bytes": b"x" * 2**20})

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, ws=run.WebSocket, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await until(lambda: server.server_state.tasks)
    await until(lambda: not server.server_state.connections)
    writer.close()
    server.should_exit = True
    await serving
