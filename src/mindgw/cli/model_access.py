"""`mindgw models access`: which models are for whom."""

from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column
from mindgw.cli.roles import NO
from mindgw.client import access

app = noun("Which models are for whom. Who is allowed some may use no others; what is denied is denied, whatever allows it.")

_SUBJECT = "role:NAME, team:NAME, user:EMAIL or key:ID."
Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help=_SUBJECT)]
Pattern = Annotated[str, typer.Argument(metavar="PATTERN", help="Name of a model; * stands for any characters, ? for one.")]

COLUMNS = (
    Column("ID", lambda rule: str(rule.get("id", ""))),
    Column("WHO", lambda rule: str(rule.get("subject", ""))),
    Column("EFFECT", lambda rule: str(rule.get("effect", ""))),
    Column("MODELS", lambda rule: str(rule.get("pattern", ""))),
    Column("MADE", lambda rule: ago(rule.get("created_at"), clock.utcnow())),
)


@app.command("list")
def list_rules(
    ctx: typer.Context, subject: Annotated[str | None, typer.Option("--for", metavar="SUBJECT", help=f"Only those about {_SUBJECT}")] = None
) -> None:
    """List the rules."""
    run = invocation(ctx)
    run.render.items(run.server().items(access.list_rules(_meant(subject) if subject else None)), COLUMNS, name="id")


@app.command("allow")
def allow(ctx: typer.Context, subject: Subject, pattern: Pattern) -> None:
    """Allow models, and with that no others: mindgw models access allow team:nlp 'llama-*'"""
    _add(invocation(ctx), subject, "allow", pattern)


@app.command("deny")
def deny(ctx: typer.Context, subject: Subject, pattern: Pattern) -> None:
    """Deny models: mindgw models access deny role:user '*-70b'"""
    _add(invocation(ctx), subject, "deny", pattern)


@app.command("remove")
def remove(ctx: typer.Context, rules: Annotated[list[str], typer.Argument(metavar="RULE...", help="Ids, as `list` shows them.")]) -> None:
    """Take rules away."""
    run = invocation(ctx)
    run.confirm(f"Take {len(rules)} rule{'s' if len(rules) > 1 else ''} away?")
    for rule in rules:
        gone = run.server().call(access.remove_rule(rule))
        run.render.done(gone, f"{gone['subject']}: {gone['effect']} {gone['pattern']} is gone", name="id")


@app.command("can")
def can(
    ctx: typer.Context,
    user: Annotated[str, typer.Argument(metavar="USER", help="E-mail address or id.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One of its names.")],
) -> None:
    """Ask whether somebody may use a model, and which rule says so. Exit code 3: they may not."""
    run = invocation(ctx)
    said = run.server().call(access.can_use(user, model))
    if run.options.output == "json":
        run.render.item(said, COLUMNS, name="allowed")
    else:
        run.render.datum("yes" if said["allowed"] else "no")
        rule = said.get("rule")
        named = f": {rule['id']} ({rule['subject']} {rule['effect']} {rule['pattern']})" if rule else ""
        led = f"; by that name: {', '.join(said['models'])}" if said.get("models") else ""
        run.render.note(f"{said['reason']}{named}{led}")
    if not said["allowed"]:
        raise typer.Exit(NO)


def _add(run: Invocation, subject: str, effect: str, pattern: str) -> None:
    made = run.server().call(access.add_rule(_meant(subject), effect, pattern))
    told = f"{made['subject']}: {effect} {made['pattern']}. Undo: mindgw models access remove {made['id']}"
    run.render.done(made, told, name="id")


def _meant(subject: str) -> str:
    """A subject as it may stand in an address: of a key that was pasted whole, its id alone."""
    kind, colon, name = subject.partition(":")
    return f"key:{public(name)}" if colon and kind == "key" else subject
