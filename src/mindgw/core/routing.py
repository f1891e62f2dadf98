"""Where requests may go: routes of names, what pins a model to some workers, and where a caller's work has to stay.

A *where* is what a worker's tags must say: of every name that stands in it one of the values. Nothing that is said later makes one wider:
what a caller, a route and a pin say is put together, and a worker that does not have it all is no choice, whatever else fails.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import translate
from functools import lru_cache
from hashlib import blake2b
from math import log
from typing import Any, Final

from msgspec import Struct

#: (name of a tag, values of which a worker must have one), in the order of the names; no values: no worker is good enough.
Where = tuple[tuple[str, tuple[str, ...]], ...]
EVERYWHERE: Final[Where] = ()
#: The tag that every worker has of itself: its name.
OWN: Final = "worker"
#: What stands in a place for the team of who asks, and in a worker's tags for the teams that its owner keeps it for: no tag that anybody
#: gives has such a name. A worker without it is there for all.
KEPT: Final = "@"
_NEXT: Final = "\n"
#: Between the values of a label any of which will do.
_OR: Final = "|"
#: How a pool may be written for short: `pool:gpu` is `@pool=gpu`.
_POOL: Final = "pool:"
#: The highest weight.
HEAVIEST: Final = 10_000
#: How a seat is chosen among those that may be; "": as the server does it.
STRATEGIES: Final = ("", "score", "least-busy", "round-robin", "weighted", "sticky")
#: Names that are remembered with the route that each falls under, and pairs of places that were put together.
_KNOWN: Final = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VALUE = re.compile(r"[^\s,=@|]{1,63}")
_MODEL = re.compile(r"[^\s@,]{1,200}")
_WEIGHT = re.compile(r"(.*)=([0-9]{1,5})", re.DOTALL)


# -- places ------------------------------------------------------------------------------------------------------------


def permits(where: Where, tags: Mapping[str, str]) -> bool:
    """Whether a worker with these tags is good enough."""
    return all(tags.get(name) in values or (name == KEPT and _welcomes(tags, values)) for name, values in where)


def _welcomes(tags: Mapping[str, str], teams: Collection[str]) -> bool:
    kept = tags.get(KEPT)
    return kept is None or not set(teams).isdisjoint(kept.split(_NEXT))


def kept_for(teams: Iterable[str]) -> dict[str, str]:
    """The tag of a worker that its owner keeps for these teams."""
    return {KEPT: _NEXT.join(teams)}


def of_team(team: str) -> Where:
    """Workers that are for all, or for this team."""
    return ((KEPT, (team,)),)


def without_team(place: Where) -> Where:
    """The place alone, whoever asks."""
    return tuple(part for part in place if part[0] != KEPT)


@lru_cache(_KNOWN)
def both(one: Where, other: Where) -> Where:
    """What is as narrow as each of the two."""
    if not one or not other:
        return one or other
    found = {name: frozenset(values) for name, values in one}
    for name, values in other:
        found[name] = found.get(name, frozenset(values)) & frozenset(values)
    return _where(found)


def residency(*labels: Mapping[str, Any]) -> Where:
    """What callers with such labels are bound to: those of an organisation, those of a key. `eu|uk` is either of both. Labels that
    contradict each other leave no worker."""
    where = EVERYWHERE
    for some in labels:
        said = {name: frozenset(part.strip() for part in str(value).split(_OR)) for name, value in some.items()}
        where = both(where, _where(said))
    return where


def _where(said: Mapping[str, Collection[str]]) -> Where:
    return tuple((name, tuple(sorted(values))) for name, values in sorted(said.items()))


def tag(text: str) -> tuple[str, str]:
    """NAME=VALUE, such as zone=lab. Raises ValueError with a message that ends the sentence "it …"."""
    name, equals, value = text.strip().partition("=")
    if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError(f"must be NAME=VALUE, such as zone=lab, not {text[:80]!r}")
    return name, value


def where(texts: Iterable[str]) -> Where:
    """Tags that a worker must have; of several values of one name it must have any. Raises ValueError."""
    said: dict[str, set[str]] = {}
    for text in texts:
        name, value = tag(text)
        said.setdefault(name, set()).add(value)
    return _where(said)


def tags_of(place: Where) -> list[str]:
    """As people write them: what `where` reads. Whose team it is for they do not write."""
    return [f"{name}={value}" for name, values in place if name != KEPT for value in values]


def shown(place: Where) -> str:
    """A place on one line; of one that no worker can be in what nobody can have. "" where only the team says who may serve it."""
    return ",".join(f"{name}={_OR.join(values) or 'nothing'}" for name, values in place if name != KEPT)


# -- targets -----------------------------------------------------------------------------------------------------------


class Target(Struct, frozen=True, gc=False):
    """Workers that a route leads to, and the model that they are asked for."""

    #: "": the one that was asked for.
    model: str = ""
    where: Where = EVERYWHERE
    #: Its part of the users, beside those of the others; 0: none.
    weight: int = 1


def target(text: str) -> Target:
    """`qwen3:8b`, `qwen3:8b@pool=gpu,zone=lab`, `@pool=gpu` (the model that was asked for) or `pool:gpu`, with a weight behind it:
    `qwen3:8b=90`. Raises ValueError."""
    model, at, tags = text.strip().partition("@")
    weight = 1
    if at:
        *some, last = tags.split(",")
        if (found := _WEIGHT.fullmatch(last)) is not None and "=" in found[1]:
            last, weight = found[1], int(found[2])
        place = where([*some, last])
    else:
        if (found := _WEIGHT.fullmatch(model)) is not None:
            model, weight = found[1], int(found[2])
        place = EVERYWHERE
        if model.startswith(_POOL):
            model, place = "", where([f"pool={model.removeprefix(_POOL)}"])
    if weight > HEAVIEST:
        raise ValueError(f"may weigh {HEAVIEST:,} at most, not {weight:,}")
    if not (model or place) or (model and not _MODEL.fullmatch(model)):
        raise ValueError(f"must be MODEL, MODEL@TAG=VALUE or @TAG=VALUE, not {text[:80]!r}")
    return Target(model, place, weight)


def written(one: Target) -> str:
    """What `target` reads."""
    tags = ",".join(tags_of(one.where))
    text = f"{one.model}@{tags}" if tags else one.model
    said = one.weight != 1 or (not tags and _WEIGHT.fullmatch(text) is not None)
    return f"{text}={one.weight}" if said else text


# -- routes ------------------------------------------------------------------------------------------------------------


class Route(Struct, frozen=True, kw_only=True):
    """What becomes of requests for a name."""

    name: str
    #: A glob over the names that are asked for: `*` stands for any characters, `?` for one.
    match: str
    #: One of them is chosen by weight, always the same for one user; none: the model that was asked for.
    targets: tuple[Target, ...] = ()
    #: Where it goes in turn when there is no worker for what comes before, or when that fails.
    fallbacks: tuple[Target, ...] = ()
    #: The only workers that may serve a model of such a name, whatever it is asked for by.
    pins: Where = EVERYWHERE
    #: What every worker must have that a request of this route goes to.
    require: Where = EVERYWHERE
    strategy: str = ""
    #: Whether it goes on when the workers of a target are only busy.
    spill: bool = False
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool = False
    #: Whether it is only noted what it would do.
    shadow: bool = False
    #: Whether nobody can tell what it says: then it leads nowhere.
    broken: bool = False


class Leg(Struct, frozen=True, gc=False):
    """A model and the workers that it may be asked of."""

    model: str
    where: Where = EVERYWHERE


class Plan(Struct, frozen=True, gc=False):
    """Where a request goes, one after the other."""

    #: Name of the route; "": there is none.
    route: str
    legs: tuple[Leg, ...]
    strategy: str = ""
    spill: bool = False
    hedge: bool = False


class Rules:
    """All routes. They do not change: other routes are other rules."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self.routes = tuple(routes)
        ranked = sorted(self.routes, key=_specific)
        self._real = [(_glob(route.match), route) for route in ranked if not route.shadow]
        self._shadows = [(_glob(route.match), route) for route in ranked if route.shadow]
        self._pins = [(pattern, route.pins) for pattern, route in self._real if route.pins]
        #: Name that was asked for -> the route that it falls under, and the one that is only noted.
        # bounded: by _KNOWN
        self._found: dict[str, tuple[Route | None, Route | None]] = {}

    @property
    def pins(self) -> bool:
        """Whether any model is pinned."""
        return bool(self._pins)

    def of(self, model: str) -> tuple[Route | None, Route | None]:
        """The route that a request for this name takes, and the one that it would take if that counted: the name itself before a glob,
        and of globs the one that says most."""
        known = self._found.get(model)
        if known is None:
            if len(self._found) >= _KNOWN:
                self._found.clear()  # names come from callers
            known = self._found[model] = _first(self._real, model), _first(self._shadows, model)
        return known

    def pinned(self, names: Iterable[str]) -> Where:
        """Where alone a model may be served that goes by these names."""
        found, known = EVERYWHERE, list(names)
        for pattern, pins in self._pins:
            if any(pattern.fullmatch(name) for name in known):
                found = both(found, pins)
        return found


