"""What a server must never lose nor show: its identity, its CA, the pepper of its keys. Plain files of mode 0600 in the data directory."""

import hashlib
import hmac
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm

from mindgw.control import certificates
from mindgw.errors import ConfigError
from mindgw_agent import identity, private_files

#: Files of 32 random bytes; the identity's are the seed of an Ed25519 key.
_RANDOM = {"identity": "identity.key", "pepper": "pepper", "sealing": "sealing.key", "signing": "signing.key"}
CA_PEM, CA_KEY = "ca.pem", "ca.key"
_SIZE = 32

FILES = (*_RANDOM.values(), CA_PEM, CA_KEY)

_RESTORE = "restore it from a backup, or start over: `mindgw init --data-dir` with an empty directory"
_OWNER = "who runs this must own the data directory and its files; another one: --data-dir"


class Secrets(msgspec.Struct, frozen=True):
    """All secrets of a server."""

    #: Private Ed25519 key: signs what agents must believe.
    identity: bytes
    #: Certificate of the CA, PEM; not secret.
    ca_pem: bytes
    #: Its private key, PEM.
    ca_key: bytes
    #: Key of the digests of API keys.
    pepper: bytes
    #: Key that seals what travels through agents and comes back.
    sealing: bytes
    #: Key that signs what callers carry.
    signing: bytes

    def __repr__(self) -> str:
        return f"Secrets({self.fingerprint})"

    @property
    def public_identity(self) -> bytes:
        """What agents know the server by, 32 bytes."""
        return identity.public_half(self.identity)

    @property
    def fingerprint(self) -> str:
        """Short name of the identity, for people and for the store of credentials."""
        return hashlib.sha256(self.public_identity).hexdigest()[:32]

    @property
    def chain_key(self) -> bytes:
        """Key of the links of the ledger."""
        return hmac.digest(self.sealing, b"chain of the ledger", "sha256")

    @property
    def audit_key(self) -> bytes:
        """Key of the links of the audit log."""
        return hmac.digest(self.sealing, b"chain of the audit log", "sha256")

    @property
    def replay_key(self) -> bytes:
        """Key of the digests of Idempotency-Keys and of what was asked with them."""
        return hmac.digest(self.sealing, b"identities of replays", "sha256")

    @property
    def ca_pin(self) -> bytes:
        """SHA-256 of the CA's public key, as join tokens carry it."""
        return certificates.spki_pin(self.ca_pem)


def missing(directory: Path) -> list[str]:
    """Names of the files that are not there."""
    return [name for name in FILES if not (directory / name).exists()]


def obtain(directory: Path) -> Secrets:
    """The secrets of a data directory; what is missing is made. Raises ConfigError when files cannot be made or are damaged."""
    try:
        private_files.make_directory(directory)
        for name in _RANDOM.values():
            if not (directory / name).exists():
                private_files.create(directory / name, os.urandom(_SIZE))
        _obtain_ca(directory)
    except OSError as error:
        raise ConfigError(f"cannot write in the data directory {directory}: {error.strerror}", hint=_OWNER) from None
    return load(directory)


def load(directory: Path) -> Secrets:
    """The secrets of a data directory. Raises ConfigError when one is missing or damaged. Files that others may read are closed."""
    random = {field: _read(directory / name) for field, name in _RANDOM.items()}
    for field, data in random.items():
        if len(data) != _SIZE:
            raise ConfigError(f"{directory / _RANDOM[field]} is damaged (it has {len(data)} bytes, not {_SIZE})", hint=_RESTORE)
    ca_pem, ca_key = _read(directory / CA_PEM, private=False), _read(directory / CA_KEY)
    try:
        certificates.check_pair(ca_pem, ca_key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{directory / CA_PEM} and {CA_KEY} are damaged ({error})", hint=_RESTORE) from None
    return Secrets(ca_pem=ca_pem, ca_key=ca_key, **random)


def _obtain_ca(directory: Path) -> None:
    """The key comes first: a certificate without its key would be of no use, the other way round a new one is made."""
    key, pem = directory / CA_KEY, directory / CA_PEM
    if pem.exists():
        return
    if not key.exists():
        private_files.create(key, certificates.new_key())
    if private_files.create(pem, certificates.new_ca(private_files.read(key))):
        pem.chmod(0o644)


def _read(path: Path, *, private: bool = True) -> bytes:
    try:
        return private_files.read(path) if private else path.read_bytes()
    except FileNotFoundError:
        hint = f"`mindgw init --data-dir {path.parent}` makes it in a new data directory; in an old one restore it from a backup"
        raise ConfigError(f"{path} is missing", hint=hint) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=_OWNER) from None
