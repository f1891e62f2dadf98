"""`mindgw teams`: who shares limits."""

from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import orgs

app = noun("Teams: their keys share limits, and roles may hold in one of them alone.")

COLUMNS = (
    Column("NAME", lambda team: str(team.get("name", ""))),
    Column("CREATED", lambda team: ago(team.get("created_at"), clock.utcnow())),
    Column("ID", lambda team: str(team.get("id", ""))),
)


@app.command("list")
def list_teams(ctx: typer.Context) -> None:
    """List the teams."""
    run = invocation(ctx)
    run.render.items(run.server().items(orgs.teams()), COLUMNS, name="name")


@app.command("create")
def create(ctx: typer.Context, name: Annotated[str, typer.Argument(help="What it is called.")]) -> None:
    """Make a team; `mindgw keys create --team` makes one, too: mindgw teams create nlp"""
    run = invocation(ctx)
    made = run.server().call(orgs.create_team(name))
    run.render.done(made, f"Team {made['name']} ({made['id']}) made", name="name")
