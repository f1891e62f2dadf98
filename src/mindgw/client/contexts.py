"""The servers that an operator knows: name -> address, CA and identity. Nothing here is secret; the keys are in `credentials`."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mindgw.client.credentials import home
from mindgw.client.errors import ClientError, Missing
from mindgw_agent import private_files

_FILE = "contexts.json"


@dataclass(frozen=True, slots=True)
class Context:
    """One server."""

    name: str
    #: Root URL.
    url: str
    #: PEM of the only authority that is trusted; empty: the system's, or none on a loopback address.
    ca_pem: str = ""
    #: Identity of the server, under which its key is kept.
    fingerprint: str = ""
    #: When the session that is kept is to be renewed; empty: what is kept lasts, or cannot be made to.
    renew_at: str = ""


@dataclass(frozen=True, slots=True)
class Contexts:
    """All servers, and which one is meant when none is named."""

    #: Name of the current one; empty: none.
    current: str = ""
    items: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str = "") -> Context | None:
        """The context of that name, or the current one; None when there is no current one. Raises Missing on an unknown name."""
        wanted = name or self.current
        if name and name not in self.items:
            known = ", ".join(self.items) or "none yet"
            raise Missing(f"there is no context {name!r}", hint=f"known are: {known}")
        return self.items.get(wanted)

    def at(self, url: str) -> Context | None:
        """A context with that root URL, the current one first; None when there is none."""
        ordered = sorted(self.items.values(), key=lambda context: context.name != self.current)
        return next((context for context in ordered if context.url == url), None)

    def put(self, context: Context) -> "Contexts":
        """With that context, in place of one of the same name, as the current one."""
        return replace(self, current=context.name, items={**self.items, context.name: context})

    def without(self, name: str) -> "Contexts":
        """Without that context; the current one, when it goes, has no successor."""
        items = {key: value for key, value in self.items.items() if key != name}
        return Contexts("" if self.current == name else self.current, items)


def load(directory: Path | None = None) -> Contexts:
    """What is known on this machine. Raises ClientError when the file is damaged."""
    file = (directory or home()) / _FILE
    try:
        said = json.loads(file.read_bytes())
        items = {name: Context(name=name, **_texts(facts)) for name, facts in said["items"].items()}
        current = said["current"] if said["current"] in items else ""
    except (FileNotFoundError, NotADirectoryError):
        return Contexts()
    except OSError as error:
        raise ClientError(f"cannot read {file}: {error.strerror}", hint="its owner must be you") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ClientError(f"{file} is damaged", hint="remove it; `mindgw init` on the server writes it anew") from None
    return Contexts(current, items)


def save(contexts: Contexts, directory: Path | None = None) -> None:
    """Writes all of them. Raises ClientError."""
    place = directory or home()
    items = {name: {key: value for key, value in asdict(context).items() if key != "name"} for name, context in contexts.items.items()}
    text = json.dumps({"current": contexts.current, "items": items}, indent=2)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_files.write(place / _FILE, text.encode() + b"\n")
    except OSError as error:
        hint = "set XDG_CONFIG_HOME to a directory of yours"
        raise ClientError(f"cannot write {place / _FILE}: {os.strerror(error.errno or 0)}", hint=hint) from None


def _texts(facts: Any) -> dict[str, str]:
    """The fields that this release knows. TypeError when they are not text."""
    found = {key: facts[key] for key in ("url", "ca_pem", "fingerprint", "renew_at") if key in facts}
    if not all(isinstance(value, str) for value in found.values()):
        raise TypeError("not text")
    return found
