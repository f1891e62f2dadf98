"""Writes the pages of docs/reference from the code, so that they cannot say anything else. usage: reference.py [--check]

`--check` writes nothing and exits 1 when a page differs from what would be written.
"""

import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer.main
from prometheus_client.metrics_core import Metric

import mindgw_agent.errors
from mindgw import config, errors, metrics, providers, settings_file
from mindgw.cli import app as cli
from mindgw.client import errors as client_errors
from mindgw.control import feed
from mindgw.core import access, worker
from mindgw.gateway import lineup, snapshot
from mindgw.gateway.lineup import Stats
from mindgw.gateway.snapshot import Snapshot
from mindgw.server import collector, management
from mindgw.server.management import events, guard

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/reference"
WRITTEN = "<!-- Written by scripts/docs from the code: change it there. -->\n"


def cell(text: object) -> str:
    flat = " ".join(str(text).split()).replace("|", "\\|")
    return flat if flat.startswith("`") else flat.replace("<", "&lt;")


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell(item) for item in line)} |" for line in lines) + "\n"


def code(text: object) -> str:
    return f"`{text}`" if text not in ("", None) else ""


# ---- commands


def commands(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """(full name, command, its context) of a command and all below it, in the order of the help."""
    context = command.context_class(command, info_name=name, parent=parent)
    yield context.command_path, command, context
    for verb in command.list_commands(context) if hasattr(command, "list_commands") else ():
        below = command.get_command(context, verb)
        if not below.hidden:
            yield from commands(below, verb, context)


def flags(command: Any, context: Any) -> list[tuple[str, str]]:
    records = (option.get_help_record(context) for option in command.params if not getattr(option, "hidden", False))
    return [(f"`{record[0]}`", record[1]) for record in records if record and not record[0].startswith("--help")]


def all_commands() -> list[tuple[str, Any, Any]]:
    return list(commands(typer.main.get_command(cli.app), "mindgw"))


def cli_page() -> str:
    parts = ["# Commands\n", WRITTEN, "Data goes to stdout, talk to stderr. Flags of `mindgw` itself may stand before or after the verb.\n"]
    for name, command, context in all_commands():
        parts.append(f"## {name}\n" if name.count(" ") < 2 else f"### {name}\n")
        if not hasattr(command, "list_commands") or name == "mindgw":
            parts.append(f"    {' '.join([name, *command.collect_usage_pieces(context)])}\n")
        parts.append(f"{' '.join((command.help or '').split())}\n")
        if rows := flags(command, context):
            parts.append(table(("Argument", "Meaning"), rows))
        if command.epilog:
            parts.append(f"{' '.join(command.epilog.split())}\n")
    return "\n".join(parts)


# ---- settings


def remarks(source: Path) -> dict[tuple[str, str], str]:
    """(class, field) -> the `#:` comment above the field."""
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for owner in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)):
        for field in (node for node in owner.body if isinstance(node, ast.AnnAssign)):
            above: list[str] = []
            line = field.lineno - 2
            while lines[line].strip().startswith("#:"):
                above.insert(0, lines[line].strip()[2:].strip())
                line -= 1
            found[owner.name, ast.unparse(field.target)] = " ".join(above)
    return found


