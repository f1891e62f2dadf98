"""`mindgw requests`: what became of requests, as long as they are remembered; never what they said."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli.durations import ago
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column, Item
from mindgw.cli.telling import fetched, limits, moments, seconds
from mindgw.client import requests
from mindgw.client.transport import Server

app = noun("What became of requests: how long they waited, who had them, how they ended.")

#: Requests that are asked for at once.
PAGE = 1000
#: Seconds that what was over may take to be written down.
LATE = 10.0
#: Requests of those seconds that are told once, however often they are seen.
AGAIN = 10 * PAGE

Status = Annotated[str, typer.Option("--status", metavar="429|5xx", help="With this status, or of this class.")]
Slow = Annotated[str, typer.Option("--slow", metavar="5s", help="That took at least so long.")]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="For this model.")]
Key = Annotated[str, typer.Option("--key", metavar="KEY", help="Of the key of this id or name.")]
User = Annotated[str, typer.Option("--user", metavar="USER", help="Of this person, or this end user.")]
Team = Annotated[str, typer.Option("--team", metavar="TEAM", help="Of this team.")]
Worker = Annotated[str, typer.Option("--worker", metavar="WORKER", help="That this worker had last.")]
Outcome = Annotated[str, typer.Option("--outcome", metavar="done|cancelled|failed|replayed", help="That ended so.")]
Since = Annotated[str, typer.Option("--since", metavar="MOMENT|DAY|15m", help="Over from then on, or so long ago at most.")]
Until = Annotated[str, typer.Option("--until", metavar="MOMENT|DAY", help="Over before.")]
RequestId = Annotated[str, typer.Argument(metavar="ID", help="Id of a request, as its client has it in x-mindgw-request-id.")]


def _who(request: Item) -> str:
    return "/".join(str(request[part]) for part in ("team", "user", "key", "end_user") if request.get(part)) or "–"


def _ended(request: Item) -> str:
    outcome, code = request.get("outcome") or request.get("state") or "–", request.get("code")
    return f"{outcome} {code}" if code else str(outcome)


def _tokens(request: Item) -> str:
    return f"{request.get('tokens_in') or 0}→{request.get('tokens_out') or 0}"


def _ms(request: Item, field: str) -> str:
    return "–" if request.get(field) is None else seconds(request[field] / 1000)


COLUMNS = (
    Column("WHEN", lambda request: ago(request.get("ended_at") or request.get("started_at"), clock.utcnow())),
    Column("STATUS", lambda request: str(request.get("status") or "–")),
    Column("ENDED", _ended),
    Column("WHO", _who),
    Column("MODEL", lambda request: str(request.get("model") or "–")),
    Column("WORKER", lambda request: str(request.get("worker") or "–")),
    Column("TRIES", lambda request: str(request.get("attempts", "–"))),
    Column("TOKENS", _tokens),
    Column("WAITED", lambda request: _ms(request, "queued_ms")),
    Column("TTFT", lambda request: _ms(request, "ttft_ms")),
    Column("TOTAL", lambda request: _ms(request, "total_ms")),
    Column("ID", lambda request: str(request.get("id", ""))),
)
_DETAILS = (
    Column("ID", lambda request: str(request.get("id", ""))),
    Column("STATE", lambda request: str(request.get("state", "–"))),
    Column("STARTED", lambda request: str(request.get("started_at", "–"))),
    *(column for column in COLUMNS if column.title not in {"WHEN", "ID", "MODEL"}),
    Column("MODEL", lambda request: str(request.get("model") or "–")),
    Column("SERVED MODEL", lambda request: str(request.get("served_model") or "–")),
    Column("SERVED BY", lambda request: str(request.get("served_by") or "–")),
    Column("ROUTE", lambda request: str(request.get("route") or "–")),
    Column("SPEED", lambda request: "–" if request.get("tokens_per_s") is None else f"{request['tokens_per_s']:g} tokens/s"),
    Column("LIMITS", lambda request: limits(request) or "–"),
    Column("COST USD", lambda request: str((request.get("paid") or {}).get("cost_usd", "–"))),
)


@app.command("list")
def list_requests(
    ctx: typer.Context,
    *,
    status: Status = "",
    slow: Slow = "",
    model: Model = "",
    key: Key = "",
    user: User = "",
    team: Team = "",
    worker: Worker = "",
    outcome: Outcome = "",
    since: Since = "",
    until: Until = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
) -> None:
    """List requests that are over, the latest first: mindgw requests list --status 5xx --since 1h"""
    run = invocation(ctx)
    wanted = _wanted(status=status, slow=slow, model=model, key=public(key), user=user, team=team, worker=worker, outcome=outcome)
    found = _pages(run.server(), limit, since=since, until=until, **wanted)
    run.render.items(found, COLUMNS, name="id")


@app.command("show")
def show(ctx: typer.Context, request: RequestId) -> None:
    """Show a request and all that happened to it, also while it waits or runs: mindgw requests show req-1a2b"""
    run = invocation(ctx)
    story = fetched(run, request)
    run.render.item(story, _DETAILS, name="id")
    if run.options.output == "table" and not run.options.quiet:
        run.render.datum("")
        for line in moments(story):
            run.render.datum(line)


@app.command("tail")
def tail(
    ctx: typer.Context,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    number: Annotated[int, typer.Option("-n", "--lines", min=0, max=PAGE, help="How many of the past.")] = 10,
    status: Status = "",
    slow: Slow = "",
    model: Model = "",
    key: Key = "",
    user: User = "",
    team: Team = "",
    worker: Worker = "",
    outcome: Outcome = "",
    interval: Annotated[float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often to look.")] = 1.0,
) -> None:
    """Show the last requests, oldest first, and with -f those that come: mindgw requests tail -f --slow 5s"""
    run = invocation(ctx)
    wanted = _wanted(status=status, slow=slow, model=model, key=public(key), user=user, team=team, worker=worker, outcome=outcome)
    server = run.server()
    newest = _moment(_pages(server, 1), datetime.fromtimestamp(0, UTC))
    before = _late(server, newest, wanted) if follow else []  # what is looked at again and is no news; asked first, or news might be in it
    past = _pages(server, number, **wanted)
    for request in reversed(past):
        _line(run, request)
    # bounded: by AGAIN, the newest last
    told = dict.fromkeys(str(request["id"]) for request in reversed([*past, *before]))
    while follow:
        time.sleep(interval)
        fresh = [request for request in _late(server, newest, wanted) if request["id"] not in told]
        for request in reversed(fresh):
            _line(run, request)
            told[str(request["id"])] = None
        newest = _moment(fresh, newest)
        told = dict.fromkeys(list(told)[-AGAIN:])


def _late(server: Server, newest: datetime, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """Those since shortly before a moment, newest first."""
    since = (newest - timedelta(seconds=LATE)).isoformat() if newest.timestamp() > LATE else ""
    return _pages(server, AGAIN, since=since, **wanted)


def _wanted(**wanted: str) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if value}


def _pages(server: Server, most: int, **wanted: str) -> list[dict[str, Any]]:
    """The latest ones, newest first."""
    found, before = list[dict[str, Any]](), ""
    while len(found) < most:
        page = server.call(requests.listing(before=before, limit=min(PAGE, most - len(found)), **wanted))
        found += page["items"]
        before = str(page["next"] or "")
        if not before:
            break
    return found


def _moment(found: Iterable[Item], otherwise: datetime) -> datetime:
    """When the last of them was over."""
    return max((datetime.fromisoformat(str(request["ended_at"])) for request in found if request.get("ended_at")), default=otherwise)


def _line(run: Invocation, request: Item) -> None:
    """A request as one line of JSON, or of text."""
    if run.options.output == "json":
        run.render.line(request)
    elif run.options.output == "name" or run.options.quiet:
        run.render.datum(str(request.get("id", "")))
    else:
        moment = str(request.get("ended_at", ""))[:19].replace("T", " ")
        run.render.datum("  ".join([moment, *(column.value(request) for column in COLUMNS[1:])]))
