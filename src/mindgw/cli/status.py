"""`mindgw status`: one look at a server."""

import typer

from mindgw.cli.durations import span
from mindgw.cli.groups import verb
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = verb()

COLUMNS = (
    Column("READY", lambda status: "yes" if status.get("ready") else "no"),
    Column("VERSION", lambda status: str(status.get("version", "–"))),
    Column("WORKERS", lambda status: f"{status['workers']['ready']} of {status['workers']['total']} ready"),
    Column("MODELS", lambda status: str(status.get("models", 0))),
    Column("QUEUE", lambda status: f"{status['queue']['waiting']} waiting, {status['queue']['running']} running"),
    Column("UP", lambda status: span(status.get("uptime_s", 0))),
)


def ailments(status: Item) -> list[str]:
    """What keeps the server from answering requests; empty when it is well."""
    found = []
    if not status.get("ready"):
        found.append("the server is not ready: its log says why")
    if not status["workers"]["ready"]:
        away = f"none of {status['workers']['total']} workers is ready" if status["workers"]["total"] else "no worker has joined"
        found.append(f"{away}: `mindgw workers list`, `mindgw join-tokens create`")
    return found


@app.command()
def show(ctx: typer.Context) -> int:
    """Is it up, what does it serve? Ends with 3 when it cannot answer requests."""
    run = invocation(ctx)
    server = run.server()
    status = server.call(api.show_status())
    run.render.item({**status, "url": server.url}, COLUMNS, name="url")
    found = ailments(status)
    for ailment in found:
        run.render.warn(ailment)
    return 3 if found else 0
