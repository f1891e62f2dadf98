"""`mindgw users`: who there is."""

import shlex
import sys
from dataclasses import replace
from shlex import quote
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.contexts import Ca, CaSha256, clean
from mindgw.cli.durations import ago, ahead, seconds
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column
from mindgw.client import contexts, credentials, people
from mindgw.client.errors import UsageProblem
from mindgw.client.redaction import redact

app = noun("Users: people and service accounts.")

User = Annotated[str, typer.Argument(metavar="USER", help="Address or id.")]
Role = Annotated[str | None, typer.Option("--role", metavar="ROLE", help="admin, operator, user, viewer, or one of your own; user.")]
IfMatch = Annotated[int | None, typer.Option("--if-version", metavar="N", help="Only when it is still at this version.")]

COLUMNS = (
    Column("USER", lambda user: str(user.get("email", ""))),
    Column("NAME", lambda user: str(user.get("name") or "–")),
    Column("ROLE", lambda user: str(user.get("role", "–"))),
    Column("STATE", lambda user: "service" if user.get("service") and user.get("state") == "active" else str(user.get("state", "–"))),
    Column("LAST SEEN", lambda user: ago(user.get("last_seen_at"), clock.utcnow())),
    Column("CREATED", lambda user: ago(user.get("created_at"), clock.utcnow())),
)
_DETAILS = (
    *COLUMNS,
    Column("INVITATION", lambda user: ahead(user.get("invite_expires_at"), clock.utcnow()) if user.get("invite_expires_at") else "–"),
    Column("ID", lambda user: str(user.get("id", ""))),
    Column("VERSION", lambda user: str(user.get("version", "–"))),
)
IDENTITIES = (
    Column("PROVIDER", lambda each: str(each.get("provider", ""))),
    Column("SUBJECT", lambda each: str(each.get("subject", ""))),
    Column("KEY", lambda each: str(each.get("key_id", ""))),
    Column("LAST WORD", lambda each: ago(each.get("claims_at"), clock.utcnow())),
    Column("VOUCHED", lambda each: ago(each.get("vouched_at"), clock.utcnow())),
    Column("ASKED", lambda each: "yes" if each.get("asked") else "no"),
    Column("ID", lambda each: str(each.get("id", ""))),
)
SESSIONS = (
    Column("ID", lambda each: str(each.get("id", ""))),
    Column("CURRENT", lambda each: "*" if each.get("current") else ""),
    Column("CLIENT", lambda each: str(each.get("agent") or "–")),
    Column("SIGNED IN", lambda each: ago(each.get("created_at"), clock.utcnow())),
    Column("LAST SEEN", lambda each: ago(each.get("last_seen_at"), clock.utcnow())),
    Column("EXPIRES", lambda each: ahead(each.get("expires_at"), clock.utcnow())),
)


@app.command("invite")
def invite(
    ctx: typer.Context,
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Address of the person.")],
    *,
    role: Role = None,
    name: Annotated[str | None, typer.Option("--name", help="What the person is called.")] = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long the invitation is good: 1h, 7d; 30d at most.")] = "7d",
) -> None:
    """Let somebody in, or give somebody another way to sign in: mindgw users invite ana@example.com --role operator"""
    run = invocation(ctx)
    server = run.server()
    made = server.call(people.invite_user(email, role=role, name=name, ttl_seconds=seconds(ttl)))
    run.render.created(made, secret="invitation", name="id")
    run.render.success(f"{made['email']} is invited as {made.get('role')}; it is good once, {ttl}. Send it on a way that you trust.")
    run.render.note(f"  there: {_line(run, server.url)}")


def _line(run: Invocation, url: str) -> str:
    """What the invited person types, without the invitation itself."""
    known = contexts.load().at(url)
    words = ["mindgw", "users", "accept", "INVITATION", "--server", url]
    if known is not None and known.ca_pem:
        from mindgw.cli.ca import sha256_of

        words += ["--ca-sha256", sha256_of(known.ca_pem)]
    return shlex.join(words)


@app.command("accept")
def accept(
    ctx: typer.Context,
    invitation: Annotated[str, typer.Argument(metavar="INVITATION|-", help="What an admin sent; - reads it from stdin.")],
    *,
    name: Annotated[str, typer.Option("--name", help="What the server is to be called here.")] = "",
    ca: Ca = None,
    ca_sha256: CaSha256 = "",
) -> None:
    """Sign in with an invitation, once: mindgw users accept mgwi_… --server https://gw.lab:8443"""
    from urllib.parse import urlsplit

    from mindgw.cli.login import keep
    from mindgw.cli.trust import besides, meet
    from mindgw.client.transport import Server

    run = invocation(ctx)
    text = (sys.stdin.readline(4097) if invitation == "-" else invitation).strip()
    if not text.startswith("mgwi_"):
        raise UsageProblem(f"{redact(text[:20])!r} is no invitation", hint="it begins with mgwi_")
    known = contexts.load()
    here = known.get(run.options.context or run.environment.context)
    url = run.options.server or run.environment.server or (here.url if here is not None else "")
    if not url:
        raise UsageProblem("which server?", hint="mindgw users accept INVITATION --server https://gw.lab:8443")
    context = meet(run, clean(name or urlsplit(url).hostname or "server"), url, ca=ca, ca_sha256=ca_sha256)
    context = besides(context, name)
    if credentials.find(context.fingerprint):
        run.confirm(f"There is a key for {context.url} in the context {context.name} already. Replace it? --name keeps both.")
    server = Server.at(context.url, ca_pem=context.ca_pem or None, timeout=run.options.timeout, note=run.render.wire)
    made: dict[str, Any] = server.call(people.accept_invitation(text))
    kept = keep(replace(context, renew_at=""), str(made["session"]))
    shown = {key: value for key, value in made.items() if key != "session"}
    run.render.done(shown, f"Signed in as {made['user']} at {context.url}, kept in {kept}. Next: mindgw me", name="user")


