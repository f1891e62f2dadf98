"""`mindgw workers`: the GPU boxes."""

from functools import partial
from shlex import quote
from typing import Annotated, Any

import typer

from mindgw import clock
from mindgw.cli import errands, trend
from mindgw.cli.durations import ago, ahead, seconds
from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client.errors import UsageProblem

app = noun("Workers: the GPU boxes, as the server sees them.")


def _engines(worker: Item) -> list[Item]:
    """Each of its engines; of a server that tells of one alone that one."""
    return worker.get("engines") or [engine for engine in [worker.get("engine")] if engine]


def _kind(engine: Item) -> str:
    return " ".join(str(engine[part]) for part in ("kind", "version") if engine.get(part)) or "–"


def _kinds(worker: Item) -> str:
    """What its engines are, each kind once, and how many of them give no answer."""
    engines = _engines(worker)
    away = sum(engine.get("healthy") is False for engine in engines)
    shown = ", ".join(dict.fromkeys(map(_kind, engines))) or "–"
    return shown if not away else f"{shown} (down)" if len(engines) == 1 else f"{shown} ({away} of {len(engines)} down)"


def _told(_worker: Item, engine: Item) -> str:
    words = [f"{_kind(engine)} at {engine['url']}" if engine.get("url") else _kind(engine)]
    if engine.get("healthy") is False:
        words.append(f"down: {engine.get('error') or 'it gives no answer'}")
    elif engine.get("healthy"):
        words.append(f"{engine.get('used', 0)}/{engine.get('slots', 0)} slots")
    models = ", ".join(str(model.get("id")) for model in engine.get("models") or [])
    return ", ".join(words) + (f": {models}" if models else "")


def _engine_rows(worker: Item) -> list[Column]:
    """A row for each engine."""
    engines = _engines(worker)
    titles = ["ENGINE"] if len(engines) == 1 else [f"ENGINE {number}" for number in range(1, len(engines) + 1)]
    return [Column(title, partial(_told, engine=engine)) for title, engine in zip(titles, engines, strict=True)]


def _gpus(worker: Item) -> str:
    gpus: list[dict[str, Any]] = worker.get("gpus") or []
    return ", ".join(str(gpu.get("name", "?")) for gpu in gpus) or "–"


def _rtt(worker: Item) -> str:
    rtt = worker.get("rtt_ms")
    return "–" if rtt is None else f"{rtt:.0f}ms" if rtt >= 1 else f"{rtt:.1f}ms"


def _slots(worker: Item) -> str:
    return f"{worker.get('used', 0)}/{worker['slots']}" if worker.get("slots") else "–"


def _breaker(worker: Item) -> str:
    """The models that are not sent there because they fail."""
    circuits: list[dict[str, Any]] = worker.get("circuits") or []
    return ", ".join(f"{circuit['model']} {circuit['state']} {_again(circuit)}".rstrip() for circuit in circuits) or "closed"


def _again(circuit: dict[str, Any]) -> str:
    seconds = float(circuit.get("retry_s") or 0)
    return f"for {seconds:.0f}s" if circuit["state"] == "open" and seconds else ""


def _tags(worker: Item) -> str:
    return " ".join(f"{name}={value}" for name, value in (worker.get("tags") or {}).items()) or "–"


COLUMNS = (
    Column("NAME", lambda worker: str(worker.get("name", ""))),
    Column("STATE", lambda worker: str(worker.get("state", "–"))),
    Column("ENGINE", _kinds),
    Column("MODELS", lambda worker: str(len(worker.get("models") or []))),
    Column("SLOTS", _slots),
    Column("GPU", _gpus),
    Column("RTT", _rtt),
    Column("LAST SEEN", lambda worker: ago(worker.get("last_seen"), clock.utcnow())),
)
_DETAILS = (
    Column("NAME", COLUMNS[0].value),
    Column("ID", lambda worker: str(worker.get("id", ""))),
    *(column for column in COLUMNS[1:] if column.title not in {"ENGINE", "MODELS"}),
    Column("REASON", lambda worker: str(worker.get("reason") or "–")),
    Column("PAUSED UNTIL", lambda worker: ahead(worker["paused_until"], clock.utcnow()) if worker.get("paused_until") else "–"),
    Column("TEAMS", lambda worker: ", ".join(worker.get("teams") or []) or "all"),
    Column("BREAKER", _breaker),
    Column("TAGS", _tags),
    Column("MODELS", lambda worker: ", ".join(str(model.get("id")) for model in worker.get("models") or []) or "–"),
)


