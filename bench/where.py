"""Where a server's time goes: the profile of one under load, taken apart from all that is measured."""

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from bench import cases, gateway, load
from bench.cases import GATEWAY, Size
from bench.gateway import Gateway
from bench.meter import Meter
from bench.processes import NotReady
from bench.profiled import Profile
from bench.stage import SLOTS, Stage
from bench.tables import Table, columns

#: Cases that are looked at.
CASES = ("c64", "100x20ms")
#: How long, in windows.
_WINDOWS = 2
#: Functions that are shown.
_MOST = 14


def prepare(stage: Stage) -> Gateway:
    """A server of its own that can be looked into, and its agent."""
    assert stage.template is not None
    server = gateway.begin(stage.processes, stage.template, "profiled", stage.settings, profile=stage.processes.folder / "profile.json")
    gateway.await_ready(stage.processes, server)
    agent = gateway.join(stage.processes, server, "agent-profiled", stage.doors[cases.ENGINE].url, SLOTS)
    gateway.await_joined(stage.processes, server, agent)
    return server


async def look(stage: Stage, server: Gateway, size: Size) -> dict[str, Profile]:
    """By case. Raises NotReady when the server does not tell."""
    found: dict[str, Profile] = {}
    longer = replace(size, seconds=size.seconds * _WINDOWS)
    for case in cases.chosen(CASES, [GATEWAY]):
        there = cases.load(case, longer, cases.Door(server.url, [server.key]))
        await load.run(there, Meter({}), size.seconds / 2)  # warm
        server.process.child.send_signal(signal.SIGUSR1)
        await load.run(there, Meter({}), longer.seconds)
        server.process.child.send_signal(signal.SIGUSR2)
        found[case.name] = await _told(stage)
    return found


async def _told(stage: Stage) -> Profile:
    file = stage.processes.folder / "profile.json"
    try:
        async with asyncio.timeout(load.PATIENCE):
            while not file.exists():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise NotReady("the server tells nothing of what it does") from None
    told = msgspec.json.decode(file.read_bytes(), type=Profile)
    file.unlink()
    return told


def table(found: Mapping[str, Profile], shape: Table = columns) -> str:
    """The functions that most time is spent in, and in what they call of C and of the kernel; "" for none."""
    shares = {name: _shares(profile) for name, profile in found.items()}
    functions = sorted(
        {place for each in shares.values() for place in each}, key=lambda place: -max(each.get(place, 0) for each in shares.values())
    )
    lines = [(place, *(f"{each.get(place, 0):.0%}" for each in shares.values())) for place in functions[:_MOST]]
    kernel = ("of all: in the kernel", *(f"{profile.system / max(profile.user + profile.system, 1e-9):.0%}" for profile in found.values()))
    return shape(("where", *found), [*lines, kernel]) if found else ""


def _shares(profile: Profile) -> dict[str, float]:
    whole = sum(profile.seen.values())
    return {place: times / whole for place, times in profile.seen.items()}
