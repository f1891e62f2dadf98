"""How often one may ask: requests and tokens a minute, and requests at once, of keys, users, teams and organisations.

A request is counted when its key is known, before its body is read. What it will take in tokens nobody knows by then: it goes on as long
as any are left, is charged what can be told from its body, and in the end what it took. What was too much is paid by those who wait.
Counts are this process's own and are not kept: every server of several allows as much as each rate says.
"""

from collections.abc import Callable, Mapping

from mindgw import addresses, errors, metrics
from mindgw.core.bucket import Bucket
from mindgw.gateway.admission import Ask, Caller, Rate

Headers = list[tuple[bytes, bytes]]

#: Scopes whose counts are kept, beside those that are still being paid off; keys whose scopes are remembered; addresses that failed.
KNOWN = 10_000
#: Seconds after which it is worth asking again when it depends on when others are done.
SOON = 1.0
#: Names of the headers of each count.
_NAMES = [
    (what, (b"x-ratelimit-limit-" + word, b"x-ratelimit-remaining-" + word, b"x-ratelimit-reset-" + word))
    for what, word in (("requests", b"requests"), ("tokens", b"tokens"))
]
#: How each kind of scope is called.
_KINDS = {"key": "API key", "user": "user", "team": "team", "org": "organization"}


class Gauge:
    """The counts of one scope."""

    __slots__ = ("concurrency", "requests", "running", "scope", "tokens")

    def __init__(self, scope: str, rate: Rate, now: int) -> None:
        self.scope = scope
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        #: Requests at once, 0 for no limit; and requests that run.
        self.concurrency = 0
        self.running = 0
        self.adopt(rate, now)

    def adopt(self, rate: Rate, now: int) -> None:
        """This rate from now on; what was used stays used."""
        self.requests = _resized(self.requests, rate.rpm, now)
        self.tokens = _resized(self.tokens, rate.tpm, now)
        self.concurrency = rate.concurrency

    def idle(self, now: int) -> bool:
        """Whether it counts nothing at the moment."""
        return not self.running and all(bucket is None or not bucket.full_in(now) for bucket in (self.requests, self.tokens))


def _resized(bucket: Bucket | None, limit: int, now: int) -> Bucket | None:
    if not limit:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.resize(limit, now)
    return bucket


class Pass:
    """One request that was let in. Call `end` once, whatever becomes of it."""

    __slots__ = ("_charged", "_gauges")

    def __init__(self, gauges: tuple[Gauge, ...]) -> None:
        self._gauges = gauges
        #: Tokens so far.
        self._charged = 0

    @property
    def limits(self) -> list[tuple[str, str, int]]:
        """(scope, rpm, tpm or concurrency, how many) of all that it counts for."""
        found = []
        for gauge in self._gauges:
            buckets = (("rpm", gauge.requests), ("tpm", gauge.tokens))
            found += [(gauge.scope, unit, bucket.limit) for unit, bucket in buckets if bucket is not None]
            found += [(gauge.scope, "concurrency", gauge.concurrency)] if gauge.concurrency else []
        return found

    def charge(self, ask: Ask, now: float) -> None:
        """Takes what can be told from the body: the prompt, and the answer as far as its caller limits it. Raises RateLimited when the
        prompt alone is larger than what any of them may take in a minute."""
        limits = [(gauge.tokens.limit, gauge) for gauge in self._gauges if gauge.tokens is not None]
        if not limits:
            return
        least, gauge = min(limits, key=lambda limit: limit[0])
        if ask.prompt > least:
            raise _too_large(gauge, least, ask.prompt, self.headers(now))
        text = ask.peek.text
        answer = (ask.peek.max_tokens or 0) * (text.answers if text is not None else 1)
        self._take(max(1, ask.prompt + min(answer, least)), int(now * 1e6))

    def end(self, tokens: int, now: float) -> None:
        """It is over, and took so many."""
        if tokens != self._charged:
            self._take(tokens, int(now * 1e6))
        for gauge in self._gauges:
            gauge.running -= 1

    def _take(self, tokens: int, moment: int) -> None:
        more, self._charged = tokens - self._charged, tokens
        for gauge in self._gauges:
            if gauge.tokens is None or not more:
                continue
            if more > 0:
                gauge.tokens.take(more, moment)
            else:
                gauge.tokens.give(-more, moment)

    def headers(self, now: float) -> Headers:
        """How much is left, of the scope that has least."""
        return _standing(self._gauges, int(now * 1e6))


