"""What may import what: the contracts of pyproject.toml, and what a fresh interpreter really loads."""

import ast
import subprocess
import sys

import pytest

from tests.house import ROOT, called, code, named, parsed

#: What a pure room may make the interpreter load beside the standard library, and what msgspec itself loads.
OURS = {"mindgw", "mindgw_agent"}
#: Parts of the standard library that a pure room has no use for: they do I/O or wait.
IMPURE = {"asyncio", "logging", "selectors", "socket", "sqlite3", "ssl", "subprocess", "http.client", "urllib.request"}
PURE_ROOMS = [f"mindgw_agent.{name}" for name in ("aggregate", "flow", "payload", "receipt", "records", "session", "sse", "tokens", "wire")]
SERVER_ONLY = {"aiosqlite", "alembic", "asyncpg", "litestar", "mindgw", "pydantic", "sqlalchemy", "sqlmodel", "textual", "uvicorn"}


def module_name(path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    below = parts[parts.index("src") + 1 :]
    return ".".join(below[:-1] if below[-1] == "__init__" else below)


MODULES = {module_name(path): path for path in code()}
CORE = sorted(name for name in MODULES if name.startswith("mindgw.core."))


def loaded_by(*modules: str) -> set[str]:
    """The names in sys.modules of a fresh interpreter after it imported these, less those it starts with."""
    script = f"import sys; before = set(sys.modules); import {', '.join(modules)}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_contracts_hold():
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", script, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", [*CORE, *(name for name in PURE_ROOMS if name in MODULES)])
def test_pure_rooms_load_neither_packages_nor_io(room):
    loaded = loaded_by(room) - loaded_by("msgspec")
    assert {name.partition(".")[0] for name in loaded} - OURS - sys.stdlib_module_names == set()
    assert loaded & IMPURE == set()


def test_the_agent_loads_no_server():
    agent = sorted(name for name in MODULES if name.startswith("mindgw_agent") and not name.endswith("__main__"))
    assert {name.partition(".")[0] for name in loaded_by(*agent)} & SERVER_ONLY == set()


#: What a data door may know of the gateway: the pipeline, the exchange that it is handed, the values that pass between them. The agents'
#: door is the tunnel's shell.
DATA = {"mindgw.gateway.exchange", "mindgw.gateway.lineup", "mindgw.gateway.pipeline", "mindgw.gateway.signals", "mindgw.gateway.snapshot"}
LINKS = {"mindgw.gateway.handshake", "mindgw.gateway.registry", "mindgw.gateway.session", "mindgw.gateway.tunnel"}
#: Who puts the server together may know all of it.
ASSEMBLY = {"mindgw.server.app", "mindgw.server.accounting", "mindgw.server.replays", "mindgw.server.stories", "mindgw.server.trends"}
DOORS = sorted(name for name in MODULES if name.startswith("mindgw.server") and name not in ASSEMBLY)


def imported(path) -> set[str]:
    """The modules that a file imports: `from a import b` counts as a.b where that is one."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module for alias in node.names}
    return found


@pytest.mark.parametrize("door", DOORS)
def test_doors_know_the_pipeline_and_no_stage_behind_it(door):
    known = {name for name in imported(MODULES[door]) if name.startswith("mindgw.gateway")}
    assert known <= (DATA | LINKS if door == "mindgw.server.agents" else DATA)


@pytest.mark.parametrize("door", DOORS)
def test_doors_do_not_reach_through_the_pipeline(door):
    """`pipeline.drain()` is a word with the pipeline, `pipeline.fleet.workers` is not."""
    read = {called(node).replace("_pipeline", "pipeline") for node in ast.walk(parsed(MODULES[door])) if isinstance(node, ast.Attribute)}
    stages = {"auth", "fleet", "meter", "queue"}
    assert not [name for name in read if stages & set(name.partition("pipeline.")[2].split("."))]


def test_doors_import_their_own_room():
    """Data doors talk to the pipeline, management doors to the control room."""
    rules = {
        "mindgw.server.openai": ("mindgw.control",),
        "mindgw.server.agents": ("mindgw.control",),
        "mindgw.server.management": ("mindgw.gateway",),
    }
    crossed = []
    for name, path in MODULES.items():
        for door, forbidden in rules.items():
            if name == door or name.startswith(f"{door}."):
                text = path.read_text(encoding="utf-8")
                crossed += [f"{named(path)} imports {room}" for room in forbidden if f"from {room}" in text or f"import {room}" in text]
    assert not crossed
