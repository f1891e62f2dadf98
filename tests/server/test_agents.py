"""The agents' door over a real registry, pipeline and agent's session, through uvicorn and real sockets."""

import asyncio
import contextlib
from functools import partial
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from mindgw import errors
from mindgw.gateway import signals
from mindgw.gateway.handshake import Handshake
from mindgw.gateway.registry import Registry
from mindgw.gateway.seat import Worker
from mindgw.server import agents, socket
from mindgw.server.agents import AgentsDoor, Carriage
from mindgw.server.cors import Cors
from mindgw.server.guard import Guard
from mindgw.server.protocol import Guarded
from mindgw.server.socket import WebSocket
from mindgw.store import fleet as stored
from mindgw.store.database import Database
from mindgw_agent import identity, session, wire
from tests.gateway.world import AGENT, JSON, SERVER, World, engine

BODY = b'{"choices":[]}'


async def until(done: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.005)


class Dialled:
    """An agent that has dialled the door. The test plays its engine."""

    def __init__(self, port: int, worker_id: str, last_epoch: int, model: str = "m", slots: int = 4) -> None:
        host = f"127.0.0.1:{port}"
        parties = session.Parties(
            agent_id=worker_id,
            host=host,
            server_identity=identity.public_half(SERVER),
            last_epoch=last_epoch,
            sign=lambda message: identity.sign(AGENT, message),
            verify=identity.verify,
        )
        self.session = session.Session(parties, wire.Report(0, [engine(model, slots=slots)]))
        self.url = f"ws://{host}{wire.PATH}"
        self.events: list[session.Event] = []
        #: Said in the same segment as the PROOF, before anybody asked for it.
        self.hasty = b""
        #: Whether it keeps its PROOF back until `go_on`.
        self.hesitates = False
        #: The WebSocket; None before the upgrade.
        self.socket: Any = None
        self.task = asyncio.create_task(self._run())

    @property
    def requests(self) -> list[session.Request]:
        return [event for event in self.events if isinstance(event, session.Request)]

    @property
    def closed(self) -> int | None:
        """The code with which the server closed; None while it did not."""
        received = self.socket.protocol.close_rcvd
        return received.code if received is not None else None

    def raw(self, data: bytes) -> None:
        self.socket.transport.write(data)

    @property
    def is_asked(self) -> bool:
        """Whether it has its CHALLENGE."""
        return any(isinstance(event, session.Proving) for event in self.events)

    def go_on(self) -> None:
        self.session.prove()
        self.speak()

    def stop_reading(self) -> None:
        self.socket.transport.pause_reading()

    def read_on(self) -> None:
        self.socket.transport.resume_reading()

    def speak(self) -> None:
        while message := self.session.take():
            self.raw(binary(message))

    def answer(self, stream: int) -> None:
        self.session.head(stream, 200, JSON, BODY)
        self.session.close(stream, wire.Close("done"))
        self.speak()

    async def _run(self) -> None:
        self.socket = await connect(self.url, subprotocols=[wire.SUBPROTOCOL], compression=None, close_timeout=0.2)  # type: ignore[list-item]
        self.session.start()
        self.speak()
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                self._hear(message)

    def _hear(self, message: bytes) -> None:
        for event in self.session.receive(message, 0.0):
            self.events.append(event)
            if isinstance(event, session.Proving) and not self.hesitates:
                self.session.prove()
        proofs = b"".join(iter(lambda: binary(said) if (said := self.session.take()) else b"", b""))
        if proofs:
            self.raw(proofs + self.hasty)
            self.hasty = b""


def binary(message: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True) -> bytes:
    """A WebSocket frame as a client sends it."""
    return Frame(opcode, message, fin).serialize(mask=True)


