"""API keys as management sees them. Every change is audited in its own transaction; news goes out when it is on the disk."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.config import Keys as Policy
from mindgw.control import handing, key_bounds, key_policy, owners
from mindgw.control.key_bounds import Bounds
from mindgw.control.pages import Page, page_of
from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.errors import BadRequest, Conflict, Forbidden, NotFound
from mindgw.store import audit, keys, people, tenants
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.tables import Key, Team

#: Classes of requests, the most urgent first.
PRIORITIES = ("high", "normal", "batch", "sheddable")

NO_POLICY = Policy()

Name = Annotated[str, Meta(min_length=1, max_length=people.MAX_NAME)]


class KeyView(Struct, frozen=True, kw_only=True):
    """A key without its secret."""

    id: str
    name: str
    #: Name of the team and address of the person that it belongs to.
    team: str | None
    user: str | None
    #: Name of the role that it acts with; None: that of the person that it belongs to, or user.
    role: str | None
    priority: str
    trusted_proxy: bool
    #: active, expired or revoked.
    state: str
    #: How it looks in part, to recognise it by.
    masked: str
    #: What it is good for: globs over models, routes, networks; empty: all.
    models: list[str]
    routes: list[str]
    addresses: list[str]
    #: Requests and tokens a minute, and requests at once; None: no limit of its own.
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    labels: dict[str, str]
    created_at: datetime
    expires_at: datetime | None
    #: When the server's policy ends it, unless it is rotated or used before; None: never.
    ends_at: datetime | None
    rotated_at: datetime | None
    #: Until when the secret before the last rotation is good; None: there is none.
    prior_until: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    version: int


class KeyMade(KeyView, frozen=True, kw_only=True):
    """A new key, with the secret that is never shown again."""

    key: str


class KeyWish(Bounds, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key to be made is like. Team and user are made when they do not exist, by who may make them; without a team it belongs to the
    default one."""

    name: Name
    team: Name | None = None
    #: E-mail address.
    user: Name | None = None
    #: Priority class: high, normal, batch or sheddable; empty: normal.
    priority: str = ""
    trusted_proxy: bool = False
    #: Name of the role that it acts with; that of the person that it belongs to, or user, when not given.
    role: str | None = None
    #: When it ends; when not given, as late as the policy allows.
    expires_at: datetime | None = None


