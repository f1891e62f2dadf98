"""What the running agent says of itself, in a file, for `mindgw agent status` on the same machine."""

import os
from typing import Literal

import msgspec

from mindgw_agent import clock
from mindgw_agent.settings import StateDir
from mindgw_agent.wire import EngineReport

#: connecting: on the way to a server, or waiting to try again; ready: carries requests; draining: takes no more;
#: offline: no process serves; removed, locked, replaced: the server said so to the last one that did, and it ended.
Tunnel = Literal["connecting", "ready", "draining", "offline", "removed", "locked", "replaced"]
#: The server's last word -> what the tunnel is then.
FINAL: dict[str, Tunnel] = {"revoked": "removed", "locked": "locked", "replaced": "replaced"}


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine, as it was last seen."""

    kind: str = ""
    version: str = ""
    url: str = ""
    healthy: bool = False
    error: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the agent."""

    agent_id: str = ""
    name: str = ""
    tunnel: Tunnel = "offline"
    #: Root URL of the server of the tunnel, or of the last attempt.
    server: str = ""
    #: Since when the tunnel is ready, RFC 3339; None while it is not.
    since: str | None = None
    #: Round trip to the server in milliseconds; None before it was measured.
    rtt_ms: float | None = None
    #: The first engine, and all of them.
    engine: Engine = Engine()
    engines: list[Engine] = []
    models: list[str] = []
    #: Requests at a time, and requests now.
    slots: int = 0
    #: What the server's operator says of this worker: active, pending, draining or quarantined; empty while that is not known.
    standing: str = ""
    #: Until when the owner of the box wants it for other things, RFC 3339; None: it takes requests.
    paused_until: str | None = None
    running: int = 0
    #: Receipts that the server has not acknowledged.
    receipts: int = 0
    #: What last went wrong, empty while nothing did.
    error: str = ""
    #: What to do about it, where something can be done.
    hint: str = ""
    pid: int = 0
    #: When this was written, RFC 3339.
    updated_at: str = ""

    @property
    def is_up(self) -> bool:
        """The tunnel carries requests and the engine takes them."""
        return self.tunnel in ("ready", "draining") and any(engine.healthy for engine in self.engines or [self.engine])


def engine_of(report: EngineReport) -> Engine:
    return Engine(kind=report.kind, version=report.version, url=report.url, healthy=report.healthy, error=report.error)


def write(state: StateDir, status: Status) -> None:
    """Replace the file; it needs not survive a power cut. Raises `BadState`."""
    stamped = msgspec.structs.replace(status, pid=os.getpid(), updated_at=clock.moment())
    state.write(state.status_file, msgspec.json.encode(stamped) + b"\n", durable=False)


def read(state: StateDir) -> Status:
    """The last words of the process that serves from this directory; "offline" when there is none and no server sent it away.

    Raises `BadState`.
    """
    settings = state.load()
    blank = Status(agent_id=settings.agent_id, name=settings.name, server=settings.servers[0]) if settings else Status()
    try:
        found = msgspec.json.decode(state.status_file.read_bytes(), type=Status)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        found = blank
    is_over = found.tunnel == "offline" or found.tunnel in FINAL.values()
    if state.is_locked():
        return msgspec.structs.replace(found, tunnel="connecting", error="", hint="") if is_over else found
    tunnel = found.tunnel if is_over else "offline"
    return msgspec.structs.replace(found, tunnel=tunnel, since=None, rtt_ms=None, running=0, pid=0)
