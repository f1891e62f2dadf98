"""`mindgw workers`: the GPU boxes."""

from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client.errors import UsageProblem

app = noun("Workers: the GPU boxes, as the server sees them.")


def _engine(worker: Item) -> str:
    engine = worker.get("engine") or {}
    return " ".join(str(engine[part]) for part in ("kind", "version") if engine.get(part)) or "–"


def _gpus(worker: Item) -> str:
    gpus: list[dict[str, Any]] = worker.get("gpus") or []
    return ", ".join(str(gpu.get("name", "?")) for gpu in gpus) or "–"


def _rtt(worker: Item) -> str:
    rtt = worker.get("rtt_ms")
    return "–" if rtt is None else f"{rtt:.0f}ms" if rtt >= 1 else f"{rtt:.1f}ms"


def _slots(worker: Item) -> str:
    return f"{worker.get('used', 0)}/{worker['slots']}" if worker.get("slots") else "–"


def _tags(worker: Item) -> str:
    return " ".join(f"{name}={value}" for name, value in (worker.get("tags") or {}).items()) or "–"


COLUMNS = (
    Column("NAME", lambda worker: str(worker.get("name", ""))),
    Column("STATE", lambda worker: str(worker.get("state", "–"))),
    Column("ENGINE", _engine),
    Column("MODELS", lambda worker: str(len(worker.get("models") or []))),
    Column("SLOTS", _slots),
    Column("GPU", _gpus),
    Column("RTT", _rtt),
    Column("LAST SEEN", lambda worker: ago(worker.get("last_seen"), clock.utcnow())),
)
_DETAILS = (
    Column("NAME", COLUMNS[0].value),
    Column("ID", lambda worker: str(worker.get("id", ""))),
    *(column for column in COLUMNS[1:] if column.title != "MODELS"),
    Column("ADDRESS", lambda worker: str((worker.get("engine") or {}).get("url") or "–")),
    Column("TAGS", _tags),
    Column("MODELS", lambda worker: ", ".join(str(model.get("id")) for model in worker.get("models") or []) or "–"),
)


@app.command("list")
def list_workers(ctx: typer.Context) -> None:
    """List the workers."""
    run = invocation(ctx)
    workers = run.server().items(api.list_workers())
    run.render.items(workers, COLUMNS, name="name")
    away = [str(worker.get("name")) for worker in workers if worker.get("state") == "offline"]
    if away and run.options.output == "table" and not run.options.quiet:
        run.render.warn(f"offline: {', '.join(away)}. On the box, `mindgw agent status` says why")


@app.command("show")
def show(ctx: typer.Context, worker: Annotated[str, typer.Argument(metavar="WORKER", help="Name or id.")]) -> None:
    """Show one worker."""
    run = invocation(ctx)
    run.render.item(run.server().call(api.show_worker(worker)), _DETAILS, name="name")


@app.command("remove")
def remove(
    ctx: typer.Context,
    workers: Annotated[list[str], typer.Argument(metavar="WORKER...", help="Names or ids.")],
    confirmed: Annotated[str, typer.Option("--confirm", metavar="NAME", help="The name again, instead of being asked for it.")] = "",
) -> None:
    """Remove workers for good: the agent's key is revoked and its tunnel closed."""
    run = invocation(ctx)
    server = run.server()
    for name in workers:
        found = server.call(api.show_worker(name))
        if confirmed != found["name"]:
            _type_the_name(run, found)
        gone = server.call(api.remove_worker(found["id"]))
        run.render.done(
            gone, f"Worker {found['name']} is removed. To have it back, it must join again: mindgw join-tokens create", name="name"
        )


@app.command("tags")
def change_tags(
    ctx: typer.Context,
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Name or id.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[TAG=VALUE|TAG-]...", help="To set, or to take away.")] = None,
) -> None:
    """Show or change the tags that routes and residency go by: mindgw workers tags gpu-lab1 zone=lab pool-"""
    run = invocation(ctx)
    server = run.server()
    before = server.call(api.show_worker(worker))
    if not changes:
        run.render.item(before, (_DETAILS[0], Column("TAGS", _tags)), name="name")
        return
    wanted = dict(map(_tag, changes))
    done = server.call(api.tag_worker(before["id"], wanted, version=before.get("version")))
    had = before.get("tags") or {}
    undo = " ".join(f"{name}={had[name]}" if name in had else f"{name}-" for name in wanted)
    run.render.done(done, f"Worker {done['name']} has {_tags(done)}. Undo: mindgw workers tags {done['name']} {undo}", name="name")


def _tag(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if equals and name and value:
        return name, value
    if text.endswith("-") and len(text) > 1 and not equals:
        return text[:-1], None
    raise UsageProblem(f"{text!r} is no tag", hint="zone=lab sets one, zone- takes it away")


def _type_the_name(run: Invocation, worker: Item) -> None:
    """Losing a box in use is severe enough to ask for more than one letter."""
    if run.options.yes:
        return
    name = str(worker["name"])
    busy = f"{worker.get('used') or 0} requests in flight"
    run.require_person("--yes required when not running interactively", hint=f"it removes {name} ({busy}); add --yes or --confirm={name}")
    typed = run.render.ask(f"This removes worker {name} ({busy}). Type its name:") or ""
    if typed != name:
        raise UsageProblem(f"{typed!r} is not {name!r}: nothing was removed", hint=f"type the name as it stands, or say --confirm {name}")
