"""Which process runs on which core: what is measured has one to itself, where there are two."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: The parts that processes have in a measurement.
SERVER, AGENT, ENGINE, CALLERS = "server", "agent", "engine", "callers"


@dataclass(frozen=True, slots=True)
class Plan:
    #: Part -> its core.
    core: dict[str, int]

    @property
    def others(self) -> int:
        """Cores that carry what is not measured."""
        return len(set(self.core.values()) - {self.core[SERVER]}) or 1

    def words(self) -> str:
        """For people."""
        found: dict[int, list[str]] = {}
        for part, core in self.core.items():
            found.setdefault(core, []).append(part)
        shown = "; ".join(f"core {core}: {', '.join(parts)}" for core, parts in found.items())
        return shown if len(found) > 1 else f"{shown}. With one core for everything the figures say little"


def plan(cores: Sequence[int]) -> Plan:
    """`cores`: those that may be used, the best first. The server never shares its own where there is another."""
    own, *rest = cores
    rest = rest or [own]
    agent, engine, callers = {1: (0, 0, 0), 2: (0, 0, 1)}.get(len(rest), (0, 1, 2))
    return Plan({SERVER: own, AGENT: rest[agent], ENGINE: rest[engine], CALLERS: rest[callers]})


def available() -> list[int]:
    """The cores that this process may use; a second thread of a core that is in the list already comes last."""
    found = sorted(os.sched_getaffinity(0))
    return sorted(found, key=lambda core: (_is_second(core, found), core))


def _is_second(core: int, known: Sequence[int]) -> bool:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return False
    first, last = (int(part) for part in (text.replace("-", ",").split(",")[0], text.replace("-", ",").split(",")[-1]))
    siblings = range(first, last + 1) if "-" in text else [int(part) for part in text.split(",")]
    return any(other < core and other in known for other in siblings)


@contextmanager
def kept_to(core: int | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on that core from its first instruction on; None: on any."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
