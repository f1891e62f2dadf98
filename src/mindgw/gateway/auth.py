"""Whose key is it? Syntax and checksum first, then memory, then the database: garbage never costs a statement.

What is remembered is an immutable snapshot under the SHA-256 of the whole key. It is trusted for as long as it is known that nothing has
changed: one question to the database, asked a few times a second however many keys are in use, names the keys that did, and those are
forgotten. Only when that question is not answered does each key count by itself: it is trusted for a few seconds more and looked up then.
Forgetting a key also voids look-ups that are under way, so that a slow one cannot bring a revoked key back.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from mindgw import errors
from mindgw.core.routing import residency
from mindgw.core.tokens import is_jwt
from mindgw.gateway import scope
from mindgw.gateway.admission import Caller, Rate
from mindgw.store.keys import Change, Holder
from mindgw.store.tables import Key
from mindgw_agent import tokens

#: Seconds for which a key is trusted after its look-up, and after the last moment at which no change of it was known.
TTL = 5.0
#: Seconds beyond that for which it is trusted while the database is away, and seconds between questions whether it is back.
GRACE, ASK = 300.0, 1.0
#: Keys that are remembered, about 1.5 kB each. When more are in use, the one that was used least recently is looked up again when it
#: comes: right, and as slow as a new key.
CAPACITY = 20_000
#: Seconds after which it is written again when a key was used.
NOTE = 60.0
#: Keys of which that is written at a time.
BATCH = 500
#: Bytes of what is stored of a secret that tell it from others of its key.
MARK = 8

#: Headers that may carry a key, each with the scheme that must precede it.
CARRIERS = {b"authorization": b"bearer ", b"x-api-key": b"", b"api-key": b""}


def credential(headers: list[tuple[bytes, bytes]]) -> str:
    """The one key that the request carries; raises Unauthenticated when there is none, BadRequest when there are two."""
    key, several = b"", False
    for name, value in headers:
        if name not in CARRIERS:
            continue
        scheme = CARRIERS[name]
        if scheme and value[: len(scheme)].lower() != scheme:
            raise errors.Unauthenticated("The Authorization header must be 'Bearer KEY'.")
        found = value[len(scheme) :].strip()
        several = several or bool(key and found and found != key)
        key = found or key
    if not key:
        raise errors.Unauthenticated("You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.", code="missing_api_key")
    if several:
        raise errors.BadRequest("The request carries two different credentials; send one.", code="ambiguous_credentials")
    return key.decode("latin-1")


class Borne(NamedTuple):
    """What somebody else's token stands for."""

    holder: Holder
    #: As what it is remembered: it is no secret of the key's.
    secret: bytes
    #: When it is good no longer.
    until: datetime


#: Takes the text of a JWT; raises Unauthenticated for one that is not good, or other errors when nobody can tell.
Bear = Callable[[str], Awaitable[Borne]]


class _Known(Struct, gc=False):
    """A key that was good."""

    caller: Caller
    #: Monotonic seconds of its look-up.
    at: float
    #: Monotonic seconds at which it was last told that it was used.
    noted: float
    expires: datetime | None
    #: When it has to be looked up again: it was rotated, and this secret ends, or it may have been unused for too long.
    until: datetime | None


Find = Callable[[str], Awaitable[Holder | None]]
Changes = Callable[[Change | None], Awaitable[list[Change]]]


