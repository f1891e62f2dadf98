"""Whether providers still vouch for those whom they have sent: asked before sessions end, by the server itself or by who is signed in, and
as long as keys hang on it. See docs/design/sign-on.md for what follows from which answer.
"""

import asyncio
import logging
from datetime import datetime, timedelta

from msgspec import Struct

from mindgw import clock
from mindgw.config import Sessions as Settings
from mindgw.control import arrivals
from mindgw.control.idp import flows
from mindgw.control.idp.flows import Gone, Grant, Lost
from mindgw.control.idp.source import Source
from mindgw.control.sign_on import Held, SignOn
from mindgw.errors import Conflict, MindGWError, ProviderError, ProviderUnreachable, Unauthenticated
from mindgw.store import audit, identities, rows, vouching
from mindgw.store.identities import Known
from mindgw.store.tables import Session, User
from mindgw.store.vouching import Idle

log = logging.getLogger("mindgw.idp")

#: For how long one who has begun to ask has others wait: longer than it takes until what the provider answers is stored.
PAUSE = timedelta(seconds=60)
#: Seconds until a provider is asked again about somebody when it did not answer; where it did, and could not be understood, it is a part
#: of `sessions.recheck`, one in this many.
AWAY, PART = timedelta(seconds=60), 12
#: Questions that one provider is asked at once, fewer than it has threads; and after how many in a row that it does not answer it is left
#: alone until the next round.
LANES, MISSES = 3, 3
#: People who lapse for silence, and tokens that are given up, in one round.
SWEEP = 200


class Renewed(Struct, frozen=True, kw_only=True):
    """Until when a session is good."""

    expires_at: datetime
    #: Seconds until then, for whose clock is another.
    expires_in: int


class Ask(Struct, frozen=True):
    """A question that is to be put to a provider."""

    known: Known
    source: Source
    #: Its name in the settings.
    name: str
    held: Held
    #: How that is stored.
    sealed: bytes


