"""scripts/panva: what it says where it cannot install, and that it fails nothing. FAKE: npm, which writes down how it is called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script beside what it installs, in a project of its own."""
    shutil.copytree(ROOT / "tests/e2e/panva", tmp_path / "tests/e2e/panva")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/panva", tmp_path / "scripts/panva")
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cmp", "cp", "dirname", "mkdir", "rm", "timeout"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def program(copy: Path, name: str, text: str) -> None:
    file = copy / "bin" / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def run(copy: Path) -> str:
    env = {**os.environ, "PATH": str(copy / "bin")}
    done = subprocess.run([copy / "scripts/panva"], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


def test_without_node_it_says_so(copy):
    assert run(copy).startswith("node: not here; tests with panva's oidc-provider are not run")
    program(copy, "node", "")
    assert run(copy).startswith("npm: not here")


def test_what_is_installed_is_what_is_locked_and_once(copy):
    program(copy, "node", "")
    program(copy, "npm", f'echo "$*" >>{copy}/asked; mkdir -p node_modules/oidc-provider')
    assert run(copy) == ""
    assert run(copy) == ""
    (asked,) = (copy / "asked").read_text().splitlines()
    assert asked.startswith("ci ") and "--ignore-scripts" in asked
    lock = copy / "tests/e2e/panva/package-lock.json"
    lock.write_text(lock.read_text() + "\n")
    assert run(copy) == ""
    assert len((copy / "asked").read_text().splitlines()) == 2, "another lock, another installation"


def test_what_cannot_be_installed_is_told_and_tried_again(copy):
    program(copy, "node", "")
    program(copy, "npm", f'echo x >>{copy}/asked; echo "no way there"; exit 1')
    for _ in range(2):
        assert run(copy) == "oidc-provider: not installed (no way there); tests of it are not run\n"
    assert len((copy / "asked").read_text().splitlines()) == 2


def test_everything_that_is_locked_has_a_hash_and_no_place():
    text = (ROOT / "tests/e2e/panva/package-lock.json").read_text()
    assert '"resolved"' not in text
    assert text.count('"integrity"') == text.count('"node_modules/')
