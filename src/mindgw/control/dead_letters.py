"""Requests that failed for good, as management sees them: looked at, run again, dropped. Every change is audited."""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock, config
from mindgw.control.live import Live
from mindgw.control.pages import Page, page_of
from mindgw.control.sealing import Safe
from mindgw.errors import Conflict, MindGWError, Unauthenticated
from mindgw.store import audit, dead_letters, keys, people
from mindgw.store.audit import Who
from mindgw.store.database import Database
from mindgw.store.dead_letters import Letter
from mindgw.store.tables import DeadLetter, Key, Team, Worker

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_answer = msgspec.json.Decoder(dict[str, Any]).decode

#: Why there is no body -> what is said of it.
NO_BODY = {
    "off": "bodies were not kept when it failed",
    "too_large": "it was larger than what is kept",
    "crowded": "too many requests failed at that moment to keep them all",
}
#: Code of a retry whose operator did not wait for its end.
HUNG_UP = "client_disconnected"
_KEEP = "`dead_letters.keep_body: true` in config.yaml keeps the bodies of requests that fail from then on"
_LARGER = "`dead_letters.max_body` in config.yaml says how large a body may be"


class Attempt(Struct, frozen=True):
    """One try on a worker."""

    #: Name of the worker, its id when it is not known any more.
    worker: str
    #: busy, or the code of the error that ended it.
    outcome: str


class LetterView(Struct, frozen=True, kw_only=True):
    """A request that failed for good; never its body."""

    id: str
    request_id: str
    #: dead, or retried when a retry went well.
    state: str
    key_id: str
    #: Name of the key, of the team and address of the person that it belongs to; "" for what is not known any more.
    key: str
    team: str
    user: str
    #: Who stood behind a trusted proxy, "" for nobody.
    end_user: str
    model: str
    endpoint: str
    stream: bool
    #: Whose fault it was: fleet, engine or gateway.
    fault: str
    #: HTTP status of the error, its code and what it said.
    status: int
    code: str
    message: str
    attempts: list[Attempt]
    started_at: datetime
    failed_at: datetime
    queued_ms: int
    total_ms: int
    #: Bytes of the body.
    size: int
    #: kept, or why it is not: off, too_large or crowded.
    body: str
    retries: int
    retried_at: datetime | None
    #: Code of what went wrong at the last retry, "" when nothing did.
    retry_code: str


class Retried(Struct, frozen=True, kw_only=True):
    """A request that was run again, and the engine's answer in one piece, even where a stream was asked for."""

    letter: LetterView
    answer: dict[str, Any]


def seal(safe: Safe, sent: Sequence[tuple[Letter, bytes | None]]) -> list[Letter]:
    """Letters as they are stored. Takes a while where bodies are large."""
    return [letter if body is None else msgspec.structs.replace(letter, sealed=safe.seal(letter.request_id, body)) for letter, body in sent]


async def forget(database: Database, settings: config.DeadLetters, now: datetime) -> int:
    """Takes away what is older than the settings allow, or too much; returns how many letters."""
    before, gone, step = now - timedelta(seconds=settings.keep), 0, 1
    while step:
        async with database.write() as session:
            step = await dead_letters.drop_old(session, before, settings.most)
        gone += step
    return gone


async def listing(database: Database, *, before: str | None = None, limit: int) -> Page[LetterView]:
    """Letters, newest first."""
    async with database.read() as session:
        rows = await dead_letters.page(session, before=before, limit=limit)
        return page_of(await _views(session, rows), limit)


async def show(database: Database, reference: str) -> LetterView:
    """`reference` is the id of a letter or of its request. Raises NotFound."""
    async with database.read() as session:
        return await _view(session, reference)


async def retry(database: Database, safe: Safe, who: Who | str, live: Live, retrying: set[str], reference: str) -> Retried:
    """Runs the request again on behalf of its key, which pays for it, and waits for the answer; cancelled, it ends the request. May be done
    again, also after it went well, but not at the same time: `retrying` has the ids of the letters that are under way. Raises NotFound,
    Conflict when that cannot be, and what goes wrong this time."""
    async with database.read() as session:
        row = await dead_letters.find(session, reference)
        _check_key(await keys.get(session, row.key_id), row)
    body = _body(safe, row)
    if row.id in retrying:
        raise Conflict(f"Letter {row.id} is being run again at this moment.", code="retry_under_way")
    retrying.add(row.id)
    try:
        answer = await _run(database, who, live, row, body)
    finally:
        retrying.discard(row.id)
    async with database.read() as session:
        return Retried(letter=await _view(session, row.id), answer=_decode_answer(answer))


async def _run(database: Database, who: Who | str, live: Live, row: DeadLetter, body: bytes) -> bytes:
    """The answer; how it ended is noted."""
    try:
        answer = await live.rerun(row.key_id, row.endpoint, _headers(row), body)
    except MindGWError as wrong:
        await _note(database, who, row, wrong.code)
        if isinstance(wrong, Unauthenticated):  # its key died after we looked
            raise _key_is_gone(row) from None
        raise
    except asyncio.CancelledError:  # whoever waited for it hung up
        await _note(database, who, row, HUNG_UP)
        raise
    await _note(database, who, row, "")
    return answer


