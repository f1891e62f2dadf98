"""Who is signed in: sessions, and the passes that are made from them. Form and checksum first, then the database: garbage costs no
statement. Rows are remembered for a second, so that whoever watches the feed does not ask four times in one; secrets are compared each
time. Forgetting also voids look-ups that are under way, so that a slow one cannot bring back a session that was ended here.
"""

import hmac
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from mindgw import clock
from mindgw.control.passes import Passes, is_like_ours
from mindgw.errors import Unauthenticated
from mindgw.store import keys, sessions, users
from mindgw.store.database import Database
from mindgw.store.sessions import Signed
from mindgw_agent import tokens

#: Seconds between notes of when a session was last seen.
NOTED = 60.0
#: Seconds for which a row is remembered: as long as other servers may take to see that a session was ended here.
TTL = 1.0
CAPACITY = 1000


class Sessions:
    """The sessions of one server's database."""

    def __init__(
        self,
        database: Database,
        peppers: Mapping[int, bytes],
        passes: Passes,
        life: float,
        now: Callable[[], datetime] = clock.utcnow,
        ticks: Callable[[], float] = clock.monotonic,
    ) -> None:
        #: Seconds that a new session is good for.
        self.life = life
        self._database = database
        #: pepper version -> pepper.
        self._peppers = peppers
        self._passes = passes
        self._now = now
        self._ticks = ticks
        #: id -> (row, monotonic seconds until which it is remembered); the one that was remembered first goes first.
        # bounded: by CAPACITY
        self._rows: dict[str, tuple[Signed, float]] = {}
        #: Raised by `forget`; a look-up that began under an older number is made again.
        self._generation = 0
        #: When sessions were last seen, and of which user they are, until `flush` writes it.
        # bounded: one entry per session that is good
        self._seen: dict[str, tuple[str, datetime]] = {}

    async def identify(self, credential: str) -> Signed:
        """Whose session this is, or this pass was made from. Raises Unauthenticated."""
        if is_like_ours(credential):
            return await self._by_pass(credential)
        parsed = tokens.parse_session(credential)
        if parsed is None:
            raise Unauthenticated("This is not a session that was made here.", code="invalid_session")
        return self._good(await self._find(parsed[0]), parsed[1])

    def knows(self, credential: str) -> bool:
        """Whether nobody need be asked whose session this is, or this pass was made from."""
        if is_like_ours(credential):
            said = self._passes.read(credential, self._now().timestamp())
            held = self._rows.get(said.sid) if said is not None else None
        else:
            parsed = tokens.parse_session(credential)
            held = self._rows.get(parsed[0]) if parsed is not None else None
        return held is not None and self._ticks() < held[1]

    async def of(self, session_id: str) -> Signed | None:
        """The session with this id, for whoever was let in by it; None when it is no session, or not good any more."""
        signed = await self._find(session_id) if session_id else None
        return self._alive(signed) if signed is not None else None

    async def _by_pass(self, text: str) -> Signed:
        said = self._passes.read(text, self._now().timestamp())
        if said is None:
            raise Unauthenticated("This token is not good, or not any more.", code="invalid_token")
        signed = await self._find(said.sid)
        if signed is None or signed.user.id != said.sub:
            raise Unauthenticated("This token is not good, or not any more.", code="invalid_token")
        return self._alive(signed)

    async def _find(self, session_id: str) -> Signed | None:
        held = self._rows.get(session_id)
        if held is not None and self._ticks() < held[1]:
            return held[0]
        while True:
            generation = self._generation
            async with self._database.read() as session:
                found = await sessions.find(session, session_id)
            if generation == self._generation:
                break
        self._rows.pop(session_id, None)
        if found is not None:
            self._rows[session_id] = found, self._ticks() + TTL
            if len(self._rows) > CAPACITY:
                del self._rows[next(iter(self._rows))]
        return found

    def forget(self) -> None:
        """Trusts nothing that is remembered, from now on: to be called when sessions, users or what they may do was changed."""
        self._generation += 1
        self._rows.clear()

    def _good(self, signed: Signed | None, secret: str) -> Signed:
        # an unknown id is compared all the same: its answer takes as long as a wrong secret's
        pepper = self._peppers.get(signed.session.pepper_version if signed else 0, b"\0" * 32)
        same = hmac.compare_digest(keys.digest(pepper, secret), signed.session.digest if signed else b"\0" * 32)
        if signed is None or not same:
            raise Unauthenticated("This is not a session that was made here.", code="invalid_session")
        return self._alive(signed)

    def _alive(self, signed: Signed) -> Signed:
        row, now = signed.session, self._now()
        if row.revoked_at is not None:
            raise Unauthenticated("This session was ended.", code="revoked_session")
        if row.expires_at <= now:
            raise Unauthenticated("This session is over: sign in again.", code="expired_session")
        if signed.user.state != users.ACTIVE or signed.org.state != users.ACTIVE:
            raise Unauthenticated("This user may not sign in.", code="user_disabled")
        if row.last_seen_at is None or row.last_seen_at <= now - timedelta(seconds=NOTED):
            self._seen[row.id] = (signed.user.id, now)
        return signed

    def make_pass(self, signed: Signed, life: float) -> tuple[str, datetime]:
        """A pass for `life` seconds, but no longer than its session, and when it ends."""
        now = self._now()
        left = min(life, (signed.session.expires_at - now).total_seconds())
        text = self._passes.make(signed.user.id, signed.session.id, now.timestamp(), left)
        return text, datetime.fromtimestamp(int(now.timestamp()) + int(left), now.tzinfo)

    async def flush(self) -> None:
        """Writes when sessions were seen. What cannot be written is kept for the next time."""
        if not self._seen:
            return
        seen, self._seen = self._seen, {}
        written = False
        try:
            async with self._database.write() as session:
                await sessions.touch(session, seen)
            written = True
        finally:
            if not written:
                self._seen = {**seen, **self._seen}


def is_session(credential: str) -> bool:
    """Whether a credential is a person's and not an API key, by its form."""
    return credential.startswith(tokens.SESSION_PREFIX) or is_like_ours(credential)
