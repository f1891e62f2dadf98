"""The agent as a service of systemd: the unit that starts it with the machine (system) or with its owner (user)."""

import hashlib
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec
import platformdirs

from mindgw_agent import errors, private_files
from mindgw_agent.settings import StateDir, proxies_from_environment

Scope = Literal["user", "system"]
#: Where units of the system stand.
SYSTEM_UNITS: Final = Path("/etc/systemd/system")
#: Seconds that systemctl may take; a stop drains first.
PATIENCE: Final = 400.0
#: Letters of a directory's name that stand in that of its unit.
_LONGEST: Final = 40

_UNIT: Final = """\
# Written by `mindgw agent service install`; `mindgw agent service uninstall` removes it.
[Unit]
Description=MindGateway agent {name}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
{user}EnvironmentFile=-{environment}
ExecStart={command}
Restart=always
RestartSec=5
# what the server said for good, and a second agent in one place, do not get better by trying again
RestartPreventExitStatus=4 7
# SIGTERM drains: running answers end first
KillMode=mixed
TimeoutStopSec=330
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy={target}
"""


class Service(msgspec.Struct, frozen=True):
    """The unit of one state directory."""

    state: StateDir
    scope: Scope

    @property
    def name(self) -> str:
        """Of the unit; a directory that is not the usual one has a name of its own."""
        usual = StateDir(platformdirs.user_state_path("mindgw-agent", appauthor=False)).path
        if self.state.path == usual:
            return "mindgw-agent"
        # many directories may end alike, and may be alike once letters are left out
        mark = hashlib.sha256(os.fsencode(self.state.path)).hexdigest()[:8]
        return f"mindgw-{_plain(self.state.path.name)[:_LONGEST]}-{mark}"

    @property
    def file(self) -> Path:
        folder = platformdirs.user_config_path("systemd", appauthor=False) / "user" if self.scope == "user" else SYSTEM_UNITS
        return folder / f"{self.name}.service"

    def install(self) -> str:
        """Writes the unit, and has it started now and with the machine or its owner; what to know besides, for people. Doing it again
        changes nothing that was well. Proxies that the environment names now are kept beside the settings, for a service has none of it.
        Raises `NotEnrolled`, `Occupied`, `BadState`, and `ServiceFailed`."""
        settings = self.state.load()
        if settings is None:
            raise errors.NotEnrolled(f"{self.state.path} has not joined a server")
        text = render(settings.name, self.state, self.scope)
        self._check_owner()
        self._keep(proxies_from_environment())
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            private_files.write(self.file, text.encode())
            self.file.chmod(0o644)
        except OSError as error:
            hint = "a unit of the system takes root: sudo, or leave out --system"
            raise errors.BadState(f"cannot write {self.file}: {error.strerror}", hint=hint) from None
        self._systemctl("daemon-reload")
        self._systemctl("enable", "--now", self.file.name)
        return "it ends when you log out; `loginctl enable-linger` keeps it running" if self.scope == "user" else ""

    def uninstall(self) -> None:
        """Ends it and removes the unit; one that is not there is no error. Raises `Occupied`, `BadState` and `ServiceFailed`."""
        if not self.file.exists():
            return
        self._check_owner()
        self._systemctl("disable", "--now", self.file.name)
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise errors.BadState(f"cannot remove {self.file}: {error.strerror}", hint="run as who installed it") from None
        self._systemctl("daemon-reload")

    def status(self) -> str:
        """active, inactive, failed, … as systemd says it; "not installed"."""
        if not self.file.exists():
            return "not installed"
        return self._run("is-active", self.file.name).stdout.strip() or "unknown"

    def _check_owner(self) -> None:
        """Raises `Occupied` for a unit that runs the agent of another directory: two users may have a usual one each. And `BadState`."""
        try:
            text = self.file.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise errors.BadState(f"cannot read {self.file}: {error.strerror}", hint="run as who installed it") from None
        if f'"--state-dir" {_quoted(str(self.state.path))}\n' not in text:
            hint = "remove that one first: `mindgw agent service uninstall` with its --state-dir"
            raise errors.Occupied(f"{self.file} is the service of another agent", hint=hint)

    def _keep(self, values: dict[str, str]) -> None:
        """Whatever else the owner wrote into that file stays. Raises `Misuse` and `BadState`."""
        if not values:
            return
        file = self.state.environment_file
        try:
            said = private_files.read(file).decode(errors="surrogateescape").splitlines()
        except FileNotFoundError:
            said = []
        except OSError as error:
            raise errors.BadState(f"cannot read {file}: {error.strerror}", hint="run as who installed it before") from None
        lines = [line for line in said if line.partition("=")[0].strip() not in values]
        lines += [f"{name}={_escaped(value)}" for name, value in values.items()]
        self.state.write(file, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))

    def _systemctl(self, *words: str) -> None:
        done = self._run(*words)
        if done.returncode:
            why = (done.stderr or done.stdout).strip()[:500]
            raise errors.ServiceFailed(f"systemctl {' '.join(words)} failed: {why}", hint=f"the unit is {self.file}")

    def _run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = ["systemctl", *(["--user"] if self.scope == "user" else []), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            hint = "this machine has no systemd: have something else run `mindgw agent run`"
            raise errors.ServiceFailed(f"systemctl cannot be run: {error}", hint=hint) from None


def render(name: str, state: StateDir, scope: Scope) -> str:
    """The unit's text. A unit of the system runs as whoever owns the state directory, never as somebody else."""
    words = [sys.executable, "-m", "mindgw_agent", "agent", "run", "--state-dir", str(state.path)]
    user = "" if scope == "user" else f"User={pwd.getpwuid(os.stat(state.path).st_uid).pw_name}\n"
    target = "default.target" if scope == "user" else "multi-user.target"
    environment = _percent(str(state.environment_file))
    return _UNIT.format(name=_percent(name), user=user, environment=environment, command=" ".join(map(_quoted, words)), target=target)


def _quoted(word: str) -> str:
    """A word of a command line as systemd reads it: quotes, specifiers and variables stand for themselves. Raises `Misuse`."""
    if not word.isprintable():
        raise errors.Misuse(f"a unit cannot hold {word!r}", hint="choose another --state-dir")
    return '"' + _percent(word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")) + '"'


def _escaped(value: str) -> str:
    """A value as systemd reads it in a file of an environment, and a shell would. Raises `Misuse`."""
    if not value.isprintable():
        raise errors.Misuse("a proxy of the environment cannot be kept: it holds what cannot be shown", code="bad_proxy")
    return '"' + "".join(f"\\{letter}" if letter in '\\"$`' else letter for letter in value) + '"'


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _plain(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
