"""`mindgw rates`: how often people, teams and organisations may ask."""

from shlex import quote
from typing import Annotated

import typer

from mindgw.cli import bounds
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import keys as client
from mindgw.client.errors import Missing, UsageProblem

app = noun("Rates: how often a person, a team, an organisation may ask; keys have theirs with `keys update`.")

_KINDS = "user:EMAIL, team:NAME or org:NAME."
ScopeName = Annotated[str, typer.Argument(metavar="SCOPE", help=_KINDS)]


def _number(title: str, name: str) -> Column:
    return Column(title, lambda rate: f"{rate[name]:,}" if rate.get(name) else "–")


COLUMNS = (
    Column("SCOPE", lambda rate: str(rate.get("scope", ""))),
    _number("REQUESTS/MIN", "rpm"),
    _number("TOKENS/MIN", "tpm"),
    _number("AT ONCE", "concurrency"),
)


@app.command("set")
def set_rate(
    ctx: typer.Context, scope: ScopeName, rpm: bounds.Rpm = None, tpm: bounds.Tpm = None, concurrency: bounds.Concurrency = None
) -> None:
    """Set how often somebody may ask, from now on: mindgw rates set team:nlp --rpm 600 --tpm 1M"""
    run = invocation(ctx)
    rate = bounds.rates(rpm, tpm, concurrency)
    if not rate:
        raise UsageProblem("what is the rate?", hint="--rpm 600, --tpm 1M, --concurrency 8, or several of them")
    done = run.server().call(client.set_rate(scope, rate))
    told = f"{done['scope']} may ask: {bounds.rate_shown(done)}. Take it away: mindgw rates clear {quote(done['scope'])}"
    run.render.done(done, told, name="scope")


@app.command("list")
def list_rates(ctx: typer.Context) -> None:
    """List the rates."""
    run = invocation(ctx)
    run.render.items(run.server().items(client.list_rates()), COLUMNS, name="scope")


@app.command("show")
def show(ctx: typer.Context, scope: ScopeName) -> None:
    """Show the rate of one scope."""
    run = invocation(ctx)
    found = run.server().items(client.list_rates(scope))
    if not found:
        raise Missing(f"there is no rate for {scope}", hint=f"mindgw rates set {quote(scope)} --rpm 600")
    run.render.item(found[0], COLUMNS, name="scope")


@app.command("clear")
def clear(ctx: typer.Context, scope: ScopeName) -> None:
    """Take a rate away: mindgw rates clear team:nlp"""
    run = invocation(ctx)
    run.confirm(f"Let {scope} ask as often as it likes?")
    gone = run.server().call(client.clear_rate(scope))
    run.render.done(gone, f"{gone['scope']} has no rate any more; it was {bounds.rate_shown(gone)}", name="scope")
