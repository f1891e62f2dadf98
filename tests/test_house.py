"""The house rules that a reader of one file can check, checked for every file; the rules about imports are in test_imports.py."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import ROOT, called, code, named, parsed, project_files

FILE_CAP, FILE_HARD = 400, 600
FUNCTION_CAP, FUNCTION_HARD = 40, 60
#: The share of files and functions that may stand between the cap and the hard limit.
TAIL = 0.03
NESTING_CAP = 3

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
VAGUE = {"base", "bases", "common", "helper", "helpers", "manager", "managers", "misc", "service", "services", "util", "utils"}
#: Packages that an installation may lack: what needs them is imported where it is used.
OPTIONAL = {"gguf", "keyring", "numpy", "pynvml", "xllamacpp"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def depth(node: ast.AST) -> int:
    """How deep the blocks below `node` stand in each other; an `elif` is as deep as its `if`, an inner function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not chained))
    return deepest


def comment_at(path: Path, line: int, mark: str) -> bool:
    """Whether `mark` stands in a comment on that line or in the comment right above it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    above = [lines[i] for i in range(max(0, line - 3), line - 1) if lines[i].lstrip().startswith("#")]
    return any(mark in text.partition("#")[2] for text in [lines[line - 1], *above])


def found(problems: list[str]) -> str:
    return "\n".join(["", *problems])


def test_files_stay_within_their_cap():
    sizes = {named(p): len(p.read_text(encoding="utf-8").splitlines()) for p in code()}
    over = {name: size for name, size in sizes.items() if size > FILE_CAP}
    assert not [f"{n}: {s} lines" for n, s in over.items() if s > FILE_HARD]
    assert len(over) <= max(1, TAIL * len(sizes)), f"more than {TAIL:.0%} of the files are over {FILE_CAP} lines: {over}"


def test_functions_stay_within_their_cap():
    sizes = [(lines_of(f), f"{named(p)}:{f.lineno} {f.name}") for p in code() for f in functions(parsed(p))]
    over = sorted(((s, n) for s, n in sizes if s > FUNCTION_CAP), reverse=True)
    assert not [n for s, n in over if s > FUNCTION_HARD]
    assert len(over) <= TAIL * len(sizes), f"more than {TAIL:.0%} of the functions are over {FUNCTION_CAP} lines: {over}"


def test_blocks_do_not_nest_deep():
    deep = [f"{named(p)}:{f.lineno} {f.name}" for p in code() for f in functions(parsed(p)) if depth(f) > NESTING_CAP]
    assert not deep, found(deep)


def test_nothing_is_global():
    written = [f"{named(p)}:{n.lineno}" for p in code() for n in ast.walk(parsed(p)) if isinstance(n, ast.Global)]
    assert not written, found(written)


def unbounded(call: ast.Call) -> bool:
    kind = called(call.func).rpartition(".")[2]
    if kind == "SimpleQueue":
        return True
    names = {keyword.arg for keyword in call.keywords}
    if kind in {"Queue", "LifoQueue", "PriorityQueue"}:
        return not call.args and "maxsize" not in names
    return kind == "deque" and len(call.args) < 2 and "maxlen" not in names


def test_every_queue_has_a_bound():
    """A queue whose bound is kept by its owner says so: `# bounded: by what`."""
    loose = [
        f"{named(p)}:{n.lineno}"
        for p in code()
        for n in ast.walk(parsed(p))
        if isinstance(n, ast.Call) and unbounded(n) and not comment_at(p, n.lineno, "bounded:")
    ]
    assert not loose, found(loose)


def reads_environment(node: ast.AST) -> bool:
    names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) and node.module == "os" else set()
    return bool(names & {"environ", "getenv"}) or (isinstance(node, ast.Attribute) and called(node) in {"os.environ", "os.getenv"})


def test_the_environment_is_read_in_settings_rooms_only():
    read = [
        f"{named(p)}:{n.lineno}"
        for p in code()
        if p.stem not in {"config", "settings"}
        for n in ast.walk(parsed(p))
        if isinstance(n, (ast.ImportFrom, ast.Attribute)) and reads_environment(n)
    ]
    assert not read, found(read)


def test_one_room_asks_for_the_time_of_day():
    asked = [
        f"{named(p)}:{n.lineno}"
        for p in code()
        if p.name != "clock.py"
        for n in ast.walk(parsed(p))
        if (isinstance(n, ast.Call) and called(n.func) in {"time.time", "time.time_ns"})
        or (isinstance(n, ast.ImportFrom) and n.module == "time" and {"time", "time_ns"} & {a.name for a in n.names})
    ]
    assert not asked, found(asked)


def is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(called(kind) in {"Exception", "BaseException"} for kind in kinds)


def lets_go_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler only tidies up: its last word is a bare `raise`."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def is_reported(path: Path, handler: ast.ExceptHandler) -> bool:
    """Whether a comment says why everything is caught here, and the traceback is logged; the tops of the commands show it on --debug."""
    explained = comment_at(path, handler.lineno, " ") or comment_at(path, handler.lineno + 1, " ")
    logged = any(isinstance(n, ast.Call) and called(n.func).endswith(".exception") for n in ast.walk(handler))
    return explained and (logged or named(path) in {"src/mindgw/cli/app.py", "agent/src/mindgw_agent/cli.py"})


def test_broad_excepts_are_explained_and_leave_a_traceback():
    silent = [
        f"{named(p)}:{n.lineno}"
        for p in code()
        for n in ast.walk(parsed(p))
        if isinstance(n, ast.ExceptHandler) and is_broad(n) and not lets_go_on(n) and not is_reported(p, n)
    ]
    assert not silent, found(silent)


def inner_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.lineno, node.module or "."


def test_imports_stand_at_the_top():
    """But in `cli`, which must start fast, and for packages that an installation may lack."""
    hidden = [
        f"{named(p)}:{line} {module}"
        for p in code()
        if "/cli/" not in named(p) and p.name != "cli.py"
        for line, module in inner_imports(parsed(p))
        if module.partition(".")[0] not in OPTIONAL and not comment_at(p, line, "optional:")
    ]
    assert not hidden, found(hidden)


def test_modules_are_nouns_of_the_field():
    vague = [named(p) for p in project_files() if p.suffix == ".py" and VAGUE & {*p.stem.split("_"), p.parent.name}]
    assert not vague, found(vague)


def test_only_render_prints():
    """The embedded engine is a program of its own: it tells its parent its address."""
    printed = [
        f"{named(p)}:{n.lineno}"
        for p in code()
        if named(p) not in {"src/mindgw/cli/render.py", "src/mindgw/quickstart/engine.py"}
        for n in ast.walk(parsed(p))
        if isinstance(n, ast.Call) and called(n.func) in {"print", "sys.stdout.write"}
    ]
    assert not printed, found(printed)


def texts() -> Iterator[tuple[str, str]]:
    for path in project_files():
        try:
            yield named(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


#: Addresses of package indexes and paths of the machines that this was made on; put together here so that the list does not find itself.
FOREIGN = [
    *("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.org", "deb" + r"ian\.org"),
    *("(extra-)?index" + r"-url\s*[= ]\s*\w+:", "find" + r"-links\s*[= ]\s*[/\w]"),
    *(r"/ro" + "ot/", r"(?<![\w.$}~])/wo" + r"rk/", r"(?<![\w.$}~])/ho" + r"me/(?!USER|NAME|you\b)\w"),
    *(r"/opt/(wh" + "eels|py" + "pi)", r"/tmp/pl" + "an"),
]


@pytest.mark.parametrize("pattern", FOREIGN)
def test_no_file_names_an_index_or_a_machine(pattern):
    lines = [f"{name}: {match.group()}" for name, text in texts() for match in re.finditer(pattern, text)]
    assert not lines, found(lines)


SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40,}",
    "a join token": r"mgwj1_[0-9A-Za-z]{90,}",
    "an API key": r"\bmgw_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}\b",
    "a vendor's key": r"\b(sk-(proj-)?[A-Za-z0-9]{32,}|hf_[A-Za-z]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}|xox[bap]-[0-9-]{20,})",
}


@pytest.mark.parametrize("what", SECRETS)
def test_no_file_holds_a_secret(what):
    """A key that a test or a page shows is plainly made up: all of its secret is one letter."""
    held = [
        name for name, text in texts() for match in re.finditer(SECRETS[what], text) if not re.search(r"([0-9A-Za-z])\1{15}", match.group())
    ]
    assert not held, found(held)


def test_every_line_ends_plainly():
    """No carriage returns, no blanks at the end of a line, one newline at the end of a file."""
    untidy = re.compile(r"\r|[ \t]\n|[^\n]\Z|\n\n\Z")
    names = [name for name, text in texts() if name != "LICENSE" and untidy.search(text)]
    assert not names, found(names)


def test_scripts_can_be_run():
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix] + [ROOT / "install.sh", ROOT / ".ci/run"]
    for script in scripts:
        assert script.stat().st_mode & 0o111, f"{script.name} is not executable"
        assert script.read_text().startswith("#!"), script.name
