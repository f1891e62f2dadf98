"""The only room of the agent that asks what time it is; durations come from the event loop's own clock, where there is one."""

import time
from datetime import UTC, datetime


def moment() -> str:
    """Now, as files and people read it: RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def unix_ms() -> int:
    """Now, as receipts bear it: Unix milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds that only ever grow, for threads."""
    return time.monotonic()


def at(seconds: int) -> str:
    """A Unix second as `moment` writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