class Auth:
    """Turns keys into callers."""

    def __init__(
        self,
        find: Find,
        changes: Changes,
        peppers: Mapping[int, bytes],
        now: Callable[[], datetime],
        bear: Bear | None = None,
    ) -> None:
        #: What tokens of others stand for, which are then taken where keys are; None: none are.
        self._bear = bear
        #: key id -> its row and holder, None when there is none.
        self._find = find
        #: Newest change that is known -> that and all since; see `store.keys.changes`.
        self._changes = changes
        #: pepper version -> pepper.
        self._peppers = peppers
        self._now = now
        #: SHA-256 of a whole key -> what is known of it; the least recently used goes first.
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        #: The newest change that is known; None before the first.
        self._newest: Change | None = None
        #: Monotonic seconds at which every change was known.
        self._checked = float("-inf")
        #: Monotonic seconds until which the database need not be asked: it did not answer a moment ago.
        self._away_until = 0.0
        #: Raised when something is forgotten; a look-up that began under an older number is made again.
        self._generation = 0
        #: When each key was last seen, until `used` hands it over to be written.
        # bounded: one entry per key that exists
        self._used: dict[str, datetime] = {}

    def known(self, key: str, now: float) -> Caller | None:
        """The caller, when the key is known to be good; None when it must be looked up. Raises Unauthenticated on garbage, and for a key
        that has expired since it was looked up."""
        place = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        held = self._known.get(place)
        if held is not None and self._is_trusted(held, now):
            if held.expires is not None and held.expires <= self._now():
                raise _expired()
            if held.until is not None and held.until <= self._now():
                return None
            self._known.move_to_end(place)
            if now >= held.noted + NOTE:
                held.noted = now
                self._used[held.caller.key_id] = self._now()
            return held.caller
        if tokens.parse_key(key) is None and (self._bear is None or not is_jwt(key)):
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        return None

    def _is_trusted(self, held: _Known, now: float) -> bool:
        end = max(held.at, self._checked) + TTL
        return now < end or (now < self._away_until and now < end + GRACE)

    async def look_up(self, key: str, now: float) -> Caller:
        """The caller, from the database; raises Unauthenticated when the key is unknown, wrong, revoked or expired. While the database is
        away a key that was good a short while ago still is; raises Draining for others."""
        parsed = tokens.parse_key(key)
        if parsed is None and (self._bear is None or not is_jwt(key)):
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        place = hashlib.sha256(key.encode()).digest()
        try:
            held = await self._asked(parsed[0] if parsed is not None else "", key)
        except errors.Draining:
            self._away_until = now + ASK
            if (caller := self.known(key, now)) is None:
                raise
            return caller
        except errors.MindGWError:
            self._known.pop(place, None)
            raise
        self._known.pop(place, None)  # what is not good now was not good for a reason that may stay unheard of
        holder, secret, until = held if isinstance(held, Borne) else self._check(held, parsed[1] if parsed is not None else "", key)
        caller = self._caller(holder, secret[:MARK])
        self._remember(place, caller, holder, until, now)
        return caller

    async def _asked(self, key_id: str, text: str) -> Holder | Borne | None:
        """Who has a key, or what a token stands for that is none."""
        while True:
            generation = self._generation
            found = await (self._find(key_id) if key_id or self._bear is None else self._bear(text))
            if generation == self._generation:  # else something has changed meanwhile, and this may be older than that
                return found

    def _check(self, held: Holder | None, secret: str, key: str) -> tuple[Holder, bytes, datetime | None]:
        """The holder, what is stored of this secret, and until when that is to be believed; None: until something changes."""
        row = held.key if held is not None else None
        # An unknown id is compared all the same: its answer takes as long as a wrong secret's.
        pepper = self._peppers.get(row.pepper_version if row else 0, b"\0" * 32)
        digest = hmac.digest(pepper, secret.encode(), "sha256")
        if hmac.compare_digest(digest, row.digest if row else b"\0" * 32) and held is not None:
            return held, held.key.digest, held.ends
        if held is None or not self._was(row, secret):
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        until = min((end for end in (held.key.prior_until, held.ends) if end is not None), default=None)
        return held, held.key.prior_digest or b"", until

    def _was(self, row: Key | None, secret: str) -> bool:
        """Whether it is the secret before the last rotation, and still good."""
        if row is None or row.prior_digest is None or row.prior_until is None or row.prior_until <= self._now():
            return False
        pepper = self._peppers.get(row.prior_pepper_version or 0, b"\0" * 32)
        return hmac.compare_digest(hmac.digest(pepper, secret.encode(), "sha256"), row.prior_digest)

    async def holder(self, key_id: str) -> Caller:
        """The caller that a key id stands for, for what is done on its behalf; raises Unauthenticated when the key is gone, revoked or
        expired."""
        held = await self._find(key_id)
        if held is None:
            raise errors.Unauthenticated("This API key does not exist any more.")
        return self._caller(held)

    async def standing(self, key_id: str) -> tuple[Caller, frozenset[bytes]]:
        """As `holder`, with those secrets of the key that are good, as callers have them."""
        held = await self._find(key_id)
        if held is None:
            raise errors.Unauthenticated("This API key does not exist any more.")
        caller, row = self._caller(held), held.key
        former = row.prior_digest if row.prior_until is not None and row.prior_until > self._now() else None
        return caller, frozenset((b"", row.digest[:MARK], *([former[:MARK]] if former is not None else [])))

    def _caller(self, held: Holder, secret: bytes = b"") -> Caller:
        """Raises Unauthenticated when the key is not good any more."""
        row = held.key
        if row.revoked_at is not None:
            raise errors.Unauthenticated("This API key was revoked.", code="revoked_api_key")
        if any(end is not None and end <= self._now() for end in (row.expires_at, held.ends)):
            raise _expired()
        if not held.welcome:
            raise errors.Unauthenticated("The holder of this API key may not use the gateway at present.", code="user_disabled")
        return Caller(
            key_id=row.id,
            name=row.name,
            org_id=row.org_id,
            team_id=row.team_id or "",
            user_id=row.user_id or "",
            team=held.team,
            user=held.user,
            rights=held.rights,
            models=held.models,
            priority=row.priority or "normal",
            trusted_proxy=row.trusted_proxy,
            rate=Rate(row.rpm or 0, row.tpm or 0, row.concurrency or 0) if row.rpm or row.tpm or row.concurrency else None,
            scope=scope.read(row.scopes),
            secret=secret,
            home=residency(held.labels, row.labels or {}),
            group=_group(held.org, held.team),
        )

    def _remember(self, place: bytes, caller: Caller, holder: Holder, until: datetime | None, now: float) -> None:
        seen, moment = holder.key.last_used_at, self._now()
        noted = now if seen is None else now - max(0.0, (moment - seen).total_seconds())
        if seen is None or now >= noted + NOTE:
            noted = now
            self._used[caller.key_id] = moment
        self._known[place] = _Known(caller, now, noted, holder.key.expires_at, until)
        while len(self._known) > CAPACITY:
            self._known.popitem(last=False)

    async def check(self, now: float) -> Callable[[Caller], bool]:
        """To be called a few times a second: asks what has changed, and trusts nothing any more that is remembered of that; tells for a
        caller of old whether it may be another by now. Raises what the database raises; nothing is missed by that."""
        found = await self._changes(self._newest)
        if self._newest is None or not found or found[0] != self._newest:
            touched: Callable[[Caller], bool] = _everyone
        else:
            touched = _of(found[1:])
        self._newest = found[-1] if found else None
        if touched is not _nobody:
            self._drop(touched)
        self._checked = now
        return touched

    def forget(self, key_id: str) -> None:
        """Trusts nothing that is remembered of this key, from now on."""
        self._drop(lambda caller: caller.key_id == key_id)

    def forget_where(self, touched: Callable[[Caller], bool]) -> None:
        """As `forget`, of all keys of such callers."""
        self._drop(touched)

    def _drop(self, touched: Callable[[Caller], bool]) -> None:
        self._generation += 1
        for place in [place for place, held in self._known.items() if touched(held.caller)]:
            del self._known[place]

    def forget_all(self) -> None:
        """Trusts nothing that is remembered, from now on."""
        self._generation += 1
        self._known.clear()

    def used(self) -> dict[str, datetime]:
        """Some keys that were used, each once a minute, and when; nobody is told of them again. What cannot be written goes back with
        `keep`."""
        used = dict(islice(self._used.items(), BATCH))
        for key_id in used:
            del self._used[key_id]
        return used

    def keep(self, used: dict[str, datetime]) -> None:
        """Takes back what `used` handed over; what was seen since then is newer."""
        self._used = {**used, **self._used}


