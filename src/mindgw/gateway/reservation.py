"""What one request holds of the budgets that it falls under, from the moment it has a slot until it is settled.

Under a hard limit the hold is a ceiling: the answer is capped so that it cannot use more. Under the others it is what such a request
usually takes, and nothing is capped.
"""

from collections.abc import Container, Sequence

from msgspec import Struct

from mindgw.core import price, quota, usage
from mindgw.core.ceiling import Ceiling
from mindgw.core.price import Price
from mindgw.core.quota import TOKENS, USD, Budget, Claim, Leases

#: Modes that refuse a request; the others only say so.
REFUSING = frozenset({quota.BLOCK, quota.SOFT})


class Sizes(Struct, frozen=True):
    """How large a request may become."""

    #: Tokens that such a request usually takes in all.
    usual: int
    price: Price
    #: Most tokens of the prompt; 0, as the next two, where no limit is hard.
    prompt: int = 0
    #: Answers that it asks for, and the most tokens of each.
    answers: int = 0
    output: int = 0
    #: What the prompt's ceiling was made of.
    ceiling: Ceiling | None = None

    def cost(self, output: int) -> dict[str, int]:
        """unit -> what it takes with answers of so many tokens each."""
        answer = self.answers * output
        return {TOKENS: self.prompt + answer, USD: price.cost(self.price, self.prompt, answer)}


class Reservation:
    """Nothing is held until `reserve` or `squeeze` says so; `release` and `settle` end a hold, and do nothing when there is none."""

    __slots__ = ("_hold", "_leases", "_over", "cap", "claims", "hard", "sizes")

    def __init__(self, leases: Leases, claims: Sequence[Claim], sizes: Sizes) -> None:
        self._leases = leases
        #: Budgets that it falls under, in sorted order.
        self.claims = tuple(claims)
        self.sizes = sizes
        #: Whether its answer must be capped.
        self.hard = any(claim.mode == quota.BLOCK for claim in claims)
        #: None while nothing is held.
        self._hold: quota.Hold | None = None
        #: True once the request is over: a loan that comes then is not for it.
        self._over = False
        #: Most tokens of each answer that the hold pays for; 0: as many as the engine likes.
        self.cap = 0

    @property
    def held(self) -> int:
        """Tokens that are reserved."""
        return self._hold.amounts.get(TOKENS, 0) if self._hold is not None else 0

    @property
    def paid(self) -> int:
        """Tokens of all its answers together that the hold pays for, where it is capped."""
        return self.cap * self.sizes.answers

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Out of which leases."""
        return self._hold.budgets if self._hold is not None else ()

    @property
    def most(self) -> dict[str, int]:
        """unit -> what it would like to hold."""
        return self.sizes.cost(self.sizes.output) if self.hard else self._usual()

    @property
    def least(self) -> dict[str, int]:
        """unit -> what it cannot do without."""
        return self.sizes.cost(min(1, self.sizes.output)) if self.hard else {TOKENS: 1, USD: 1}

    def _usual(self) -> dict[str, int]:
        return {TOKENS: self.sizes.usual, USD: price.cost(self.sizes.price, self.sizes.usual, 0)}

    # -- holding --------------------------------------------------------------------------------------------------

    def short(self, amounts: dict[str, int]) -> tuple[Claim, ...]:
        """Claims that would refuse it and that the leases at hand do not cover."""
        return tuple(claim for claim in self._leases.cover(self.claims, amounts) if claim.mode in REFUSING)

    def keep(self, budgets: Container[Budget]) -> list[Claim]:
        """Keeps only the claims of these budgets; returns the others, whose limits are gone."""
        gone = [claim for claim in self.claims if claim.budget not in budgets]
        self.claims = tuple(claim for claim in self.claims if claim.budget in budgets)
        return gone

    def reserve(self) -> bool:
        """True when all that it would like is held; holding twice is no error."""
        return self._take(self.sizes.output, self.most)

    def squeeze(self) -> bool:
        """As `reserve`, content with a shorter answer, or with less than is usual, when there is no more."""
        if not self.hard:
            return self._take(0, self._least_free())
        output = self._affordable()
        return output >= min(1, self.sizes.output) and self._take(output, self.sizes.cost(output))

    def _take(self, output: int, amounts: dict[str, int]) -> bool:
        if self._over:
            return False
        if self._hold is not None:
            return True
        uncovered = self._leases.cover(self.claims, amounts)
        if any(claim.mode in REFUSING for claim in uncovered):
            return False
        claims = [claim for claim in self.claims if claim not in uncovered]
        self._hold = self._leases.hold(claims, amounts)
        self.cap = output if self.hard else 0
        return True

    def _least_free(self) -> dict[str, int]:
        """What soft limits have left, but no more than is usual and no less than the least."""
        amounts = self._usual()
        for claim in self.claims:
            if claim.mode in REFUSING:
                unit = claim.budget.unit
                amounts[unit] = max(1, min(amounts[unit], self._leases.free(claim.budget)))
        return amounts

    def _affordable(self) -> int:
        """Tokens of each answer that every hard limit has left; below 1: not even one."""
        sizes, output = self.sizes, self.sizes.output
        for claim in self.claims:
            if claim.mode not in REFUSING:
                continue
            free = self._leases.free(claim.budget)
            rest = free - sizes.prompt if claim.budget.unit == TOKENS else price.affordable(sizes.price, sizes.prompt, free)
            output = min(output, rest // max(sizes.answers, 1))
        return output

    # -- ends of a hold -------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Nothing was used; it may be held again."""
        if self._hold is not None:
            self._leases.settle(self._hold, {})
            self._hold = None

    def settle(self, used: usage.Tokens) -> quota.Settled:
        """The request is over, and used so much."""
        self._over = True
        hold, self._hold = self._hold, None
        if hold is None:
            return quota.Settled()
        total = used.prompt + used.completion
        return self._leases.settle(hold, {TOKENS: total, USD: price.cost(self.sizes.price, used.prompt, used.completion)})

    def end(self) -> None:
        """The request is over and is not billed."""
        self.release()
        self._over = True
