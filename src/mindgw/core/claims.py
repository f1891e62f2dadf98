"""Who somebody is by what an identity provider says: which person, which roles, which teams. PURE.

A person is known by what their provider never gives to anybody else, and never by an address: those are given to others one day, and at
some providers everybody may write what they like into them. The address of a person is for people to read.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

#: Code of what says nothing of somebody, for or against them.
OVERAGE: Final = "groups_overage"

_ADDRESS: Final = re.compile(r"[a-z0-9._%+'-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII)
#: Subjects that can stand in an address as they are.
_NAMES: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_MAX_NAME: Final = 200
#: Values of one claim that are looked at.
_MOST: Final = 2000
#: What stands in the name of an account that a tenant has of somebody else's.
_EXTERNAL: Final = "#ext#"


class Shape(Struct, frozen=True, kw_only=True):
    """How one provider says who somebody is, and what that means here."""

    #: Whether it is Microsoft Entra ID.
    is_entra: bool
    #: Its names.
    issuers: frozenset[str]
    #: Claims with what roles and what teams are told by: names, or paths with dots.
    role_claims: tuple[str, ...] = ()
    team_claims: tuple[str, ...] = ()
    #: What stands in such a claim -> name of a role, or of a team.
    roles: Mapping[str, str] = {}
    teams: Mapping[str, str] = {}
    #: Claims that must have a value, word for word.
    require: Mapping[str, str] = {}
    #: Role of those to whom no other is given; "": they are refused.
    default_role: str = ""
    #: Whether guests of the tenant come in.
    guests: bool = False
    #: What addresses end with that the provider does not vouch for.
    domain: str


class Person(Struct, frozen=True):
    """Who it is."""

    subject: str
    address: str
    #: What they are called, "" for nothing.
    name: str
    #: Names of roles, never none, and of teams; None: the token says nothing of them, which only one can that need not be complete.
    roles: tuple[str, ...] | None
    teams: tuple[str, ...] | None


class Unwelcome(Struct, frozen=True):
    """Why somebody does not come in."""

    code: str
    message: str


def person(claims: Mapping[str, Any], shape: Shape, groups: Collection[str] | None = None, *, whole: bool = True) -> Person | Unwelcome:
    """Who a good token speaks of. `groups`: those that were asked for where the token has too many to name them. `whole`: whether what it
    does not say is not so, as in ID tokens; of others, providers leave out of some what they put into others."""
    subject = claims.get("oid" if shape.is_entra else "sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
        return Unwelcome("no_subject", "The token does not say who somebody is (oid): the scopes profile and openid bring that.")
    guest = shape.is_entra and is_guest(claims, shape.issuers)
    if guest and not shape.guests:
        return Unwelcome("guest_refused", "Guests of this tenant do not come in here.")
    if any(_word(_said(claims, name)) != value for name, value in shape.require.items()):
        return Unwelcome("not_assigned", "The provider knows you, but this server is not for you.")
    if groups is None and needs_groups(claims, shape):
        said = "The token names no groups, as there are too many of them: give the application app roles, or assign groups to it."
        return Unwelcome("groups_overage", said)
    told = _told(claims, shape.role_claims, shape.roles, groups, whole=whole)
    roles = default(shape) if told == () else told
    if isinstance(roles, Unwelcome):
        return roles
    teams = _told(claims, shape.team_claims, shape.teams, groups, whole=whole)
    return Person(subject, _address(claims, shape, subject, guest=guest), _name(claims), roles, teams)


def default(shape: Shape) -> tuple[str, ...] | Unwelcome:
    """The roles of somebody who has none by a claim."""
    if shape.default_role:
        return (shape.default_role,)
    return Unwelcome("not_assigned", "The provider knows you, but has given you no role for this server.")


def is_guest(claims: Mapping[str, Any], issuers: Collection[str]) -> bool:
    """Whether the tenant only has somebody in who is at home elsewhere."""
    home = claims.get("idp")
    names = [claims.get(name) for name in ("preferred_username", "upn", "unique_name")]
    external = any(isinstance(name, str) and _EXTERNAL in name.lower() for name in names)
    return external or claims.get("acct") in (1, "1") or (home is not None and not (isinstance(home, str) and home in issuers))


def needs_groups(claims: Mapping[str, Any], shape: Shape) -> bool:
    """Whether a token leaves out what somebody's roles or teams hang on, because there is too much of it."""
    wanted = {*(shape.role_claims if shape.roles else ()), *(shape.team_claims if shape.teams else ())}
    elsewhere = claims.get("_claim_names")
    left_out = set(elsewhere) if isinstance(elsewhere, dict) else set()
    if claims.get("hasgroups") in (True, "true"):
        left_out.add("groups")
    return bool(wanted & left_out)


def _told(
    claims: Mapping[str, Any], names: Iterable[str], ours: Mapping[str, str], groups: Collection[str] | None, *, whole: bool
) -> tuple[str, ...] | None:
    """What some claims come to here; None for a token that says nothing of it, and need not."""
    names = tuple(names)
    if not whole and ours and all(_said(claims, name) is None for name in names):
        return None
    return _mapped(_values(claims, names, groups), ours)


def _values(claims: Mapping[str, Any], names: Iterable[str], groups: Collection[str] | None) -> set[str]:
    """All that stands in some claims; what was asked for stands for `groups`."""
    found: set[str] = set()
    for name in names:
        said = groups if name == "groups" and groups is not None else _said(claims, name)
        several = said if isinstance(said, list | tuple | set | frozenset) else [said]
        found |= {one for one in list(several)[:_MOST] if isinstance(one, str)}
    return found


def _said(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path such as realm_access.roles."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _word(said: Any) -> Any:
    """As settings say it."""
    return str(said).lower() if isinstance(said, bool) else said


def _mapped(values: Collection[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """In the order of the mapping, each once."""
    return tuple(dict.fromkeys(name for value, name in names.items() if value in values))


def _address(claims: Mapping[str, Any], shape: Shape, subject: str, *, guest: bool) -> str:
    """One that the provider vouches for: of Entra the name that a member signs in with, of others an address that was verified. Else one
    that nobody has."""
    said: Any
    if shape.is_entra:
        named = (claims.get(name) for name in ("preferred_username", "upn", "unique_name"))
        said = "" if guest else next((name for name in named if isinstance(name, str)), "")
    else:
        verified = claims.get("email_verified")
        said = claims.get("email") if verified is True or verified == "true" else ""
    address = said.strip().lower() if isinstance(said, str) else ""
    if _ADDRESS.fullmatch(address) and len(address) <= _MAX_NAME:
        return address
    plain = subject if _NAMES.fullmatch(subject) else hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{plain}@{shape.domain}"


def _name(claims: Mapping[str, Any]) -> str:
    said = claims.get("name")
    name = said.strip()[:_MAX_NAME] if isinstance(said, str) else ""
    return name if name.isprintable() else ""
