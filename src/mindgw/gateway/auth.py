"""Whose key is it? Syntax and checksum first, then memory, then the database: garbage never costs a statement.

What is remembered is an immutable snapshot under the SHA-256 of the whole key, for a few seconds. Forgetting a key also
voids look-ups that are under way, so that a slow one cannot bring a revoked key back.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from mindgw import errors
from mindgw.gateway import scope
from mindgw.gateway.admission import Caller, Rate
from mindgw.store.keys import Holder
from mindgw.store.tables import Key
from mindgw_agent import tokens

#: Seconds for which a key is trusted without asking the database again.
TTL = 5.0
#: Seconds beyond that for which it is trusted while the database is away, and seconds between questions whether it is back.
GRACE, ASK = 300.0, 1.0
CAPACITY = 10_000

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


class Auth:
    """Turns keys into callers."""

    def __init__(self, find: Callable[[str], Awaitable[Holder | None]], peppers: Mapping[int, bytes], now: Callable[[], datetime]) -> None:
        #: key id -> its row and holder, None when there is none.
        self._find = find
        #: pepper version -> pepper.
        self._peppers = peppers
        self._now = now
        #: SHA-256 of a whole key -> (caller, monotonic seconds until which it is trusted); the least recently used goes first.
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        #: Monotonic seconds until which the database need not be asked: it did not answer a moment ago.
        self._away_until = 0.0
        #: Raised by `forget`; a look-up that began under an older number is made again.
        self._generation = 0
        #: When each key was last seen, until `used` hands it over to be written.
        # bounded: one entry per key that exists
        self._used: dict[str, datetime] = {}

    def known(self, key: str, now: float) -> Caller | None:
        """The caller, when the key was checked a moment ago; None when it must be looked up. Raises Unauthenticated on garbage."""
        place = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        held = self._known.get(place)
        if held is not None and (now < held[1] or (now < self._away_until and now < held[1] + GRACE)):
            self._known.move_to_end(place)
            return held[0]
        if tokens.parse_key(key) is None:
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        return None

    async def look_up(self, key: str, now: float) -> Caller:
        """The caller, from the database; raises Unauthenticated when the key is unknown, wrong, revoked or expired. While the database is
        away a key that was good a short while ago still is; raises Draining for others."""
        parsed = tokens.parse_key(key)
        if parsed is None:
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        while True:
            generation = self._generation
            try:
                held = await self._find(parsed[0])
            except errors.Draining:
                self._away_until = now + ASK
                if (caller := self.known(key, now)) is None:
                    raise
                return caller
            if generation == self._generation:  # else a key was revoked meanwhile, and this row may be older than that
                break
        caller = self._check(held, parsed[1], key)
        self._remember(key, caller, now)
        return caller

    def _check(self, held: Holder | None, secret: str, key: str) -> Caller:
        row = held.key if held is not None else None
        # An unknown id is compared all the same: its answer takes as long as a wrong secret's.
        pepper = self._peppers.get(row.pepper_version if row else 0, b"\0" * 32)
        digest = hmac.digest(pepper, secret.encode(), "sha256")
        same = hmac.compare_digest(digest, row.digest if row else b"\0" * 32) or self._was(row, secret)
        if held is None or not same:
            raise errors.Unauthenticated(f"Incorrect API key provided: {shown(key)}.")
        caller = self._caller(held)
        self._used[caller.key_id] = self._now()
        return caller

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

    def _caller(self, held: Holder) -> Caller:
        """Raises Unauthenticated when the key is not good any more."""
        row = held.key
        if row.revoked_at is not None:
            raise errors.Unauthenticated("This API key was revoked.", code="revoked_api_key")
        if row.expires_at is not None and row.expires_at <= self._now():
            raise errors.Unauthenticated("This API key has expired.", code="expired_api_key")
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
        )

    def _remember(self, key: str, caller: Caller, now: float) -> None:
        self._known[hashlib.sha256(key.encode()).digest()] = (caller, now + TTL)
        while len(self._known) > CAPACITY:
            self._known.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Trusts nothing that is remembered of this key, from now on."""
        self._forget(lambda caller: caller.key_id == key_id)

    def forget_user(self, user_id: str) -> None:
        """As `forget`, of all keys of a user."""
        self._forget(lambda caller: caller.user_id == user_id)

    def _forget(self, meant: Callable[[Caller], bool]) -> None:
        self._generation += 1
        for place in [place for place, (caller, _) in self._known.items() if meant(caller)]:
            del self._known[place]

    def forget_all(self) -> None:
        """Trusts nothing that is remembered, from now on."""
        self._generation += 1
        self._known.clear()

    def used(self) -> dict[str, datetime]:
        """Keys that were looked up since the last call, and when; what cannot be written goes back with `keep`."""
        used, self._used = self._used, {}
        return used

    def keep(self, used: dict[str, datetime]) -> None:
        """Takes back what `used` handed over; what was seen since then is newer."""
        self._used = {**used, **self._used}


def shown(key: str) -> str:
    """As much of a key as may be said aloud: nothing of the secret."""
    printable = "".join(c for c in key[:15] if c.isascii() and (c.isalnum() or c in "_-"))
    return f"{printable[:4]}***"
