"""`mindgw queue`: who waits for a slot, why, and what an operator may do about it."""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindgw import clock
from mindgw.cli import queue_dead
from mindgw.cli.durations import span
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.keys import public
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client.api import Request
from mindgw.client.errors import Missing, UsageProblem

if TYPE_CHECKING:
    from mindgw.client.feed import Picture

app = noun("The queue: who waits for a slot, and why.")
app.add_typer(queue_dead.app, name="dead")

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of requests, as `queue list` shows them.")]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="Of this model alone.")]


def _who(entry: Item) -> str:
    return "/".join(str(entry[part]) for part in ("team", "user", "key", "end_user") if entry.get(part)) or "–"


def _eta(entry: Item) -> str:
    eta = entry.get("eta_s")
    return "–" if eta is None else f"~{span(eta)}"


def _reason(entry: Item) -> str:
    if entry.get("state") == "waiting":
        return str(entry.get("reason") or "–")
    return f"runs on {entry.get('worker') or '–'} for {span(entry.get('running_s') or 0)}"


COLUMNS = (
    Column("POS", lambda entry: str(entry.get("position") or "–")),
    Column("ID", lambda entry: str(entry.get("id", ""))),
    Column("MODEL", lambda entry: str(entry.get("model", ""))),
    Column("CLASS", lambda entry: str(entry.get("priority", "–"))),
    Column("WHO", _who),
    Column("WAITED", lambda entry: span(entry.get("waited_s") or 0)),
    Column("ETA", _eta),
    Column("REASON", _reason),
)
_DETAILS = (
    *COLUMNS,
    Column("STATE", lambda entry: str(entry.get("state", "–"))),
    Column("KIND", lambda entry: str(entry.get("kind", "–"))),
    Column("KEY", lambda entry: str(entry.get("key_id", "–"))),
    Column("UNITS", lambda entry: f"{entry.get('units') or 0:.0f}"),
)


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "–"


def _errors(stats: Item) -> str:
    median, p90 = stats.get("eta_error_median"), stats.get("eta_error_p90")
    return "–" if median is None or p90 is None else f"median {100 * median:.0f} %, p90 {100 * p90:.0f} %"


def _shares(stats: Item) -> str:
    return ", ".join(f"{share['team'] or '–'} {100 * share['share']:.0f} %" for share in stats.get("shares") or []) or "–"


def _paused(stats: Item) -> str:
    return "all" if stats.get("paused") else ", ".join(stats.get("paused_models") or []) or "–"


_STATS = (
    Column("WAITING", lambda stats: str(stats.get("waiting", 0))),
    Column("RUNNING", lambda stats: str(stats.get("running", 0))),
    Column("CLASSES", lambda stats: _counts(stats.get("classes") or {})),
    Column("OLDEST", lambda stats: span(stats.get("oldest_s") or 0)),
    Column("ETA ERROR", _errors),
    Column("SHARES", _shares),
    Column("HELD", lambda stats: f"{(stats.get('bytes') or 0) / 1024:.0f} KiB"),
    Column("PAUSED", _paused),
)


@app.command("list")
def list_queue(
    ctx: typer.Context,
    running: Annotated[bool, typer.Option("--running", help="Who has a slot, too; as --state all.")] = False,
    state: Annotated[str, typer.Option("--state", metavar="waiting|running|all", help="Who waits, when not given.")] = "",
    model: Model = "",
    team: Annotated[str, typer.Option("--team", metavar="TEAM", help="Of this team alone.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="USER", help="Of this person, or this end user, alone.")] = "",
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="Of the key of this id or name alone.")] = "",
) -> None:
    """List who waits, in the order of their turns."""
    run = invocation(ctx)
    if state not in {"", "waiting", "running", "all"}:
        raise UsageProblem(f"--state {state!r} is none", hint="waiting, running or all")
    asked = api.list_queue(state=state or ("all" if running else ""), model=model, team=team, user=user, key=public(key))
    run.render.items(run.server().items(asked), COLUMNS, name="id")


@app.command("watch")
def watch(ctx: typer.Context, running: Annotated[bool, typer.Option("--running", help="Who has a slot, too.")] = False) -> int:
    """Show the live queue until Ctrl-C; --json prints the messages of the feed, one a line."""
    from mindgw.client import feed

    run = invocation(ctx)
    watched = _Watched(run, running=running)
    try:
        with closing(feed.follow(run.server(), lambda why: run.render.warn(f"{why}; trying again"))) as heard:
            for news in heard:
                watched.show(*news or (None, None))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        run.render.hang_up()
    return 0


@app.command("show")
def show(ctx: typer.Context, request: Annotated[str, typer.Argument(metavar="ID", help="Id of a request.")]) -> None:
    """Show one request that waits or runs."""
    run = invocation(ctx)
    run.render.item(run.server().call(api.show_queued(request)), _DETAILS, name="id")


