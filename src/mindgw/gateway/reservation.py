"""What one request holds of the budgets that it falls under, from the moment it has a slot until it is settled.

Under a hard limit the hold is a ceiling: the answer is capped so that it cannot use more. Under the others it is what such a request
usually takes, and nothing is capped.
"""

from collections.abc import Container, Iterable

from msgspec import Struct

from mindgw.core import price, quota, usage
from mindgw.core.ceiling import Ceiling
from mindgw.core.price import Price
from mindgw.core.quota import TOKENS, USD, Budget, Claim, Leases

#: Modes that refuse a request; the others only say so.
REFUSING = frozenset({quota.BLOCK, quota.SOFT})


class Terms(Struct, frozen=True):
    """What requests of one key for one model fall under on one day."""

    #: In the order of their budgets.
    claims: tuple[Claim, ...]
    budgets: tuple[Budget, ...]
    #: Whether the answer must be capped, and whether money is counted beside tokens.
    hard: bool
    dear: bool
    price: Price
    #: Soft limits beside hard ones: nobody is refused by them because of what he might use.
    beside: "Terms | None" = None
    #: Those of the claims that refuse, and the others; and the smallest of all limits.
    refusing: tuple[Claim, ...] = ()
    watched: tuple[Claim, ...] = ()
    smallest: int = 0

    @staticmethod
    def of(claims: Iterable[Claim], price: Price) -> "Terms":
        """The terms of such claims, which come in any order."""
        some = sorted(claims, key=lambda claim: claim.budget)
        hard, soft = any(claim.mode == quota.BLOCK for claim in some), [claim for claim in some if claim.mode == quota.SOFT]
        beside = Terms.of(soft, price) if hard and soft else None
        mine = tuple(claim for claim in some if beside is None or claim.mode != quota.SOFT)
        dear = any(claim.budget.unit == USD for claim in mine)
        refusing = tuple(claim for claim in mine if claim.mode in REFUSING)
        watched = tuple(claim for claim in mine if claim.mode not in REFUSING)
        smallest = min((claim.limit for claim in mine), default=0)
        return Terms(mine, tuple(claim.budget for claim in mine), hard, dear, price, beside, refusing, watched, smallest)


class Sizes(Struct, frozen=True, gc=False):
    """How large a request may become."""

    price: Price
    #: Tokens that such a request usually takes in all; 0, as is not needed, where a limit is hard.
    usual: int = 0
    #: Most tokens of the prompt; the next fields are 0 where no limit is hard.
    prompt: int = 0
    #: Answers that it asks for, and the most tokens of each.
    answers: int = 0
    output: int = 0
    #: What the prompt's ceiling was made of; None where no limit is hard.
    ceiling: Ceiling | None = None


