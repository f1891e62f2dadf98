"""What tokens cost. A price is a whole number of millionths of a dollar for a million tokens, so no sum is ever rounded but the last."""

import re
from collections.abc import Iterable
from fnmatch import translate
from hashlib import sha256

from msgspec import Struct

#: Millionths in a dollar, and tokens that a price is for.
MICRO = MILLION = 1_000_000
#: The most dollars that a million tokens may cost: more is a slip of the keyboard.
MOST = 1_000_000

_AMOUNT = re.compile(r"(?P<whole>\d+)(?:\.(?P<part>\d+))?|\.(?P<bare>\d+)", re.ASCII)
_EXAMPLE = "llama3=0.15/0.60, qwen*=0.2/0.8, *=0.1/0.1"


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
        return next((price for fits, price in self._patterns if fits(model)), FREE)


def parse_prices(text: str) -> Prices:
    """`llama3=0.15/0.60, qwen*=0.2/0.8, *=0.1/0.1`: dollars for a million tokens of the prompt and of the answer. An empty text is an
    empty table. Raises ValueError, in words for whoever wrote it."""
    entries = [entry.strip() for entry in text.split(",")]
    if entries == [""]:
        return Prices()
    return Prices(_entry(entry) for entry in entries)


def parse_price(text: str) -> Price:
    """`0.15/0.60`. Raises ValueError."""
    prompt, slash, answer = (part.strip() for part in text.partition("/"))
    if not slash:
        raise ValueError(f"a price is dollars for a million tokens of the prompt, and of the answer, such as 0.15/0.60, not {text[:40]!r}")
    return Price(_micro(prompt), _micro(answer))


def cost(price: Price, prompt: int, completion: int) -> int:
    """Millionths of a dollar that these tokens cost, rounded up. Counts are not negative."""
    return -(-(prompt * price.input + completion * price.output) // MILLION)


def affordable(price: Price, prompt: int, money: int) -> int:
    """The most tokens of an answer that, with its prompt, cost no more than `money` (millionths of a dollar): below 0 when the prompt
    alone costs more, ENDLESS when answers cost nothing."""
    rest = money * MILLION - prompt * price.input
    if rest < 0:
        return -1
    return min(rest // price.output, ENDLESS) if price.output else ENDLESS


def _entry(text: str) -> tuple[str, Price]:
    # models may have an equals sign in their name, prices have none
    pattern, equals, price = (part.strip() for part in text.rpartition("="))
    if not equals or not pattern:
        raise ValueError(f"a price is for a model, or for all that fit a pattern: {_EXAMPLE}; not {text[:80]!r}")
    try:
        return pattern, parse_price(price)
    except ValueError as wrong:
        raise ValueError(f"{pattern[:80]}: {wrong}") from None


def _micro(text: str) -> int:
    said = _AMOUNT.fullmatch(text)
    if not text:
        raise ValueError("the price of the prompt or of the answer is missing: 0.15/0.60")
    if said is None:
        reason = "must not be negative" if text.startswith("-") else "must be a plain number, such as 0.15"
        raise ValueError(f"a price {reason}, not {text[:40]!r}")
    whole, part = (said["whole"] or "0").lstrip("0"), (said["part"] or said["bare"] or "").rstrip("0")
    if len(part) > 6:
        raise ValueError(f"a price has at most 6 digits behind the point, not {text[:40]!r}")
    # the length first: nobody should wait for a number of a million digits to be read
    if len(whole) > 7 or (value := int(whole + part.ljust(6, "0"))) > MOST * MICRO:
        raise ValueError(f"a price is at most {MOST} dollars for a million tokens, not {text[:40]!r}")
    return value


def _is_wild(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")


def _digest(prices: dict[str, Price]) -> str:
    if not prices:
        return ""
    # lengths in front, so that no two tables read the same
    lines = (f"{len(pattern)}:{pattern}={price.input}/{price.output}\n" for pattern, price in sorted(prices.items()))
    return sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]
