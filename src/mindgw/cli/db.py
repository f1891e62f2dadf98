"""`mindgw db`: the database of a server, on the machine that serves it. A server need not run."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindgw.cli.groups import DataDir, noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column

if TYPE_CHECKING:
    from mindgw.config import Config

app = noun("The database of a server, on its own machine.")

#: Exit code of a check that found something.
FOUND = 3

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings that lie elsewhere.")]

_NEWS = {
    "behind": "an older release made this database: `mindgw db upgrade`, or the next start of a server, brings it to {head}",
    "newer": "a newer release made this database: this one changes nothing in it. Install that release again, or restore a copy",
    "empty": "nothing is there yet, or not any more: `mindgw init` makes an empty database",
}


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _rows(found: Any) -> str:
    counts = (f"{table} {'about ' * (table in found['estimated'])}{count}" for table, count in found["rows"].items())
    return ", ".join(counts) or "–"


def _serving(found: Any) -> str:
    pid = found["serving"]
    return "nobody" if pid is None else f"process {pid or '?'}"


STATUS = (
    Column("DATABASE", lambda found: str(found["database"])),
    Column("KIND", lambda found: f"{found['kind']} {found['version']}".rstrip()),
    Column("STATE", lambda found: str(found["state"])),
    Column("REVISION", lambda found: f"{found['revision'] or 'none'} of {found['head']}"),
    Column("SIZE", lambda found: _size(found["size"])),
    Column("COMMITS", lambda found: " ".join(filter(None, (found["journal"], f"synchronous {found['synchronous'] or '–'}")))),
    Column("SERVED BY", _serving),
    Column("ROWS", _rows),
)

PROBLEMS = (
    Column("CHECK", lambda problem: str(problem["check"])),
    Column("OBJECT", lambda problem: str(problem["object"])),
    Column("PROBLEM", lambda problem: str(problem["problem"])),
)


@app.command("status")
def show(ctx: typer.Context, *, data_dir: DataDir = None, config: ConfigFile = None) -> int:
    """How it is: what it is, how large, at which schema. Exits 3 unless this release works with it: mindgw db status --json"""
    import msgspec

    from mindgw.control import database

    run = invocation(ctx)
    found = asyncio.run(database.status(_settings(config, data_dir)))
    run.render.item(msgspec.to_builtins(found), STATUS, name="state")
    if found.state == "current":
        return 0
    run.render.warn(_NEWS[found.state].format(head=found.head))
    return FOUND


@app.command("upgrade")
def upgrade(ctx: typer.Context, *, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Bring it to what this release works with; of an SQLite file a copy is made first: mindgw db upgrade"""
    from mindgw.control import database

    run = invocation(ctx)
    _moved(run, asyncio.run(database.upgrade(_settings(config, data_dir))))


@app.command("downgrade")
def downgrade(
    ctx: typer.Context,
    revision: Annotated[str | None, typer.Argument(metavar="[REVISION]", help="Which to go back to; else one step.")] = None,
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Take it back to what an older release works with; what newer ones brought is lost: mindgw db downgrade 0002"""
    from mindgw.control import database

    run = invocation(ctx)
    settings = _settings(config, data_dir)
    move = asyncio.run(database.step(settings, revision))
    copied = "a copy is made first" if database.is_file(settings) else "no copy is made of a Postgres: pg_dump makes one"
    _confirm(run, f"From {move.before} back to {move.after}: what the newer revisions keep is deleted; {copied}.", move.after)
    _moved(run, asyncio.run(database.downgrade(settings, move)))
    run.render.note(f"Start no server of this release: it would bring the database to {move.before} again.")


@app.command("check")
def check(ctx: typer.Context, *, data_dir: DataDir = None, config: ConfigFile = None) -> int:
    """Look for what is broken in it; exits 3 when something is. Also beside a running server: mindgw db check"""
    import msgspec

    from mindgw.control import database

    run = invocation(ctx)
    report = asyncio.run(database.check(_settings(config, data_dir)))
    problems = msgspec.to_builtins(report.problems)
    if run.options.output == "json":
        run.render.item({**msgspec.to_builtins(report), "ok": report.ok}, (), name="ok")
    elif problems:
        run.render.items(problems, PROBLEMS, name="object")
    if report.ok:
        run.render.success(f"{report.database}: {', '.join(report.checks)}: nothing is wrong")
        return 0
    run.render.warn(f"{report.database}: {len(problems)} {'things are' if len(problems) > 1 else 'thing is'} wrong")
    return FOUND


def _settings(file: Path | None, data_dir: Path | None) -> "Config":
    from mindgw import config

    return config.load(file, data_dir)


def _confirm(run: Invocation, question: str, word: str) -> None:
    """Goes on when the word is typed. Raises UsageProblem where nobody can type it, Abort when something else is."""
    if run.options.yes:
        return
    run.require_person("--yes required when not running interactively", hint=f"{question} Add --yes to do it without being asked")
    if run.render.ask(f"{question} Type {word} to do it:") != word:
        raise typer.Abort


def _moved(run: Invocation, move: Any) -> None:
    shown = {"before": move.before, "after": move.after, "backup": str(move.backup) if move.backup else None}
    if move.before == move.after:
        text = f"The database is at {move.after} already"
    else:
        text = f"The database went from {move.before} to {move.after}" + (f"; the copy of before is {move.backup}" if move.backup else "")
    run.render.done(shown, text, name="after")
