"""`mindgw login`, `logout`, `whoami`: who one is on a server."""

import getpass
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from mindgw.cli.contexts import Ca, CaSha256, clean
from mindgw.cli.groups import verb
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import contexts, credentials, people, renewal
from mindgw.client.contexts import Context
from mindgw.client.errors import ClientError, NotLoggedIn, NotMindGW, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.transport import Server

login_app, logout_app, whoami_app = verb(), verb(), verb()

#: An API key or a session.
_TOKEN = r"mgws?_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}"
#: Characters of the longest line that is read as a token.
MAX_TOKEN = 4096
_PREFIXES = {
    "mgwj": ("a join token for a GPU box", "`mindgw agent join TOKEN` takes it, on that box"),
    "mgwi": ("an invitation", "`mindgw users accept INVITATION` takes it"),
}


@login_app.command()
def login(
    ctx: typer.Context,
    *,
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Root address of the server; that of the context, when not given.")] = "",
    with_token: Annotated[bool, typer.Option("--with-token", help="Read an API key or a session from stdin.")] = False,
    provider: Annotated[str, typer.Option("--provider", metavar="NAME", help="Which identity provider, where there are several.")] = "",
    device: Annotated[bool, typer.Option("--device", help="The browser is on another machine.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, or show the address alone.")] = True,
    name: Annotated[str, typer.Option("--name", help="What the server is called here; its host, when not given.")] = "",
    ca: Ca = None,
    ca_sha256: CaSha256 = "",
    insecure_storage: Annotated[
        bool, typer.Option("--insecure-storage", help="Say nothing when there is no keyring and a file must do.")
    ] = False,
) -> None:
    """Sign in at a server by an identity provider, or with a key: mindgw login https://gw.lab:8443"""
    from mindgw.cli import sign_on

    run = invocation(ctx)
    if with_token and (provider or device):
        raise UsageProblem("--with-token takes what there is; --provider and --device make something new", hint="one or the other")
    context = _met(run, url, name, ca, ca_sha256)
    known = [] if with_token else sign_on.providers(_server(run, context, ""))
    if known or provider or device:
        made = _signed_on(run, context, sign_on.chosen(run, known, provider), device=device, opens=browser)
        context, token, said = renewal.lasting(context, made), str(made["session"]), f"Signed in as {made['user']} ({made.get('role')})"
        who: Item = {key: value for key, value in made.items() if key != "session"}
    else:
        token = read_token(run, with_token=with_token)
        who = _server(run, context, token).call(people.me())
        context, said = replace(context, renew_at=""), _called(who)
    kept = keep(context, token)
    run.render.done(who, f"{said} at {context.url}, kept in {kept}", name="user")
    if not insecure_storage and not kept.startswith("the OS"):
        run.render.warn("this machine has no keyring: the key is in a file that only you may read (--insecure-storage says nothing)")
    if run.environment.token:
        run.render.warn("MINDGW_TOKEN is set, and wins over what is kept")


def _met(run: Invocation, url: str, name: str, ca: Path | None, ca_sha256: str) -> Context:
    """The server that is meant, once it is the right one. Raises ClientError."""
    from mindgw.cli.trust import besides, meet

    context = _context(run, url)
    if context is None or not context.fingerprint or ca or ca_sha256:
        root = url or (context.url if context else "") or run.options.server or run.environment.server
        if not root:
            raise UsageProblem("which server?", hint="mindgw login https://gw.lab:8443")
        known = context.name if context else ""
        context = meet(run, clean(name or known or urlsplit(root).hostname or "server"), root, ca=ca, ca_sha256=ca_sha256)
    return besides(context, clean(name) if name else "")


def _signed_on(run: Invocation, context: Context, provider: Item, *, device: bool, opens: bool) -> dict[str, Any]:
    """A session of whoever an identity provider knows. Raises ClientError."""
    from mindgw.cli import sign_on

    server = _server(run, context, "")
    made = sign_on.with_device(run, server, provider) if device else sign_on.with_browser(run, server, provider, opens=opens)
    if re.fullmatch(_TOKEN, str(made.get("session"))) is None:
        raise NotMindGW(server.url, "what it gives is no session")
    return made


