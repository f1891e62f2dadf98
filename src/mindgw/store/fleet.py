"""GPU boxes: the tokens that let them in, and the workers that they become."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, update
from sqlalchemy import select as columns
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import Conflict, Forbidden, NotFound
from mindgw.store import rows
from mindgw.store.tables import JoinToken, Worker

State = Literal["pending", "active", "quarantined", "locked", "removed"]

_SEE_WORKERS = "`mindgw workers list` shows them all"
_LOOK = {"quarantined": "`mindgw workers release NAME` when you have looked at it"}


async def add_join_token(session: AsyncSession, token: JoinToken) -> JoinToken:
    """Stores the public half of a token; `control.invitation.mint` makes both halves."""
    session.add(token)
    await session.flush()
    return token


async def join_token(session: AsyncSession, token_id: str, now: datetime) -> JoinToken:
    """A token that lets somebody in now. Raises NotFound (join_token_unknown) or Forbidden (join_token_revoked, _expired, _used)."""
    row = await rows.locked(session, JoinToken, token_id)
    if row is None:
        raise NotFound("The server does not know this join token.", code="join_token_unknown")
    if row.revoked_at is not None:
        raise Forbidden("This join token was revoked.", code="join_token_revoked")
    if row.uses >= row.max_uses:
        raise Forbidden("This join token was used already.", code="join_token_used")
    if row.expires_at <= now:
        raise Forbidden(f"This join token expired at {row.expires_at:%Y-%m-%d %H:%M} UTC.", code="join_token_expired")
    return row


async def use_join_token(session: AsyncSession, token_id: str, now: datetime) -> JoinToken:
    """Counts one use of a token; of many at once only `max_uses` succeed. Raises what `join_token` raises. Call it in the
    transaction that adds the worker, so that a join that fails costs no use."""
    row = await join_token(session, token_id, now)
    return rows.change(row, uses=row.uses + 1)


async def join_tokens(session: AsyncSession, *, after: str | None = None, limit: int = rows.PAGE) -> Sequence[JoinToken]:
    """Tokens in the order of their making, those that are spent too."""
    return await rows.page(session, JoinToken, after=after, limit=limit)


async def revoke_join_token(session: AsyncSession, token_id: str, at: datetime, *, version: int | None = None) -> JoinToken:
    """Ends a token; doing it twice is no error. Raises NotFound, PreconditionFailed."""
    row = await rows.locked(session, JoinToken, token_id)
    if row is None:
        raise NotFound(f"There is no join token {token_id!r}.", hint="`mindgw join-tokens list` shows them all")
    rows.expect(row, version)
    return row if row.revoked_at is not None else rows.change(row, revoked_at=at)


async def forget_join_tokens(session: AsyncSession, now: datetime, *, after: timedelta = timedelta(days=30)) -> None:
    """Deletes tokens that expired long ago: nobody asks for them any more, and every run of `init` makes one."""
    gone = select(JoinToken).where(col(JoinToken.expires_at) < now - after).limit(rows.PAGE)
    for row in await session.exec(gone):
        await session.delete(row)


async def add_worker(
    session: AsyncSession,
    name: str,
    public_key: bytes,
    *,
    state: State = "active",
    replace: bool = False,
    hostname: str = "",
    software: str = "",
) -> Worker:
    """A new worker. Raises Conflict (name_taken) while another has that name, unless `replace`, which removes the other."""
    other = (await session.exec(select(Worker).where(*_present(name)).with_for_update())).first()
    if other is not None and not replace:
        raise _taken(name)
    if other is not None:
        rows.change(other, state_admin="removed", reason="replaced by another machine")
        await session.flush()
    row = Worker(name=name, public_key=public_key, state_admin=state, hostname=hostname, software=software)
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError:  # on Postgres another join took the name in the same moment
        raise _taken(name) from None
    return row


async def worker(session: AsyncSession, worker_id: str) -> Worker | None:
    """The worker with this id, removed ones too."""
    return await session.get(Worker, worker_id)


async def find_worker(session: AsyncSession, reference: str) -> Worker:
    """A worker that was not removed, by id or name; a name wins. Raises NotFound."""
    present = col(Worker.state_admin) != "removed"
    wanted = select(Worker).where(or_(col(Worker.id) == reference, col(Worker.name) == reference), present)
    found = sorted((await session.exec(wanted)).all(), key=lambda row: row.name != reference)
    if not found:
        raise NotFound(f"There is no worker {reference!r}.", hint=_SEE_WORKERS)
    return found[0]


async def workers(session: AsyncSession, *, after: str | None = None, limit: int = rows.PAGE, removed: bool = False) -> Sequence[Worker]:
    """Workers in the order of their joining."""
    where = () if removed else (col(Worker.state_admin) != "removed",)
    return await rows.page(session, Worker, *where, after=after, limit=limit)


class Said(NamedTuple):
    """What the database says of a worker, but for its key."""

    name: str
    tags: Mapping[str, Any]
    state: State
    reason: str
    drained: bool


async def said(session: AsyncSession, present: Collection[str]) -> dict[str, Said]:
    """By the ids of workers: of all that were not removed, and of those in `present` that were."""
    found = await _said(session, col(Worker.state_admin) != "removed")
    missing = [id for id in present if id not in found]
    return found | await _said(session, col(Worker.id).in_(missing)) if missing else found


async def _said(session: AsyncSession, which: ColumnElement[bool]) -> dict[str, Said]:
    named: list[Any] = [Worker.id, Worker.name, Worker.tags, Worker.state_admin, Worker.reason, Worker.drained]
    found = await (await session.connection()).execute(columns(*named).where(which))
    return {id: Said(*rest) for id, *rest in found}


async def set_state(session: AsyncSession, worker_id: str, state: State, *, reason: str = "", version: int | None = None) -> Worker:
    """What is said of a worker; a removed one stays removed. Raises NotFound, PreconditionFailed."""
    row = await rows.locked(session, Worker, worker_id)
    if row is None or (row.state_admin == "removed" and state != "removed"):
        raise NotFound(f"There is no worker {worker_id!r}.", hint=_SEE_WORKERS)
    rows.expect(row, version)
    return row if row.state_admin == state else rows.change(row, state_admin=state, reason=reason)


async def set_drained(session: AsyncSession, worker_id: str, *, drained: bool, version: int | None = None) -> Worker:
    """Whether an operator wants nothing new sent to a worker. Raises NotFound; Conflict for one of which something weightier is said;
    PreconditionFailed."""
    row = await rows.locked(session, Worker, worker_id)
    if row is None or row.state_admin == "removed":
        raise NotFound(f"There is no worker {worker_id!r}.", hint=_SEE_WORKERS)
    if row.state_admin != "active":
        raise Conflict(f"Worker {row.name!r} is {row.state_admin}.", hint=_LOOK.get(row.state_admin, ""))
    rows.expect(row, version)
    return row if row.drained == drained else rows.change(row, drained=drained)


async def quarantine(session: AsyncSession, worker_id: str, reason: str) -> Worker | None:
    """Writes down that a worker takes nothing until an operator has looked; None when something weightier is said of it already, or it
    is gone."""
    row = await rows.locked(session, Worker, worker_id)
    if row is None or row.state_admin != "active":
        return None
    return rows.change(row, state_admin="quarantined", reason=reason)


async def advance_epoch(session: AsyncSession, worker_id: str, *, at_least: int = 0) -> int:
    """The number of a session that begins now: one more than the last one and than `at_least`. Not a change: the version stays.
    Raises NotFound."""
    row = await rows.locked(session, Worker, worker_id)
    if row is None:
        raise NotFound(f"There is no worker {worker_id!r}.", hint=_SEE_WORKERS)
    row.epoch = max(row.epoch, at_least) + 1
    return row.epoch


async def note_report(
    session: AsyncSession,
    worker_id: str,
    at: datetime,
    *,
    models: list[dict[str, Any]],
    engine: dict[str, Any],
    hostname: str = "",
    software: str = "",
) -> None:
    """Keeps what a worker last said of itself, to be shown while it is away. Not a change: the version stays."""
    facts: dict[str, Any] = {"hostname": hostname, "software": software}
    given = {name: value for name, value in facts.items() if value}
    await session.exec(update(Worker).where(col(Worker.id) == worker_id).values(models=models, engine=engine, last_seen_at=at, **given))


def _present(name: str) -> tuple[Any, ...]:
    return col(Worker.name) == name, col(Worker.state_admin) != "removed"


def _taken(name: str) -> Conflict:
    return Conflict(f"There is a worker named {name!r} already.", param="name", code="name_taken")
