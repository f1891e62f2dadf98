"""Where an operator's API keys are kept on his own machine: in the OS keyring or, where there is none, in a file of mode 0600.

A key is kept under the fingerprint of the server it is for: two names for one server share it, and no other server is ever sent it.
"""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from mindgw.client.errors import ClientError
from mindgw_agent import private_files

_SERVICE = "mindgw"
_FILE = "credentials.json"
#: The file holds one key a server; more than this is not ours.
_MAX_FILE = 2**20


def home() -> Path:
    """The directory of this user's settings of the client."""
    return platformdirs.user_config_path("mindgw", appauthor=False)


def keep(fingerprint: str, key: str, directory: Path | None = None) -> str:
    """Keeps the key instead of the one that was there; returns where, for people. Raises ClientError when it cannot be kept."""
    if _keyring_set(fingerprint, key):
        _write({name: value for name, value in _read(directory).items() if name != fingerprint}, directory)
        return "the OS keyring"
    _write({**_read(directory), fingerprint: key}, directory)
    return str((directory or home()) / _FILE)


def find(fingerprint: str, directory: Path | None = None) -> str | None:
    """The key for that server; None when there is none. The file wins: it is written only where the keyring cannot be used, and that
    may change with every login. Raises ClientError when the file is damaged."""
    return _read(directory).get(fingerprint) or _keyring_get(fingerprint)


def forget(fingerprint: str, directory: Path | None = None) -> None:
    """Removes the key; one that is not there is no error."""
    _keyring_delete(fingerprint)
    _write({name: value for name, value in _read(directory).items() if name != fingerprint}, directory)


def _read(directory: Path | None) -> dict[str, str]:
    file = (directory or home()) / _FILE
    try:
        if file.stat().st_size > _MAX_FILE:
            raise ValueError("too large")
        found = json.loads(private_files.read(file))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ClientError(f"cannot read {file}: {error.strerror}", hint="its owner must be you") from None
    except (ValueError, RecursionError):
        raise _damaged(file) from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _damaged(file)
    return found


def _write(keys: dict[str, str], directory: Path | None) -> None:
    place = directory or home()
    file = place / _FILE
    try:
        if not keys:
            file.unlink(missing_ok=True)
            return
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_files.write(file, json.dumps(keys, indent=2).encode() + b"\n")
    except OSError as error:
        hint = "set XDG_CONFIG_HOME to a directory of yours, or hand the key over in MINDGW_TOKEN"
        raise ClientError(f"cannot write {file}: {os.strerror(error.errno or 0)}", hint=hint) from None


def _damaged(file: Path) -> ClientError:
    return ClientError(f"{file} is damaged", hint="remove it, and log in again or set MINDGW_TOKEN")


# On most servers there is no keyring. A backend that cannot keep anything is recognised by reading back what was written: "fail" raises,
# "null" forgets.


def _keyring() -> Any:
    try:
        import keyring  # an optional extra on small machines
    except ImportError:
        return None
    return keyring


def _keyring_get(account: str) -> str | None:
    ring = _keyring()
    if ring is None:
        return None
    try:
        found = ring.get_password(_SERVICE, account)
    except ring.errors.KeyringError:
        return None
    return found if isinstance(found, str) else None


def _keyring_set(account: str, value: str) -> bool:
    ring = _keyring()
    if ring is None:
        return False
    try:
        ring.set_password(_SERVICE, account, value)
    except ring.errors.KeyringError:
        return False
    return _keyring_get(account) == value


def _keyring_delete(account: str) -> None:
    ring = _keyring()
    if ring is None:
        return
    try:
        ring.delete_password(_SERVICE, account)
    except ring.errors.KeyringError:
        return
