"""What can be declared, in terms of the management API: what a server has of each kind, and the requests that make a change. PURE."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from mindgw.addresses import Networks
from mindgw.client import api, orgs, people, roles, routes
from mindgw.client import keys as existing
from mindgw.client.api import Request
from mindgw.client.plan import Change, Known
from mindgw.declaration import Item
from mindgw.settings_file import Place

#: Domain of the addresses of service accounts.
_SERVICE = "@service"
#: The person that `mindgw init` makes.
_FIRST = "admin@localhost"
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LIMIT = re.compile(r"([0-9.]+)([kKmMgGtT]?)/(\w+)")
#: Fields of a new object whose values are secrets, shown this once.
SECRETS = ("key", "invitation")


@dataclass(frozen=True)
class Asking:
    """Who asks, and what helps to understand the answers."""

    #: Id of the key that asks; empty: it is a session.
    key: str
    #: id -> name of the keys that are good.
    key_names: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Kind:
    """How objects of one kind are read and changed."""

    #: What lists them.
    listing: Callable[[], Request]
    #: The list as objects.
    known: Callable[[Iterable[Mapping[str, Any]], Asking], list[Known]]
    #: What carries a change out.
    requests: Callable[[Change], list[Request]]


# -- organisations and teams -------------------------------------------------------------------------------------------


def _orgs(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    return [
        Known(
            "orgs",
            item["name"],
            item["id"],
            {"labels": item.get("labels") or {}, "state": item.get("state")},
            item.get("version"),
            "organisations stay",
        )
        for item in items
    ]


def _change_org(change: Change) -> list[Request]:
    if change.known is not None:
        return [orgs.change(change.known.reference, change.fields, version=change.known.version)]
    made = orgs.create(change.name, labels=change.fields.get("labels"), admin=change.fields.get("admin"))
    state = change.fields.get("state", "active")
    return [made, *([orgs.change(change.name, {"state": state})] if state != "active" else [])]


def _teams(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    return [Known("teams", item["name"], item["id"], {}, item.get("version"), "teams stay") for item in items]


def _change_team(change: Change) -> list[Request]:
    return [orgs.create_team(change.name)]


# -- roles -------------------------------------------------------------------------------------------------------------


def _roles(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    return [
        Known("roles", item["name"], item["name"], in_form({name: item.get(name) for name in ("rank", "permissions")}), item.get("version"))
        for item in items
        if not item.get("built_in")
    ]


def _change_role(change: Change) -> list[Request]:
    if change.known is None:
        return [roles.create(change.name, list(change.fields["permissions"]), change.fields["rank"])]
    return [roles.remove(change.known.reference, version=change.known.version)]


# -- users -------------------------------------------------------------------------------------------------------------


def _users(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    found = []
    for item in items:
        email = str(item["email"])
        kept = "it is the first administrator" if email == _FIRST else ""
        fields = {"name": item.get("name") or "", "role": item.get("role")}
        found.append(Known("users", email.removesuffix(_SERVICE), email, fields, item.get("version"), kept))
    return found


def _change_user(change: Change) -> list[Request]:
    name, role = change.fields.get("name"), change.fields.get("role")
    if change.known is not None:
        if change.verb == "remove":
            return [people.remove_user(change.known.reference, version=change.known.version)]
        return [people.change_user(change.known.reference, role=role, name=name, version=change.known.version)]
    if "@" in change.name:
        return [people.invite_user(change.name, role=role, name=name)]
    rename = [people.change_user(change.name + _SERVICE, name=name)] if name else []
    return [people.create_service_account(change.name, role=role), *rename]


# -- keys --------------------------------------------------------------------------------------------------------------

_KEY_FIELDS = (
    *("team", "user", "role", "priority", "trusted_proxy", "models", "routes", "addresses", "rpm", "tpm", "concurrency", "labels"),
    "expires_at",
)


def _keys(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    good = [item for item in items if item.get("state") != "revoked"]
    found = []
    for item in good:
        kept = "it is the key that asks" if item["id"] == asking.key else "it is an administrator's" if item.get("role") == "admin" else ""
        fields = {name: item.get(name) for name in _KEY_FIELDS} | {"priority": item.get("priority") or "normal"}
        found.append(Known("keys", str(item["name"]), str(item["id"]), in_form(fields), item.get("version"), kept))
    return found


def _change_key(change: Change) -> list[Request]:
    if change.known is not None:
        if change.verb == "remove":
            return [api.revoke_key(change.known.reference, version=change.known.version)]
        return [existing.change_key(change.known.reference, change.fields, version=change.known.version)]
    said = {name: value for name, value in change.fields.items() if value is not None}
    named = {name: said.pop(name) for name in ("team", "user", "priority", "role") if name in said}
    return [api.create_key(change.name, **named, trusted_proxy=said.pop("trusted_proxy", False), bounds=said)]


# -- rates -------------------------------------------------------------------------------------------------------------


def _rates(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    fields = ("rpm", "tpm", "concurrency")
    return [
        Known("rates", str(item["scope"]), str(item["scope"]), {name: item.get(name) for name in fields}, item.get("version"))
        for item in items
    ]


def _change_rate(change: Change) -> list[Request]:
    if change.known is None:
        return [existing.set_rate(change.name, dict(change.fields))]
    if change.verb == "remove":
        return [existing.clear_rate(change.known.reference, version=change.known.version)]
    return [existing.set_rate(change.known.reference, {**change.known.fields, **change.fields}, version=change.known.version)]


# -- quotas ------------------------------------------------------------------------------------------------------------


def limit(text: str) -> str:
    """A limit in its one form: 5M/month and 5000000/month are the same. What is none stays as it is."""
    found = _LIMIT.fullmatch(text)
    if found is None:
        return text
    return f"{(Decimal(found[1]) * _FACTORS[found[2].lower()]).normalize():f}/{found[3]}"


def _limits(texts: Iterable[str]) -> list[str]:
    return sorted(map(limit, texts))


def _quotas(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    scopes: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        scopes.setdefault(str(item["scope"]), []).append(item)
    found = []
    for scope, own in scopes.items():
        name = f"key:{own[0].get('name')}" if scope.startswith("key:") else scope
        modes = {item.get("on_exceed") for item in own}
        fields: dict[str, Any] = {
            unit: _limits(f"{item['limit']}/{item['period']}" for item in own if item["unit"] == unit) for unit in ("tokens", "usd")
        }
        fields["on_exceed"] = modes.pop() if len(modes) == 1 else None
        found.append(Known("quotas", name, scope, fields))
    return found


def _change_quota(change: Change) -> list[Request]:
    scope = change.known.reference if change.known is not None else change.name
    if change.verb == "remove":
        return [api.clear_quotas(scope)]
    before = change.known.fields if change.known is not None else {}
    found = []
    for unit in ("tokens", "usd"):
        wanted = {text.partition("/")[2] for text in change.fields.get(unit, before.get(unit, ()))}
        left = [text.partition("/")[2] for text in before.get(unit, ())]
        found += [api.clear_quotas(scope, unit=unit, period=period) for period in left if period not in wanted]
    said = {unit: list(change.fields.get(unit, before.get(unit, ()))) for unit in ("tokens", "usd")}
    if any(said.values()):
        mode = change.fields.get("on_exceed") or before.get("on_exceed") or ""  # a limit that is new would block
        found.append(api.set_quotas(scope, said["tokens"], said["usd"], mode))
    return found


# -- access ------------------------------------------------------------------------------------------------------------

_EFFECTS = ("allow", "deny")


def _access(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    subjects: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        subjects.setdefault(str(item["subject"]), []).append(item)
    found = []
    for subject, rules in subjects.items():
        kind, _, id = subject.partition(":")
        name = f"key:{asking.key_names().get(id, id)}" if kind == "key" else subject
        fields = {effect: sorted(rule["pattern"] for rule in rules if rule["effect"] == effect) for effect in _EFFECTS}
        parts = {f"{rule['effect']} {rule['pattern']}": str(rule["id"]) for rule in rules}
        found.append(Known("access", name, subject, fields, parts=parts))
    return found


def _change_access(change: Change) -> list[Request]:
    parts = change.known.parts if change.known is not None else {}
    subject = change.known.reference if change.known is not None else change.name
    if change.verb == "remove":
        return [roles.remove_rule(rule) for rule in parts.values()]
    wanted = {f"{effect} {pattern}": (effect, pattern) for effect in _EFFECTS for pattern in change.fields.get(effect, ())}
    gone = [rule for part, rule in parts.items() if part.partition(" ")[0] in change.fields and part not in wanted]
    added = [roles.add_rule(subject, effect, pattern) for part, (effect, pattern) in wanted.items() if part not in parts]
    return [*added, *map(roles.remove_rule, gone)]


# -- routes ------------------------------------------------------------------------------------------------------------

_WEIGHT = re.compile(r"(.+)=([0-9]{1,5})")


def target(text: str) -> str:
    """A target in its one form: pool:gpu=080 and @pool=gpu=80 are the same. What is none stays as it is."""
    text = text.strip()
    if text.startswith("pool:"):
        text = f"@pool={text.removeprefix('pool:')}"
    model, at, tags = text.partition("@")
    *some, last = tags.split(",") if at else [model]
    found = _WEIGHT.fullmatch(last)
    weight = 1
    if found is not None and (not at or "=" in found[1]):
        last, weight = found[1], int(found[2])
    said = f"{model}@{','.join(_in_order([*some, last]))}" if at else last
    return f"{said}={weight}" if weight != 1 or (not at and _WEIGHT.fullmatch(said)) else said


def _in_order(tags: Iterable[str]) -> list[str]:
    pairs = {tuple(tag.strip().partition("=")) for tag in tags}
    return ["".join(pair) for pair in sorted(pairs, key=lambda pair: (pair[0], pair[2]))]


_ROUTE_FIELDS = ("match", "to", "fallbacks", "pins", "require", "strategy", "spill", "hedge", "shadow")


def _routes(items: Iterable[Mapping[str, Any]], asking: Asking) -> list[Known]:
    return [
        Known(
            "routes", str(item["name"]), str(item["name"]), in_form({name: item.get(name) for name in _ROUTE_FIELDS}), item.get("version")
        )
        for item in items
    ]


def _change_route(change: Change) -> list[Request]:
    if change.known is None:
        return [routes.create(change.name, change.fields)]
    if change.verb == "remove":
        return [routes.remove(change.known.reference, version=change.known.version)]
    return [routes.change(change.known.reference, change.fields, version=change.known.version)]


KINDS: Mapping[str, Kind] = {
    "orgs": Kind(orgs.listing, _orgs, _change_org),
    "teams": Kind(orgs.teams, _teams, _change_team),
    "roles": Kind(roles.listing, _roles, _change_role),
    "users": Kind(people.list_users, _users, _change_user),
    "keys": Kind(api.list_keys, _keys, _change_key),
    "rates": Kind(existing.list_rates, _rates, _change_rate),
    "quotas": Kind(api.list_quotas, _quotas, _change_quota),
    "routes": Kind(routes.listing, _routes, _change_route),
    "access": Kind(roles.rules, _access, _change_access),
}


# -- what a file says, in the API's form -------------------------------------------------------------------------------

_FORMS: Mapping[str, Callable[[Any], Any]] = {
    "tokens": _limits,
    "usd": _limits,
    "models": sorted,
    "routes": sorted,
    "allow": sorted,
    "deny": sorted,
    "permissions": sorted,
    "addresses": lambda texts: sorted(Networks(texts).texts),
    "to": lambda texts: list(map(target, texts)),
    "fallbacks": lambda texts: list(map(target, texts)),
    "pins": sorted,
    "require": sorted,
    "expires_at": lambda text: datetime.fromisoformat(text).astimezone(UTC).isoformat().replace("+00:00", "Z"),
}


def in_form(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields in their one form."""
    return {name: value if value is None or name not in _FORMS else _FORMS[name](value) for name, value in fields.items()}


def normal(item: Item) -> Item:
    """As it is compared with what a server has."""
    return Item(item.kind, item.name, in_form(item.fields), item.place)


def declared(known: Iterable[Known], place: Place) -> list[Item]:
    """What a server has as a file would declare it: without what is as it would be anyway."""
    items = []
    for one in known:
        fields = {name: value for name, value in one.fields.items() if value not in (None, "", [], {}, False)}
        if fields.get("priority") == "normal":
            del fields["priority"]
        if one.kind == "routes" and fields.get("match") == one.name:
            del fields["match"]
        if one.kind == "orgs" and fields.get("state") == "active":
            del fields["state"]
        items.append(Item(one.kind, one.name, fields, place))
    return items
