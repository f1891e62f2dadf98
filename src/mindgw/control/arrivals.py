"""People whom a provider sends: made when they are new, and made what the provider says they are. Audited as every change is.

Somebody is found by (issuer, subject) alone. An address that is somebody's already makes nobody that one.
"""

import logging
import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import stewards
from mindgw.control.principal import Principal
from mindgw.core import claims
from mindgw.core.access import ADMIN
from mindgw.core.claims import Person, Shape, Unwelcome
from mindgw.errors import Conflict, Forbidden, Unauthenticated
from mindgw.providers import NONE, Provider
from mindgw.store import access, audit, identities, people, rows, sessions, users, vouching
from mindgw.store.identities import Known
from mindgw.store.tables import Identity, Org, User
from mindgw.store.users import ACTIVE, LAPSED, NewUser

log = logging.getLogger("mindgw.idp")

#: For how long after a provider has vouched for somebody what it said of them holds for tokens that say nothing of it.
KEPT = timedelta(days=1)


class Word(Struct, frozen=True, kw_only=True):
    """What a provider says of somebody."""

    #: Its name in the settings.
    provider: str
    said: Provider
    person: Person
    #: When it said so.
    at: datetime
    #: Whether they have just signed in, or the provider was asked anew; else it is a token that somebody has held for a while.
    final: bool
    #: Network address of whoever brought it.
    address: str = ""


class Arrival(Struct, frozen=True):
    """Somebody who is in."""

    user: User
    identity: Identity
    #: Whether what they may do is not what it was.
    changed: bool


def shape(name: str, said: Provider) -> Shape:
    """How a provider of the settings says who somebody is."""
    return Shape(
        is_entra=said.is_entra,
        issuers=said.issuers,
        role_claims=said.role_claims,
        team_claims=said.team_claims,
        roles=said.roles,
        teams=said.teams,
        require=said.require,
        default_role="" if said.default_role == NONE else said.default_role,
        guests=said.guests,
        domain=f"{name}.sign-on",
    )


async def arrive(session: AsyncSession, word: Word) -> Arrival:
    """Raises Unauthenticated for somebody who is shut out here, or of whom too little is said, Forbidden where the settings and what is
    stored do not go together."""
    known = await identities.find(session, word.said.canonical, word.person.subject, lock=True)
    is_new = known is None
    word = _completed(word, known.identity if known is not None else None)
    identity, user = known or await _make(session, word)
    await _welcome(session, identity, user, word)
    who = themselves(user, identity, word.address)
    if word.final or word.person.roles is not None:  # a token may be one of before they lost their roles, and not name any
        identity.vouched_at = max(identity.vouched_at, clock.utcnow() if word.final else word.at)
    changed = False
    if word.at >= identity.claims_at:
        changed = await _adopt_role(session, who, user, identity, word)
        changed |= await _adopt_teams(session, who, user, identity, word)
        identity.claims_at, identity.provider = word.at, word.provider
        identity.final_at = word.at if word.final else identity.final_at
    if user.state == LAPSED:
        rows.change(user, state=ACTIVE)
        await audit.record(session, who, "user.return", user.id, email=user.email, provider=word.provider)
        changed = True
    identity.lost_at = None
    session.add(identity)
    await session.flush()
    return Arrival(user, identity, changed and not is_new)  # nothing is remembered of whoever is new


def _completed(word: Word, identity: Identity | None) -> Word:
    """With what somebody is of whom a token says nothing: what they are already, but only if their provider has said all, and has vouched
    for them of late: else who has lost a role would keep it by tokens without the claim. Raises Unauthenticated."""
    person = word.person
    if identity is not None and identity.final_at is not None and word.at - identity.vouched_at < KEPT:
        return word
    roles = person.roles if person.roles is not None else claims.default(shape(word.provider, word.said))
    if isinstance(roles, Unwelcome):
        raise Unauthenticated(roles.message, code=roles.code)
    return replace(word, person=replace(person, roles=roles, teams=person.teams or ()))


async def _welcome(session: AsyncSession, identity: Identity, user: User, word: Word) -> None:
    """Raises Unauthenticated for somebody who is shut out here, or by a word that is not good enough to come back after a lapse: when the
    provider has said that they are out, they must sign in; when it has said nothing, a token that is newer will do."""
    org = await session.get_one(Org, user.org_id)
    if user.state not in (ACTIVE, LAPSED) or org.state != ACTIVE:
        raise Unauthenticated("This user may not sign in.", code="user_disabled")
    if user.state == ACTIVE:
        return
    by = {one.id for one in await vouching.lost(session, user.id)}
    newer = word.at >= identity.claims_at if word.final else word.at > identity.vouched_at and word.person.roles is not None and not by
    if not newer or by - {identity.id}:
        raise Unauthenticated("The provider did not vouch for this user any more: sign in again.", code="sign_on_lost")


async def lapse(session: AsyncSession, known: Known, why: str, address: str = "", *, said: bool = True) -> bool:
    """Keys are refused and sessions are over, until the provider vouches for somebody again. `said`: it has said that they are out, and has
    not only been silent. False when they were out already."""
    user = await rows.locked(session, User, known.user.id)
    if said:
        known.identity.lost_at, known.identity.refresh = clock.utcnow(), None
        session.add(known.identity)
    if user is None or user.state != ACTIVE:
        return False
    who = themselves(user, known.identity, address)
    alone = await _is_alone(session, who, user)
    rows.change(user, state=LAPSED)
    ended = await sessions.end(session, user.id, clock.utcnow())
    facts = {"email": user.email, "why": why, "sessions": ended, **_told_alone(alone, user)}
    await audit.record(session, who, "user.lapse", user.id, **facts)
    return True


