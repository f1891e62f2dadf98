"""`mindgw auth`: what one is signed in with."""

from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ahead
from mindgw.cli.groups import noun
from mindgw.cli.invocation import invocation
from mindgw.cli.render import Column
from mindgw.client import people, sign_on
from mindgw.client.errors import CheckFailed, ClientError, NotLoggedIn, Unreachable

app = noun("What one is signed in with.")

COLUMNS = (
    Column("SERVER", lambda status: str(status["server"])),
    Column("STATE", lambda status: str(status["state"])),
    Column("USER", lambda status: str(status["user"] or "–")),
    Column("ROLES", lambda status: " ".join(status["roles"]) or "–"),
    Column("WITH", lambda status: f"{status['kind']} from {status['source']}"),
    Column("EXPIRES", lambda status: ahead(status["expires_at"], clock.utcnow())),
)
FINDINGS = (
    Column("PROVIDER", lambda finding: str(finding["provider"])),
    Column("STATE", lambda finding: str(finding.get("state", "–"))),
    Column("ABOUT", lambda finding: str(finding.get("about", "–"))),
    Column("WHAT", lambda finding: str(finding.get("text", "–"))),
)


@app.command("status")
def status(ctx: typer.Context) -> None:
    """Is what is kept for the server still good? Ends with 4 when it is not: mindgw auth status --json"""
    run = invocation(ctx)
    server = run.server()
    known: dict[str, Any] = {
        "server": server.url,
        "source": "MINDGW_TOKEN" if run.environment.token else "what is kept here",
        "kind": _kind(server.token),
        "state": "good",
        "user": None,
        "roles": [],
        "expires_at": None,
    }
    try:
        who = server.call(people.me())
    except (NotLoggedIn, Unreachable) as problem:
        known["state"] = "unreachable" if isinstance(problem, Unreachable) else "refused"
        run.render.item(known, COLUMNS, name="state")
        raise
    held = who.get("key") or who.get("session") or {}
    known |= {"user": who.get("user"), "roles": list(who.get("roles") or ()), "expires_at": held.get("expires_at")}
    run.render.item(known, COLUMNS, name="state")


@app.command("check")
def check(
    ctx: typer.Context,
    provider: Annotated[str, typer.Argument(metavar="[PROVIDER]", help="One of the settings; all of them, when not given.")] = "",
) -> None:
    """What is right and wrong with the identity providers of the settings. Ends with 3 when something is wrong: mindgw auth check work"""
    run = invocation(ctx)
    server = run.server()
    names = [provider] if provider else [str(one["name"]) for one in server.items(sign_on.list_providers())]
    found = [{"provider": name, **one} for name in names for one in server.items(sign_on.check(name))]
    run.render.items(found, FINDINGS, name="text")
    if any(one.get("state") == "bad" for one in found):
        raise CheckFailed("something is wrong with an identity provider", hint="docs/how-to/entra-id.md and oidc.md say how each is set up")


@app.command("print-token")
def print_token(ctx: typer.Context) -> None:
    """Print what a program may use in one's place: an API key itself, for a session a token that is good for some minutes and for the
    management API alone: curl -H "Authorization: Bearer $(mindgw auth print-token)" …"""
    run = invocation(ctx)
    server = run.server()
    if not server.token.startswith("mgws_"):
        run.render.datum(server.token)
        return
    made = server.call(people.my_pass())
    token = str(made["token"])
    if not token.isprintable():
        raise ClientError("the server's token is not one")
    run.render.datum(token)


def _kind(token: str) -> str:
    if token.startswith("mgws_"):
        return "session"
    return "key" if token.startswith("mgw_") else "token"
