"""Spans of time as people write and read them."""

from datetime import datetime

from mindgw.client.errors import UsageProblem
from mindgw.quantities import duration


def seconds(text: str) -> int:
    """`90s`, `15m`, `1h`, `7d`, or bare seconds. Raises UsageProblem for anything else and for less than a second."""
    try:
        count = int(duration(text))
    except ValueError:
        count = 0
    if not count:
        raise UsageProblem(f"{text!r} is not a span of time", hint="write it as 90s, 15m, 1h or 7d")
    return count


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
