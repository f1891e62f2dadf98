"""`mindgw quotas`, against the real server."""

import json
import os

import pytest

from tests.faces.bookkeeping import book, used
from tests.faces.conftest import KEY, SECRET, Terminal


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def key(admin):
    """A key of a team of its own, as `keys create --json` shows it."""
    name = f"k-{os.urandom(4).hex()}"
    return read(admin("keys", "create", name, "--team", f"team-{name}", "--json"))


@pytest.fixture
def scope(key):
    return f"team:{key['team']}"


def limits(admin, scope):
    return read(admin("quotas", "list", "--scope", scope, "--json"))["items"]


def test_a_budget_for_a_team_takes_one_command(admin, scope):
    done = admin("quotas", "set", scope, "--tokens", "5M/month", "--tokens", "100k/day")
    assert (done.code, done.out) == (0, "")
    assert f"{scope} may use 5,000,000 tokens a month, then: block" in done.err
    assert f"mindgw quotas clear {scope} --unit tokens --period day" in done.err
    listed = admin("quotas", "list", "--scope", scope)
    head, *rows = listed.out.splitlines()
    assert head.split() == ["SCOPE", "UNIT", "WINDOW", "LIMIT", "USED", "RESERVED", "LEFT", "ON", "EXCEED", "RESETS"]
    assert [row.split()[3:8] for row in rows] == [["100,000", "0", "0", "100,000", "block"], ["5,000,000", "0", "0", "5,000,000", "block"]]


def test_items_have_what_programs_need(admin, key, scope):
    done = read(admin("quotas", "set", scope, "--tokens", "100/total", "--usd", "12.50/month", "--on-exceed", "soft", "--json"))
    tokens, usd = done["items"]
    assert {
        "scope": scope, "unit": "tokens", "period": "total", "window": "total", "limit": 100, "used": 0, "reserved": 0, "over": 0,
        "left": 100, "on_exceed": "soft", "resets_at": None, "version": 1,
    }.items() <= tokens.items()  # fmt: skip
    assert (usd["unit"], usd["limit"], usd["used"], usd["left"]) == ("usd", "12.50", "0.00", "12.50")
    assert usd["resets_at"].startswith("20") and usd["resets_at"].endswith("Z")
    assert limits(admin, scope) == done["items"]
    assert done["items"][0] in read(admin("quota", "ls", "--json"))["items"]


def test_dollars_without_prices_are_set_with_a_warning(admin, scope):
    done = admin("quotas", "set", scope, "--usd", "5/month", "-q")
    assert done.code == 0 and "! Without prices nothing costs anything" in done.err
    assert done.out == "" or "5" not in done.out
    assert "prices" not in admin("quotas", "set", scope, "--tokens", "5/month").err


def test_a_limit_of_a_model_that_nobody_has_is_doubted(admin):
    done = admin("quotas", "set", "model:no-such-model", "--tokens", "5/month", "-q")
    assert done.code == 0 and "! No connected worker has a model 'no-such-model' now" in done.err
    admin("quotas", "clear", "model:no-such-model", "--yes")


def test_what_was_used_is_shown_and_may_be_forgiven(admin, gateway, key):
    scope = f"key:{key['id']}"
    book(gateway, used(f"req-{key['id']}", key))
    admin("quotas", "set", scope, "--tokens", "10/day", "--tokens", "100/month")
    day, month = limits(admin, scope)
    assert (day["used"], day["over"], day["left"], month["left"]) == (15, 5, 0, 85)
    done = admin("quotas", "reset", scope, "--period", "day", "--yes")
    assert done.code == 0 and "has all of 10 tokens a day again" in done.err
    day, month = limits(admin, scope)
    assert (day["used"], day["forgiven"], day["left"], month["used"]) == (0, 15, 10, 15)
    shown = admin("quotas", "show", scope)
    head, row, _ = shown.out.splitlines()
    assert head.split()[:9] == ["UNIT", "WINDOW", "PERIOD", "LIMIT", "USED", "RESERVED", "LEFT", "OVER", "FORGIVEN"]
    assert row.split()[3:9] == ["10", "0", "0", "10", "0", "15"]


@pytest.mark.parametrize("verb", ["clear", "rm", "remove", "delete"])
def test_limits_are_taken_away_one_by_one_or_all(admin, scope, verb):
    admin("quotas", "set", scope, "--tokens", "10/day", "--tokens", "100/month", "--on-exceed", "alert")
    gone = admin("quotas", verb, scope, "--period", "day", "--yes")
    assert gone.code == 0 and f"Undo: mindgw quotas set {scope} --tokens 10/day --on-exceed alert" in gone.err
    assert [one["period"] for one in limits(admin, scope)] == ["month"]
    assert read(admin("quotas", verb, scope, "-y", "--json"))["items"][0]["period"] == "month"
    assert limits(admin, scope) == []
    assert admin("quotas", "list", "--scope", scope).out == ""


