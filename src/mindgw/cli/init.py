"""`mindgw init`: this machine made ready to serve."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mindgw.cli.groups import DataDir, verb
from mindgw.cli.invocation import Invocation, invocation
from mindgw.client.errors import ClientError

if TYPE_CHECKING:
    from mindgw.client.contexts import Contexts
    from mindgw.control.setup import InitResult

app = verb()

_EMPTIED = {
    "lost": "the database was missing: this one is new and empty. Keys, workers and usage of before are gone, unless a backup comes back",
    "moved": "this database is new and empty: keys, workers and usage stay in the old one",
}


@app.command()
def init(
    ctx: typer.Context,
    *,
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port on the loopback address.")] = None,
    public_url: Annotated[str | None, typer.Option("--public-url", metavar="URL", help="https://host:port for everybody else.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="For --public-url; else all addresses.")] = None,
    tls: Annotated[
        str | None, typer.Option("--tls", metavar="off|CERT:KEY", help="off: a proxy in front does it; else two files; else our own.")
    ] = None,
    trusted_proxies: Annotated[
        str | None, typer.Option("--trusted-proxies", metavar="CIDR,...", help="Who is believed about who asks (X-Forwarded-For).")
    ] = None,
    database: Annotated[str | None, typer.Option("--db", metavar="sqlite|URL", help="Where the database is.")] = None,
    new_admin_key: Annotated[bool, typer.Option("--new-admin-key", help="Make another admin key: the first is lost.")] = False,
    secrets_from: Annotated[
        Path | None,
        typer.Option("--secrets-from", metavar="DIR", help="Be a second server of the Postgres of the one whose data is in DIR."),
    ] = None,
    with_: Annotated[
        list[str] | None, typer.Option("--with", metavar="systemd|config|nginx|caddy", help="Also render these templates.")
    ] = None,
) -> None:
    """Make what a server needs; what is there stays: mindgw init --public-url https://gw.lab:8443"""
    from mindgw import config
    from mindgw.control import setup, templates

    run = invocation(ctx)
    templates.check(with_ or [])
    wishes = setup.Wishes(
        port=port,
        public_url=public_url,
        tls_listen=listen,
        tls=tls,
        trusted_proxies=trusted_proxies,
        database=database,
        new_admin_key=new_admin_key,
        secrets_from=secrets_from,
    )
    made = asyncio.run(setup.initialise(config.data_directory(data_dir), wishes))
    for file in templates.write(with_ or [], Path(made.data_dir)):
        run.render.success(f"Template    {file}")
    if made.emptied:
        run.render.warn(_EMPTIED[made.emptied])
    kept = _remember(run, made)
    key = made.api_key or _known_key(made)
    if run.options.output == "json":
        shown = {"data_dir": made.data_dir, "base_url": made.base_url, "api_key": key, "join_token": made.join_token}
        run.render.item(shown, (), name="data_dir")
    elif run.options.quiet and new_admin_key:
        run.render.datum(made.api_key or "")
    elif run.options.output == "name" or run.options.quiet:
        run.render.datum(made.data_dir)
    else:
        _tell(run, made, key, kept)


def _remember(run: Invocation, made: "InitResult") -> str:
    """Keeps the new key and makes this server the current context; returns where the key is. Not being able to is no failure: the key
    is printed all the same."""
    from mindgw.client import contexts, credentials
    from mindgw.client.contexts import Context

    try:
        kept = credentials.keep(made.fingerprint, made.api_key) if made.api_key else ""
        known = contexts.load()
        contexts.save(known.put(Context(_context(known, made), made.root_url, made.ca_pem, made.fingerprint)))
        return kept
    except ClientError as problem:
        run.render.warn(f"the key cannot be kept on this machine: {problem.message}")
        return ""


def _context(known: "Contexts", made: "InitResult") -> str:
    """What this server is called here: as before, if it is known. Servers of one database have one identity and several addresses."""
    same = [context for context in known.items.values() if context.fingerprint == made.fingerprint]
    there = [context for context in same if context.url == made.root_url] or (same if len(same) == 1 and not made.created else [])
    if there:
        return there[0].name
    first = "local" if "local" not in known.items else f"local-{made.fingerprint[:6]}"
    return first if first not in known.items else f"{first}-{made.root_url.rpartition(':')[2].strip('/')}"


def _known_key(made: "InitResult") -> str | None:
    from mindgw.client import credentials

    try:
        return credentials.find(made.fingerprint)
    except ClientError:
        return None


def _tell(run: Invocation, made: "InitResult", key: str | None, kept: str) -> None:
    from mindgw.config import data_directory

    render = run.render
    render.success(f"Data        {made.data_dir}" + ("" if made.created else "   (was there already)"))
    if made.backup:
        render.success(f"Database    brought up to date; a copy of the old one is {made.backup}")
    render.success(f"Base URL    {made.base_url}")
    if made.api_key:
        render.secret("API key", made.api_key, "(shown once" + (f"; also in {kept})" if kept else ")"))
    else:
        render.success(f"Admin key   {made.admin}" + ("" if key else "   (was there already)"))
    if not key:
        render.warn("the admin key is not known here; if it is lost: mindgw init --new-admin-key")
    render.secret("Join token", made.join_token, "(1 h, one box)")
    serve = "mindgw serve" if made.data_dir == str(data_directory().absolute()) else f"mindgw serve --data-dir {made.data_dir}"
    steps = (serve, "on this machine"), ("mindgw agent join TOKEN", "on each GPU box"), ('mindgw chat "hello"', "")
    width = max(len(command) for command, _ in steps)
    render.note("\nNext:" + "".join(f"\n  {command:<{width}}   {'# ' + where if where else ''}".rstrip() for command, where in steps))
