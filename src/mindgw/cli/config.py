"""`mindgw config`: the settings of a server on its own machine; and what is declared for one, from anywhere."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mindgw.cli import config_apply
from mindgw.cli.groups import DataDir, noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column
from mindgw.client.errors import ClientError
from mindgw.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

app = noun("Settings of a server, on its own machine; and files that declare roles, users, keys and limits, from anywhere.")
app.command("diff")(config_apply.diff)
app.command("apply")(config_apply.apply)
app.command("export")(config_apply.export)

#: Exit code of a check that found something.
FOUND = 3

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings that lie elsewhere.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A setting with its section, such as log.level.")]

COLUMNS = (
    Column("SETTING", lambda item: str(item["key"])),
    Column("VALUE", lambda item: str(item["value"])),
    Column("FROM", lambda item: str(item["origin"])),
)


def _place(data_dir: Path | None, file: Path | None) -> tuple[Path, str]:
    """The settings file, which need not be there, and the data directory."""
    from mindgw import config

    directory = config.data_directory(data_dir)
    return file or directory / config.FILE, str(directory)


@app.command("path")
def path(ctx: typer.Context, *, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Print where the settings file of this machine's server is: mindgw config path"""
    invocation(ctx).render.datum(str(_place(data_dir, config)[0]))


@app.command("show")
def show(
    ctx: typer.Context,
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    all_: Annotated[bool, typer.Option("--all", help="Those that are as they would be anyway, too.")] = False,
) -> None:
    """Show the settings in force and where each comes from; passwords are left out: mindgw config show --all"""
    import msgspec

    from mindgw import config as settings
    from mindgw import settings_view

    run = invocation(ctx)
    file, directory = _place(data_dir, config)
    text = settings.read(file, missing_ok=config is None)
    found = settings_view.effective(text, directory, settings.environment(), file=str(file))
    run.render.items([msgspec.to_builtins(one) for one in found if all_ or one.origin != "default"], COLUMNS, name="key")


