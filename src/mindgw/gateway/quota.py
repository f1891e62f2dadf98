"""Limits on what may be used: who falls under which, and how much a request may use.

The limits are those of the database, read again every now and then; what is left of them stands in `gateway.loans`.
"""

import logging
from collections.abc import Iterable, Mapping

from msgspec import Struct

from mindgw import errors, metrics
from mindgw.core import ceiling, payload, quota, usage
from mindgw.core.price import FREE, Prices
from mindgw.core.quota import Budget, Claim
from mindgw.gateway.admission import Ask, Caller
from mindgw.gateway.loans import Bank, Desk, exceeded
from mindgw.gateway.reservation import Reservation, Sizes, Terms
from mindgw.gateway.snapshot import BudgetView
from mindgw.store.quotas import Lent

log = logging.getLogger("mindgw.quota")

#: Tokens of a request of a model that nothing is known of, and what each new one weighs in what is usual.
USUAL, WEIGHT = 1000.0, 0.05
#: What is believed to be usual at most.
MOST = 2**20
#: Models that are remembered.
MODELS = 1000
#: Seconds for which a budget of a limit that refuses nobody is believed to be as it was seen.
REMEMBERED = 2.0
#: Millionths of a dollar that a byte may cost at most: more than any price makes of it.
MICRO = 1_000_000
#: Callers and models whose claims are remembered.
KNOWN = 10_000


class Policy(Struct, frozen=True, order=True):
    """A limit: `limit` units a period, and what happens to who is over it."""

    scope: str
    unit: str
    period: str
    limit: int
    mode: str
    #: Which one of those that were set in turn: one that was cleared and set again is another one.
    version: tuple[str, int] = ("", 0)