def themselves(user: User, identity: Identity, address: str = "") -> Principal:
    """Who changes what a provider has changed: they themselves, by its word."""
    return Principal(org_id=user.org_id, is_home=False, user_id=user.id, email=user.email, key_id=identity.key_id, address=address)


async def _is_alone(session: AsyncSession, who: Principal, user: User) -> bool:
    """Whether somebody is the last administrator of their organisation. A provider's word holds all the same: an administrator who has
    left would be worse than none, and whoever runs the server makes another one."""
    try:
        await stewards.spare(session, who, user)
    except Conflict:
        return True
    return False


def _told_alone(alone: bool, user: User) -> dict[str, bool]:
    if alone:
        log.warning("%s was the last administrator of the organisation %s, and is none any more: see mindgw orgs", user.email, user.org_id)
    return {"last_admin": True} if alone else {}


# -- whoever is new ----------------------------------------------------------------------------------------------------


async def _make(session: AsyncSession, word: Word) -> Known:
    said, person = word.said, word.person
    await _not_before(session, word)
    org = await _org(session, said)
    role = await _highest(session, org.id, person.roles or ())
    wanted = NewUser(org_id=org.id, email=people.clean_email(person.address), name=person.name, role=role)
    user, is_made = await users.obtain(session, wanted)
    if not is_made:
        known = await identities.find(session, said.canonical, person.subject, lock=True)
        if known is None:
            raise _taken(word)
        return known  # they came twice at once
    team, team_made = await people.obtain_team(session, org.id, person.teams[0] if person.teams else people.DEFAULT)
    same = said.canonical, person.subject
    identity = await identities.make(session, user, same, provider=word.provider, team_id=team.id, at=word.at)
    if identity is None:
        raise Conflict("This person has just been made: try again.", code="sign_on_again")
    if said.roles:
        user.role_from = identity.id
    who = themselves(user, identity, word.address)
    if team_made:
        await audit.record(session, who, "team.create", team.id, name=team.name)
    await audit.record(session, who, "user.create", user.id, email=user.email, role=user.role, provider=word.provider)
    found = await identities.find(session, said.canonical, person.subject)
    assert found is not None
    return found


async def _not_before(session: AsyncSession, word: Word) -> None:
    """Raises Unauthenticated for a token of before its person was removed here: whoever has one would not be put out by that."""
    at = await identities.departed(session, word.said.canonical, word.person.subject)
    if at is not None and not word.final and word.at <= at:
        raise Unauthenticated("This user was removed after the token was made.", code="sign_on_lost")


def _taken(word: Word) -> Forbidden:
    address = word.person.address
    line = shlex.join(["mindgw", "users", "link", address, word.provider, word.person.subject])
    said = f"There is a user {address} here already who does not come from this provider."
    return Forbidden(said, code="address_taken", hint=f"an administrator who is sure that you are the same person says: {line}")


async def _org(session: AsyncSession, said: Provider) -> Org:
    """The organisation of a provider. Raises Forbidden."""
    named = [col(Org.name) == said.org] if said.org else []
    row = (await session.exec(select(Org).where(*named).order_by(col(Org.created_at), col(Org.id)).limit(1))).first()
    if row is None:
        raise Forbidden(f"The settings send people to an organisation {said.org!r}, which there is not.", code="org_missing")
    return row


async def _highest(session: AsyncSession, org_id: str, names: Sequence[str]) -> str:
    """The name of the highest of these roles. Raises Forbidden for one that there is not."""
    found = await access.roles(session, org_id, names)
    missing = [name for name, role in found.items() if not role.mask and not role.rank]
    if missing:
        raise Forbidden(f"The settings give a role {missing[0]!r}, which there is not.", code="role_missing")
    return max(found.values(), key=lambda role: (role.rank, role.name)).name


# -- what they are -----------------------------------------------------------------------------------------------------


async def _adopt_role(session: AsyncSession, who: Principal, user: User, identity: Identity, word: Word) -> bool:
    """Where the settings say nothing of roles, somebody keeps what people gave them; what they had by a claim they have no more."""
    mapped = bool(word.said.roles)
    if word.person.roles is None or not (mapped or user.role_from == identity.id):
        return False
    role, source = await _highest(session, user.org_id, word.person.roles), identity.id if mapped else ""
    before = user.role
    if role == before:
        user.role_from = source
        return False
    alone = before == ADMIN and await _is_alone(session, who, user)
    rows.change(user, role=role, role_from=source)
    facts = {"email": user.email, "before": before, "role": role, "provider": word.provider, **_told_alone(alone, user)}
    await audit.record(session, who, "user.update", user.id, **facts)
    return True


async def _adopt_teams(session: AsyncSession, who: Principal, user: User, identity: Identity, word: Word) -> bool:
    """Roles in teams that the provider has a say in, and the teams of their keys: one that is in a team that they lose is moved, and so
    loses what that team has."""
    if word.person.teams is None:
        return False
    team_ids = []
    for name in word.person.teams:
        team, made = await people.obtain_team(session, user.org_id, name)
        if made:
            await audit.record(session, who, "team.create", team.id, name=team.name)
        team_ids.append(team.id)
    bound = await identities.bind_teams(session, identity, team_ids)
    changed = bool(bound.gone or bound.fresh)
    if not word.said.teams and not changed:
        return False
    key = await identities.key_of(session, identity)
    first = team_ids[0] if team_ids else (await people.get_or_create_team(session, user.org_id)).id
    if key.team_id != first and key.team_id not in team_ids:
        rows.change(key, team_id=first)
        changed = True
    moved = await identities.move_keys(session, user.id, bound.gone, first)
    if changed:
        facts = {"email": user.email, "teams": list(word.person.teams), "keys": moved, "provider": word.provider}
        await audit.record(session, who, "user.update", user.id, **facts)
    return changed
