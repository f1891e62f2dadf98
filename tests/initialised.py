"""A data directory as `mindgw init` leaves it: made once by this process and copied, as to make one takes longer than most tests."""

import asyncio
import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import msgspec

from mindgw.control import setup


async def initialised(directory: Path) -> setup.InitResult:
    """What `setup.initialise` gives for a new directory; all that come from here are the same server's."""
    source, made = await asyncio.to_thread(_made)
    await asyncio.to_thread(shutil.copytree, source, directory, dirs_exist_ok=True)
    return msgspec.structs.replace(made, data_dir=str(directory))


@cache
def _made() -> tuple[Path, setup.InitResult]:
    folder = tempfile.mkdtemp(prefix="mindgw-initialised-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(folder) / "data"
    return source, asyncio.run(setup.initialise(source))