class Hall:
    """A server with the agents' door, and agents that dial it."""

    def __init__(self, world: World, database: Database, registry: Registry, port: int, connections: set[Any]) -> None:
        self.world = world
        #: What speaks on the server's ends of its connections.
        self.connections = connections
        self._database = database
        self.registry = registry
        self.port = port
        self.agents: list[Dialled] = []
        self.ids: dict[str, str] = {}
        #: Sessions that each of them has had.
        self._sessions: dict[str, int] = {}

    async def decide(self, state: stored.State, name: str = "box") -> None:
        """Writes down what is decided about a worker."""
        async with self._database.write() as opened:
            await stored.set_state(opened, self.ids[name], state)

    async def drain(self, name: str = "box") -> None:
        """Writes down that a worker takes nothing new."""
        async with self._database.write() as opened:
            await stored.set_drained(opened, self.ids[name], drained=True)

    def worker(self, name: str = "box") -> Worker:
        return self.world.pipeline.fleet.workers[self.ids[name]]

    async def dial(self, name: str = "box", hasty: bytes = b"", waits: bool = True, hesitates: bool = False, **fields: Any) -> Dialled:
        """Returns when the link is up, if it `waits` for that."""
        if name not in self.ids:
            async with self._database.write() as opened:
                self.ids[name] = (await stored.add_worker(opened, name, identity.public_half(AGENT))).id
        id, sessions = self.ids[name], self._sessions.get(name, 0)
        dialled = Dialled(self.port, id, sessions, **fields)
        dialled.hasty, dialled.hesitates = hasty, hesitates
        self.agents.append(dialled)
        self._sessions[name] = sessions + 1
        workers = self.world.pipeline.fleet.workers
        await until(lambda: not waits or ((worker := workers.get(id)) and worker.epoch == sessions + 1))
        return dialled


@pytest.fixture
async def hall(tmp_path):
    """One server. Its name is what the agents dial."""
    world = World()
    database = Database(f"sqlite:///{tmp_path}/test.db")
    await database.migrate()

    async def linked(worker_id: str) -> None:
        """Nobody keeps books here."""

    registry = Registry(database, SERVER)
    world.pipeline.news.on_charge = registry.accused
    door = AgentsDoor(world.pipeline, registry, "127.0.0.1:1", linked)
    config = uvicorn.Config(
        door, host="127.0.0.1", port=0, http=partial(Guarded, Guard(), Cors()), ws=WebSocket, ws_max_size=wire.MAX_MESSAGE, log_config=None,
        lifespan="off", ws_per_message_deflate=False, ws_ping_interval=None, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    made = Hall(world, database, registry, server.servers[0].sockets[0].getsockname()[1], server.server_state.connections)
    yield made
    for agent in made.agents:
        if agent.socket is not None:
            agent.socket.transport.abort()
        agent.task.cancel()
    await asyncio.gather(*(agent.task for agent in made.agents), return_exceptions=True)
    await until(lambda: not server.server_state.tasks)
    server.should_exit = True
    await serving
    await database.close()


# -- agents that lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie", [b'{"serial":9e99}', b'{"serial":1,"engines":[{"id":"e","kind":"k","healthy":true,"slots":9007199254740992}]}']
)
async def test_who_lies_takes_nothing_until_somebody_has_looked_even_with_a_new_link(hall, lie):
    world = hall.world
    box = await hall.dial("box")
    box.raw(binary(wire.encode(wire.Frame(0, wire.REPORT, lie))))
    worker = world.pipeline.fleet.workers[hall.ids["box"]]
    await until(lambda: worker.state == "quarantined")
    await hall.registry.flush()
    box.socket.transport.abort()
    await until(lambda: not world.pipeline.fleet.workers)
    await hall.dial("box")
    again = world.pipeline.fleet.workers[hall.ids["box"]]
    assert (again.state, again.charge) == ("quarantined", worker.charge)
    client = world.ask(stream=False)
    assert client.end is None
    world.pipeline.fleet.release(again)
    await until(lambda: hall.agents[-1].requests)


