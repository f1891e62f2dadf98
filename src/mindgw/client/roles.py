"""What there is to ask about roles, and about which models are for whom."""

from urllib.parse import quote

from mindgw.client.api import Request, asked

_ROLES = "/api/v1/roles"
_RULES = "/api/v1/access/rules"


def listing() -> Request:
    return Request("GET", _ROLES)


def create(name: str, permissions: list[str], rank: int) -> Request:
    return Request("POST", _ROLES, {"name": name, "permissions": permissions, "rank": rank}, fields=("name", "rank"))


def remove(name: str, *, version: int | None = None) -> Request:
    return Request("DELETE", f"{_ROLES}/{quote(name, safe='')}", if_match=version, fields=("name", "rank"))


def rules(subject: str | None = None) -> Request:
    """All rules, or those about role:NAME, team:NAME, user:EMAIL or key:ID."""
    return Request("GET", asked("access/rules", subject=subject))


def add_rule(subject: str, effect: str, pattern: str) -> Request:
    """`effect` is allow or deny, `pattern` a glob over the names of models."""
    return Request("POST", _RULES, {"subject": subject, "effect": effect, "pattern": pattern}, fields=("id", "subject"))


def remove_rule(rule: str) -> Request:
    return Request("DELETE", f"{_RULES}/{quote(rule, safe='')}", fields=("id", "subject"))