@app.command("get")
def get(ctx: typer.Context, key: Key, *, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Print one setting as it is in force: mindgw config get log.level"""
    import msgspec

    from mindgw import config as settings
    from mindgw import settings_file, settings_view

    run = invocation(ctx)
    file, directory = _place(data_dir, config)
    found = settings_view.effective(settings.read(file, missing_ok=config is None), directory, settings.environment(), file=str(file))
    named = next((one for one in found if one.key == key), None)
    if named is None:
        raise settings_file.unknown(key, settings.Config)
    if run.options.output == "json":
        run.render.item(msgspec.to_builtins(named), COLUMNS, name="key")
    else:
        run.render.datum(named.value)


@app.command("set")
def set_value(
    ctx: typer.Context,
    key: Key,
    value: Annotated[str, typer.Argument(help="Taken literally: a ${NAME} in it is not looked up.")],
    *,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would change.")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Change one setting where it stands in the file; all else stays as it is: mindgw config set log.level debug"""
    from mindgw import config as settings
    from mindgw import settings_edit

    run = invocation(ctx)
    file, directory = _place(data_dir, config)
    text = settings.read(file, missing_ok=config is None)
    changed = settings_edit.change(text, key, value, settings.Config, str(file))
    settings.parse(changed, directory, file=str(file))
    _keep(run, file, text, changed, dry_run=dry_run)


def _keep(run: Invocation, file: Path, before: str, after: str, *, dry_run: bool = False) -> None:
    """Writes a text that was checked; says what is different."""
    from difflib import unified_diff

    lines = list(unified_diff(before.splitlines(), after.splitlines(), str(file), str(file), lineterm="", n=1))
    shown = {"file": str(file), "changed": bool(lines), "diff": lines}
    if not lines:
        run.render.done(shown, "It is so already", name="file")
        return
    if run.options.output == "table":
        run.render.note("\n".join(lines[2:]))
    if dry_run:
        run.render.done(shown, "Nothing was changed: that is what would be", name="file")
        return
    _write(file, after)
    run.render.done(shown, f"{file} is changed; the server reads it at its next start", name="file")


def _write(file: Path, text: str) -> None:
    from mindgw_agent import private_files

    try:
        private_files.write(file, text.encode())
    except OSError as error:
        hint = "`mindgw init` makes a data directory; --config names a file elsewhere"
        raise ConfigError(f"cannot write {file}: {error.strerror}", hint=hint) from None


@app.command("edit")
def edit(ctx: typer.Context, *, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Open the settings in $EDITOR; they are kept once they make sense: mindgw config edit"""
    from mindgw import config as settings

    run = invocation(ctx)
    file, directory = _place(data_dir, config)
    text = settings.read(file, missing_ok=config is None)
    changed = _edited(run, file, text or settings.dump(settings.parse("", directory, {})), lambda said: _check(said, directory, file))
    _keep(run, file, text, changed)


def _check(text: str, directory: str, file: Path) -> None:
    from mindgw import config as settings

    settings.parse(text, directory, file=str(file))


def _edited(run: Invocation, file: Path, text: str, check: "Callable[[str], None]") -> str:
    """What a person makes of a text, once it passes. Raises what `check` raises when the person gives up."""
    draft = file.with_name(f".{file.name}.draft")
    _write(draft, text)
    try:
        while True:
            done = subprocess.run([*shlex.split(run.environment.editor), str(draft)], check=False)
            if done.returncode:
                raise ClientError(f"the editor ended with {done.returncode}: nothing was changed", hint="EDITOR names another one")
            said = draft.read_text(encoding="utf-8", errors="surrogateescape")
            wrong = _wrong(check, said)
            if wrong is None:
                return said
            run.render.warn(wrong.message)
            if run.options.no_input or (run.render.ask("Edit it again? [Y/n]:") or "n").lower() in {"n", "no"}:
                raise wrong
    finally:
        draft.unlink(missing_ok=True)


def _wrong(check: "Callable[[str], None]", text: str) -> ConfigError | None:
    try:
        check(text)
    except ConfigError as wrong:
        return wrong
    return None


@app.command("validate")
def validate(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Settings, or declarations; else the settings of this machine.")
    ] = None,
    *,
    data_dir: DataDir = None,
) -> int:
    """Read a file and say what is wrong in it; changes nothing, exits 3 when something is: mindgw config validate gateway.yaml"""
    from mindgw import config as settings
    from mindgw import declaration

    run = invocation(ctx)
    path, directory = _place(data_dir, file)
    kind, problem, hint = "settings", "", ""
    try:
        text = settings.read(path, missing_ok=file is None)
        if declaration.is_one(text, str(path)):
            kind = "declarations"
            config_apply.declared(path)
        else:
            settings.parse(text, directory, file=str(path))
    except ConfigError as wrong:
        problem, hint = wrong.message, wrong.hint
    if run.options.output == "json":
        run.render.item({"ok": not problem, "file": str(path), "kind": kind, "problem": problem or None}, (), name="ok")
    if problem:
        run.render.warn(problem)
        run.render.note(hint)
        return FOUND
    run.render.success(f"{path}: these {kind} are right")
    return 0


@app.command("schema")
def schema(
    ctx: typer.Context,
    of: Annotated[str, typer.Argument(metavar="settings|declarations", help="Of which kind of file.")] = "declarations",
) -> None:
    """Print the JSON schema of a kind of file, for an editor: mindgw config schema > gateway.schema.json"""
    from mindgw import config as settings
    from mindgw import file_schema
    from mindgw.client.errors import UsageProblem

    if of not in {"settings", "declarations"}:
        raise UsageProblem(f"there is no schema {of!r}", hint="settings or declarations")
    found = file_schema.settings(settings.Config) if of == "settings" else file_schema.declarations()
    invocation(ctx).render.datum(json.dumps(found, indent=2))