@pytest.mark.parametrize("stays", [True, False])
async def test_who_lies_and_dials_again_before_that_is_written_is_known_all_the_same(hall, stays):
    box = await hall.dial()
    box.raw(binary(wire.encode(wire.Frame(0, wire.REPORT, b'{"serial":9e99}'))))
    await until(lambda: hall.worker().state == "quarantined")
    charge = hall.worker().charge
    if not stays:
        box.socket.transport.abort()
        await until(lambda: not hall.world.pipeline.fleet.workers)
    await hall.dial()
    assert (hall.worker().state, hall.worker().charge) == ("quarantined", charge)
    hall.world.pipeline.errands.release(hall.ids["box"])
    await hall.registry.flush()
    await hall.dial()
    assert (hall.worker().state, hall.worker().charge) == ("ready", "")


# -- what is decided while an agent greets -----------------------------------------------------------------------------


@pytest.fixture
async def greeting(hall):
    """An agent that has a link, and the same one that dials a second and keeps back its PROOF."""
    await hall.dial()
    second = await hall.dial(waits=False, hesitates=True)
    await until(lambda: second.is_asked)
    return second


@pytest.mark.parametrize(("state", "code"), [("removed", "revoked"), ("locked", "locked")])
async def test_who_is_put_out_while_it_greets_stays_out(hall, greeting, state, code):
    await hall.decide(state)
    hall.world.pipeline._dismiss(hall.ids["box"], code, "decided")
    await until(lambda: not hall.world.pipeline.fleet.workers)
    greeting.go_on()
    await until(greeting.task.done)
    assert (greeting.events[-1].code, hall.world.pipeline.fleet.workers) == (code, {})


async def test_who_is_drained_while_it_greets_takes_nothing_new(hall, greeting):
    await hall.drain()
    hall.world.pipeline.errands.drain(hall.ids["box"])
    greeting.go_on()
    await until(lambda: hall.worker().epoch == 2)
    assert (hall.worker().state, hall.worker().drained) == ("draining", True)


async def test_who_lies_while_it_greets_on_another_link_is_in_quarantine_on_both(hall, greeting):
    hall.agents[0].raw(binary(wire.encode(wire.Frame(0, wire.REPORT, b'{"serial":9e99}'))))
    await until(lambda: hall.worker().charge)
    await hall.registry.flush()
    greeting.go_on()
    await until(lambda: hall.worker().epoch == 2)
    assert hall.worker().state == "quarantined"


#: What is decided once the database was asked: what it says is not asked again.
LATE = {
    "removed": lambda pipeline, id: pipeline.remove_worker(id),
    "locked": lambda pipeline, id: pipeline.lock_worker(id),
    "drained": lambda pipeline, id: pipeline.errands.drain(id),
    "undrained": lambda pipeline, id: (pipeline.errands.drain(id), pipeline.errands.undrain(id)),
    "accused": lambda pipeline, id: pipeline.fleet.accuse(pipeline.fleet.workers[id], "it lies"),
    "released": lambda pipeline, id: (LATE["accused"](pipeline, id), pipeline.errands.release(id)),
}


@pytest.mark.parametrize(
    ("decision", "state"),
    [("removed", ""), ("locked", ""), ("drained", "draining"), ("undrained", "ready"), ("accused", "quarantined"), ("released", "ready")],
)
async def test_what_is_decided_between_the_look_at_the_database_and_the_welcome_holds(hall, greeting, monkeypatch, decision, state):
    enter = Registry.enter

    async def entered(registry: Registry, worker_id: str, epoch: int) -> Any:
        found = await enter(registry, worker_id, epoch)
        LATE[decision](hall.world.pipeline, worker_id)
        return found

    monkeypatch.setattr(Registry, "enter", entered)
    workers = hall.world.pipeline.fleet.workers
    greeting.go_on()
    await until(lambda: (not workers and greeting.task.done()) if not state else hall.worker().epoch == 2)
    assert [worker.state for worker in workers.values()] == [state] * bool(state)
    assert not hall.world.pipeline.fleet.arrivals._open


# -- many at once ------------------------------------------------------------------------------------------------------


