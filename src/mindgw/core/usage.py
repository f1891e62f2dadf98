"""Token counts as engines report them, made safe to add up."""

from msgspec import Struct

#: No single request can have used more; a larger count is a lie or a bug.
CEILING = 2**40


class Details(Struct, frozen=True, gc=False):
    """The part of the prompt that the engine's cache held."""

    cached_tokens: int | None = None


class Reported(Struct, frozen=True, gc=False):
    """OpenAI's `usage` object, as far as it is read here; extra fields are ignored."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Tokens(Struct, frozen=True, gc=False):
    """Tokens of one request: whole, not negative, and from where they are known."""

    prompt: int = 0
    completion: int = 0
    #: The part of `prompt` that came from a cache.
    cached: int = 0
    #: engine (reported), counted (events counted on the way) or estimated.
    source: str = "estimated"


#: What somebody used who used nothing.
NOTHING = Tokens()


def clamp(count: int | None) -> int:
    """`count` within 0..CEILING; None is 0."""
    return min(max(count or 0, 0), CEILING)


def bounded(prompt: int, completion: int, cached: int, source: str) -> Tokens:
    """Counts that somebody else made, within bounds; cached never exceeds the prompt."""
    if 0 <= cached <= prompt <= CEILING and 0 <= completion <= CEILING:
        return Tokens(prompt, completion, cached, source)
    whole = clamp(prompt)
    return Tokens(whole, clamp(completion), min(clamp(cached), whole), source)


def tokens(reported: Reported) -> Tokens:
    """What an engine reported, within bounds."""
    cached = reported.prompt_tokens_details.cached_tokens if reported.prompt_tokens_details else 0
    return bounded(reported.prompt_tokens or 0, reported.completion_tokens or 0, cached or 0, "engine")
