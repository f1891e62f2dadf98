"""`mindgw version`: of this program, and of the server when asked."""

from typing import Annotated, Any

import typer

from mindgw import __version__
from mindgw.cli.groups import verb
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import api

app = verb()

COLUMNS = (
    Column("MINDGW", lambda versions: str(versions["version"])),
    Column("SERVER", lambda versions: str(versions["server"] or "–")),
)


@app.command()
def show(
    ctx: typer.Context, check: Annotated[bool, typer.Option("--check", help="Ask the server, too; warn when the two do not fit.")] = False
) -> None:
    """Print the version."""
    run = invocation(ctx)
    versions: dict[str, Any] = {"version": __version__, "server": None}
    if check:
        versions["server"] = run.server().call(api.show_version())["version"]
    run.render.item(versions, COLUMNS if check else COLUMNS[:1], name="version")
    if check and _minor(versions["server"]) != _minor(__version__):
        run.render.warn(f"this program is {__version__}, the server {versions['server']}: update the older one")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