async def drop(database: Database, who: Who | str, reference: str) -> LetterView:
    """Takes a letter away, with its body. Raises NotFound."""
    async with database.write() as session:
        view = await _view(session, reference)
        await dead_letters.drop(session, view.id)
        await audit.record(session, who, "dead_letter.drop", view.id, request=view.request_id, key=view.key_id, code=view.code)
    return view


def whole(body: bytes) -> bytes:
    """The same request for an answer in one piece. Raises ValueError when it is none."""
    try:
        fields = _decode(body)
    except msgspec.DecodeError as wrong:
        raise ValueError("it is not a JSON object") from wrong
    fields.pop("stream_options", None)
    return msgspec.json.encode({**fields, "stream": msgspec.Raw(b"false")} if "stream" in fields else fields)


async def _note(database: Database, who: Who | str, row: DeadLetter, code: str) -> None:
    async with database.write() as session:
        await dead_letters.note_retry(session, row.id, clock.utcnow(), code)
        await audit.record(session, who, "dead_letter.retry", row.id, request=row.request_id, key=row.key_id, code=code)


def _check_key(key: Key | None, row: DeadLetter) -> None:
    """Raises Conflict when the key would be refused."""
    expired = key is not None and key.expires_at is not None and key.expires_at <= clock.utcnow()
    if key is None or key.revoked_at is not None or expired:
        raise _key_is_gone(row)


def _key_is_gone(row: DeadLetter) -> Conflict:
    return Conflict(f"Key {row.key_id}, which sent the request and would pay for it, is not good any more.", code="key_not_good")


def _body(safe: Safe, row: DeadLetter) -> bytes:
    """The request as it is run again. Raises Conflict."""
    if row.sealed is None:
        why = NO_BODY.get(row.body_note, "it was not kept")
        hint = _LARGER if row.body_note == "too_large" else _KEEP
        raise Conflict(f"The body of this request is not there: {why}.", code="no_body", hint=hint)
    try:
        return whole(safe.open(row.request_id, row.sealed))
    except ValueError as wrong:
        hint = "has sealing.key in the data directory been replaced since? A backup has the old one"
        raise Conflict(f"The body of this request cannot be read: {wrong}.", code="body_unreadable", hint=hint) from None


def _headers(row: DeadLetter) -> list[tuple[bytes, bytes]]:
    """What made the request that of an end user; the name of one that goes by a hash is not known any more."""
    named = re.fullmatch(r"[!-~]{1,64}", row.end_user) and not row.end_user.startswith("#")
    return [(b"x-openwebui-user-id", row.end_user.encode())] if named else []


async def _view(session: AsyncSession, reference: str) -> LetterView:
    (view,) = await _views(session, [await dead_letters.find(session, reference)])
    return view


async def _views(session: AsyncSession, rows: Sequence[DeadLetter]) -> list[LetterView]:
    named = await _names(session, rows)
    return [
        LetterView(
            id=row.id,
            request_id=row.request_id,
            state="retried" if row.retries and not row.retry_code else "dead",
            key_id=row.key_id,
            key=named.get(row.key_id, ""),
            team=named.get(row.team_id or "", ""),
            user=named.get(row.user_id or "", ""),
            end_user=row.end_user,
            model=row.model,
            endpoint=row.endpoint,
            stream=row.stream,
            fault=row.fault,
            status=row.status,
            code=row.code,
            message=row.message,
            attempts=[_attempt(attempt, named) for attempt in row.attempts],
            started_at=row.started_at,
            failed_at=row.failed_at,
            queued_ms=row.queued_ms,
            total_ms=row.total_ms,
            size=row.size,
            body=row.body_note or "kept",
            retries=row.retries,
            retried_at=row.retried_at,
            retry_code=row.retry_code,
        )
        for row in rows
    ]


def _attempt(stored: dict[str, Any], named: dict[str, str]) -> Attempt:
    worker = str(stored.get("worker", ""))
    return Attempt(named.get(worker, worker), str(stored.get("outcome", "")))


async def _names(session: AsyncSession, rows: Sequence[DeadLetter]) -> dict[str, str]:
    """id -> name of the keys, teams, people and workers that letters name; ids are never of two kinds."""
    workers = {str(attempt.get("worker")) for row in rows for attempt in row.attempts}
    found = await session.exec(select(Key.id, Key.name).where(col(Key.id).in_({row.key_id for row in rows})))
    boxes = await session.exec(select(Worker.id, Worker.name).where(col(Worker.id).in_(workers)))
    teams = await people.names(session, Team, {row.team_id for row in rows if row.team_id})
    users = await people.emails(session, {row.user_id for row in rows if row.user_id})
    return {**dict(found.all()), **dict(boxes.all()), **teams, **users}
