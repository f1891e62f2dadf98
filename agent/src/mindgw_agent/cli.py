"""`mindgw agent …`: what is typed on a GPU box. stdout is data, stderr is talk.

`app` is the group, which the server's own command line mounts; `main` is the script of the slim distribution. Everything that takes
time to import is imported by the command that needs it.
"""

import json
import logging
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from mindgw_agent import __version__, errors
from mindgw_agent.choices import (
    EngineKeyOption,
    EngineOption,
    EngineUrlOption,
    ExecOption,
    ModelsOption,
    PullOption,
    SlotsOption,
    TeamsOption,
)
from mindgw_agent.choices import chosen as choose

if TYPE_CHECKING:
    from mindgw_agent.settings import Settings, StateDir
    from mindgw_agent.status import Engine, Status
    from mindgw_agent.unit import Service

_SETTINGS: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
#: Longest token file that is read.
_MAX_TOKEN = 16 * 1024

#: What the script of the slim half may be called.
_NAMES = ("mindgw-agent", "mindgw")

app = typer.Typer(help="On a GPU box: join a server, serve it, leave it.", **_SETTINGS)

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", metavar="DIR", help="Where this agent keeps itself; else MINDGW_AGENT_DIR, else XDG. One directory, one agent."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Data as JSON.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]

# What `join` takes besides.
TokenArgument = Annotated[
    str, typer.Argument(metavar="[TOKEN|-]", help="Join token; - reads stdin. Else --token-file or MINDGW_JOIN_TOKEN.")
]
TokenFileOption = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="File that holds the token.")]
NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="What the server calls this worker; else the hostname.")]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Take the place of the worker that has this name.")]
ServerOption = Annotated[str, typer.Option("--server", metavar="URL", help="Where the server is, in place of the token's addresses.")]
EnrollOnlyOption = Annotated[bool, typer.Option("--enroll-only", help="Stop after joining; `agent run` serves later.")]


@app.callback(invoke_without_command=True)
def agent(ctx: typer.Context) -> None:
    """On a GPU box: join a server, serve it, leave it."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def join(
    ctx: typer.Context,
    token: TokenArgument = "",
    token_file: TokenFileOption = None,
    name: NameOption = "",
    replace: ReplaceOption = False,
    engine_url: EngineUrlOption = None,
    engine: EngineOption = "",
    engine_key_file: EngineKeyOption = None,
    run_engine: ExecOption = "",
    slots: SlotsOption = None,
    models: ModelsOption = None,
    teams: TeamsOption = None,
    allow_pull: PullOption = None,
    server: ServerOption = "",
    enroll_only: EnrollOnlyOption = False,
    state_dir: StateOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Join a server with a token, then serve it.

    Example: mindgw agent join TOKEN --engine-url http://127.0.0.1:11434. In a directory that joined before, this serves and ignores
    the token.
    """
    from mindgw_agent.settings import StateDir

    state = StateDir(state_dir)
    chosen = choose(engine_url, engine, engine_key_file, run_engine, slots, (models, teams), allow_pull)
    where = server or _inherited(ctx, "server")
    with state.lock():
        settings = state.load()
        if settings is None:
            _check(chosen, enroll_only)
            settings = _enrol(state, _read_token(token, token_file), name, replace, where)
            settings = _keep(state, settings, settings, chosen)
        else:
            settings = _change(state, settings, chosen, where, enroll_only)
        if as_json or _inherited(ctx, "output") == "json":
            _print({"agent_id": settings.agent_id, "name": settings.name, "server": settings.servers[0], "state_dir": str(state.path)})
        if enroll_only:
            _say(f"  serve with: mindgw agent run --state-dir {state.path}")
            return 0
        return _serve(state, settings, verbose)


@app.command()
def run(state_dir: StateOption = None, verbose: VerboseOption = False) -> int:
    """Serve the server that this machine joined, until SIGTERM or Ctrl-C."""
    from mindgw_agent.settings import StateDir

    state = StateDir(state_dir)
    settings = state.load()
    if settings is None:
        raise errors.NotEnrolled(f"{state.path} has not joined a server")
    with state.lock():
        return _serve(state, settings, verbose)


@app.command()
def status(ctx: typer.Context, state_dir: StateOption = None, as_json: JsonOption = False) -> int:
    """Does the agent on this machine serve? Exit code 3 when it does not.

    Shows tunnel, engine, models, slots, receipts that wait for the server, and the last error.
    """
    import msgspec

    from mindgw_agent.settings import StateDir
    from mindgw_agent.status import read

    found = read(StateDir(state_dir))
    if as_json or _inherited(ctx, "output") == "json":
        _print(msgspec.to_builtins(found) | {"up": found.is_up})
    else:
        _show(found)
    return 0 if found.is_up else 3


