"""Bodies of requests at rest: encrypted under a key of the data directory, so that a copy of the database alone gives nothing away."""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Bytes of a nonce; random, which is safe for some 2^32 bodies under one key.
_NONCE = 12


class Safe:
    """Seals with AES-256-GCM. The key is derived from the server's sealing key, which seals other things with other keys."""

    def __init__(self, sealing: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(sealing, b"mindgw dead letters 1", "sha256"))

    def seal(self, name: str, body: bytes) -> bytes:
        """`name` says whose body it is: under another name it cannot be opened."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, body, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """Raises ValueError when it was sealed by another key, for another name, or was changed."""
        try:
            if len(sealed) < _NONCE:
                raise InvalidTag  # not even a nonce
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], name.encode())
        except InvalidTag:
            raise ValueError("it was sealed by another key, or changed") from None
