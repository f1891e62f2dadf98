"""Server-sent events on the way through: bytes in any pieces -> runs of whole events, as they came. PURE.

An event ends at an empty line. Lines may end in LF, CRLF or CR, comments and foreign fields are kept, a byte order mark at the very
start is dropped. What is left when the stream ends is half an event and belongs to nobody.
"""

import re
from typing import Final

#: Largest event, in bytes.
MAX_EVENT: Final = 8 * 1024 * 1024
DONE: Final = b"[DONE]"

_BOM = b"\xef\xbb\xbf"
#: Two line ends in a row; the groups are atomic, or CRLF could be read as two ends.
_GAP = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
#: Bytes of the longest gap: how far back the search goes that a new piece makes necessary.
_LONGEST_GAP = 4


class EventTooLarge(ValueError):
    """An event outgrew the limit before it ended."""


class Splitter:
    """Gathers bytes until they are whole events. Holds at most one event, which is at most `limit` bytes."""

    __slots__ = ("_held", "_limit", "_started")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        #: The beginning of an event that has not ended yet.
        self._held = bytearray()
        #: Most bytes that `_held` may have.
        self._limit = limit
        #: False until the place of a byte order mark is behind.
        self._started = False

    def feed(self, data: bytes) -> bytes:
        """All events that are whole now, b"" when none is. Raises EventTooLarge; nothing may be fed after that."""
        if not self._started:
            data = self._start(data)
        if not self._held and data.endswith(b"\n\n"):
            return data
        return self._join(data)

    def _start(self, data: bytes) -> bytes:
        text = bytes(self._held) + data
        self._held.clear()
        if len(text) < len(_BOM) and _BOM.startswith(text):
            self._held += text
            return b""
        self._started = True
        return text.removeprefix(_BOM)

    def _join(self, data: bytes) -> bytes:
        held = self._held
        if not self._started:
            return b""
        searched = max(0, len(held) - _LONGEST_GAP)
        held += data
        end = self._last_gap(searched)
        whole = bytes(held[:end])
        del held[:end]
        if len(held) > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")
        return whole

    def _last_gap(self, start: int) -> int:
        """Where the last whole event of `_held` ends, 0 when there is none. A CR at the very end may be half of a CRLF: it waits."""
        held = self._held
        stop = len(held) - held.endswith(b"\r")
        if b"\r" not in held:
            found = held.rfind(b"\n\n", start)
            return found + 2 if found >= 0 else 0
        return max((match.end() for match in _GAP.finditer(held, start, stop)), default=0)


def events(run: bytes) -> list[bytes]:
    """The data of each event in a run of whole events: lines joined by LF, events without data left out."""
    if b"\r" in run:
        run = run.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    elif run.startswith(b"data: ") and run.find(b"\n") == len(run) - 2:
        return [run[6:-2]]  # one event of one line, as most runs are
    found = (data_of(block) for block in run.split(b"\n\n"))
    return [data for data in found if data is not None]


def data_of(block: bytes) -> bytes | None:
    """The data of one event whose lines end in LF; None when it has none."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    values = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(values) if values else None
