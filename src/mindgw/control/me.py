"""What people and keys see of themselves. A key sees what is its own; a session sees, and changes, what belongs to its user: a key may be
in many hands, and must not make itself others that can do more."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.config import Keys as Policy
from mindgw.control import handing, keys, people, quotas, usage
from mindgw.control.key_bounds import Bounds
from mindgw.control.keys import KeyMade, KeyView, KeyWish
from mindgw.control.live import Live
from mindgw.control.pages import Page
from mindgw.control.people import SessionView
from mindgw.control.principal import Principal
from mindgw.control.quotas import QuotaView
from mindgw.control.usage import Summary
from mindgw.core import access as kernel
from mindgw.core import routing
from mindgw.errors import BadRequest, Conflict, Forbidden, NotFound
from mindgw.gateway.lineup import Entry, Wanted
from mindgw.store import access, audit, sessions, users
from mindgw.store import people as stored
from mindgw.store.database import Database
from mindgw.store.tables import Key, Org, Rate, Team, User

#: Good keys that one person may have made for themselves.
MOST_KEYS = 100
#: Classes of requests that one may choose for oneself: none that is put before others.
PRIORITIES = ("", "normal", "batch", "sheddable")
#: How a session calls itself.
CURRENT = "current"
#: Most requests of one that are listed.
MOST = 1000


class MeView(Struct, frozen=True, kw_only=True):
    """Who asks."""

    #: key or session.
    kind: str
    #: Address and name of the person, or of the service account; None for a key that is nobody's.
    user: str | None
    name: str
    #: Name of the team of the key.
    team: str | None
    org: str
    roles: list[str]
    #: Each a verb and a resource.
    permissions: list[str]
    #: The one that asks; the other is None.
    key: KeyView | None
    session: SessionView | None


class RateView(Struct, frozen=True, kw_only=True):
    """How often one may ask."""

    #: key, user, team or org.
    scope: str
    #: Requests and tokens a minute, and requests at once; None: any number.
    rpm: int | None
    tpm: int | None
    concurrency: int | None


class LimitsView(Struct, frozen=True, kw_only=True):
    """All that holds one back."""

    quotas: list[QuotaView]
    rates: list[RateView]


class ModelView(Struct, frozen=True, kw_only=True):
    """A model that one may use now."""

    id: str
    aliases: list[str]
    kinds: list[str]


class KeyAsked(Bounds, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key for oneself is to be like."""

    name: keys.Name
    #: Name of a team in which one has a role; when not given, the default one.
    team: keys.Name | None = None
    #: normal, batch or sheddable; empty: normal.
    priority: str = ""
    #: Name of one of one's roles that the key acts with; all of them, when not given.
    role: Annotated[str, Meta(max_length=stored.MAX_NAME)] | None = None
    expires_at: datetime | None = None


# -- looking -----------------------------------------------------------------------------------------------------------


async def show(database: Database, who: Principal, policy: Policy) -> MeView:
    """Who it is that asks."""
    async with database.read() as session:
        user = await session.get(User, who.user_id) if who.user_id else None
        orgs = await stored.names(session, Org, {who.org_id})
        key = await session.get(Key, who.key_id) if who.key_id else None
        (shown,) = await keys.views(session, [key], policy) if key is not None else (None,)
        signed = await sessions.find(session, who.session_id) if who.session_id else None
    return MeView(
        kind="key" if who.key_id else "session",
        user=user.email if user is not None else None,
        name=user.name if user is not None else "",
        team=shown.team if shown is not None else None,
        org=orgs.get(who.org_id, ""),
        roles=list(who.rights.roles),
        permissions=kernel.names(who.rights.mask),
        key=shown,
        session=people.session_view(signed.session, who.session_id) if signed is not None else None,
    )


