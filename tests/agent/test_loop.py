"""Which event loop an agent runs on."""

import subprocess
import sys

import pytest

WHICH = """
import asyncio, sys
{before}
from mindgw_agent import loop

async def which():
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

print(loop.run(which()))
"""


@pytest.mark.parametrize(("before", "loop"), [("", "uvloop"), ("sys.modules['uvloop'] = None", "asyncio")], ids=["with uvloop", "without"])
def test_uvloop_where_there_is_one(before: str, loop: str) -> None:
    done = subprocess.run([sys.executable, "-c", WHICH.format(before=before)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loop
