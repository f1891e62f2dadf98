"""What one run of a command was asked to do: the global flags, and what the environment adds. The only room of the CLI that reads it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OUTPUTS = ("table", "json", "name")

#: Global flags that stand alone, and those that take a value.
_BARE = frozenset({"--json", "--quiet", "--verbose", "--debug", "--yes", "--no-input", "--no-color"})
_VALUED = frozenset({"-o", "--output", "-c", "--context", "--server", "--timeout"})
_CLUSTER = re.compile(r"-[qvy]+\Z")
_GLUED = re.compile(r"-[oc].+\Z", re.DOTALL)
#: Flags that a group reads by itself, because its commands exist without this program on a GPU box: they stay behind its name.
_OWN_FLAGS = {"agent": frozenset({"-v", "--verbose"})}


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says; flags win over it."""

    #: MINDGW_TOKEN: an API key for scripts.
    token: str = ""
    #: MINDGW_SERVER and MINDGW_CONTEXT: where to go.
    server: str = ""
    context: str = ""
    #: NO_COLOR, or a terminal that cannot.
    plain: bool = False
    #: FORCE_COLOR or CLICOLOR_FORCE: colours in a pipe, too.
    forced_colour: bool = False
    #: A terminal that can only be written on line by line.
    dumb: bool = False
    #: Whether somebody is here over SSH.
    remote: bool = False
    #: VISUAL or EDITOR: what files are edited with.
    editor: str = "vi"


@dataclass(frozen=True, slots=True)
class Options:
    """The global flags of one run."""

    output: str = "table"
    quiet: bool = False
    verbose: int = 0
    yes: bool = False
    no_input: bool = False
    no_color: bool = False
    server: str = ""
    context: str = ""
    #: Seconds that a server may stay silent.
    timeout: float = 30.0


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    found = os.environ if environ is None else environ
    return Environment(
        token=found.get("MINDGW_TOKEN", "").strip(),
        server=found.get("MINDGW_SERVER", "").strip(),
        context=found.get("MINDGW_CONTEXT", "").strip(),
        plain=bool(found.get("NO_COLOR")) or found.get("TERM") == "dumb",
        dumb=found.get("TERM") == "dumb",
        remote=bool(found.get("SSH_CONNECTION")),
        editor=found.get("VISUAL") or found.get("EDITOR") or "vi",
        forced_colour=any(found.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")),
    )


def hoist(argv: Sequence[str]) -> list[str]:
    """`argv` with the global flags in front, so that they may stand before or after the verb.

    Nothing behind `--` moves. A flag whose value is missing stays where it is and so gets its error from the parser. The flags keep
    their order, and so do the other words; hoisting twice changes nothing more.
    """
    front: list[str] = []
    rest: list[str] = []
    words = list(argv)
    position = 0
    while position < len(words) and words[position] != "--":
        own = _OWN_FLAGS.get(rest[0], frozenset()) if rest else frozenset()
        taken = 0 if words[position] in own else _length_of_flag(words, position)
        (front if taken else rest).extend(words[position : position + max(taken, 1)])
        position += max(taken, 1)
    return front + rest + words[position:]


def _length_of_flag(words: list[str], position: int) -> int:
    """How many words the global flag at `position` takes; 0 when none stands there."""
    word = words[position]
    if word in _VALUED:
        complete = position + 1 < len(words) and words[position + 1] != "--"
        return 2 if complete else 0
    name, equals, _ = word.partition("=")
    if word in _BARE or (equals and name in _VALUED) or _CLUSTER.match(word) or _GLUED.match(word):
        return 1
    return 0


def wants_json(argv: Sequence[str]) -> bool:
    """Whether errors go out as JSON. Known before parsing, because parsing itself can fail."""
    hoisted = hoist(argv)
    for word, following in zip(hoisted, [*hoisted[1:], ""], strict=False):
        if word == "--":
            return False
        if word in {"--json", "--output=json", "-ojson"} or (word in {"-o", "--output"} and following == "json"):
            return True
    return False