async def limits(database: Database, who: Principal) -> LimitsView:
    """Limits of the key, of its person, its team and its organisation, and how much of them is left: nobody is refused by what they cannot
    see."""
    async with database.read() as session:
        key = await session.get(Key, who.key_id) if who.key_id else None
        team = (key.team_id or "") if key is not None else ""
        scopes = {"key": who.key_id, "user": who.user_id, "team": team, "org": who.org_id}
        named = {f"{kind}:{id}": kind for kind, id in scopes.items() if id}
        held = (await session.exec(select(Rate).where(col(Rate.scope).in_(named)))).all()
    rates = [RateView(scope=row.scope.partition(":")[0], rpm=row.rpm, tpm=row.tpm, concurrency=row.concurrency) for row in held]
    if key is not None and (key.rpm, key.tpm, key.concurrency) != (None, None, None):
        rates.insert(0, RateView(scope="key", rpm=key.rpm, tpm=key.tpm, concurrency=key.concurrency))
    found = [await quotas.listing(database, scope) for scope in named]
    return LimitsView(quotas=[view for page in found for view in page.items], rates=rates)


async def used(database: Database, who: Principal, by: str, since: str, until: str) -> Summary:
    """What the key has used, or all keys of the person. Raises BadRequest, Forbidden for what machines did to who may not know them."""
    if by == "worker" and not who.may("read", "workers"):
        raise Forbidden("Your role does not know which machines there are.", code="not_yours")
    return await usage.summary(database, by, since, until, _own(who))


def _own(who: Principal) -> Mapping[str, str]:
    return {"key": who.key_id} if who.key_id else {"user": who.user_id}


async def models(database: Database, who: Principal, live: Live) -> Page[ModelView]:
    """Models that are served now and that one may use, by name."""
    async with database.read() as session:
        key = await session.get(Key, who.key_id) if who.key_id else None
        team = (key.team_id or "") if key is not None else ""
        about = access.subjects(who.rights, key_id=who.key_id, user_id=who.user_id, team_id=team)
        rules = await access.models(session, who.org_id, about)
        org = await session.get_one(Org, who.org_id)
    globs = key.scopes.get("models") if key is not None else None
    bounds = kernel.glob(globs) if globs else None
    home = routing.residency(org.labels or {}, key.labels or {} if key is not None else {})
    return Page(
        [
            ModelView(id=one.id, aliases=one.aliases, kinds=one.kinds)
            for one in live.served(home)
            if (rules is None or rules.permits((one.id, *one.aliases)))
            and (bounds is None or any(map(bounds.match, (one.id, *one.aliases))))
        ]
    )


async def queue(database: Database, who: Principal, live: Live) -> Page[Entry]:
    """What one has in the queue, in the order of its turns, then what runs."""
    async with database.read() as session:
        mine = [who.key_id] if who.key_id else await users.key_ids(session, who.user_id)
    ranked = await live.ranking(Wanted(keys=frozenset(mine)))
    return Page(await live.places_of(ranked[:MOST]))


# -- one's own keys ----------------------------------------------------------------------------------------------------


async def own_keys(database: Database, who: Principal, policy: Policy) -> Page[KeyView]:
    """The keys of the person, revoked ones too; a key sees itself alone."""
    async with database.read() as session:
        same = col(Key.id) == who.key_id if who.key_id else col(Key.user_id) == who.user_id
        rows = (await session.exec(select(Key).where(same).order_by(col(Key.created_at), col(Key.id)).limit(1000))).all()
        return Page(await keys.views(session, rows, policy))


async def make_key(database: Database, pepper: bytes, who: Principal, wish: KeyAsked, policy: Policy) -> KeyMade:
    """Raises BadRequest, Forbidden for a key or a pass, and for a role or a team that is not one's own, Conflict for too many."""
    _session_only(who)
    handing.check_lasting(who)
    if wish.priority not in PRIORITIES:
        raise BadRequest(f"'priority' must be {', '.join(PRIORITIES[1:])}, not {wish.priority[:63]!r}.", param="priority")
    bounds = {field: getattr(wish, field) for field in Bounds.__struct_fields__}
    async with database.write() as session:
        user = await users.find(session, who.org_id, who.user_id, lock=True)
        if len(await users.key_ids(session, user.id)) >= MOST_KEYS:
            raise Conflict(f"You have {MOST_KEYS} keys already.", code="too_many_keys", hint="revoke some that are not in use")
        await handing.check_named(session, who.org_id, wish.role)
        if wish.role is not None and wish.role not in who.rights.roles:
            raise Forbidden(f"You do not have the role {wish.role!r}.", code="not_your_role")
        team = await _own_team(session, user, wish.team)
        asked = KeyWish(
            name=wish.name, team=team, user=user.email, priority=wish.priority, role=wish.role, expires_at=wish.expires_at, **bounds
        )
        return await keys.make(session, pepper, who, asked, policy)


