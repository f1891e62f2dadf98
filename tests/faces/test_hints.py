"""What a hint tells to type can be typed: its command is there, and takes those options."""

import ast
import re
from collections.abc import Iterator

import pytest
import typer

from mindgw.cli.app import app
from tests.house import code, named, parsed

ROOT = typer.main.get_command(app)
#: A command as prose sets it off from the words around it, up to what stands for a value.
QUOTED = re.compile(r"`mindgw ((?:[a-z-]+ ?)+)([^`]*)`")


def hints() -> Iterator[tuple[str, str, str]]:
    for path in code():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from ((named(path), *found.groups()) for found in QUOTED.finditer(node.value))


def unknown(words: str, rest: str) -> str:
    """What there is not of a command and its options; empty: all is there."""
    command = ROOT
    takes = {"--help", *(opt for param in ROOT.params for opt in param.opts)}
    for word in words.split():
        if word.startswith("-") or not hasattr(command, "get_command"):
            break  # an option, or a value
        command = command.get_command(typer.Context(command), word)
        if command is None:
            return word
        takes |= {opt for param in command.params for opt in param.opts}
    return " ".join(word for word in re.findall(r"(?<!\S)--?[a-z][a-z-]*", f"{words} {rest}") if word not in takes)


def test_what_a_hint_tells_to_type_is_there():
    told = sorted(set(hints()))
    assert len(told) > 30
    wrong = [f"{where}: `mindgw {words}{rest}` ({lacks})" for where, words, rest in told if (lacks := unknown(words, rest))]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("words", "rest", "lacks"), [("keyz ", "", "keyz"), ("keys make ", "NAME", "make"), ("keys create ", "N --root", "--root")]
)
def test_a_hint_that_leads_nowhere_is_found(words, rest, lacks):
    assert unknown(words, rest) == lacks
