"""What an operator's file declares: roles, users, keys, limits. YAML to values, each with its place, and back. PURE.

`${NAME}` and `${NAME:-text}` in values come from the environment of whoever reads the file, as in `settings_file`; nothing that a server
stores is ever expanded. What a file does not say about an object stays as it is; `null` takes a limit away.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import UNSET, Meta, Struct, UnsetType

from mindgw import settings_file
from mindgw.addresses import Networks
from mindgw.errors import ConfigError
from mindgw.settings_file import Place

#: What a file begins with, so that it is known for one: `mindgw: v1`.
MARK, VERSION = "mindgw", "v1"
#: Nodes of YAML that one file may have: aliases can make a thousand of one.
MOST = 100_000

Few = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Number = Annotated[int, Meta(ge=1, le=2**53)]
Globs = list[Annotated[str, Meta(min_length=1, max_length=200)]]
Labels = dict[Annotated[str, Meta(min_length=1, max_length=63)], Annotated[str, Meta(max_length=63)]]
Limit = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?[kKmMgGtT]?/(day|month|total)$")]


class RoleFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """A role beside those that are built in. It never changes: a role of another name can take its place."""

    #: The higher one may give the lower one: admin is 100, operator 75, user 50, viewer 25.
    rank: Annotated[int, Meta(ge=1, le=99)]
    #: Each "verb:resource", either may be `*`.
    permissions: list[Annotated[str, Meta(pattern=r"^([a-z]+|\*):([a-z-]+|\*)$")]]


class OrgFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """An organisation, for whoever runs the server. Its own roles, users, keys and limits are declared with a key of its own."""

    #: Kept for routing, which does not keep to them yet, such as {region: eu}.
    labels: Labels | UnsetType = UNSET
    #: active or disabled.
    state: Annotated[str, Meta(pattern="^(active|disabled)$")] | UnsetType = UNSET
    #: Address of its first administrator, who is invited when it is made; afterwards it says nothing.
    admin: str | UnsetType = UNSET


class TeamFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """A team; keys make theirs, too."""


class UserFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Somebody, by their address; or, by a name without @, a service account."""

    #: What they are called.
    name: str | UnsetType = UNSET
    #: Name of their role.
    role: str | UnsetType = UNSET


class KeyFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """An API key. Team, user and role are those that it was made with: they do not change."""

    #: Team that it belongs to; made when missing.
    team: str | UnsetType = UNSET
    #: Address of the person that it belongs to.
    user: str | UnsetType = UNSET
    #: Name of the role that it acts with; that of the person that it belongs to, or user, when not given.
    role: str | UnsetType = UNSET
    #: high, normal, batch or sheddable.
    priority: Annotated[str, Meta(pattern="^(high|normal|batch|sheddable)$")] | UnsetType = UNSET
    #: Whether its requests may name the end user.
    trusted_proxy: bool | UnsetType = UNSET
    #: Models that it is good for, as globs; [] for all.
    models: Globs | UnsetType = UNSET
    #: Routes that it is good for; [] for all.
    routes: Globs | UnsetType = UNSET
    #: Addresses and networks that it is good from; [] for all.
    addresses: list[str] | UnsetType = UNSET
    #: Requests a minute.
    rpm: Few | UnsetType | None = UNSET
    #: Tokens a minute.
    tpm: Number | UnsetType | None = UNSET
    #: Requests at once.
    concurrency: Few | UnsetType | None = UNSET
    #: Kept for routing, which does not keep to them yet, such as {region: eu}.
    labels: Labels | UnsetType = UNSET
    #: When it ends, with its zone; a date alone is its first moment in UTC.
    expires_at: datetime | UnsetType | None = UNSET


class RateFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """How often a user, a team or an organisation may ask."""

    #: Requests a minute.
    rpm: Few | UnsetType | None = UNSET
    #: Tokens a minute.
    tpm: Number | UnsetType | None = UNSET
    #: Requests at once.
    concurrency: Few | UnsetType | None = UNSET


class QuotaFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """How much a scope may use; periods that are not named have no limit."""

    #: Such as 5M/month.
    tokens: list[Limit] | UnsetType = UNSET
    #: In dollars, such as 12.50/month.
    usd: list[Limit] | UnsetType = UNSET
    #: What happens at the end of it.
    on_exceed: Annotated[str, Meta(pattern="^(block|soft|queue-low|alert|shadow)$")] | UnsetType = UNSET