class Reservation:
    """Nothing is held until `reserve` or `squeeze` says so; `release` and `settle` end a hold, and do nothing when there is none."""

    __slots__ = ("_beside", "_budgets", "_dear", "_hold", "_leases", "budgets", "cap", "claims", "hard", "held", "is_over", "sizes")

    def __init__(self, leases: Leases, terms: Terms, sizes: Sizes) -> None:
        self._leases = leases
        #: What is held of soft limits beside hard ones, and ends with it.
        self._beside = Reservation(leases, terms.beside, sizes) if terms.beside is not None else None
        #: Budgets that it falls under, in sorted order.
        self.claims = terms.claims
        self.sizes = sizes
        #: Whether its answer must be capped, and whether money is counted.
        self.hard = terms.hard
        self._dear = terms.dear
        self._budgets = terms.budgets
        #: None while nothing is held; else how many tokens, and of which budgets.
        self._hold: quota.Hold | None = None
        self.held = 0
        self.budgets: tuple[Budget, ...] = ()
        #: True once the request is over: a loan that comes then is not for it.
        self.is_over = False
        #: Most tokens of each answer that the hold pays for; 0: as many as the engine likes.
        self.cap = 0

    @property
    def paid(self) -> int:
        """Tokens of all its answers together that the hold pays for, where it is capped."""
        return self.cap * self.sizes.answers

    @property
    def parts(self) -> "tuple[Reservation, ...]":
        """What is held together, each part as much of its own budgets as it needs."""
        return (self,) if self._beside is None else (self, self._beside)

    @property
    def most(self) -> dict[str, int]:
        """unit -> what it would like to hold."""
        return self._costs(self.sizes.output) if self.hard else self._usual()

    @property
    def least(self) -> dict[str, int]:
        """unit -> what it cannot do without."""
        return self._costs(min(1, self.sizes.output)) if self.hard else dict.fromkeys(self._usual(), 1)

    def _costs(self, output: int) -> dict[str, int]:
        """unit -> what it takes with answers of so many tokens each."""
        sizes = self.sizes
        answer = sizes.answers * output
        amounts = {TOKENS: sizes.prompt + answer}
        if self._dear:
            amounts[USD] = price.cost(sizes.price, sizes.prompt, answer)
        return amounts

    def _usual(self) -> dict[str, int]:
        usual, tariff = self.sizes.usual, self.sizes.price
        if not self._dear:
            return {TOKENS: usual}
        # nobody knows how much of it will be the answer; where only one of both costs anything, it is that one
        return {TOKENS: usual, USD: price.cost(tariff, usual, 0) if tariff.input >= tariff.output else price.cost(tariff, 0, usual)}

    # -- holding --------------------------------------------------------------------------------------------------

    def short(self, amounts: dict[str, int]) -> tuple[Claim, ...]:
        """Claims that would refuse it and that the leases at hand do not cover."""
        return tuple(claim for claim in self._leases.cover(self.claims, amounts) if claim.mode in REFUSING)

    def keep(self, budgets: Container[Budget]) -> list[Claim]:
        """Keeps only the claims of these budgets; returns the others, whose limits are gone."""
        gone = [claim for claim in self.claims if claim.budget not in budgets]
        self.claims = tuple(claim for claim in self.claims if claim.budget in budgets)
        self._budgets = tuple(claim.budget for claim in self.claims)
        return gone + (self._beside.keep(budgets) if self._beside is not None else [])

    def reserve(self) -> bool:
        """True when all that it would like is held; holding twice is no error."""
        if not self._take(self.sizes.output, self.most):
            return False
        return self._beside is None or self._both(self._beside, self._beside.reserve())

    def squeeze(self) -> bool:
        """As `reserve`, content with a shorter answer, or with less than is usual, when there is no more."""
        if not self.hard:
            return self._take(0, self._least_free())
        output = self._affordable()
        if output < min(1, self.sizes.output) or not self._take(output, self._costs(output)):
            return False
        return self._beside is None or self._both(self._beside, self._beside.squeeze())

    def _both(self, beside: "Reservation", held: bool) -> bool:
        """Whether both parts are held; neither is, when the one beside could not be."""
        if held:
            self.budgets = tuple(sorted({*self.budgets, *beside.budgets}))
        else:
            self.release()
        return held

    def _take(self, output: int, amounts: dict[str, int]) -> bool:
        if self.is_over:
            return False
        if self._hold is not None:
            return True
        budgets = self._budgets
        hold = self._leases.hold(self.claims, amounts)
        if hold is None:
            uncovered = self._leases.cover(self.claims, amounts)
            if any(claim.mode in REFUSING for claim in uncovered):
                return False
            claims = tuple(claim for claim in self.claims if claim not in uncovered)
            budgets = tuple(claim.budget for claim in claims)
            hold = self._leases.hold(claims, amounts)
        self._hold = hold
        self.held, self.budgets = amounts[TOKENS], budgets
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

    def release(self) -> tuple[Budget, ...]:
        """Nothing was used; it may be held again. Returns budgets of which others need what is free now."""
        spare: tuple[Budget, ...] = ()
        if self._hold is not None:
            spare = self._leases.settle(self._hold, {}).spare
            self._hold, self.held, self.budgets = None, 0, ()
        return spare if self._beside is None else spare + self._beside.release()

    def settle(self, used: usage.Tokens) -> quota.Settled:
        """The request is over, and used so much."""
        self.is_over = True
        hold, self._hold, self.held, self.budgets = self._hold, None, 0, ()
        if hold is None:
            return quota.Settled()
        actual = {TOKENS: used.prompt + used.completion}
        if self._dear:
            actual[USD] = price.cost(self.sizes.price, used.prompt, used.completion)
        settled = self._leases.settle(hold, actual)
        return settled if self._beside is None else _together(settled, self._beside.settle(used))

    def end(self) -> tuple[Budget, ...]:
        """As `release`, for a request that is over and is not billed."""
        self.is_over = True
        return self.release()


def _together(one: quota.Settled, other: quota.Settled) -> quota.Settled:
    return quota.Settled(one.draws + other.draws, max(one.over, other.over), one.spare + other.spare)
