"""Join tokens as management sees them: made, listed, revoked. What one is made of stands in `invitation`."""

from datetime import datetime

from msgspec import Struct

from mindgw import clock
from mindgw.config import Config
from mindgw.control import invitation
from mindgw.control.invitation import Terms
from mindgw.control.pages import Page, page_of
from mindgw.control.secrets import Secrets
from mindgw.store import audit, fleet
from mindgw.store.audit import Who, named
from mindgw.store.database import Database
from mindgw.store.tables import JoinToken


class JoinTokenView(Struct, frozen=True, kw_only=True):
    """A token without its secret."""

    id: str
    #: active, used, expired or revoked.
    state: str
    #: The only worker name it is good for; None: any.
    name: str | None
    approve: str
    uses: int
    max_uses: int
    created_by: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    version: int


class JoinTokenMade(JoinTokenView, frozen=True, kw_only=True):
    """A new token, with the text that is never shown again."""

    token: str


async def create(database: Database, secrets: Secrets, config: Config, who: Who | str, terms: Terms) -> JoinTokenMade:
    """Raises BadRequest when the terms make no sense."""
    now = clock.utcnow()
    row, token = invitation.mint(secrets, config, now, terms, created_by=named(who))
    async with database.write() as session:
        await fleet.add_join_token(session, row)
        await audit.record(session, who, "join_token.create", row.id, max_uses=row.max_uses, name=row.name_bind)
    view = _view(row, now)
    return JoinTokenMade(**{field: getattr(view, field) for field in view.__struct_fields__}, token=token)


async def listing(database: Database, *, after: str | None = None, limit: int) -> Page[JoinTokenView]:
    """Tokens in the order of their making, spent ones too."""
    now = clock.utcnow()
    async with database.read() as session:
        rows = await fleet.join_tokens(session, after=after, limit=limit)
    return page_of([_view(row, now) for row in rows], limit)


async def revoke(database: Database, who: Who | str, token_id: str, *, version: int | None = None) -> JoinTokenView:
    """Ends a token; a second time changes nothing, and workers that joined with it stay. Raises NotFound, PreconditionFailed."""
    now = clock.utcnow()
    async with database.write() as session:
        row = await fleet.revoke_join_token(session, token_id, now, version=version)
        if row.revoked_at == now:
            await audit.record(session, who, "join_token.revoke", row.id)
    return _view(row, now)


def _view(row: JoinToken, now: datetime) -> JoinTokenView:
    return JoinTokenView(
        id=row.id,
        state=_state(row, now),
        name=row.name_bind,
        approve=row.approve,
        uses=row.uses,
        max_uses=row.max_uses,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        version=row.version,
    )


def _state(row: JoinToken, now: datetime) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.uses >= row.max_uses:
        return "used"
    return "expired" if row.expires_at <= now else "active"
