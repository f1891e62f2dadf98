"""Names of stored objects."""

import secrets

from mindgw import clock

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [one + other for one in _CROCKFORD for other in _CROCKFORD]


def new_id(at: float | None = None) -> str:
    """26 lower-case characters that sort by the millisecond of their making, or of `at`, seconds since 1970: 48 bits of time, then 80
    random bits (a ULID)."""
    return _written(clock.wall() if at is None else at, secrets.randbits(80))


def bound(at: float) -> str:
    """What no id of an earlier moment comes up to, and none of a later one, or of that one, stays below."""
    return _written(at, 0)


def _written(at: float, rest: int) -> str:
    number = (int(max(at, 0.0) * 1000) & (1 << 48) - 1) << 80 | rest
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
