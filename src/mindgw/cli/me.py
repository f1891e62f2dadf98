"""`mindgw me`: what one sees of oneself."""

from collections.abc import Iterable
from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import NounGroup
from mindgw.cli.invocation import invocation
from mindgw.cli.keys import public
from mindgw.cli.login import COLUMNS as WHO
from mindgw.cli.render import Column, Item
from mindgw.cli.users import SESSIONS
from mindgw.client import people

app = typer.Typer(
    cls=NounGroup,
    help="What one sees of oneself: limits, usage, models, queue, keys, sessions.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys_app = typer.Typer(cls=NounGroup, help="One's own keys.", rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(keys_app, name="keys")

_KEYS = (
    Column("ID", lambda key: str(key.get("id", ""))),
    Column("NAME", lambda key: str(key.get("name", ""))),
    Column("TEAM", lambda key: str(key.get("team") or "–")),
    Column("STATE", lambda key: str(key.get("state", "–"))),
    Column("CREATED", lambda key: ago(key.get("created_at"), clock.utcnow())),
    Column("LAST USED", lambda key: ago(key.get("last_used_at"), clock.utcnow())),
)
_USAGE = (
    Column("WHAT", lambda row: str(row.get("name", ""))),
    Column("REQUESTS", lambda row: str(row.get("requests", 0))),
    Column("TOKENS IN", lambda row: str(row.get("tokens_in", 0))),
    Column("TOKENS OUT", lambda row: str(row.get("tokens_out", 0))),
    Column("USD", lambda row: str(row.get("cost_usd", "0"))),
)
_MODELS = (
    Column("MODEL", lambda model: str(model.get("id", ""))),
    Column("ALSO", lambda model: " ".join(model.get("aliases") or ()) or "–"),
    Column("FOR", lambda model: " ".join(model.get("kinds") or ()) or "–"),
)
_QUEUE = (
    Column("ID", lambda entry: str(entry.get("id", ""))),
    Column("STATE", lambda entry: str(entry.get("state", ""))),
    Column("PLACE", lambda entry: str(entry.get("position") or "–")),
    Column("MODEL", lambda entry: str(entry.get("model", ""))),
    Column("KEY", lambda entry: str(entry.get("key", ""))),
    Column("WAITED", lambda entry: f"{float(entry.get('waited_s') or 0):.0f}s"),
    Column("WHY", lambda entry: str(entry.get("reason") or "–")),
)


def _number(value: object) -> str:
    return "any" if value is None else str(value)


_LIMITS = (
    Column("SCOPE", lambda row: str(row["scope"])),
    Column("LIMIT", lambda row: str(row["limit"])),
    Column("USED", lambda row: str(row["used"])),
    Column("LEFT", lambda row: str(row["left"])),
    Column("WHEN IT IS OVER", lambda row: str(row["on_exceed"])),
)


@app.callback()
def me(ctx: typer.Context) -> None:
    """What one sees of oneself: mindgw me usage --since 7d"""
    if ctx.invoked_subcommand is None:
        run = invocation(ctx)
        run.render.item(run.server().call(people.me()), WHO, name="user")


@app.command("limits")
def limits(ctx: typer.Context) -> None:
    """How much, and how often, one may ask: mindgw me limits"""
    run = invocation(ctx)
    found = run.server().call(people.my_limits())
    if run.options.output == "json":
        run.render.item(found, (), name="scope")
        return
    run.render.items([*map(_quota, found.get("quotas") or ()), *_rates(found.get("rates") or ())], _LIMITS, name="scope")


def _quota(row: Item) -> Item:
    unit, period = row.get("unit"), row.get("period")
    return {**row, "limit": f"{row.get('limit')} {unit}/{period}", **{word: f"{row.get(word)} {unit}" for word in ("used", "left")}}


def _rates(rows: Iterable[Item]) -> list[Item]:
    units = {"rpm": "requests/minute", "tpm": "tokens/minute", "concurrency": "at once"}
    return [
        {"scope": row.get("scope"), "limit": f"{row[field]} {unit}", "used": "–", "left": "–", "on_exceed": "429"}
        for row in rows
        for field, unit in units.items()
        if row.get(field) is not None
    ]


@app.command("usage")
def usage(
    ctx: typer.Context,
    by: Annotated[str, typer.Option("--by", metavar="day|model|key", help="What is summed up.")] = "day",
    since: Annotated[str, typer.Option("--since", metavar="DAY|7d", help="First day, or a number of days; 30d.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="DAY", help="Last day.")] = "",
) -> None:
    """What one has used: mindgw me usage --by model --since 7d"""
    run = invocation(ctx)
    found = run.server().call(people.my_usage(by=by, since=since, until=until))
    if run.options.output == "json":
        run.render.item(found, (), name="by")
    else:
        run.render.items([*found["items"], {**found["total"], "name": "total"}], _USAGE, name="name")


@app.command("models")
def models(ctx: typer.Context) -> None:
    """Which models one may use now: mindgw me models"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.my_models()), _MODELS, name="id")


@app.command("queue")
def queue(ctx: typer.Context) -> None:
    """What one has waiting and running: mindgw me queue"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.my_queue()), _QUEUE, name="id")


@app.command("sessions")
def sessions(ctx: typer.Context) -> None:
    """Where one is signed in: mindgw me sessions"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.my_sessions()), SESSIONS, name="id")


@app.command("sign-out")
def sign_out(ctx: typer.Context, session: Annotated[str, typer.Argument(metavar="SESSION", help="Id of the session.")]) -> None:
    """End a session of one's own elsewhere: mindgw me sign-out 0123456789"""
    run = invocation(ctx)
    ended = run.server().call(people.end_my_session(session))
    run.render.done(ended, f"Session {session} is over", name="ended")


@keys_app.command("list")
def list_keys(ctx: typer.Context) -> None:
    """List one's own keys: mindgw me keys list"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.my_keys()), _KEYS, name="id")


@keys_app.command("create")
def create_key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    *,
    model: Annotated[list[str] | None, typer.Option("--models", metavar="GLOB", help="Models that it is good for; all.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="A team of one's own.")] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")] = None,
) -> None:
    """Make a key for oneself. It is printed this once: mindgw me keys create laptop --models 'llama*' -q > key"""
    run = invocation(ctx)
    made = run.server().call(people.make_my_key(name, models=model, team=team, rpm=rpm))
    run.render.created(made, secret="key", name="id")
    run.render.success(f"Key {made['name']} ({made['id']}) made; it is not shown again. Undo: mindgw me keys revoke {made['id']}")


@keys_app.command("revoke")
def revoke_key(ctx: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="Id or name.")]) -> None:
    """Revoke a key of one's own: mindgw me keys revoke laptop"""
    run = invocation(ctx)
    run.confirm(f"Revoke your key {public(key)}?")
    gone = run.server().call(people.revoke_my_key(public(key)))
    run.render.done(gone, f"Key {gone['name']} ({gone['id']}) is revoked", name="id")
