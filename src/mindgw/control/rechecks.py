"""Whether providers still vouch for those who are signed in: asked before a session ends, by the server itself or by who is signed in."""

import logging
from datetime import datetime, timedelta

from msgspec import Struct

from mindgw import clock
from mindgw.config import Sessions as Settings
from mindgw.control import arrivals
from mindgw.control.idp import flows
from mindgw.control.sign_on import Held, SignOn
from mindgw.errors import Conflict, MindGWError, ProviderError, Unauthenticated
from mindgw.store import identities, sessions
from mindgw.store.identities import Known
from mindgw.store.tables import Session

log = logging.getLogger("mindgw.idp")

#: For how long one who has begun to ask has others wait.
PAUSE = timedelta(seconds=30)


class Renewed(Struct, frozen=True, kw_only=True):
    """Until when a session is good."""

    expires_at: datetime
    #: Seconds until then, for whose clock is another.
    expires_in: int


class Rechecks:
    """All sessions that providers vouch for."""

    def __init__(self, sign_on: SignOn, settings: Settings) -> None:
        self._sign_on = sign_on
        self._database = sign_on.database
        self._span = timedelta(seconds=settings.recheck)

    async def all(self) -> None:
        """To be called every minute: asks about sessions of which half the time is over."""
        async with self._database.read() as session:
            due = await identities.due(session, clock.utcnow(), self._span / 2, PAUSE)
        away: set[str] = set()
        for session_id, provider in due:
            if provider in away:
                continue
            try:
                await self.one(session_id)
            except ProviderError as wrong:
                away.add(provider)
                log.warning("identity provider %s was not asked about those who are signed in: %s", provider, wrong.message)
            except MindGWError as wrong:
                log.info("session %s is not renewed: %s", session_id, wrong.message)

    async def one(self, session_id: str) -> Renewed:
        """Asks about one session. Raises Unauthenticated when it is over by that, Conflict for one that no provider vouches for, and
        ProviderError, which changes nothing."""
        now = clock.utcnow()
        async with self._database.write() as session:
            mine = await identities.begin_check(session, session_id, now, PAUSE)
            row = await session.get(Session, session_id, populate_existing=True)
            known = await identities.of_session(session, row) if row is not None else None
        if row is None or row.revoked_at is not None:
            raise Unauthenticated("This session was ended.", code="revoked_session")
        source = self._sign_on.sources.get(known.identity.provider) if known is not None else None
        if known is None or row.refresh is None or source is None:
            raise _lasting()
        if not mine:
            return _renewed(row.expires_at, now)
        held = self._sign_on.refreshes.open(row.id, row.refresh)
        if held is None:
            raise _lasting()
        try:
            grant = await flows.refresh(source, held.token, public=held.public)
        except flows.Lost as lost:
            await self._lose(known, session_id, lost.message)
            raise
        until = await self._keep(known, session_id, grant, held)
        return _renewed(until, now)

    async def _keep(self, known: Known, session_id: str, grant: flows.Grant, held: Held) -> datetime:
        """The provider vouches for somebody: whom, and as what?"""
        name = known.identity.provider
        issued = await self._sign_on.tokens.shown(name, grant.id_token, None)
        word = await self._sign_on.last_word(issued, grant)
        if (word.said.canonical, word.person.subject) != (known.identity.issuer, known.identity.subject):
            raise Unauthenticated("The provider speaks of somebody else.", code="wrong_subject")
        async with self._database.write() as session:
            came = await arrivals.arrive(session, word)
            row = await session.get_one(Session, session_id, populate_existing=True)
            if row.revoked_at is None:
                until = clock.utcnow() + self._span
                row.expires_at = min(until, row.ends_at) if row.ends_at is not None else until
                row.refresh = self._sign_on.refreshes.seal(row.id, Held(grant.refresh_token or held.token, held.public))
            ends = row.expires_at
        self._sign_on.told(came)
        return ends

    async def _lose(self, known: Known, session_id: str, why: str) -> None:
        """The provider does not: this session is over, and everything is when no other one stands for them."""
        now = clock.utcnow()
        async with self._database.write() as session:
            await sessions.end(session, known.user.id, now, session_id)
            alone = not await identities.others(session, known.identity.id, session_id, now)
            gone = alone and await arrivals.lapse(session, known, flows.shown(why))
        (self._sign_on.cut if gone else self._sign_on.changed)(known.user.id)


def _lasting() -> Conflict:
    return Conflict("This session cannot be renewed: sign in again when it is over.", code="not_renewable")


def _renewed(until: datetime, now: datetime) -> Renewed:
    return Renewed(expires_at=until, expires_in=max(0, int((until - now).total_seconds())))
