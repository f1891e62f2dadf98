"""Who may do what: permissions as bits of one number, roles as sets of them, and which models are for whom.

A permission is a verb and a resource, written `read:keys`. Whatever is not permitted is refused. Rights that hold in one team alone are
kept apart from those that hold in the whole organisation.
"""

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

READ, CREATE, UPDATE, DELETE, USE = "read", "create", "update", "delete", "use"
_ALL: Final = (READ, CREATE, UPDATE, DELETE)

#: What there is -> what can be done with it. The place of a pair is its bit: nothing is stored as bits, so places may change.
RESOURCES: Final[dict[str, tuple[str, ...]]] = {
    # what is one's own: limits, usage, keys, sessions
    "me": (READ, CREATE, DELETE),
    "models": (USE, READ),
    "access": (READ, CREATE, DELETE),
    "keys": _ALL,
    "users": _ALL,
    "teams": (READ, CREATE),
    "orgs": (READ, CREATE, UPDATE),
    "sessions": (READ, DELETE),
    "roles": (READ, CREATE, UPDATE, DELETE),
    "rates": (READ, UPDATE, DELETE),
    "quotas": (READ, UPDATE, DELETE),
    "usage": (READ,),
    "ledger": (READ,),
    "queue": (READ, UPDATE, DELETE),
    "requests": (READ,),
    "dead-letters": (READ, UPDATE, DELETE),
    "workers": (READ, UPDATE, DELETE),
    "routes": (READ, CREATE, UPDATE, DELETE),
    "join-tokens": (READ, CREATE, DELETE),
    "status": (READ,),
    "events": (READ,),
    "metrics": (READ,),
    "audit": (READ,),
}
#: (verb, resource) -> its bit.
BITS: Final = {pair: 1 << place for place, pair in enumerate((verb, what) for what, verbs in RESOURCES.items() for verb in verbs)}
EVERYTHING: Final = (1 << len(BITS)) - 1
#: Nobody's role is higher than this one; whoever has it may give and take every role.
TOP: Final = 100
_ANY = "*"


def mask(permissions: Iterable[str]) -> int:
    """The bits of permissions such as `read:keys`, `*:keys`, `read:*`. Raises ValueError for what names none."""
    bits = 0
    for text in permissions:
        meant = _meant(text)
        if not meant:
            raise ValueError(f"{text[:80]!r} is no permission; one is a verb and a resource, such as read:keys or *:queue")
        bits |= meant
    return bits


def _meant(text: str) -> int:
    verb, _, resource = text.partition(":")
    return sum(bit for (does, what), bit in BITS.items() if verb in {does, _ANY} and resource in {what, _ANY})


def known(permissions: Iterable[str]) -> int:
    """The bits of those permissions that there are: a role may be older or newer than this release."""
    return mask(text for text in permissions if _meant(text))


def names(bits: int) -> list[str]:
    """The permissions of a mask, one by one."""
    return [f"{verb}:{resource}" for (verb, resource), bit in BITS.items() if bits & bit]


class Role(Struct, frozen=True):
    """A set of permissions that people are given as a whole."""

    name: str
    #: The higher one may give the lower one and take it away.
    rank: int
    mask: int
    #: Whether it is part of the program.
    built_in: bool = False


ADMIN, OPERATOR, USER, VIEWER = "admin", "operator", "user", "viewer"
_OWN = ("*:me",)
_WATCHED = (
    "read:models",
    "read:queue",
    "read:requests",
    "read:workers",
    "read:routes",
    "read:status",
    "read:events",
    "read:metrics",
    "read:usage",
    "read:quotas",
)
_OPERATED = (
    "*:keys",
    "*:quotas",
    "*:rates",
    "*:queue",
    "*:dead-letters",
    "*:workers",
    "*:routes",
    "*:join-tokens",
    "delete:sessions",
    "*:access",
)
BUILT_IN: Final = {
    role.name: role
    for role in (
        Role(ADMIN, TOP, EVERYTHING, True),
        Role(OPERATOR, 75, mask((*_OWN, "use:models", "read:*", *_OPERATED)), True),
        Role(USER, 50, mask((*_OWN, "use:models")), True),
        Role(VIEWER, 25, mask((*_OWN, *_WATCHED)) & ~mask(("create:me",)), True),
    )
}


class Rights(Struct, frozen=True):
    """What somebody may do."""

    #: Names of the roles that hold in the whole organisation.
    roles: tuple[str, ...] = ()
    mask: int = 0
    #: That of the highest of these roles.
    rank: int = 0
    #: (id of a team, what may be done in it beyond that).
    teams: tuple[tuple[str, int], ...] = ()
    #: That of the highest of all roles, those in one team too: who touches this person stands above it.
    highest: int = 0
    #: Names of the roles of the person behind a key that acts with a role of its own.
    behind: tuple[str, ...] = ()

    def may(self, verb: str, resource: str) -> bool:
        """Whether it holds in the whole organisation. Raises KeyError for a pair that is no permission."""
        return bool(self.mask & BITS[verb, resource])

    def teams_where(self, verb: str, resource: str) -> frozenset[str]:
        """Ids of the teams in which it holds. Raises as `may`."""
        bit = BITS[verb, resource]
        return frozenset(team for team, bits in self.teams if bits & bit)

    @property
    def somewhere(self) -> int:
        """All bits that hold in the whole organisation or in some team."""
        bits = self.mask
        for _, more in self.teams:
            bits |= more
        return bits


