"""By what identity providers know people here: shown, linked to somebody who is here already, taken away. Sign-on itself is `arrivals`."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import handing, people
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.errors import BadRequest, Conflict, NotFound
from mindgw.providers import Provider
from mindgw.store import audit, identities, rows, users
from mindgw.store import people as stored
from mindgw.store.database import Database
from mindgw.store.tables import Identity, Org, User
from mindgw.store.users import ACTIVE, DISABLED, INVITED, LAPSED

#: An object id of Entra.
_OID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class IdentityView(Struct, frozen=True, kw_only=True):
    """By what a provider knows somebody."""

    id: str
    #: Name of the provider in the settings.
    provider: str
    issuer: str
    #: `sub`; of Entra the object id.
    subject: str
    #: Id of the key that their tokens stand for.
    key_id: str
    created_at: datetime
    #: When the newest token was made by which they came; None: they have not come yet.
    claims_at: datetime | None
    #: When the provider last let us know that they are one of its people; None: never.
    vouched_at: datetime | None
    #: Whether it can be asked about them without their being there.
    asked: bool


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As whom somebody is to be known."""

    provider: Annotated[str, Meta(max_length=63)]
    subject: Annotated[str, Meta(min_length=1, max_length=255)]


async def listing(database: Database, who: Principal, reference: str) -> Page[IdentityView]:
    """`reference` is the id or the address of a user, here and below. Raises NotFound, as all of them do."""
    async with database.read() as session:
        row = await users.find(session, who.org_id, reference)
        return Page([_view(one) for one in await identities.of_user(session, row.id)])


async def link(database: Database, who: Principal, providers: Mapping[str, Provider], reference: str, wish: Link) -> IdentityView:
    """From now on whoever the provider knows as that is this user. Raises Forbidden unless who asks stands above the user, or is the user
    and asks by a session; BadRequest for a subject that cannot be one; Conflict where somebody is known so already."""
    handing.check_lasting(who)
    async with database.write() as session:
        said = await _provider(session, who, providers, wish.provider)
        subject = _subject(said, wish.subject)
        row = await users.find(session, who.org_id, reference, lock=True)
        await people.may_change(session, who, row, oneself=True)
        await _may_be_linked(session, row, said)
        team_id = await _team(session, who, row)
        same = said.canonical, subject
        made = await identities.make(session, row, same, provider=wish.provider, team_id=team_id, at=identities.NEVER)
        if made is None:
            hint = "`mindgw users identities USER` shows who is known so; `mindgw users unlink` or `remove` makes room"
            raise Conflict("Somebody here is known so already.", code="identity_taken", hint=hint)
        if row.state == INVITED:
            rows.change(row, state=ACTIVE, invite_digest=None, invite_expires_at=None)
        await audit.record(session, who, "identity.link", row.id, email=row.email, provider=wish.provider, subject=subject)
        return _view(made)


async def unlink(
    database: Database, who: Principal, reference: str, identity: str, revoked: Callable[[str], None], *, forget: Callable[[], None]
) -> IdentityView:
    """The provider's word lets nobody in as this user any more: what came of it ends, sessions, tokens and teams. `identity` is an id, or
    the name of the provider; `revoked` takes the id of a key that is good no longer, `forget` has sessions asked for again. Raises as
    `link`."""
    async with database.write() as session:
        row = await users.find(session, who.org_id, reference, lock=True)
        await people.may_change(session, who, row, oneself=True)
        found = next((one for one in await identities.of_user(session, row.id) if identity in (one.id, one.provider)), None)
        if found is None:
            raise NotFound(f"{row.email} is not known by {identity[:63]!r}.", hint=f"`mindgw users identities {row.email}` shows by whom")
        shown = _view(found)
        ended = await identities.unmake(session, found, clock.utcnow())
        facts = {"email": row.email, "provider": shown.provider, "subject": shown.subject, "sessions": ended}
        await audit.record(session, who, "identity.unlink", row.id, **facts)
    revoked(shown.key_id)
    forget()
    return shown


async def _provider(session: AsyncSession, who: Principal, providers: Mapping[str, Provider], name: str) -> Provider:
    """The provider of that name, whose people are of the organisation of who asks. Raises NotFound."""
    said = providers.get(name)
    if said is not None:
        org = await session.get(Org, who.org_id)
        if org is not None and (org.name == said.org if said.org else who.is_home):
            return said
    raise NotFound(f"There is no identity provider {name[:63]!r} here.", hint="`mindgw auth check` shows which there are")


def _subject(said: Provider, text: str) -> str:
    """Raises BadRequest."""
    subject = text.strip().lower() if said.is_entra else text
    if said.is_entra and _OID.fullmatch(subject) is None:
        raise BadRequest("Of Entra 'subject' is an object id, such as 0f7d3b1e-6f0d-4c55-9f0a-9d2f6d1f5c11.", param="subject")
    if not subject.isprintable():
        raise BadRequest("'subject' must be what the provider says as 'sub'.", param="subject")
    return subject


async def _may_be_linked(session: AsyncSession, row: User, said: Provider) -> None:
    """Raises Conflict."""
    if row.service:
        raise Conflict(f"{row.email} is a service account, which does not sign in.")
    if row.state in (DISABLED, LAPSED):
        raise Conflict(f"{row.email} is {row.state}.", code="user_disabled", hint=f"mindgw users enable {row.email}")
    if any(one.issuer == said.canonical for one in await identities.of_user(session, row.id)):
        hint = f"mindgw users unlink {row.email} PROVIDER"
        raise Conflict(f"{row.email} is known by this provider already, as somebody else or so.", code="identity_linked", hint=hint)


async def _team(session: AsyncSession, who: Principal, row: User) -> str:
    """The team of the key that tokens of somebody stand for, until their provider says which: one of their own, else the default one."""
    own = await users.team_ids(session, row.id)
    if own:
        return min(own)
    team, made = await stored.obtain_team(session, row.org_id, stored.DEFAULT)
    if made:
        await audit.record(session, who, "team.create", team.id, name=team.name)
    return team.id


def _view(row: Identity) -> IdentityView:
    return IdentityView(
        id=row.id,
        provider=row.provider,
        issuer=row.issuer,
        subject=row.subject,
        key_id=row.key_id,
        created_at=row.created_at,
        claims_at=row.claims_at if row.claims_at != identities.NEVER else None,
        vouched_at=row.vouched_at if row.vouched_at != identities.NEVER else None,
        asked=row.refresh is not None,
    )
