"""What may still be used: limits and their windows, and the leases that one process holds of them.

A limit counts one unit of one scope in one window. Other processes take from the same row, so each keeps a lease, a part of the limit
that the row says is reserved for it. Requests hold what they may come to use inside the lease, in memory; what they did use is drawn
from the lease and leaves it once it stands in the ledger. Integers only: tokens, or millionths of a dollar.
"""

import re
from calendar import monthrange
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct

TOKENS, USD = "tokens", "usd"
UNITS = (TOKENS, USD)
DAY, MONTH, TOTAL = "day", "month", "total"
PERIODS = (DAY, MONTH, TOTAL)
#: What happens to requests when a limit is used up. "block" and "soft" refuse, the first before a request can use more than is left, the
#: second once more was used; the others let it pass, later than others, or with a note.
BLOCK, SOFT, QUEUE_LOW, ALERT, SHADOW = "block", "soft", "queue-low", "alert", "shadow"
MODES = (BLOCK, SOFT, QUEUE_LOW, ALERT, SHADOW)

#: Largest limit: every integer up to here is exact in JSON, wherever it is read.
MOST = 2**53
#: Millionths in a dollar.
MICRO = 1_000_000
#: Seconds for which nothing was held in a lease until what is free of it goes back.
IDLE = 60.0
#: Seconds that a fresh grant waits for the request that asked for it, however much others need it.
GRACE = 1.0

#: Largest ordinary grant, by unit.
_LARGEST = {TOKENS: 200_000, USD: 2 * MICRO}


_LIMIT = re.compile(r"(?P<whole>\d+(?:_\d+)*)(?:\.(?P<part>\d+))?(?P<suffix>[kmgb]?)", re.ASCII | re.IGNORECASE)
_ZEROS = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9}
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)


def parse_limit(text: str, unit: str = TOKENS) -> tuple[int, str]:
    """`5M/month`, `2.5k/day`, `1_000/total`, or in dollars `12.50/month`: the limit and its period. 0 means that nothing may be used.
    Dollars come back in millionths. Raises ValueError, in words for whoever wrote it."""
    amount, slash, period = (part.strip() for part in text.partition("/"))
    example = "12.50/month" if unit == USD else "5M/month"
    if not slash:
        raise ValueError(f"a limit is an amount and a period, such as {example}, not {text[:40]!r}")
    if period not in PERIODS:
        raise ValueError(f"a limit is for a day, for a month, or in total: {amount[:40]}/day, /month or /total, not {period[:40]!r}")
    return _amount(amount, unit, example), period


def _amount(text: str, unit: str, example: str) -> int:
    said = _LIMIT.fullmatch(text)
    if said is None:
        negative = " (and not less than 0)" if text.startswith("-") else ""
        raise ValueError(f"a limit is a plain number{negative} that may end in k, M or G, such as {example}, not {text[:40]!r}")
    whole, part = said["whole"].replace("_", ""), (said["part"] or "").rstrip("0")
    zeros = _ZEROS[said["suffix"].lower()] + (6 if unit == USD else 0)
    if len(part) > zeros:
        finest = "a millionth of a dollar" if unit == USD else "one token"
        raise ValueError(f"the smallest step of a limit is {finest}: {text[:40]!r} is finer")
    # the length first: nobody should wait for a number of a million digits to be read
    if len(whole.lstrip("0")) > 16 or (value := int(whole + part.ljust(zeros, "0"))) > MOST:
        raise ValueError(f"the largest limit is {MOST // MICRO if unit == USD else MOST}, {text[:40]!r} is more")
    return value


def window(period: str, day: str) -> str:
    """The window of a period in which a day ("2026-11-21", UTC) lies. Raises ValueError for a period that there is not."""
    if period == DAY:
        return day
    if period == MONTH:
        return day[:7]
    if period == TOTAL:
        return TOTAL
    raise ValueError(f"there is no period {period!r}: day, month or total")


def period_of(window: str) -> str:
    """The period that a window is one of."""
    return TOTAL if window == TOTAL else DAY if window.count("-") == 2 else MONTH


