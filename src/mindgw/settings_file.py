"""The text of a settings file: YAML to one flat set of values, each with its place, and back. PURE.

What follows a `$` in braces comes from the environment: `${NAME}` must be set, `${NAME:-text}` falls back, `$${` stands for `${`.
It is put into values only, so it can never become a key.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from mindgw import quantities
from mindgw.errors import ConfigError

#: Names that an operator gives to sections.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)

_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"

_READERS: dict[Any, Callable[[str], Any]] = {
    str: str.strip,
    bool: quantities.switch,
    int: quantities.count,
    quantities.Duration: quantities.duration,
    quantities.Size: quantities.size,
    quantities.Days: quantities.days,
    quantities.Shares: quantities.shares,
    quantities.PriceTable: quantities.prices,
    quantities.NameTable: quantities.names,
    quantities.Words: quantities.words,
    quantities.NetworkList: quantities.networks,
    quantities.Certificate: quantities.certificate,
}


class Place(msgspec.Struct, frozen=True):
    """Where something stands; line 0 means no line in particular."""

    file: str
    line: int = 0
    #: The flag that said it, where it stands on the command line; the setting is then known by that name alone.
    flag: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def wrong(self, problem: str, key: str = "") -> ConfigError:
        """The error about what stands here: a setting, or without a key the text as a whole."""
        name = self.flag or key
        hint = "--help shows what it takes" if self.flag else _MEND
        return ConfigError(f"{self}: {name}: {problem}" if name else f"{self}: {problem}", hint=hint)


_MEND = "mend it there; docs/reference/settings.md says what each setting may be"


class Value(msgspec.Struct, frozen=True):
    """A setting as it was read."""

    value: Any
    #: What was written, after the environment was put in.
    text: str
    place: Place
    #: Whether some of it came from the environment.
    is_foreign: bool = False


class _Source(msgspec.Struct, frozen=True):
    """What a text is read with."""

    file: str
    environ: Mapping[str, str]

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1)


def read(text: str, tree: type[msgspec.Struct], environ: Mapping[str, str], file: str) -> dict[str, Value]:
    """Dotted key -> value of all that the text says; `tree` says which keys there are. Raises ConfigError, whatever the text is."""
    return dict(_section(compose(text, file), tree, "", _Source(file, environ)))


def read_one(key: str, text: str, tree: type[msgspec.Struct], place: Place) -> Value:
    """The value of one dotted key of `tree`, said outside the file. Raises ConfigError; KeyError when there is no such key."""
    kind = kind_of(key, tree)
    if kind is None:
        raise KeyError(key)
    return _value(kind, key, text, place)


def kind_of(key: str, tree: type[msgspec.Struct]) -> Any:
    """What kind of value a dotted key has, as the tree has it; None when there is no such setting."""
    kind: Any = tree
    for name in key.split("."):
        if (each := family(kind)) is not None:
            kind = each if _NAME.fullmatch(name) else None
            continue
        kinds = get_type_hints(kind, include_extras=True) if is_section(kind) else {}
        kind = kinds.get(name)
    return None if is_section(kind) or family(kind) is not None else kind


def kinds_in(tree: type[msgspec.Struct]) -> dict[str, Any]:
    """Name -> kind of what stands directly in a section."""
    return get_type_hints(tree, include_extras=True)


def is_section(kind: Any) -> bool:
    """Whether it has settings in it."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def family(kind: Any) -> type[msgspec.Struct] | None:
    """What each of some sections is like whose names are the operator's; None for what is no such thing."""
    inner = get_args(kind)[1] if get_origin(kind) is dict else None
    return inner if is_section(inner) else None


