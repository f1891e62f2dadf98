"""The settings of a server as they are in force, and where each comes from. PURE."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mindgw import config, settings_file
from mindgw.config import Config
from mindgw.settings_file import Value


class Setting(msgspec.Struct, frozen=True):
    """One setting."""

    #: With its section before it.
    key: str
    #: As a file would say it; the password of an address is left out.
    value: str
    #: "default", or the file and the line; and whether some of it came from the environment.
    origin: str
    #: Whether that is what it would be without a file.
    is_default: bool


def effective(text: str, data_dir: str, environ: Mapping[str, str], *, file: str = config.FILE) -> list[Setting]:
    """All settings that a text comes to, in the order of the example. Raises ConfigError."""
    found = config.parse(text, data_dir, environ, file=file)
    plain = config.parse("", data_dir, {})
    said = settings_file.read(text, Config, environ, file)
    known = [key for key, _ in settings_file.keys(Config)]
    more = [key for key in said if key not in known]
    return [_setting(key, found, plain, said.get(key)) for key in known + more]


def _setting(key: str, found: Config, plain: Config, said: Value | None) -> Setting:
    value = _at(found, key)
    origin = "default" if said is None else f"{said.place}{' and the environment' if said.is_foreign else ''}"
    shown = "***" if key.endswith(_SECRET) and value else _shown(value)
    return Setting(key, shown, origin, value == _at(plain, key))


#: What the names of settings end with that are secret.
_SECRET = "_secret"


def _at(tree: Any, key: str) -> Any:
    """None below a name that is not there."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)
    return tree


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return config.masked(value)
    written = settings_file.written(value)
    return written[1:-1] if written.startswith('"') else written
