"""What one organisation can see of the database: a session that is confined finds no rows of others, whoever forgets to ask for that.

It holds for statements about the classes of `tables`. What goes to the bare connection (sums of the ledger, budgets) must say itself whose
rows it wants: `org_of` tells.
"""

from typing import Any

from sqlalchemy import ColumnElement, event, literal, or_, select
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import InternalError
from mindgw.store import people, tables
from mindgw.store.tables import AccessRule, AuditEntry, DeadLetter, Key, LedgerRow, Org, Quota, Rate, Role, RoleBinding, Team, User

#: Where a session keeps the organisation that it is confined to.
_ORG = "org_id"
#: Tables each row of which belongs to one organisation, by its own column.
OWNED = (AccessRule, DeadLetter, Key, LedgerRow, Team, User)


def confine(session: AsyncSession, org_id: str, *, is_home: bool) -> None:
    """From now on this session finds and stores rows of one organisation alone. The one that runs the server (`is_home`) sees, beside its
    own, what belongs to none."""
    options = [with_loader_criteria(table, criterion, include_aliases=True) for table, criterion in _criteria(org_id, is_home).items()]

    def narrow(state: ORMExecuteState) -> None:
        if state.is_select or state.is_update or state.is_delete:
            state.statement = state.statement.options(*options)

    def watch(session: Session, _context: object, _instances: object) -> None:
        for row in (*session.new, *session.dirty):
            if getattr(row, _ORG, None) not in {org_id, None}:
                raise InternalError(f"a row of {type(row).__name__} was about to be stored for another organisation")

    session.info[_ORG] = org_id
    event.listen(session.sync_session, "do_orm_execute", narrow)
    event.listen(session.sync_session, "before_flush", watch)


def org_of(session: AsyncSession) -> str | None:
    """The organisation that a session is confined to; None: it sees all."""
    found: str | None = session.info.get(_ORG)
    return found


def _criteria(org_id: str, is_home: bool) -> dict[type, ColumnElement[bool]]:
    people = select(col(User.id)).where(col(User.org_id) == org_id)
    owned: dict[type, ColumnElement[bool]] = {table: col(table.org_id) == org_id for table in OWNED}
    return {
        **owned,
        Org: col(Org.id) == org_id,
        Role: or_(col(Role.org_id) == org_id, col(Role.org_id).is_(None)),
        RoleBinding: col(RoleBinding.user_id).in_(people),
        tables.Session: col(tables.Session.user_id).in_(people),
        AuditEntry: or_(col(AuditEntry.org_id) == org_id, *([col(AuditEntry.org_id).is_(None)] if is_home else [])),
        Quota: _scoped(Quota.scope, org_id, is_home),
        Rate: _scoped(Rate.scope, org_id, is_home),
    }


def _scoped(scope: Any, org_id: str, is_home: bool) -> ColumnElement[bool]:
    """Scopes of the organisation, its teams, people and keys; those of models belong to whoever runs the server."""
    kinds = (("team", Team), ("user", User), ("key", Key))
    own = [col(scope).in_(select(literal(f"{kind}:") + col(table.id)).where(col(table.org_id) == org_id)) for kind, table in kinds]
    return or_(col(scope) == f"org:{org_id}", *own, *([col(scope).startswith("model:")] if is_home else []))


async def own(session: AsyncSession) -> str:
    """The organisation in which a session makes things: that which it is confined to, or the first one."""
    return org_of(session) or (await people.get_or_create_org(session)).id
