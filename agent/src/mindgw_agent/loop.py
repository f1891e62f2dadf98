"""The event loop that an agent runs on: uvloop where it is installed, else the standard library's."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    from uvloop import new_event_loop
except ImportError:  # the extra `fast` of the slim distribution; there is none for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