@app.command("cancel")
def cancel(ctx: typer.Context, requests: Ids) -> None:
    """Cancel requests, waiting or running: their clients hear that an operator did."""
    run = invocation(ctx)

    def ask(found: Item) -> None:
        state = f"has waited {span(found.get('waited_s') or 0)}" if found["state"] == "waiting" else _reason(found)
        run.confirm(f"Cancel request {found['id']} of {_who(found)} for {found.get('model')}, which {state}?")

    _each(run, requests, api.cancel_queued, "is cancelled", ask)


@app.command("bump")
def bump(ctx: typer.Context, requests: Ids) -> None:
    """Put requests that wait before all others; the last one named is first."""
    _each(invocation(ctx), requests, api.bump_queued, "is before all others")


@app.command("pause")
def pause(ctx: typer.Context, model: Model = "") -> None:
    """Give nobody a slot until `queue resume`; who runs goes on, who asks waits."""
    run = invocation(ctx)
    stats = run.server().call(api.pause_queue(model))
    undo = f"mindgw queue resume{f' --model {quote(model)}' if model else ''}"
    run.render.done(stats, f"The queue{f' of {model}' if model else ''} is paused. Undo: {undo}", name="waiting")
    if model and model in (stats.get("paused_unserved") or []):
        run.render.warn(f"no worker announces {model} now: see `mindgw models list`; paused are: {_paused(stats)}")


@app.command("resume")
def resume(ctx: typer.Context, model: Model = "") -> None:
    """End a pause; without --model all of them."""
    run = invocation(ctx)
    stats = run.server().call(api.resume_queue(model))
    left = f"; paused is still: {_paused(stats)}" if _paused(stats) != "–" else ""
    run.render.done(stats, f"The queue{f' of {model}' if model else ''} goes on{left}", name="waiting")


@app.command("stats")
def stats(ctx: typer.Context) -> None:
    """Show the queue in numbers: classes, waits, how good the estimates are, who used how much of late."""
    run = invocation(ctx)
    run.render.item(run.server().call(api.queue_stats()), _STATS, name="waiting")


def _each(
    run: Invocation, requests: list[str], change: Callable[[str], Request], done: str, ask: Callable[[Item], None] = lambda found: None
) -> None:
    """One after the other; those that are not there do not keep the others from it. Raises Missing when there were some."""
    server = run.server()
    gone: list[str] = []
    for name in requests:
        try:
            ask(server.call(api.show_queued(name)))
            run.render.done(server.call(change(name)), f"Request {name} {done}", name="id")
        except Missing as problem:
            if len(requests) == 1:
                raise
            run.render.warn(problem.message)
            gone.append(name)
    if gone:
        raise Missing(
            f"{len(gone)} of {len(requests)}: nothing was done to {', '.join(gone)}",
            hint="`mindgw queue list --running` shows who is there",
        )


class _Watched:
    """What `watch` has on the screen."""

    def __init__(self, run: Invocation, *, running: bool) -> None:
        self._run = run
        self._running = running
        #: The newest picture, and the monotonic seconds when it came.
        self._picture: Picture | None = None
        self._came = 0.0
        #: Ids that were printed, for -q.
        self._printed: set[str] = set()

    def show(self, message: Item | None, picture: "Picture | None") -> None:
        """A message and what it led to, or None: time went by."""
        render = self._run.render
        if picture is not None:
            self._picture, self._came = picture, clock.monotonic()
        if render.output == "json":
            if message is not None:
                render.line(message)
        elif self._picture is not None and (message is not None or render.lively):
            self._draw(self._picture)

    def _draw(self, picture: "Picture") -> None:
        render = self._run.render
        passed = clock.monotonic() - self._came
        entries = [_entry(row, picture.at, passed) for row in picture.queue.values() if self._running or row.get("state") == "waiting"]
        entries.sort(key=lambda entry: (entry["state"] != "waiting", entry.get("position") or 0, -entry["waited_s"]))
        if render.output == "name" or render.quiet:
            ids = [str(entry["id"]) for entry in entries]
            for id in ids:
                if id not in self._printed:
                    render.datum(id)
            self._printed = set(ids)
            return
        figures = picture.stats
        oldest = f", the oldest for {span(figures.get('oldest_s') or 0)}" if figures.get("waiting") else ""
        paused = f", paused: {_paused(figures)}" if _paused(figures) != "–" else ""
        shown = sum(entry.get("state") == "waiting" for entry in entries)
        first = f" (the first {shown} below)" if shown < (figures.get("waiting") or 0) else ""
        render.screen(f"{figures.get('waiting', 0)} waiting{first}{oldest}, {figures.get('running', 0)} running{paused}", entries, COLUMNS)


def _entry(row: Item, at: str, passed: float) -> dict[str, Any]:
    """A row of the feed as `queue list` knows requests: moments become spans, seconds after the picture was taken."""
    now = _moment(at) + passed
    since, began, turn = (row.get(name) for name in ("waiting_since", "running_since", "turn_at"))
    return {
        **row,
        "waited_s": max(0.0, (_moment(began) if began else now) - _moment(since)) if since else 0.0,
        "running_s": max(0.0, now - _moment(began)) if began else 0.0,
        "eta_s": max(0.0, _moment(turn) - now) if turn else None,
    }


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
