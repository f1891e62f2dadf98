"""What to ask about who may do what: roles, and rules for models. One function a call, as in `client.api`."""

from typing import Any
from urllib.parse import quote, urlencode

from mindgw.client.api import Request

_ROOT = "/api/v1"


def _role(name: str, *more: str) -> str:
    return "/".join((f"{_ROOT}/roles/{quote(name, safe='')}", *more))


def list_roles() -> Request:
    return Request("GET", f"{_ROOT}/roles")


def show_role(name: str) -> Request:
    return Request("GET", _role(name), fields=("name", "bindings"))


def create_role(name: str, permissions: list[str], rank: int) -> Request:
    return Request("POST", f"{_ROOT}/roles", {"name": name, "permissions": permissions, "rank": rank}, fields=("name",))


def remove_role(name: str, *, version: int | None = None) -> Request:
    return Request("DELETE", _role(name), if_match=version, fields=("name",))


def bind_role(name: str, user: str, *, team: str | None = None, version: int | None = None) -> Request:
    """`version` is that of the user, here and below."""
    said: dict[str, Any] = {"user": user} if team is None else {"user": user, "team": team}
    return Request("POST", _role(name, "bindings"), said, if_match=version, fields=("user", "role"))


def unbind_role(name: str, user: str, *, team: str | None = None, version: int | None = None) -> Request:
    asked = urlencode({"user": user} if team is None else {"user": user, "team": team})
    return Request("DELETE", f"{_role(name, 'bindings')}?{asked}", if_match=version, fields=("user", "role"))


def can(user: str, verb: str, resource: str) -> Request:
    asked = urlencode({"user": user, "verb": verb, "resource": resource})
    return Request("GET", f"{_ROOT}/access/check?{asked}", fields=("allowed",))


def can_use(user: str, model: str) -> Request:
    return Request("GET", f"{_ROOT}/access/models?{urlencode({'user': user, 'model': model})}", fields=("allowed",))


def list_rules(subject: str | None = None) -> Request:
    """`subject` is role:NAME, team:NAME, user:EMAIL or key:ID, here and below."""
    return Request("GET", f"{_ROOT}/access/rules" + (f"?{urlencode({'subject': subject})}" if subject is not None else ""))


def add_rule(subject: str, effect: str, pattern: str) -> Request:
    return Request("POST", f"{_ROOT}/access/rules", {"subject": subject, "effect": effect, "pattern": pattern}, fields=("id",))


def remove_rule(rule: str) -> Request:
    return Request("DELETE", f"{_ROOT}/access/rules/{quote(rule, safe='')}", fields=("id",))
