"""The state directory: who this agent is, and where its server and its engine are. One directory is one agent.

    agent.json    Settings, written whole or not at all (0600)
    agent.key     the private key (0600); missing when the OS keyring holds it
    agent.lock    locked by the process that serves
    pause         the Unix second until which the owner wants the box for other things
    environment   what a service of the agent has in its environment (0600), see `unit`
    outbox        receipts that the server has not acknowledged yet, see `outbox`; *.damaged are what could not be read of it
    status.json   what that process last said of itself, see `status`

All of them are their owner's alone.
"""

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import platformdirs

from mindgw_agent import address, errors, identity, private_files

_KEYRING_SERVICE = "mindgw-agent"
_KEY_BYTES = 32

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an enrolled agent knows. Fields of a newer release are ignored."""

    agent_id: Annotated[str, msgspec.Meta(min_length=1)]
    name: str
    #: Root URLs of the server, best first.
    servers: Annotated[list[str], msgspec.Meta(min_length=1)]
    #: The server's Ed25519 identity, public half.
    server_identity: Key
    #: SHA-256 of the public keys of the CAs that may vouch for the server; empty: the system's authorities do.
    pins: list[Key] = []
    #: PEM of the pinned CA; empty when every server is on a loopback address, and where the system's authorities vouch.
    ca: str = ""
    #: Root URL of the engine; empty: look on the usual ports at each start.
    engine_url: str = ""
    #: Kind of engine; empty: ask it.
    engine_kind: str = ""
    #: File that holds the engine's own API key; empty: it wants none.
    engine_key_file: str = ""
    #: Root URLs of the other engines of this box; each is asked what it is.
    other_engines: list[str] = []
    #: Globs of the models that are offered; none: all that the engines have.
    models: list[str] = []
    #: Names of the teams that this box works for; none: for all.
    teams: list[str] = []
    #: Whether the server may have models pulled.
    may_pull: bool = False
    #: The engine's own command line, which the agent runs beside itself; empty: it is somebody else's.
    engine_command: str = ""
    #: Requests at a time, per engine; 0: as many as the engine says.
    slots: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    #: Number of the newest session that was begun; a server that knows a smaller one was rolled back.
    last_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0


def default_dir() -> Path:
    """MINDGW_AGENT_DIR, else mindgw-agent in the XDG state home."""
    chosen = os.environ.get("MINDGW_AGENT_DIR", "")
    return Path(chosen).expanduser() if chosen else platformdirs.user_state_path("mindgw-agent", appauthor=False)


def token_from_environment() -> str:
    """MINDGW_JOIN_TOKEN, empty when it is not set."""
    return os.environ.get("MINDGW_JOIN_TOKEN", "")


def proxies_from_environment() -> dict[str, str]:
    """The variables that `proxy` follows, as they are set."""
    return {name: value for name, value in os.environ.items() if name.lower() in {"https_proxy", "all_proxy", "no_proxy"} and value}


class StateDir:
    """One agent's directory. Nothing is created before something is written. All methods block for the disk."""

    def __init__(self, path: Path | None = None) -> None:
        #: Absolute, so that it names one agent wherever the process stands.
        self.path = (path or default_dir()).expanduser().absolute()
        #: Settings of an enrolled agent.
        self.settings_file = self.path / "agent.json"
        #: Private key when no keyring holds it.
        self.key_file = self.path / "agent.key"
        #: Held by the process that serves.
        self.lock_file = self.path / "agent.lock"
        #: Until when it takes no requests; missing when it does.
        self.pause_file = self.path / "pause"
        #: What that process says of itself.
        self.status_file = self.path / "status.json"
        #: Receipts for the server.
        self.outbox_file = self.path / "outbox"
        #: Variables of the agent's service, one a line.
        self.environment_file = self.path / "environment"

    def load(self) -> Settings | None:
        """None when this directory is not enrolled. `BadState` names the file and the field that cannot be used."""
        try:
            text = self.settings_file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.BadState(f"cannot read {self.settings_file}: {error.strerror}", hint="run as the user that joined") from None
        try:
            settings = msgspec.json.decode(text, type=Settings)
            for url in settings.servers:
                address.parse(url)
        except (msgspec.MsgspecError, UnicodeDecodeError, errors.Misuse) as error:
            raise errors.BadState(f"{self.settings_file} is damaged: {error}", hint=self._start_over()) from None
        return settings

    def save(self, settings: Settings) -> None:
        """On the disk when this returns. Raises `BadState` when it cannot be written."""
        self.write(self.settings_file, msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")

    def private_key(self) -> bytes:
        """The agent's key. `BadState` when there is none or it is damaged."""
        key = self._find_key()
        if key is None:
            hint = f"run as the user that joined, whose keyring holds it; or {self._start_over()}"
            raise errors.BadState(f"the private key of {self.path} is gone", hint=hint)
        return key

    def obtain_key(self) -> bytes:
        """The key that is here, or a new one, kept in the OS keyring or, without one, in a file of mode 0600."""
        key = self._find_key()
        if key is None:
            key = identity.new_key()
            text = base64.b64encode(key).decode()
            if not _keyring_set(str(self.path), text):
                self.write(self.key_file, text.encode() + b"\n")
        return key

    def forget(self) -> None:
        """Remove identity and key; what is not there is no error."""
        _keyring_delete(str(self.path))
        for file in (
            self.settings_file, self.key_file, self.status_file, self.outbox_file, self.pause_file, self.environment_file,
        ):  # fmt: skip
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise errors.BadState(f"cannot remove {file}: {error.strerror}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Serve alone: raises `Occupied` while another process serves from this directory."""
        self._make()
        handle = os.open(self.lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "a second agent on one machine needs its own --state-dir"
            raise errors.Occupied(f"an agent already serves from {self.path}", hint=hint, code="already_running") from None
        else:
            yield
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether a process serves from this directory."""
        try:
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def write(self, file: Path, data: bytes, *, durable: bool = True) -> None:
        """Replace a file of this directory by one of mode 0600, whole or not at all; `durable` waits for the disk."""
        self._make()
        try:
            private_files.write(file, data, durable=durable)
        except OSError as error:
            raise errors.BadState(f"cannot write {file}: {error.strerror}", hint="choose another --state-dir") from None

    def _make(self) -> None:
        try:
            private_files.make_directory(self.path)
        except OSError as error:
            raise errors.BadState(f"cannot make {self.path}: {error.strerror}", hint="choose another --state-dir") from None

    def _find_key(self) -> bytes | None:
        try:
            text: str | None = private_files.read(self.key_file).decode("ascii", "replace")
        except FileNotFoundError:
            text = _keyring_get(str(self.path))
        except OSError as error:
            raise errors.BadState(f"cannot read {self.key_file}: {error.strerror}", hint="run as the user that joined") from None
        if text is None:
            return None
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise errors.BadState(f"the private key of {self.path} is damaged", hint=self._start_over())
        return key

    def _start_over(self) -> str:
        return f"start over: `mindgw agent leave --state-dir {self.path}`, then join with a new token"


# The OS keyring is an optional extra and on most GPU boxes there is none. A backend that cannot keep anything is recognised by
# reading back what was written: "fail" raises, "null" forgets.


def _keyring() -> Any:
    try:
        import keyring  # an optional extra
    except ImportError:
        return None
    return keyring


def _keyring_get(account: str) -> str | None:
    ring = _keyring()
    if ring is None:
        return None
    try:
        found = ring.get_password(_KEYRING_SERVICE, account)
    except ring.errors.KeyringError:
        return None
    return found if isinstance(found, str) else None


def _keyring_set(account: str, value: str) -> bool:
    ring = _keyring()
    if ring is None:
        return False
    try:
        ring.set_password(_KEYRING_SERVICE, account, value)
    except ring.errors.KeyringError:
        return False
    return _keyring_get(account) == value


def _keyring_delete(account: str) -> None:
    ring = _keyring()
    if ring is None:
        return
    try:
        ring.delete_password(_KEYRING_SERVICE, account)
    except ring.errors.KeyringError:
        return
