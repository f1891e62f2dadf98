"""Names of stored objects."""

import secrets

from mindgw import clock

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id() -> str:
    """26 lower-case characters that sort by the millisecond of their making: 48 bits of time, then 80 random bits (a ULID)."""
    number = (int(clock.wall() * 1000) & (1 << 48) - 1) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
