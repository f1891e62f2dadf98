"""install.sh and the scripts beside it, as far as that goes without installing; `real_install` does install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT

SCRIPTS = [ROOT / "install.sh", *sorted(p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix), ROOT / ".ci/run"]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def sh(script, *arguments, home, **environment):
    """Run a script with an empty home and nothing of this process's environment but the way to programs and the network."""
    passed = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE", "PIP_CERT", "HTTPS_PROXY", "NO_PROXY") if name in os.environ}
    full = {**passed, "HOME": str(home), "LANG": "C.UTF-8", **environment}
    return subprocess.run(["sh", script, *arguments], cwd=home, env=full, capture_output=True, text=True, check=False)


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script):
    shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False).stderr == ""
    if SHELLCHECK is None:
        pytest.skip("not run: no shellcheck here")
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_half_of_install_does_nothing(home, tmp_path):
    """A download that breaks off must not run half a program: everything stands in main, called on the last line."""
    lines = (ROOT / "install.sh").read_text().splitlines(keepends=True)
    assert lines[-1] == 'main "$@"\n'
    (tmp_path / "half.sh").write_text("".join(lines[:-1]))
    done = sh(tmp_path / "half.sh", home=home)
    assert (done.returncode, done.stdout, done.stderr, everything_below(home)) == (0, "", "", [])


def test_help_names_every_option(home):
    done = sh(ROOT / "install.sh", "--help", home=home)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--quickstart", "--agent", "--uninstall", "--purge", "--dry-run", "--help"))


@pytest.mark.parametrize("arguments", [["--bogus"], ["--purge"], ["--agent", "--quickstart"], ["extra"]], ids=" ".join)
def test_wrong_use_is_refused_with_two(arguments, home):
    done = sh(ROOT / "install.sh", *arguments, home=home)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert everything_below(home) == []


@pytest.mark.parametrize("arguments", [[], ["--agent"], ["--uninstall", "--purge"]], ids=" ".join)
def test_dry_run_touches_nothing(arguments, home):
    data = home / ".local/share/mindgw"
    data.mkdir(parents=True)
    (data / "config.yaml").write_text("listen: 127.0.0.1:8420\n")
    before = everything_below(home)
    done = sh(ROOT / "install.sh", "--dry-run", *arguments, home=home)
    assert done.returncode == 0, done.stderr
    assert "would run: " in done.stderr
    assert everything_below(home) == before


def test_quickstart_arguments_go_on(home):
    done = sh(ROOT / "install.sh", "--dry-run", "--quickstart", "--exit-after-answer", "--port", "1", home=home)
    assert "mindgw quickstart --exit-after-answer --port 1" in done.stderr


def test_purge_leaves_a_directory_that_is_not_ours(home):
    foreign = home / "precious"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    done = sh(ROOT / "install.sh", "--uninstall", "--purge", home=home, MINDGW_DATA_DIR=str(foreign), MINDGW_HOME=str(foreign))
    assert done.returncode == 0, done.stderr
    assert (foreign / "thesis.txt").exists()


def test_a_command_of_someone_else_is_left_alone(home):
    command = home / ".local/bin/mindgw"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    done = sh(ROOT / "install.sh", home=home)
    assert done.returncode == 1
    assert "is not ours" in done.stderr
    sh(ROOT / "install.sh", "--uninstall", home=home)
    assert command.exists()


def test_a_copy_without_its_clone_says_so(home, tmp_path):
    alone = shutil.copy(ROOT / "install.sh", tmp_path / "install.sh")
    done = sh(alone, home=home)
    assert done.returncode == 1
    assert "clone" in done.stderr


def pretend_python(directory: Path, name: str, *, version: str, venv: bool) -> None:
    """A stand-in interpreter that answers the two questions scripts/python asks."""
    directory.mkdir(exist_ok=True)
    script = f"""#!/bin/sh
case $2 in
*executable*) {f'echo {directory}/{name}' if version >= '3.11' else ':'} ;;
*ensurepip*) exit {0 if venv else 1} ;;
*version_info*) echo {version} ;;
esac
"""
    (directory / name).write_text(script)
    (directory / name).chmod(0o755)


def test_the_first_python_that_will_do_is_taken(home, tmp_path):
    pretend_python(tmp_path / "bin", "python3", version="3.09", venv=True)
    pretend_python(tmp_path / "bin", "python3.13", version="3.13", venv=False)
    pretend_python(tmp_path / "bin", "python3.12", version="3.12", venv=True)
    done = sh(ROOT / "scripts/python", home=home, PATH=f"{tmp_path / 'bin'}:/bin")
    assert done.stdout.strip() == str(tmp_path / "bin/python3.12")


def test_a_missing_venv_names_the_package(home, tmp_path):
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.14", "python"):
        pretend_python(tmp_path / "bin", name, version="3.12", venv=False)
    done = sh(ROOT / "scripts/python", home=home, PATH=f"{tmp_path / 'bin'}:/bin")
    assert done.returncode == 1
    assert "apt install python3.12-venv" in done.stderr


def test_no_python_at_all_says_what_is_wanted(home, tmp_path):
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python3.14", "python"):
        pretend_python(tmp_path / "bin", name, version="3.09", venv=True)
    done = sh(ROOT / "scripts/python", home=home, PATH=f"{tmp_path / 'bin'}:/bin")
    assert done.returncode == 1
    assert "3.11 or newer" in done.stderr


@pytest.mark.real_install
@pytest.mark.parametrize("kind", [[], ["--agent"]], ids=["server", "agent"])
def test_install_works_twice_and_leaves_nothing_behind(kind, home):
    first = sh(ROOT / "install.sh", *kind, home=home)
    assert first.returncode == 0, first.stderr
    assert "is not on your PATH" in first.stderr
    command = home / ".local/bin/mindgw"
    made = (home / ".local/share/mindgw-program/env/pyvenv.cfg").stat().st_mtime_ns
    second = sh(ROOT / "install.sh", *kind, home=home)
    assert second.returncode == 0, second.stderr
    assert (home / ".local/share/mindgw-program/env/pyvenv.cfg").stat().st_mtime_ns == made
    version = subprocess.run([command, "version"], capture_output=True, text=True, check=True, env={"HOME": str(home), "PATH": "/bin"})
    assert "0." in version.stdout
    assert sh(ROOT / "install.sh", "--uninstall", "--purge", home=home).returncode == 0
    assert not command.exists()
    assert not (home / ".local/share/mindgw-program").exists()
