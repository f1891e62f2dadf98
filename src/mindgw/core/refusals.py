"""Refusals worth a line in the audit log, told so that whoever is refused cannot fill it: who is refused again and again has one line a
minute with a count, and all together have a bounded number of lines.
"""

import msgspec

#: Seconds for which one kind of refusal, once told, is only counted.
QUIET = 60.0
#: Lines that may be told at once, and in each second after that.
BURST, RATE = 60.0, 1.0
#: Kinds that are told apart at a time; beyond that they are one.
MOST = 256


class Kind(msgspec.Struct, frozen=True):
    """Refusals that are told together."""

    #: Who: "key:ID" and the like; empty when nobody knows.
    actor: str
    #: Network address.
    address: str
    #: Code of the error.
    code: str
    #: What was refused: a method and a path.
    what: str
    org_id: str = ""


#: What stands for all kinds for which there was no room.
OTHERS = Kind("", "", "others", "")


class _Count:
    """How often, since it was last told."""

    __slots__ = ("number", "until")

    def __init__(self) -> None:
        self.number = 0
        #: When it may be told again; monotonic seconds.
        self.until = 0.0


class Refusals:
    """Counts them. `now` is monotonic seconds everywhere."""

    def __init__(self) -> None:
        # bounded: by MOST, beside OTHERS
        self._counts: dict[Kind, _Count] = {}
        #: Lines that may be told, as of `_at`.
        self._room = BURST
        self._at = 0.0

    def note(self, kind: Kind) -> None:
        """Somebody was refused."""
        if kind not in self._counts and len(self._counts) >= MOST:
            kind = OTHERS
        self._counts.setdefault(kind, _Count()).number += 1

    def due(self, now: float) -> list[tuple[Kind, int]]:
        """What is to be told now, each with how often it happened; it counts as told."""
        self._room, self._at = min(BURST, self._room + (now - self._at) * RATE), now
        told: list[tuple[Kind, int]] = []
        for kind, count in list(self._counts.items()):
            if now < count.until:
                continue
            if not count.number:
                del self._counts[kind]
            elif self._room >= 1:
                self._room -= 1
                told.append((kind, count.number))
                count.number, count.until = 0, now + QUIET
        return told

    def rest(self) -> list[tuple[Kind, int]]:
        """What was counted and not told yet, when there is no other time."""
        return [(kind, count.number) for kind, count in self._counts.items() if count.number]

    def keep(self, told: list[tuple[Kind, int]]) -> None:
        """Takes back what `due` handed out and could not be told."""
        for kind, number in told:
            count = self._counts.setdefault(kind, _Count())
            count.number, count.until = count.number + number, 0.0