@logout_app.command()
def logout(
    ctx: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="On all servers that are known here.")] = False,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="End one's sessions on all other machines and browsers, too.")] = False,
) -> None:
    """Forget the key for a server; a session is ended there, too: mindgw logout --all --everywhere"""
    run = invocation(ctx)
    known = contexts.load()
    chosen = list(known.items.values()) if every else [_context(run, "")]
    if not every and chosen == [None]:
        raise NotLoggedIn("no server is known here", hint="`mindgw contexts list` shows those that are")
    names = []
    for context in chosen:
        token = credentials.find(context.fingerprint) if context and context.fingerprint else None
        if context is None or not token:
            continue
        _end(run, context, token, everywhere=everywhere)
        credentials.forget(context.fingerprint)
        names.append(context.name)
    gone = {"contexts": names}
    run.render.done(gone, f"No key is kept any more for {', '.join(names)}" if names else "No key was kept here", name="contexts")
    if run.environment.token:
        run.render.warn("MINDGW_TOKEN is still set")


@whoami_app.command()
def whoami(ctx: typer.Context) -> None:
    """Show who one is on the server: mindgw whoami --json"""
    run = invocation(ctx)
    run.render.item(run.server().call(people.me()), COLUMNS, name="user")


def _by(who: Item) -> str:
    if who.get("kind") == "key":
        key = who.get("key") or {}
        return f"key {key.get('name', '–')} ({key.get('id', '–')})"
    session = who.get("session") or {}
    return f"session {session.get('id', '–')}"


COLUMNS = (
    Column("USER", lambda who: str(who.get("user") or "–")),
    Column("NAME", lambda who: str(who.get("name") or "–")),
    Column("TEAM", lambda who: str(who.get("team") or "–")),
    Column("ROLES", lambda who: " ".join(map(str, who.get("roles") or ())) or "–"),
    Column("SIGNED IN BY", _by),
)


def _called(who: Item) -> str:
    roles = " ".join(map(str, who.get("roles") or ()))
    return f"Signed in as {who.get('user') or _by(who)}" + (f" ({roles})" if roles else "")


def read_token(run: Invocation, *, with_token: bool) -> str:
    """An API key or a session, from stdin or typed without being seen. Raises UsageProblem for anything else."""
    if with_token:
        line = sys.stdin.readline(MAX_TOKEN + 1).strip()
    else:
        run.require_person("--with-token required when not running interactively", hint="mindgw login --with-token < FILE")
        line = getpass.getpass("API key or session: ", stream=sys.stderr).strip()
    for prefix, (what, hint) in _PREFIXES.items():
        if line.startswith(prefix):
            raise UsageProblem(f"that is {what}", hint=hint)
    if not re.fullmatch(_TOKEN, line):
        what = "what came from stdin" if with_token else "that"
        raise UsageProblem(f"{what} is neither an API key (mgw_…) nor a session (mgws_…)", hint="copy it whole")
    return line


def keep(context: Context, token: str) -> str:
    """Keeps a token that is good, and makes that server the current one; returns where it is kept. Raises ClientError."""
    kept = credentials.keep(context.fingerprint, token)
    contexts.save(contexts.load().put(context))
    return kept


def _context(run: Invocation, url: str) -> Context | None:
    """The server that is meant, when it is known here. Raises Missing."""
    known = contexts.load()
    address = url or run.options.server or ("" if run.options.context else run.environment.server)
    if address:
        from mindgw.client.api import root_url

        return known.at(root_url(address))
    return known.get(run.options.context or run.environment.context)


def _server(run: Invocation, context: Context, token: str) -> "Server":
    from mindgw.client.transport import Server

    return Server.at(context.url, token, ca_pem=context.ca_pem or None, timeout=run.options.timeout, note=run.render.wire)


def _end(run: Invocation, context: Context, token: str, *, everywhere: bool) -> None:
    """A session that nobody keeps any more is ended; an API key may be in use elsewhere, and stays. Raises ClientError when somebody wants
    to be signed out everywhere and is not."""
    if not token.startswith("mgws_"):
        if everywhere:
            run.render.warn(f"what is kept for {context.url} is an API key: sessions elsewhere are not ended by it")
        return
    if everywhere:
        _server(run, context, token).call(people.end_my_sessions())
        return
    try:
        _server(run, context, token).call(people.end_my_session())
    except NotLoggedIn:
        return
    except ClientError as problem:
        run.render.warn(f"the session could not be ended on {context.url}: {problem.message}")