class Rates:
    """All rates."""

    def __init__(self, counters: metrics.Counters, failures: int = 0) -> None:
        """`failures`: requests a minute that one address may send without a good key; 0: any number."""
        self._counters = counters
        self._failures = failures
        #: Rates of users, teams and organisations, by scope.
        self._rates: dict[str, Rate] = {}
        #: scope -> its counts.
        # bounded: by KNOWN, and twice those that are not paid off
        self._gauges: dict[str, Gauge] = {}
        #: How many of them are too many.
        self._crowded = KNOWN
        #: key id -> its caller as it was last, and what a request of it falls under.
        # bounded: by KNOWN
        self._of: dict[str, tuple[Caller, tuple[Gauge, ...]]] = {}
        #: address -> what it may still do wrong.
        # bounded: by KNOWN
        self._failed: dict[str, Bucket] = {}
        #: Told of every request without a good key: its address, and the code of the error.
        self.on_failure: Callable[[str, str], None] = lambda address, code: None
        #: Told of every good key where it is not good: its caller, the address, the code of the error, and the path.
        self.on_refusal: Callable[[Caller, str, str, str], None] = lambda caller, address, code, path: None

    def adopt(self, rates: Mapping[str, Rate], now: float) -> None:
        """The rates of users, teams and organisations from now on."""
        if rates == self._rates:
            return
        moment = int(now * 1e6)
        gone = self._rates.keys() - rates.keys()
        self._rates = dict(rates)
        self._of.clear()
        for scope in gone:
            self._gauges.pop(scope, None)
        for scope, rate in rates.items():
            if scope in self._gauges:
                self._gauges[scope].adopt(rate, moment)

    # -- the path -------------------------------------------------------------------------------------------------

    def enter(self, caller: Caller, now: float) -> Pass | None:
        """Counts a request; None when it falls under no rate. Raises RateLimited."""
        if caller.rate is None and not self._rates:
            return None
        known = self._of.get(caller.key_id)
        if known is None or known[0] is not caller:  # another since then: its rate, or whose it is
            known = self._remember(caller, int(now * 1e6))
        gauges = known[1]
        if not gauges:
            return None
        moment = int(now * 1e6)
        for gauge in gauges:
            self._check(gauge, gauges, moment)
        for gauge in gauges:
            gauge.running += 1
            if gauge.requests is not None:
                gauge.requests.take(1, moment)
        return Pass(gauges)

    def _check(self, gauge: Gauge, gauges: tuple[Gauge, ...], moment: int) -> None:
        if gauge.concurrency and gauge.running >= gauge.concurrency:
            self._refuse(gauge, "concurrency", (gauge.concurrency, gauge.running, SOON), gauges, moment)
        requests, tokens = gauge.requests, gauge.tokens
        if requests is not None and requests.left(moment) < 1:
            self._refuse(gauge, "requests", _figures(requests, moment), gauges, moment)
        if tokens is not None and tokens.left(moment) < 1:
            self._refuse(gauge, "tokens", _figures(tokens, moment), gauges, moment)

    def _refuse(self, gauge: Gauge, what: str, figures: tuple[int, int, float], gauges: tuple[Gauge, ...], moment: int) -> None:
        kind, _, id = gauge.scope.partition(":")
        self._counters.rates[kind, what] += 1
        limit, used, wait = figures
        unit = "requests at once" if what == "concurrency" else f"{what} per min"
        said = f"Rate limit reached for {_KINDS[kind]} {id} on {unit}: Limit {limit}, Used {used}."
        message = f"{said} Please try again in {duration(int(wait * 1e6))}."
        raise errors.RateLimited(message, param=None, retry_after=wait, headers=_standing(gauges, moment))

    def _remember(self, caller: Caller, moment: int) -> tuple[Caller, tuple[Gauge, ...]]:
        """What requests of a key fall under."""
        if len(self._of) >= KNOWN:
            self._of.clear()
        if len(self._gauges) >= self._crowded:
            self._gauges = {scope: gauge for scope, gauge in self._gauges.items() if not gauge.idle(moment)}
            self._crowded = max(KNOWN, 2 * len(self._gauges))  # or each newcomer would look at all of them
            self._of.clear()  # or two would count for one
        found = [("key:" + caller.key_id, caller.rate)]
        found += [(scope, self._rates.get(scope)) for scope in _scopes(caller)]
        gauges = tuple(self._gauge(scope, rate, moment) for scope, rate in found if rate is not None)
        known = self._of[caller.key_id] = (caller, gauges)
        return known

    def _gauge(self, scope: str, rate: Rate, moment: int) -> Gauge:
        gauge = self._gauges.get(scope)
        if gauge is None:
            gauge = self._gauges[scope] = Gauge(scope, rate, moment)
        else:
            gauge.adopt(rate, moment)
        return gauge

    # -- who has no key -------------------------------------------------------------------------------------------

    def patience(self, address: str, now: float) -> None:
        """To be called before the database is asked about a key. Raises RateLimited when its address was wrong too often; those of this
        machine never are."""
        bucket = self._failed.get(addresses.group(address)) if self._failed else None
        if bucket is not None and bucket.left(int(now * 1e6)) < 1:
            raise self._banished(bucket, int(now * 1e6))

    def blame(self, address: str, wrong: errors.MindGWError, now: float) -> errors.MindGWError:
        """What a request is to be told that was refused before its key was known to be good: it is counted when that is why."""
        if not isinstance(wrong, errors.Unauthenticated):
            return wrong
        self.on_failure(address, wrong.code)
        who = addresses.group(address) if self._failures else ""
        if not who:
            return wrong
        moment = int(now * 1e6)
        bucket = self._failed.get(who)
        if bucket is None:
            bucket = self._failed[who] = self._newcomer(moment)
        if bucket.left(moment) < 1:
            return self._banished(bucket, moment)
        bucket.take(1, moment)
        return wrong

    def bound(self, caller: Caller, address: str, path: str) -> None:
        """Raises Forbidden for a key that is not good for the path, or not from the address."""
        if caller.scope is None:
            return
        try:
            caller.scope.admit(path, address)
        except errors.Forbidden as wrong:
            self.on_refusal(caller, address, wrong.code, path)
            raise

    def _newcomer(self, moment: int) -> Bucket:
        """A bucket for another address. Where there are too many, those that have paid go, or else the oldest half."""
        if len(self._failed) >= KNOWN:
            self._failed = {who: bucket for who, bucket in self._failed.items() if bucket.full_in(moment)}
        if len(self._failed) >= KNOWN:
            self._failed = dict(list(self._failed.items())[KNOWN // 2 :])
        return Bucket(self._failures, moment)

    def _banished(self, bucket: Bucket, moment: int) -> errors.RateLimited:
        self._counters.rates["address", "failures"] += 1
        wait = bucket.wait(1, moment) / 1e6
        return errors.RateLimited("Your address has sent too many requests without a valid API key.", retry_after=wait)


def _figures(bucket: Bucket, moment: int) -> tuple[int, int, float]:
    """Its limit, what is used of it, and the seconds until one more is in it."""
    return bucket.limit, bucket.limit - bucket.left(moment), bucket.wait(1, moment) / 1e6


def _scopes(caller: Caller) -> tuple[str, ...]:
    pairs = (("user", caller.user_id), ("team", caller.team_id), ("org", caller.org_id))
    return tuple(f"{kind}:{id}" for kind, id in pairs if id)


def _too_large(gauge: Gauge, limit: int, asked: int, headers: Headers) -> errors.RateLimited:
    kind, _, id = gauge.scope.partition(":")
    said = f"Request too large for {_KINDS[kind]} {id} on tokens per min: Limit {limit}, Requested {asked}."
    return errors.RateLimited(f"{said} The prompt must be shorter.", param="messages", headers=headers)


def _standing(gauges: tuple[Gauge, ...], moment: int) -> Headers:
    """The headers that clients read: of requests and of tokens, as the scope has them that has least."""
    found: Headers = []
    for what, names in _NAMES:
        least, left = None, 0
        for gauge in gauges:
            bucket: Bucket | None = getattr(gauge, what)
            if bucket is not None and ((has := bucket.left(moment)) < left or least is None):
                least, left = bucket, has
        if least is not None:
            limit, remaining, reset = names
            found.append((limit, b"%d" % least.limit))
            found.append((remaining, b"%d" % max(0, left)))
            found.append((reset, duration(least.full_in(moment)).encode()))
    return found


def duration(micro: int) -> str:
    """Microseconds as OpenAI writes them, rounded up: 12ms, 8.64s, 6m0s, 1h0m12s."""
    milli = -(-micro // 1000)
    if milli < 1000:
        return f"{milli}ms"
    if milli < 60_000:
        return f"{milli / 1000:g}s"
    minutes, seconds = divmod(-(-milli // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"