@app.command("create")
def create(ctx: typer.Context, name: Annotated[str, typer.Argument(help="Such as ci-bot.")], role: Role = None) -> None:
    """Make a service account, which has keys and never signs in: mindgw users create ci-bot"""
    run = invocation(ctx)
    made = run.server().call(people.create_service_account(name, role=role))
    run.render.done(made, f"{made['email']} is made. Next: mindgw keys create {quote(name)} --user {quote(made['email'])}", name="id")


@app.command("list")
def list_users(ctx: typer.Context) -> None:
    """List people and service accounts: mindgw users list"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.list_users()), COLUMNS, name="email")


@app.command("show")
def show(ctx: typer.Context, user: User) -> None:
    """Show one of them: mindgw users show ana@example.com"""
    run = invocation(ctx)
    run.render.item(run.server().call(people.show_user(user)), _DETAILS, name="email")


@app.command("role")
def role(ctx: typer.Context, user: User, to: Annotated[str, typer.Argument(metavar="ROLE")], version: IfMatch = None) -> None:
    """Give somebody another role in the whole organisation: mindgw users role ana@example.com viewer"""
    run = invocation(ctx)
    changed = run.server().call(people.change_user(user, role=to, version=version))
    run.render.done(changed, f"{changed['email']} is {changed.get('role')} now", name="email")


@app.command("disable")
def disable(ctx: typer.Context, user: User, version: IfMatch = None) -> None:
    """Shut somebody out at once: keys, sessions, what they have running: mindgw users disable ana@example.com"""
    run = invocation(ctx)
    server = run.server()
    found = server.call(people.show_user(user))
    seen = f"last seen {ago(found['last_seen_at'], clock.utcnow())}" if found.get("last_seen_at") else "never signed in"
    run.confirm(f"Shut out {found['email']} ({found.get('role')}), {seen}? Their keys are refused and what they have running ends.")
    changed = server.call(people.disable_user(found["id"], version=version))
    run.render.done(changed, f"{changed['email']} is shut out. Undo: mindgw users enable {quote(changed['email'])}", name="email")


@app.command("enable")
def enable(ctx: typer.Context, user: User, version: IfMatch = None) -> None:
    """Let somebody in again, with the keys of before: mindgw users enable ana@example.com"""
    run = invocation(ctx)
    changed = run.server().call(people.enable_user(user, version=version))
    told = f"{changed['email']} may use the gateway; to sign in: mindgw users invite {quote(changed['email'])}"
    run.render.done(changed, told, name="email")


@app.command("remove")
def remove(ctx: typer.Context, user: User, version: IfMatch = None) -> None:
    """Remove somebody, and their keys for good: mindgw users remove ana@example.com"""
    run = invocation(ctx)
    server = run.server()
    found = server.call(people.show_user(user))
    run.confirm(f"Remove {found['email']} ({found.get('role')})? All their keys are revoked for good.")
    gone = server.call(people.remove_user(found["id"], version=version))
    run.render.done(gone, f"{gone['email']} is removed", name="email")


@app.command("identities")
def list_identities(ctx: typer.Context, user: User) -> None:
    """By what identity providers know somebody: mindgw users identities ana@example.com"""
    run = invocation(ctx)
    run.render.items(run.server().items(people.list_identities(user)), IDENTITIES, name="id")


@app.command("link")
def link(
    ctx: typer.Context,
    user: User,
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Name of the provider in the settings.")],
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="What it knows the person by: sub; of Entra the object id.")],
) -> None:
    """Have somebody who is here already sign in by an identity provider: mindgw users link ana@example.com work 0f7d3b1e-…"""
    run = invocation(ctx)
    server = run.server()
    found = server.call(people.show_user(user))
    asked = f"Whoever {redact(provider)} knows as {redact(subject)} is {found['email']} ({found.get('role')}) from now on, with all keys?"
    run.confirm(asked)
    made = server.call(people.link(found["id"], provider, subject))
    undo = f"mindgw users unlink {quote(found['email'])} {quote(provider)}"
    run.render.done(made, f"{found['email']} signs in by {made['provider']}. Undo: {undo}", name="id")


@app.command("unlink")
def unlink(
    ctx: typer.Context,
    user: User,
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="Name of the provider, or id of what it knows.")],
) -> None:
    """Have an identity provider let nobody in as that user any more: mindgw users unlink ana@example.com work"""
    run = invocation(ctx)
    server = run.server()
    found = server.call(people.show_user(user))
    run.confirm(f"Let nobody in as {found['email']} by {redact(provider)}? What came of it ends: sessions, tokens, teams.")
    gone = server.call(people.unlink(found["id"], provider))
    run.render.done(gone, f"{gone['provider']} lets nobody in as {found['email']}", name="id")


@app.command("sessions")
def sessions(ctx: typer.Context, user: User, end: Annotated[bool, typer.Option("--end", help="Sign them out everywhere.")] = False) -> None:
    """Where somebody is signed in: mindgw users sessions ana@example.com --end"""
    run = invocation(ctx)
    server = run.server()
    if not end:
        run.render.items(server.items(people.list_sessions(user)), SESSIONS, name="id")
        return
    run.confirm(f"Sign {user} out everywhere?")
    ended = server.call(people.end_sessions(user))
    run.render.done(ended, f"{ended['ended']} sessions of {user} are over", name="ended")
