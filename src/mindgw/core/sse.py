"""Server-sent events on their way to a client: which bytes may leave untouched, and what the others say.

Almost every event of a stream is one line `data: {...}` whose content is nobody's business. Such runs of events are
recognised by counting bytes (`plain`) and leave as they came. Everything else (usage, reasoning, errors, the end mark,
comments, foreign fields, bytes of a broken event) goes through `Splitter`, which only ever yields the data of whole events.
"""

#: Pieces of JSON whose events must be looked at; a hit inside somebody's text only costs time.
MARKS = (b'"usage', b'"reasoning', b'"error', b"\r")

#: The end mark of the dialect.
DONE = b"[DONE]"

#: The one form of a comment that every SDK survives (a blank line after it would be an event without data).
PING = b": ping\n"


def plain(data: bytes) -> int:
    """How many events `data` is, when they are whole, of one `data: {...}` line each, with no mark in them; else 0.

    JSON carries no raw line feed, so equal counts prove that every non-empty line starts with `data: {`.
    """
    if data[:7] != b"data: {" or data[-3:] != b"}\n\n":
        return 0
    lines = data.count(b"\n")
    if lines != 2 and lines != 2 * data.count(b"}\n\ndata: {") + 2:
        return 0
    find = data.find  # `in` tries numbers first, which costs four times as much
    for mark in MARKS:
        if find(mark) >= 0:
            return 0
    return lines // 2


def event(data: bytes) -> bytes:
    """One event that carries `data` (a single line)."""
    return b"data: " + data + b"\n\n"


class EventTooLarge(ValueError):
    """An event outgrew the limit before it ended."""


class Splitter:
    """Bytes in any pieces -> the data of each whole event, in order; comments and foreign fields are dropped."""

    __slots__ = ("_held", "_limit", "_lines", "_size")

    def __init__(self, limit: int = 8 * 2**20) -> None:
        #: Bytes of the line that has not ended yet.
        self._held = bytearray()
        #: Data lines of the event that has not ended yet, and their size.
        self._lines: list[bytes] = []
        self._size = 0
        #: Most bytes that one event may have.
        self._limit = limit

    @property
    def empty(self) -> bool:
        """True between events, when the next byte starts a new one."""
        return not self._held and not self._lines

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that ends in `data`; raises EventTooLarge when one outgrows the limit."""
        if self._grows(data):
            self._held += data
            self._check()
            return []
        text = bytes(self._held) + data
        # A carriage return at the very end may be half of CR LF: it waits for the next byte.
        wait = text.endswith(b"\r")
        text = (text[:-1] if wait else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._held = bytearray(rest + b"\r" if wait else rest)
        events = [whole for line in lines if (whole := self._line(line)) is not None]
        self._check()
        return events

    def _grows(self, data: bytes) -> bool:
        """True when `data` only makes an unfinished line longer: in a long line of small pieces each is copied once."""
        return bool(self._held) and self._held[-1:] != b"\r" and b"\n" not in data and b"\r" not in data

    def _check(self) -> None:
        if len(self._held) + self._size > self._limit:
            raise EventTooLarge(f"an event is larger than {self._limit} bytes")

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            return self._end()
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._lines.append(value)
            self._size += len(line) + 1  # an empty line of data takes room, too
        return None

    def _end(self) -> bytes | None:
        if not self._lines:
            return None
        whole = b"\n".join(self._lines)
        self._lines = []
        self._size = 0
        return whole
