"""Everything that a run needs, started: yardsticks, engine, servers with their agents, the fleet."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench import gateway
from bench.cases import AIOHTTP, ASGI, ENGINE, GATEWAY, HELLO, HTTPX, KEYS, PEER, Case, Door, Size
from bench.cores import AGENT, SERVER
from bench.cores import ENGINE as ENGINES
from bench.fleet import HOLDERS
from bench.gateway import Gateway, Template
from bench.meter import Meter, listening
from bench.processes import NotReady, Process, Processes
from bench.report import Roles

#: Requests that an agent takes at a time: those of the widest case.
SLOTS = 1024
#: Names of processes.
SERVING, SERVING_ASGI, STOCKED, FLEET, CALLING = "server", "server-asgi", "server-stocked", "fleet", "callers"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says of the stage."""

    #: Line of a settings file that turns the fast lane off.
    asgi: str
    #: Lines for all servers.
    settings: Sequence[str] = ()
    #: Another gateway, and a key that is valid there.
    peer: str = ""
    peer_key: str = ""
    #: Where the engine listens, so that the other gateway finds it; 0: anywhere.
    engine_port: int = 0


@dataclass(slots=True)
class Stage:
    """What is there to be measured."""

    processes: Processes
    doors: dict[str, Door] = field(default_factory=dict)
    #: Which processes take part, by target.
    roles: dict[str, Roles] = field(default_factory=dict)
    #: The server with many keys and workers, None when no case needs it; the fleet in front of it, and how many of it are connected.
    stocked: Door | None = None
    fleet: Process | None = None
    #: The key that stands under a limit.
    limited: str = ""
    template: Template | None = None
    #: Lines for the settings of all servers.
    settings: Sequence[str] = ()
    #: What could not be started, for people.
    notes: list[str] = field(default_factory=list)

    def meter(self) -> Meter:
        """Make it when all is started."""
        pids: dict[str, Sequence[int]] = {**self.processes.pids, CALLING: [os.getpid()]}
        if PEER in self.doors and (found := listening(urlsplit(self.doors[PEER].url).port or 80)):
            pids[PEER] = found
        return Meter(pids)

    def door(self, case: Case) -> Door:
        if case.keys < 0:
            return Door(self.doors[case.target].url, [self.limited])
        if not case.fleet:
            return self.doors[case.target]
        assert self.stocked is not None
        return Door(self.stocked.url, self.stocked.keys[: max(1, case.keys)])

    def parts(self, case: Case) -> Roles:
        return Roles(STOCKED, engine=FLEET) if case.fleet else self.roles[case.target]


def start(processes: Processes, chosen: Sequence[Case], size: Size, wishes: Wishes) -> Stage:
    """Starts what the chosen cases need. Raises NotReady."""
    stage = Stage(processes, settings=wishes.settings)
    targets = {case.target for case in chosen}
    _yardsticks(stage, targets, wishes)
    if targets & {GATEWAY, ASGI}:
        stage.template = gateway.template(processes)
        _gateways(stage, stage.template, chosen, size, wishes)
    if wishes.peer:
        stage.doors[PEER] = Door(wishes.peer, [wishes.peer_key])
        stage.roles[PEER] = Roles(PEER, engine=ENGINE)
    return stage


def _yardsticks(stage: Stage, targets: set[str], wishes: Wishes) -> None:
    processes = stage.processes
    hello = processes.start(SERVER, HELLO, "bench.hello")
    engine = processes.start(ENGINES, ENGINE, "bench.engine", str(wishes.engine_port))
    root = processes.announced(engine)
    passing = {kind: processes.start(SERVER, kind, "bench.passthrough", kind, root) for kind in (AIOHTTP, HTTPX) if kind in targets}
    stage.doors |= {ENGINE: Door(root), HELLO: Door(processes.announced(hello))}
    stage.roles |= {HELLO: Roles(HELLO), ENGINE: Roles(ENGINE)}
    for kind, process in passing.items():
        try:
            stage.doors[kind] = Door(processes.announced(process))
            stage.roles[kind] = Roles(kind, engine=ENGINE)
        except NotReady as problem:  # these libraries belong to the tests, not to the product
            _leave_out(stage, kind, process, problem)


def _gateways(stage: Stage, source: Template, chosen: Sequence[Case], size: Size, wishes: Wishes) -> None:
    processes, lines = stage.processes, wishes.settings
    begun: dict[str, Gateway] = {}
    gateway.data_dir(processes, source, "cold", lines)
    if any(case.fleet for case in chosen):
        members = max(HOLDERS + 1, *(size.count(case.fleet) for case in chosen))
        held, file = gateway.stocked(processes, source, STOCKED, members, size.count(KEYS[-1]), lines)
        begun[STOCKED] = gateway.begin(processes, source, STOCKED, lines)
    if any(case.target == GATEWAY and not case.fleet and not case.cold for case in chosen):
        begun[SERVING] = gateway.begin(processes, source, SERVING, lines)
    if any(case.target == ASGI for case in chosen):
        begun[SERVING_ASGI] = gateway.begin(processes, source, SERVING_ASGI, [*lines, wishes.asgi])
    agents = _served(stage, begun)
    for name, agent in agents.items():
        gateway.await_joined(processes, begun[name], agent)
    if SERVING in begun:
        stage.limited = gateway.limited_key(begun[SERVING])
    if STOCKED in begun:
        stage.stocked = Door(begun[STOCKED].url, held.keys)
        stage.fleet = processes.start(AGENT, FLEET, "bench.fleet", str(file), begun[STOCKED].url, talks=True)


def _served(stage: Stage, begun: Mapping[str, Gateway]) -> dict[str, Process]:
    """Waits for the servers, and starts the agents of those that have one."""
    targets = {SERVING: GATEWAY, SERVING_ASGI: ASGI}
    agents: dict[str, Process] = {}
    for name, server in begun.items():
        try:
            gateway.await_ready(stage.processes, server)
        except NotReady as problem:
            if name != SERVING_ASGI:
                raise
            _leave_out(stage, ASGI, server.process, problem)
            continue
        if name in targets:
            agent = name.replace(SERVING, "agent")
            agents[name] = gateway.join(stage.processes, server, agent, stage.doors[ENGINE].url, SLOTS)
            stage.doors[targets[name]] = Door(server.url, [server.key])
            stage.roles[targets[name]] = Roles(name, agent, ENGINE)
    return agents


def _leave_out(stage: Stage, target: str, process: Process, problem: NotReady) -> None:
    stage.processes.end(process)
    said = [line for line in str(problem).splitlines() if line.strip()]
    why = next((line for line in said[1:] if line.startswith("error:")), said[-1])
    stage.notes.append(f"{target} is not measured, for it does not start: {why}")
