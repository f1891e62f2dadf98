"""`mindgw config diff|apply|export`: that a server has what a file declares."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindgw.cli.invocation import Invocation, invocation
from mindgw.client.errors import ClientError, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.plan import Change, Known
    from mindgw.client.transport import Server
    from mindgw.declaration import Declared

#: Exit code when something differs.
DIFFERS = 3
#: What is to be typed before things are removed.
WORD = "prune"
#: Largest file.
MAX_FILE = 8 * 2**20

File = Annotated[Path, typer.Argument(metavar="FILE", help="What is declared, such as gateway.yaml.")]
Prune = Annotated[bool, typer.Option("--prune", help="Also remove what a section of the file does not name.")]


def declared(file: Path) -> "Declared":
    """What a file says, with what it takes from this machine's environment. Raises ConfigError."""
    from mindgw import config, declaration
    from mindgw.client import kinds
    from mindgw.errors import ConfigError

    text = config.read(file)
    if len(text) > MAX_FILE:
        raise ConfigError(f"{file} is larger than {MAX_FILE >> 20} MiB", hint="declare less in one file")
    found = declaration.read(text, config.environment(), str(file))
    return declaration.Declared([kinds.normal(item) for item in found.items], found.sections, found.file)


def diff(ctx: typer.Context, file: File, *, prune: Prune = False) -> int:
    """Show what differs between a file and the server; changes nothing, exits 3 when something does: mindgw config diff gateway.yaml"""
    run = invocation(ctx)
    changes = _planned(run, run.server(), file, prune=prune)
    _show(run, changes, [])
    return DIFFERS if changes else 0


def apply(
    ctx: typer.Context,
    *,
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="What is declared, such as gateway.yaml.")],
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would be done.")] = False,
    prune: Prune = False,
) -> None:
    """Make it so that the server has what a file declares; again and again it changes nothing: mindgw config apply -f gateway.yaml"""
    run = invocation(ctx)
    server = run.server()
    changes = _planned(run, server, file, prune=prune)
    if dry_run:
        _show(run, changes, [])
        return
    _confirm(run, [change for change in changes if change.verb == "remove"])
    _show(run, changes, _carried_out(run, server, changes))


def export(
    ctx: typer.Context,
    *,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="SECTION", help="keys, users and so on; else all.")] = None,
) -> None:
    """Print what the server has as a file that `apply` takes; never a secret: mindgw config export > gateway.yaml"""
    from mindgw import declaration
    from mindgw.client import kinds
    from mindgw.client.plan import alone
    from mindgw.settings_file import Place

    run = invocation(ctx)
    unknown = [name for name in only or () if name not in kinds.KINDS]
    if unknown:
        raise UsageProblem(f"there is no section {unknown[0]!r}", hint=f"there are {', '.join(kinds.KINDS)}")
    known, several = alone(_there(run.server(), only or kinds.KINDS))
    for path in several:
        run.render.warn(
            f"left out: {path}: there are several of this name, and a file can name one alone; rename them, or revoke all but one"
        )
    items = kinds.declared(known, Place("export"))
    if run.options.output == "json":
        shown: dict[str, dict[str, Any]] = {}
        for item in items:
            shown.setdefault(item.kind, {})[item.name] = item.fields
        run.render.item({declaration.MARK: declaration.VERSION, **shown}, (), name=declaration.MARK)
    elif run.options.output == "name" or run.options.quiet:
        for item in items:
            run.render.datum(item.path)
    else:
        run.render.raw(declaration.write(items))


def _planned(run: Invocation, server: "Server", file: Path, *, prune: bool) -> "list[Change]":
    from mindgw.client import kinds
    from mindgw.client.plan import plan

    wanted = declared(file)
    unknown = [item for item in wanted.items if item.kind not in kinds.KINDS]
    if unknown:
        raise UsageProblem(f"{unknown[0].place}: {unknown[0].kind} cannot be declared yet", hint="leave that section out")
    return plan(wanted, _there(server, wanted.sections), prune=prune)


