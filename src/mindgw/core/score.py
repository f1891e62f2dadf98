"""How long a request would take on each of the workers that could have it, and which of them it goes to.

    reading = (prompt - what the worker remembers of it + what it costs to begin) x seconds per token of a prompt
    ttft    = round trip + loading the model + what is read there before it + reading
    writing = tokens of the answer x seconds per token of an answer
    others  = requests at work there x reading
    wrong   = share of tries that fail x (FAILURE + ttft + writing) + pressure x (ttft + writing)
    total   = ttft + REST x writing + OTHERS x others + wrong

All seconds, all measured; a number that is none, is negative or too large counts as the worst that there is, so that it never wins.
What a prompt costs those who are being answered meanwhile follows LMetric (arXiv 2603.15202): new tokens x requests at work.
"""

from collections.abc import Sequence

from msgspec import Struct

#: Nothing takes longer.
WORST = 86_400.0
#: Tokens of a prompt that would take as long as to begin with any.
BEGIN = 128.0
#: How much the time after the first token counts, and each second that others there wait for a prompt to be read.
REST, OTHERS = 0.02, 0.1
#: Seconds that a failure costs beside those of the try itself.
FAILURE = 10.0
#: Totals that differ by no more than this share, or these seconds, are the same.
NEAR, NEARLY = 0.05, 0.002


class Candidate(Struct, gc=False):
    """What is known of one worker and model at one moment. Changed in place, as it is looked at with every request."""

    #: Seconds that a token of a prompt takes, and one of an answer.
    prefill: float = 0.001
    decode: float = 0.01
    #: Seconds that loading the model takes from now on; 0: it is loaded.
    cold: float = 0.0
    #: Seconds until everything that it was sent before is read.
    ahead: float = 0.0
    #: Requests that it works on.
    used: float = 0.0
    #: Tokens of the prompt that it probably remembers; no more than the prompt has.
    cached: float = 0.0
    #: Share of tries that fail.
    errors: float = 0.0
    #: Seconds of a round trip.
    rtt: float = 0.0
    #: From 0, none, to 1: heat, or a lack of memory.
    pressure: float = 0.0


def sound(value: float, most: float = WORST) -> float:
    """`value` when it lies between 0 and `most`; `most` for anything else, as nothing is known to be better."""
    return value if 0.0 <= value <= most else most


def total(of: Candidate, prompt: float, answer: float) -> float:
    """Seconds that candidates are compared by. `prompt` and `answer` are tokens, the second expected."""
    reading = (prompt - of.cached + BEGIN) * of.prefill
    ttft = of.rtt + of.cold + of.ahead + reading
    writing = answer * of.decode
    found = ttft + REST * writing + OTHERS * of.used * reading
    if of.errors > 0.0 or of.pressure > 0.0:
        finish = ttft + writing
        found += of.errors * (FAILURE + finish) + of.pressure * finish
    return found if 0.0 <= found <= WORST else WORST


def near(totals: Sequence[float]) -> list[int]:
    """The places of all, of at least one, that are about as good as the best."""
    limit = min(totals) * (1.0 + NEAR) + NEARLY
    return [place for place, found in enumerate(totals) if found <= limit]


def draw(count: int, dice: int) -> tuple[int, int]:
    """Two different ones of so many, two at least; `dice` is any number from 0 on. Who then takes the less busy of the two spreads work
    nearly as well as by looking at all, and no two that choose at once run to the same."""
    first, rest = dice % count, dice // count
    return first, (first + 1 + rest % (count - 1)) % count