class Jam:
    """A database that answers nobody until the gate is open."""

    def __init__(self, hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        #: Who asks it now, and the most that ever did.
        self.asking = self.most = 0
        #: Of whom it was asked.
        self.asked: list[str] = []
        find = Registry.find

        async def jammed(registry: Registry, worker_id: str) -> Any:
            self.asking += 1
            self.most = max(self.most, self.asking)
            self.asked.append(worker_id)
            try:
                await self.gate.wait()
                return await find(registry, worker_id)
            finally:
                self.asking -= 1

        monkeypatch.setattr(Registry, "find", jammed)


async def test_who_waits_for_its_turn_is_not_called_slow_and_few_are_in_the_way_of_others(hall, monkeypatch):
    monkeypatch.setattr(agents, "GREETING", 0.3)
    jam = Jam(hall, monkeypatch)
    dialled = [await hall.dial(f"box-{number}", waits=False) for number in range(20)]
    await until(lambda: all(agent.socket is not None for agent in dialled))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(dialled[0].task), 0.5)  # longer than an agent may take
    jam.gate.set()
    await until(lambda: len(hall.world.pipeline.fleet.workers) == 20)
    assert jam.most == agents.AT_ONCE


async def test_who_has_left_meanwhile_costs_no_turn(hall, monkeypatch):
    jam, heard, hello = Jam(hall, monkeypatch), [], Handshake.hello
    monkeypatch.setattr(Handshake, "hello", lambda shake, message: (heard.append(message), hello(shake, message))[1])
    first = [await hall.dial(f"box-{number}", waits=False) for number in range(agents.AT_ONCE)]
    await until(lambda: jam.asking == agents.AT_ONCE)
    late = await hall.dial("late", waits=False)
    await until(lambda: len(heard) == len(first) + 1)
    late.socket.transport.abort()
    await until(late.task.done)
    await until(lambda: len(hall.connections) == len(first))
    jam.gate.set()
    await until(lambda: len(hall.world.pipeline.fleet.workers) == len(first))
    await hall.dial("last")
    assert jam.asked == [*(hall.ids[f"box-{number}"] for number in range(agents.AT_ONCE)), hall.ids["last"]]


async def test_who_says_nothing_is_cut_off_in_its_own_time(hall, monkeypatch, caplog):
    monkeypatch.setattr(agents, "GREETING", 0.1)
    async with connect(f"ws://127.0.0.1:{hall.port}{wire.PATH}", subprotocols=[wire.SUBPROTOCOL]) as silent:  # type: ignore[list-item]
        with pytest.raises(ConnectionClosed):
            await silent.recv()
    assert "a greeting failed: too slow" in caplog.text


async def test_a_database_that_is_away_is_no_defect_of_the_door(hall, monkeypatch, caplog):
    async def away(registry: Registry, worker_id: str) -> Any:
        raise errors.Draining("The database does not answer at the moment.")

    monkeypatch.setattr(Registry, "find", away)
    agent = await hall.dial(waits=False)
    await until(agent.task.done)
    assert agent.closed == agents.TRY_LATER
    assert "a greeting failed: The database does not answer at the moment." in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("passes", [False, True], ids=["when it is looked up", "when it is let in"])
