"""`mindgw ledger`: what is written down about every request, and whether it is right."""

from contextlib import closing
from typing import Annotated, Any

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api

app = noun("The ledger: what every request used, written once and never changed.")

#: Exit code of a check that found something.
FOUND = 3

COLUMNS = (
    Column("ATTEMPT", lambda row: str(row.get("attempt", "–"))),
    Column("KIND", lambda row: str(row.get("kind", "–"))),
    Column("OUTCOME", lambda row: " ".join(str(row[part]) for part in ("outcome", "error_code") if row.get(part)) or "–"),
    Column("WORKER", lambda row: str(row.get("worker") or "–")),
    Column("MODEL", lambda row: str(row.get("model") or "–")),
    Column("OWNER", lambda row: " ".join(str(row[part]) for part in ("team", "user", "key") if row.get(part)) or "–"),
    Column("TOKENS IN", lambda row: f"{row.get('tokens_in') or 0:,}"),
    Column("TOKENS OUT", lambda row: f"{row.get('tokens_out') or 0:,}"),
    Column("COST USD", lambda row: str(row.get("cost_usd", "–"))),
    Column("COUNTED BY", lambda row: str(row.get("source") or "–")),
    Column("DAY", lambda row: str(row.get("day", "–"))),
    Column("COMMIT", lambda row: f"{row.get('epoch')}.{row.get('seq')}"),
)
_BROKEN = (
    Column("INVARIANT", lambda broken: str(broken.get("invariant", "–"))),
    Column("WHERE", lambda broken: str(broken.get("where", "–"))),
    Column("PROBLEM", lambda broken: str(broken.get("what", "–"))),
)


@app.command("show")
def show(ctx: typer.Context, request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request.")]) -> None:
    """Show all rows about one request: each attempt, and corrections: mindgw ledger show req-1a2b"""
    run = invocation(ctx)
    run.render.items(run.server().items(api.ledger_entries(request)), COLUMNS, name="id")


@app.command("verify")
def verify(ctx: typer.Context) -> int:
    """Have the server check budgets, rows and chains, and tell where chains end; exits 3 when something is wrong: mindgw ledger verify"""
    run = invocation(ctx)
    broken, last = _followed(run)
    checked = last.get("checked") or {}
    if run.options.output == "json":
        shown = {"ok": last["ok"], "broken": broken, "broken_count": last["broken"], "checked": checked, "heads": last["heads"]}
        run.render.item(shown, (), name="ok")
    elif broken:
        run.render.items(broken, _BROKEN, name="where")
    for head in last["heads"]:
        run.render.note(f"A chain ends with commit {head.get('epoch')}.{head.get('seq')}, hash {head.get('hash')}")
    if last["ok"]:
        run.render.success(f"The books are right: {_counts(checked)}")
        return 0
    number = int(last["broken"])
    more = f", {number - len(broken)} of them are not shown" if number > len(broken) else ""
    run.render.warn(f"The books are wrong: {number} {'things' if number > 1 else 'thing'}{more}; looked at {_counts(checked)}")
    return FOUND


def _followed(run: Invocation) -> tuple[list[dict[str, Any]], Item]:
    """What is wrong, and the last word of the check."""
    from mindgw.client import checks

    broken: list[dict[str, Any]] = []
    last: Item = {}
    with closing(checks.follow(run.server(), api.verify_ledger())) as words:
        for word in words:
            last = word
            if word["state"] == "broken":
                broken.append({name: word.get(name) for name in ("invariant", "where", "what")})
            elif word["state"] == "checking":
                run.render.progress(f"checking: {_counts(word.get('checked') or {})}")
    run.render.progress("")
    heads = [head for head in found if isinstance(head, dict)] if isinstance(found := last.get("heads"), list) else []
    return broken, {"ok": last.get("ok") is True, "broken": last.get("broken") or 0, "checked": last.get("checked"), "heads": heads}


def _counts(checked: Item) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in checked.items()) or "nothing yet"
