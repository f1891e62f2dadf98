"""`mindgw`: the tree of commands and the one place where errors become exit codes."""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from mindgw import __version__
from mindgw.cli import render
from mindgw.cli.groups import Mount, lazy_group
from mindgw.cli.invocation import Invocation
from mindgw.cli.settings import OUTPUTS, Options, hoist, read_environment, wants_json
from mindgw.client.errors import ClientError, UsageProblem, kind_for
from mindgw.errors import ConfigError, MindGWError
from mindgw_agent.errors import AgentError

MOUNTS = (
    Mount("quickstart", "mindgw.cli.quickstart:app", "Server, agent and engine on this machine, one streamed answer.", "Start"),
    Mount("init", "mindgw.cli.init:app", "Make this machine a server: settings, database, certificates, first key.", "Start"),
    Mount("serve", "mindgw.cli.serve:app", "Run the server.", "Start"),
    Mount("agent", "mindgw_agent.cli:app", "On a GPU box: join a server, serve it, leave it.", "Start"),
    Mount("status", "mindgw.cli.status:app", "Is it up, what does it serve?", "Everyday"),
    Mount("chat", "mindgw.cli.chat:app", "Ask a model.", "Everyday"),
    Mount("login", "mindgw.cli.login:login_app", "Sign in at a server.", "Everyday"),
    Mount("logout", "mindgw.cli.login:logout_app", "Forget it, and end the session.", "Everyday"),
    Mount("whoami", "mindgw.cli.login:whoami_app", "Who one is on the server.", "Everyday"),
    Mount("auth", "mindgw.cli.auth:app", "What one is signed in with.", "Everyday"),
    Mount("contexts", "mindgw.cli.contexts:app", "The servers that are known here.", "Everyday", ("context", "ctx")),
    Mount("me", "mindgw.cli.me:app", "What one sees of oneself.", "Everyday"),
    Mount("users", "mindgw.cli.users:app", "People and service accounts.", "Manage", ("user",)),
    Mount("keys", "mindgw.cli.keys:app", "API keys.", "Manage", ("key",)),
    Mount("roles", "mindgw.cli.roles:app", "Who may do what.", "Manage", ("role",)),
    Mount("join-tokens", "mindgw.cli.join_tokens:app", "Tokens that let a GPU box in.", "Manage", ("join-token",)),
    Mount("workers", "mindgw.cli.workers:app", "The GPU boxes.", "Manage", ("worker",)),
    Mount("routes", "mindgw.cli.routes:app", "Where requests for a name go.", "Manage", ("route",)),
    Mount("models", "mindgw.cli.models:app", "What the GPU boxes serve, and for whom.", "Manage", ("model",)),
    Mount("queue", "mindgw.cli.queue:app", "Who waits for a slot, and why.", "Manage"),
    Mount("requests", "mindgw.cli.requests:app", "What became of requests.", "Manage", ("request",)),
    Mount("why", "mindgw.cli.why:app", "What became of one request, in sentences.", "Manage"),
    Mount("rates", "mindgw.cli.rates:app", "How often people, teams and organisations may ask.", "Manage", ("rate",)),
    Mount("quotas", "mindgw.cli.quotas:app", "How much may be used, by whom.", "Manage", ("quota",)),
    Mount("usage", "mindgw.cli.usage:app", "What was used, and what it cost.", "Manage"),
    Mount("ledger", "mindgw.cli.ledger:app", "What is written down about every request, and whether it is right.", "Manage"),
    Mount("receipt", "mindgw.cli.receipt:app", "What the agents have signed about a request.", "Manage", ("receipts",)),
    Mount("teams", "mindgw.cli.teams:app", "Whose keys share limits.", "Manage", ("team",)),
    Mount("orgs", "mindgw.cli.orgs:app", "Organisations that share a server.", "Manage", ("org",), is_hidden=True),
    Mount("config", "mindgw.cli.config:app", "Settings of a server; files that declare what it is to have.", "Manage"),
    Mount("audit", "mindgw.cli.audit:app", "Who did what, what was refused, and whether the record is right.", "Manage"),
    Mount("db", "mindgw.cli.db:app", "The database: its state, its schema, what is broken.", "Manage"),
    Mount("ca", "mindgw.cli.ca:app", "The certificate authority of a server.", "Manage"),
    Mount("version", "mindgw.cli.version:app", "Versions of this program and of the server.", "Manage"),
)

