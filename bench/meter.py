"""CPU and memory that processes have used, and what the machine withheld, as Linux counts them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Reading:
    #: Nanoseconds of CPU, user and system, of all threads that live, by the process's name.
    cpu: dict[str, int]
    #: Ticks that the hypervisor gave to others, and all ticks.
    steal: int
    ticks: int
    #: Ticks that anybody's programs and the kernel for them used.
    used: int = 0


class Meter:
    """Reads the processes given by name and pids, several where a peer has several; they must live as long as readings are taken."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = dict(pids)

    def read(self) -> Reading:
        """Takes about 0.1 ms. A running thread is known to within one tick of the kernel (1-10 ms)."""
        with open("/proc/stat", encoding="ascii") as stat:
            ticks = [int(field) for field in stat.readline().split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = ticks
        used = user + nice + system + irq + softirq
        return Reading({name: sum(map(_cpu, pids)) for name, pids in self._pids.items()}, steal, sum(ticks), used)

    def memory(self, name: str) -> int:
        """Bytes of memory that the process holds; 0 for one that is not known."""
        return sum(map(rss, self._pids.get(name, ())))


def _cpu(pid: int) -> int:
    """The first field of schedstat; the clock ticks of /proc/PID/stat are too coarse for short windows."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread ended meanwhile
    return total


def rss(pid: int) -> int:
    """Bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE


def listening(port: int) -> list[int]:
    """Pids of the processes of this user that listen on a port of this machine; none when they are somebody else's, or elsewhere."""
    wanted = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                wanted.add(f"socket:[{fields[9]}]")
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit() and wanted & _open(folder)]


def _open(folder: Path) -> set[str]:
    """What the descriptors of a process lead to; nothing when that is not ours to know."""
    found = set()
    with suppress(OSError):
        for each in (folder / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(each))
    return found