Target = Annotated[str, Meta(min_length=1, max_length=600)]
Tag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^\s,=@|]{1,63}$")]


class RouteFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Where requests for a name go, for whoever runs the server."""

    #: The names that it is for, as a glob; when not given, its own name.
    match: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    #: Such as qwen3:8b@pool=gpu=90: a model, tags that its workers must have, a weight.
    to: list[Target] | UnsetType = UNSET
    #: Where it goes in turn when there is no worker for what comes before, or when that fails.
    fallbacks: list[Target] | UnsetType = UNSET
    #: Tags of the only workers that may serve a model of such a name.
    pins: list[Tag] | UnsetType = UNSET
    #: Tags that every worker must have that it leads to.
    require: list[Tag] | UnsetType = UNSET
    #: How a worker is chosen.
    strategy: Annotated[str, Meta(pattern="^(|score|least-busy|round-robin|weighted|sticky)$")] | UnsetType = UNSET
    #: Whether it goes on when workers are only busy.
    spill: bool | UnsetType = UNSET
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool | UnsetType = UNSET
    #: Whether it is only noted what it would do.
    shadow: bool | UnsetType = UNSET


class AccessFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which models a subject may use, as globs."""

    allow: Globs | UnsetType = UNSET
    deny: Globs | UnsetType = UNSET


_TEXT = r"[^\x00-\x1f\x7f]{1,200}"


class Section(Struct, frozen=True):
    """Objects of one kind."""

    fields: type[Struct]
    #: What their names look like, and in words.
    names: str
    like: str


#: In the order in which they are made; they are removed the other way round.
SECTIONS: Mapping[str, Section] = {
    "orgs": Section(OrgFields, _TEXT, "1 to 200 printable characters"),
    "teams": Section(TeamFields, _TEXT, "1 to 200 printable characters"),
    "roles": Section(RoleFields, r"[a-z][a-z0-9-]{0,39}", "up to 40 lower-case letters, digits and dashes"),
    "users": Section(UserFields, r"[^@\s]{1,100}@[^@\s]{1,100}|[a-z0-9][a-z0-9._-]{0,62}", "an address, or the name of a service account"),
    "keys": Section(KeyFields, _TEXT, "1 to 200 printable characters"),
    "rates": Section(RateFields, rf"(user|team|org):{_TEXT}", "user:EMAIL, team:NAME or org:NAME"),
    "quotas": Section(QuotaFields, rf"(key|user|team|org|model):{_TEXT}", "key:NAME, user:EMAIL, team:NAME, org:NAME or model:NAME"),
    "routes": Section(RouteFields, _TEXT, "1 to 200 printable characters"),
    "access": Section(AccessFields, rf"(role|team|user|key):{_TEXT}", "role:NAME, team:NAME, user:EMAIL or key:NAME"),
}


class Item(Struct, frozen=True):
    """One object, as a file declares it."""

    kind: str
    name: str
    #: What is said of it, in the API's own words.
    fields: dict[str, Any]
    place: Place

    @property
    def path(self) -> str:
        """Where it stands in the file."""
        return f"{self.kind}.{self.name}"


class Declared(Struct, frozen=True):
    """All that a file declares."""

    items: list[Item]
    #: Sections that it has, empty ones too: of these it says all there is to be.
    sections: frozenset[str]
    file: str


def is_one(text: str, file: str) -> bool:
    """Whether a text is meant to declare something, and not to be a settings file. Raises ConfigError when it is no YAML."""
    node = settings_file.compose(text, file)
    return isinstance(node, yaml.MappingNode) and any(
        getattr(key, "value", "") in {MARK, *SECTIONS} - {"keys", "quotas"} for key, _ in node.value
    )


def read(text: str, environ: Mapping[str, str], file: str) -> Declared:
    """Raises ConfigError, whatever the text is: it names the file, the line, the key and the value."""
    node = settings_file.compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(Place(file, 1), "", f"must begin with `{MARK}: {VERSION}`")
    reader = _Reader(file, environ)
    items: list[Item] = []
    found = dict(reader.entries(node, ""))
    version, place = found.pop(MARK, (None, Place(file, 1)))
    if getattr(version, "value", None) != VERSION:
        raise _wrong(place, MARK, f"must be {VERSION}, as in `{MARK}: {VERSION}`")
    for kind, (section, place) in found.items():
        if kind not in SECTIONS:
            raise _wrong(place, kind, f"there is no such section; there are {', '.join(SECTIONS)}")
        items += reader.items(kind, section, place)
    return Declared(items, frozenset(found), file)


