"""What the programs of the benchmark have in common: uvloop, an address on stdout, an end at SIGTERM."""

import asyncio
import signal
import socket
from collections.abc import Coroutine
from typing import Any

import uvloop


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def announce(listener: socket.socket) -> None:
    """Tells whoever started this program where it listens."""
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)


async def until_terminated(listener: Any) -> None:
    """Announces the listener, then waits for SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    announce(listener)
    await ended.wait()
