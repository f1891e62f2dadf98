"""What one organisation can see of the database: a session that is confined finds no rows of others, whoever forgets to ask for that.

It holds for statements about the classes of `tables`. What goes to the bare connection (sums of the ledger, budgets) must say itself whose
rows it wants: `org_of` tells.
"""

from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, and_, event, literal, or_, select
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import Forbidden, InternalError
from mindgw.store import people, tables
from mindgw.store.tables import AccessRule, AuditEntry, DeadLetter, Key, LedgerRow, Org, Quota, Rate, Role, RoleBinding, Story, Team, User

#: Where a session keeps what it is confined to.
_VIEW = "tenant"
#: Tables each row of which belongs to one organisation, by its own column.
OWNED = (AccessRule, DeadLetter, Key, LedgerRow, Story, Team, User)


class View(Struct, frozen=True):
    """What somebody can see."""

    #: Rows of this organisation alone.
    org_id: str
    #: Whether it is the one that runs the server, which sees, beside its own, what belongs to none, and which organisations there are.
    is_home: bool = False
    #: Only these of its teams, and their keys; None: all, and keys that belong to none.
    teams: frozenset[str] | None = None


def confine(session: AsyncSession, view: View) -> None:
    """From now on this session finds and stores what is in this view alone."""
    options = [with_loader_criteria(table, criterion, include_aliases=True) for table, criterion in _criteria(view).items()]

    def narrow(state: ORMExecuteState) -> None:
        if state.is_select or state.is_update or state.is_delete:
            state.statement = state.statement.options(*options)

    def watch(session: Session, _context: object, _instances: object) -> None:
        for row in (*session.new, *session.dirty):
            if getattr(row, "org_id", None) not in {view.org_id, None}:
                raise InternalError(f"a row of {type(row).__name__} was about to be stored for another organisation")
            if view.teams is not None and isinstance(row, Key) and row.team_id not in view.teams:
                raise Forbidden("You may do that in your own teams only.", code="not_yours")

    session.info[_VIEW] = view
    event.listen(session.sync_session, "do_orm_execute", narrow)
    event.listen(session.sync_session, "before_flush", watch)


def org_of(session: AsyncSession) -> str | None:
    """The organisation that a session is confined to; None: it sees all."""
    view = view_of(session)
    return view.org_id if view is not None else None


def view_of(session: AsyncSession) -> View | None:
    """What a session is confined to; None: it sees all."""
    found: View | None = session.info.get(_VIEW)
    return found


def _criteria(view: View) -> dict[type, ColumnElement[bool]]:
    org_id, is_home = view.org_id, view.is_home
    people = select(col(User.id)).where(col(User.org_id) == org_id)
    owned: dict[type, ColumnElement[bool]] = {table: col(table.org_id) == org_id for table in OWNED}
    return {
        **owned,
        **({} if view.teams is None else _in_teams(org_id, view.teams)),
        **({} if is_home else {Org: col(Org.id) == org_id}),
        Role: or_(col(Role.org_id) == org_id, col(Role.org_id).is_(None)),
        RoleBinding: col(RoleBinding.user_id).in_(people),
        tables.Identity: col(tables.Identity.user_id).in_(people),
        tables.Session: col(tables.Session.user_id).in_(people),
        AuditEntry: or_(col(AuditEntry.org_id) == org_id, *([col(AuditEntry.org_id).is_(None)] if is_home else [])),
        Quota: _scoped(Quota.scope, org_id, is_home),
        Rate: _scoped(Rate.scope, org_id, is_home),
    }


def _in_teams(org_id: str, teams: frozenset[str]) -> dict[type, ColumnElement[bool]]:
    return {
        Team: and_(col(Team.org_id) == org_id, col(Team.id).in_(teams)),
        Key: and_(col(Key.org_id) == org_id, col(Key.team_id).in_(teams)),
    }


def _scoped(scope: Any, org_id: str, is_home: bool) -> ColumnElement[bool]:
    """Scopes of the organisation, its teams, people and keys; those of models, and of whole organisations, belong to whoever runs the
    server."""
    kinds = (("team", Team), ("user", User), ("key", Key))
    own = [col(scope).in_(select(literal(f"{kind}:") + col(table.id)).where(col(table.org_id) == org_id)) for kind, table in kinds]
    whole = [col(scope).startswith("model:"), col(scope).startswith("org:")] if is_home else [col(scope) == f"org:{org_id}"]
    return or_(*whole, *own)


async def own(session: AsyncSession) -> str:
    """The organisation in which a session makes things: that which it is confined to, or the first one."""
    return org_of(session) or (await people.get_or_create_org(session)).id
