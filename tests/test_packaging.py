"""The two distributions: what they need, what they carry, and that the locks name all of it."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest

from tests.house import ROOT, named, project_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
AGENT = tomllib.loads((ROOT / "agent/pyproject.toml").read_text())
LOCKS = sorted(path.name for path in (ROOT / "requirements").glob("*.lock"))


def name_of(requirement: str) -> str:
    """The normalised name in a requirement line: `sqlmodel` of `SQLModel[asyncio]>=0.0.27`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


def locked(lock: str) -> dict[str, str]:
    """Package -> block of a lock: its version, marker and hashes."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "requirements" / lock).read_text())
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)
    return {name_of(block): block for block in blocks if block.strip()}


def build(where, into):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", into], cwd=where, check=True, capture_output=True)
    (wheel,) = into.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def server_wheel(tmp_path_factory):
    with build(ROOT, tmp_path_factory.mktemp("server")) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def agent_wheel(tmp_path_factory):
    with build(ROOT / "agent", tmp_path_factory.mktemp("agent")) as wheel:
        yield wheel


def metadata(wheel: zipfile.ZipFile):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_server_needs_all_that_the_agent_needs():
    """Word for word: the server's wheel carries the agent's package without its metadata."""
    assert set(AGENT["project"]["dependencies"]) <= set(PROJECT["project"]["dependencies"])


def test_the_agent_needs_no_server():
    shared = set(AGENT["project"]["dependencies"])
    assert {name_of(line) for line in shared} == {"cryptography", "httptools", "msgspec", "platformdirs", "typer", "websockets"}
    forbidden = {"alembic", "aiosqlite", "asyncpg", "litestar", "sqlalchemy", "sqlmodel", "textual", "uvicorn"}
    assert forbidden.isdisjoint(locked("agent.lock"))


def test_both_ask_for_the_same_python():
    assert PROJECT["project"]["requires-python"] == AGENT["project"]["requires-python"] == ">=3.11"


def test_the_server_wheel_carries_both_packages_templates_and_migrations(server_wheel):
    names = set(server_wheel.namelist())
    shipped = {
        named(path).removeprefix("agent/").removeprefix("src/")
        for path in project_files()
        if named(path).startswith(("src/", "agent/src/")) and path.suffix in {".py", ".typed", ".mako", ".pem", ".json"}
    }
    assert shipped <= names
    assert any(re.fullmatch(r"mindgw/store/migrations/versions/0001_\w+\.py", name) for name in names)
    templates = {f"mindgw/_{named(path)}" for path in project_files() if named(path).startswith("templates/")}
    assert templates
    assert templates <= names


def test_the_server_wheel_carries_nothing_else(server_wheel):
    tops = {name.partition("/")[0] for name in server_wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mindgw", "mindgw_agent"}
    assert not [name for name in server_wheel.namelist() if name.endswith((".pth", ".pyc", ".orig", "~"))]


def test_the_agent_wheel_carries_the_agent_alone(agent_wheel):
    tops = {name.partition("/")[0] for name in agent_wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mindgw_agent"}
    assert not [name for name in agent_wheel.namelist() if name.endswith((".pth", ".pyc"))]


def test_both_wheels_carry_the_licence_and_one_version(server_wheel, agent_wheel):
    for wheel in (server_wheel, agent_wheel):
        (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert metadata(wheel)["License-Expression"] == "Apache-2.0"
    assert metadata(server_wheel)["Version"] == metadata(agent_wheel)["Version"]


def test_the_command_is_installed(server_wheel):
    (entry,) = [name for name in server_wheel.namelist() if name.endswith("entry_points.txt")]
    assert "mindgw = mindgw.cli.start:main" in server_wheel.read(entry).decode()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes(lock):
    bare = [name for name, block in locked(lock).items() if not re.search(r"==\S+", block) or "--hash=sha256:" not in block]
    assert not bare


def needed(project: dict, *extras: str) -> set[str]:
    optional = (project["project"]["optional-dependencies"][extra] for extra in extras)
    lines = [*project["project"]["dependencies"], *(line for extra in optional for line in extra)]
    return {name_of(line) for line in lines}


def grouped(name: str) -> set[str]:
    names = set()
    for line in PROJECT["dependency-groups"][name]:
        names |= grouped(line["include-group"]) if isinstance(line, dict) else {name_of(line)}
    return names


def test_locks_name_everything_the_project_asks_for():
    """When this fails: scripts/lock."""
    assert needed(PROJECT, "embedded") <= set(locked("server.lock"))
    assert needed(AGENT) <= set(locked("agent.lock"))
    assert needed(PROJECT, "embedded") | grouped("test") <= set(locked("dev.lock"))
    assert grouped("build") <= set(locked("build.lock"))


@pytest.mark.parametrize("lock", ["server.lock", "agent.lock", "build.lock"])
def test_what_is_installed_is_what_was_tested(lock):
    tested = locked("dev.lock")
    versions = {name: re.search(r"==([^\s;]+)", block).group(1) for name, block in locked(lock).items()}
    assert versions == {name: re.search(r"==([^\s;]+)", tested[name]).group(1) for name in versions}