@pytest.mark.parametrize("flags", [["-o", "name"], ["-q"]])
def test_names_alone_are_for_pipes(admin, scope, flags):
    made = admin("quotas", "set", scope, "--tokens", "10/day", "--tokens", "100/month", *flags)
    listed = admin("quotas", "list", *flags)
    assert listed.out.splitlines().count(scope) == 1
    assert made.out.splitlines() == ([scope] if flags != ["-q"] else [])


@pytest.mark.parametrize("verb", ["reset", "clear"])
def test_severe_changes_ask_for_the_scope(admin, scope, verb):
    admin("quotas", "set", scope, "--tokens", "10/day")
    refused = admin("quotas", verb, scope)
    assert refused.code == 2 and "--yes required" in refused.err
    for typed, code in (("another\n", 2), ("\n", 2), (f"{scope}\n", 0)):
        terminal = Terminal("quotas", verb, scope)
        asked = terminal.hear("to do it:")
        assert "10 tokens" in asked or "0 tokens" in asked
        terminal.type(typed)
        assert terminal.end().code == code
    assert len(limits(admin, scope)) == (1 if verb == "reset" else 0)


@pytest.mark.parametrize(
    "words",
    [
        ["set", "model:m"], ["set", "model:m", "--tokens", "5M"], ["set", "model:m", "--tokens", "-5/day"],
        ["set", "model:m", "--tokens", "NaN/day"], ["set", "model:m", "--tokens", "1e9/day"], ["set", "model:m", "--tokens", "5/week"],
        ["set", "model:m", "--tokens", "99999999999999999999/day"], ["set", "model:m", "--usd", "0.00000001/day"],
        ["set", "model:m", "--tokens", "1/day", "--tokens", "2/day"], ["set", "model:m", "--tokens", "1/day", "--on-exceed", "explode"],
        ["set", "nlp", "--tokens", "1/day"], ["set", "model:", "--tokens", "1/day"], ["set", "--tokens", "1/day"],
        ["set", "gpu:x", "--tokens", "1/day"], ["list", "--scope", "x"], ["show", "x"],
        ["clear", "model:m", "--unit", "euro", "-y"], ["reset", "model:m", "--period", "week", "-y"],
    ],
)  # fmt: skip
def test_wrong_words_exit_2_and_change_nothing(admin, words):
    refused = admin("quotas", *words)
    assert (refused.code, refused.out) == (2, ""), refused.err
    assert refused.err.count("\n") == 3 and "defect" not in refused.err
    assert limits(admin, "model:m") == []


@pytest.mark.parametrize(
    "words",
    [
        ["set", "team:nobody", "--tokens", "1/day"], ["set", "user:nobody@example.org", "--tokens", "1/day"],
        ["set", "key:nobody", "--tokens", "1/day"], ["set", "org:nobody", "--tokens", "1/day"], ["list", "--scope", "team:nobody"],
        ["show", "team:nobody"], ["show", "model:m"], ["reset", "model:m", "-y"], ["clear", "model:m", "-y"],
        ["clear", "model:m", "--unit", "usd", "-y"],
    ],
)  # fmt: skip
def test_what_is_not_there_exits_6(admin, words):
    refused = admin("quotas", *words)
    assert (refused.code, refused.out) == (6, ""), refused.err
    assert "hint:" in refused.err


def test_a_whole_key_stands_for_its_id_and_never_reaches_an_address(admin, key):
    done = admin("quotas", "set", f"key:{key['key']}", "--tokens", "7/day", "-v")
    assert done.code == 0 and key["key"] not in done.err
    shown = admin("quotas", "show", f"key:{key['key']}", "--json", "-v")
    assert read(shown)["items"][0]["scope"] == f"key:{key['id']}" and key["key"] not in shown.err


def test_what_a_key_is_stays_at_home(cli, fake):
    fake.body = b'{"items": []}'
    for words in (["set", f"key:{KEY}", "--tokens", "1/day"], ["list", "--scope", f"key: {KEY}"], ["list", "--scope", KEY]):
        cli("quotas", *words)
    assert len(fake.asked) == 3
    assert all(SECRET not in path and SECRET.encode() not in body for _, path, _, body in fake.asked)


def test_a_key_that_is_not_an_admins_may_not_set_limits(cli, gateway, key, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", key["key"])
    refused = cli("quotas", "set", "org:default", "--tokens", "0/day", "--server", gateway.url)
    assert refused.code == 5
