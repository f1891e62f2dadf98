"""Where a server's time goes: the profile of one under load, taken apart from all that is measured."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
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
#: Lines of a table.
_MOST = 16


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
    """The rooms and the functions that most time is spent in, and in what they call of C and of the kernel; "" for none."""
    if not found:
        return ""
    kernel = [_percent(profile.system / ((profile.user + profile.system) or 1)) for profile in found.values()]
    rooms = _lines([_shares(profile, room) for profile in found.values()])
    functions = _lines([_shares(profile, str) for profile in found.values()])
    return "\n\n".join((shape(("room", *found), [*rooms, ("of all: in the kernel", *kernel)]), shape(("function", *found), functions)))


def room(place: str) -> str:
    """Where a function stands: our rooms by name, a library as a whole."""
    file = place.split(" ", maxsplit=1)[0]
    parts = file.split("/")
    return "/".join(parts[:2]) if parts[0] == "mindgw" and len(parts) > 2 else parts[0] if len(parts) > 1 else place


def _lines(shares: Sequence[Mapping[str, float]]) -> list[tuple[str, ...]]:
    """The largest first."""
    most = {place: max(each.get(place, 0.0) for each in shares) for each in shares for place in each}
    chosen = sorted(most, key=lambda place: -most[place])[:_MOST]
    return [(place, *(_percent(each.get(place, 0.0)) for each in shares)) for place in chosen]


def _shares(profile: Profile, kind: Callable[[str], str]) -> dict[str, float]:
    whole = sum(profile.seen.values())
    found: dict[str, float] = {}
    for place, times in profile.seen.items():
        found[kind(place)] = found.get(kind(place), 0.0) + times / whole
    return found


def _percent(share: float) -> str:
    return f"{share:.0%}"
