"""API keys that stand in text where none should be: found by their form and their checksum, told by what the server knows of them. What
is handed on has no secret in it."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mindgw_agent import tokens

#: For scanners of secrets, see docs/how-to/keys.md.
_KEY = re.compile(rb"(?<![0-9A-Za-z])mgw_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}(?![0-9A-Za-z])")
#: Bytes of a line that are looked at together, and how many of them once more with those that follow: one less than a key has.
_PIECE, _OVERLAP = 1 << 20, 52

LIVE, ROTATED, UNKNOWN = "live", "rotated", "unknown"


class Leak(NamedTuple):
    """A key that was found."""

    #: From 1 on.
    line: int
    id: str
    #: Its last four characters.
    last4: str


def find(file: BinaryIO) -> Iterator[Leak]:
    """The keys in a file of any kind, each once a line. What only looks like a key has another checksum, and is none. Raises OSError."""
    for number, line in _pieces(file):
        for text in dict.fromkeys(match[0].decode() for match in _KEY.finditer(line)):
            parsed = tokens.parse_key(text)
            if parsed is not None:
                yield Leak(number, parsed[0], text[-4:])


def _pieces(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, with their numbers; a long one in several pieces."""
    number, tail = 1, b""
    while piece := file.readline(_PIECE):
        yield number, tail + piece
        is_whole = piece.endswith(b"\n")
        number, tail = number + is_whole, b"" if is_whole else piece[-_OVERLAP:]


def files(path: Path) -> Iterator[Path]:
    """The file, or all regular files below a folder, in order; links are not followed."""
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below.sort()
        yield from (found for name in sorted(names) if (found := Path(folder, name)).is_file() and not found.is_symlink())


def state(leak: Leak, known: Mapping[str, Mapping[str, Any]]) -> str:
    """What a key is that was found, by the keys of the server under their ids: live when it opens anything, rotated when its secret is no
    longer that of its key, unknown for a key of another server or organisation, else revoked or expired."""
    key = known.get(leak.id)
    if key is None:
        return UNKNOWN
    if key.get("state") != "active":
        return str(key.get("state"))
    is_latest = str(key.get("masked", "")).endswith(leak.last4)
    return LIVE if is_latest or key.get("prior_until") else ROTATED
