"""What there is to ask about keys that exist, and about rates."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mindgw.client.api import Request, asked

_KEYS = "/api/v1/keys"
_RATES = "/api/v1/rates"


def change_key(key_id: str, changes: Mapping[str, Any], *, version: int | None = None) -> Request:
    """`changes`: fields and what they are from now on."""
    return Request("PATCH", f"{_KEYS}/{quote(key_id, safe='')}", dict(changes), if_match=version, fields=("id", "name"))


def rotate_key(key_id: str, grace_seconds: int, *, version: int | None = None) -> Request:
    body = {"grace_seconds": grace_seconds}
    return Request("POST", f"{_KEYS}/{quote(key_id, safe='')}/rotate", body, if_match=version, fields=("id", "name", "key"))


def list_rates(scope: str | None = None) -> Request:
    """All rates, or that of one scope: user:EMAIL, team:NAME or org:NAME."""
    return Request("GET", asked("rates", scope=scope))


def set_rate(scope: str, rate: Mapping[str, int | None], *, version: int | None = None) -> Request:
    return Request("PUT", _RATES, {"scope": scope, **rate}, if_match=version, fields=("scope",))


def clear_rate(scope: str, *, version: int | None = None) -> Request:
    return Request("DELETE", asked("rates", scope=scope), if_match=version, fields=("scope",))
