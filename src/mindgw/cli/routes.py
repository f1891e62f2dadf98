"""`mindgw routes`: where requests for a name go."""

from collections.abc import Sequence
from contextlib import suppress
from shlex import quote
from typing import Annotated, Any

import typer

from mindgw.cli.groups import noun
from mindgw.cli.invocation import Invocation, invocation
from mindgw.cli.render import Column, Item
from mindgw.cli.roles import NO
from mindgw.client import routes
from mindgw.client.errors import ClientError, UsageProblem

app = noun("Routes: names that lead to models and to some of the workers, with weights, fallbacks and pins.")

_TARGET = "MODEL, MODEL@TAG=VALUE, @TAG=VALUE or pool:NAME, each with =WEIGHT behind it if you like"
RouteName = Annotated[str, typer.Argument(metavar="ROUTE", help="Its name.")]
Match = Annotated[str | None, typer.Option("--match", metavar="GLOB", help="The names that it is for; else its own.")]
To = Annotated[list[str] | None, typer.Option("--to", metavar="TARGET", help=f"{_TARGET}; repeat it.")]
Fallback = Annotated[
    list[str] | None, typer.Option("--fallback", metavar="TARGET", help="Where to when no worker is left, or it fails; repeat it.")
]
Pin = Annotated[list[str] | None, typer.Option("--pin", metavar="TAG=VALUE", help="The only workers that may serve it: worker=gpu-lab1.")]
Require = Annotated[list[str] | None, typer.Option("--require", metavar="TAG=VALUE", help="What every worker of it must have.")]
Strategy = Annotated[
    str | None, typer.Option("--strategy", metavar="score|least-busy|round-robin|weighted|sticky", help="How a worker is chosen.")
]
Spill = Annotated[bool | None, typer.Option("--spill/--no-spill", help="Go on when workers are only busy.")]
Hedge = Annotated[bool | None, typer.Option("--hedge/--no-hedge", help="Try streams that are late to begin on a second worker at once.")]
Shadow = Annotated[bool | None, typer.Option("--shadow/--no-shadow", help="Only note what it would do.")]
#: What a route may do beside that.
_FLAGS = ("spill", "hedge", "shadow")
#: What the server says of a request that a worker would have, in its turn.
_GOES = "goes"
#: Stands for "none any more" in options that take several.
_NONE = "none"


def _list(name: str) -> Column:
    return Column(name.upper(), lambda route: ", ".join(map(str, route.get(name) or [])) or "–")


def _how(route: Item) -> str:
    flags = [word for word in _FLAGS if route.get(word)]
    return ", ".join([*([str(route["strategy"])] if route.get("strategy") else []), *flags]) or "–"


COLUMNS = (
    Column("NAME", lambda route: str(route.get("name", ""))),
    Column("FOR", lambda route: str(route.get("match", ""))),
    _list("to"),
    _list("fallbacks"),
    Column("HOW", _how),
)
_DETAILS = (*COLUMNS[:4], _list("pins"), _list("require"), COLUMNS[4], Column("VERSION", lambda route: str(route.get("version", "–"))))


@app.command("list")
def list_routes(ctx: typer.Context) -> None:
    """List the routes."""
    run = invocation(ctx)
    run.render.items(run.server().items(routes.listing()), COLUMNS, name="name")


@app.command("show")
def show(ctx: typer.Context, route: RouteName) -> None:
    """Show one route."""
    run = invocation(ctx)
    run.render.item(run.server().call(routes.show(route)), _DETAILS, name="name")


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name, and the one that it is for unless --match says otherwise.")],
    to: To = None,
    fallback: Fallback = None,
    pin: Pin = None,
    require: Require = None,
    match: Match = None,
    strategy: Strategy = None,
    spill: Spill = None,
    hedge: Hedge = None,
    shadow: Shadow = None,
) -> None:
    """Make a route: mindgw routes create fast --to qwen3:8b=90 --to qwen4:8b=10 --fallback llama3"""
    run = invocation(ctx)
    said = _said(match, (to, fallback, pin, require), strategy, (spill, hedge, shadow))
    made = run.server().call(routes.create(name, said))
    undo = f"mindgw routes remove {quote(name)}"
    run.render.done(made, f"{_told(made)}. Try it: mindgw routes test {quote(made['match'])}. Undo: {undo}", name="name")
    _warn(run, made)


@app.command("set")
def change(
    ctx: typer.Context,
    route: RouteName,
    to: To = None,
    fallback: Fallback = None,
    pin: Pin = None,
    require: Require = None,
    match: Match = None,
    strategy: Strategy = None,
    spill: Spill = None,
    hedge: Hedge = None,
    shadow: Shadow = None,
) -> None:
    """Change a route; what is not said stays, `none` empties a list: mindgw routes set fast --to qwen3:8b=50 --to qwen4:8b=50"""
    run = invocation(ctx)
    said = _said(match, (to, fallback, pin, require), strategy, (spill, hedge, shadow))
    if not said:
        raise UsageProblem(
            "what is to be different?", hint="--to, --fallback, --pin, --require, --match, --strategy, --spill, --hedge or --shadow"
        )
    server = run.server()
    before = server.call(routes.show(route))
    done = server.call(routes.change(route, said, version=before.get("version")))
    run.render.done(done, f"{_told(done)}. Undo: {_undo(before, said)}", name="name")
    _warn(run, done)


