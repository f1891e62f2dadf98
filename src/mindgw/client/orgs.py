"""What there is to ask about organisations and teams."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mindgw.client.api import Request

_ORGS = "/api/v1/orgs"
_TEAMS = "/api/v1/teams"


def listing() -> Request:
    return Request("GET", _ORGS)


def create(name: str, *, labels: Mapping[str, str] | None = None, admin: str | None = None) -> Request:
    """The answer's `invitation` of its first administrator is in it and nowhere else."""
    given = {"labels": dict(labels) if labels else None, "admin": admin}
    said = {"name": name, **{key: value for key, value in given.items() if value is not None}}
    return Request("POST", _ORGS, said, fields=("id", "name"))


def change(org: str, changes: Mapping[str, Any], *, version: int | None = None) -> Request:
    """The answer's `invitation` of an `admin` is in it and nowhere else."""
    return Request("PATCH", f"{_ORGS}/{quote(org, safe='')}", dict(changes), if_match=version, fields=("id", "name"))


def teams() -> Request:
    return Request("GET", _TEAMS)


def create_team(name: str) -> Request:
    return Request("POST", _TEAMS, {"name": name}, fields=("id", "name"))
