"""`mindgw keys`: who may use the gateway."""

import re
from typing import Annotated

import typer

from mindgw import clock
from mindgw.cli import bounds, key_scan
from mindgw.cli.durations import ago, ahead, seconds, span
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client import keys as client
from mindgw.client.errors import UsageProblem

app = noun("API keys: who may use the gateway.")
app.command("scan")(key_scan.scan)

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
    Column("GOOD FOR", bounds.shown),
    Column("MAY ASK", bounds.rate_shown),
    Column("LABELS", lambda key: ", ".join(f"{name}={value}" for name, value in (key.get("labels") or {}).items()) or "–"),
    Column("ENDS", lambda key: ahead(key.get("ends_at"), clock.utcnow())),
    Column("ROTATED", lambda key: ago(key.get("rotated_at"), clock.utcnow())),
    Column("OLD SECRET ENDS", lambda key: ahead(key.get("prior_until"), clock.utcnow()) if key.get("prior_until") else "–"),
    Column("KEY", lambda key: str(key.get("masked", "–"))),
    Column("VERSION", lambda key: str(key.get("version", "–"))),
)

Team = Annotated[str | None, typer.Option("--team", help="Team that it belongs to; made when missing.")]
User = Annotated[str | None, typer.Option("--user", metavar="EMAIL", help="Person that it belongs to; made when missing.")]
Priority = Annotated[
    str | None, typer.Option("--priority", metavar="high|normal|batch|sheddable", help="Highest class of its requests; normal.")
]


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    team: Team = None,
    user: User = None,
    priority: Priority = None,
    models: bounds.Models = None,
    routes: bounds.Routes = None,
    networks: bounds.Networks = None,
    rpm: bounds.Rpm = None,
    tpm: bounds.Tpm = None,
    concurrency: bounds.Concurrency = None,
    expires: bounds.Expires = None,
    labels: bounds.Labels = None,
    trusted_proxy: Annotated[bool, typer.Option("--trusted-proxy", help="Its requests may name the end user.")] = False,
    role: Annotated[str | None, typer.Option("--role", metavar="ROLE", help="What it may do; else what its person may.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="The same as --role admin.")] = False,
) -> None:
    """Make a key. It is printed this once: mindgw keys create ci-bot -q > key"""
    run = invocation(ctx)
    lists = {"models": models, "routes": routes, "addresses": networks, "labels": labels}
    more = bounds.said(lists, bounds.rates(rpm, tpm, concurrency), expires)
    request = api.create_key(
        name, team=team, user=user, priority=priority, trusted_proxy=trusted_proxy, role="admin" if admin else role, bounds=more
    )
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


@app.command("update")
def update(
    ctx: typer.Context,
    key: KeyName,
    name: Annotated[str | None, typer.Option("--name", help="What it is for.")] = None,
    priority: Priority = None,
    models: bounds.Models = None,
    routes: bounds.Routes = None,
    networks: bounds.Networks = None,
    rpm: bounds.Rpm = None,
    tpm: bounds.Tpm = None,
    concurrency: bounds.Concurrency = None,
    expires: bounds.Expires = None,
    labels: bounds.Labels = None,
    trusted_proxy: Annotated[
        bool | None, typer.Option("--trusted-proxy/--no-trusted-proxy", help="Whether its requests may name the end user.")
    ] = None,
) -> None:
    """Change a key; what is not named stays: mindgw keys update ci-bot --rpm 60 --models 'small-*'"""
    run = invocation(ctx)
    lists = {"models": models, "routes": routes, "addresses": networks, "labels": labels}
    plain = {"name": name, "priority": priority, "trusted_proxy": trusted_proxy}
    changes = {field: value for field, value in plain.items() if value is not None}
    changes |= bounds.said(lists, bounds.rates(rpm, tpm, concurrency), expires)
    if not changes:
        raise UsageProblem("what is to be different?", hint="`mindgw keys update --help` lists what can be")
    server = run.server()
    found = server.call(api.show_key(public(key)))
    done = server.call(client.change_key(found["id"], changes, version=found.get("version")))
    told = f"{bounds.shown(done)}; {bounds.rate_shown(done)}; ends {ahead(done.get('ends_at'), clock.utcnow())}"
    run.render.done(done, f"Key {done['name']} ({done['id']}) is changed: good for {told}", name="id")


@app.command("rotate")
def rotate(
    ctx: typer.Context,
    key: KeyName,
    grace: Annotated[str, typer.Option("--grace", metavar="SPAN", help="How long the old secret stays good; 0: not a moment.")] = "24h",
) -> None:
    """Give a key another secret, printed this once; the old one stays good for a while: mindgw keys rotate ci-bot --grace 24h -q"""
    run = invocation(ctx)
    left = 0 if grace.strip() == "0" else seconds(grace)
    server = run.server()
    found = server.call(api.show_key(public(key)))
    if not left:
        run.confirm(f"End the secret of {found['name']} ({found['id']}) now, with all that runs on it?")
    made = server.call(client.rotate_key(found["id"], left, version=found.get("version")))
    run.render.created(made, secret="key", name="id")
    until = f"is good for {span(left)} yet" if left else "is dead"
    run.render.success(f"Key {made['name']} ({made['id']}) has another secret, which is not shown again; the old one {until}")


@app.command("revoke")
def revoke(
    ctx: typer.Context,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY...", help="Ids or names.")] = None,
    all_for: Annotated[str | None, typer.Option("--all-for", metavar="EMAIL", help="All keys of this person.")] = None,
) -> None:
    """Revoke keys: requests with them are refused at once: mindgw keys revoke --all-for ada@example.org"""
    run = invocation(ctx)
    if bool(keys) == bool(all_for):
        raise UsageProblem("which keys?", hint="name them, or say --all-for EMAIL")
    server = run.server()
    for name in keys or _keys_of(run, all_for or ""):
        found = server.call(api.show_key(public(name)))
        used = f"last used {ago(found['last_used_at'], clock.utcnow())}" if found.get("last_used_at") else "never used"
        run.confirm(f"Revoke key {found['name']} ({found['id']}), {used}?")
        gone = server.call(api.revoke_key(found["id"]))
        run.render.done(gone, f"Key {found['name']} ({found['id']}) is revoked", name="id")


def _keys_of(run: Invocation, person: str) -> list[str]:
    """Ids of all keys of somebody that are not revoked; says so when there are none."""
    good = [key for key in run.server().items(api.list_keys()) if not key.get("revoked_at")]
    found = [str(key["id"]) for key in good if str(key.get("user") or "").lower() == person.strip().lower()]
    if not found:
        run.render.note(f"{person} has no keys that are good.")
    return found


def public(name: str) -> str:
    """The id of a whole key that was pasted, for a secret has no place in an address; anything else as it is."""
    found = re.match(r"mgw_([0-9A-Za-z]{10})(_|…|\Z)", name)
    return found[1] if found else name