@app.command("remove")
def remove(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="ROUTE...", help="Names.")]) -> None:
    """Take routes away; requests go by the models' own names again."""
    run = invocation(ctx)
    server = run.server()
    for name in names:
        found = server.call(routes.show(name))
        run.confirm(f"Take the route {name} away? {_told(found)}")
        gone = server.call(routes.remove(name, version=found.get("version")))
        run.render.done(gone, f"Route {name} is gone. Undo: {_again(gone)}", name="name")


@app.command("test")
def explain(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name that is asked for.")],
    user: Annotated[str | None, typer.Option("--as", metavar="USER", help="E-mail address or id of whose request it is.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="chat|completions|embeddings", help="What is asked for.")] = None,
) -> None:
    """Explain where a request would go, and send none: mindgw routes test fast --as ada@example.org

    Exit code 3: it would be refused, or wait for a worker, as none takes requests.
    """
    run = invocation(ctx)
    said = run.server().call(routes.explain(model, user, kind))
    way: dict[str, Any] = said["way"]
    if run.options.output == "json":
        run.render.item(said, COLUMNS, name="user")
    else:
        _explain(run, said, way)
    if way["outcome"] != _GOES:
        raise typer.Exit(NO)


def _warn(run: Invocation, route: Item) -> None:
    """Says so when a route leads nowhere as things are; of names with a glob nobody can tell."""
    if route.get("shadow") or set(route["match"]) & set("*?"):
        return
    with suppress(ClientError):  # it is made; who may make routes and not see them hears no more
        way = run.server().call(routes.explain(route["match"]))["way"]
        if way["outcome"] != _GOES:
            become = "are refused" if way["code"] else "wait"
            run.render.warn(f"as things are, requests for it {become}: {way['reason']}")


def _explain(run: Invocation, said: Item, way: Item) -> None:
    chosen = way["chosen"]
    waits = "" if way["outcome"] == _GOES else "waits: "
    run.render.datum(f"refused: {way['code']}" if chosen is None else waits + _place(way["legs"][chosen]))
    if run.options.quiet:
        return
    bound = f", bound to {', '.join(way['home'])}" if way["home"] else ""
    run.render.note(f"{way['model']} of {said['user'] or 'anybody'}{bound}: {way['route'] or 'no route'}; {way['reason']}")
    for number, leg in enumerate(way["legs"], 1):
        workers = ", ".join(f"{one['name']} {one['state']} {one['used']}/{one['slots']}" for one in leg["workers"]) or "no worker"
        mark = " <- here" if number - 1 == chosen else ""
        run.render.note(f"{number}. {_place(leg)}: {leg['why_not'] or workers}{mark}")
    if way["hedge"]:
        run.render.note("a stream that is late to begin is tried on a second worker")
    if way["shadow"]:
        run.render.note(f"the route {way['shadow']} is only noted")


def _place(leg: Item) -> str:
    return f"{leg['model']}@{','.join(leg['where'])}" if leg["where"] else str(leg["model"])


def _said(
    match: str | None, lists: Sequence[list[str] | None], strategy: str | None, flags: tuple[bool | None, bool | None, bool | None]
) -> dict[str, Any]:
    """Fields of a route as the server takes them: what was not said is not there."""
    named = dict(zip(("to", "fallbacks", "pins", "require"), lists, strict=True))
    said: dict[str, Any] = {name: [] if texts == [_NONE] else texts for name, texts in named.items() if texts}
    others = {"match": match, "strategy": "" if strategy == _NONE else strategy} | dict(zip(_FLAGS, flags, strict=True))
    return said | {name: value for name, value in others.items() if value is not None}


def _told(route: Item) -> str:
    targets = [*(route.get("to") or ["itself"]), *(f"then {text}" for text in route.get("fallbacks") or [])]
    more = [f"only on {', '.join(route['pins'])}"] if route.get("pins") else []
    more += [f"with {', '.join(route['require'])}"] if route.get("require") else []
    shadow = "is noted, and would go" if route.get("shadow") else "goes"
    return f"{route['match']} {shadow} to {', '.join([*targets, *more])}"


_OPTIONS = {"to": "--to", "fallbacks": "--fallback", "pins": "--pin", "require": "--require", "match": "--match", "strategy": "--strategy"}


def _words(route: Item, fields: Sequence[str]) -> str:
    """Options that say these fields of a route."""
    words: list[str] = []
    for field in fields:
        value = route.get(field)
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{field}")
        else:
            texts = value if isinstance(value, list) else [value]
            words += [f"{_OPTIONS[field]} {_quoted(text)}" for text in texts or [_NONE]]
    return " ".join(words)


def _quoted(text: object) -> str:
    return quote(str(text) or _NONE)


def _undo(before: Item, said: Item) -> str:
    return f"mindgw routes set {quote(before['name'])} {_words(before, list(said))}"


def _again(gone: Item) -> str:
    fields = [name for name in (*_OPTIONS, *_FLAGS) if gone.get(name) and not (name == "match" and gone["match"] == gone["name"])]
    return f"mindgw routes create {quote(gone['name'])} {_words(gone, fields)}"
