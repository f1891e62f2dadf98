"""The real agent, but one that hardly waits between two tries to reach its server: tests kill that server again and again.

python hasty_agent.py STATE_DIR     in a directory that joined before
"""

import logging
import sys
from pathlib import Path

from mindgw_agent import serve
from mindgw_agent.settings import StateDir

#: In place of a random number from 0 to 1: at most 20 s times this between two tries.
ROLL = 0.01


def main() -> int:
    state = StateDir(Path(sys.argv[1]))
    settings = state.load()
    assert settings is not None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    logging.getLogger("websockets").setLevel(logging.WARNING)
    with state.lock():
        return serve.run(state, settings, lambda: ROLL)


if __name__ == "__main__":
    sys.exit(main())
