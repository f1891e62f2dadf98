"""`mindgw`, with somebody who looks a thousand times in a second of its CPU what it is doing.

`python -m bench.profiled FILE WORDS` runs the command of those words. SIGUSR1 begins anew, SIGUSR2 writes a `Profile` to the file.
What C code and the kernel do counts for the Python function that called them, or for the event loop; what other threads do counts for
whoever is at work in the first one.
"""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

import msgspec

from mindgw.cli.start import main

#: Seconds of CPU from look to look.
EVERY = 0.001
#: Folders that a file's name is shown below.
_ROOT = re.compile(r".*(?:site-packages|agent/src|src|lib/python[0-9.]+)/")
#: The function in which the loop runs; uvloop itself is C.
_LOOP = "asyncio/runners.py Runner.run"
LOOP = "the event loop"


class Profile(msgspec.Struct, frozen=True):
    #: Seconds of CPU that the program itself and the kernel for it used.
    user: float
    system: float
    #: "file function" -> how often it was seen at work.
    seen: dict[str, int]


class Watch:
    """Looks while it is on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        #: Code that was at work, None for no code of Python. Bounded: by the functions that there are.
        self._seen: Counter[CodeType | None] = Counter()
        self._begun = os.times()

    def begin(self, _signal: int, _frame: FrameType | None) -> None:
        self._seen.clear()
        self._begun = os.times()
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)

    def look(self, _signal: int, frame: FrameType | None) -> None:
        self._seen[frame.f_code if frame is not None else None] += 1

    def write(self, _signal: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        now, begun = os.times(), self._begun
        seen: Counter[str] = Counter()
        for code, times in self._seen.items():
            seen[named(code)] += times
        profile = Profile(now.user - begun.user, now.system - begun.system, dict(seen))
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(profile))
        part.replace(self._file)


def named(code: CodeType | None) -> str:
    """The file and the function, as people know them."""
    if code is None:
        return LOOP
    found = f"{_ROOT.sub('', code.co_filename)} {code.co_qualname}"
    return LOOP if found == _LOOP else found


def run(words: list[str]) -> int:
    watch = Watch(Path(words[0]))
    signal.signal(signal.SIGPROF, watch.look)
    signal.signal(signal.SIGUSR1, watch.begin)
    signal.signal(signal.SIGUSR2, watch.write)
    sys.argv = ["mindgw", *words[1:]]
    return main()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