class Rechecks:
    """All people whom providers vouch for."""

    def __init__(self, sign_on: SignOn, settings: Settings) -> None:
        self._sign_on = sign_on
        self._database = sign_on.database
        self._span = timedelta(seconds=settings.recheck)
        self._unvouched = max(timedelta(seconds=settings.unvouched), 2 * self._span)

    async def all(self) -> None:
        """To be called every minute: asks about those of whom half of `sessions.recheck` is over, all of them, each provider for itself.
        Then those lapse for whom nobody has vouched for too long."""
        async with asyncio.TaskGroup() as several:
            for name, source in self._sign_on.sources.items():
                several.create_task(self._ask_all(name, source))
        await self._lapse_silent()
        await self._give_up()

    async def one(self, session_id: str) -> Renewed:
        """Has one session last longer, if it is time. Raises Unauthenticated when it is over by that, Conflict for one that no provider
        vouches for, and ProviderError, which changes nothing."""
        now = clock.utcnow()
        async with self._database.read() as session:
            row = await session.get(Session, session_id)
            known = await identities.known(session, row.identity_id) if row is not None else None
        if row is None or row.revoked_at is not None:
            raise Unauthenticated("This session was ended.", code="revoked_session")
        if known is None or known.identity.refresh is None or known.identity.issuer not in self._sign_on.by_issuer:
            raise Conflict("This session cannot be renewed: sign in again when it is over.", code="not_renewable")
        if known.identity.due_at is not None and known.identity.due_at <= now:
            await self._look(known.identity.id)
            async with self._database.read() as session:
                row = await session.get_one(Session, session_id)
        return Renewed(expires_at=row.expires_at, expires_in=max(0, int((row.expires_at - now).total_seconds())))

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _ask_all(self, name: str, source: Source) -> None:
        """About everybody whom one provider knows, until that is done or it does not answer."""
        misses = 0
        while misses < MISSES:
            async with self._database.read() as session:
                due = await vouching.due(session, source.said.canonical, clock.utcnow(), PAUSE, LANES)
            if not due:
                return
            answers = await asyncio.gather(*(self._is_there(each) for each in due))
            misses = misses + len(answers) if not any(answers) else 0
        log.warning("identity provider %s does not answer: the others who are signed in are asked about later", name)

    async def _is_there(self, identity_id: str) -> bool:
        """Asks about somebody; False when the provider does not answer."""
        try:
            await self._look(identity_id)
        except ProviderUnreachable as wrong:
            log.info("nobody knows whether identity %s is good: %s", identity_id, wrong.message)
            return False
        except ProviderError as wrong:
            log.warning("nobody knows whether identity %s is good: %s", identity_id, wrong.message)
        except MindGWError as wrong:
            log.info("identity %s is not vouched for: %s", identity_id, wrong.message)
        return True

    async def _look(self, identity_id: str) -> None:
        """Raises as `one`, and MindGWError for an answer that lets nobody in."""
        ask = await self._begin(identity_id)
        if ask is None:
            return
        try:
            grant = await flows.refresh(ask.source, ask.held.token, public=ask.held.public)
            await self._keep(ask, grant)
            await self._judge(ask, grant)
        except Gone as gone:
            await self._lapse(ask.known, gone.message)
            raise
        except Lost as lost:
            await self._lose(ask, lost.message)
            raise
        except MindGWError as wrong:
            await self._put_off(identity_id, AWAY if isinstance(wrong, ProviderUnreachable) else self._span / PART)
            raise

    async def _begin(self, identity_id: str) -> Ask | None:
        """None when it is not for the caller to ask now."""
        async with self._database.write() as session:
            if not await vouching.begin(session, identity_id, clock.utcnow(), PAUSE):
                return None
            known = await identities.known(session, identity_id)
            found = self._sign_on.by_issuer.get(known.identity.issuer) if known is not None else None
            if known is None or known.identity.refresh is None or found is None:
                return None
            held = self._sign_on.refreshes.open(identity_id, known.identity.refresh)
            if held is None:  # of another data directory: nobody can ever ask with it
                await vouching.swap(session, identity_id, known.identity.refresh, None)
                return None
            return Ask(known, found[1], found[0], held, known.identity.refresh)

    async def _keep(self, ask: Ask, grant: Grant) -> None:
        """What the provider is to be asked with the next time, before anything can go wrong: what it was asked with may be spent."""
        if not grant.refresh_token or grant.refresh_token == ask.held.token:
            return
        sealed = self._sign_on.refreshes.seal(ask.known.identity.id, Held(grant.refresh_token, ask.held.public))
        async with self._database.write() as session:
            await vouching.swap(session, ask.known.identity.id, ask.sealed, sealed)

    async def _judge(self, ask: Ask, grant: Grant) -> None:
        """The provider vouches for somebody: whom, and as what?"""
        identity = ask.known.identity
        word = None
        if grant.id_token:
            issued = await self._sign_on.tokens.shown(ask.name, grant.id_token, None)
            word = await self._sign_on.last_word(issued, grant)
            if (word.said.canonical, word.person.subject) != (identity.issuer, identity.subject):
                raise Unauthenticated("The provider speaks of somebody else.", code="wrong_subject")
        async with self._database.write() as session:
            await rows.locked(session, User, ask.known.user.id)  # before all that is theirs, as everybody does who changes it
            came = await arrivals.arrive(session, word) if word is not None else None
            await vouching.vouch(session, identity.id, clock.utcnow(), self._span)
        if came is not None:
            self._sign_on.told(came)

    async def _put_off(self, identity_id: str, pause: timedelta) -> None:
        async with self._database.write() as session:
            await vouching.put_off(session, identity_id, clock.utcnow() + pause)

    # -- what follows -------------------------------------------------------------------------------------------------

    async def _lose(self, ask: Ask, why: str) -> None:
        """What the provider was asked with is worth nothing: they must sign in again. Keys go on, for it says nothing of the person."""
        user, now = ask.known.user, clock.utcnow()
        async with self._database.write() as session:
            await rows.locked(session, User, user.id)
            if not await vouching.swap(session, ask.known.identity.id, ask.sealed, None):
                return  # they have just signed in: that was of before
            await vouching.put_off(session, ask.known.identity.id, now)
            ended = await vouching.end_sessions(session, ask.known.identity.id, now)
            facts = {"email": user.email, "sessions": ended, "provider": ask.name, "why": flows.shown(why)}
            await audit.record(session, arrivals.themselves(user, ask.known.identity), "session.end", user.id, **facts)
        log.warning("%s must sign in again, as identity provider %s says: %s", user.email, ask.name, flows.shown(why))
        self._sign_on.changed(user.id)

    async def _lapse(self, known: Known, why: str, *, said: bool = True) -> None:
        async with self._database.write() as session:
            now_known = await identities.known(session, known.identity.id)
            gone = now_known is not None and await arrivals.lapse(session, now_known, flows.shown(why), said=said)
        if gone:
            self._sign_on.cut(known.user.id)

    async def _lapse_silent(self) -> None:
        """Whoever has keys, and nobody has vouched for them for so long that it is taken for a no."""
        now = clock.utcnow()
        async with self._database.read() as session:
            several = await vouching.silent(session, now - self._unvouched, now, SWEEP)
            found = [await identities.known(session, each) for each in several]
        for known in filter(None, found):
            log.warning("%s lapses: identity provider %s has long not vouched for them", known.user.email, known.identity.provider)
            await self._lapse(known, "unvouched", said=False)

    async def _give_up(self) -> None:
        """Nothing hangs on somebody any more: what their provider would be asked with is forgotten, here and there."""
        async with self._database.read() as session:
            several = await vouching.idle(session, clock.utcnow(), SWEEP)
        away: set[str] = set()
        for each in several:
            async with self._database.write() as session:
                mine = await vouching.swap(session, each.id, each.refresh, None)
            if mine and each.issuer not in away and not await self._forgotten(each):
                away.add(each.issuer)

    async def _forgotten(self, idle: Idle) -> bool:
        """Tells a provider that somebody has signed out; False when it does not answer, which is no harm."""
        found, held = self._sign_on.by_issuer.get(idle.issuer), self._sign_on.refreshes.open(idle.id, idle.refresh)
        if found is None or held is None:
            return True
        try:
            await flows.revoke(found[1], held.token, public=held.public)
        except ProviderError as wrong:
            log.info("identity provider %s was not told that somebody has signed out: %s", found[0], wrong.message)
            return False
        return True
