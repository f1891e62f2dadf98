"""llama.cpp's own HTTP server, out of the `xllamacpp` wheel, as a child process on loopback.

`python -m mindgw.quickstart.engine MODEL --port 0 --alias NAME --parallel N [--ctx N] [--api-key-file F]`

It prints one JSON line `{"url": "http://127.0.0.1:PORT"}` on stdout once it listens, and ends on SIGTERM, on SIGINT and when the process
that started it is gone. Exit codes: 0 asked to end, 2 wrong arguments, 5 the engine is not installed, 6 the model cannot be served.
"""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

#: Tokens that are computed at once, or a few less.
BATCH = 512
#: Seconds between two looks at whether the parent still lives.
PARENT_CHECK = 0.5
MISSING = "error: the embedded engine is not installed; run: pip install 'mindgw[embedded]'\n"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Serve until told to end. Never returns: llama.cpp's threads are left behind by ending the process."""
    parent = os.getppid()
    options = parse(arguments)
    # what starts us reads one line from stdout; llama.cpp's own words there (a crash prints a backtrace) go to stderr with its log
    announce = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = start(options)
    except ModuleNotFoundError:
        leave(5, MISSING)
    except RuntimeError as error:
        leave(6, f"error: llama.cpp cannot serve {options.model}: {error}\n")
    os.write(announce, json.dumps({"url": server.listening_address}).encode() + b"\n")
    os.close(announce)
    while not stop.wait(PARENT_CHECK) and os.getppid() == parent:
        pass
    leave(0)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; ends the process with 2 and a usage line when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m mindgw.quickstart.engine", description="Serve a GGUF with llama.cpp on loopback.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--alias", default="tiny-babbler", help="the model's name for clients")
    parser.add_argument("--parallel", type=int, default=2, help="slots: requests generated at once")
    parser.add_argument("--ctx", type=int, default=0, help="tokens of context over all slots; 0 means 2048 a slot")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--api-key-file", type=Path, help="a file with the key that requests must bring")
    options = parser.parse_args(arguments)
    if not options.model.is_file():
        parser.error(f"no such model file: {options.model}")
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    return options


def start(options: argparse.Namespace) -> Any:
    """Load the model and listen. Raises ModuleNotFoundError without the wheel, RuntimeError when llama.cpp gives up."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx or 2048 * options.parallel
    # pooling asserts that a batch divides evenly among the slots
    params.n_batch = params.n_ubatch = max(1, BATCH // options.parallel) * options.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_threads_http = options.parallel + 6  # a waiting request holds a thread; probes must always find one
    params.endpoint_slots = params.endpoint_metrics = params.use_jinja = True
    params.warmup = params.fit_params = False
    # one process answers chat, completions and embeddings
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if options.api_key_file is not None:
        params.api_keys = [options.api_key_file.read_text().strip()]
    return xllamacpp.Server(params)


def leave(code: int, message: str = "") -> NoReturn:
    """End the process at once: interpreter shutdown would wait for llama.cpp's threads."""
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
