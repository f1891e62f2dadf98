"""Which worker probably remembers the beginning of a prompt, told without a tokenizer: by hashes of the conversation's text.

The text is cut at offsets that are the same for all texts; each block's hash is chained to the one before, so that equal hashes mean equal
beginnings. Blocks grow with their offset (an eighth of it), so a text of megabytes has a hundred of them. The index says of each hash who
was sent a text with it. It forgets by halves: what nobody asked for in the time in which half of it was filled anew is gone. Holders are
bits of an integer, so their numbers must stay small: that of one who left is handed out again once both halves are others.

What follows from a match is for others to decide; a beginning that all have in common is no reason to send everybody to one worker.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from heapq import heappop, heappush

from msgspec import Struct

#: Bytes of the first blocks, and how many of them stand between two doublings.
_FIRST, _STEPS = 256, 8
#: Bytes of a text that are looked at.
_MOST = 8 * 2**20
#: Blocks of half an index; holders that are told apart.
_HALF, _HOLDERS = 100_000, 4096
#: So many who left since the last turn make a turn, if they are no fewer than those who are there: most of what is known is about them.
_LEFT = 64
#: Different depths at which a text is told to be known, the deepest ones.
_LEVELS = 6
#: Sessions that are remembered.
_SESSIONS = 20_000


def _bounds() -> tuple[int, ...]:
    found, size = [0], _FIRST
    while found[-1] < _MOST:
        found += [found[-1] + size * step for step in range(1, _STEPS + 1)]
        size = found[-1] // _STEPS
    return tuple(found)


#: Where blocks end; the first one begins at 0.
BOUNDS = _bounds()


class Prefix(Struct, frozen=True, gc=False):
    """A text as far as others may begin alike: the chained hashes of its whole blocks, where these end, and where it ends."""

    hashes: tuple[int, ...]
    ends: Sequence[int]
    size: int


def prefix(text: bytes, start: int, seed: Hashable) -> Prefix:
    """Of what stands in `text` from `start` on. Hashes are equal only under the same seed, in the same process."""
    size, chained = len(text) - start, hash(seed)
    hashes: list[int] = []
    begin = 0
    for end in BOUNDS[1:]:
        if end > size:
            break
        chained = hash((chained, text[start + begin : start + end]))
        hashes.append(chained)
        begin = end
    return Prefix(tuple(hashes), BOUNDS[1 : len(hashes) + 1], size)


#: Holders, as the bits of their numbers, and the blocks of the text that these know but those of the levels before do not.
Level = tuple[int, int]


class Prefixes:
    """Who was sent which texts. A holder is known by a number that `holder` gives it."""

    __slots__ = ("_free", "_gone", "_half", "_holders", "_leaving", "_left", "_live", "_new", "_old", "epoch")

    def __init__(self, half: int = _HALF) -> None:
        self._half = half
        #: hash -> bits of its holders; what was touched since the last turn, and what was before.
        # bounded: by _half, each
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}
        #: Numbers that were ever handed out, and holders that are there.
        self._holders = self._live = 0
        #: Numbers that nobody has: of those who left since the last turn, and in the one before, as bits and one by one; and the smallest
        #: first those that may be handed out.
        # bounded: by _HOLDERS
        self._gone = 0
        self._left: list[int] = []
        self._leaving: list[int] = []
        self._free: list[int] = []
        #: Changes when all numbers are void.
        self.epoch = 0

    def holder(self) -> int:
        """A number for somebody whose memory is empty; it is good as long as the `epoch` is the same."""
        if self._free:
            self._live += 1
            return heappop(self._free)
        if self._holders == _HOLDERS:
            self._new, self._old, self._holders, self._live = {}, {}, 0, 0
            self._gone, self._left, self._leaving = 0, [], []
            self.epoch += 1
        self._holders += 1
        self._live += 1
        return self._holders - 1

    def leave(self, number: int) -> None:
        """A holder of this epoch is gone; once for each that it gave a number."""
        self._live -= 1
        self._gone |= 1 << number
        self._left.append(number)
        if len(self._left) >= max(_LEFT, self._live):
            self._turn()

    def match(self, hashes: Sequence[int]) -> list[Level]:
        """Who knows how much of a text, deepest first; a holder stands in one level only."""
        new, old, seen = self._new.get, self._old.get, self._gone
        levels: list[Level] = []
        # who knows a block knows all before it
        everybody = new(hashes[0], 0) | old(hashes[0], 0) | seen if hashes else seen
        depth = len(hashes)
        while seen != everybody and depth and len(levels) < _LEVELS:
            each = hashes[depth - 1]
            holders = (new(each, 0) | old(each, 0)) & ~seen
            if holders:
                levels.append((holders, depth))
                seen |= holders
            depth -= 1
        return levels

    def note(self, hashes: Sequence[int], number: int) -> None:
        """A text was sent to this holder."""
        new, old, bit, kept = self._new, self._old, 1 << number, ~self._gone
        for each in reversed(hashes):
            holders = new.get(each)
            if holders is None:
                before = old.get(each)
                new[each] = bit if before is None else before & kept | bit
            elif not holders & bit:
                new[each] = holders | bit
            else:
                break  # what stands before it was noted with it
        if len(new) > self._half:
            self._turn()

    def _turn(self) -> None:
        """Forgets the older half, and with it the last that was known of who had left before the turn before."""
        self._old, self._new = self._new, {}
        for number in self._leaving:
            heappush(self._free, number)
            self._gone &= ~(1 << number)
        self._leaving, self._left = self._left, []

    def __len__(self) -> int:
        return len(self._new) + len(self._old)


def numbers(bits: int, most: int) -> list[int]:
    """The first holders of a level, no more than `most`."""
    found: list[int] = []
    while bits and len(found) < most:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found


class Sessions:
    """Where each conversation was last. When there are too many the organisation that has most forgets its oldest: whoever invents any
    number of them has no more than its share, and nobody else loses one for it."""

    __slots__ = ("_count", "_largest", "_most", "_sizes", "_where")

    def __init__(self, most: int = _SESSIONS) -> None:
        self._most = most
        #: Organisation -> its sessions, longest untouched first.
        # bounded: by _most, all of them together
        self._where: dict[str, OrderedDict[Hashable, str]] = {}
        self._count = 0
        #: Number of sessions -> the organisations that have so many; and the largest such number.
        # bounded: as above
        self._sizes: dict[int, dict[str, None]] = {}
        self._largest = 0

    def where(self, org: str, session: Hashable) -> str:
        """Id of the worker, "" when nobody knows."""
        own = self._where.get(org)
        return own.get(session, "") if own is not None else ""

    def note(self, org: str, session: Hashable, worker: str) -> None:
        """It is there now."""
        own = self._where.get(org)
        if own is not None and session in own:
            own[session] = worker
            own.move_to_end(session)
            return
        if self._count >= self._most:
            self._forget()
        own = self._where.setdefault(org, OrderedDict())
        own[session] = worker
        self._count += 1
        self._sized(org, len(own) - 1, len(own))

    def __len__(self) -> int:
        return self._count

    def _forget(self) -> None:
        """Of one of those who have most, the session that was not touched for the longest time."""
        org = next(iter(self._sizes[self._largest]))
        own = self._where[org]
        own.popitem(last=False)
        self._count -= 1
        self._sized(org, len(own) + 1, len(own))
        if not own:
            del self._where[org]

    def _sized(self, org: str, before: int, after: int) -> None:
        if before:
            same = self._sizes[before]
            del same[org]
            if not same:
                del self._sizes[before]
        if after:
            self._sizes.setdefault(after, {})[org] = None
        # it changes by one at a time
        self._largest = after if after > self._largest or self._largest not in self._sizes else self._largest
