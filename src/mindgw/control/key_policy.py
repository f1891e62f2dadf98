"""What API keys must keep to, as the settings say, and when each has to go."""

from datetime import datetime, timedelta
from typing import Protocol

from mindgw import config
from mindgw.errors import BadRequest
from mindgw.store.keys import Holder


class Dated(Protocol):
    """When things happened to a key."""

    @property
    def provider(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def rotated_at(self) -> datetime | None: ...
    @property
    def last_used_at(self) -> datetime | None: ...
    @property
    def expires_at(self) -> datetime | None: ...


def ends(key: Dated, policy: config.Keys) -> datetime | None:
    """When a key is good no longer, unless it is rotated or used before; None: never. The policy is about secrets: a key that an identity
    provider's tokens stand for has none."""
    if key.provider:
        return key.expires_at
    made = key.created_at
    rules = (
        (made, policy.max_age),
        (key.rotated_at or made, policy.rotate_every),
        (max(key.last_used_at or made, key.rotated_at or made), policy.unused),
    )
    found = [since + timedelta(seconds=span) for since, span in rules if span]
    return min([*found, *([key.expires_at] if key.expires_at is not None else [])], default=None)


def bound(holder: Holder | None, policy: config.Keys) -> Holder | None:
    """A key as it is to be judged: it ends when the policy says so."""
    return holder._replace(ends=ends(holder.key, policy)) if holder is not None else None


def check(expires_at: datetime | None, now: datetime, policy: config.Keys, made: datetime | None = None) -> datetime | None:
    """The end of a key that was made then (None: it is being made): as wished, else the last that the policy allows. Raises
    BadRequest."""
    last = (made or now) + timedelta(seconds=policy.max_age) if policy.max_age else None
    if expires_at is None:
        return last
    if expires_at.tzinfo is None:
        raise BadRequest("'expires_at' must say its zone, as in 2027-01-31T12:00:00Z.", param="expires_at")
    if expires_at <= now:
        raise BadRequest("'expires_at' must lie ahead.", param="expires_at")
    if last is not None and expires_at > last:
        days = policy.max_age / 86400
        raise BadRequest(f"No key may be good for more than {days:g} days here (keys.max_age).", param="expires_at")
    return expires_at
