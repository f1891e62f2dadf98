"""Whether providers still vouch for those who are signed in, or have keys: asked before a session ends, by the server itself or by who is
signed in."""

import asyncio
import logging
from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from mindgw import clock
from mindgw.config import Sessions as Settings
from mindgw.control import arrivals
from mindgw.control.idp import flows
from mindgw.control.idp.http import Unanswered
from mindgw.control.sign_on import Held, SignOn
from mindgw.errors import Conflict, MindGWError, ProviderError, ProviderUnreachable, Unauthenticated
from mindgw.providers import LAPSE
from mindgw.store import identities, sessions
from mindgw.store.identities import Due, Known
from mindgw.store.tables import Session

log = logging.getLogger("mindgw.idp")

#: For how long one who has begun to ask has others wait: longer than a provider may take for all that it is asked.
PAUSE = timedelta(seconds=90)
#: Sessions that are asked about at once, and how many in a round a provider may leave unanswered before it is left alone.
AT_ONCE, PATIENCE = 8, 3


class Renewed(Struct, frozen=True, kw_only=True):
    """Until when a session is good."""

    expires_at: datetime
    #: Seconds until then, for whose clock is another.
    expires_in: int


class _Begun(NamedTuple):
    """A session that is being asked about."""

    id: str
    known: Known
    held: Held
    at: datetime


class Rechecks:
    """All sessions that providers vouch for."""

    def __init__(self, sign_on: SignOn, settings: Settings) -> None:
        self._sign_on = sign_on
        self._database = sign_on.database
        self._span = timedelta(seconds=settings.recheck)
        self._keep = timedelta(seconds=settings.keep)

    async def all(self) -> None:
        """To be called every minute: asks about sessions of which half the time is over, and about those who are signed in nowhere and have
        keys; puts out for whom nobody has vouched for as long as a session may last."""
        away: Counter[str] = Counter()
        now = clock.utcnow()  # of the round: whoever was asked about in it is not due again
        while due := await self._due(now, {name for name, times in away.items() if times >= PATIENCE}):
            for first in range(0, len(due), AT_ONCE):
                await asyncio.gather(*(self._look(session_id, provider, away) for session_id, provider in due[first : first + AT_ONCE]))
        await self._forget_the_silent()

    async def _due(self, now: datetime, away: set[str]) -> Due:
        async with self._database.read() as session:
            due = await identities.due(session, now, self._span / 2, PAUSE, away)
            return due or await identities.absent(session, now, self._span, PAUSE, away)

    async def _look(self, session_id: str, provider: str, away: "Counter[str]") -> None:
        if away[provider] >= PATIENCE:
            return
        try:
            await self.one(session_id, over=True)
        except ProviderUnreachable as wrong:
            away[provider] += 1
            log.warning("identity provider %s was not asked about somebody who is signed in: %s", provider, wrong.message)
        except MindGWError as wrong:
            log.info("session %s is not renewed: %s", session_id, wrong.message)

    async def _forget_the_silent(self) -> None:
        now = clock.utcnow()
        async with self._database.write() as session:
            silent = await identities.unvouched(session, now - self._keep)
            gone = [known.user.id for known in silent if await arrivals.lapse(session, known, "no provider has vouched for them")]
        for user_id in gone:
            self._sign_on.cut(user_id)

    async def one(self, session_id: str, *, over: bool = False) -> Renewed:
        """Asks about one session; `over`: about one that has ended, too, which it stays. Raises Unauthenticated when it is over by that,
        Conflict for one that no provider vouches for, and ProviderError, which changes nothing."""
        begun = await self._begin(session_id, over=over)
        if isinstance(begun, Renewed):
            return begun
        source = self._sign_on.source(begun.known.identity.provider)
        try:
            grant = await flows.refresh(source, begun.held.token, public=begun.held.public)
        except flows.Lost as lost:
            final = lost.is_final and source.said.lost == LAPSE and not begun.held.is_unsure
            await self._lose(begun, lost.message, final=final)
            raise
        except ProviderError as wrong:
            if not isinstance(wrong, Unanswered):
                await self._hold(session_id, begun.held)
            raise
        # before anything is judged: the one of before is spent at many providers
        await self._hold(session_id, Held(grant.refresh_token or begun.held.token, begun.held.public))
        return _renewed(await self._keep_on(begun, grant), begun.at)

    async def _begin(self, session_id: str, *, over: bool) -> _Begun | Renewed:
        """Who is asked about, or until when the session is good when somebody else asks already. Until there is an answer nobody knows
        whether what is asked with is spent."""
        now = clock.utcnow()
        async with self._database.write() as session:
            mine = await identities.begin_check(session, session_id, now, PAUSE)
            row = await session.get(Session, session_id, populate_existing=True)
            known = await identities.of_session(session, row) if row is not None else None
            if row is None or (row.revoked_at is not None and not over):
                raise Unauthenticated("This session was ended.", code="revoked_session")
            held = self._sign_on.refreshes.open(row.id, row.refresh) if row.refresh is not None else None
            asks = known is not None and held is not None and known.identity.provider in self._sign_on.sources
            if mine and asks and held is not None:
                row.refresh = self._sign_on.refreshes.seal(row.id, held._replace(is_unsure=True))
            ends = row.expires_at
        if known is None or held is None or not asks:
            raise Conflict("This session cannot be renewed: sign in again when it is over.", code="not_renewable")
        return _Begun(session_id, known, held, now) if mine else _renewed(ends, now)

    async def _hold(self, session_id: str, held: Held | None) -> None:
        async with self._database.write() as session:
            await sessions.seal(session, session_id, self._sign_on.refreshes.seal(session_id, held) if held is not None else None)

    async def _keep_on(self, begun: _Begun, grant: flows.Grant) -> datetime:
        """The provider vouches for somebody: whom, and as what? Until when the session is good."""
        word, came, identity = None, None, begun.known.identity
        if grant.id_token:
            issued = await self._sign_on.tokens.shown(identity.provider, grant.id_token, None)
            word = await self._sign_on.last_word(issued, grant)
            if (word.said.canonical, word.person.subject) != (identity.issuer, identity.subject):
                raise Unauthenticated("The provider speaks of somebody else.", code="wrong_subject")
        async with self._database.write() as session:
            if word is not None:
                came = await arrivals.arrive(session, word)
            else:
                await identities.vouch(session, begun.known.user.id, begun.at)
            row = await session.get_one(Session, begun.id, populate_existing=True)
            if row.revoked_at is None and row.expires_at > begun.at:
                until = clock.utcnow() + self._span
                row.expires_at = min(until, row.ends_at) if row.ends_at is not None else until
            ends = row.expires_at
        if came is not None:
            self._sign_on.told(came)
        return ends

    async def _lose(self, begun: _Begun, why: str, *, final: bool) -> None:
        """The provider does not: this session is over, and, when that is `final`, everything is when no other one stands for them."""
        now, known = clock.utcnow(), begun.known
        async with self._database.write() as session:
            await sessions.end(session, known.user.id, now, begun.id)
            await sessions.seal(session, begun.id, None)
            alone = not await identities.others(session, known.identity.id, begun.id, now)
            gone = final and alone and await arrivals.lapse(session, known, flows.shown(why))
        (self._sign_on.cut if gone else self._sign_on.changed)(known.user.id)


def _renewed(until: datetime, now: datetime) -> Renewed:
    return Renewed(expires_at=until, expires_in=max(0, int((until - now).total_seconds())))
