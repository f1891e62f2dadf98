"""The only room that asks the machine what time it is: kernels take `now` as a parameter instead."""

import time
from datetime import UTC, datetime

#: Seconds from an arbitrary start that never go backwards; every timeout and duration is measured with it.
monotonic = time.monotonic

#: Seconds for which this thread has been at work; what something costs, however busy the machine is with other things.
cost = time.thread_time

#: Seconds since the epoch; only for stamps that people or other machines read.
wall = time.time


def utcnow() -> datetime:
    """The current moment, always with its zone (UTC)."""
    return datetime.now(UTC)
