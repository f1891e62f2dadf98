"""`mindgw models`: what the GPU boxes serve, and for whom."""

from typing import Annotated

import typer

from mindgw.cli import errands, model_access
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


Model = Annotated[str, typer.Argument(metavar="MODEL", help="As the engine calls it.")]
Worker = Annotated[str, typer.Option("--worker", metavar="WORKER", help="Name or id of the worker.")]


@app.command("load")
def load(ctx: typer.Context, model: Model, worker: Worker) -> None:
    """Load a model that a worker has, to stay: mindgw models load llama3:8b --worker gpu-1. Ollama and llama.cpp in router mode can."""
    _change(ctx, "load", model, worker)


@app.command("unload")
def unload(ctx: typer.Context, model: Model, worker: Worker) -> None:
    """Take a model out of a worker's memory."""
    _change(ctx, "unload", model, worker)


@app.command("pull")
def pull(ctx: typer.Context, model: Model, worker: Worker) -> None:
    """Have a worker fetch a model. Ollama can, where the owner of the box allows it: mindgw agent join --allow-pull"""
    _change(ctx, "pull", model, worker)


def _change(ctx: typer.Context, verb: str, model: str, worker: str) -> None:
    run = invocation(ctx)
    told = errands.carry_out(run, worker, verb, model)
    run.render.done(told, f"Worker {told['worker']}: {told['note']}.", name="worker")
