"""Loans of budgets: this process reserves out of leases that are durable, and asks the database for more only when one is dry.

All loans that are wanted at one moment are asked for in one transaction, and no refusal is final before the budget's own row was read.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from mindgw import errors
from mindgw.core import quota
from mindgw.core.quota import Budget, Claim, Leases
from mindgw.gateway.reservation import Reservation
from mindgw.store.database import Unsure
from mindgw.store.quotas import Lent, Want

log = logging.getLogger("mindgw.quota")

#: Times that a request asks for a loan while the row shows that there is one to be had.
TRIES = 5
#: Seconds that a loan may take before the request is told to come back later.
PATIENCE = 5.0
#: Requests that may wait for a transaction before they stand in line.
DOUBTFUL = 256
#: Units, for people.
WORDS = {quota.TOKENS: "tokens", quota.USD: "micro-dollars"}


class Bank(Protocol):
    """The database."""

    def borrow(self, wants: Sequence[Want]) -> Awaitable[Sequence[Lent]]:
        """All loans of one transaction, in the order of their budgets; a budget whose limit is gone is left out. Raises what the database
        raises, and then nothing was lent."""

    def give_back(self, number: int, amounts: dict[Budget, int]) -> Awaitable[object]:
        """Loans that are not needed any more, under a number that rises; raises what the database raises, and then nothing was given back;
        or Unsure, and then they must be given back again under the same number, which is done once."""


Answer = asyncio.Future[dict[Budget, Lent]]


class Desk:
    """Where loans are asked for, one transaction at a time."""

    def __init__(self, bank: Bank, noted: Callable[[Claim, Lent | None], None]) -> None:
        """`noted` is told of each row that `look` asked for; None: there is no such row any more."""
        self._bank = bank
        self._noted = noted
        self.leases = Leases()
        #: Budgets of which little is left, and of which something lies here that nobody needs.
        # bounded: budgets of limits that exist
        self.spare: set[Budget] = set()
        #: What was on loan under limits that are others by now, and must go back whatever happens.
        # bounded: as above
        self._recalled: dict[Budget, int] = {}
        #: What goes back in one transaction, one after the other; how many there were, and the last of them if nobody knows whether it did.
        self._returning = asyncio.Lock()
        self._returns = 0
        # bounded: as above
        self._unsure: dict[Budget, int] = {}
        #: Who waits for the next transaction, whose rows are to be looked at in it, and the task that makes them.
        # bounded: requests that have a slot, and DOUBTFUL; budgets of limits that exist
        self._waiting: dict[Answer, Reservation] = {}
        self._looks: dict[Budget, Claim] = {}
        self._task: asyncio.Task[None] | None = None

    def start_over(self) -> None:
        """What was on loan is lost: it belongs to a run that others took for dead."""
        for budget in self.leases.budgets():
            self.leases.forget(budget)
        self.spare.clear()
        self._recalled = {}
        self._unsure = {}

    @property
    def is_crowded(self) -> bool:
        """Whether so many wait for the next transaction that nobody should who has no slot."""
        return len(self._waiting) >= DOUBTFUL

    def recall(self, budget: Budget) -> None:
        """The limit is another one now: what is on loan goes back, and is lent anew."""
        if n := self.leases.recall(budget):
            self._recalled[budget] = self._recalled.get(budget, 0) + n

    async def fund(self, reservation: Reservation) -> None:
        """Returns when it is held, or over. Raises QuotaExceeded when a limit is used up, RateLimited when what is left of it is reserved
        by others, and Draining when the database does not answer."""
        for _ in range(TRIES):
            rows = await self._ask(reservation)
            if reservation.is_over:
                return  # its budgets may not have been asked for
            for claim in reservation.keep(rows):
                self.leases.forget(claim.budget)
            if reservation.reserve():
                return
            if self._is_scarce(reservation, rows) and reservation.squeeze():
                return
            refusal = self._judge(reservation, rows)
            if refusal is not None:
                # the leases of several processes may each have too little, and all of them together enough
                self.spare.update(claim.budget for part in reservation.parts for claim in part.short(part.least))
                raise refusal
        raise reserved()

    def _is_scarce(self, reservation: Reservation, rows: dict[Budget, Lent]) -> bool:
        """Whether the rows, too, leave less than it would like: nobody is content with less only because somebody else was faster."""
        wishes = ((claim.budget, part.most) for part in reservation.parts for claim in part.short(part.most))
        return any(_left(rows[budget]) + self.leases.free(budget) < most[budget.unit] for budget, most in wishes)

    def _judge(self, reservation: Reservation, rows: dict[Budget, Lent]) -> errors.MindGWError | None:
        """Why it cannot be held, as the rows say; None when they leave enough: somebody else was faster."""
        for part in reservation.parts:
            least = part.least
            for claim in part.short(least):
                row, need = rows[claim.budget], least[claim.budget.unit]
                left = row.limit - row.used - self.leases.drawn(claim.budget)
                if left < need:
                    return exceeded(claim, max(0, left), need)
                if _left(row) + self.leases.free(claim.budget) < need:
                    return reserved()
        return None

    async def _ask(self, reservation: Reservation) -> dict[Budget, Lent]:
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting[answer] = reservation
        self._open()
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            raise unavailable() from None
        finally:
            self._waiting.pop(answer, None)

    def look(self, claim: Claim) -> None:
        """Asks for the row of a budget, with a loan if it likes; the answer comes by `noted`."""
        self._looks[claim.budget] = claim
        self._open()

    def _open(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        """One transaction after the other, as long as somebody waits."""
        while self._waiting or self._looks:
            waiting, self._waiting = self._waiting, {}
            looks, self._looks = self._looks, {}
            try:
                lent = await self._bank.borrow(self._wants(waiting.values(), looks.values()))
            except Exception:  # the top of a task: the database is away, and whoever waits must hear something
                log.exception("no budget could be borrowed")
                _tell(waiting, unavailable())
                continue
            rows = {one.budget: one for one in lent}
            for one in lent:
                self.leases.lend(one.budget, one.amount, one.used, one.reserved, one.limit)
            for claim in looks.values():
                self._noted(claim, rows.get(claim.budget))
            _tell(waiting, rows)

    def _wants(self, reservations: Iterable[Reservation], looks: Iterable[Claim]) -> list[Want]:
        """One wish for each budget: what the most modest cannot do without beside what lies here, and together what all would like."""
        found: dict[Budget, tuple[str, int, int]] = {claim.budget: (claim.period, 0, 0) for claim in looks}
        for part in (part for reservation in reservations if not reservation.is_over for part in reservation.parts):
            most, least = part.most, part.least
            for claim in part.claims:
                unit = claim.budget.unit
                _, smallest, together = found.get(claim.budget, ("", 0, 0))
                smallest = min(least[unit], smallest) if together else least[unit]
                found[claim.budget] = (claim.period, smallest, together + most[unit])
        free = self.leases.free
        return [Want(budget, period, max(0, least - free(budget)), most) for budget, (period, least, most) in found.items()]

    async def return_spare(self, now: float, day: str) -> None:
        """Gives back what others need more. Raises what the database raises; nothing is lost then."""
        async with self._returning:
            await self._make_sure()
            recalled, self._recalled = self._recalled, {}
            await self._return(recalled, self._recall_again)
            spare, self.spare = self.spare, set()
            await self._return(self.leases.begin_return(now, day, spare), self.leases.kept)

    async def return_all(self, now: float, day: str) -> None:
        """Gives back what is not needed; to be called every now and then."""
        async with self._returning:
            await self._make_sure()
            await self._return(self.leases.begin_return(now, day), self.leases.kept)

    async def _make_sure(self) -> None:
        """Gives back again what may have gone back."""
        if amounts := self._unsure:
            await self._bank.give_back(self._returns, amounts)
            self._is_back(amounts)

    async def _return(self, amounts: dict[Budget, int], keep: Callable[[dict[Budget, int]], None]) -> None:
        """`keep` is told of what certainly could not go back."""
        if not amounts:
            return
        self._returns += 1
        self._unsure = amounts
        try:
            await self._bank.give_back(self._returns, amounts)
        except (Unsure, asyncio.CancelledError):
            raise
        except BaseException:
            if self._unsure is amounts:
                self._unsure = {}
                keep(amounts)
            raise
        self._is_back(amounts)

    def _is_back(self, amounts: dict[Budget, int]) -> None:
        if self._unsure is amounts:  # else all was started over meanwhile, and the leases of today never had them
            self._unsure = {}
            self.leases.returned(amounts)

    def _recall_again(self, amounts: dict[Budget, int]) -> None:
        for budget, n in amounts.items():
            self._recalled[budget] = self._recalled.get(budget, 0) + n


def _left(row: Lent) -> int:
    """What nobody has used or reserved."""
    return row.limit - row.used - row.reserved


def _tell(waiting: Iterable[Answer], answer: dict[Budget, Lent] | errors.MindGWError) -> None:
    for future in waiting:
        if future.done():
            continue  # who waited for it has left
        if isinstance(answer, errors.MindGWError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def exceeded(claim: Claim, left: int, need: int) -> errors.QuotaExceeded:
    """The limit is used up, or as good as: no wait helps before its window is over."""
    kind = claim.budget.scope.partition(":")[0]
    span = {"day": " today", "month": " this month"}.get(claim.period, "")
    rest = f"; {left} are left and this request needs {need}" if left else ""
    window = claim.budget.window
    anew = quota.resets(claim.period, window if claim.period == quota.DAY else f"{window}-01") if span else ""
    again = f" It begins anew on {anew} (UTC)." if anew else ""
    return errors.QuotaExceeded(f"The quota of this {kind} is used up: {claim.limit} {WORDS[claim.budget.unit]}{span}{rest}.{again}")


def reserved() -> errors.RateLimited:
    """What is left is held by requests that run."""
    return errors.RateLimited("What is left of the quota is reserved by requests that run; try again in a moment.", retry_after=1.0)


def unavailable() -> errors.Draining:
    """Nobody can tell what is left."""
    return errors.Draining("Quotas cannot be checked at the moment.", code="quota_unavailable", retry_after=5)