@app.command()
def leave(state_dir: StateOption = None) -> int:
    """Leave the server, and remove the identity from here.

    Works when the server is gone, too: then it says so.
    """
    from mindgw_agent import join as joining
    from mindgw_agent.settings import StateDir
    from mindgw_agent.status import read

    state = StateDir(state_dir)
    try:
        settings = state.load()
    except errors.BadState as error:
        _say(f"! {error.message}")
        settings = None
    if settings is None:
        state.forget()
        _say(f"✓ nothing is left of an agent in {state.path}")
        return 0
    try:
        joining.leave(state, settings)
    except errors.AgentError as error:
        if state.is_locked():
            hint = "stop it first, or leave once the server is back"
            raise errors.Occupied(f"an agent serves from {state.path}, and the server cannot be told: {error.message}", hint=hint) from None
        _say(f"! the server could not be told: {error.message}\n  on the server: mindgw workers remove {settings.name}")
    else:
        _say(f"✓ {settings.servers[0]} forgot {settings.name}")
    if waiting := read(state).receipts:
        _say(f"! {waiting} receipts that the server never acknowledged are removed, too")
    state.forget()
    _say(f"✓ identity removed from {state.path}")
    return 0


@app.command()
def pause(span: Annotated[str, typer.Argument(metavar="SPAN", help="90s, 15m, 2h or 1d.")], state_dir: StateOption = None) -> int:
    """Take no requests for a while: those that run go on, and the server sees until when.

    Example: mindgw agent pause 2h
    """
    from mindgw_agent import decisions
    from mindgw_agent.settings import StateDir

    _say(f"✓ {decisions.pause_box(StateDir(state_dir), span)}")
    return 0


@app.command()
def resume(state_dir: StateOption = None) -> int:
    """Take requests again before the pause is over."""
    from mindgw_agent import decisions
    from mindgw_agent.settings import StateDir

    _say(f"✓ {decisions.resume_box(StateDir(state_dir))}")
    return 0


service = typer.Typer(help="The agent as a service of systemd.", **_SETTINGS)
app.add_typer(service, name="service")
SystemOption = Annotated[
    bool, typer.Option("--system/--user", help="A unit of the machine, which takes root, or of this user; when not said, of this user.")
]


@service.command("install")
def service_install(system: SystemOption = False, state_dir: StateOption = None) -> int:
    """Have systemd run the agent, from now on and after each start: mindgw agent service install

    The directory must have joined: mindgw agent join TOKEN --enroll-only
    """
    found = _service(system, state_dir)
    remark = found.install()
    _say(f"✓ {found.file} is enabled and runs" + (f"\n  {remark}" if remark else ""))
    return 0


@service.command("uninstall")
def service_uninstall(system: SystemOption = False, state_dir: StateOption = None) -> int:
    """End the service and remove its unit; the identity stays, `mindgw agent leave` removes that."""
    found = _service(system, state_dir)
    found.uninstall()
    _say(f"✓ nothing is left of {found.file}")
    return 0


@service.command("status")
def service_status(system: SystemOption = False, state_dir: StateOption = None) -> int:
    """What systemd says of the service; exit code 3 when it is not active."""
    said = _service(system, state_dir).status()
    typer.echo(said)
    return 0 if said == "active" else 3


def _service(system: bool, state_dir: Path | None) -> "Service":
    from mindgw_agent.settings import StateDir
    from mindgw_agent.unit import Service

    return Service(StateDir(state_dir), "system" if system else "user")


def _enrol(state: "StateDir", token: str, name: str, replace: bool, server: str) -> "Settings":
    from mindgw_agent import join as joining

    servers = (server,) if server else ()
    settings = joining.join(state, joining.read_token(token), name=_name(name), replace=replace, servers=servers)
    _say(f"✓ joined {settings.servers[0]} as {settings.name}")
    return settings


def _serve(state: "StateDir", settings: "Settings", verbose: bool) -> int:
    from mindgw_agent import serve

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
    )
    logging.getLogger("websockets").setLevel(logging.WARNING)
    _say(f"  serving {settings.servers[0]} as {settings.name}; Ctrl-C drains and ends")
    return serve.run(state, settings)


def _check(chosen: dict[str, Any], enroll_only: bool) -> None:
    """Find what cannot work before a token that is good for once is spent on it."""
    from mindgw_agent.settings import Settings

    _try(Settings(agent_id="-", name="", servers=["-"], server_identity=bytes(32), **chosen), enroll_only)


def _try(settings: "Settings", enroll_only: bool) -> None:
    """Whether there can be an engine; one that is not up yet is told by the log of whoever serves, or here."""
    from mindgw_agent import serve

    serve.check_engine(settings)
    why = serve.try_engine(settings)
    if why and enroll_only:
        _say(f"! the engine cannot be used yet: {why}")


def _change(state: "StateDir", settings: "Settings", chosen: dict[str, Any], server: str, enroll_only: bool) -> "Settings":
    """What was said to a directory that joined before, once it is known to be good."""
    from msgspec.structs import replace

    from mindgw_agent import address
    from mindgw_agent import join as joining

    if chosen:
        _try(replace(settings, **chosen), enroll_only)
    is_new = server and address.parse(server).root not in settings.servers
    now = joining.move(settings, server) if is_new else settings
    _say(f"✓ joined {now.servers[0]} as {now.name} before; a token is not needed")
    return _keep(state, settings, now, chosen)


