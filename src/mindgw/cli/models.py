"""`mindgw models`: what the GPU boxes serve, and for whom."""

import typer

from mindgw.cli import model_access
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import api

app = noun("Models: what the GPU boxes serve, and for whom.")
app.add_typer(model_access.app, name="access")

COLUMNS = (
    Column("ID", lambda model: str(model.get("id", ""))),
    Column("WORKERS", lambda model: str(len(model["workers"])) if isinstance(model.get("workers"), list) else str(model.get("workers", 0))),
    Column("SLOTS", lambda model: f"{model.get('used', 0)}/{model.get('slots', 0)}"),
    Column("CONTEXT", lambda model: str(model.get("context") or "–")),
    Column("KINDS", lambda model: ", ".join(model.get("kinds") or []) or "–"),
)


@app.command("list")
def list_models(ctx: typer.Context) -> None:
    """List the models."""
    run = invocation(ctx)
    run.render.items(run.server().items(api.list_models()), COLUMNS, name="id")