def _there(server: "Server", sections: Iterable[str]) -> "list[Known]":
    """What the server has of these kinds."""
    from mindgw.client.kinds import KINDS, Asking

    key = re.match(r"mgw_([0-9A-Za-z]{10})_", server.token)
    asking = Asking(key[1] if key else "", cache(lambda: {item["id"]: item["name"] for item in server.items(KINDS["keys"].listing())}))
    return [known for name, kind in KINDS.items() if name in set(sections) for known in kind.known(server.items(kind.listing()), asking)]


def _confirm(run: Invocation, gone: "Sequence[Change]") -> None:
    """Goes on when nothing is removed, or the word is typed."""
    if not gone or run.options.yes:
        return
    names = ", ".join(change.path for change in gone[:10]) + (f" and {len(gone) - 10} more" if len(gone) > 10 else "")
    question = f"This removes {names}."
    run.require_person("--yes required when not running interactively", hint=f"{question} Add --yes to do it without being asked")
    if (run.render.ask(f"{question} Type {WORD} to do it:") or "") != WORD:
        raise UsageProblem("nothing was changed", hint=f"type {WORD}, or say --yes")


def _carried_out(run: Invocation, server: "Server", changes: "Sequence[Change]") -> list[dict[str, str]]:
    """Secrets of what was made, by change. They are nowhere else: each is shown as soon as there is one, and where all is shown as one
    document, that is shown whatever ends this."""
    made: list[dict[str, str]] = []
    number = 0
    try:
        for change in changes:
            _carry_out(run, server, change, made)
            number += 1
    except ClientError as problem:
        change, done = changes[number], f"{number} of {len(changes)} changes are done, and are not done again when you run it again"
        problem.message = f"{change.place + ': ' if change.place else ''}{change.path}: {problem.message}"
        problem.hint = f"{problem.hint}; {done}" if problem.hint else done
        raise
    finally:
        if number < len(changes):
            _show(run, changes[:number], made)
    return made


def _carry_out(run: Invocation, server: "Server", change: "Change", made: list[dict[str, str]]) -> None:
    from mindgw.client.kinds import KINDS

    for request in KINDS[change.kind].requests(change):
        for kind, text in _secrets_in(server.call(request)).items():
            made.append({"path": change.path, "kind": kind, "secret": text})
            _tell(run, made[-1])


def _secrets_in(answer: Any) -> dict[str, str]:
    from mindgw.client.kinds import SECRETS

    return {name: str(answer[name]) for name in SECRETS if isinstance(answer, dict) and answer.get(name)}


def _show(run: Invocation, changes: "Sequence[Change]", made: list[dict[str, str]]) -> None:
    from mindgw.client.plan import SIGNS, counted

    numbers = counted(changes)
    if run.options.output == "json":
        run.render.item({"changes": [change.as_json() for change in changes], **numbers, "secrets": made}, (), name="create")
        return
    for change in changes:
        run.render.note(f"{SIGNS[change.verb]} {change.path}{_told(change.as_json())}")
    summary = " ".join(f"{sign}{numbers[verb]}" for verb, sign in SIGNS.items())
    run.render.success(summary if changes else "The server has all that is declared")


def _tell(run: Invocation, secret: Mapping[str, str]) -> None:
    """A secret as what it is of and itself, on stdout: it is shown this once."""
    if run.options.output != "json":
        run.render.datum(f"{secret['path']} {secret['secret']}")


def _told(change: Mapping[str, Any]) -> str:
    """What changes, for people."""
    if change["change"] == "remove":
        return ""
    before, after = change["before"], change["after"]
    if change["change"] == "create":
        return "".join(f"  {name}: {_short(value)}" for name, value in after.items())
    return "".join(f"  {name}: {_short(before.get(name))} -> {_short(value)}" for name, value in after.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
