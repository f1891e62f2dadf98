"""`mindgw contexts`: the servers that are known on this machine."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import contexts, credentials
from mindgw.client.contexts import Context, Contexts
from mindgw.client.errors import Clash, Missing, UsageProblem

app = noun("Contexts: the servers that are known on this machine.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]
Ca = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="PEM of the only authority to trust: mindgw ca export")]
CaSha256 = Annotated[str, typer.Option("--ca-sha256", metavar="SHA256", help="Of the server's own CA: mindgw ca fingerprint")]

COLUMNS = (
    Column("CURRENT", lambda context: "*" if context.get("current") else ""),
    Column("NAME", lambda context: str(context["name"])),
    Column("SERVER", lambda context: str(context["url"])),
    Column("TRUSTS", lambda context: "its own CA" if context.get("ca_pem") else "the system"),
)


def _shown(context: Context, known: Contexts) -> Mapping[str, Any]:
    return {**asdict(context), "current": context.name == known.current}


@app.command("list")
def list_contexts(ctx: typer.Context) -> None:
    """List the servers that are known here: mindgw contexts list"""
    known = contexts.load()
    invocation(ctx).render.items([_shown(context, known) for context in known.items.values()], COLUMNS, name="name")


@app.command("show")
def show(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="[NAME]", help="The current one, when not given.")] = "") -> None:
    """Show one of them: mindgw contexts show lab"""
    run = invocation(ctx)
    known = contexts.load()
    context = known.get(name or run.options.context or run.environment.context)
    if context is None:
        raise Missing("there is no current context", hint="`mindgw contexts use NAME` chooses one, `mindgw login URL` makes one")
    run.render.item(_shown(context, known), COLUMNS, name="name")


@app.command("use")
def use(ctx: typer.Context, name: Name) -> None:
    """Mean this server from now on: mindgw contexts use lab"""
    known = contexts.load()
    context = _named(known, name)
    contexts.save(replace(known, current=name))
    invocation(ctx).render.done(_shown(context, replace(known, current=name)), f"{name} is the current context: {context.url}", name="name")


@app.command("add")
def add(
    ctx: typer.Context, name: Name, url: Annotated[str, typer.Argument(metavar="URL")], ca: Ca = None, ca_sha256: CaSha256 = ""
) -> None:
    """Get to know a server, without signing in: mindgw contexts add lab https://gw.lab:8443 --ca mindgw-ca.pem"""
    from mindgw.cli.trust import meet

    run = invocation(ctx)
    clean(name)
    known = contexts.load()
    if name in known.items:
        raise Clash(f"there is a context {name!r} already", hint=f"`mindgw contexts remove {quote(name)}`, or choose another name")
    context = replace(meet(run, name, url, ca=ca, ca_sha256=ca_sha256), name=name)
    contexts.save(known.put(context))
    run.render.done(_shown(context, known.put(context)), f"{name} is the current context. Next: mindgw login", name="name")


@app.command("rename")
def rename(ctx: typer.Context, name: Name, new: Annotated[str, typer.Argument(metavar="NEW", help="What it is to be called.")]) -> None:
    """Call a server something else: mindgw contexts rename local lab"""
    clean(new)
    known = contexts.load()
    context = _named(known, name)
    if new in known.items and new != name:
        raise Clash(f"there is a context {new!r} already", hint="choose another name")
    items = {(new if key == name else key): (replace(context, name=new) if key == name else item) for key, item in known.items.items()}
    changed = Contexts(new if known.current == name else known.current, items)
    contexts.save(changed)
    invocation(ctx).render.done(_shown(changed.items[new], changed), f"{name} is called {new} now", name="name")


@app.command("remove")
def remove(ctx: typer.Context, name: Name) -> None:
    """Forget a server, and the key that is kept for it: mindgw contexts remove lab"""
    run = invocation(ctx)
    known = contexts.load()
    context = _named(known, name)
    run.confirm(f"Forget {name} ({context.url}) and the key for it?")
    left = known.without(name)
    contexts.save(left)
    if context.fingerprint and all(other.fingerprint != context.fingerprint for other in left.items.values()):
        credentials.forget(context.fingerprint)
    run.render.done(_shown(context, left), f"{name} is forgotten", name="name")


def clean(name: str) -> str:
    """Raises UsageProblem unless it can be the name of a context."""
    if not name.strip() or len(name) > 100 or not name.isprintable() or name.startswith("-"):
        raise UsageProblem(f"{name[:100]!r} cannot be the name of a context")
    return name


def _named(known: Contexts, name: str) -> Context:
    context = known.get(name) if name else None
    if context is None:
        raise UsageProblem("which context?", hint="`mindgw contexts list` shows them")
    return context