def resets(period: str, day: str) -> str:
    """The first day after the window in which `day` lies; "" when it never ends. Raises ValueError for what is no period or no day."""
    year, month, date = _date(day)
    if window(period, day) == TOTAL:
        return ""
    if period == DAY and date < monthrange(year, month)[1]:
        return f"{year:04}-{month:02}-{date + 1:02}"
    return f"{year + month // 12:04}-{month % 12 + 1:02}-01"


def is_over(window: str, day: str) -> bool:
    """Whether a window ended before `day`."""
    return window != TOTAL and window < day[: len(window)]


def _date(day: str) -> tuple[int, int, int]:
    said = _DATE.fullmatch(day)
    year, month, date = (int(part) for part in said.groups()) if said else (0, 0, 0)
    if not (1 <= year <= 9998 and 1 <= month <= 12 and 1 <= date <= monthrange(year, month)[1]):
        raise ValueError(f"there is no day {day[:40]!r}: one is written like 2026-11-21")
    return year, month, date


def quantum(limit: int, unit: str = TOKENS) -> int:
    """An ordinary grant: what a process keeps of a limit, so that it need not ask for each request."""
    return max(1, min(limit // 64, _LARGEST[unit]))


def scarce(limit: int, unit: str = TOKENS) -> int:
    """When less than this is left of a limit, each request is granted what it needs and no more, and what it leaves goes back at once."""
    return max(2 * quantum(limit, unit), limit // 20)


def grant(left: int, limit: int, unit: str, least: int, want: int) -> int:
    """How much of the `left` (limit - used - reserved) is granted to whoever needs `least` and would like `want`; 0 when it will not do."""
    ordinary = max(want, quantum(limit, unit))
    if left - ordinary >= scarce(limit, unit):
        return ordinary
    return min(want, left) if left >= max(least, 1) else 0


class Budget(NamedTuple):
    """What is counted together: one unit of one scope in one window."""

    scope: str
    unit: str
    window: str


class Draw(NamedTuple):
    """What a settled request takes out of a lease."""

    budget: Budget
    amount: int


class Claim(Struct, frozen=True):
    """A limit that a request stands under."""

    budget: Budget
    period: str
    mode: str
    limit: int


class Row(Struct, frozen=True):
    """A budget as its row was last read, with what happened to this process's lease since."""

    used: int
    reserved: int
    limit: int

    @property
    def left(self) -> int:
        """What nobody has used or reserved; below 0 when more was used than the limit allows."""
        return self.limit - self.used - self.reserved

    def used_up(self, least: int) -> bool:
        """Whether `least` would not fit even if everything that is reserved came back: waiting for others does not help."""
        return self.used + least > self.limit


class Settled(Struct, frozen=True, gc=False):
    """What became of a hold."""

    #: What left which lease, to be written with the ledger's row and then reported by `Leases.written`.
    draws: tuple[Draw, ...] = ()
    #: The most tokens that were used and that one of the leases had not.
    over: int = 0
    #: Budgets of which little is left, and whose leases have something to give back: to be given to `Leases.begin_return` now.
    spare: tuple[Budget, ...] = ()


class _Lease:
    """One process's part of a budget."""

    __slots__ = (
        "budget", "drawn", "free", "fresh", "held", "limit", "reserved", "returning", "since", "stirred", "tight", "unit", "used", "void",
    )  # fmt: skip

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.unit = budget.unit
        #: What a request may hold; what requests hold; what was drawn and is not in the ledger yet; what is on its way back.
        #: Together they are what the row has reserved for this process.
        self.free = self.held = self.drawn = self.returning = 0
        #: The part of what is free that came with grants and that nobody has held yet.
        self.fresh = 0
        #: The row as it was last read, put forward by what went back or into the ledger; the limit is -1 before the first time.
        self.used = self.reserved = 0
        self.limit = -1
        #: Whether little is left in the row.
        self.tight = False
        #: Whether the budget is gone: what is held draws nothing any more.
        self.void = False
        #: Whether it was touched since `begin_return` last looked, and since when it was not; None before the first look.
        self.stirred = True
        self.since: float | None = None

    def reckon(self) -> None:
        """Notes whether the row is nearly used up."""
        self.tight = self.limit - self.used - self.reserved < scarce(self.limit, self.unit)

    def quiet(self, now: float) -> float:
        """Seconds for which nothing happened here, as far as looks can tell."""
        if self.stirred or self.since is None:
            self.stirred, self.since = False, now
        return now - self.since

    def take_spare(self, now: float, day: str) -> int:
        """What need not stay, put on its way back."""
        quiet = self.quiet(now)
        if quiet >= GRACE:
            self.fresh = 0
        spare = 0
        if quiet >= IDLE or is_over(self.budget.window, day):
            spare = self.free
        elif self.tight:
            spare = self.free - self.fresh
        self.free -= spare
        self.returning += spare
        self.fresh = min(self.fresh, self.free)
        return spare

    def lose(self, n: int) -> None:
        """The row took more from this lease than it knew of: a budget that was forgotten and came back still had something under way."""
        self.free -= min(n, self.free)
        self.fresh = min(self.fresh, self.free)

    def is_done(self, now: float, day: str) -> bool:
        """Whether it can be forgotten: nothing is in it, and nobody comes for it any more."""
        if self.free or self.held or self.drawn or self.returning:
            return False
        return is_over(self.budget.window, day) or self.quiet(now) >= IDLE


class Hold:
    """What one request holds in each of its budgets. Whoever took it settles it, once."""

    __slots__ = ("open", "taken")

    def __init__(self, taken: list[tuple[_Lease, int]]) -> None:
        #: What was taken out of which lease.
        self.taken = taken
        #: False once it is settled.
        self.open = True

    @property
    def amounts(self) -> dict[str, int]:
        """What it holds of each of its budgets, by their unit; still what it held when it is settled."""
        return {lease.unit: n for lease, n in self.taken}

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Out of whose leases."""
        return tuple(lease.budget for lease, _ in self.taken)


_NOTHING = Settled()


class Leases:
    """All leases of one process.

    One owner, no waiting between two calls. What was granted (`lend`) is at all times free, held, drawn and not yet `written`, or on its
    way back (`begin_return` until `returned` or `kept`). Which claims a request must hold is the caller's matter: all are alike here.
    """

    def __init__(self) -> None:
        #: Leases by their budget; `begin_return` forgets those that are empty and of no use.
        self._leases: dict[Budget, _Lease] = {}

    def cover(self, claims: Iterable[Claim], amounts: Mapping[str, int]) -> tuple[Claim, ...]:
        """The claims in whose lease less is free than the amount of its unit; of a unit that is not named nothing is wanted."""
        leases = self._leases
        short = []
        for claim in claims:
            budget = claim.budget
            lease = leases.get(budget)
            if (lease.free if lease is not None else 0) < amounts.get(budget[1], 0):
                short.append(claim)
        return tuple(short)

    def budgets(self) -> list[Budget]:
        """Those that have a lease."""
        return list(self._leases)

    def free(self, budget: Budget) -> int:
        """What a request could hold of a budget now."""
        lease = self._leases.get(budget)
        return lease.free if lease is not None else 0

    def drawn(self, budget: Budget) -> int:
        """What was used of it and is not in the ledger yet: the row still has it as reserved."""
        lease = self._leases.get(budget)
        return lease.drawn if lease is not None else 0

    def lacks(self, budget: Budget, need: int) -> bool:
        """Whether so much would not be there even if all that others have reserved came back, as far as the row is known."""
        lease = self._leases.get(budget)
        return lease is not None and lease.free < need and 0 <= lease.limit < lease.used + lease.drawn + need

    def row(self, budget: Budget) -> Row | None:
        """What is known of a budget's row; None when it was not read lately."""
        lease = self._leases.get(budget)
        return Row(lease.used, lease.reserved, lease.limit) if lease is not None and lease.limit >= 0 else None

    def rows(self) -> Iterator[tuple[Budget, Row]]:
        """All budgets whose rows are known, with what was used since counted as used."""
        for budget, lease in self._leases.items():
            if lease.limit >= 0:
                yield budget, Row(lease.used + lease.drawn, lease.reserved - lease.drawn, lease.limit)

    def hold(self, claims: Iterable[Claim], amounts: Mapping[str, int]) -> Hold | None:
        """Takes `amounts` (by unit) out of what is free, of all claims or of none: None when one has less, or the amount is negative."""
        leases = self._leases
        taken: list[tuple[_Lease, int]] = []
        for claim in claims:
            budget = claim.budget
            n = amounts.get(budget[1], 0)
            lease = leases.get(budget)
            if lease is None:
                lease = leases[budget] = _Lease(budget)
            if not 0 <= n <= lease.free:
                for other, some in taken:
                    other.held -= some
                    other.free += some
                return None
            lease.free -= n
            lease.held += n
            lease.stirred = True
            if lease.fresh:
                lease.fresh = lease.fresh - n if lease.fresh > n else 0
            taken.append((lease, n))
        return Hold(taken)

    def settle(self, hold: Hold, actual: Mapping[str, int]) -> Settled:
        """Ends a hold: draws what was used (by unit; what is not named was not used), as far as the lease has it, and frees the rest.
        A second time nothing happens."""
        if not hold.open:
            return _NOTHING
        hold.open = False
        over = 0
        draws, spare = [], []
        for lease, n in hold.taken:
            used = actual.get(lease.unit, 0)
            used = used if used > 0 else 0  # noqa: FURB136 (max() is a call, on the hot path)
            lease.held -= n
            lease.free += n
            lease.stirred = True
            if lease.void:
                continue
            drawn = used if used <= lease.free else lease.free  # noqa: FURB136 (min() is a call, on the hot path)
            if drawn > 0:
                lease.free -= drawn
                lease.drawn += drawn
                draws.append(Draw(lease.budget, drawn))
            if drawn < used and lease.unit == TOKENS:
                over = max(over, used - drawn)
            if lease.tight and lease.free > lease.fresh:
                spare.append(lease.budget)
        return Settled(tuple(draws), over, tuple(spare))

    def lend(self, budget: Budget, amount: int, used: int, reserved: int, limit: int) -> None:
        """The row was read, after `amount` (0 for nothing) was reserved in it for this process. Raises ValueError when that is negative."""
        if amount < 0:
            raise ValueError(f"a grant of {amount} {budget.unit}")
        if (lease := self._leases.get(budget)) is None:
            lease = self._leases[budget] = _Lease(budget)
        lease.free += amount
        lease.fresh += amount
        lease.used, lease.reserved, lease.limit = used, reserved, limit
        lease.stirred |= amount > 0  # who asks in vain must not keep here what is too little for him, and too much for others
        lease.reckon()

    def written(self, draws: Iterable[Draw]) -> None:
        """Draws are in the ledger: the row has them as used now, no longer as this lease."""
        for budget, n in draws:
            if (lease := self._leases.get(budget)) is not None:
                moved = min(n, lease.drawn)
                lease.drawn -= moved
                lease.used += n
                lease.reserved -= n
                lease.lose(n - moved)

    def begin_return(self, now: float, day: str, only: Collection[Budget] | None = None) -> dict[Budget, int]:
        """Takes out what should go back to the rows: of windows that are over, of leases that nobody used for IDLE, and, where little is
        left for all, whatever is free. `only` looks at these budgets alone. `returned` or `kept` must follow, with the same amounts."""
        back = {}
        for budget in self.budgets() if only is None else only:
            lease = self._leases.get(budget)
            if lease is None:
                continue
            if n := lease.take_spare(now, day):
                back[budget] = n
            elif lease.is_done(now, day):
                del self._leases[budget]
        return back

    def returned(self, amounts: Mapping[Budget, int]) -> None:
        """What `begin_return` took out is back in the rows."""
        for budget, n in amounts.items():
            if (lease := self._leases.get(budget)) is not None:
                moved = min(n, lease.returning)
                lease.returning -= moved
                lease.reserved -= n
                lease.lose(n - moved)
                lease.reckon()

    def kept(self, amounts: Mapping[Budget, int]) -> None:
        """What `begin_return` took out could not go back: it is free again."""
        for budget, n in amounts.items():
            if (lease := self._leases.get(budget)) is not None:
                moved = min(n, lease.returning)
                lease.returning -= moved
                lease.free += moved

    def recall(self, budget: Budget) -> int:
        """The limit is another one now: takes out whatever is free, to be lent anew; `returned` or `kept` must follow."""
        lease = self._leases.get(budget)
        if lease is None:
            return 0
        n, lease.free, lease.fresh = lease.free, 0, 0
        lease.returning += n
        return n

    def forget(self, budget: Budget) -> None:
        """The budget is gone, and its leases with it: what requests still hold of it draws nothing."""
        if (lease := self._leases.pop(budget, None)) is not None:
            lease.void = True
