"""Bodies of requests and answers at rest: encrypted with a key of the data directory; a copy of the database alone gives nothing away."""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Bytes of a nonce; random, which is safe for some 2^32 bodies under one key.
_NONCE = 12
#: What is sealed, each under a key of its own.
DEAD_LETTERS, REPLAYS = b"mindgw dead letters 1", b"mindgw replays 1"


class Safe:
    """Seals with AES-256-GCM. The key is derived from the server's sealing key, which seals other things with other keys."""

    def __init__(self, sealing: bytes, what: bytes = DEAD_LETTERS) -> None:
        self._cipher = AESGCM(hmac.digest(sealing, what, "sha256"))

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
