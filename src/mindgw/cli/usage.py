"""`mindgw usage`: what was used, and what it cost."""

from typing import Annotated

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = noun("Usage: how many tokens were used, by whom, and what they cost.")


def _number(title: str, name: str) -> Column:
    return Column(title, lambda item: f"{item.get(name) or 0:,}")


def _columns(by: str) -> tuple[Column, ...]:
    return (
        Column(by.upper(), _name),
        _number("REQUESTS", "requests"),
        _number("TOKENS IN", "tokens_in"),
        _number("TOKENS OUT", "tokens_out"),
        _number("CACHED", "tokens_cached"),
        Column("COST USD", lambda item: str(item.get("cost_usd", "–"))),
    )


def _name(item: Item) -> str:
    return str(item.get("name") or item.get("id") or "–")


@app.command("summary")
def summary(
    ctx: typer.Context,
    by: Annotated[str, typer.Option("--by", metavar="key|user|team|org|model|day|worker", help="What each line is about.")] = "key",
    since: Annotated[str, typer.Option("--since", metavar="DAY|7d", help="First UTC day, or how many until today; 30d.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="DAY", help="Last UTC day; today.")] = "",
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="Of this key alone: its id or name.")] = "",
    team: Annotated[str, typer.Option("--team", metavar="TEAM", help="Of this team alone.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="EMAIL", help="Of this person alone.")] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Of this model alone.")] = "",
) -> None:
    """Sum up what was used: mindgw usage summary --by team --since 2026-11-01 --json"""
    run = invocation(ctx)
    asked = api.usage(by, since=since, until=until, key=public(key), team=team, user=user, model=model)
    found = run.server().call(asked)
    items = found["items"]
    if run.options.output == "json":
        run.render.item(found, (), name="by")
    elif run.options.output == "name" or run.options.quiet or not items:
        run.render.items(items, _columns(by), name="id")
    else:
        run.render.items([*items, {**found["total"], "name": "TOTAL"}], _columns(by), name="id")
        run.render.note(f"from {found.get('since')} to {found.get('until')}, days of UTC")