def settings(tree: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """(dotted key, default, remark) of every setting."""
    said = remarks(Path(config.__file__)) | remarks(Path(providers.__file__))
    for field in msgspec.structs.fields(tree):
        each = settings_file.family(field.type)
        if each is not None:
            yield from settings(each, f"{prefix}{field.name}.NAME.")
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from settings(field.type, f"{prefix}{field.name}.")
        else:
            default = "" if field.default is msgspec.NODEFAULT else field.default
            yield prefix + field.name, default, said[tree.__name__, field.name]


VARIABLES = [
    ("MINDGW_DATA_DIR", "The server's data directory, when `--data-dir` is not given."),
    ("MINDGW_AGENT_DIR", "The agent's state directory, when `--state-dir` is not given."),
    ("MINDGW_SERVER", "Root URL of the server that commands talk to, when `--server` is not given."),
    ("MINDGW_TOKEN", "API key that commands use."),
    ("MINDGW_JOIN_TOKEN", "Join token, when `mindgw agent join` is given none."),
    ("MINDGW_CONTEXT", "Which of the known servers commands talk to."),
    ("MINDGW_HOME, MINDGW_BIN, MINDGW_PYTHON", "Where `install.sh` puts the program and its link, and the interpreter that it uses."),
    ("NO_COLOR, FORCE_COLOR", "Colours never, or in a pipe too."),
]


def settings_page() -> str:
    rows = [(code(key), code(default), remark) for key, default, remark in settings(config.Config)]
    return "\n".join([
        "# Settings\n",
        WRITTEN,
        "They stand in `config.yaml` in the data directory; `templates/config.example.yaml` shows them all. Times are seconds unless they",
        "say otherwise (`500ms`, `30s`, `5m`, `1h`), sizes bytes (`64KiB`, `32MB`). A value may hold `${NAME}` or `${NAME:-default}`.\n",
        table(("Setting", "Default", "Meaning"), rows),
        "## Environment\n",
        table(("Variable", "Meaning"), [(", ".join(code(n) for n in names.split(", ")), text) for names, text in VARIABLES]),
    ])


# ---- errors


def below(kind: Any) -> Iterator[Any]:
    """Every class under it, parents before their children."""
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def raised() -> Iterator[tuple[str, ast.Call]]:
    """(class, call) of everything that is made anywhere in the sources."""
    for tree in ("src", "agent/src"):
        for path in sorted((ROOT / tree).rglob("*.py")):
            for call in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                if name[:1].isupper():
                    yield name, call


def named_codes() -> Iterator[tuple[str, str]]:
    """(code, class that is raised with it) of every code that is given where the error is raised."""
    reasons = (call.args[0] for name, call in raised() if name == "TokenError")
    flaws = sorted({ast.literal_eval(reason) for reason in reasons if isinstance(reason, ast.Constant)})
    for name, call in raised():
        if name in {"Wrong", "Unwelcome"} and call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value), "Unauthenticated"  # why a kernel turns somebody away, who is told so
        for given in (k.value for k in call.keywords if k.arg == "code"):
            if isinstance(given, ast.Constant) and given.value:
                yield str(given.value), name
            elif isinstance(given, ast.JoinedStr) and isinstance(given.values[0], ast.Constant):
                # f"join_token_{error.code}": what can be wrong with a token
                yield from ((f"{given.values[0].value!s}{flaw}", name) for flaw in flaws)


def merged(numbers: dict[str, int]) -> list[tuple[object, ...]]:
    """A line for each code that is given to one of these classes, with the numbers that it can come with."""
    found: dict[str, set[int]] = {}
    for text, name in named_codes():
        if name in numbers:
            found.setdefault(text, set()).add(numbers[name])
    return [(code(text), ", ".join(map(str, sorted(of)))) for text, of in sorted(found.items())]


def drawn(module: Any) -> dict[str, str]:
    """Class -> its line in the tree that the module's docstring draws: name, exit code, meaning."""
    return dict(re.findall(r"(?m)(\w+) +\d  +(.+)$", module.__doc__))


FIELDS = [
    ("message", "everywhere", "What is wrong, for people; its words may change."),
    ("type", "everywhere", "OpenAI's coarse class of error."),
    ("param", "everywhere", "The field of the request that is at fault; null when it is not one field."),
    ("code", "everywhere", "What is wrong, for programs: one of those below, stable across releases."),
    ("hint", "`/api/v1`", "What to do next, often a command; absent when nothing is better than the message."),
    ("request_id", "`/api/v1`", "Finds the request in the server's log; the same as the header `x-request-id`, which every answer has."),
]


