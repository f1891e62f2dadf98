"""The audit log in the management API, as values."""

from mindgw.client.api import Request, asked


def entries(*, before: str = "", limit: int, **wanted: str) -> Request:
    """Newest first; `wanted`: actor, action, outcome, object, since, until."""
    return Request("GET", asked("audit", cursor=before, limit=str(limit), **wanted), fields=("items", "next"))


def news(*, after: str, limit: int, **wanted: str) -> Request:
    """Oldest first, behind number `after`; the answer's `next` is what to ask after next time."""
    return Request("GET", asked("audit/news", after=after, limit=str(limit), **wanted), fields=("items", "next"))


def export(**wanted: str) -> Request:
    """The answer comes in lines: an entry each, and at last where the chain ends."""
    return Request("GET", asked("audit/export", **wanted))


def verify() -> Request:
    """The answer comes in lines, see `client.checks`."""
    return Request("GET", asked("audit/verify"))
