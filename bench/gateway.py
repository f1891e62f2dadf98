"""The product, as a script would run it: `mindgw init`, `serve` and `agent join`, each server in a folder of its own."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import stock
from bench.cores import AGENT, SERVER
from bench.meter import rss
from bench.processes import NotReady, Process, Processes, call, free_port, get
from bench.stock import Stock

#: What differs from the settings that it ships with: a model without a price would cost less to count.
SETTINGS = ("prices: '*=0.10/0.40'",)
#: A limit that is checked for each request and never reached.
LIMIT = "1000000M/month"


@dataclass(frozen=True, slots=True)
class Template:
    """A data directory that `mindgw init` made; servers run in copies of it."""

    folder: Path
    key: str
    token: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running server."""

    name: str
    process: Process
    port: int
    #: Valid there, may manage.
    key: str
    #: Lets one agent join.
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def template(processes: Processes) -> Template:
    folder = processes.folder / "template"
    made = json.loads(processes.run("mindgw", "init", "--data-dir", str(folder), "--port", str(free_port()), "--json"))
    return Template(folder, made["api_key"], made["join_token"])


def data_dir(processes: Processes, source: Template, name: str, lines: Sequence[str]) -> Path:
    """A copy of the template with these lines in its settings."""
    folder = processes.folder / name
    shutil.copytree(source.folder, folder)
    with (folder / "config.yaml").open("a", encoding="utf-8") as settings:
        settings.writelines(f"{line}\n" for line in (*SETTINGS, *lines))
    return folder


def begin(processes: Processes, source: Template, name: str, lines: Sequence[str] = (), *, profile: Path | None = None) -> Gateway:
    """Starts a server; it is not ready yet. With `profile` one that can tell there what it does: `bench.profiled`."""
    folder = processes.folder / name
    if not folder.exists():
        data_dir(processes, source, name, lines)
    port = free_port()
    program = ("mindgw",) if profile is None else ("bench.profiled", str(profile))
    process = processes.start(SERVER, name, *program, "serve", "--data-dir", str(folder), "--port", str(port))
    return Gateway(name, process, port, source.key, source.token)


def await_ready(processes: Processes, server: Gateway) -> None:
    """Raises NotReady with the server's last words when it ends instead."""
    processes.until(lambda: get(server.port, "/readyz")[0] == 200, f"the {server.name} is ready", server.process)


def join(processes: Processes, server: Gateway, name: str, engine: str, slots: int) -> Process:
    """Starts an agent in front of the engine; it has not joined yet."""
    words = ("--name", "bench", "--engine-url", engine, "--slots", str(slots), "--server", server.url)
    state = ("--state-dir", str(processes.folder / f"state-{name}"))
    return processes.start(AGENT, name, "mindgw", "agent", "join", server.token, *words, *state)


def await_joined(processes: Processes, server: Gateway, agent: Process) -> None:
    processes.until(lambda: _worker_is_ready(server), f"the {agent.name} has joined", agent, server.process)


def _worker_is_ready(server: Gateway) -> bool:
    status, body = get(server.port, "/api/v1/workers", server.key)
    return status == 200 and any(worker["state"] == "ready" for worker in json.loads(body)["items"])


def limited_key(server: Gateway) -> str:
    """A key whose requests stand under a hard limit."""
    made = managed(server, "POST", "/api/v1/keys", {"name": "limited"})
    limit = {"scope": f"key:{made['id']}", "tokens": [LIMIT], "usd": [], "on_exceed": "block"}
    managed(server, "PUT", "/api/v1/quotas", limit)
    return str(made["key"])


def managed(server: Gateway, method: str, path: str, body: Mapping[str, object]) -> dict[str, object]:
    """The answer of the management API. Raises NotReady for any that is none."""
    status, answer = call(server.port, method, path, server.key, body)
    if status not in (200, 201):
        raise NotReady(f"{method} {path}: status {status}: {answer[:500]!r}")
    found: dict[str, object] = json.loads(answer)
    return found


def stocked(processes: Processes, source: Template, name: str, members: int, keys: int, lines: Sequence[str]) -> tuple[Stock, Path]:
    """The data directory of a server that knows so many workers and keys, and the file that tells the fleet of them."""
    held = stock.fill(data_dir(processes, source, name, lines), members, keys)
    file = processes.folder / f"{name}.json"
    file.write_bytes(msgspec.json.encode(held))
    file.chmod(0o600)
    return held, file


def cold_start(processes: Processes, source: Template, rest: float) -> tuple[float, int]:
    """Seconds from the start of `mindgw serve` until it says that it is ready, and bytes of its memory `rest` seconds later."""
    began = time.perf_counter()
    server = begin(processes, source, "cold")
    try:
        await_ready(processes, server)
        seconds = time.perf_counter() - began
        time.sleep(rest)
        held = rss(server.process.child.pid)
    finally:
        processes.end(server.process)
    return seconds, held
