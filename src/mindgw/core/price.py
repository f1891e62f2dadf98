"""What tokens cost. A price is a whole number of millionths of a dollar for a million tokens, so no sum is ever rounded but the last."""

import re
from collections.abc import Iterable
from fnmatch import translate
from hashlib import sha256

from msgspec import Struct

#: Tokens that a price is for.
MILLION = 1_000_000


class Price(Struct, frozen=True):
    """Millionths of a dollar for a million tokens, of the prompt and of the answer; which is also millionths of a millionth for one."""

    input: int
    output: int


#: What a model without a price costs.
FREE = Price(0, 0)
#: More tokens than anybody ever buys.
ENDLESS = 2**53


class Prices:
    """Prices by the name of the model, or by a pattern with `*`, `?` and `[…]`. Never changed: other prices are another table."""

    __slots__ = ("_patterns", "_prices", "version")

    def __init__(self, prices: Iterable[tuple[str, Price]] = ()) -> None:
        """Raises ValueError when a pattern is there twice."""
        #: Every price, by its name or pattern.
        self._prices: dict[str, Price] = {}
        for pattern, price in prices:
            if pattern in self._prices:
                raise ValueError(f"there are two prices for {pattern[:80]!r}")
            self._prices[pattern] = price
        wild = sorted((pattern for pattern in self._prices if _is_wild(pattern)), key=lambda pattern: (-len(pattern), pattern))
        #: What fits a pattern, the longest first, with its price.
        self._patterns = tuple((re.compile(translate(pattern)).match, self._prices[pattern]) for pattern in wild)
        #: Twelve letters and digits that are the same for the same prices, in whatever order they stood, and "" for no prices at all.
        self.version = _digest(self._prices)

    def __len__(self) -> int:
        return len(self._prices)

    def of(self, model: str) -> Price:
        """The price of a model: that of its very name, or else of the longest pattern that fits, or else FREE."""
        if (price := self._prices.get(model)) is not None:
            return price
        if not self._patterns:
            return FREE
        return next((price for fits, price in self._patterns if fits(model)), FREE)


def cost(price: Price, prompt: int, completion: int) -> int:
    """Millionths of a dollar that these tokens cost, rounded up. Counts are not negative."""
    if price is FREE:
        return 0
    return -(-(prompt * price.input + completion * price.output) // MILLION)


def affordable(price: Price, prompt: int, money: int) -> int:
    """The most tokens of an answer that, with its prompt, cost no more than `money` (millionths of a dollar): below 0 when the prompt
    alone costs more, ENDLESS when answers cost nothing."""
    rest = money * MILLION - prompt * price.input
    if rest < 0:
        return -1
    return min(rest // price.output, ENDLESS) if price.output else ENDLESS


def _is_wild(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")


def _digest(prices: dict[str, Price]) -> str:
    if not prices:
        return ""
    # lengths in front, so that no two tables read the same
    lines = (f"{len(pattern)}:{pattern}={price.input}/{price.output}\n" for pattern, price in sorted(prices.items()))
    return sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]
