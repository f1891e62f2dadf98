"""`mindgw keys scan`: keys of ours that stand where none should be."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api, leaks
from mindgw.client.errors import UsageProblem
from mindgw.client.leaks import LIVE, Leak

#: Exit code of a check that found something.
FOUND = 3
_STDIN = "-"

COLUMNS = (
    Column("WHERE", lambda leak: str(leak["where"])),
    Column("ID", lambda leak: str(leak["id"])),
    Column("STATE", lambda leak: str(leak["state"])),
    Column("NAME", lambda leak: str(leak["name"])),
    Column("OWNER", lambda leak: str(leak["owner"])),
)


def scan(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders; - is what comes in.")],
) -> int:
    """Find API keys in files and tell which are live; exits 3 when one is: git log -p | mindgw keys scan -"""
    run = invocation(ctx)
    found = [(where, leak) for path in paths for where, leak in _leaks(run, path)]
    known = {str(key["id"]): key for key in run.server().items(api.list_keys())} if found else {}
    shown = [_told(where, leak, known) for where, leak in found]
    run.render.items(shown, COLUMNS, name="id")
    live = sorted({str(leak["id"]) for leak in shown if leak["state"] == LIVE})
    if live:
        run.render.warn(f"{len(live)} live: `mindgw keys rotate KEY --grace 0`, or `mindgw keys revoke {' '.join(live)}`")
    return FOUND if live else 0


def _leaks(run: Invocation, path: str) -> Iterator[tuple[str, Leak]]:
    if path == _STDIN:
        yield from ((f"{_STDIN}:{leak.line}", leak) for leak in leaks.find(sys.stdin.buffer))
        return
    if not Path(path).exists():
        raise UsageProblem(f"there is no {path}", hint="name files or folders, or - for what comes in")
    for file in leaks.files(Path(path)):
        try:
            with file.open("rb") as opened:
                yield from ((f"{file}:{leak.line}", leak) for leak in leaks.find(opened))
        except OSError as wrong:
            run.render.warn(f"{file} was not read: {wrong.strerror}")


def _told(where: str, leak: Leak, known: Mapping[str, Item]) -> Item:
    key = known.get(leak.id, {})
    owner = " ".join(str(part) for part in (key.get("team"), key.get("user")) if part) or "–"
    return {"where": where, "id": leak.id, "state": leaks.state(leak, known), "name": str(key.get("name") or "–"), "owner": owner}
