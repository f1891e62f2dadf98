"""`mindgw keys`: who may use the gateway."""

import re
from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = noun("API keys: who may use the gateway.")

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Id or name of the key.")]


def _owner(key: Item) -> str:
    return " ".join(str(part) for part in (key.get("team"), key.get("user")) if part) or "–"


COLUMNS = (
    Column("ID", lambda key: str(key.get("id", ""))),
    Column("NAME", lambda key: str(key.get("name", ""))),
    Column("OWNER", _owner),
    Column("ROLE", lambda key: " ".join((str(key.get("role") or "–"), *(["proxy"] if key.get("trusted_proxy") else [])))),
    Column("STATE", lambda key: str(key.get("state", "–"))),
    Column("CREATED", lambda key: ago(key.get("created_at"), clock.utcnow())),
    Column("LAST USED", lambda key: ago(key.get("last_used_at"), clock.utcnow())),
)
_DETAILS = (
    *COLUMNS,
    Column("PRIORITY", lambda key: str(key.get("priority") or "–")),
    Column("KEY", lambda key: str(key.get("masked", "–"))),
)


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    team: Annotated[str | None, typer.Option("--team", help="Team that it belongs to; made when missing.")] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="EMAIL", help="Person that it belongs to; made when missing.")] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", metavar="high|normal|batch|sheddable", help="Highest class of its requests; normal.")
    ] = None,
    trusted_proxy: Annotated[bool, typer.Option("--trusted-proxy", help="Its requests may name the end user.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="May manage the gateway, too.")] = False,
) -> None:
    """Make a key. It is printed this once: mindgw keys create ci-bot -q > key"""
    run = invocation(ctx)
    request = api.create_key(name, team=team, user=user, priority=priority, trusted_proxy=trusted_proxy, role="admin" if admin else None)
    made = run.server().call(request)
    run.render.created(made, secret="key", name="id")
    run.render.success(f"Key {made['name']} ({made['id']}) made; it is not shown again. Undo: mindgw keys revoke {made['id']}")


@app.command("list")
def list_keys(ctx: typer.Context) -> None:
    """List the keys."""
    run = invocation(ctx)
    run.render.items(run.server().items(api.list_keys()), COLUMNS, name="id")


@app.command("show")
def show(ctx: typer.Context, key: KeyName) -> None:
    """Show one key; never its secret."""
    run = invocation(ctx)
    run.render.item(run.server().call(api.show_key(public(key))), _DETAILS, name="id")


@app.command("revoke")
def revoke(ctx: typer.Context, keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Ids or names.")]) -> None:
    """Revoke keys: requests with them are refused at once."""
    run = invocation(ctx)
    server = run.server()
    for name in keys:
        found = server.call(api.show_key(public(name)))
        used = f"last used {ago(found['last_used_at'], clock.utcnow())}" if found.get("last_used_at") else "never used"
        run.confirm(f"Revoke key {found['name']} ({found['id']}), {used}?")
        gone = server.call(api.revoke_key(found["id"]))
        run.render.done(gone, f"Key {found['name']} ({found['id']}) is revoked", name="id")


def public(name: str) -> str:
    """The id of a whole key that was pasted, for a secret has no place in an address; anything else as it is."""
    found = re.match(r"mgw_([0-9A-Za-z]{10})(_|…|\Z)", name)
    return found[1] if found else name
