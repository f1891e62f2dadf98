"""What a key is good for: models, routes, and networks that its holder may ask from. Nothing said means no bounds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from mindgw import addresses, errors
from mindgw.addresses import Networks
from mindgw.core import access

#: Routes by name; one covers whatever is below its path.
ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "models": "/v1/models",
    "manage": "/api/v1",
}
#: Most patterns and routes of one key, and their longest.
MOST, LONGEST = 100, 200


class Scope(Struct, frozen=True, gc=False):
    """The bounds of one key."""

    #: What the names of its models match; None: all models.
    models: re.Pattern[str] | None = None
    #: Paths; none: all.
    routes: tuple[str, ...] = ()
    #: None: from anywhere.
    addresses: Networks | None = None

    def admit(self, path: str, address: str) -> None:
        """Raises Forbidden."""
        if self.routes and not any(path == route or path.startswith(route + "/") for route in self.routes):
            raise errors.Forbidden(f"This API key is not good for {path[:200]}.", code="route_not_allowed")
        if self.addresses is not None and address not in self.addresses:
            raise errors.Forbidden(f"This API key is not good for requests from {address or 'there'}.", code="address_not_allowed")

    def anywhere(self) -> "Scope":
        """The same without bounds on where one may ask from."""
        return replace(self, addresses=None)

    def covers(self, *names: str) -> bool:
        """Whether it is good for a model, by one of its names."""
        return self.models is None or any(self.models.match(name) for name in names)


def within(field: str, said: Sequence[str], bounds: Sequence[str]) -> bool:
    """Whether all that one list of a key's bounds allows is allowed by that of another key; an empty one allows everything."""
    if not bounds:
        return True
    inside = {"models": _narrower, "routes": _below, "addresses": addresses.inside}[field]
    return bool(said) and all(inside(one, bounds) for one in said)


def _below(route: str, routes: Iterable[str]) -> bool:
    path = f"{ROUTES.get(route, route).rstrip('/')}/"
    return any(path.startswith(f"{ROUTES.get(other, other).rstrip('/')}/") for other in routes)


def _narrower(pattern: str, patterns: Iterable[str]) -> bool:
    """Whether whatever fits a glob fits one of others, as far as that can be seen: `*` stands for any text, `?` for what is no `*`."""
    return any(pattern == other or re.fullmatch(_seen(other), pattern) for other in patterns)


def _seen(pattern: str) -> str:
    """A glob as an expression over the globs that it covers. A `*` takes as little as it can and never gives back: its time is bounded."""
    first, *rest = ("".join("[^*]" if char == "?" else re.escape(char) for char in part) for part in pattern.split("*"))
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>(?s:.)*?{part})" for part in middle if part) + f"(?s:.)*{last}"


def read(document: Mapping[str, Any]) -> Scope | None:
    """The bounds that stand in a key's row; None for none. Raises ValueError for what is none of ours: better no request than any."""
    if not document:
        return None
    models, routes, addresses = (document.get(field) or () for field in ("models", "routes", "addresses"))
    if not (models or routes or addresses):
        return None
    paths = tuple(ROUTES.get(route, route).rstrip("/") for route in routes)
    return Scope(access.glob(models) if models else None, paths, Networks(addresses) if addresses else None)


def written(field: str, said: list[str]) -> list[str]:
    """One list of them as it is kept, each once. Raises ValueError with a message that begins "must be"."""
    if len(said) > MOST or any(not one.strip() or len(one) > LONGEST or not one.isprintable() for one in said):
        raise ValueError(f"must be at most {MOST} texts of 1 to {LONGEST} printable characters")
    said = list(dict.fromkeys(one.strip() for one in said))
    if field == "addresses":
        return list(Networks(said).texts)
    if field == "routes" and any(one not in ROUTES and not one.startswith("/") for one in said):
        raise ValueError(f"must be {', '.join(ROUTES)}, or a path such as /v1/embeddings")
    return said