async def test_a_database_that_fails_is_a_line_in_the_log_and_a_word_to_the_agent(hall, caplog, passes):
    """Of a thousand agents that dial again and again."""
    agent = await hall.dial(waits=False, hesitates=passes)
    await until(lambda: agent.is_asked or agent.task.done())
    async with hall._database.write() as opened:
        await (await opened.connection()).exec_driver_sql("ALTER TABLE workers RENAME TO hidden")
    if passes:
        agent.go_on()
    else:
        agent = await hall.dial(waits=False)
    await until(agent.task.done)
    assert agent.closed == agents.TRY_LATER
    (said,) = [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert said.getMessage() == "a greeting failed: The database cannot do what it should: OperationalError: no such table: workers"
    assert not said.exc_info
    async with hall._database.write() as opened:
        await (await opened.connection()).exec_driver_sql("ALTER TABLE hidden RENAME TO workers")
    await hall.dial()


# -- how a link ends ---------------------------------------------------------------------------------------------------


async def test_a_removed_agent_hears_why_and_its_socket_closes(hall):
    agent = await hall.dial()
    hall.world.pipeline.remove_worker(hall.ids["box"])
    await until(agent.task.done)
    await until(lambda: not hall.world.pipeline.fleet.workers)
    assert (agent.events[-1].code, agent.closed) == ("revoked", agents.NORMAL)


async def test_a_removed_agent_that_does_not_read_is_cut_off_all_the_same(hall, monkeypatch, caplog):
    monkeypatch.setattr(agents, "PARTING", 0.1)
    caplog.set_level("INFO", agents.log.name)
    world, agent = hall.world, await hall.dial(slots=64)
    agent.stop_reading()
    clients = [world.ask(stream=True, pad="x" * 2**20) for _ in range(16)]
    await asyncio.sleep(0)  # what finds room leaves
    world.pipeline.remove_worker(hall.ids["box"])
    assert not world.pipeline.fleet.workers
    assert {client.exchange.state.name for client in clients} == {"WAITING"}
    await until(lambda: "worker box is gone" in caplog.text)
    agent.read_on()
    await until(agent.task.done)
    assert agent.closed is None  # the goodbye stood behind what it did not take


async def test_the_older_socket_of_an_agent_that_dialled_again_is_given_up_though_it_takes_nothing(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.1)
    world, old = hall.world, await hall.dial()
    old.stop_reading()
    clients = [world.ask(stream=True, pad="x" * 2**20) for _ in range(4)]
    new = await hall.dial()
    await until(lambda: len(new.requests) == 4)
    old.read_on()
    await until(old.task.done)
    assert {client.exchange.state.name for client in clients} == {"SENT"}
    assert not new.task.done()


async def test_a_link_that_is_well_is_not_timed(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.01)
    agent = await hall.dial()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(agent.task), 0.1)


async def test_an_agent_that_hangs_up_is_gone_at_once(hall):
    world, agent = hall.world, await hall.dial()
    client = world.ask(stream=True)
    await until(lambda: agent.requests)
    agent.socket.transport.abort()
    await until(lambda: not world.pipeline.fleet.workers)
    assert client.state is signals.State.WAITING


async def test_an_agent_that_says_goodbye_is_closed_in_order(hall):
    agent = await hall.dial()
    agent.raw(binary(wire.encode(wire.frame(wire.Goodbye("draining", "that is all")))))
    await until(agent.task.done)
    assert agent.closed == agents.NORMAL


async def test_a_close_of_the_agent_is_answered(hall):
    agent = await hall.dial()
    await agent.socket.close()
    await until(lambda: not hall.world.pipeline.fleet.workers)
    assert agent.closed == agents.NORMAL


# -- what does not belong there ----------------------------------------------------------------------------------------

