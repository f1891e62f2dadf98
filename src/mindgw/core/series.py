"""Measurements of one thing as a compact series: columns of whole numbers, one value a step, in blocks of bytes; and their sums over
longer steps.

Time is a number of steps since 1970: a block says where it begins, and has a value of each column for every step from there on, or none.
What does not change costs next to nothing, what changes a little costs a byte or two a step. Sums are exact: a sum of sums is the sum of
all that went into them. Pure: numbers are given, never measured.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

#: Steps of one block, columns of it, and bytes of a column's name.
LONGEST: Final = 4096
WIDEST: Final = 1024
_NAME: Final = 64
#: The largest number that is kept, either way: what JSON can say of every reader.
LARGEST: Final = 2**53 - 1
#: Of the bytes, their first: how they are to be read.
_FORMAT: Final = 1
#: Words of a column: a run of steps without a value, a run of steps with the value before; from 2 on: what it changed by.
_GAP, _SAME = 0, 1

#: A column as it is read: its value at each step of the block, None where there is none.
Values = list[int | None]


def whole(value: float, scale: float = 1.0) -> int | None:
    """A measurement as it is kept, `scale` of these to one; None for what is no number."""
    scaled = value * scale
    return max(-LARGEST, min(LARGEST, round(scaled))) if math.isfinite(scaled) else None


class _Column:
    """One column of a block that grows, in its bytes already but for the last run."""

    __slots__ = ("_bytes", "_count", "_last", "_run", "_word")

    def __init__(self) -> None:
        self._bytes = bytearray()
        #: Steps so far.
        self._count = 0
        self._last = 0
        #: Length of the run that goes on, and its word.
        self._run, self._word = 0, _GAP

    def append(self, value: int | None, at: int) -> None:
        """The value at a step of the block, which is not before the last one; steps that are passed over have none."""
        if at > self._count:
            self._repeat(_GAP, at - self._count)
        if value is None:
            self._repeat(_GAP, 1)
        elif value == self._last:
            self._repeat(_SAME, 1)
        else:
            self._close()
            change = value - self._last
            _write(self._bytes, (2 * change if change > 0 else -2 * change - 1) + 1)
            self._last = value
            self._count += 1

    def encode(self, count: int) -> bytes:
        """All of it, to that number of steps. It may grow afterwards."""
        out = bytearray(self._bytes)
        if self._run:
            _write(out, self._word)
            _write(out, self._run)
        if count > self._count:
            _write(out, _GAP)
            _write(out, count - self._count)
        return bytes(out)

    def _repeat(self, word: int, times: int) -> None:
        if self._run and word != self._word:
            self._close()
        self._word = word
        self._run += times
        self._count += times

    def _close(self) -> None:
        if self._run:
            _write(self._bytes, self._word)
            _write(self._bytes, self._run)
            self._run = 0


class Block:
    """A block that grows, a step at a time."""

    __slots__ = ("_columns", "count", "start")

    def __init__(self, start: int) -> None:
        #: Its first step, and how many there are.
        self.start = start
        self.count = 0
        # bounded: by WIDEST
        self._columns: dict[str, _Column] = {}

    def append(self, at: int, values: Mapping[str, int | None]) -> bool:
        """What was measured at a step. False, and nothing happens, for one that is before the last of the block, or too far behind it."""
        place = at - self.start
        if place < self.count or place >= LONGEST:
            return False
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) >= WIDEST or not 0 < len(name.encode()) <= _NAME:
                    continue
                column = self._columns[name] = _Column()
            column.append(value, place)
        self.count = place + 1
        return True

    def encode(self) -> bytes:
        """Its bytes; it may grow afterwards."""
        out = bytearray((_FORMAT,))
        _write(out, self.start)
        _write(out, self.count)
        _write(out, len(self._columns))
        for name, column in self._columns.items():
            text, body = name.encode(), column.encode(self.count)
            for part in (text, body):
                _write(out, len(part))
                out += part
        return bytes(out)


class Read(Struct, frozen=True):
    """A block as it was."""

    start: int
    count: int
    #: By their names, each with `count` values.
    columns: dict[str, Values]


def decode(raw: bytes) -> Read:
    """What `Block.encode` wrote. Raises ValueError for anything else."""
    reader = _Reader(raw)
    if reader.number() != _FORMAT:
        raise ValueError("not a block of a known format")
    start, count, width = reader.number(), reader.number(), reader.number()
    if count > LONGEST or width > WIDEST:
        raise ValueError("a block that is too large")
    columns = {}
    for _ in range(width):
        name = reader.piece(_NAME).decode()
        columns[name] = _values(_Reader(reader.piece(len(raw))), count)
    if reader.left:
        raise ValueError("bytes behind the end of a block")
    return Read(start, count, columns)


def _values(reader: "_Reader", count: int) -> Values:
    values: Values = []
    last = 0
    while len(values) < count:
        word = reader.number()
        if word > _SAME:
            last += word // 2 if word % 2 else -(word // 2)
            values.append(last)
            continue
        run = reader.number()
        if not 0 < run <= count - len(values):
            raise ValueError("a run that does not fit its block")
        values += [last if word == _SAME else None] * run
    if reader.left:
        raise ValueError("bytes behind the end of a column")
    return values


class _Reader:
    """Numbers and pieces out of bytes. Raises ValueError where they end too early."""

    __slots__ = ("_at", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def number(self) -> int:
        found = shift = 0
        while True:
            if self._at >= len(self._raw) or shift > 63:
                raise ValueError("a number that does not end")
            byte = self._raw[self._at]
            self._at += 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    def piece(self, most: int) -> bytes:
        length = self.number()
        if length > min(most, self.left):
            raise ValueError("a piece that is longer than what is left")
        self._at += length
        return self._raw[self._at - length : self._at]


def _write(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


# -- sums --------------------------------------------------------------------------------------------------------------


class Sum(Struct, gc=False):
    """What many values came to."""

    count: int = 0
    total: int = 0
    low: int = 0
    high: int = 0

    def add(self, count: int, total: int, low: int, high: int) -> None:
        """Takes so many more values in, at least one."""
        self.low = min(self.low, low) if self.count else low
        self.high = max(self.high, high) if self.count else high
        self.count += count
        self.total += total

    @property
    def mean(self) -> float:
        """Of at least one value."""
        return self.total / self.count


#: Columns of a block of sums, of each column that was summed up.
_PARTS: Final = ("count", "total", "low", "high")
#: Between such a column and its part.
_OF: Final = "/"


class Sums:
    """Columns summed up over steps that are `ratio` times as long as those of the blocks that come in, between two of the longer steps."""

    def __init__(self, first: int, end: int) -> None:
        """From the longer step `first` to the one before `end`."""
        self.first, self.end = first, end
        #: By name and step.
        # bounded: by the steps between the two, and by WIDEST names
        self._sums: dict[str, dict[int, Sum]] = {}

    def take(self, block: Read, ratio: int) -> None:
        """Takes the values of a block in."""
        for name, values in block.columns.items():
            self._take(name, block.start, values, ratio)

    def take_sums(self, block: Read, ratio: int) -> None:
        """Takes in a block that `encode` made."""
        for name in {name.rpartition(_OF)[0] for name in block.columns}:
            parts = [block.columns.get(name + _OF + part) for part in _PARTS]
            if all(part is not None for part in parts):
                self._take_sums(name, block.start, [part for part in parts if part is not None], ratio)

    def names(self) -> Sequence[str]:
        """Columns of which there is anything."""
        return sorted(self._sums)

    def at(self, name: str, step: int) -> Sum | None:
        """What a column came to in a step; None: there was nothing."""
        return self._sums.get(name, {}).get(step)

    def encode(self) -> bytes:
        """All of it as one block; LONGEST steps at most."""
        block = Block(self.first)
        for step in range(self.first, self.end):
            found = {name: one for name, steps in self._sums.items() if (one := steps.get(step)) is not None}
            parts = {name + _OF + part: getattr(one, part) for name, one in found.items() for part in _PARTS}
            if parts:
                block.append(step, parts)
        return block.encode()

    def _take(self, name: str, start: int, values: Values, ratio: int) -> None:
        for step, some in _chunks(start, values, ratio):
            if self.first <= step < self.end and (there := [value for value in some if value is not None]):
                self._sum(name, step).add(len(there), sum(there), min(there), max(there))

    def _take_sums(self, name: str, start: int, parts: Sequence[Values], ratio: int) -> None:
        for place, (count, total, low, high) in enumerate(zip(*parts, strict=True)):
            step = (start + place) // ratio
            if self.first <= step < self.end and count and total is not None and low is not None and high is not None:
                self._sum(name, step).add(count, total, low, high)

    def _sum(self, name: str, step: int) -> Sum:
        steps = self._sums.setdefault(name, {})
        if step not in steps:
            steps[step] = Sum()
        return steps[step]


def _chunks(start: int, values: Values, ratio: int) -> Iterator[tuple[int, Iterable[int | None]]]:
    """The longer steps, and the values in each."""
    place = 0
    while place < len(values):
        step = (start + place) // ratio
        end = min(len(values), (step + 1) * ratio - start)
        yield step, values[place:end]
        place = end
