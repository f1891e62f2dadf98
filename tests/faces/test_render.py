"""What reaches the terminal."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.cli import durations
from mindgw.cli.render import Column, Render
from mindgw.cli.settings import Environment, Options
from mindgw.client.errors import UsageProblem

NOW = datetime(2026, 1, 2, tzinfo=UTC)
COLUMNS = (Column("NAME", lambda item: item["name"]), Column("STATE", lambda item: item["state"]))
ITEMS = [{"name": "a", "state": "ready"}, {"name": "a longer name", "state": "offline"}]


def render(**options):
    return Render(Options(**options), Environment())


def test_columns_are_as_wide_as_their_widest_cell(capsys):
    render().items(ITEMS, COLUMNS, name="name")
    assert capsys.readouterr().out == "NAME           STATE\na              ready\na longer name  offline\n"


def test_json_has_every_field_and_no_talk(capsys):
    render(output="json").items(ITEMS, COLUMNS[:1], name="name")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"items": ITEMS, "next": None}
    assert said.err == ""


def test_an_empty_table_is_no_data(capsys):
    render().items([], COLUMNS, name="name")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err


@given(st.text(max_size=20))
def test_names_do_not_drive_the_terminal(name):
    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as out:
        render().items([{"name": name, "state": "x"}], COLUMNS, name="name")
    head, row, end = out.getvalue().split("\n")
    assert end == ""
    assert all(character.isprintable() for character in head + row)


def test_quiet_silences_talk_but_not_warnings(capsys):
    quiet = render(quiet=True)
    quiet.note("note")
    quiet.success("success")
    quiet.secret("key", "mgw_x")
    quiet.warn("warning")
    assert capsys.readouterr().err == "! warning\n"


def test_talk_has_no_secrets(capsys):
    render(verbose=1).wire("mgw_0123456789_SECRETSECRET")
    render().note("Bearer SECRETSECRET")
    assert "SECRET" not in capsys.readouterr().err


@pytest.mark.parametrize(("text", "count"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800), ("90", 90)])
def test_spans_are_read(text, count):
    assert durations.seconds(text) == count


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1y", "soon", "1h30m", "9" * 40, "500ms"])
def test_what_is_no_span_is_a_wrong_command(text):
    with pytest.raises(UsageProblem):
        durations.seconds(text)


@pytest.mark.parametrize(
    ("delta", "said"), [(0, "0s ago"), (59, "59s ago"), (60, "1m ago"), (7199, "1h ago"), (86400 * 3, "3d ago"), (-5, "0s ago")]
)
def test_moments_are_told_as_people_tell_them(delta, said):
    moment = (NOW - timedelta(seconds=delta)).isoformat().replace("+00:00", "Z")
    assert durations.ago(moment, NOW) == said


def test_what_has_not_been_and_what_is_over():
    assert durations.ago(None, NOW) == "–"
    assert durations.ahead(None, NOW) == "never"
    assert durations.ahead("2026-01-02T01:00:00Z", NOW) == "in 1h"
    assert durations.ahead("2026-01-01T01:00:00Z", NOW) == "expired"
