"""What is learned of a worker and a model by watching: how fast prompts are read and answers written, how long loading takes, how much
of what it should remember it does remember, how often it fails.

Speeds are quotients of two sums that fade, seconds by tokens, so long prompts count more than short ones; they begin with, and after a long
time return to, what is known of all workers that have the model. One measurement counts for at most four times what was expected: a
client that reads slowly, or a clock that jumps, spoils little. Pure: seconds are given, never read.
"""

from math import exp

from msgspec import Struct

#: Seconds per token of a prompt and of an answer, and of loading a model, as long as nothing is known of anybody.
PREFILL, DECODE, LOAD = 0.00025, 0.01, 10.0
#: No engine is believed to be faster, nor slower, than this.
FASTEST, SLOWEST = 1e-7, 100.0
#: Tokens of prompts and of answers for which what others do counts, and after how many of its own the first are forgotten.
_PRIOR_READ, _PRIOR_WRITTEN = 500.0, 50.0
_KEPT_READ, _KEPT_WRITTEN = 50_000.0, 5_000.0
#: Seconds after which what is known of a worker counts for a third.
_MEMORY = 600.0
#: How much the newest measurement counts.
_NEWEST = 0.1
#: Times that a measurement may be more than what was expected.
_MOST = 4.0
#: Seconds that no loading takes.
_LONGEST = 3600.0


class Learned(Struct, gc=False):
    """Of one worker and model; or of all workers that have a model."""

    #: Seconds that reading took, and tokens that were read; the same of writing. They fade.
    reading: float = 0.0
    read: float = 0.0
    writing: float = 0.0
    written: float = 0.0
    #: Seconds; 0: never seen.
    load: float = 0.0
    #: Share of what it should remember that it remembered.
    trust: float = 1.0
    #: Share of tries that failed.
    errors: float = 0.0
    #: When it faded last.
    at: float = 0.0

    def prefill(self, others: float = PREFILL) -> float:
        """Seconds per token of a prompt; `others`: what it is elsewhere."""
        return _between((self.reading + _PRIOR_READ * others) / (self.read + _PRIOR_READ))

    def decode(self, others: float = DECODE) -> float:
        """Seconds per token of an answer; `others`: what it is elsewhere."""
        return _between((self.writing + _PRIOR_WRITTEN * others) / (self.written + _PRIOR_WRITTEN))

    def has_read(self, tokens: float, seconds: float, expected: float) -> None:
        """It took so long until the first token, where these tokens had to be read; `expected`: seconds that were."""
        if tokens > 0.0:
            kept = exp(-tokens / _KEPT_READ)
            self.reading = self.reading * kept + _capped(seconds, expected)
            self.read = self.read * kept + tokens

    def has_written(self, tokens: float, seconds: float, expected: float) -> None:
        """The same of the time from the first token to the last."""
        if tokens > 0.0:
            kept = exp(-tokens / _KEPT_WRITTEN)
            self.writing = self.writing * kept + _capped(seconds, expected)
            self.written = self.written * kept + tokens

    def has_loaded(self, seconds: float) -> None:
        """To load the model took so long."""
        seconds = min(max(0.0, seconds), _LONGEST)
        self.load = seconds if self.load <= 0.0 else self.load + 0.5 * (seconds - self.load)

    def has_remembered(self, tokens: float, expected: float) -> None:
        """So many tokens of a prompt were remembered; so many, above 0, should have been."""
        self.trust += _NEWEST * (min(1.0, max(0.0, tokens) / expected) - self.trust)

    def ended(self, failed: bool) -> None:
        """A try is over."""
        self.errors += _NEWEST * (failed - self.errors)
        if self.errors < 0.001:
            self.errors = 0.0

    def fade(self, now: float) -> None:
        """Time goes on: what is old counts less, and an old failure is forgiven. A clock that goes back is taken for one that stands."""
        passed, self.at = max(0.0, now - self.at), now
        kept = exp(-passed / _MEMORY)
        self.reading *= kept
        self.read *= kept
        self.writing *= kept
        self.written *= kept
        self.errors *= exp(-10.0 * passed / _MEMORY)
        self.trust = 1.0 - (1.0 - self.trust) * kept


def _capped(seconds: float, expected: float) -> float:
    return min(max(0.0, seconds), _MOST * expected)


def _between(seconds: float) -> float:
    return min(max(seconds, FASTEST), SLOWEST)