def message_of(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def errors_page() -> str:
    fault: dict[Any, str] = {
        errors.CallerError: "the caller's",
        errors.PolicyError: "nobody's: policy",
        errors.FleetError: "the fleet's",
        errors.UpstreamError: "the engine's",
    }
    kinds = [kind for kind in below(errors.MindGWError) if kind not in fault]
    whose = {kind: next((text for root, text in fault.items() if issubclass(kind, root)), "ours") for kind in kinds}
    by_name = {kind.__name__: kind for kind in [*fault, *kinds]}
    leaving = [*below(client_errors.ClientError), *below(mindgw_agent.errors.AgentError)]
    meaning = {**drawn(client_errors), **drawn(mindgw_agent.errors)}
    return "\n".join([
        "# Errors\n",
        WRITTEN,
        'Over HTTP an error is `{"error": {"message", "type", "param", "code"}}`. `Retry-After` stands beside it when waiting helps.\n',
        table(("Field", "Where", "Meaning"), [(code(name), where, text) for name, where, text in FIELDS]),
        "## Kinds\n",
        table(
            ("Code", "Status", "Type", "Whose fault", "Message unless there is a better one"),
            [(code(k.code), "400-499" if k is errors.EngineRefused else k.status, code(k.type), whose[k], message_of(k)) for k in kinds],
        ),
        "## Codes that say more\n",
        table(("Code", "Status"), merged({name: kind.status for name, kind in by_name.items()})),
        "## Exit codes of commands\n",
        " ".join(cli.EXIT_CODES.split()) + "\n",
        table(("Code", "Exits with", "Meaning"), [(code(k.code), k.exit_code, meaning[k.__name__]) for k in leaving]),
        table(("Code that says more", "Exits with"), merged({k.__name__: k.exit_code for k in leaving if k.__name__ not in by_name})),
    ])


# ---- metrics


def families() -> list[Metric]:
    idle = Snapshot(**{field.name: empty(field) for field in msgspec.structs.fields(Snapshot)})
    stats = Stats(**{field.name: empty(field) for field in msgspec.structs.fields(Stats)})
    return list(collector.Collector(metrics.Counters(), lambda: idle, lambda: stats, lambda: 0).collect())


def empty(field: msgspec.structs.FieldInfo) -> Any:
    if "dict" in str(field.type):
        return {}
    return field.default if field.default is not msgspec.NODEFAULT else () if "tuple" in str(field.type) or "list" in str(field.type) else 0


def metrics_page() -> str:
    rows = []
    for family in families():
        suffix = {"counter": "_total"}.get(family.type, "")
        labels = ", ".join(code(label) for label in getattr(family, "_labelnames", ()))
        rows.append((code(family.name + suffix), family.type, labels, family.documentation))
    return "\n".join([
        "# Metrics\n",
        WRITTEN,
        "Prometheus text at `/metrics`, with an admin key, or at a listener of its own (`metrics.listen`) without one.\n",
        table(("Metric", "Kind", "Labels", "Meaning"), rows),
    ])


# ---- events


def fields(kind: type[msgspec.Struct], module: Any) -> str:
    said = remarks(Path(module.__file__))
    return table(("Field", "Meaning"), [(code(field.name), said[kind.__name__, field.name]) for field in msgspec.structs.fields(kind)])


EVENTS = """\
`GET /api/v1/events` is a WebSocket that shows the live queue, the workers and the budgets. It takes an admin key in the `Authorization`
header; any other is refused before the upgrade, with the status and the body of every other refusal, as is a plain GET (400
`websocket_required`) and whoever comes when LISTENERS watch already (429 `too_many_listeners`). `mindgw queue watch --json` prints what
it says.

Every message is one JSON object in one text frame. The first one is a snapshot:
```json
{"type": "snapshot", "seq": 41, "at": "2026-01-02T03:04:05Z", "queue": [...], "workers": [...], "budgets": [...], "stats": {...}}
```
Deltas follow, at most one in PERIOD s, each numbered one higher:
```json
{"type": "delta", "seq": 42, "at": "...", "queue": {"set": [{"id": "req-1", "position": 2}], "removed": ["req-2"]}, "stats": {...}}
```
Take out what is `removed`, then lay the fields of what is `set` over what you know under that `id`; an id that you do not know is a new
item, with all its fields. Sections without a change are left out; `stats` holds the figures that changed. Whoever reads slowly is sent
another snapshot instead of the deltas that he missed, and goes on from there. Without any change a delta without sections comes every
SILENCE s. What you say is not read. More fields may come with a release; skip what you do not know.

A snapshot holds the first SHOWN requests that wait and as many that run; `stats` counts all. `at` is the server's clock; all moments
are, so subtract them from `at` and not from yours. When looking at a very long queue is hard work, deltas come less often.
"""


def events_page() -> str:
    ends = [
        ("4401", "The key is no longer good: revoked, expired. The reason is the error code."),
        ("4403", "The key is no longer an admin's."),
        ("1012", "The server stops. Connect again: the feed begins anew."),
        ("1013", f"A message was not taken for {events.STALL:g} s."),
        ("1011", "The server failed; its log says why."),
    ]
    text = re.sub(r"\b(LISTENERS|PERIOD|SILENCE|SHOWN)\b", lambda name: f"{getattr(feed, name[0]):g}", EVENTS)
    return "\n".join([
        "# Events\n",
        WRITTEN,
        text,
        "## How it ends\n",
        table(("Code", "Why"), ends),
        "## An item of `queue`\n",
        fields(feed.Row, feed),
        "## An item of `workers`\n",
        "Workers that are connected, no others.\n",
        fields(feed.Box, feed),
        "## An item of `budgets`\n",
        "Those that requests fell under of late, as this server last saw them; `mindgw quotas list` shows all.\n",
        fields(snapshot.BudgetView, snapshot),
        "## `stats`\n",
        "As `GET /api/v1/queue/stats`.\n",
        fields(lineup.Stats, lineup),
    ])


#: File name -> what writes its text.
# ---- who may do what


def doors() -> Iterator[tuple[str, str, guard.Need]]:
    """Method, path and need of every route, in the order of the rooms."""
    for room in management.ROOMS:
        for handler in room.HANDLERS:
            need = guard.need_of(handler)
            for path in sorted(handler.paths):
                for method in sorted(handler.http_methods):
                    assert need is not None
                    yield method, "/api/v1" + re.sub(r"{(\w+)(:\w+)?}", r"{\1}", path), need
    yield "GET", "/api/v1/events", events.NEED
    yield "GET", "/metrics", guard.Need("read", "metrics", home=True)


_ROUTES = (
    "Whatever is not here is refused, and so is whoever lacks the permission, before the body is read. Routes of whoever *runs the server* "
    "are for its own organisation alone, the first that there was. Those for which it is enough to be *in the team* show holders of a role "
    "in one team what belongs to that team.\n"
)


def access_page() -> str:
    roles = sorted(access.BUILT_IN.values(), key=lambda role: -role.rank)
    held = [(f"`{verb}:{what}`", *("yes" if role.mask & bit else "" for role in roles)) for (verb, what), bit in access.BITS.items()]
    routes = [
        (f"`{method} {path}`", f"`{need.verb}:{need.resource}`", *("yes" if role.mask & access.BITS[need[:2]] else "" for role in roles),
         "runs the server" if need.home else "is in the team" if need.team else "")
        for method, path, need in doors()
    ]  # fmt: skip
    names = tuple(role.name for role in roles)
    return "\n".join(
        [
            "# Who may do what\n",
            WRITTEN,
            "A permission is a verb and what it is done to. Roles are sets of them; `mindgw roles create` makes more.\n",
            "## Permissions\n",
            table(("Permission", *(f"{role.name} ({role.rank})" for role in roles)), held),
            "## Routes\n",
            _ROUTES,
            table(("Route", "Takes", *names, "Only for who"), routes),
        ]
    )


def workers_page() -> str:
    """The life of a worker, as its table has it."""
    lines = (ROOT / "src/mindgw/core/worker.py").read_text(encoding="utf-8").splitlines()
    meant = {line.split('"')[1]: line.partition("  # ")[2] for line in lines if "  # " in line and '"' in line}
    steps = [(at, event, to) for at, arrows in worker.TRANSITIONS.items() for event, to in arrows.items() if to is not at]
    return "\n".join(
        [
            "# What a worker is\n",
            WRITTEN,
            "`mindgw workers list` shows it. A worker is busy when its slots are all used; that is no state.\n",
            table(("State", "Means"), [(code(state), meant[state]) for state in worker.State]),
            "## What leads where\n",
            "What is not here changes nothing.\n",
            table(("From", "When", "To"), [tuple(map(code, step)) for step in steps]),
        ]
    )


WRITERS = {
    "workers.md": workers_page,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "events.md": events_page,
    "access.md": access_page,
    "cli.md": cli_page,
}


def main(arguments: list[str]) -> int:
    late = []
    for name, write in WRITERS.items():
        file, text = PAGES / name, write()
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        if old == text:
            continue
        late.append(name)
        if "--check" in arguments:
            print(*difflib.unified_diff(old.splitlines(), text.splitlines(), f"docs/reference/{name}", "the code", lineterm=""), sep="\n")
        else:
            PAGES.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"wrote docs/reference/{name}")
    if late and "--check" in arguments:
        print("out of date; run scripts/docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