NOTHING: Final = Rights()


def combine(roles: Iterable[tuple[Role, str | None]]) -> Rights:
    """The rights of whoever has these roles, each in the team with that id, or, with None, in the whole organisation."""
    held: dict[str, Role] = {}
    teams: dict[str, int] = {}
    highest = 0
    for role, team in roles:
        highest = max(highest, role.rank)
        if team is None:
            held[role.name] = role
        else:
            teams[team] = teams.get(team, 0) | role.mask
    bits = 0
    for role in held.values():
        bits |= role.mask
    ranked = sorted(held.values(), key=lambda role: (-role.rank, role.name))
    in_teams = tuple((team, more & ~bits) for team, more in sorted(teams.items()) if more & ~bits)
    return Rights(tuple(role.name for role in ranked), bits, ranked[0].rank if ranked else 0, in_teams, highest)


def narrowed(rights: Rights, role: Role) -> Rights:
    """What a key may do that acts with a role, for somebody with these rights: what both permit."""
    in_teams = tuple((team, bits & role.mask) for team, bits in rights.teams if bits & role.mask)
    rank, highest = min(rights.rank, role.rank), min(rights.highest, role.rank)
    return Rights((role.name,), rights.mask & role.mask, rank, in_teams, highest, behind=rights.roles)


def outranks(rank: int, other: int) -> bool:
    """Whether whoever has the one rank may give and take a role of the other: only the highest of all may do so among its equals."""
    return rank > other or rank >= TOP


def covers(rights: Rights, role: Role) -> bool:
    """Whether somebody may do all that a role permits: nobody hands on what they do not have."""
    return not role.mask & ~rights.mask


def contains(rights: Rights, other: Rights) -> bool:
    """Whether somebody may do all that others may, in the whole organisation and in each team."""
    if other.mask & ~rights.mask:
        return False
    mine = dict(rights.teams)
    return not any(bits & ~(rights.mask | mine.get(team, 0)) for team, bits in other.teams)


def stands_above(rights: Rights, other: Rights) -> bool:
    """Whether somebody may change what others are: no role of theirs is as high, and they may do nothing that whoever changes them may not
    do everywhere."""
    return outranks(rights.rank, other.highest) and not other.somewhere & ~rights.mask


# -- models ------------------------------------------------------------------------------------------------------------


class Rule(Struct, frozen=True):
    """Models that a subject may or may not use."""

    id: str
    #: role:NAME, team:ID, user:ID or key:ID.
    subject: str
    allows: bool
    #: A glob: `*` stands for any characters, `?` for one.
    pattern: str


class Allow(Struct, frozen=True):
    """It may be used."""

    #: The rule that says so; None: there is none that would have to.
    rule: Rule | None = None


class Deny(Struct, frozen=True):
    """It may not be used."""

    #: The rule that says so; None: there are rules that allow, and none of them this.
    rule: Rule | None = None


class Models(Struct, frozen=True):
    """Which models somebody may use; without rules, all."""

    rules: tuple[Rule, ...]
    #: What their globs match; None: there are none of that kind.
    denied: re.Pattern[str] | None
    allowed: re.Pattern[str] | None

    def permits(self, names: Iterable[str]) -> bool:
        """Whether a model may be used, by all names that it goes by: one that is denied denies it, one that is allowed allows it."""
        denied, allowed = self.denied, self.allowed
        good = allowed is None
        for name in names:
            if denied is not None and denied.match(name) is not None:
                return False
            good = good or (allowed is not None and allowed.match(name) is not None)
        return good

    def decide(self, names: Iterable[str]) -> Allow | Deny:
        """As `permits`, with the rule that decides."""
        known = list(names)
        matching = [rule for rule in self.rules if any(glob([rule.pattern]).match(name) for name in known)]
        for rule in matching:
            if not rule.allows:
                return Deny(rule)
        return Allow(matching[0] if matching else None) if matching or self.allowed is None else Deny()


def compile_models(rules: Iterable[Rule]) -> Models | None:
    """The rules of all subjects that somebody is, in one; None when there are none: every model may be used."""
    rules = tuple(rules)
    if not rules:
        return None
    allow, deny = ([rule.pattern for rule in rules if rule.allows is kind] for kind in (True, False))
    return Models(rules, glob(deny) if deny else None, glob(allow) if allow else None)


def glob(patterns: Iterable[str]) -> re.Pattern[str]:
    """What matches whole names that one of these globs fits. A match takes time in proportion to the name, whatever the glob is."""
    return re.compile("|".join(map(_expression, patterns)), re.DOTALL)


def _expression(pattern: str) -> str:
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in pattern.split(_ANY))
    if not rest:
        return rf"{first}\Z"
    *middle, last = rest
    # the leftmost place of each part is as good as any other: once found it is never looked for again
    return first + "".join(rf"(?>.*?{part})" for part in middle if part) + rf".*{last}\Z"
