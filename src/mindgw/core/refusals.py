"""Refusals worth a line in the audit log, told so that whoever is refused cannot fill it: who is refused again and again has one line a
minute with a count, and all together have a bounded number of lines, in turns: who was not told of for longest comes first.
"""

import msgspec

#: Seconds for which one kind of refusal, once told, is only counted.
QUIET = 60.0
#: Lines that may be told at once, and in each second after that.
BURST, RATE = 60.0, 1.0
#: Kinds that are told apart at a time, and those of one actor among them.
MOST, SHARE = 256, 16
#: Code of what stands for kinds for which there was no room.
REST = "others"


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
    #: Id and address of the person behind the actor.
    user_id: str = ""
    email: str = ""


class _Count:
    """How often, since it was last told."""

    __slots__ = ("number", "until")

    def __init__(self) -> None:
        self.number = 0
        #: When it may be told again; monotonic seconds.
        self.until = 0.0


class Refusals:
    """Counts those of one party, an organisation or all strangers: what one party does takes no line of another's. `now` is monotonic
    seconds everywhere."""

    def __init__(self, org_id: str = "") -> None:
        #: What stands for all kinds for which there was no room.
        self.others = Kind("", "", REST, "", org_id)
        #: By kind, the one that was told last at the end. Bounded: by MOST, beside `others`.
        self._counts: dict[Kind, _Count] = {}
        #: Kinds of each actor among them.
        # bounded: by MOST, too
        self._of: dict[str, int] = {}
        #: Lines that may be told, as of `_at`.
        self._room = BURST
        self._at = 0.0

    def note(self, kind: Kind) -> None:
        """Somebody was refused."""
        self._count(kind).number += 1

    def _count(self, kind: Kind) -> _Count:
        if kind not in self._counts and kind.actor and self._of.get(kind.actor, 0) >= SHARE:
            kind = msgspec.structs.replace(kind, address="", code=REST, what="")
        if kind not in self._counts and len(self._counts) >= MOST:
            kind = self.others
        count = self._counts.get(kind)
        if count is None:
            count = self._counts[kind] = _Count()
            self._of[kind.actor] = self._of.get(kind.actor, 0) + 1
        return count

    def due(self, now: float) -> list[tuple[Kind, int]]:
        """What is to be told now, each with how often it happened; it counts as told."""
        self._room, self._at = min(BURST, self._room + (now - self._at) * RATE), now
        told: list[tuple[Kind, int]] = []
        for kind in sorted(self._counts, key=lambda each: each != self.others):
            count = self._counts[kind]
            if now < count.until:
                continue
            if not count.number:
                self._drop(kind)
            elif self._room >= 1:
                self._room -= 1
                told.append((kind, count.number))
                count.number, count.until = 0, now + QUIET
                self._counts[kind] = self._counts.pop(kind)
        return told

    def _drop(self, kind: Kind) -> None:
        del self._counts[kind]
        self._of[kind.actor] -= 1
        if not self._of[kind.actor]:
            del self._of[kind.actor]

    def rest(self) -> list[tuple[Kind, int]]:
        """What was counted and not told yet, when there is no other time."""
        return [(kind, count.number) for kind, count in self._counts.items() if count.number]

    def keep(self, told: list[tuple[Kind, int]]) -> None:
        """Takes back what `due` handed out and could not be told."""
        for kind, number in told:
            count = self._count(kind)
            count.number, count.until = count.number + number, 0.0