def _group(org: str, team: str) -> str:
    """A team as owners of workers name it. Names are of one organisation each, and may have slashes in them: what is before the first one
    is the organisation. One whose own name has one cannot be named, so nothing is kept for it."""
    if not team or "/" in org:
        return ""
    return f"{org}/{team}" if org else team


def _expired() -> errors.Unauthenticated:
    return errors.Unauthenticated("This API key has expired.", code="expired_api_key")


def _everyone(caller: Caller) -> bool:
    return True


def _nobody(caller: Caller) -> bool:
    return False


def _of(changes: Collection[Change]) -> Callable[[Caller], bool]:
    """Who may be another after these changes."""
    if not changes:
        return _nobody
    ids = {noun: {change.row_id for change in changes if change.noun == noun} for noun in ("keys", "teams", "users", "orgs")}
    keys, teams, users, orgs = ids["keys"], ids["teams"], ids["users"], ids["orgs"]
    return lambda caller: caller.key_id in keys or caller.team_id in teams or caller.user_id in users or caller.org_id in orgs


def shown(key: str) -> str:
    """As much of a key as may be said aloud: nothing of the secret."""
    printable = "".join(c for c in key[:15] if c.isascii() and (c.isalnum() or c in "_-"))
    return f"{printable[:4]}***"