def plan(route: Route, model: str, home: Where, who: str) -> Plan:
    """Where a request for a model goes, of a caller that is bound to `home`; `who` has the same target each time."""
    home = both(home, route.require)
    if route.broken:
        return Plan(route.name, ())
    targets = (*ranked(route, who), *route.fallbacks)
    # a route without targets of its own is about the model that was asked for
    first = () if route.targets else (Leg(model, home),)
    legs = (*first, *(Leg(one.model or model, both(home, one.where)) for one in targets))
    return Plan(route.name, tuple(dict.fromkeys(legs)), route.strategy, route.spill, route.hedge)


def ranked(route: Route, who: str) -> list[Target]:
    """The targets of a route as `who` tries them: the first by weight, and should there be no worker for that, the others. Whoever has
    one keeps it, unless another grows at its expense (rendezvous hashing)."""
    some = [one for one in route.targets if one.weight]
    if len(some) < 2:
        return some
    return sorted(some, key=lambda one: -log(_drawn(route.name, one, who)) / one.weight)


def _drawn(name: str, one: Target, who: str) -> float:
    """Above 0 and below 1, evenly, and always the same."""
    said = "\0".join((name, one.model, shown(one.where), who))
    number = int.from_bytes(blake2b(said.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big")
    return (number + 0.5) / 2**48


def _specific(route: Route) -> tuple[bool, int, str]:
    """The first comes first."""
    wild = "*" in route.match or "?" in route.match
    return wild, -sum(char not in "*?" for char in route.match), route.name


def _first(some: Iterable[tuple[re.Pattern[str], Route]], model: str) -> Route | None:
    return next((route for pattern, route in some if pattern.fullmatch(model)), None)


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))
