"""Beginning anew: the process becomes a new one of the same command line. What it was begun with is all that it is begun with again."""

import logging
import os
import sys

log = logging.getLogger("mindgw.agent")


def again() -> None:
    """Does not return. Files and sockets are closed on the way, the lock of the state directory with them."""
    log.info("beginning anew")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell, and nobody else's words