def _wrong(place: Place, key: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{place}: {key}: {problem}" if key else f"{place}: {problem}", hint="docs/how-to/config.md says what may stand there"
    )


class _Reader:
    def __init__(self, file: str, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        #: Nodes that were looked at.
        self._seen = 0

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1)

    def entries(self, node: yaml.Node, path: str) -> Iterator[tuple[str, tuple[yaml.Node, Place]]]:
        """What a mapping says, each key once."""
        if settings_file.is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(self._place(node), path, "must be lines of `name: …`")
        seen: set[str] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if not name or name in seen:
                raise _wrong(self._place(key), f"{path}.{name}".strip("."), "is said twice" if name else "must be a name")
            seen.add(name)
            yield name, (value, self._place(key))

    def items(self, kind: str, node: yaml.Node, place: Place) -> Iterator[Item]:
        """The objects of a section."""
        section = SECTIONS[kind]
        for name, (value, where) in self.entries(node, kind):
            if not re.fullmatch(section.names, name):
                raise _wrong(where, f"{kind}.{name[:80]}", f"is no name of one: that is {section.like}")
            yield Item(kind, name, self._fields(section, value, f"{kind}.{name}"), where)

    def _fields(self, section: Section, node: yaml.Node, path: str) -> dict[str, Any]:
        known = {field.name: field for field in msgspec.structs.fields(section.fields)}
        said: dict[str, Any] = {}
        for name, (value, place) in self.entries(node, path):
            if name not in known:
                raise _wrong(place, f"{path}.{name}", f"there is no such field; there are {', '.join(known)}")
            said[name] = self._field(known[name].type, value, f"{path}.{name}")
        missing = [name for name, field in known.items() if field.required and name not in said]
        if missing:
            raise _wrong(self._place(node), f"{path}.{missing[0]}", "is missing")
        return said

    def _field(self, kind: Any, node: yaml.Node, path: str) -> Any:
        plain = self._plain(node, path)
        if isinstance(plain, str) and _is_list(kind):
            plain = [plain]
        if isinstance(plain, str) and "datetime" in str(kind) and re.fullmatch(r"\d{4}-\d\d-\d\d", plain):
            plain += "T00:00:00Z"
        try:
            value = msgspec.convert(plain, kind, strict=False)
            _sense(path.rpartition(".")[2], value)
        except (msgspec.ValidationError, ValueError) as wrong:
            problem = str(wrong).partition(" - at ")[0]
            problem = f"{problem[:1].lower()}{problem[1:]}"
            raise _wrong(self._place(node), path, f"{problem}, not {_shown(plain)}") from None
        return msgspec.to_builtins(value)

    def _plain(self, node: yaml.Node, path: str) -> Any:
        """Text, lists and mappings of it, None."""
        self._seen += 1
        if self._seen > MOST:
            raise _wrong(self._place(node), path, f"the file says more than {MOST:,} things")
        if settings_file.is_null(node):
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(each, path) for each in node.value]
        if isinstance(node, yaml.MappingNode):
            return {name: self._plain(value, f"{path}.{name}") for name, (value, _) in self.entries(node, path)}
        return settings_file.expand(node.value, self._environ, self._place(node), path)


def _is_list(kind: Any) -> bool:
    return "list[" in str(kind)


def _sense(field: str, value: Any) -> None:
    """Raises ValueError for what has the right form and means nothing."""
    if field == "addresses":
        Networks(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("must have a zone, such as Z")
        try:
            value.astimezone(UTC)
        except OverflowError:
            raise ValueError("must be a moment of the years 1 to 9999, in UTC") from None


def _shown(plain: Any) -> str:
    text = repr(plain)
    return text if len(text) <= 80 else f"{text[:79]}…"


def write(items: list[Item]) -> str:
    """The text of a file that declares these, which `read` reads back."""
    lines = [f"{MARK}: {VERSION}"]
    for kind in SECTIONS:
        own = [item for item in items if item.kind == kind]
        lines += ["", f"{kind}:"] if own else []
        for item in own:
            lines.append(f"  {_key(item.name)}: {_flow(item.fields)}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A name before its colon, where nothing comes from the environment."""
    return settings_file.written(name).replace("$${", "${")


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return "null" if value is None else settings_file.written(value)
