"""What a limit costs on a request's path: hold and settle inside leases that are filled already."""

import sys
import time
from collections.abc import Sequence
from statistics import median

from mindgw.core.quota import BLOCK, MONTH, TOKENS, Budget, Claim, Leases

#: Limits that one request stands under.
CLAIMS = (1, 3, 5)
#: What a request holds, and what it uses in the end.
HELD, USED = 900, 500
#: Requests of one round, and rounds: the best is the one that the machine disturbed least.
REQUESTS, ROUNDS = 20_000, 9


def main(words: Sequence[str] = ()) -> int:
    """Prints a line for each number of claims. `--quick` runs just enough to see that it runs."""
    requests, rounds = (100, 1) if "--quick" in words else (REQUESTS, ROUNDS)
    print("claims   best ns   median ns")
    for claims in CLAIMS:
        times = [measured(claims, requests) for _ in range(rounds)]
        print(f"{claims:6}  {min(times):8.0f}  {median(times):10.0f}")
    return 0


def measured(claims: int, requests: int) -> float:
    """Nanoseconds that a request costs."""
    leases = Leases()
    under = [Claim(Budget(f"scope:{i}", TOKENS, "2026-11"), MONTH, BLOCK, 10**12) for i in range(claims)]
    for claim in under:
        leases.lend(claim.budget, requests * HELD, 0, requests * HELD, claim.limit)
    amounts = {TOKENS: HELD}
    began = time.perf_counter_ns()
    for _ in range(requests):
        hold = leases.hold(under, amounts)
        if hold is None:
            raise RuntimeError("the leases were to last for all requests")
        leases.settle(hold, {TOKENS: USED})
    return (time.perf_counter_ns() - began) / requests


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
