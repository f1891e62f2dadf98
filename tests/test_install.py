"""install.sh and the scripts beside it, as far as that goes without installing; `real_install` does install."""

import os
import shutil
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mindgw.control import certificates, templates
from tests.house import ROOT

SCRIPTS = [ROOT / "install.sh", *sorted(p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix), ROOT / ".ci/run"]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def home(tmp_path):
    """A home whose name has a space and what else a shell must be told to leave alone."""
    (tmp_path / "my $HOME's").mkdir()
    return tmp_path / "my $HOME's"


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


WRONG = [
    ["--bogus"],
    ["--purge"],
    ["--agent", "--quickstart"],
    ["--quickstart", "--agent"],
    ["--quickstart", "--uninstall", "--purge"],
    ["extra"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_use_is_refused_with_two(arguments, home):
    done = sh(ROOT / "install.sh", *arguments, home=home)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert everything_below(home) == []


def installation(home: Path) -> Path:
    """What marks an environment as one that install.sh made, and its link."""
    program = home / ".local/share/mindgw-program"
    (program / "env/bin").mkdir(parents=True)
    for name in ("env/.stamp", "env/pyvenv.cfg", "env/bin/mindgw"):
        (program / name).write_text("")
    (home / ".local/bin").mkdir(parents=True)
    (home / ".local/bin/mindgw").symlink_to(program / "env/bin/mindgw")
    return program


#: Every template that there is.
WITH = [word for name in templates.SETS for word in ("--with", name)]


def init(home: Path, directory: Path) -> None:
    """A data directory as the program makes it, in a home of its own."""
    command = [sys.executable, "-m", "mindgw", "init", "--data-dir", str(directory), *WITH, "-q"]
    subprocess.run(command, env={**os.environ, "HOME": str(home)}, check=True, capture_output=True)


DRY = [
    ["--dry-run"],
    ["--agent", "--dry-run"],
    ["--dry-run", "--agent"],
    ["--uninstall", "--dry-run"],
    ["--uninstall", "--purge", "--dry-run"],
    ["--dry-run", "--quickstart"],
    ["--quickstart", "--dry-run"],
    ["--quickstart", "--port", "1", "--dry-run", "--exit-after-answer"],
]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("arguments", DRY, ids=" ".join)
def test_dry_run_touches_nothing(arguments, fresh, home):
    if not fresh:
        installation(home)
        init(home, home / ".local/share/mindgw")
    before = everything_below(home)
    done = sh(ROOT / "install.sh", *arguments, home=home)
    assert done.returncode == 0, done.stderr
    assert everything_below(home) == before
    said = [line for line in done.stderr.splitlines() if "is not on your PATH" not in line]
    assert all("would " in line for line in said), done.stderr
    assert "--uninstall" not in arguments or "would run" not in done.stderr
    assert said


@pytest.mark.parametrize("arguments", [["--dry-run", "--quickstart"], ["--quickstart", "--dry-run"]], ids=" ".join)
def test_quickstart_arguments_go_on(arguments, home):
    done = sh(ROOT / "install.sh", *arguments, "--exit-after-answer", "--port", "1", home=home)
    assert done.stderr.rstrip().endswith("mindgw quickstart --exit-after-answer --port 1")


def test_help_after_quickstart_installs_nothing(home):
    done = sh(ROOT / "install.sh", "--quickstart", "--help", home=home)
    assert (done.returncode, everything_below(home)) == (0, [])
    assert "--quickstart" in done.stdout


def test_uninstall_keeps_the_data(home):
    program = installation(home)
    init(home, home / ".local/share/mindgw")
    before = everything_below(home / ".local/share/mindgw")
    done = sh(ROOT / "install.sh", "--uninstall", home=home)
    assert done.returncode == 0, done.stderr
    assert not program.exists()
    assert not (home / ".local/bin/mindgw").is_symlink()
    assert everything_below(home / ".local/share/mindgw") == before


def test_purge_leaves_nothing_of_ours(home):
    installation(home)
    init(home, home / ".local/share/mindgw")
    agent = home / ".local/state/mindgw-agent"
    agent.mkdir(parents=True)
    for name in ("agent.json", "agent.key", "agent.lock", "status.json"):
        (agent / name).write_text("")
    (home / ".local/share/mindgw/audit").mkdir()
    (home / ".local/share/mindgw/audit/2026-11-21.jsonl").write_text("")
    assert (home / ".config/mindgw/contexts.json").exists()
    done = sh(ROOT / "install.sh", "--uninstall", "--purge", home=home)
    assert done.returncode == 0, done.stderr
    assert everything_below(home) == [".config", ".local", ".local/bin", ".local/share", ".local/state"]


FOREIGN = [["config.yaml"], ["config.yaml", "ca.key", "serve.lock"], ["agent.json"], ["agent.lock"], ["contexts.json.old"]]


@pytest.mark.parametrize("names", FOREIGN, ids=" ".join)
def test_purge_leaves_a_directory_that_is_not_ours(names, home):
    """One that merely holds a file of a name that we use too."""
    foreign = home / "precious"
    foreign.mkdir()
    for name in (*names, "thesis.txt"):
        (foreign / name).write_text("years of work")
    before = everything_below(home)
    places = dict.fromkeys(("MINDGW_DATA_DIR", "MINDGW_AGENT_DIR", "MINDGW_HOME"), str(foreign))
    done = sh(ROOT / "install.sh", "--uninstall", "--purge", home=home, **places)
    assert done.returncode == 0, done.stderr
    assert everything_below(home) == before
    assert f"left as it is: {foreign}" in done.stderr


def test_purge_takes_its_own_from_a_directory_that_holds_more_and_names_the_rest(home):
    data = home / "work"
    init(home, data)
    (data / "notes.txt").write_text("mine")
    (data / "backups").mkdir()
    for name in ("mindgw-0001-20261121T101010.000000Z.db", "holiday.jpg"):
        (data / "backups" / name).write_text("")
    done = sh(ROOT / "install.sh", "--uninstall", "--purge", home=home, MINDGW_DATA_DIR=str(data))
    assert done.returncode == 0, done.stderr
    assert everything_below(data) == ["backups", "backups/holiday.jpg", "notes.txt"]
    assert f"{data}/backups/holiday.jpg" in done.stderr
    assert f"{data}/notes.txt" in done.stderr


@pytest.mark.parametrize("link", [False, True])
def test_purge_never_touches_the_home_itself(link, home, tmp_path):
    init(home, home)
    before = everything_below(home)
    (tmp_path / "link").symlink_to(home)
    named = tmp_path / "link" if link else home
    done = sh(ROOT / "install.sh", "--uninstall", "--purge", home=home, MINDGW_DATA_DIR=str(named), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert everything_below(home) == before
    assert f"left as it is: {named}" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--uninstall"], ["--uninstall", "--purge"]], ids=" ".join)
def test_an_environment_of_someone_else_is_left_alone(arguments, home):
    """MINDGW_HOME is a project with an environment of its own."""
    project = home / "project"
    (project / "env").mkdir(parents=True)
    (project / "env/pyvenv.cfg").write_text("home = /usr/bin\n")
    (project / "work.py").write_text("")
    before = everything_below(home)
    done = sh(ROOT / "install.sh", *arguments, home=home, MINDGW_HOME=str(project))
    assert everything_below(home) == before
    assert done.returncode == (0 if arguments else 1)
    assert f"{project}/env" in done.stderr


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_uninstall_waits_for_what_runs(dry, home):
    """A process of this installation: `python` of its environment."""
    program = installation(home)
    (program / "env/bin/python").symlink_to(sys.executable)
    command = [program / "env/bin/python", "-S", "-c", "print('here', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout.readline() == "here\n"
        before = everything_below(home)
        done = sh(ROOT / "install.sh", "--uninstall", "--purge", *dry, home=home)
        assert done.returncode == 1
        assert f"process {server.pid}" in done.stderr
        assert f"kill {server.pid}" in done.stderr
        assert everything_below(home) == before
        server.stdin.write("\n")
    assert sh(ROOT / "install.sh", "--uninstall", *dry, home=home).returncode == 0


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
*executable*) {f"echo {directory}/{name}" if version >= "3.11" else ":"} ;;
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


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--agent"]], ids=" ".join)
@pytest.mark.parametrize(
    ("version", "said"),
    [("3.09", "is Python 3.09; 3.11 or newer is needed"), ("", "cannot be run as Python"), (None, "cannot be run as Python")],
    ids=["old", "no python", "missing"],
)
def test_a_named_interpreter_that_will_not_do_is_an_error(arguments, version, said, home, tmp_path):
    named = tmp_path / "bin/named"
    if version is not None:
        pretend_python(tmp_path / "bin", "named", version=version, venv=True)
    done = sh(ROOT / "install.sh", *arguments, home=home, MINDGW_PYTHON=str(named))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: MINDGW_PYTHON={named} {said}")
    assert len(done.stderr.splitlines()) == 2
    assert everything_below(home) == []


def test_a_named_interpreter_is_used_alone(home, tmp_path):
    pretend_python(tmp_path / "bin", "python3", version="3.13", venv=True)
    pretend_python(tmp_path / "bin", "named", version="3.12", venv=True)
    named = str(tmp_path / "bin/named")
    done = sh(ROOT / "scripts/python", home=home, PATH=f"{tmp_path / 'bin'}:/bin", MINDGW_PYTHON=named)
    assert done.stdout.strip() == named
    done = sh(ROOT / "scripts/python", "3.13", home=home, PATH=f"{tmp_path / 'bin'}:/bin", MINDGW_PYTHON=named)
    assert "named" not in done.stdout, "a version that is asked for wins"


class EmptyIndex(BaseHTTPRequestHandler):
    """A package index that has nothing, and remembers what it was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_):
        """Says nothing."""


def test_a_download_that_fails_says_what_may_help_and_one_ca_file_is_enough(home, tmp_path):
    """SSL_CERT_FILE alone lets pip reach an index whose CA is private, too."""
    (tmp_path / "ca").mkdir()
    key = certificates.new_key()
    pem = certificates.new_ca(key)
    certificates.obtain_server(tmp_path / "ca", pem, key, ["127.0.0.1"])
    (tmp_path / "ca/ca.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca/server.pem", tmp_path / "ca/server.key")
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyIndex) as index:
        index.asked = []
        index.socket = context.wrap_socket(index.socket, server_side=True)
        thread = threading.Thread(target=index.serve_forever)
        thread.start()
        said = {"PIP_INDEX_URL": f"https://127.0.0.1:{index.server_port}/simple", "PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
        ours = {"SSL_CERT_FILE": str(tmp_path / "ca/ca.pem"), "PIP_CERT": "", "MINDGW_PYTHON": sys.executable}
        done = sh(ROOT / "install.sh", home=home, **said, **ours)
        index.shutdown()
        thread.join()
    assert index.asked, done.stderr
    assert done.returncode == 1
    assert all(word in done.stderr for word in ("HTTPS_PROXY", "SSL_CERT_FILE", "PIP_INDEX_URL"))
    assert not (home / ".local/bin/mindgw").is_symlink()
    assert sh(ROOT / "install.sh", "--uninstall", home=home).returncode == 0
    assert everything_below(home / ".local") == ["bin", "share"], "half an installation is taken away too"


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
    assert version.stdout.split()[-1] in second.stderr
    assert "usage: mindgw " in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout.lower()
    assert sh(ROOT / "install.sh", "--uninstall", "--purge", home=home).returncode == 0
    assert not command.exists()
    assert not (home / ".local/share/mindgw-program").exists()