@app.command("list")
def list_workers(ctx: typer.Context) -> None:
    """List the workers."""
    run = invocation(ctx)
    workers = run.server().items(api.list_workers())
    run.render.items(workers, COLUMNS, name="name")
    away = [str(worker.get("name")) for worker in workers if worker.get("state") == "offline"]
    if away and run.options.output == "table" and not run.options.quiet:
        run.render.warn(f"offline: {', '.join(away)}. On the box, `mindgw agent status` says why")


@app.command("show")
def show(
    ctx: typer.Context,
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Name or id.")],
    span: Annotated[str | None, typer.Argument(metavar="[SPAN]", help="With --trend: how far back, as 1h or 90d; else 7d.")] = None,
    with_trend: Annotated[bool, typer.Option("--trend", help="How it was over time.")] = False,
    is_ascii: Annotated[bool, typer.Option("--ascii", help="Bars of plain characters.")] = False,
) -> None:
    """Show one worker, or how it was of late: mindgw workers show gpu-1 --trend 24h"""
    run = invocation(ctx)
    if with_trend:
        trend.show(run, worker, span or "7d", is_ascii=is_ascii)
        return
    if span or is_ascii:
        raise UsageProblem("a span and --ascii are for --trend", hint=f"mindgw workers show {quote(worker)} --trend {span or ''}".rstrip())
    found = run.server().call(api.show_worker(worker))
    run.render.item(found, (*_DETAILS, *_engine_rows(found)), name="name")


Name = Annotated[str, typer.Argument(metavar="WORKER", help="Name or id.")]
Names = Annotated[list[str], typer.Argument(metavar="WORKER...", help="Names or ids.")]
Within = Annotated[str, typer.Option("--within", metavar="SPAN", help="How long to wait, as 90s or 10m.")]


@app.command("drain")
def drain(
    ctx: typer.Context,
    workers: Names,
    wait: Annotated[bool, typer.Option("--wait", help="Until what runs there is done.")] = False,
    within: Within = "10m",
) -> None:
    """Let workers finish what they have and give them nothing new, also when they come back: mindgw workers drain gpu-1 --wait"""
    run = invocation(ctx)
    server, limit = run.server(), seconds(within)
    for name in workers:
        found = server.call(api.show_worker(name))
        busy = f"{found.get('used') or 0} requests run on"
        run.confirm(f"Drain {found['name']}? {busy}.")
        told = server.call(api.set_worker(found["id"], "drain"))
        if wait:
            told = errands.await_worker(run, found["id"], errands.is_drained, "drained", limit)
        state = "is drained" if wait else f"is draining; {busy}"
        run.render.done(told, f"Worker {found['name']} {state}. Undo: mindgw workers undrain {quote(found['name'])}", name="name")


@app.command("undrain")
def undrain(ctx: typer.Context, workers: Names) -> None:
    """Give workers requests again."""
    run = invocation(ctx)
    for name in workers:
        told = run.server().call(api.set_worker(name, "undrain"))
        run.render.done(told, f"Worker {told['name']} takes requests again.", name="name")


@app.command("release")
def release(ctx: typer.Context, workers: Names) -> None:
    """Let workers out of quarantine, once you have looked at them: `workers show` says why they are in it."""
    run = invocation(ctx)
    for name in workers:
        found = run.server().call(api.show_worker(name))
        run.confirm(f"Release {found['name']}? It is in quarantine: {found.get('reason') or 'no reason is known'}.")
        told = run.server().call(api.set_worker(found["id"], "release"))
        run.render.done(told, f"Worker {told['name']} takes requests again.", name="name")


@app.command("restart")
def restart(ctx: typer.Context, workers: Names) -> None:
    """Have agents begin anew, each once what it runs is done (30 seconds at most); an engine that the agent owns begins anew, too."""
    run = invocation(ctx)
    for name in workers:
        found = run.server().call(api.show_worker(name))
        run.confirm(f"Restart the agent of {found['name']}? {found.get('used') or 0} requests run on it.")
        told = errands.carry_out(run, found["id"], "restart")
        back = f"To wait for it: mindgw workers wait {quote(found['name'])} --ready"
        run.render.done(told, f"Worker {found['name']}: {told['note']}. {back}", name="worker")


