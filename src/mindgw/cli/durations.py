"""Spans of time as people write and read them."""

import re
from datetime import datetime

from mindgw.client.errors import UsageProblem

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str) -> int:
    """`90s`, `15m`, `1h`, `7d`, `2w`, or bare seconds. Raises UsageProblem for anything else, zero included."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", text.strip().lower(), re.ASCII)
    if not found or int(found[1]) == 0:
        raise UsageProblem(f"{text!r} is not a span of time", hint="write it as 90s, 15m, 1h or 7d")
    return int(found[1]) * _UNITS[found[2] or "s"]


def span(count: float) -> str:
    """A span in its largest whole unit: `2s`, `5m`, `3h`, `4d`."""
    whole = max(0, int(count))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def ago(moment: str | None, now: datetime) -> str:
    """How long before `now` an RFC 3339 moment was; a dash for none."""
    return "–" if not moment else f"{span((now - _parse(moment)).total_seconds())} ago"


def ahead(moment: str | None, now: datetime) -> str:
    """How long after `now` a moment comes; `never` for none, `expired` when it has passed."""
    if not moment:
        return "never"
    left = (_parse(moment) - now).total_seconds()
    return f"in {span(left)}" if left > 0 else "expired"


def _parse(moment: str) -> datetime:
    return datetime.fromisoformat(moment)
