"""The audit log: written in the transaction of the change itself, so that neither exists without the other, and kept in one chain.

What a transaction records gets its numbers and links when the transaction commits, as the last thing in it: only for that moment must
others wait. A link is keyed with the `audit_key` of the session's database.
"""

from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.orm import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.clock import utcnow
from mindgw.core import chain
from mindgw.store.ids import new_id
from mindgw.store.tables import AuditEntry, AuditHead

#: What the first link of all has before it.
GENESIS = chain.genesis("audit")
#: Outcomes.
OK, REFUSED = "ok", "refused"
#: In a detail: the person behind the actor, {"user": id, "email": address}.
BY = "by"
#: Advisory lock of Postgres under which links are made: "audit" in ASCII. SQLite has one writer anyway.
_LOCK = 0x6175646974
#: Columns that a link is made of, in this order.
HASHED = ("id", "at", "actor", "action", "object", "detail", "org_id", "address", "outcome")

_AUDIT = AuditEntry.__table__  # type: ignore[attr-defined]
_HEADS = AuditHead.__table__  # type: ignore[attr-defined]
_PENDING = "audit_pending"
#: Where a session's database keeps the key of the chain, see `Database.audit_key`.
KEY = "audit_key"

_canonical = msgspec.json.Encoder(order="sorted").encode


class Who(Protocol):
    """Somebody who does something."""

    @property
    def actor(self) -> str:
        """Id of the key or session that asks, "agent:<id>", or "local" for a command on the server's own disk."""

    @property
    def org_id(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def user_id(self) -> str: ...

    @property
    def email(self) -> str: ...


def named(who: Who | str) -> str:
    """As the log names somebody."""
    return who if isinstance(who, str) else who.actor


async def record(session: AsyncSession, who: Who | str, action: str, target: str, **detail: Any) -> None:
    """`who` did `action` (noun.verb) to the object with id `target`. `detail` holds JSON values without fractions, and never a secret. It
    can be read once the transaction has committed. Raises TypeError or ValueError for values that have no one form."""
    _add(session, who, action, target, OK, detail)


async def refused(session: AsyncSession, who: Who | str, action: str, target: str, **detail: Any) -> None:
    """`who` wanted to do that and was not let; all else as `record`."""
    _add(session, who, action, target, REFUSED, detail)


def _add(session: AsyncSession, who: Who | str, action: str, target: str, outcome: str, detail: dict[str, Any]) -> None:
    actor, org_id, address = (who, "", "") if isinstance(who, str) else (who.actor, who.org_id, who.address)
    if not isinstance(who, str) and who.user_id:  # sessions are forgotten one day, and keys are given to somebody else
        detail = {**detail, BY: {"user": who.user_id, "email": who.email}}
    row = {
        "id": new_id(),
        "at": utcnow(),
        "actor": actor,
        "action": action,
        "object": target,
        "detail": detail,
        "org_id": org_id or None,
        "address": address,
        "outcome": outcome,
    }
    hashed(row)
    pending = session.info.setdefault(_PENDING, [])
    if not pending:
        event.listen(session.sync_session, "before_commit", _link, once=True)
    pending.append(row)


def hashed(row: Any) -> bytes:
    """What a link is made of: a mapping with the columns of the table."""
    detail = row["detail"]
    if _fractions(detail):
        raise TypeError("a detail of the audit log holds a fraction, which databases write in more than one way")
    return chain.canonical(tuple(_canonical(detail) if name == "detail" else row[name] for name in HASHED))


def _fractions(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_fractions, value.values()))
    return any(map(_fractions, value)) if isinstance(value, list | tuple) else isinstance(value, float)


def _link(session: Session) -> None:
    """Gives what is pending its place in the chain."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    last = connection.execute(select(_AUDIT.c.seq, _AUDIT.c.hash).order_by(_AUDIT.c.seq.desc()).limit(1)).first()
    seq, prev = (last.seq, last.hash or GENESIS) if last is not None else _archived(connection)
    made = []
    for row in session.info.pop(_PENDING):
        seq, prev = seq + 1, chain.link(session.info[KEY], prev, seq + 1, [hashed(row)])
        made.append({**row, "seq": seq, "hash": prev})
    connection.execute(insert(_AUDIT), made)


def _archived(connection: Connection) -> tuple[int, bytes]:
    """Where the chain goes on when all entries have left the database."""
    head = connection.execute(select(_HEADS.c.seq, _HEADS.c.hash).order_by(_HEADS.c.seq.desc()).limit(1)).first()
    return (head.seq, head.hash) if head is not None else (0, GENESIS)