EXIT_CODES = """\
Exit codes: 0 done, 1 failed, 2 usage, 3 a check found problems, 4 not logged in, 5 not allowed, 6 not found,
7 conflict, 8 over a limit, 9 server unreachable, 130 interrupted."""

app = typer.Typer(
    cls=lazy_group(MOUNTS),
    help="One OpenAI-compatible endpoint in front of every GPU box you own.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mindgw {__version__}")
        raise typer.Exit


@app.callback()
def root(  # the flags that every command takes
    ctx: typer.Context,
    *,
    output: Annotated[str, typer.Option("-o", "--output", metavar="|".join(OUTPUTS), help="How data is written.")] = "table",
    json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the datum: the id, the key, the token.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="HTTP on stderr, without secrets.")] = 0,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Ask nothing, do it.")] = False,
    server: Annotated[str, typer.Option("--server", metavar="URL", help="Root address of the server; with MINDGW_TOKEN.")] = "",
    context: Annotated[str, typer.Option("-c", "--context", metavar="NAME", help="Which of the known servers.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long a server may stay silent.")] = 30.0,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never prompt.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; so does NO_COLOR.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("-V", "--version", is_eager=True, callback=_print_version, help="Print the version.")] = False,
) -> None:
    chosen = "json" if json else output
    if chosen not in OUTPUTS:
        raise UsageProblem(f"there is no output format {chosen!r}", hint=f"one of {', '.join(OUTPUTS)}")
    options = Options(chosen, quiet, verbose, yes, no_input, no_color, server, context, timeout)
    environment = read_environment()
    ctx.obj = Invocation(options, environment, render.Render(options, environment))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; nothing but a kill leaves another way."""
    words = hoist(sys.argv[1:] if argv is None else argv)
    as_json = wants_json(words)
    try:
        result = app(words, prog_name="mindgw", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, Abort) as stop:
        render.aborted()
        return 130 if isinstance(stop, KeyboardInterrupt) else 1
    except (ClientError, MindGWError, AgentError, TyperException) as problem:
        return _report(problem, _meaning(problem), words, as_json=as_json)
    except Exception as problem:  # noqa: BLE001 - the top of the program: whatever is left is our fault, and says so
        hint = "this is a defect; --debug shows where" if "--debug" not in words else "this is a defect"
        return _report(
            problem, ClientError(f"{type(problem).__name__}: {problem}", hint=hint, code="internal_error"), words, as_json=as_json
        )


def _report(problem: Exception, error: ClientError, words: Sequence[str], *, as_json: bool) -> int:
    if "--debug" in words:
        render.traceback_of("".join(traceback.format_exception(problem)))
    render.failure(error, as_json=as_json)
    return error.exit_code


def _meaning(problem: Exception) -> ClientError:
    """What an error of any room means to the one who typed the command."""
    if isinstance(problem, ClientError):
        return problem
    if isinstance(problem, TyperException):
        context = getattr(problem, "ctx", None)
        hint = f"`{context.command_path} --help` shows how" if context is not None else "`mindgw --help` shows how"
        return UsageProblem(problem.format_message(), hint=hint)
    if isinstance(problem, AgentError):
        error = ClientError(problem.message, hint=problem.hint, code=problem.code)
        error.exit_code = problem.exit_code
        return error
    if isinstance(problem, MindGWError):
        return _kind(problem)(problem.message, code=problem.code, hint=getattr(problem, "hint", "") or "")
    raise TypeError(f"not an error of the gateway: {problem!r}")


def _kind(problem: MindGWError) -> type[ClientError]:
    if not isinstance(problem, ConfigError):
        return kind_for(problem.status)
    # a bad value in a file is a failure, the same value in a flag is a wrong command
    return UsageProblem if problem.message.startswith("command line") else ClientError


if __name__ == "__main__":
    sys.exit(main())