class Quotas:
    """All limits."""

    def __init__(self, bank: Bank, prices: Prices, output: int, counters: metrics.Counters) -> None:
        """`output`: tokens of an answer under a hard limit whose caller set none."""
        self.prices = prices
        self._output = output
        self._counters = counters
        self.desk = Desk(bank, self._noted)
        #: scope -> its limits.
        self._policies: dict[str, tuple[Policy, ...]] = {}
        #: (key, model, day) -> what such a request falls under.
        # bounded: by KNOWN
        self._terms: dict[tuple[str, str, str], Terms] = {}
        #: Scopes of teams and users -> as people write them.
        # bounded: two for each of the above
        self._names: dict[str, str] = {}
        #: What a request for a model usually takes.
        # bounded: by MODELS
        self._usual: dict[str, float] = {}
        self._overheads = ceiling.Overheads()
        #: Budgets of limits that refuse nobody -> (whether they were used up, monotonic seconds when that was asked).
        # bounded: by KNOWN, for budgets have windows
        self._seen: dict[Budget, tuple[bool, float]] = {}

    def adopt(self, policies: Iterable[Policy]) -> None:
        """The limits from now on."""
        found: dict[str, list[Policy]] = {}
        for policy in sorted(policies):
            found.setdefault(policy.scope, []).append(policy)
        adopted = {scope: tuple(some) for scope, some in found.items()}
        if adopted != self._policies:
            before, after = _by_kind(self._policies), _by_kind(adopted)
            for budget in self.desk.leases.budgets():
                kind = (budget.scope, budget.unit, quota.period_of(budget.window))
                if kind not in after:
                    self.desk.leases.forget(budget)
                elif kind in before and before[kind] != after[kind]:
                    self.desk.recall(budget)
            self._policies = adopted
            self._terms.clear()
            self._seen.clear()

    # -- the path -------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> bool:
        """Whether there are any."""
        return bool(self._policies)

    def open(self, ask: Ask, terms: Terms, body: bytes, model: str, context: int | None) -> Reservation:
        """A reservation for a request on these terms; it holds nothing yet."""
        if terms.hard:
            return Reservation(self.desk.leases, terms, self._sizes(ask, terms, body, model, context))
        return Reservation(self.desk.leases, terms, Sizes(terms.price, self._takes(model)))

    def may_lack(self, terms: Terms, size: int) -> bool:
        """Whether a limit that refuses may be too far used up for a request with a body of so many bytes, as its row was read last."""
        most = size if terms.hard and not terms.dear else max(size, 1) * MICRO if terms.hard else 1
        for claim in terms.refusing:
            if self.desk.leases.lacks(claim.budget, most):
                return True
        return terms.beside is not None and self.may_lack(terms.beside, 1)

    def lacks(self, reservation: Reservation) -> bool:
        """Whether what it cannot do without is not left, as rows were read last, whatever others give back."""
        wants = ((claim.budget, part.least) for part in reservation.parts for claim in part.short(part.least))
        return any(self.desk.leases.lacks(budget, least[budget.unit]) for budget, least in wants)

    def check(self, reservation: Reservation) -> None:
        """Raises QuotaExceeded when no wait can ever help: the request is larger than a whole limit."""
        least = reservation.least
        for claim in reservation.claims:
            if claim.mode == quota.BLOCK and least[claim.budget.unit] > claim.limit:
                self.refused(claim)
                raise exceeded(claim, claim.limit, least[claim.budget.unit])

    def terms(self, caller: Caller, model: str, day: str) -> Terms | None:
        """What such a request falls under; None: no limit."""
        if not self._policies:
            return None
        known = self._terms.get((caller.key_id, model, day))
        if known is None:
            if len(self._terms) >= KNOWN:
                self._terms.clear()
                self._names.clear()
            known = self._terms[caller.key_id, model, day] = self._find(caller, model, day)
        return known if known.claims else None

    def _find(self, caller: Caller, model: str, day: str) -> Terms:
        self._names |= {f"team:{caller.team_id}": f"team:{caller.team}", f"user:{caller.user_id}": f"user:{caller.user}"}
        price = self.prices.of(model)
        found = [
            Claim(Budget(scope, policy.unit, quota.window(policy.period, day)), policy.period, policy.mode, policy.limit)
            for scope in scopes(caller, model)
            for policy in self._policies.get(scope, ())
            if policy.unit == quota.TOKENS or price != FREE  # what costs nothing falls under no limit of money
        ]
        return Terms.of(found, price)

    def _takes(self, model: str) -> int:
        """Tokens that a request for a model usually takes."""
        return max(1, int(self._usual.get(model, USUAL)))

    def _sizes(self, ask: Ask, terms: Terms, body: bytes, model: str, context: int | None) -> Sizes:
        price, usual = terms.price, self._takes(model) if terms.beside is not None else 0
        text = ask.peek.text
        if text is not None:
            most = ceiling.Ceiling(text.bytes, text.messages, answers=text.answers)
        else:
            most = ceiling.prompt_ceiling(body, ask.needs.kind)
        prompt = most.tokens(self._overheads.of(model))
        if ask.needs.kind == payload.EMBEDDINGS:
            return Sizes(price, usual, prompt, ceiling=most)
        output = ceiling.cap(ask.peek.max_tokens, self._output, context, ask.prompt)
        return Sizes(price, usual, prompt, most.answers, output, most)

    def lowers(self, terms: Terms, now: float) -> bool:
        """Whether the request goes to the end of the queue, because a budget that it falls under is used up. Budgets of limits that refuse
        nobody are looked at again when the last look is a while ago, and counted when they would have."""
        low = False
        for claim in terms.watched:
            over, at = self._seen.get(claim.budget, (False, -REMEMBERED))
            if now - at >= REMEMBERED:
                if len(self._seen) >= KNOWN:
                    self._seen.clear()
                self._seen[claim.budget] = (over, now)
                self.desk.look(claim)
            if over:
                self.refused(claim)
            low |= over and claim.mode == quota.QUEUE_LOW
        return low

    async def fund(self, reservation: Reservation) -> None:
        """See `Desk.fund`; a refusal is counted."""
        try:
            await self.desk.fund(reservation)
        except errors.PolicyError:
            for claim in (claim for part in reservation.parts for claim in part.short(part.least)):
                self.refused(claim)
            raise

    def standings(self) -> list[BudgetView]:
        """The budgets that requests fell under of late; limits that are gone are left out."""
        policies = _by_kind(self._policies)
        found = []
        for budget, row in self.desk.leases.rows():
            policy = policies.get((budget.scope, budget.unit, quota.period_of(budget.window)))
            if policy is not None:
                scope = self._names.get(budget.scope, budget.scope)
                id = f"{scope} {budget.unit} {budget.window}"
                found.append(
                    BudgetView(
                        id=id, scope=scope, unit=budget.unit, window=budget.window, mode=policy.mode,
                        limit=row.limit, used=row.used, reserved=max(0, row.reserved),
                    )
                )  # fmt: skip
        return found

    def refused(self, claim: Claim) -> None:
        """Counts a request that a limit refused, or would have."""
        self._counters.quota[claim.budget.scope.partition(":")[0], claim.mode] += 1

    def learn(self, model: str, reservation: Reservation | None, used: usage.Tokens) -> None:
        """From what a request really took, as its engine says."""
        total = used.prompt + used.completion
        if used.source != "engine" or not total:
            return
        total = min(total, MOST)
        before = self._usual.get(model)
        if before is not None:
            self._usual[model] = before + WEIGHT * (total - before)
        elif len(self._usual) < MODELS:
            self._usual[model] = float(total)
        if reservation is not None and (sizes := reservation.sizes).ceiling is not None and used.prompt > sizes.prompt:
            self._overheads.learn(model, sizes.ceiling, used.prompt)

    def _noted(self, claim: Claim, row: Lent | None) -> None:
        over = row is not None and row.used >= row.limit
        was, at = self._seen.get(claim.budget, (False, 0.0))
        self._seen[claim.budget] = (over, at)
        if over and not was and claim.mode != quota.SHADOW:
            log.warning("%s has used up its %s (%s): %s", claim.budget.scope, claim.budget.unit, claim.budget.window, claim.mode)


def _by_kind(policies: Mapping[str, tuple[Policy, ...]]) -> dict[tuple[str, str, str], Policy]:
    return {(policy.scope, policy.unit, policy.period): policy for some in policies.values() for policy in some}


def scopes(caller: Caller, model: str) -> tuple[str, ...]:
    """Everything that a request may be limited by."""
    people = [("key", caller.key_id), ("org", caller.org_id), ("team", caller.team_id), ("user", caller.user_id)]
    return tuple(f"{kind}:{id}" for kind, id in [*people, ("model", model)] if id)
