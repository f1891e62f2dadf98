"""People whom a provider sends: made when they are new, and made what the provider says they are. Audited as every change is.

Somebody is found by (issuer, subject) alone. An address that is somebody's already makes nobody that one.
"""

import shlex
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control.principal import Principal
from mindgw.core.claims import Person, Shape
from mindgw.errors import Conflict, Forbidden, Unauthenticated
from mindgw.providers import NONE, Provider
from mindgw.store import access, audit, identities, people, rows, sessions, users
from mindgw.store.identities import Known
from mindgw.store.tables import Identity, Org, User
from mindgw.store.users import ACTIVE, LAPSED, NewUser


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
    """Raises Unauthenticated for somebody who is shut out here, Forbidden where the settings and what is stored do not go together."""
    known = await identities.find(session, word.said.canonical, word.person.subject, lock=True)
    is_new = known is None
    identity, user = known or await _make(session, word)
    org = await session.get_one(Org, user.org_id)
    if user.state not in (ACTIVE, LAPSED) or org.state != ACTIVE:
        raise Unauthenticated("This user may not sign in.", code="user_disabled")
    if user.state == LAPSED and (not word.final or word.at < identity.claims_at):
        raise Unauthenticated("The provider did not vouch for this user any more: sign in again.", code="sign_on_lost")
    if word.at < identity.claims_at:
        return Arrival(user, identity, changed=False)
    who = _who(user, identity, word.address)
    changed = await _adopt_role(session, who, user, identity, word, keep=not is_new)
    changed |= await _adopt_teams(session, who, user, identity, word)
    if user.state == LAPSED:
        rows.change(user, state=ACTIVE)
        await audit.record(session, who, "user.return", user.id, email=user.email, provider=word.provider)
        changed = True
    identity.claims_at, identity.provider = word.at, word.provider
    identity.vouched_at = max(word.at, identity.vouched_at or word.at)
    session.add(identity)
    await session.flush()
    return Arrival(user, identity, changed and not is_new)  # nothing is remembered of whoever is new


async def lapse(session: AsyncSession, known: Known, why: str, address: str = "") -> bool:
    """The provider does not vouch for somebody any more: keys are refused and sessions are over, until it does again. False when they were
    out already."""
    user = await rows.locked(session, User, known.user.id)
    if user is None or user.state != ACTIVE:
        return False
    rows.change(user, state=LAPSED)
    ended = await sessions.end(session, user.id, clock.utcnow())
    await sessions.unseal(session, user.id)
    await audit.record(session, _who(user, known.identity, address), "user.lapse", user.id, email=user.email, why=why, sessions=ended)
    return True


def _who(user: User, identity: Identity, address: str) -> Principal:
    return Principal(org_id=user.org_id, is_home=False, user_id=user.id, email=user.email, key_id=identity.key_id, address=address)


# -- whoever is new ----------------------------------------------------------------------------------------------------


async def _make(session: AsyncSession, word: Word) -> Known:
    said, person = word.said, word.person
    org = await _org(session, said)
    role = await _highest(session, org.id, person.roles)
    wanted = NewUser(org_id=org.id, email=people.clean_email(person.address), name=person.name, role=role)
    if not word.final and await users.was_removed(session, org.id, wanted.email):
        raise Unauthenticated("This user was removed here: sign in anew.", code="user_disabled")
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
    who = _who(user, identity, word.address)
    if team_made:
        await audit.record(session, who, "team.create", team.id, name=team.name)
    await audit.record(session, who, "user.create", user.id, email=user.email, role=user.role, provider=word.provider)
    found = await identities.find(session, said.canonical, person.subject)
    assert found is not None
    return found


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


async def _adopt_role(session: AsyncSession, who: Principal, user: User, identity: Identity, word: Word, *, keep: bool) -> bool:
    """Where the settings say nothing of roles, somebody who is there keeps what people gave them, but not what a provider did."""
    role = await _highest(session, user.org_id, word.person.roles)
    if keep and not word.said.roles and user.role != identity.role:
        identity.role = ""
        return False
    identity.role = role
    if role == user.role:
        return False
    before = user.role
    rows.change(user, role=role)
    await audit.record(session, who, "user.update", user.id, email=user.email, before=before, role=role, provider=word.provider)
    return True


async def _adopt_teams(session: AsyncSession, who: Principal, user: User, identity: Identity, word: Word) -> bool:
    """Roles in teams that the provider has a say in, and the teams of their keys: none stays in one that they are in no longer by that."""
    team_ids = []
    for name in word.person.teams:
        team, made = await people.obtain_team(session, user.org_id, name)
        if made:
            await audit.record(session, who, "team.create", team.id, name=team.name)
        team_ids.append(team.id)
    gone, changed = await identities.bind_teams(session, user.id, word.said.canonical, team_ids)
    key = await identities.key_of(session, identity)
    if key.team_id not in team_ids and (word.said.teams or key.team_id in gone):
        first = team_ids[0] if team_ids else (await people.get_or_create_team(session, user.org_id)).id
        if key.team_id != first:
            rows.change(key, team_id=first)
            changed = True
    for lost in await identities.keys_in(session, user.id, gone):
        rows.change(lost, team_id=key.team_id)
        await audit.record(session, who, "key.update", lost.id, name=lost.name, team_id=lost.team_id, provider=word.provider)
    if changed:
        await audit.record(session, who, "user.update", user.id, email=user.email, teams=list(word.person.teams), provider=word.provider)
    return changed
