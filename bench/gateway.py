"""The product, as a script would run it: `mindgw init`, `serve` and `agent join`, in a folder of their own."""

import json
from dataclasses import dataclass

from bench.processes import Processes, free_port, get


@dataclass(frozen=True, slots=True)
class Gateway:
    #: Root URL of the server, and a key that is valid there.
    url: str
    key: str


def start(processes: Processes, engine: str, slots: int) -> Gateway:
    """A server with one agent in front of the engine, ready for `slots` requests at once. Raises NotReady."""
    port = free_port()
    data_dir = str(processes.folder / "data")
    made = json.loads(processes.run("mindgw", "init", "--data-dir", data_dir, "--port", str(port), "--json"))
    key, token = made["api_key"], made["join_token"]
    processes.start("server", "mindgw", "serve", "--data-dir", data_dir)
    processes.until(lambda: get(port, "/readyz")[0] == 200, "the server is ready")
    state_dir = str(processes.folder / "agent")
    join = ("mindgw", "agent", "join", token, "--name", "bench", "--engine-url", engine, "--slots", str(slots), "--state-dir", state_dir)
    processes.start("agent", *join)
    processes.until(lambda: _worker_is_ready(port, key), "the agent has joined")
    return Gateway(f"http://127.0.0.1:{port}", key)


def _worker_is_ready(port: int, key: str) -> bool:
    status, body = get(port, "/api/v1/workers", key)
    return status == 200 and any(worker["state"] == "ready" for worker in json.loads(body)["items"])