UNMASKED = Frame(Opcode.BINARY, b"x").serialize(mask=False)
WRONG = {
    "text": (binary(b"hello", Opcode.TEXT), agents.NORMAL),
    "text in parts": (binary(b"\xff", Opcode.TEXT, fin=False) + binary(b"lo", Opcode.CONT), agents.NORMAL),
    "nothing": (binary(b""), agents.NORMAL),
    "a cut header": (binary(b"\0\0\0"), agents.NORMAL),
    "a cut payload": (binary(wire.pack_header(100, 1, wire.DATA, 0) + b"x"), agents.NORMAL),
    "a frame too large": (binary(wire.pack_header(wire.MAX_PAYLOAD + 1, 1, wire.DATA, 0) + bytes(wire.MAX_PAYLOAD + 1)), agents.NORMAL),
    "a stream that was never opened": (binary(wire.pack_header(1, 99, wire.DATA, 0) + b"x"), agents.NORMAL),
    "a word of the server": (binary(wire.pack_header(0, 1, wire.CANCEL, 0)), agents.NORMAL),
    "a message too large": (binary(bytes(wire.MAX_MESSAGE + 1)), 1009),
    "parts of a message too large": (
        binary(bytes(wire.MAX_MESSAGE), fin=False) + binary(b"x", Opcode.CONT), 1009,
    ),
    "no mask": (UNMASKED, 1002),
    "a part of nothing": (binary(b"x", Opcode.CONT), 1002),
    "an unknown opcode": (b"\x83\x80\0\0\0\0", 1002),
    "reserved bits": (b"\xf2\x80\0\0\0\0", 1002),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
async def test_whoever_breaks_the_rules_is_closed_and_nobody_else_is(hall, wrong):
    world = hall.world
    bad = await hall.dial("bad")
    client = world.ask(stream=False)
    await until(lambda: bad.requests)
    good = await hall.dial("good")
    data, code = WRONG[wrong]
    bad.raw(data)
    await until(bad.task.done)
    assert bad.closed == code
    await until(lambda: list(world.pipeline.fleet.workers) == [hall.ids["good"]])
    await until(lambda: good.requests)  # its request goes there
    good.answer(good.requests[0].stream)
    await until(lambda: client.end)
    assert client.body == BODY


async def test_a_message_in_parts_is_one(hall):
    agent = await hall.dial()
    client = hall.world.ask(stream=False)
    await until(lambda: agent.requests)
    agent.session.head(1, 200, JSON, BODY)
    agent.session.close(1, wire.Close("done"))
    said = agent.session.take()
    agent.raw(binary(said[:7], fin=False) + binary(b"ping", Opcode.PING) + binary(said[7:9], Opcode.CONT, fin=False))
    for byte in binary(said[9:], Opcode.CONT):
        agent.raw(bytes([byte]))
    await until(lambda: client.end)
    assert client.body == BODY


async def test_what_is_said_behind_the_proof_is_heard(hall):
    report = wire.Report(1, [engine("m", slots=7)])
    hasty = binary(wire.encode(wire.frame(report))) * 2
    await hall.dial(hasty=hasty)
    await until(lambda: hall.world.pipeline.snapshot().workers[0].slots == 7)


async def test_a_word_behind_the_proof_that_is_none_ends_the_link(hall):
    agent = await hall.dial(hasty=binary(b"hello", Opcode.TEXT), waits=False)
    await until(agent.task.done)
    assert agent.closed == agents.NORMAL


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [{"subprotocols": None}, {"subprotocols": ["mindgw.9"]}, {"origin": "http://evil.example"}])
async def test_whoever_is_no_agent_is_turned_away_before_the_upgrade(hall, wish):
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{hall.port}{wire.PATH}", **{"subprotocols": [wire.SUBPROTOCOL], **wish})
    assert refused.value.response.status_code == 403


async def test_a_server_that_drains_takes_no_more_agents(hall):
    hall.world.pipeline.drain()
    with pytest.raises(InvalidStatus):
        await connect(f"ws://127.0.0.1:{hall.port}{wire.PATH}", subprotocols=[wire.SUBPROTOCOL])  # type: ignore[list-item]


async def test_a_request_that_is_no_upgrade_is_told_so(hall):
    reader, writer = await asyncio.open_connection("127.0.0.1", hall.port)
    writer.write(b"GET /agent/v1/link HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 426 ")
    writer.close()


@pytest.mark.parametrize(
    "said",
    [binary(b"hello"), binary(b"hello", Opcode.TEXT), binary(bytes(agents.MAX_GREETING + 1)), UNMASKED],
    ids=["binary", "text", "long", "unmasked"],
)
async def test_whoever_does_not_greet_is_cut_off(hall, said):
    async with connect(
        f"ws://127.0.0.1:{hall.port}{wire.PATH}",
        subprotocols=[wire.SUBPROTOCOL],  # type: ignore[list-item]
        compression=None,
    ) as opened:
        opened.transport.write(said)
        with pytest.raises(ConnectionClosed):
            await opened.recv()
    assert not hall.world.pipeline.fleet.workers


