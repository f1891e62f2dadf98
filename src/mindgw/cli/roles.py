"""`mindgw roles`: who may do what."""

from shlex import quote
from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column, Item
from mindgw.client import access
from mindgw.client.errors import UsageProblem

app = noun("Roles: what people and their keys may do, and who has which.")

#: How a check that found a no ends.
NO = 3

RoleName = Annotated[str, typer.Argument(metavar="ROLE", help="Name of the role.")]
Email = Annotated[str, typer.Argument(metavar="USER", help="E-mail address or id.")]
Team = Annotated[str | None, typer.Option("--team", metavar="NAME", help="In this team alone.")]

COLUMNS = (
    Column("NAME", lambda role: str(role.get("name", ""))),
    Column("RANK", lambda role: str(role.get("rank", "–"))),
    Column("PERMISSIONS", lambda role: str(len(role.get("permissions") or []))),
    Column("MADE BY", lambda role: "the program" if role.get("built_in") else "somebody here"),
)
_HOLDERS = (
    Column("USER", lambda one: str(one.get("user", ""))),
    Column("WHERE", lambda one: f"team {one['team']}" if one.get("team") else "everywhere"),
    Column("SINCE", lambda one: ago(one.get("created_at"), clock.utcnow())),
)


def _together(role: Item) -> str:
    """Permissions by what they are about: keys read, create."""
    by: dict[str, list[str]] = {}
    for permission in role.get("permissions") or []:
        verb, _, resource = str(permission).partition(":")
        by.setdefault(resource, []).append(verb)
    return "; ".join(f"{resource} {', '.join(verbs)}" for resource, verbs in by.items()) or "none"


_DETAILS = (*COLUMNS[:2], Column("MAY", _together), COLUMNS[3])


@app.command("list")
def list_roles(ctx: typer.Context) -> None:
    """List the roles, the highest first."""
    run = invocation(ctx)
    run.render.items(run.server().items(access.list_roles()), COLUMNS, name="name")


@app.command("show")
def show(ctx: typer.Context, role: RoleName) -> None:
    """Show what a role permits, and who has it."""
    run = invocation(ctx)
    found = run.server().call(access.show_role(role))
    run.render.item(found, _DETAILS, name="name")
    if found["bindings"] and run.options.output == "table" and not run.options.quiet:
        run.render.items(found["bindings"], _HOLDERS, name="user")


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Small letters, digits and -.")],
    permissions: Annotated[list[str], typer.Option("--allow", metavar="VERB:RESOURCE", help="read:keys, *:queue, read:*; repeat it.")],
    rank: Annotated[int, typer.Option("--rank", metavar="1..99", help="A higher role may give a lower one. admin 100, operator 75.")],
) -> None:
    """Make a role: mindgw roles create auditor --allow 'read:*' --rank 30"""
    run = invocation(ctx)
    made = run.server().call(access.create_role(name, permissions, rank))
    run.render.done(made, f"Role {name} made. Give it: mindgw roles bind {quote(name)} EMAIL", name="name")


@app.command("remove")
def remove(ctx: typer.Context, role: RoleName) -> None:
    """Take a role away that nobody has."""
    run = invocation(ctx)
    server = run.server()
    found = server.call(access.show_role(role))
    run.confirm(f"Remove role {found['name']}?")
    gone = server.call(access.remove_role(role, version=found.get("version")))
    run.render.done(gone, f"Role {role} is gone", name="name")


@app.command("bind")
def bind(ctx: typer.Context, role: RoleName, user: Email, team: Team = None) -> None:
    """Give somebody a role: mindgw roles bind operator ada@example.org --team nlp"""
    run = invocation(ctx)
    done = run.server().call(access.bind_role(role, user, team=team))
    undo = f"mindgw roles unbind {quote(role)} {quote(done['user'])}" + (f" --team {quote(done['team'])}" if done.get("team") else "")
    run.render.done(done, f"{done['user']} is {role} {_where(done)}. Undo: {undo}", name="user")


@app.command("unbind")
def unbind(ctx: typer.Context, role: RoleName, user: Email, team: Team = None) -> None:
    """Take a role from somebody; who has no other one is a user then."""
    run = invocation(ctx)
    run.confirm(f"Take the role {role} from {user}?")
    gone = run.server().call(access.unbind_role(role, user, team=team))
    run.render.done(gone, f"{gone['user']} is {role} no longer {_where(gone)}", name="user")


@app.command("can")
def can(
    ctx: typer.Context,
    user: Email,
    verb: Annotated[str, typer.Argument(help="read, create, update, delete or use.")],
    resource: Annotated[str, typer.Argument(help="What it is done to, such as keys.")],
) -> None:
    """Ask whether somebody may do something: mindgw roles can ada@example.org create keys. Exit code 3: they may not."""
    if ":" in verb:
        raise UsageProblem("verb and resource are two words", hint="mindgw roles can ada@example.org create keys")
    run = invocation(ctx)
    said = run.server().call(access.can(user, verb, resource))
    if run.options.output == "json":
        run.render.item(said, _CAN, name="allowed")
    else:
        run.render.datum("yes" if said["allowed"] else "no")
        _explain(ctx, said)
    if not said["allowed"]:
        raise typer.Exit(NO)


_CAN = (Column("ALLOWED", lambda said: str(said.get("allowed"))),)


def _explain(ctx: typer.Context, said: Item) -> None:
    run, teams = invocation(ctx), ", ".join(said.get("teams") or [])
    if said["allowed"]:
        run.render.note(f"as {' and '.join(said.get('roles') or [])}")
    elif teams:
        run.render.note(f"but in the teams: {teams}")


def _where(binding: Item) -> str:
    return f"in team {binding['team']}" if binding.get("team") else "everywhere"
