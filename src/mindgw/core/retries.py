"""How many requests may be tried again because an engine failed, so that a broken fleet is not asked more than it would be anyway.

A token bucket that fills with what is asked: each request puts in its `share` of a retry, each retry takes out one whole. A few are in it
from the start and come back with time, for who asks rarely has not saved any. So of N requests within T seconds no more than
`N x (1 + share) + least x (1 + T / REGAIN)` calls are made, but for what was saved before, at most MOST. Source: the retry budgets of
Finagle and Envoy (20 %, at least 3).

Of that each tenant has no more than it saved itself (`Shares`): whoever sends what fails everywhere takes nobody else's retries. Pure:
`now` is given, never read.
"""

#: Seconds in which the least that there may be comes back.
REGAIN = 60.0
#: Retries that are saved at most: a worker that breaks takes all its requests with it at once.
MOST = 1000.0
#: Tenants whose savings are known; of others it is as if they had just come.
TENANTS = 1000


class Retries:
    """One budget, for all who try again."""

    __slots__ = ("_at", "_least", "_saved", "_share")

    def __init__(self, share: float = 0.2, least: int = 3, now: float = 0.0) -> None:
        """`share`: retries for each request, 0 or more; `least`: those that there are at first, and again after a quiet while."""
        self._share = share
        self._least = float(least)
        self._saved = self._least
        #: When time last gave something back.
        self._at = now

    def offer(self) -> None:
        """A request came, and was sent for the first time."""
        saved = self._saved + self._share
        self._saved = saved if saved < MOST else max(MOST, self._saved)

    def left(self, now: float) -> float:
        """Retries that may be made now."""
        passed, self._at = max(0.0, now - self._at), max(self._at, now)
        if self._saved < self._least:
            self._saved = min(self._least, self._saved + self._least * passed / REGAIN)
        return self._saved

    def take(self, now: float) -> bool:
        """Takes one out; False when there is none."""
        if self.left(now) < 1.0:
            return False
        self._saved -= 1.0
        return True


class Shares:
    """One budget for all, and of that one for each tenant. A retry comes out of both."""

    __slots__ = ("_each", "_least", "_share", "all")

    def __init__(self, share: float = 0.2, least: int = 3, now: float = 0.0) -> None:
        """As `Retries`."""
        self._share = share
        self._least = least
        self.all = Retries(share, least, now)
        # bounded: by TENANTS
        self._each: dict[str, Retries] = {}

    def offer(self, tenant: str, now: float) -> None:
        """A request of a tenant came, and was sent for the first time."""
        self.all.offer()
        own = self._each.get(tenant) or self._meet(tenant, now)
        own.offer()

    def left(self, tenant: str, now: float) -> float:
        """Retries that a tenant may make now."""
        own = self._each.get(tenant) or self._meet(tenant, now)
        return min(self.all.left(now), own.left(now))

    def take(self, tenant: str, now: float) -> bool:
        """Takes one out; False when there is none."""
        if self.left(tenant, now) < 1.0:
            return False
        return self.all.take(now) and self._each[tenant].take(now)

    def _meet(self, tenant: str, now: float) -> Retries:
        if len(self._each) >= TENANTS:
            del self._each[next(iter(self._each))]
        own = self._each[tenant] = Retries(self._share, self._least, now)
        return own
