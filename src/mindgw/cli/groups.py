"""Groups of commands: mounted when they are called, not before, and known by the names that people guess."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup
from typer.exceptions import TyperException

from mindgw.client.errors import UsageProblem

#: What people type -> the verbs it may stand for; the first that exists is meant.
GUESSES = {
    "ls": ("list",),
    "get": ("show",),
    "describe": ("show",),
    "rm": ("remove", "revoke", "cancel", "clear"),
    "delete": ("remove", "revoke", "cancel", "clear"),
    "remove": ("revoke", "clear"),
    "revoke": ("remove",),
    "add": ("create",),
    "new": ("create",),
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A command or a group that is imported when it is called."""

    name: str
    #: "module:attribute" of a Typer app.
    target: str
    #: One line for `mindgw --help`, which imports nothing.
    help: str
    section: str
    #: Other names, shown nowhere.
    aliases: tuple[str, ...] = field(default=())
    #: Not in the help of all: most people never need it.
    is_hidden: bool = False


def _directory(text: str) -> Path:
    """Nothing at all would be the directory in which the command happens to run."""
    if not text.strip():
        raise UsageProblem(f"command line: --data-dir: must be a path, not {text!r}", hint="leave it out for the usual one, or name one")
    return Path(text)


#: The flag of all commands that work on a server's own disk.
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Else MINDGW_DATA_DIR, else XDG.", parser=_directory)]


class NounGroup(TyperGroup):
    """The verbs of one noun. Without a verb it shows its help and is content."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, self._meant(cmd_name))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def _meant(self, name: str) -> str:
        if name in self.commands:
            return name
        return next((verb for verb in GUESSES.get(name, ()) if verb in self.commands), name)


def lazy_group(mounts: Sequence[Mount]) -> type[TyperGroup]:
    """A class of group whose commands are `mounts`, in their order and under their sections."""
    by_name = {name: mount for mount in mounts for name in (mount.name, *mount.aliases)}

    class LazyGroup(NounGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [mount.name for mount in mounts if not mount.is_hidden]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            mount = by_name.get(cmd_name)
            if mount is None:
                return None
            if mount.name not in self.commands:
                self.commands[mount.name] = _load(mount)
            return self.commands[mount.name]

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
            try:
                return super().resolve_command(ctx, args)
            except TyperException as problem:
                near = get_close_matches(args[0], [mount.name for mount in mounts])
                if near and "Did you mean" not in problem.message:
                    problem.message = f"{problem.message.rstrip('.')}. Did you mean {', '.join(map(repr, near))}?"
                raise

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            shown = [mount for mount in mounts if not mount.is_hidden]
            for section in dict.fromkeys(mount.section for mount in shown):
                with formatter.section(section):
                    formatter.write_dl([(mount.name, mount.help) for mount in shown if mount.section == section])

    return LazyGroup


def _load(mount: Mount) -> Any:
    module, _, attribute = mount.target.partition(":")
    command = typer.main.get_command(getattr(import_module(module), attribute))
    command.name = mount.name
    return command


def noun(help_text: str) -> typer.Typer:
    """A group of verbs, with the settings that all of them share."""
    group = typer.Typer(cls=NounGroup, help=help_text, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    group.callback()(_keep_group)
    return group


def _keep_group() -> None:
    """With a callback, a noun of one verb stays a noun."""


def verb(help_text: str = "") -> typer.Typer:
    """A command that stands at the top by itself."""
    return typer.Typer(help=help_text or None, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