async def test_whoever_is_rejected_and_reads_nothing_is_cut_off(hall, monkeypatch):
    monkeypatch.setattr(agents, "PARTING", 0.1)
    monkeypatch.setattr(socket, "CLOSING", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", hall.port, limit=1024)
    lines = [f"GET {wire.PATH} HTTP/1.1", "host: x", "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"]
    lines += ["sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", f"sec-websocket-protocol: {wire.SUBPROTOCOL}", "", ""]
    writer.write("\r\n".join(lines).encode())
    await reader.readuntil(b"\r\n\r\n")
    (opened,) = hall.connections
    while not opened.is_full:
        writer.write(binary(b"p" * 125, Opcode.PING) * 100)
        await asyncio.sleep(0)
    writer.write(binary(wire.encode(wire.frame(wire.Hello(agent_id="nobody", nonce=b"x" * 32, versions=[9])))))
    await until(lambda: not hall.connections)
    writer.close()


# -- when somebody does not read ---------------------------------------------------------------------------------------


async def test_an_agent_that_does_not_read_costs_little_and_keeps_nobody_waiting(hall):
    world, slow = hall.world, await hall.dial("slow", model="slow", slots=64)
    slow.stop_reading()
    for _ in range(40):
        world.ask(model="slow", pad="x" * 2**20)
    quick = await hall.dial("quick", model="quick")
    client = world.ask(model="quick")
    await until(lambda: quick.requests)
    quick.answer(1)
    await until(lambda: client.end)
    carriage = carriage_of(world, hall.ids["slow"])
    assert carriage._socket.is_full
    kept = carriage._socket.transport.get_write_buffer_size()
    assert kept < socket.HIGH_WATER + 2 * agents.MESSAGE
    slow.read_on()
    await until(lambda: len(slow.events) >= 40)


def carriage_of(world: World, id: str) -> Carriage:
    """Whoever carries a worker's link."""
    carriage = world.pipeline.fleet.workers[id].link._wake.__self__
    assert isinstance(carriage, Carriage)
    return carriage


async def test_only_the_middle_of_a_request_waits_on_a_busy_link_and_what_is_urgent_takes_it_along(hall, monkeypatch):
    monkeypatch.setattr(agents, "WAIT", 3600.0)
    world, agent = hall.world, await hall.dial(slots=64)
    world.ask(pad="x" * (wire.WINDOW + 1000))
    for _ in range(agents.BUSY):
        world.ask()
    heard = len(b"".join(event.body for event in agent.requests))
    await until(lambda: len(agent.requests) == agents.BUSY)
    carriage = carriage_of(world, hall.ids["box"])
    credit = carriage.link._out
    agent.speak()  # the credit for the large body
    await until(lambda: credit.is_waiting)
    assert (heard, len(agent.requests), credit.is_urgent) == (0, agents.BUSY, False)
    world.ask()
    await until(lambda: len(agent.requests) == agents.BUSY + 2)
    assert not credit.is_waiting


async def test_a_socket_that_nobody_reads_is_gone_soon_after_its_door_gave_it_up(monkeypatch):
    monkeypatch.setattr(socket, "CLOSING", 0.1)

    async def app(scope, receive, send):
        """Writes until the peer's window is full, then leaves."""
        await send({"type": "websocket.accept"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await send({"type": "websocket.send", "bytes": b"x" * 2**20})

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, ws=WebSocket, log_config=None, lifespan="off"))
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


async def test_on_a_socket_of_another_make_an_agent_is_turned_away_and_the_log_says_why(caplog):
    """A door that hangs in somebody's own server, say."""
    door = AgentsDoor(World().pipeline, Registry(None, SERVER), "127.0.0.1:1", lambda worker_id: None)
    config = uvicorn.Config(door, host="127.0.0.1", port=0, ws="websockets-sansio", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{port}{wire.PATH}", subprotocols=[wire.SUBPROTOCOL])
    assert refused.value.response.status_code == 403
    assert [record.getMessage() for record in caplog.records if "not that of `mindgw serve`" in record.getMessage()]
    assert "KeyError" not in caplog.text
    server.should_exit = True
    await serving
