"""The billing tag: what a request must be booked as, sealed, so that it can travel with the request and come back with a receipt.

A server that dies forgets its running requests; the agents' receipts bring their tags back, and each holds all that the ledger needs.
Nobody but a server with the same secrets can make or read one, and one made for another worker does not open.
"""

import hmac
import secrets
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from mindgw.store.entries import SCOPES

#: Bytes of a nonce: four of the epoch, eight of a counter, so that no two tags of one key share it.
_NONCE = 12
#: Most bytes that a frame has room for. The longest ids and names that requests may have, and a limit of each kind, take three quarters.
LONGEST = 4096
#: Bytes beyond which a tag is worth making shorter.
USUAL = 1024


class BadTag(ValueError):
    """It was made by somebody else, for somebody else, or changed on the way."""


class Tag(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt of one request, as it is to be booked."""

    request_id: str
    #: From 1 on.
    attempt: int
    #: Who pays; empty for no user or team.
    key_id: str
    user_id: str
    team_id: str
    org_id: str
    #: As the engine calls it.
    model: str
    endpoint: str
    stream: bool
    #: UTC date on which it is booked, YYYY-MM-DD.
    day: str
    #: Which prices, and what they are: micro-dollars per million tokens of prompt and answer.
    price_version: str
    price: tuple[int, int]
    #: Tokens that were reserved; 0 when no quota asked for a reservation.
    estimate: int
    #: The run of the server whose leases hold them.
    epoch: int
    #: When the request came in, Unix milliseconds, and the milliseconds that it stood in the queue.
    started: int
    queued: int
    #: (scope, unit, window) of the budgets that hold the reservation.
    budgets: tuple[tuple[str, str, str], ...]
    #: Most tokens of the prompt, as they were reserved under a hard limit; 0: nobody knows.
    prompt: int = 0
    #: Bytes of the request's body, as its caller sent it.
    size: int = 0


def _short(tag: Tag) -> Tag:
    """The tag with scopes that it names elsewhere cut to their kind: a model's name may be long."""
    kinds = {f"{kind}:{getattr(tag, field)}": kind for kind, field in SCOPES.items()}
    return replace(tag, budgets=tuple((kinds.get(scope, scope), unit, window) for scope, unit, window in tag.budgets))


def _whole(tag: Tag) -> Tag:
    """What `_short` made short."""
    scopes = {kind: f"{kind}:{getattr(tag, field)}" for kind, field in SCOPES.items()}
    return replace(tag, budgets=tuple((scopes.get(scope, scope), unit, window) for scope, unit, window in tag.budgets))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Tag).decode


class Seal:
    """Seals with AES-256-GCM under a key that is derived from the server's sealing key."""

    def __init__(self, sealing: bytes, epoch: int = 0) -> None:
        """`epoch` is that of this run: two runs with one epoch would use nonces twice, so nothing is sealed in a run without one."""
        self._cipher = AESGCM(hmac.digest(sealing, b"mindgw billing tag 1", "sha256"))
        #: Grows with each tag. It begins anywhere: whoever goes back to a copy of the database has epochs a second time.
        self._count = secrets.randbits(63)
        self.restart(epoch)

    def restart(self, epoch: int) -> None:
        """Another run begins."""
        self.epoch = epoch
        self._prefix = epoch << 64

    def seal(self, tag: Tag, worker_id: str) -> bytes:
        """The tag for this worker's eyes not to read; about 200 bytes. Raises ValueError when it is longer than a frame allows, because of
        a model with an endless name."""
        assert self.epoch, "nothing is sealed before a run has begun"
        plain = _encode(tag)
        if len(plain) > USUAL:
            plain = _encode(_short(tag))
        self._count += 1
        nonce = (self._prefix | self._count).to_bytes(_NONCE, "big")
        sealed: bytes = nonce + self._cipher.encrypt(nonce, plain, worker_id.encode())
        if len(sealed) > LONGEST:
            raise ValueError(f"a billing tag of {len(sealed)} bytes")
        return sealed

    def open(self, sealed: bytes, worker_id: str) -> Tag:
        """Raises BadTag."""
        try:
            return _open(self._cipher, sealed, worker_id)
        except (InvalidTag, msgspec.MsgspecError, ValueError, UnicodeDecodeError):
            raise BadTag("a billing tag that this server did not make for this worker") from None


def _open(cipher: Any, sealed: bytes, worker_id: str) -> Tag:
    if len(sealed) < _NONCE:
        raise InvalidTag  # not even a nonce
    return _whole(_decode(cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], worker_id.encode())))
