"""Chains of records: each link is a keyed hash over its rows and the link before, so that nothing can be changed, left out or added in
the middle without whoever has the key seeing it. What is cut off at the end is only seen by who knows where the end was.

    link_n = HMAC-SHA256(key, link_{n-1} | n | rows, each with its length before it)

The ledger and the audit log are kept in such chains.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

import msgspec

#: Bytes of a link.
SIZE = 32

_encode = msgspec.msgpack.Encoder().encode


def genesis(label: str) -> bytes:
    """What the first link of a chain has before it; each kind of record has a label of its own."""
    return hashlib.sha256(b"mindgw-chain-v1\0" + label.encode()).digest()


def canonical(values: tuple[Any, ...]) -> bytes:
    """The one form in which a row is hashed: equal for equal values of equal types (text, whole numbers, bool, bytes, None, and moments
    with their zone, whichever zone that is), different for all others. Raises ValueError or TypeError for what has no such form."""
    return _encode(values)


def link(key: bytes, prev: bytes, seq: int, rows: Iterable[bytes]) -> bytes:
    """The link of number `seq` (from 1 on) after `prev`; the caller sees to the order of the rows."""
    parts = [prev, seq.to_bytes(8)]
    for row in rows:
        parts += len(row).to_bytes(8), row
    return hmac.digest(key, b"".join(parts), "sha256")