def _keep(state: "StateDir", before: "Settings", now: "Settings", chosen: dict[str, Any]) -> "Settings":
    """The settings of now with what was chosen for the engine; on the disk, where those of before are."""
    from msgspec.structs import replace

    kept = replace(now, **chosen)
    if kept != before:
        state.save(kept)
    return kept


def _read_token(argument: str, file: Path | None) -> str:
    """The token, from wherever it was said to be; one on the command line can be seen by others on this machine."""
    from mindgw_agent.settings import token_from_environment

    if argument == "-":
        return sys.stdin.read(_MAX_TOKEN)
    if argument:
        return argument
    if file is not None:
        try:
            with file.open(encoding="utf-8", errors="replace") as stream:
                return stream.read(_MAX_TOKEN)
        except OSError as error:
            raise errors.Misuse(f"cannot read {file}: {error.strerror}", hint="check the path, and who may read it") from None
    found = token_from_environment()
    if not found:
        raise errors.Misuse("a join token is needed", hint=errors.NotEnrolled.default_hint)
    return found


def _name(name: str) -> str | None:
    import re

    from mindgw_agent.enrolment import NAME_PATTERN

    if name and re.fullmatch(NAME_PATTERN, name) is None:
        raise errors.Misuse(
            f"{name!r} cannot be a name", hint="letters, digits, dots, dashes and underscores, 63 at most, a letter or digit first"
        )
    return name or None


def _inherited(ctx: typer.Context, flag: str) -> Any:
    """A flag that stood before `agent`, where the program above takes it."""
    return getattr(getattr(ctx.find_root().obj, "options", None), flag, "")


def _show(found: "Status") -> None:
    rows = [
        ("name", found.name or "not joined"),
        ("server", found.server),
        (
            "tunnel",
            found.tunnel + (f", {found.rtt_ms} ms" if found.rtt_ms is not None else "") + (f", since {found.since}" if found.since else ""),
        ),
        ("state", found.standing if found.standing not in {"", "active"} else ""),
        ("paused", f"until {found.paused_until}" if found.paused_until else ""),
        *(("engine", _engine(engine)) for engine in found.engines or [found.engine]),
        ("models", ", ".join(found.models)),
        ("slots", f"{found.running}/{found.slots}"),
        ("receipts", f"waiting: {found.receipts}"),
        ("error", found.error),
        ("next", found.hint),
    ]
    for title, value in rows:
        if value:
            typer.echo(f"{title:<7} {_clean(value)}")


def _engine(engine: "Engine") -> str:
    facts = " ".join(filter(None, (engine.kind, engine.version, engine.url)))
    return f"{facts or 'none'} ({'healthy' if engine.healthy else 'not healthy'})"


def _print(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _say(text: str) -> None:
    typer.echo(_clean(text, keep="\n"), err=True)


def _clean(text: str, keep: str = "") -> str:
    """Without control characters: names come from elsewhere and must not drive the terminal."""
    return "".join(letter if letter.isprintable() or letter in keep else f"\\x{ord(letter):02x}" for letter in text)


root = typer.Typer(
    help="The agent of MindGateway: stands in front of the engine of a GPU box.",
    context_settings={"help_option_names": ["-h", "--help"]},
    **_SETTINGS,
)
root.add_typer(app, name="agent")


@root.callback(invoke_without_command=True)
def _root(ctx: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")] = False) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@root.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    if as_json:
        _print({"version": __version__, "python": platform.python_version()})
    else:
        typer.echo(f"mindgw-agent {__version__}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = _called()
    try:
        result = root(words, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, Abort) as stop:
        _say("aborted")
        return 130 if isinstance(stop, KeyboardInterrupt) else 1
    except errors.AgentError as error:
        return _fail(error, words)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        return _fail(errors.Misuse(error.format_message(), hint=f"`{context.command_path if context else name} --help` shows how"), words)
    except Exception as error:  # noqa: BLE001 - the top of the program: whatever is left is our fault, and says so
        return _fail(
            errors.AgentError(f"{type(error).__name__}: {error}", hint="this is a defect; --debug shows where", code="internal_error"),
            words,
        )


def _called() -> str:
    """The name of this command: the slim half goes by `mindgw` where install.sh put it."""
    name = Path(sys.argv[0]).name
    return name if name in _NAMES else _NAMES[0]


def _fail(error: errors.AgentError, words: Sequence[str]) -> int:
    """Three lines for people, one object for programs."""
    if "--debug" in words:
        typer.echo(traceback.format_exc(), err=True)
    if "--json" in words:
        typer.echo(
            json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint or None}}, ensure_ascii=False), err=True
        )
        return error.exit_code
    _say(f"error: {error.message}")
    if error.hint:
        _say(f"hint:  {error.hint}")
    _say(f"ref:   code={error.code}  exit {error.exit_code}")
    return error.exit_code