class KeyChange(Bounds, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be different from now on; what it does not name stays."""

    name: Name | UnsetType = UNSET
    #: Team that it belongs to; made when missing.
    team: Name | UnsetType = UNSET
    #: E-mail address of who it belongs to; made when missing; null: nobody.
    user: Name | UnsetType | None = UNSET
    #: Name of the role that it acts with; null: that of the person that it belongs to, or user.
    role: str | UnsetType | None = UNSET
    #: Priority class: high, normal, batch or sheddable; empty: normal.
    priority: str | UnsetType = UNSET
    trusted_proxy: bool | UnsetType = UNSET
    #: When it ends; null: as late as the policy allows.
    expires_at: datetime | UnsetType | None = UNSET


async def create(database: Database, pepper: bytes, who: Who | str, wish: KeyWish, policy: Policy = NO_POLICY) -> KeyMade:
    """Raises what `make` does."""
    async with database.write() as session:
        return await make(session, pepper, who, wish, policy)


async def make(session: AsyncSession, pepper: bytes, who: Who | str, wish: KeyWish, policy: Policy) -> KeyMade:
    """A key, which is one once the session is. Raises BadRequest when a name cannot be one, there is no such class or role, or its bounds
    make no sense, Forbidden for a pass, for what whoever makes it may not hold, and for bounds that are wider than those of the key that
    makes it."""
    handing.check_lasting(who)
    check_priority(who, wish.priority)
    expires_at = key_policy.check(wish.expires_at, clock.utcnow(), policy)
    bounds = key_bounds.columns(wish, {})
    org_id = await tenants.own(session)
    await handing.check_named(session, org_id, wish.role)
    team = await owners.team(session, who, org_id, wish.team)
    user = await owners.person(session, who, org_id, wish.user, kernel.CREATE) if wish.user else None
    role = owners.pinned(who, user, wish.role)
    await handing.check_acting(session, who, handing.Acting(org_id, user, role, team.id), kernel.CREATE)
    wanted = keys.NewKey(
        name=clean(wish.name),
        org_id=org_id,
        team_id=team.id,
        user_id=user.id if user else None,
        role=role,
        priority=wish.priority,
        trusted_proxy=wish.trusted_proxy,
        expires_at=expires_at,
        **key_bounds.inherited(await key_bounds.of_maker(session, who), bounds),
    )
    row, secret = await keys.create(session, wanted, pepper)
    owner = {"user": user.id, "email": user.email} if user is not None else {}
    await audit.record(session, who, "key.create", row.id, name=row.name, team=team.name, role=row.role, **owner)
    (view,) = await views(session, [row], policy)
    return made(view, secret)


def made(view: KeyView, secret: str) -> KeyMade:
    """A key with its secret."""
    return KeyMade(**{field: getattr(view, field) for field in view.__struct_fields__}, key=secret)


def check_priority(who: Who | str, priority: str) -> None:
    """Raises BadRequest when there is no such class, Forbidden for one that stands before everybody else, unless it is given by whoever
    runs the server."""
    if priority not in {"", *PRIORITIES}:
        known = f"{', '.join(PRIORITIES[:-1])} or {PRIORITIES[-1]}"
        raise BadRequest(f"'priority' must be {known}, not {priority[:63]!r}.", param="priority")
    if priority == PRIORITIES[0] and isinstance(who, Principal) and not who.is_home:
        raise Forbidden(f"Who stands before everybody else ({priority}) says whoever runs the server.", code="not_yours")


async def listing(database: Database, *, after: str | None = None, limit: int, policy: Policy = NO_POLICY) -> Page[KeyView]:
    """Keys in the order of their making, revoked ones too."""
    async with database.read() as session:
        rows = await keys.page(session, after=after, limit=limit)
        return page_of(await views(session, rows, policy), limit)


async def show(database: Database, reference: str, policy: Policy = NO_POLICY) -> KeyView:
    """`reference` is an id or a name. Raises NotFound, and Conflict when several good keys have that name."""
    async with database.read() as session:
        (view,) = await views(session, [await find(session, reference)], policy)
        return view


async def revoke(
    database: Database, who: Who | str, reference: str, revoked: Callable[[str], None], *, version: int | None = None
) -> KeyView:
    """Ends a key; a second time changes nothing. Raises NotFound, Conflict, PreconditionFailed, Forbidden for a key that can do more than
    whoever ends it. The callback runs once the key is dead on the disk."""
    async with database.write() as session:
        found = await find(session, reference)
        await handing.check_strength(session, who, await handing.acting(session, found))
        fresh = found.revoked_at is None
        row = await keys.revoke(session, found.id, clock.utcnow(), version=version)
        if fresh:
            await audit.record(session, who, "key.revoke", row.id, name=row.name)
        (view,) = await views(session, [row])
    revoked(view.id)
    return view


def clean(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise BadRequest("A key's name has printable characters and is not blank.", param="name")
    return name.strip()


async def find(session: AsyncSession, reference: str) -> Key:
    """A key by its id, or a good one by its name. Raises NotFound, Conflict."""
    row = await keys.get(session, reference)
    if row is not None:
        return row
    named = (await session.exec(select(Key).where(col(Key.name) == reference, col(Key.revoked_at).is_(None)).limit(2))).all()
    if len(named) > 1:
        raise Conflict(f"Several keys are named {reference!r}; say which by its id.", hint="`mindgw keys list` shows the ids")
    if not named:
        raise NotFound(f"There is no key {reference!r}.", hint=keys.SEE)
    return named[0]


async def views(session: AsyncSession, rows: Sequence[Key], policy: Policy = NO_POLICY) -> list[KeyView]:
    """Keys without their secrets."""
    teams = await people.names(session, Team, {row.team_id for row in rows if row.team_id})
    users = await people.emails(session, {row.user_id for row in rows if row.user_id})
    now = clock.utcnow()
    return [
        KeyView(
            id=row.id,
            name=row.name,
            team=teams.get(row.team_id or ""),
            user=users.get(row.user_id or ""),
            role=row.role,
            priority=row.priority,
            trusted_proxy=row.trusted_proxy,
            state=_state(row, now, ends),
            masked=f"mgw_{row.id}_…{row.last4}",
            models=row.scopes.get("models", []),
            routes=row.scopes.get("routes", []),
            addresses=row.scopes.get("addresses", []),
            rpm=row.rpm,
            tpm=row.tpm,
            concurrency=row.concurrency,
            labels=row.labels,
            created_at=row.created_at,
            expires_at=row.expires_at,
            ends_at=ends,
            rotated_at=row.rotated_at,
            prior_until=row.prior_until if row.prior_until is not None and row.prior_until > now else None,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            version=row.version,
        )
        for row, ends in ((row, key_policy.ends(row, policy)) for row in rows)
    ]


def _state(row: Key, now: datetime, ends: datetime | None) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if ends is not None and ends <= now else "active"
