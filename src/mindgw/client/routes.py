"""What there is to ask about routes. One function a call, as in `client.api`."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mindgw.client.api import Request, asked

_ROUTES = "/api/v1/routes"


def _one(name: str) -> str:
    return f"{_ROUTES}/{quote(name, safe='')}"


def listing() -> Request:
    return Request("GET", _ROUTES)


def show(name: str) -> Request:
    return Request("GET", _one(name), fields=("name", "match"))


def create(name: str, said: Mapping[str, Any]) -> Request:
    """`said`: match, to, fallbacks, pins, require, strategy, spill, hedge, shadow; here and below."""
    return Request("POST", _ROUTES, {"name": name, **said}, fields=("name", "match"))


def change(name: str, said: Mapping[str, Any], *, version: int | None = None) -> Request:
    return Request("PATCH", _one(name), dict(said), if_match=version, fields=("name", "match"))


def remove(name: str, *, version: int | None = None) -> Request:
    return Request("DELETE", _one(name), if_match=version, fields=("name", "match"))


def explain(model: str, user: str | None = None, kind: str | None = None) -> Request:
    """Where a request would go; nothing is sent to anybody."""
    return Request("GET", asked("routing", model=model, user=user, kind=kind), fields=("way",))
