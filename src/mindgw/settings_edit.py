"""The text of a settings file with other values: comments, order and everything else stay as they were. PURE."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from mindgw import settings_file
from mindgw.errors import ConfigError
from mindgw.settings_file import Place


def amend(text: str, changes: Mapping[str, Any], file: str) -> str:
    """The text with other values of dotted keys: replaced where they stand, else added at the end of their section. `text` must be one
    that can be read. Raises ConfigError when it is no YAML, or says a setting in a way that only a person can change."""
    for key, value in changes.items():
        text = _amend(text, key.split("."), settings_file.written(value), file)
    return text


def change(text: str, key: str, said: str, tree: type[msgspec.Struct], file: str) -> str:
    """The text with what a person said as the value of one dotted key of `tree`; what looks like a variable of the environment stays as it
    is. Raises ConfigError for a key that is not there and a value that makes no sense alone; the others it may clash with are the
    caller's to look at."""
    kind = settings_file.kind_of(key, tree)
    if kind is None:
        raise settings_file.unknown(key, tree)
    settings_file.read_one(key, said, tree, Place("command line"))
    plain = kind is not str and re.fullmatch(r"[\w.]+", said, re.ASCII)
    return _amend(text, key.split("."), said if plain else settings_file.written(said), file)


def _amend(text: str, names: list[str], written: str, file: str) -> str:
    node = settings_file.compose(text, file)
    above: yaml.Node | None = None
    for depth, name in enumerate(names):
        if not isinstance(node, yaml.MappingNode):
            return _below(text, above, names[depth:], written) if _is_empty(node) else _refuse(names, file)
        found = next(((key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == name), None)
        if found is None:
            return _add(text, node, names[depth:], written, at_end=not depth)
        above, node = found
    if not isinstance(node, yaml.ScalarNode) or node.style in {"|", ">"}:
        return _refuse(names, file)
    start, end = node.start_mark.index, node.end_mark.index
    return text[:start] + (written if start < end else f" {written}") + text[end:]


def _is_empty(node: yaml.Node | None) -> bool:
    """Nothing at all, or a section without a setting."""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index)


def _refuse(names: list[str], file: str) -> str:
    hint = "`mindgw config edit` opens the file"
    raise ConfigError(f"{file}: {'.'.join(names)}: is said in a way that only an editor can change", hint=hint)


def _add(text: str, node: yaml.MappingNode, names: list[str], written: str, *, at_end: bool) -> str:
    """Behind the last entry of a section, or at the end of the text."""
    if node.flow_style:
        end = node.end_mark.index - 1
        inner = f"{names[0]}: {written}" if len(names) == 1 else f"{names[0]}: {{{': {'.join(names[1:])}: {written}{'}' * (len(names) - 1)}"
        return text[:end].rstrip(" ") + (", " if node.value else "") + inner + text[end:]
    return _insert(text, len(text) if at_end else _last_mark(node), node.start_mark.column, names, written)


def _below(text: str, above: yaml.Node | None, names: list[str], written: str) -> str:
    """As the first entry of a section that has none; `above` is its key, None where the text says nothing at all."""
    if above is None:
        return _insert(text, len(text), 0, names, written)
    return _insert(text, above.end_mark.index, above.start_mark.column + 2, names, written)


def _insert(text: str, at: int, column: int, names: list[str], written: str) -> str:
    """Lines behind the one in which `at` is."""
    end = text.find("\n", at)
    before, after = (text, "") if end < 0 else (text[: end + 1], text[end + 1 :])
    before += "" if not before or before.endswith("\n") else "\n"
    lines = [f"{' ' * (column + 2 * depth)}{name}:" for depth, name in enumerate(names)]
    return before + "\n".join(lines) + f" {written}\n" + after


def _last_mark(node: yaml.Node) -> int:
    """Where the last value in a section ends."""
    while isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        node = node.value[-1][1]
    if isinstance(node, yaml.ScalarNode) and node.style not in {"|", ">"}:
        return node.end_mark.index
    return max(node.start_mark.index, node.end_mark.index - 1)
