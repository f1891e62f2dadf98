"""`mindgw quotas`: how much may be used, by whom."""

from collections.abc import Sequence
from shlex import quote
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ahead
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client.errors import Missing, UsageProblem

app = noun("Quotas: how much a key, a person, a team, an organisation may use, or may be used of a model.")

_KINDS = "key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME."
ScopeName = Annotated[str, typer.Argument(metavar="SCOPE", help=_KINDS)]
Unit = Annotated[str, typer.Option("--unit", metavar="tokens|usd", help="Limits of this unit alone.")]
Period = Annotated[str, typer.Option("--period", metavar="day|month|total", help="Limits for this period alone.")]


def _amount(name: str) -> Column:
    return Column(name.upper(), lambda quota: amount(quota, name))


def amount(quota: Item, name: str) -> str:
    """Tokens with their thousands apart; dollars as they came."""
    value = quota.get(name, 0)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _resets(quota: Item) -> str:
    return ahead(quota.get("resets_at"), clock.utcnow()) if quota.get("resets_at") else "never"


COLUMNS = (
    Column("SCOPE", lambda quota: str(quota.get("scope", ""))),
    Column("UNIT", lambda quota: str(quota.get("unit", "–"))),
    Column("WINDOW", lambda quota: str(quota.get("window", "–"))),
    *(_amount(name) for name in ("limit", "used", "reserved", "left")),
    Column("ON EXCEED", lambda quota: str(quota.get("on_exceed", "–"))),
    Column("RESETS", _resets),
)
_DETAILS = (
    *COLUMNS[1:3],
    Column("PERIOD", lambda quota: str(quota.get("period", "–"))),
    *(_amount(name) for name in ("limit", "used", "reserved", "left", "over", "forgiven")),
    *COLUMNS[7:],
    Column("VERSION", lambda quota: str(quota.get("version", "–"))),
)


@app.command("set")
def set_limits(
    ctx: typer.Context,
    scope: ScopeName,
    tokens: Annotated[list[str] | None, typer.Option("--tokens", metavar="N/PERIOD", help="5M/month, 100k/day, 1000/total.")] = None,
    usd: Annotated[list[str] | None, typer.Option("--usd", metavar="N/PERIOD", help="Dollars: 12.50/month.")] = None,
    on_exceed: Annotated[
        str, typer.Option("--on-exceed", metavar="block|soft|queue-low|alert|shadow", help="What then; block, or what it was.")
    ] = "",
) -> None:
    """Set limits from now on; what was used already counts: mindgw quotas set team:nlp --tokens 5M/month --usd 50/month"""
    run = invocation(ctx)
    if not tokens and not usd:
        raise UsageProblem("what is the limit?", hint="--tokens 5M/month, --usd 12.50/month, or both")
    done = run.server().call(api.set_quotas(_named(scope), tokens or [], usd or [], on_exceed))
    _done(run, done["items"], "may use {limit} {unit} {span}, then: {mode}. Take it away: {undo}")
    for warning in done.get("warnings") or []:
        run.render.warn(str(warning))


@app.command("list")
def list_limits(ctx: typer.Context, scope: Annotated[str, typer.Option("--scope", metavar="SCOPE", help=_KINDS)] = "") -> None:
    """List the limits, and how much of them is used."""
    run = invocation(ctx)
    _items(run, run.server().items(api.list_quotas(_named(scope))), COLUMNS)


@app.command("show")
def show(ctx: typer.Context, scope: ScopeName) -> None:
    """Show the limits of one scope."""
    run = invocation(ctx)
    _items(run, _found(run, scope), _DETAILS)


@app.command("reset")
def reset(ctx: typer.Context, scope: ScopeName, unit: Unit = "", period: Period = "") -> None:
    """Forgive what was used in the windows that it is now: mindgw quotas reset team:nlp --unit tokens --period month"""
    run = invocation(ctx)
    used = _told(_found(run, scope, unit, period), "used")
    _type_the_scope(run, scope, f"This forgives what {_named(scope)} has used: {used}.")
    _done(
        run, run.server().call(api.reset_quotas(_named(scope), unit=unit, period=period))["items"], "has all of {limit} {unit} {span} again"
    )


@app.command("clear")
def clear(ctx: typer.Context, scope: ScopeName, unit: Unit = "", period: Period = "") -> None:
    """Take limits away; what was used stays in the ledger: mindgw quotas clear team:nlp --period day"""
    run = invocation(ctx)
    limits = _told(_found(run, scope, unit, period), "limit")
    _type_the_scope(run, scope, f"This takes away the limits of {_named(scope)}: {limits}.")
    gone = run.server().call(api.clear_quotas(_named(scope), unit=unit, period=period))["items"]
    _done(run, gone, "has no limit of {unit} {span} any more. Undo: {redo}")


def _named(scope: str) -> str:
    """The scope; of a whole key that was pasted its id, for a secret has no place in an address."""
    kind, colon, name = scope.partition(":")
    return f"key:{public(name.strip())}" if colon and kind.strip() == "key" else public(scope)


def _found(run: Invocation, scope: str, unit: str = "", period: str = "") -> list[dict[str, Any]]:
    """Limits of a scope. Raises Missing when there are none of these."""
    found = run.server().items(api.list_quotas(_named(scope)))
    chosen = [quota for quota in found if unit in {"", quota.get("unit")} and period in {"", quota.get("period")}]
    if not chosen and not (unit or period):
        raise Missing(f"there is no limit for {_named(scope)}", hint=f"mindgw quotas set {quote(_named(scope))} --tokens 5M/month")
    return chosen


def _items(run: Invocation, items: Sequence[Item], columns: Sequence[Column]) -> None:
    """A list; names alone are those of the scopes, each once."""
    alone = run.options.output != "json" and (run.options.output == "name" or run.options.quiet)
    run.render.items(list({quota.get("scope"): quota for quota in items}.values()) if alone else items, columns, name="scope")


def _done(run: Invocation, items: Sequence[Item], text: str) -> None:
    """What became of limits: data for programs, a line of talk each for people."""
    if run.options.output != "table":
        _items(run, items, COLUMNS)
        return
    for quota in items:
        scope, unit, period = quota["scope"], quota["unit"], quota["period"]
        mode = quota["on_exceed"]
        undo = f"mindgw quotas clear {quote(scope)} --unit {unit} --period {period}"
        redo = f"mindgw quotas set {quote(scope)} --{unit} {quota['limit']}/{period} --on-exceed {mode}"
        said = text.format(limit=amount(quota, "limit"), unit=unit, span=_span(period), mode=mode, undo=undo, redo=redo)
        run.render.success(f"{scope} {said}")


def _span(period: str) -> str:
    return "in total" if period == "total" else f"a {period}"


def _told(quotas: Sequence[Item], name: str) -> str:
    return ", ".join(f"{amount(quota, name)} {quota.get('unit')} ({quota.get('window')})" for quota in quotas)


def _type_the_scope(run: Invocation, scope: str, question: str) -> None:
    """Goes on when the scope is typed. Raises UsageProblem where nobody can type it, and when something else is."""
    if run.options.yes:
        return
    name = _named(scope)
    run.require_person("--yes required when not running interactively", hint=f"{question} Add --yes to do it without being asked")
    typed = run.render.ask(f"{question} Type {name} to do it:") or ""
    if typed != name:
        raise UsageProblem(f"{typed!r} is not {name!r}: nothing was changed", hint="type the scope as it stands, or say --yes")