def keys(tree: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, kind) of every setting that there always is."""
    for name, kind in get_type_hints(tree, include_extras=True).items():
        if is_section(kind):
            yield from keys(kind, f"{prefix}{name}.")
        elif family(kind) is None:
            yield prefix + name, kind


def unknown(key: str, tree: type[msgspec.Struct]) -> ConfigError:
    """The error about a key that somebody named, and that is not there."""
    return ConfigError(f"command line: there is no setting {key!r}{_nearest(key, dict(keys(tree)))}", hint=_MEND)


def write(values: Mapping[str, Any]) -> str:
    """Lines that `read` reads back: dotted key -> text or number; keys of one section must stand together."""
    lines: list[str] = []
    within: list[str] = []
    for key, value in values.items():
        *sections, name = key.split(".")
        same = next(
            (at for at, pair in enumerate(zip(sections, within, strict=False)) if pair[0] != pair[1]), min(len(sections), len(within))
        )
        lines += [f"{'  ' * at}{sections[at]}:" for at in range(same, len(sections))]
        within = sections
        lines.append(f"{'  ' * len(sections)}{name}: {written(value)}")
    return "\n".join(lines) + "\n"


def compose(text: str, file: str) -> yaml.Node | None:
    """The tree of a text, None when it says nothing. Raises ConfigError when it is no YAML."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Place(file, mark.line + 1 if mark else 0).wrong(f"is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise Place(file).wrong(f"is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise Place(file).wrong("is nested too deeply") from None


def _section(node: yaml.Node | None, tree: type[msgspec.Struct], prefix: str, source: _Source) -> Iterator[tuple[str, Value]]:
    if node is None or node.tag == _NULL:
        return
    if not isinstance(node, yaml.MappingNode):
        raise source.place(node).wrong("must be lines of `key: value`", prefix.rstrip("."))
    kinds = get_type_hints(tree, include_extras=True)
    seen: set[str] = set()
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in kinds:
            raise source.place(key).wrong(f"there is no such setting{_nearest(name, kinds)}", f"{prefix}{name}")
        if name in seen:
            raise source.place(key).wrong("is said twice", f"{prefix}{name}")
        seen.add(name)
        kind = kinds[name]
        each = family(kind)
        if is_section(kind):
            yield from _section(value, kind, f"{prefix}{name}.", source)
        elif each is not None:
            yield from _family(value, each, f"{prefix}{name}", source)
        elif value.tag != _NULL:
            yield prefix + name, _scalar(value, kind, prefix + name, source)


def _family(node: yaml.Node, each: type[msgspec.Struct], key: str, source: _Source) -> Iterator[tuple[str, Value]]:
    """Sections by names that the operator gives them."""
    if node.tag == _NULL:
        return
    if not isinstance(node, yaml.MappingNode):
        raise source.place(node).wrong("must be lines of `name:` with settings below each", key)
    seen: set[str] = set()
    for said, value in node.value:
        name = said.value if isinstance(said, yaml.ScalarNode) else ""
        if _NAME.fullmatch(name) is None:
            raise source.place(said).wrong(f"{name[:63]!r} is no name: lower-case letters, digits and -, up to 32, a letter first", key)
        if name in seen:
            raise source.place(said).wrong("is said twice", f"{key}.{name}")
        seen.add(name)
        if not isinstance(value, yaml.MappingNode) or not value.value:
            raise source.place(value).wrong("must be lines of `key: value`", f"{key}.{name}")
        yield from _section(value, each, f"{key}.{name}.", source)


def is_null(node: yaml.Node) -> bool:
    """Whether nothing stands there."""
    return node.tag == _NULL


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _scalar(node: yaml.Node, kind: Any, key: str, source: _Source) -> Value:
    place = source.place(node)
    if not isinstance(node, yaml.ScalarNode):
        raise place.wrong("must be one value, not a list or a section", key)
    text = expand(node.value, source.environ, place, key)
    if kind is str and node.tag != _TEXT:
        raise place.wrong(f"must be text, not {text!r}; write it in quotes", key)
    found = _value(kind, key, text, place)
    return msgspec.structs.replace(found, is_foreign=any(match[1] for match in _VARIABLE.finditer(node.value)))


def _value(kind: Any, key: str, text: str, place: Place) -> Value:
    try:
        return Value(_READERS[kind](text), text, place)
    except ValueError as error:
        raise place.wrong(f"{error}, not {text!r}", key) from None


_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")


def expand(text: str, environ: Mapping[str, str], place: Place, key: str) -> str:
    """A value with what it takes from the environment; `place` and `key` say where it stands. Raises ConfigError."""

    def substitute(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if match[0] == "$${":
            return "${"
        if name is None:
            raise place.wrong("${…} must hold a name, as in ${NAME} or ${NAME:-text}; write $${ for a plain ${", key)
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise place.wrong(f"the environment has no {name}; set it, or write ${{{name}:-text}}", key)
        return environ[name]

    return _VARIABLE.sub(substitute, text)


def written(value: Any) -> str:
    """A value as it stands behind its key; what looks like a variable of the environment is read back as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = ", ".join(value)
    if isinstance(value, dict):
        value = ", ".join(f"{name}={share if isinstance(share, str) else written(share)}" for name, share in value.items())
    if isinstance(value, str):
        escaped = value.replace("${", "$${")
        # plain where YAML reads plain text back as the same text, else in double quotes
        style = None if re.fullmatch(r"[A-Za-z][\w./-]*|[a-z]+://[\w./:@%+-]+", escaped) else '"'
        return str(yaml.safe_dump(escaped, default_style=style, allow_unicode=True, width=10**6)).removesuffix("\n").removesuffix("\n...")
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
