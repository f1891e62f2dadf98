"""scripts/programs: what it installs, when it does not, and that it fails nothing. FAKE: apt-get and id, which write down how they are
called; nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house import ROOT

NEEDED = ["nginx", "caddy", "chromium"]


class Machine:
    """A machine of which only this is known: who one is there, and what apt-get does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.log = folder / "asked"
        self.policy = folder / "root/usr/sbin/policy-rc.d"
        self.bin.mkdir()
        self.policy.parent.mkdir(parents=True)
        for name in ("sh", "cat", "chmod", "env", "rm", "sed", "tail", "timeout", "dirname"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.program("id", "echo 0")

    def program(self, name: str, text: str = "") -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def apt_get(self, text: str = "") -> None:
        """It writes down what it is asked, and whether services are kept from starting meanwhile."""
        self.program("apt-get", f'[ -x {self.policy} ] && s=held || s=free\necho "$s $*" >>{self.log}\n{text}')

    def run(self) -> str:
        """What it says; it never fails, and prints nothing as data."""
        env = {"PATH": str(self.bin), "DESTDIR": str(self.folder / "root"), "HOME": str(self.folder)}
        done = subprocess.run([ROOT / "scripts/programs"], env=env, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")
        return done.stderr

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def installed(self) -> list[str]:
        return [line.split()[-1] for line in self.asked if " install " in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_is_silent_where_all_are_there(machine):
    machine.apt_get()
    for name in NEEDED:
        machine.program(name)
    assert (machine.run(), machine.asked) == ("", [])


def test_another_chromium_will_do_and_a_server_that_only_root_has_in_its_path(machine):
    machine.apt_get()
    for name in ("google-chrome", "caddy"):
        machine.program(name)
    shutil.copy(machine.bin / "caddy", machine.folder / "root/usr/sbin/nginx")
    assert (machine.run(), machine.asked) == ("", [])


def test_what_is_missing_is_installed_and_no_service_is_started_by_that(machine):
    machine.apt_get()
    machine.program("caddy")
    said = machine.run()
    assert said.splitlines() == ["nginx, chromium: not here, so they are installed"]
    assert machine.installed() == ["nginx", "chromium"]
    assert all(line.startswith("held ") for line in machine.asked)
    assert not machine.policy.exists()


def test_a_policy_that_was_there_stays(machine):
    machine.apt_get()
    machine.policy.write_text("mine")
    machine.policy.chmod(0o755)
    machine.run()
    assert machine.policy.read_text() == "mine"


def test_who_is_not_root_installs_nothing_and_hears_what_would(machine):
    machine.apt_get()
    machine.program("id", "echo 1000")
    assert machine.run().splitlines() == [
        "nginx, caddy, chromium: not here, and only root installs; tests of them are not run (apt-get install nginx caddy chromium)"
    ]
    assert machine.asked == []


def test_a_system_without_apt_get_is_told(machine):
    assert machine.run().splitlines() == ["nginx, caddy, chromium: not here, and there is no apt-get; tests of them are not run"]


def test_without_a_network_nothing_more_is_tried(machine):
    machine.apt_get('case "$*" in *update*) echo "E: no way there" >&2; exit 100;; esac')
    first, second = machine.run().splitlines()
    assert first == "nginx, caddy, chromium: not here, so they are installed"
    assert second == "nginx, caddy, chromium: packages cannot be fetched (E: no way there); tests of them are not run"
    assert machine.installed() == []
    assert not machine.policy.exists()


def test_a_package_that_is_not_to_be_had_keeps_no_other_away(machine):
    machine.apt_get('case "$*" in *caddy) echo "E: Unable to locate package caddy" >&2; exit 100;; esac')
    assert machine.run().splitlines()[1:] == ["caddy: not installed (E: Unable to locate package caddy); tests of it are not run"]
    assert machine.installed() == NEEDED


def test_an_apt_get_that_hangs_is_given_up(machine):
    """FAKE: timeout, which says how long it would have waited."""
    machine.apt_get()
    (machine.bin / "timeout").unlink()
    machine.program("timeout", f'echo "$*" >>{machine.log}; exit 124')
    assert "not run" in machine.run()
    assert [line.split()[-1] for line in machine.asked] == ["update"]
    assert all(0 < int(word) <= 300 for line in machine.asked for word in line.split() if word.isdigit())


def test_all_tests_are_run_with_it_and_single_ones_without():
    lines = (ROOT / "scripts/test").read_text().splitlines()
    single = next(number for number, line in enumerate(lines) if "exec" in line and "pytest" in line)
    assert [number > single for number, line in enumerate(lines) if line.strip() == "scripts/programs"] == [True]


def test_what_is_needed_here_is_what_it_looks_for():
    """A test that wants another program of Debian must have it installed, too."""
    text = (ROOT / "scripts/programs").read_text()
    assert [name for name in NEEDED if f"apt-get install {name}" not in told()] == []
    assert all(name in text for name in NEEDED)


def told() -> str:
    """What tests say when a program is not here."""
    return "".join(file.read_text() for file in ((ROOT / "tests/e2e/test_proxies.py"), (ROOT / "tests/faces/test_pages.py")))


def test_where_all_are_there_it_takes_no_time():
    """One process each is all that it may cost: nothing of a package manager is asked."""
    if not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in NEEDED):
        pytest.skip("not run: not all programs are here (scripts/programs as root)")
    done = subprocess.run(["sh", "-x", ROOT / "scripts/programs"], capture_output=True, text=True, check=True, timeout=60)
    assert "apt-get" not in done.stderr
