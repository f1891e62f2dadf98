"""Commands to the agents of workers, followed until they are over; and waiting for workers."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mindgw import clock
from mindgw.cli.invocation import Invocation
from mindgw.cli.render import Item
from mindgw.client import api
from mindgw.client.errors import CheckFailed, ClientError, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.transport import Server

#: Seconds between looks.
LOOK = 0.5


def carry_out(run: Invocation, worker: str, verb: str, argument: str = "") -> Item:
    """Has the agent of a worker do something and follows it to its end. Raises ClientError when it fails."""
    server = run.server()
    told: Item = server.call(api.order_worker(worker, verb, argument))
    said = ""
    while told["state"] == "running":
        time.sleep(LOOK)
        told = server.call(api.show_order(worker, told["id"]))
        shown = _shown(told)
        run.render.progress(shown)
        said = told["note"] or said
    if told["state"] != "done":
        raise ClientError(f"{worker}: {told['note'] or said or told['error']}", code=str(told["error"] or "failed"))
    return told


def follow_log(run: Invocation, worker: str, number: int, interval: float) -> Iterator[str]:
    """The last lines of an agent's log, then those that come, until Ctrl-C; over its restarts, and while it is away. Raises UsageProblem
    where the agent is too old for that, and ClientError."""
    told = carry_out(run, worker, "logs", str(number))
    yield from told["lines"]
    if told["lines"] and not told.get("line"):
        raise UsageProblem(f"the agent of {worker} is older than following", hint="upgrade it, or leave out -f")
    line, away = told.get("line") or 0, ""
    while True:
        time.sleep(interval)
        try:
            told = carry_out(run, worker, "logs", f"+{line}")
        except ClientError as wrong:
            if wrong.code not in _PASSING:
                raise
            if wrong.code not in (away, _BUSY):
                run.render.warn(f"{wrong.message.rstrip('.')}; waiting for it")
                away = wrong.code
            continue
        line, away = told["line"], ""
        yield from told["lines"]


#: Why an agent does not answer that may answer later; and what it says while it answers somebody else.
_BUSY = "worker_busy"
_PASSING = frozenset({_BUSY, "busy", "worker_offline", "worker_lost", "no_answer"})


def _shown(told: Item) -> str:
    part: float | None = told.get("part")
    return f"{told['worker']}: {told['note']}" + (f" {100 * part:.0f} %" if part is not None else "")


def await_worker(run: Invocation, name: str, true: Callable[[dict[str, Any]], bool], what: str, within: int) -> Item:
    """The worker once it is so. Raises CheckFailed after that many seconds."""
    server: Server = run.server()
    end = clock.monotonic() + within
    while True:
        found: dict[str, Any] = server.call(api.show_worker(name))
        if true(found):
            return found
        if clock.monotonic() >= end:
            why = f" ({found['reason']})" if found.get("reason") else ""
            raise CheckFailed(f"worker {name} is {found['state']}{why} and not {what} after {within} s")
        run.render.progress(f"{name} is {found['state']}, {found.get('used') or 0} requests run")
        time.sleep(min(LOOK, max(0.0, end - clock.monotonic())))


def is_ready(worker: dict[str, Any]) -> bool:
    return bool(worker.get("state") == "ready")


def is_drained(worker: dict[str, Any]) -> bool:
    """It has nothing to do and is given nothing."""
    return not worker.get("used") and worker.get("state") in {"draining", "offline"}
