"""Whose turn a request takes, and in which class: the flow that it belongs to, from the organisation down to the end user.

An end user is believed only of keys that are marked as trusted proxies; whoever else names one shares the key's own flow.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from mindgw.core.fair import Path

#: Priority classes by rank; the first is for requests that an operator put before all others.
CLASSES = ("bumped", "high", "normal", "batch", "sheddable")
BUMPED, SHEDDABLE = 0, len(CLASSES) - 1
_RANKS = {name: rank for rank, name in enumerate(CLASSES) if rank != BUMPED}
#: OpenAI's `service_tier` -> class that it asks for.
_TIERS = {"priority": "high", "flex": "batch"}
#: Names of a path: organisation, team, user, key, end user.
DEPTH = 5
#: Headers that name an end user, the first that is there counts.
_HEADERS = (b"x-openwebui-user-id", b"x-claude-code-session-id")
#: Flows that are remembered.
_FLOWS = 10_000
_PLAIN = re.compile(r"[A-Za-z0-9._@:+-]{1,64}")


class Payer(Protocol):
    """Who asks, as far as the order of the queue may depend on it."""

    @property
    def org_id(self) -> str: ...
    @property
    def team(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def priority(self) -> str: ...
    @property
    def trusted_proxy(self) -> bool: ...


class Flow(Struct, frozen=True, gc=False):
    """Where a request belongs in the fair order."""

    path: Path
    rank: int


def flow(payer: Payer, headers: Sequence[tuple[bytes, bytes]], named: str, tier: str) -> Flow:
    """`named` is the end user that the body names, "" when it names none; `tier` its service tier. Names of headers are in lower case."""
    end_user = _end_user(headers, named) if payer.trusted_proxy else ""
    return _flow((payer.org_id, payer.team, payer.user, payer.key_id, end_user), payer.priority, tier if tier in _TIERS else "")


@lru_cache(_FLOWS)
def _flow(path: Path, priority: str, tier: str) -> Flow:
    """The same one for the same facts."""
    return Flow(path, rank(priority, tier))


def rank(priority: str, tier: str) -> int:
    """The class that a tier asks for, but none above the key's own."""
    own = _RANKS.get(priority, _RANKS["normal"])
    return max(own, _RANKS[_TIERS[tier]]) if tier in _TIERS else own


def weigher(weights: Mapping[str, float]) -> Callable[[Path], float]:
    """The weight of a flow, from settings such as `{"team:nlp": 2, "user:ada@example.org": 0.5}`; 1 for all others."""
    kinds = {2: "team", 3: "user"}

    def weight(path: Path) -> float:
        kind = kinds.get(len(path))
        return weights.get(f"{kind}:{path[-1]}", 1.0) if kind else 1.0

    return weight


def _end_user(headers: Sequence[tuple[bytes, bytes]], named: str) -> str:
    found = next((value for wanted in _HEADERS for name, value in headers if name == wanted and value), None)
    text = found.decode("latin-1") if found is not None else named
    # what cannot be shown on one line of a terminal goes by its hash
    return text if not text or _PLAIN.fullmatch(text) else "#" + hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
