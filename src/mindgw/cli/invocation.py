"""One run of a command: its flags, its way to the terminal, its way to a server."""

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from mindgw.cli.render import Render
from mindgw.cli.settings import Environment, Options
from mindgw.client.errors import UsageProblem

if TYPE_CHECKING:
    from mindgw.client.transport import Server


@dataclass(frozen=True, slots=True)
class Invocation:
    options: Options
    environment: Environment
    render: Render

    def server(self, *, anonymous: bool = False) -> "Server":
        """The server that the flags, the environment or the current context name, in that order, with the key for it.

        Raises NotLoggedIn when no server or no key is known; `anonymous` asks for no key and sends none.
        """
        from mindgw.cli.target import choose

        target = choose(self.options, self.environment, anonymous=anonymous)
        return replace(target, timeout=self.options.timeout, note=self.render.wire)

    def confirm(self, question: str) -> None:
        """Goes on when the answer is yes. Raises UsageProblem where nobody can answer, Abort when the answer is no."""
        if self.options.yes:
            return
        self.require_person("--yes required when not running interactively", hint=f"{question} Add --yes to do it without being asked")
        if (self.render.ask(f"{question} [y/N]:") or "n").lower() not in {"y", "yes"}:
            raise typer.Abort

    def require_person(self, message: str, *, hint: str) -> None:
        """Raises UsageProblem unless somebody sits at the terminal and may be asked."""
        if self.options.no_input or not sys.stdin.isatty():
            raise UsageProblem(message, hint=hint)


def invocation(ctx: typer.Context) -> Invocation:
    """The invocation that the root command was called with."""
    found = ctx.find_root().obj
    if not isinstance(found, Invocation):
        raise TypeError("this command runs below `mindgw` only")
    return found
