"""`python -m mindgw.cli.leash MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS` that ends with the process that started it.

That one holds the other end of stdin and never writes to it: the end of file says that it is gone, on every system and however it
went, kill -9 included.
"""

import os
import runpy
import signal
import sys
import threading

#: Seconds to end by itself once asked to.
GRACE = 10.0


def main() -> None:
    module, *words = sys.argv[1:]
    threading.Thread(target=_watch, args=(GRACE,), name="leash", daemon=True).start()
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(grace: float) -> None:
    """Asks this process to end when stdin ends, and does not ask twice."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(grace)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
