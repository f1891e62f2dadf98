"""`mindgw join-tokens`: what lets a GPU box in."""

from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago, ahead, seconds
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import api

app = noun("Join tokens: what lets a GPU box in.")

COLUMNS = (
    Column("ID", lambda token: str(token.get("id", ""))),
    Column("STATE", lambda token: str(token.get("state", "–"))),
    Column("USES", lambda token: f"{token.get('uses', 0)}/{token.get('max_uses', 1)}"),
    Column("NAME", lambda token: str(token.get("name") or "any")),
    Column("CREATED", lambda token: ago(token.get("created_at"), clock.utcnow())),
    Column("EXPIRES", lambda token: ahead(token.get("expires_at"), clock.utcnow())),
)


@app.command("create")
def create(
    ctx: typer.Context,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it is good: 15m, 1h, 7d.")] = "1h",
    uses: Annotated[int, typer.Option("--uses", "--max-uses", min=1, help="How many boxes may join with it.")] = 1,
    name: Annotated[str | None, typer.Option("--name", help="The only worker name that it is good for.")] = None,
    public_pki: Annotated[
        bool, typer.Option("--public-pki", help="The server is behind a public certificate: boxes check that, not its own CA.")
    ] = False,
) -> None:
    """Make a token. Whoever joins with it may serve at once: mindgw agent join TOKEN"""
    run = invocation(ctx)
    made = run.server().call(api.create_join_token(ttl_seconds=seconds(ttl), max_uses=uses, name=name, public_pki=public_pki))
    run.render.created(made, secret="token", name="id")
    times = "once" if uses == 1 else f"{uses} times"
    run.render.success(f"Join token {made['id']}, good {times}, expires {ahead(made['expires_at'], clock.utcnow())}")
    run.render.note("  on the GPU box: mindgw agent join TOKEN")


@app.command("list")
def list_tokens(ctx: typer.Context) -> None:
    """List the tokens; never their secrets."""
    run = invocation(ctx)
    run.render.items(run.server().items(api.list_join_tokens()), COLUMNS, name="id")


@app.command("revoke")
def revoke(ctx: typer.Context, tokens: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of tokens.")]) -> None:
    """Revoke tokens: nobody joins with them any more. Boxes that have joined stay."""
    run = invocation(ctx)
    server = run.server()
    for token in tokens:
        run.confirm(f"Revoke join token {token}?")
        gone = server.call(api.revoke_join_token(token))
        run.render.done(gone, f"Join token {gone['id']} is revoked", name="id")
