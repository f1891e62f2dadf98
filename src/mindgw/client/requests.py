"""What became of requests in the management API, as values."""

from urllib.parse import quote

from mindgw.client.api import Request, asked

_FIELDS = ("id", "state", "moments")


def listing(*, before: str = "", limit: int = 0, **wanted: str) -> Request:
    """Newest first; `wanted`: status, slow, model, key, user, team, worker, outcome, since, until."""
    return Request("GET", asked("requests", cursor=before, limit=str(limit) if limit else "", **wanted), fields=("items", "next"))


def show(request_id: str) -> Request:
    """Also of one that waits or runs."""
    return Request("GET", asked(f"requests/{quote(request_id, safe='')}"), fields=_FIELDS)


def show_own(request_id: str) -> Request:
    """The same for whoever sent it."""
    return Request("GET", asked(f"me/requests/{quote(request_id, safe='')}"), fields=_FIELDS)
