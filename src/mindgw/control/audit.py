"""The audit log as management sees it: read, handed out, checked. Changes record themselves, see `store.audit`."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.control import search, segments, witness
from mindgw.control.principal import Principal
from mindgw.control.secrets import Secrets
from mindgw.errors import BadRequest
from mindgw.quantities import duration
from mindgw.store import audit, audit_chain
from mindgw.store.audit_chain import Broken
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry, Key, Session, User
from mindgw_agent import identity

#: What is wrong is told one by one up to here, and counted from there on.
MOST = 1000


class AuditView(Struct, frozen=True, kw_only=True):
    """An entry."""

    #: Its number; they have no gaps.
    seq: int
    id: str
    at: datetime
    #: Id of the key or session that asked, "agent:<id>", "local" for a command on the server's own disk; empty: nobody knows.
    actor: str
    #: Name of the key, or address of the person behind the session; empty when there is none.
    name: str
    #: noun.verb, such as key.create.
    action: str
    #: Id of what it was done to.
    object: str
    detail: dict[str, Any]
    #: Network address that the request came from.
    address: str
    #: ok or refused.
    outcome: str
    #: Id of the organisation that it concerns; None: the whole installation.
    org_id: str | None
    #: Its link in the chain, in hexadecimal digits; empty: older than the chain.
    hash: str


class AuditPage(Struct, frozen=True):
    """A part of the log."""

    items: list[AuditView]
    #: `before` or `after` of the next page; None: this was the last one.
    next: str | None = None


class Wanted(Struct, frozen=True, kw_only=True):
    """Which entries; what is empty leaves nothing out."""

    #: Of whom: id or name of a key, address of a person, agent:ID, local.
    actor: str = ""
    #: noun.verb, with `*` for any characters.
    action: str = ""
    #: ok or refused.
    outcome: str = ""
    #: Id of what it was done to.
    object: str = ""
    #: A day such as 2026-11-01, or a span that ends now, such as 7d.
    since: str = ""
    until: str = ""


async def listing(database: Database, who: Principal, wanted: Wanted, *, before: int | None = None, limit: int) -> AuditPage:
    """Newest first; `before` is the number of the last entry of the page before. Raises BadRequest."""
    async with database.read() as session:
        where = [*await _where(session, who, wanted), *([col(AuditEntry.seq) < before] if before is not None else [])]
        rows = (await session.exec(select(AuditEntry).where(*where).order_by(col(AuditEntry.seq).desc()).limit(limit))).all()
        return AuditPage(await _views(session, rows), str(rows[-1].seq) if len(rows) == limit else None)


async def news(database: Database, who: Principal, wanted: Wanted, *, after: int, limit: int) -> AuditPage:
    """Entries behind number `after`, oldest first; `next` is the number after which to ask again. Raises BadRequest."""
    async with database.read() as session:
        where = [*await _where(session, who, wanted), col(AuditEntry.seq) > after]
        rows = (await session.exec(select(AuditEntry).where(*where).order_by(col(AuditEntry.seq)).limit(limit))).all()
        return AuditPage(await _views(session, rows), str(rows[-1].seq if rows else after))


async def export(database: Database, who: Principal, wanted: Wanted) -> AsyncGenerator[AuditView]:
    """All of them, oldest first. Raises BadRequest before the first one."""
    async with database.read() as session:
        where, after = await _where(session, who, wanted), 0
        while True:
            page = select(AuditEntry).where(*where, col(AuditEntry.seq) > after).order_by(col(AuditEntry.seq))
            rows = (await session.exec(page.limit(audit_chain.PAGE))).all()
            for view in await _views(session, rows):
                yield view
            if len(rows) < audit_chain.PAGE:
                return
            after = rows[-1].seq
            session.expunge_all()


async def _where(session: AsyncSession, who: Principal, wanted: Wanted) -> list[Any]:
    now = clock.utcnow()
    mine = col(AuditEntry.org_id) == who.org_id
    where = [or_(mine, col(AuditEntry.org_id).is_(None)) if who.is_home else mine]
    if wanted.outcome not in {"", audit.OK, audit.REFUSED}:
        raise BadRequest(f"'outcome' must be {audit.OK} or {audit.REFUSED}, not {wanted.outcome[:63]!r}.", param="outcome")
    if wanted.outcome:
        where.append(col(AuditEntry.outcome) == wanted.outcome)
    if wanted.object:
        where.append(col(AuditEntry.object) == wanted.object)
    if wanted.action:
        where.append(col(AuditEntry.action).like(_pattern(wanted.action), escape="\\"))
    if wanted.actor:
        theirs = col(AuditEntry.detail)[audit.BY, "email"].as_string() == wanted.actor.lower()
        where.append(or_(col(AuditEntry.actor).in_(await _actors(session, wanted.actor)), theirs))
    if wanted.since:
        where.append(col(AuditEntry.at) >= _moment(wanted.since, "since", now, timedelta()))
    if wanted.until:
        where.append(col(AuditEntry.at) < _moment(wanted.until, "until", now, timedelta(days=1)))
    return where


def _pattern(glob: str) -> str:
    return "".join("%" if c == "*" else f"\\{c}" if c in "%_\\" else c for c in glob[:200])


async def _actors(session: AsyncSession, named: str) -> set[str]:
    """What an actor may be called in the log."""
    keys = select(Key.id).where(Key.name == named)
    sessions = select(Session.id).join(User, col(Session.user_id) == User.id).where(User.email == named.lower())
    theirs = select(Key.id).join(User, col(Key.user_id) == User.id).where(User.email == named.lower())
    return {named, *(await session.exec(keys)).all(), *(await session.exec(sessions)).all(), *(await session.exec(theirs)).all()}


def _moment(text: str, param: str, now: datetime, whole_day: timedelta) -> datetime:
    """When a day begins, or with `whole_day` ends; how long ago a span is."""
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC) + whole_day
    except (ValueError, OverflowError):
        pass
    try:
        return now - timedelta(seconds=duration(text))
    except (ValueError, OverflowError):
        what = "a day such as 2026-11-01, or a span such as 7d or 12h"
        raise BadRequest(f"'{param}' must be {what}, not {text[:63]!r}.", param=param) from None


async def _views(session: AsyncSession, rows: Sequence[AuditEntry]) -> list[AuditView]:
    names = await _names(session, {row.actor for row in rows})
    return [view(row.model_dump(), names.get(row.actor) or _by(row.detail)) for row in rows]


def _by(detail: Mapping[str, Any]) -> str:
    """Address of the person, as the entry itself has it."""
    by = detail.get(audit.BY)
    return str(by.get("email", "")) if isinstance(by, dict) else ""


async def _names(session: AsyncSession, actors: Iterable[str]) -> dict[str, str]:
    ids = [actor for actor in actors if actor and ":" not in actor]
    people = select(Session.id, User.email).join(User, col(Session.user_id) == User.id).where(col(Session.id).in_(ids))
    keys = select(Key.id, Key.name).where(col(Key.id).in_(ids))
    return {**dict((await session.exec(people)).all()), **dict((await session.exec(keys)).all())}


def view(entry: Mapping[str, Any], name: str = "") -> AuditView:
    """An entry by the names of its columns."""
    return AuditView(**{**entry, "hash": (entry["hash"] or b"").hex(), "name": name})


# -- whether it is right -----------------------------------------------------------------------------------------------


class Wrong(Struct, frozen=True, kw_only=True, tag_field="state", tag="broken"):
    """Something is not as it was written."""

    #: Number of the first entry that it is about.
    seq: int
    what: str


class Checking(Struct, frozen=True, kw_only=True, tag_field="state", tag="checking"):
    """The check goes on."""

    checked: dict[str, int]


class EndView(Struct, frozen=True):
    """The last entry: what is cut off after it was noted elsewhere is missed there."""

    seq: int
    #: In hexadecimal digits.
    hash: str


class Checked(Struct, frozen=True, kw_only=True, tag_field="state", tag="done"):
    """The check is over."""

    ok: bool
    #: How many things are wrong, those that were not told one by one too.
    broken: int
    #: Number of the first entry that is not as it was written; None: all are.
    first: int | None
    checked: dict[str, int]
    end: EndView


Word = Wrong | Checking | Checked


async def check(database: Database, own: Secrets, directory: Path) -> AsyncGenerator[Word]:
    """Looks at all entries, in the database and in the files of `directory` that it has archived; says at least one word in `search.PERIOD`
    seconds, the last one is `Checked`. Raises what the database raises."""
    counts: Counter[str] = Counter()
    number, first = 0, 0
    yield Checking(checked={})
    async with aclosing(search.follow(database, partial(_broken, own=own, directory=directory, counts=counts))) as findings:
        async for found in findings:
            if found is None:
                yield Checking(checked=dict(counts))
                continue
            number += 1
            first = min(first or found.seq, found.seq)
            if number <= MOST:
                yield Wrong(seq=found.seq, what=found.what)
    yield Checking(checked=dict(counts))
    yield Checked(ok=not number, broken=number, first=first or None, checked=dict(counts), end=await _end(database))


async def _broken(session: AsyncSession, own: Secrets, directory: Path, counts: Counter[str]) -> AsyncIterator[Broken]:
    kept = witness.load(directory) or audit_chain.NOTHING
    async for found in segments.broken(session, own.audit_key, directory, counts, kept.start):
        yield found
    async for found in audit_chain.broken(session, own.audit_key, partial(_vouched, own.public_identity), counts, kept):
        yield found


async def end(database: Database, who: Principal) -> EndView:
    """Where the chain ends now, for whoever runs the server; for all others the last entry of their own, as the chain's end would tell how
    much others do."""
    if who.is_home:
        return await _end(database)
    latest = select(AuditEntry).where(AuditEntry.org_id == who.org_id).order_by(col(AuditEntry.seq).desc()).limit(1)
    async with database.read() as session:
        found = (await session.exec(latest)).first()
    return EndView(found.seq, (found.hash or b"").hex()) if found is not None else EndView(0, audit.GENESIS.hex())


async def _end(database: Database) -> EndView:
    async with database.read() as session:
        found = await audit_chain.last(session)
    return EndView(found.seq, found.hash.hex())


def _vouched(public: bytes, signature: bytes, message: bytes) -> bool:
    return identity.verify(public, signature, message)
