"""`mindgw orgs`: organisations that share a server."""

import re
from shlex import quote
from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column, Item
from mindgw.client import orgs
from mindgw.client.errors import UsageProblem

app = noun("Organisations that share a server: none sees anything of another.")

OrgName = Annotated[str, typer.Argument(metavar="ORG", help="Its name or id.")]
Label = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Kept with it: region=eu. Nothing keeps to it yet.")]


def _labels(org: Item) -> str:
    found = org.get("labels")
    return " ".join(f"{name}={value}" for name, value in found.items()) if isinstance(found, dict) and found else "–"


COLUMNS = (
    Column("NAME", lambda org: str(org.get("name", ""))),
    Column("STATE", lambda org: str(org.get("state", "–"))),
    Column("LABELS", _labels),
    Column("CREATED", lambda org: ago(org.get("created_at"), clock.utcnow())),
    Column("ID", lambda org: str(org.get("id", ""))),
)


@app.command("list")
def list_orgs(ctx: typer.Context) -> None:
    """List the organisations; the first one runs the server."""
    run = invocation(ctx)
    run.render.items(run.server().items(orgs.listing()), COLUMNS, name="name")


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is called.")],
    admin: Annotated[str | None, typer.Option("--admin", metavar="EMAIL", help="Who is invited as its first administrator.")] = None,
    label: Label = None,
) -> None:
    """Make an organisation; the invitation is printed this once: mindgw orgs create acme --admin boss@acme.example --label region=eu"""
    run = invocation(ctx)
    made = run.server().call(orgs.create(name, labels=_read(label), admin=admin))
    if made.get("invitation"):
        run.render.created(made, secret="invitation", name="name")
    else:
        run.render.done(made, f"Organisation {made['name']} ({made['id']}) made", name="name")


@app.command("set")
def change(
    ctx: typer.Context,
    org: OrgName,
    label: Label = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Without any labels.")] = False,
    admin: Annotated[str | None, typer.Option("--admin", metavar="EMAIL", help="Who is invited as its administrator, too.")] = None,
) -> None:
    """Give an organisation other labels, in place of those that it has, or another administrator, whose invitation is printed this once:
    mindgw orgs set acme --admin boss@acme.example"""
    run = invocation(ctx)
    if not label and not no_labels and admin is None:
        raise UsageProblem("what is to be different?", hint="--label region=eu, --no-labels, or --admin EMAIL")
    changes = {"labels": _read(label)} if label or no_labels else {}
    done = run.server().call(orgs.change(org, changes | ({"admin": admin} if admin is not None else {})))
    if done.get("invitation"):
        run.render.created(done, secret="invitation", name="name")
    else:
        run.render.done(done, f"Organisation {done['name']} has {_labels(done) if done.get('labels') else 'no labels'}", name="name")


@app.command("disable")
def disable(ctx: typer.Context, org: OrgName) -> None:
    """Shut an organisation out: nobody of it is let in, and what it has running ends: mindgw orgs disable acme"""
    run = invocation(ctx)
    run.confirm(f"Shut out everybody of {org}?")
    done = run.server().call(orgs.change(org, {"state": "disabled"}))
    run.render.done(done, f"Organisation {done['name']} is disabled. Undo: mindgw orgs enable {quote(done['name'])}", name="name")


@app.command("enable")
def enable(ctx: typer.Context, org: OrgName) -> None:
    """Let an organisation in again, with the keys of before."""
    run = invocation(ctx)
    done = run.server().call(orgs.change(org, {"state": "active"}))
    run.render.done(done, f"Organisation {done['name']} is active", name="name")


def _read(texts: list[str] | None) -> dict[str, str]:
    wrong = [text for text in texts or () if not re.fullmatch(r"[^=]+=.*", text)]
    if wrong:
        raise UsageProblem(f"{wrong[0]!r} is no label", hint="write it as NAME=VALUE")
    return dict(text.split("=", 1) for text in texts or ())
