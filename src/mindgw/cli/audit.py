"""`mindgw audit`: who did what, and whether the record of it is right."""

import json
import time
from contextlib import closing
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column, Item
from mindgw.client import audit
from mindgw.client.errors import ClientError

app = noun("The audit log: who did what, and what was refused. It is written once and never changed.")

#: Exit code of a check that found something.
FOUND = 3
#: Entries that are asked for at once.
PAGE = 1000
#: Longest line of an export.
MAX_LINE = 2**20

Actor = Annotated[str, typer.Option("--actor", metavar="WHO", help="Key, address of a person, agent:ID, local or server.")]
Action = Annotated[str, typer.Option("--action", metavar="NOUN.VERB", help="Such as key.create, or 'key.*'.")]
Outcome = Annotated[str, typer.Option("--outcome", metavar="ok|refused", help="What was done, or what was refused.")]
Object = Annotated[str, typer.Option("--object", metavar="ID", help="What it was done to.")]
Since = Annotated[str, typer.Option("--since", metavar="DAY|7d", help="First UTC day, or a span until now.")]
Until = Annotated[str, typer.Option("--until", metavar="DAY", help="Last UTC day.")]


def _told(entry: Item) -> str:
    detail = entry.get("detail")
    if not isinstance(detail, dict):
        return "–"
    return " ".join(f"{name}={_short(value)}" for name, value in detail.items() if name != "by" and value not in (None, "", False)) or "–"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


COLUMNS = (
    Column("SEQ", lambda entry: str(entry.get("seq", ""))),
    Column("WHEN", lambda entry: ago(entry.get("at"), clock.utcnow())),
    Column("ACTOR", lambda entry: str(entry.get("name") or entry.get("actor") or "–")),
    Column("FROM", lambda entry: str(entry.get("address") or "–")),
    Column("ACTION", lambda entry: str(entry.get("action", "–"))),
    Column("OUTCOME", lambda entry: str(entry.get("outcome", "–"))),
    Column("OBJECT", lambda entry: str(entry.get("object") or "–")),
    Column("DETAIL", _told),
)


@app.command("list")
def list_entries(
    ctx: typer.Context,
    *,
    actor: Actor = "",
    action: Action = "",
    outcome: Outcome = "",
    object: Object = "",
    since: Since = "",
    until: Until = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
) -> None:
    """List the latest entries, newest first: mindgw audit list --action 'key.*' --since 7d"""
    run = invocation(ctx)
    wanted = _wanted(actor, action, outcome, object, since, until)
    server, found, before = run.server(), list[dict[str, Any]](), ""
    while len(found) < limit:
        page = server.call(audit.entries(before=before, limit=min(PAGE, limit - len(found)), **wanted))
        found += page["items"]
        before = str(page["next"] or "")
        if not before:
            break
    run.render.items(found, COLUMNS, name="seq")


@app.command("tail")
def tail(
    ctx: typer.Context,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    number: Annotated[int, typer.Option("-n", "--lines", min=0, max=PAGE, help="How many of the past.")] = 10,
    actor: Actor = "",
    action: Action = "",
    outcome: Outcome = "",
    interval: Annotated[float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often to look.")] = 2.0,
) -> None:
    """Show the last entries, oldest first, and with -f those that come: mindgw audit tail -f --outcome refused --json"""
    run = invocation(ctx)
    wanted = _wanted(actor, action, outcome)
    server = run.server()
    past = server.call(audit.entries(limit=max(number, 1), **wanted))["items"]
    newest = server.call(audit.entries(limit=1))["items"]
    for entry in reversed(past[:number]):
        _line(run, entry)
    after = str(newest[0]["seq"] if newest else 0)
    while follow:
        page = server.call(audit.news(after=after, limit=PAGE, **wanted))
        for entry in page["items"]:
            _line(run, entry)
        after = str(page["next"])
        if len(page["items"]) < PAGE:
            time.sleep(interval)


def _line(run: Invocation, entry: Item) -> None:
    """An entry as one line of JSON, or of text."""
    if run.options.output == "json":
        run.render.line(entry)
    elif run.options.output == "name" or run.options.quiet:
        run.render.datum(str(entry.get("seq", "")))
    else:
        moment = str(entry.get("at", ""))[:19].replace("T", " ")
        run.render.datum("  ".join([moment, *(column.value(entry) for column in COLUMNS[2:])]))


@app.command("export")
def export(
    ctx: typer.Context,
    *,
    actor: Actor = "",
    action: Action = "",
    outcome: Outcome = "",
    object: Object = "",
    since: Since = "",
    until: Until = "",
) -> None:
    """Write all entries as lines of JSON, oldest first; the last line says where the log ends: mindgw audit export > audit.jsonl"""
    run = invocation(ctx)
    last: Item = {}
    number = 0
    with run.server().open(audit.export(**_wanted(actor, action, outcome, object, since, until))) as answer:
        while text := answer.readline(MAX_LINE):
            last = _decoded(text)
            run.render.datum(text.decode("utf-8", "replace").rstrip("\n"))
            number += 1
    end = last.get("end")
    if not isinstance(end, dict):
        raise ClientError("the export broke off before its end", hint="what was written is not all of it: begin again")
    run.render.success(f"{number - 1:,} entries; the log ends with entry {end.get('seq')}, hash {end.get('hash')}")


def _decoded(text: bytes) -> Item:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


@app.command("verify")
def verify(ctx: typer.Context) -> int:
    """Have the server check every entry, link, head and archive; exits 3 when something is wrong: mindgw audit verify"""
    run = invocation(ctx)
    broken, last = _followed(run)
    if run.options.output == "json":
        shown = {name: last.get(name) for name in ("ok", "first", "checked", "end")}
        run.render.item({**shown, "broken": broken, "broken_count": last["broken"]}, (), name="ok")
    elif broken:
        run.render.items(broken, _BROKEN, name="seq")
    end = last.get("end") or {}
    run.render.note(f"The chain ends with entry {end.get('seq')}, hash {end.get('hash')}")
    if last.get("ok") is True:
        run.render.success(f"The audit log is as it was written: {_counts(last.get('checked') or {})}")
        return 0
    number = int(last["broken"])
    more = f", {number - len(broken)} of them are not shown" if number > len(broken) else ""
    run.render.warn(f"The audit log was changed: entry {last.get('first')} is the first that is wrong, of {number}{more}")
    return FOUND


_BROKEN = (
    Column("SEQ", lambda broken: str(broken.get("seq", "–"))),
    Column("PROBLEM", lambda broken: str(broken.get("what", "–"))),
)


def _followed(run: Invocation) -> tuple[list[dict[str, Any]], Item]:
    """What is wrong, and the last word of the check."""
    from mindgw.client import checks

    broken: list[dict[str, Any]] = []
    last: Item = {}
    with closing(checks.follow(run.server(), audit.verify())) as words:
        for word in words:
            last = word
            if word["state"] == "broken":
                broken.append({name: word.get(name) for name in ("seq", "what")})
            elif word["state"] == "checking":
                run.render.progress(f"checking: {_counts(word.get('checked') or {})}")
    run.render.progress("")
    return broken, {**last, "broken": last.get("broken") or 0}


def _counts(checked: Item) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in checked.items() if count) or "nothing yet"


def _wanted(actor: str = "", action: str = "", outcome: str = "", object: str = "", since: str = "", until: str = "") -> dict[str, str]:
    named = {"actor": public(actor), "action": action, "outcome": outcome, "object": public(object), "since": since, "until": until}
    return {name: value for name, value in named.items() if value}
