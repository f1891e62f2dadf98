"""What is to be done so that a server has what a file declares. PURE."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from mindgw.declaration import SECTIONS, Declared, Item
from mindgw.errors import ConfigError

Verb = Literal["create", "update", "remove"]
#: How a change is shown.
SIGNS: Mapping[str, str] = {"create": "+", "update": "~", "remove": "-"}


@dataclass(frozen=True)
class Known:
    """An object that a server has."""

    kind: str
    #: As a file names it.
    name: str
    #: How the API calls it.
    reference: str
    #: What is to be compared with what a file says, in the same form.
    fields: Mapping[str, Any]
    version: int | None = None
    #: Why it is never removed because a file does not name it; empty: it may be.
    kept: str = ""
    #: What the API calls its parts, where it has some.
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One thing to do."""

    verb: Verb
    kind: str
    name: str
    #: What is to be, of that which differs; of a new object all that is said.
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: What is there now; None: nothing.
    known: Known | None = None
    #: Where the file says so; empty: it does not name it.
    place: str = ""

    @property
    def path(self) -> str:
        return f"{self.kind}.{self.name}"

    def as_json(self) -> dict[str, Any]:
        """For programs: with what was before."""
        before = {name: self.known.fields.get(name) for name in self.fields} if self.known is not None else {}
        return {"change": self.verb, "kind": self.kind, "name": self.name, "before": before, "after": dict(self.fields)}


#: kind -> fields that only a new object can be given.
FIXED: Mapping[str, frozenset[str]] = {"keys": frozenset({"team", "user", "role"}), "roles": frozenset({"rank", "permissions"})}


#: kind -> fields that say something about a new object alone.
FIRST: Mapping[str, frozenset[str]] = {"orgs": frozenset({"admin"})}


def plan(declared: Declared, known: Iterable[Known], *, prune: bool = False) -> list[Change]:
    """In the order in which it is to be done; nothing when all is as declared. With `prune` what a section does not name is removed, but
    for what is kept. Raises ConfigError for what cannot be changed."""
    there: dict[tuple[str, str], Known] = {}
    several: set[tuple[str, str]] = set()
    for one in known:
        several |= {(one.kind, one.name)} & there.keys()
        there[one.kind, one.name] = one
    for item in declared.items:
        if (item.kind, item.name) in several:
            hint = "rename all but one of them, or revoke them"
            raise ConfigError(f"{item.place}: {item.path}: the server has several of this name", hint=hint)
    changes = [change for item in declared.items if (change := _of(item, there.get((item.kind, item.name)))) is not None]
    order = list(SECTIONS)
    changes.sort(key=lambda change: order.index(change.kind))
    if prune:
        named = {(item.kind, item.name) for item in declared.items}
        gone = [one for place, one in there.items() if one.kind in declared.sections and place not in named | several and not one.kept]
        gone.sort(key=lambda one: -order.index(one.kind))
        changes += [Change("remove", one.kind, one.name, known=one) for one in gone]
    return changes


def _of(item: Item, known: Known | None) -> Change | None:
    if known is None:
        return Change("create", item.kind, item.name, item.fields, place=str(item.place))
    said = {name: value for name, value in item.fields.items() if name not in FIRST.get(item.kind, ())}
    differs = {name: value for name, value in said.items() if not _same(name, known.fields.get(name), value)}
    for name in FIXED.get(item.kind, ()):
        if name in differs:
            what = f"is {known.fields.get(name)!r} and cannot become {differs[name]!r}"
            raise ConfigError(
                f"{item.place}: {item.path}.{name}: {what}", hint="give the new one another name, or remove the old one first"
            )
    return Change("update", item.kind, item.name, differs, known, str(item.place)) if differs else None


def _same(name: str, there: Any, wanted: Any) -> bool:
    return _permit_the_same(there or [], wanted) if name == "permissions" else bool(there == wanted)


def _permit_the_same(there: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether these are the permissions that the wanted ones, in which `*` may stand, come to."""
    named, patterns = list(there), list(wanted)
    return all(any(fnmatchcase(one, pattern) for pattern in patterns) for one in named) and all(
        any(fnmatchcase(one, pattern) for one in named) for pattern in patterns
    )


def alone(known: Iterable[Known]) -> tuple[list[Known], list[str]]:
    """Those whose names are theirs alone, and the paths of the others."""
    known = list(known)
    times = Counter((one.kind, one.name) for one in known)
    several = sorted(f"{kind}.{name}" for (kind, name), count in times.items() if count > 1)
    return [one for one in known if times[one.kind, one.name] == 1], several


def counted(changes: Iterable[Change]) -> dict[str, int]:
    """How many of each verb."""
    verbs = [str(change.verb) for change in changes]
    return {verb: verbs.count(verb) for verb in SIGNS}
