"""Everything that can be set takes effect: settings are read where something is done, and flags reach what they are for."""

import ast
import inspect
import textwrap

import pytest
import typer

from mindgw import config
from mindgw.cli import settings as flags
from mindgw.cli.app import app
from mindgw_agent import cli as agent
from scripts import reference
from tests import reading
from tests.house import ROOT, code, named, parsed

CONFIG = ROOT / "src/mindgw/config.py"
PROVIDERS = ROOT / "src/mindgw/providers.py"
FLAGS = ROOT / "src/mindgw/cli/settings.py"
#: Rooms that read and write settings, and do nothing by them.
ABOUT = {"settings_edit", "settings_file", "settings_view", "file_schema"}
ROOMS = [path for path in code() if path.stem not in ABOUT and path != CONFIG]


def unread(home, known, rooms, roots):
    """Fields of `known`, below the classes `roots`, that no room reads; what holds others counts by those."""
    read = reading.Reader(known, home).look(rooms)
    leaves = {(owner, field) for owner in reached(known, roots) for field, inner in known[owner].items() if not inner}
    return sorted(".".join(field) for field in leaves - read)


def reached(known, roots):
    found = set(roots)
    for root in roots:
        found |= reached(known, {inner for inner in known[root].values() if inner})
    return found


def test_every_setting_is_read_where_something_is_done():
    known = reading.classes(CONFIG) | reading.classes(PROVIDERS)
    assert {key.rpartition(".")[2] for key, *_ in reference.settings(config.Config)} <= {
        field for fields in known.values() for field in fields
    }
    assert unread(CONFIG, reading.classes(CONFIG), ROOMS, {"Config"}) == []
    assert unread(PROVIDERS, reading.classes(PROVIDERS), [*ROOMS, CONFIG], {"Provider"}) == []


@pytest.mark.parametrize(
    ("blind", "lost"),
    [
        ("gateway/patience.py", ["Timeouts.hold", "Timeouts.worker_return"]),
        ("logs.py", ["Log.format", "Log.level"]),
        ("control/key_policy.py", ["Keys.max_age", "Keys.rotate_every", "Keys.unused"]),
        ("server/listeners.py", ["Metrics.listen"]),
    ],
)
def test_a_setting_that_nobody_reads_is_found(blind, lost):
    rooms = [path for path in ROOMS if named(path) != f"src/mindgw/{blind}"]
    assert set(lost) <= set(unread(CONFIG, reading.classes(CONFIG), rooms, {"Config"}))


def test_a_new_setting_that_does_nothing_is_found():
    known = reading.classes(CONFIG)
    known["Limits"]["planted"] = ""
    assert unread(CONFIG, known, ROOMS, {"Config"}) == ["Limits.planted"]


def test_every_global_flag_and_variable_is_read():
    known = reading.classes(FLAGS)
    assert {"Options", "Environment"} <= known.keys() and flags.Options.__name__ == "Options"
    assert unread(FLAGS, known, code(), {"Options", "Environment"}) == []


def commands():
    """Every command of both programs: (full name, command, its function as it is written)."""
    for program, name in ((app, "mindgw"), (agent.root, "mindgw-agent")):
        for path, command, _ in reference.commands(typer.main.get_command(program), name):
            if command.callback is not None:
                function = inspect.unwrap(command.callback)
                yield path, command, ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


#: What is looked for among the words themselves: it must hold when they cannot be understood, too.
EARLY = {"debug"}


def idle(command, function):
    """Parameters without any effect. What has a callback of its own takes effect there."""
    handled = {param.name for param in command.params if param.callback is not None}
    return sorted(reading.unused(function) - handled - EARLY - {"ctx"})


def test_every_flag_of_every_command_is_used():
    every = list(commands())
    assert len(every) > 100
    loose = [f"{name}: {param}" for name, command, function in every for param in idle(command, function)]
    assert not loose, loose


def test_a_flag_that_does_nothing_is_found():
    name, command, _ = next(each for each in commands() if each[0] == "mindgw keys create")
    function = ast.parse("def create(ctx, name, team=None):\n    name = 'team'\n    return invocation(ctx).server()").body[0]
    assert (name, idle(command, function)) == ("mindgw keys create", ["name", "team"])


def test_what_a_request_is_built_from_gets_into_it():
    """Builders of requests say with each parameter what the server is asked for."""
    rooms = [path for path in code() if "/mindgw/client/" in named(path)]
    assert len(rooms) > 15
    loose = [
        f"{named(path)}:{function.lineno} {param}"
        for path in rooms
        for function in reading.functions(parsed(path))
        if "Request" in ast.unparse(function.returns or ast.Constant("")) and not function.name.startswith("__")
        for param in reading.unused(function)
    ]
    assert not loose, loose
