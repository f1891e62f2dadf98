"""Token counts as engines report them, made safe to add up."""

from msgspec import Struct

#: No single request can have used more; a larger count is a lie or a bug.
CEILING = 2**40


class Details(Struct, frozen=True):
    """The part of the prompt that the engine's cache held."""

    cached_tokens: int | None = None


class Reported(Struct, frozen=True):
    """OpenAI's `usage` object, as far as it is read here; extra fields are ignored."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Tokens(Struct, frozen=True):
    """Tokens of one request: whole, not negative, and from where they are known."""

    prompt: int = 0
    completion: int = 0
    #: The part of `prompt` that came from a cache.
    cached: int = 0
    #: engine (reported), counted (events counted on the way) or estimated.
    source: str = "estimated"


def clamp(count: int | None) -> int:
    """`count` within 0..CEILING; None is 0."""
    return min(max(count or 0, 0), CEILING)


def tokens(reported: Reported) -> Tokens:
    """What an engine reported, within bounds; cached never exceeds the prompt."""
    prompt = clamp(reported.prompt_tokens)
    cached = clamp(reported.prompt_tokens_details.cached_tokens) if reported.prompt_tokens_details else 0
    return Tokens(prompt, clamp(reported.completion_tokens), min(cached, prompt), "engine")