@app.command("logs")
def logs(
    ctx: typer.Context,
    worker: Name,
    number: Annotated[int, typer.Option("-n", "--lines", min=1, max=1000, help="How many.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often to look.")] = 1.0,
) -> None:
    """Show the last lines of an agent's own log, without secrets: mindgw workers logs gpu-1 -n 20 -f"""
    run = invocation(ctx)
    as_json = run.options.output == "json"
    if follow:
        for line in errands.follow_log(run, worker, number, interval):
            run.render.line({"line": line}) if as_json else run.render.datum(line)
        return
    told = errands.carry_out(run, worker, "logs", str(number))
    if as_json:
        run.render.line(told)
        return
    for line in told["lines"]:
        run.render.datum(line)


@app.command("wait")
def wait_for(
    ctx: typer.Context,
    worker: Name,
    ready: Annotated[bool, typer.Option("--ready", help="Until it takes requests; so when nothing else is said.")] = False,
    drained: Annotated[bool, typer.Option("--drained", help="Until it has nothing to do and is given nothing.")] = False,
    within: Within = "5m",
) -> None:
    """Wait for a worker; exit code 3 when it takes too long: mindgw workers wait gpu-1 --ready --within 60s && ./smoke.sh"""
    run = invocation(ctx)
    if ready and drained:
        raise UsageProblem("--ready and --drained at once", hint="wait for one of them")
    true, what = (errands.is_drained, "drained") if drained else (errands.is_ready, "ready")
    found = errands.await_worker(run, worker, true, what, seconds(within))
    run.render.done(found, f"Worker {found['name']} is {what}.", name="name")


@app.command("remove")
def remove(
    ctx: typer.Context,
    workers: Annotated[list[str], typer.Argument(metavar="WORKER...", help="Names or ids.")],
    confirmed: Annotated[str, typer.Option("--confirm", metavar="NAME", help="The name again, instead of being asked for it.")] = "",
) -> None:
    """Remove workers for good: the agent's key is revoked and its tunnel closed."""
    run = invocation(ctx)
    server = run.server()
    for name in workers:
        found = server.call(api.show_worker(name))
        if confirmed != found["name"]:
            _type_the_name(run, found)
        gone = server.call(api.remove_worker(found["id"]))
        run.render.done(
            gone, f"Worker {found['name']} is removed. To have it back, it must join again: mindgw join-tokens create", name="name"
        )


@app.command("tags")
def change_tags(
    ctx: typer.Context,
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Name or id.")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[TAG=VALUE|TAG-]...", help="To set, or to take away.")] = None,
) -> None:
    """Show or change the tags that routes and residency go by: mindgw workers tags gpu-lab1 zone=lab pool-"""
    run = invocation(ctx)
    server = run.server()
    before = server.call(api.show_worker(worker))
    if not changes:
        run.render.item(before, (_DETAILS[0], Column("TAGS", _tags)), name="name")
        return
    wanted = dict(map(_tag, changes))
    done = server.call(api.tag_worker(before["id"], wanted, version=before.get("version")))
    had = before.get("tags") or {}
    undo = " ".join(f"{name}={had[name]}" if name in had else f"{name}-" for name in wanted)
    run.render.done(done, f"Worker {done['name']} has {_tags(done)}. Undo: mindgw workers tags {quote(done['name'])} {undo}", name="name")


def _tag(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if equals and name and value:
        return name, value
    if text.endswith("-") and len(text) > 1 and not equals:
        return text[:-1], None
    raise UsageProblem(f"{text!r} is no tag", hint="zone=lab sets one, zone- takes it away")


def _type_the_name(run: Invocation, worker: Item) -> None:
    """Losing a box in use is severe enough to ask for more than one letter."""
    if run.options.yes:
        return
    name = str(worker["name"])
    busy = f"{worker.get('used') or 0} requests in flight"
    run.require_person("--yes required when not running interactively", hint=f"it removes {name} ({busy}); add --yes or --confirm={name}")
    typed = run.render.ask(f"This removes worker {name} ({busy}). Type its name:") or ""
    if typed != name:
        raise UsageProblem(f"{typed!r} is not {name!r}: nothing was removed", hint=f"type the name as it stands, or say --confirm {name}")