async def _own_team(session: AsyncSession, user: User, wished: str | None) -> str | None:
    """The team that a key of somebody's own is in: one of their own. Raises Forbidden, and BadRequest where there are several to choose
    from."""
    held = await users.team_ids(session, user.id)
    names = sorted((await session.exec(select(Team.name).where(col(Team.id).in_(held)))).all()) if held else [stored.DEFAULT]
    if wished is None and len(names) > 1:
        raise BadRequest(f"You have several teams ({', '.join(names[:10])}): say which one the key is for.", param="team")
    team = names[0] if wished is None else wished.strip()
    if team not in names:
        raise Forbidden(f"You have neither a role nor a key in a team {team[:80]!r}.", code="not_your_team")
    return team


async def revoke_key(
    database: Database, who: Principal, reference: str, revoked: Callable[[str], None], *, version: int | None = None
) -> KeyView:
    """Ends one's own key, by id or name; a key may end itself. Raises NotFound for everybody else's, Conflict, PreconditionFailed."""
    mine = (await own_keys(database, who, keys.NO_POLICY)).items
    by_id = [key for key in mine if key.id == reference]
    found = by_id or [key for key in mine if key.name == reference and key.revoked_at is None]
    if not found:
        raise NotFound(f"You have no key {reference!r}.", hint="`mindgw me keys list` shows them all")
    if len(found) > 1:
        raise Conflict(f"Several of your keys are named {reference!r}; say which by its id.")
    await _check_secret(database, found[0].id)
    return await keys.revoke(database, who, found[0].id, revoked, version=version)


async def _check_secret(database: Database, key_id: str) -> None:
    """Raises Conflict for a key without one: whoever ended it would have no tokens taken ever again."""
    async with database.read() as session:
        row = await session.get_one(Key, key_id)
    if row.provider:
        said = f"This key stands for your tokens of {row.provider}: without it none would ever be taken."
        raise Conflict(said, code="no_secret", hint="whoever looks after users revokes it")


# -- one's own sessions ------------------------------------------------------------------------------------------------


async def own_sessions(database: Database, who: Principal) -> Page[SessionView]:
    """Where one is signed in, the latest first. Raises Forbidden for a key."""
    _session_only(who)
    async with database.read() as session:
        found = await sessions.open_ones(session, who.user_id, clock.utcnow())
    return Page([people.session_view(row, who.session_id) for row in found])


async def end_sessions(database: Database, who: Principal) -> int:
    """Ends all sessions of one's own, the one that asks too; how many were still good. Raises Forbidden for a key."""
    _session_only(who)
    async with database.write() as session:
        user = await users.find(session, who.org_id, who.user_id)
        ended = await sessions.end(session, user.id, clock.utcnow())
        await audit.record(session, who, "session.end", user.id, email=user.email, sessions=ended)
    return ended


async def end_session(database: Database, who: Principal, session_id: str) -> int:
    """Ends a session of one's own, `current` is the one that asks; how many were still good. Raises Forbidden for a key, NotFound."""
    _session_only(who)
    wanted = who.session_id if session_id == CURRENT else session_id
    async with database.write() as session:
        found = await sessions.find(session, wanted)
        if found is None or found.user.id != who.user_id:
            raise NotFound(f"You have no session {session_id!r}.")
        ended = await sessions.end(session, who.user_id, clock.utcnow(), wanted)
        await audit.record(session, who, "session.end", wanted, email=found.user.email, sessions=ended)
    return ended


def _session_only(who: Principal) -> None:
    if not who.session_id:
        raise Forbidden("This takes a session, not an API key.", code="session_required", hint="`mindgw users accept` signs in")
