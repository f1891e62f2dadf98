"""A real llama.cpp server with the tiny model, for every test that needs an engine.

    with start_engine(slots=2) as engine:
        engine.url, engine.pid, engine.kill()

Models are made once per machine and shape, in the temporary directory of the user.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mindgw.quickstart import tiny_model
from mindgw.quickstart.tiny_model import Shape

__all__ = ["ENDLESS", "SLOW", "RealEngine", "Shape", "model_file", "start_engine"]

#: Answers end only at `max_tokens`, at some thousands of tokens a second: for streams whose length must be known.
ENDLESS = Shape(eos=-60.0)
#: About a hundred tokens a second on one core, never ends by itself: for cancels and cuts in the middle of an answer.
SLOW = Shape(embd=512, layers=6, feed_forward=1536, eos=-60.0)
#: Seconds that a start may take on a loaded machine.
PATIENCE = 60.0


class RealEngine:
    """A running llama.cpp server. Ended by `start_engine`, or earlier by `kill` or `stop`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, alias: str) -> None:
        #: The child process; its pid is the only thing it is ever ended by.
        self.process = process
        #: Root URL without a trailing slash.
        self.url = url
        #: The id of its one model.
        self.alias = alias

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: the engine dies in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def start_engine(
    *,
    slots: int = 2,
    shape: Shape | None = None,
    alias: str = "tiny-babbler",
    port: int = 0,
    context: int = 0,
    api_key_file: Path | None = None,
) -> Iterator[RealEngine]:
    """Start an engine and wait until it listens. `context` counts tokens over all slots; 0 means 2048 a slot."""
    command = [sys.executable, "-m", "mindgw.quickstart.engine", str(model_file(shape or Shape())), "--alias", alias]
    command += ["--port", str(port), "--parallel", str(slots), "--ctx", str(context)]
    if api_key_file is not None:
        command += ["--api-key-file", str(api_key_file)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            yield RealEngine(process, _url(process, log.fileno()), alias)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(PATIENCE)
            assert process.stdout is not None
            process.stdout.close()


def model_file(shape: Shape) -> Path:
    """The path of the model of this shape, written first if no test of this user has done so before."""
    recipe = Path(tiny_model.__file__).read_bytes() + msgspec.json.encode(shape)
    directory = Path(tempfile.gettempdir()) / f"mindgw-test-models-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{hashlib.sha256(recipe).hexdigest()[:20]}.gguf"
    if path.exists():
        return path
    mine = tiny_model.write(directory / f"{path.stem}-{os.getpid()}.gguf", shape)
    return mine.replace(path)


def _url(process: subprocess.Popen[bytes], log: int) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + PATIENCE
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
    line = process.stdout.readline() if readable else b""
    if not line:
        size = os.fstat(log).st_size
        talk = os.pread(log, 4000, max(0, size - 4000)).decode(errors="replace")
        raise AssertionError(f"no engine within {PATIENCE:.0f} s (left: {deadline - time.monotonic():.0f} s):\n{talk}")
    return str(json.loads(line)["url"])
