"""`mindgw config`: the settings of this machine; and that the real server has what a file declares."""

import json
import os
from pathlib import Path

import pytest

from mindgw import config
from mindgw.client.errors import ClientError
from mindgw.client.transport import Server
from tests.faces.conftest import Terminal
from tests.house import ROOT


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A settings file of a data directory."""
    monkeypatch.setenv("MINDGW_DATA_DIR", str(tmp_path / "data"))
    path = tmp_path / "data" / config.FILE
    path.parent.mkdir(mode=0o700)
    path.write_text("# mine\nlisten: 127.0.0.1:9\nlog:\n  level: ${LEVEL:-info}   # loud\ndatabase: postgresql://u:${PW}@h/d\n")
    monkeypatch.setenv("PW", "hidden")
    return path


# -- settings ----------------------------------------------------------------------------------------------------------


def test_where_the_file_is(cli, file, tmp_path):
    assert cli("config", "path").out == f"{file}\n"
    assert cli("config", "path", "--config", "x.yaml").out == "x.yaml\n"
    assert cli("config", "path", "--data-dir", str(tmp_path)).out == f"{tmp_path / config.FILE}\n"


def test_what_is_in_force_is_shown_with_where_it_comes_from_and_without_passwords(cli, file, monkeypatch):
    monkeypatch.setenv("LEVEL", "debug")
    items = {item["key"]: item for item in read(cli("config", "show", "--json"))["items"]}
    assert items["listen"] | {"origin": ""} == {"key": "listen", "value": "127.0.0.1:9", "origin": "", "is_default": False}
    assert items["listen"]["origin"] == f"{file}:2"
    assert (items["log.level"]["value"], items["log.level"]["origin"]) == ("debug", f"{file}:4 and the environment")
    assert items["database"]["value"] == "postgresql://u:***@h/d"
    assert "hidden" not in cli("config", "show", "--all").out
    everything = read(cli("config", "show", "--all", "--json"))["items"]
    assert next(item for item in everything if item["key"] == "fast_lane") == {
        "key": "fast_lane", "value": "true", "origin": "default", "is_default": True,
    }  # fmt: skip


def test_one_setting_is_printed(cli, file):
    assert cli("config", "get", "log.level").out == "info\n"
    assert cli("config", "get", "timeouts.idle").out == "120\n"
    assert "hidden" not in cli("config", "get", "database").out
    refused = cli("config", "get", "log.levle")
    assert (refused.code, "did you mean log.level" in refused.err) == (2, True)


def test_a_setting_is_changed_and_nothing_else(cli, file):
    before = file.read_text()
    done = cli("config", "set", "listen", "127.0.0.1:10")
    assert (done.code, done.out) == (0, "")
    assert "next start" in done.err
    assert file.read_text() == before.replace("127.0.0.1:9", '"127.0.0.1:10"')
    assert file.stat().st_mode & 0o777 == 0o600
    assert read(cli("config", "set", "listen", "127.0.0.1:10", "--json"))["changed"] is False


def test_a_dry_run_changes_nothing(cli, file):
    before = file.read_text()
    done = cli("config", "set", "log.format", "json", "--dry-run")
    assert done.code == 0 and "+  format: json" in done.err
    assert file.read_text() == before


def test_what_looks_like_a_variable_comes_back_literally(cli, file, monkeypatch):
    """Threat 30: what is set is text."""
    monkeypatch.setenv("SECRET", "leaked")
    for text in ("/d/${SECRET}", "/d/{{7*7}}", "/d/$(id)`id`"):
        assert cli("config", "set", "data_dir", text).code == 0
        assert cli("config", "get", "data_dir").out == f"{text}\n"


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("lisen", "x", "did you mean listen"),
        ("listen", "0.0.0.0:1", "listen: must be a loopback address"),
        ("log.level", "loud", "log.level: must be one of"),
        ("public_url", "https://x:9", "would both take port 9"),
    ],
)
def test_what_makes_no_sense_changes_nothing(cli, file, key, value, part):
    before = file.read_text()
    refused = cli("config", "set", key, value)
    assert refused.code in {1, 2} and part in refused.err
    assert file.read_text() == before


def test_a_file_is_edited_until_it_makes_sense(file, tmp_path, monkeypatch, cli):
    before = file.read_text()
    editor = tmp_path / "ed"
    editor.write_text('#!/bin/sh\nif grep -q colour "$1"; then sed -i s/colour/level/ "$1"; else echo "log: {colour: info}" > "$1"; fi\n')
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    refused = cli("config", "edit", "--no-input")
    assert (refused.code, "log.colour: there is no such setting" in refused.err) == (1, True)
    assert (file.read_text(), sorted(os.listdir(file.parent))) == (before, [config.FILE])
    editor.write_text('#!/bin/sh\necho "log: {level: debug}" > "$1"\n')
    assert cli("config", "edit").code == 0
    assert file.read_text() == "log: {level: debug}\n"
    editor.write_text("#!/bin/sh\nexit 3\n")
    assert (cli("config", "edit").code, file.read_text()) == (1, "log: {level: debug}\n")


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("listen: 127.0.0.1:1\n", 0, "these settings are right"),
        ("listen:\n  - a\n", 3, "x.yaml:2: listen: must be one value"),
        ("log: {level: loud}\n", 3, "x.yaml:1: log.level: must be one of debug, info, warning, error, not 'loud'"),
        ("mindgw: v1\nkeys: {a: {rpm: 3}}\n", 0, "these declarations are right"),
        ("mindgw: v1\nkeys:\n  a:\n    rpm: many\n", 3, "x.yaml:4: keys.a.rpm: "),
        ("mindgw: v1\nusers: {ana: {role: ${NOPE}}}\n", 3, "x.yaml:2"),
    ],
)
def test_a_file_is_checked(cli, tmp_path, monkeypatch, text, code, part):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    done = cli("config", "validate", "x.yaml")
    assert (done.code, part in done.err, done.out) == (code, True, "")
    found = cli("config", "validate", "x.yaml", "--json")
    assert (found.code, json.loads(found.out)["ok"]) == (code, code == 0)


def test_a_file_that_is_not_there_is_a_problem(cli, tmp_path):
    assert cli("config", "validate", str(tmp_path / "none.yaml")).code == 3


def test_schemas_are_printed(cli):
    assert "timeouts" in read(cli("config", "schema", "settings"))["properties"]
    assert "quotas" in read(cli("config", "schema"))["properties"]
    assert cli("config", "schema", "planets").code == 2


# -- declarations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def wanted(tmp_path):
    """A file that declares things with names of their own."""
    mark = os.urandom(4).hex()
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f"""\
mindgw: v1
users:
  ana-{mark}@example.org: {{role: operator, name: Ana}}
  ci-{mark}: {{role: user}}
keys:
  bot-{mark}:
    team: nlp-{mark}
    user: ana-{mark}@example.org
    models: ["llama*", qwen]
    addresses: [10.0.0.0/8]
    rpm: ${{RPM:-60}}
    expires_at: 2999-01-01
roles:
  auditor-{mark}: {{rank: 30, permissions: ["read:*"]}}
rates:
  user:ana-{mark}@example.org: {{rpm: 600}}
access:
  team:nlp-{mark}: {{allow: ["llama*", qwen], deny: "*-72b"}}
  key:bot-{mark}: {{deny: [secret]}}
quotas:
  team:nlp-{mark}: {{tokens: [5M/month, 100k/day], usd: 12.50/month, on_exceed: soft}}
"""
    )
    return path, mark


def test_what_is_declared_is_made_once(admin, wanted):
    path, mark = wanted
    assert admin("config", "diff", str(path)).code == 3
    dry = read(admin("config", "apply", "-f", str(path), "--dry-run", "--json"))
    assert (dry["create"], dry["secrets"]) == (8, [])
    done = admin("config", "apply", "-f", str(path))
    assert done.code == 0, done.err
    secrets = dict(line.split() for line in done.out.splitlines())
    assert set(secrets) == {f"keys.bot-{mark}", f"users.ana-{mark}@example.org"}
    assert secrets[f"keys.bot-{mark}"].startswith("mgw_")
    assert "✓ +8 ~0 -0" in done.err
    again = admin("config", "apply", "-f", str(path))
    assert (again.code, again.out) == (0, "")
    assert "has all that is declared" in again.err
    assert admin("config", "diff", str(path)).code == 0
    shown = read(admin("keys", "show", f"bot-{mark}", "--json"))
    assert (shown["models"], shown["rpm"], shown["expires_at"]) == (["llama*", "qwen"], 60, "2999-01-01T00:00:00Z")


@pytest.mark.parametrize("place", ["dev", "staging", "production"])
def test_every_example_can_be_applied_and_comes_to_nothing_the_second_time(admin, place):
    path = ROOT / f"templates/gateway.{place}.yaml"
    done = admin("config", "apply", "-f", str(path))
    assert done.code == 0, done.err
    assert admin("config", "diff", str(path)).code == 0
    for line in done.out.splitlines():
        if line.startswith("keys."):
            admin("keys", "revoke", line.split()[1], "--yes")


def test_what_is_declared_in_another_way_is_changed(admin, wanted, monkeypatch):
    path, mark = wanted
    admin("config", "apply", "-f", str(path))
    monkeypatch.setenv("RPM", "7")
    path.write_text(path.read_text().replace("100k/day, ", "").replace(", 100k/day", "").replace("role: operator", "role: viewer"))
    done = admin("config", "apply", "-f", str(path))
    assert done.code == 0 and "✓ +0 ~3 -0" in done.err
    assert f"~ keys.bot-{mark}  rpm: 60 -> 7" in done.err
    limits = read(admin("quotas", "list", "--scope", f"team:nlp-{mark}", "--json"))["items"]
    assert sorted((one["unit"], one["period"]) for one in limits) == [("tokens", "month"), ("usd", "month")]
    assert read(admin("keys", "show", f"bot-{mark}", "--json"))["rpm"] == 7
    assert admin("config", "diff", str(path)).code == 0


def test_what_is_exported_is_what_there_is(admin, wanted, tmp_path):
    path, mark = wanted
    admin("config", "apply", "-f", str(path))
    exported = admin("config", "export")
    assert exported.code == 0 and f"bot-{mark}" in exported.out and "mgw_" not in exported.out
    (tmp_path / "all.yaml").write_text(exported.out)
    assert admin("config", "diff", str(tmp_path / "all.yaml")).code == 0, "an export differs from what it was made of"
    assert "keys:" not in admin("config", "export", "--only", "quotas").out
    for _ in range(2):
        admin("keys", "create", f"twin-{mark}")
    without = admin("config", "export")
    assert f"twin-{mark}" not in without.out and f"left out: keys.twin-{mark}: " in without.err
    (tmp_path / "all.yaml").write_text(without.out)
    assert admin("config", "diff", str(tmp_path / "all.yaml")).code == 0
    assert admin("config", "export", "--only", "planets").code == 2
    assert read(admin("config", "export", "--json"))["keys"][f"bot-{mark}"]["rpm"] == 60


def test_things_are_removed_when_that_is_asked_for_and_confirmed(admin, wanted, gateway, tmp_path):
    path, mark = wanted
    rest = tmp_path / "rest.yaml"
    rest.write_text("mindgw: v1\nquotas:\n")
    admin("config", "apply", "-f", str(rest), "--prune", "--yes")  # what others left would hide it in the question
    admin("config", "apply", "-f", str(path))
    assert read(admin("config", "apply", "-f", str(rest), "--json"))["remove"] == 0
    refused = admin("config", "apply", "-f", str(rest), "--prune")
    assert (refused.code, "--yes required" in refused.err) == (2, True)
    terminal = Terminal("config", "apply", "-f", str(rest), "--prune")
    assert f"quotas.team:nlp-{mark}" in terminal.hear("to do it:")
    terminal.type("yes\n")
    assert terminal.end().code == 2
    assert admin("quotas", "show", f"team:nlp-{mark}").code == 0
    assert admin("config", "apply", "-f", str(rest), "--prune", "--yes").code == 0
    assert admin("quotas", "show", f"team:nlp-{mark}").code == 6


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("keys: {a-MARK: {rpm: many}, b-MARK: {}}", "keys.a-MARK.rpm"),
        ("keys: {b-MARK: {}}\nplanets: {}", "planets: there is no such section"),
        ("keys: {b-MARK: {}, c-MARK: {team: '${NOPE}'}}", "the environment has no NOPE"),
    ],
)
def test_a_file_with_something_wrong_in_it_changes_nothing(admin, wanted, tmp_path, text, part):
    _, mark = wanted
    path = tmp_path / "bad.yaml"
    path.write_text(f"mindgw: v1\n{text}\n".replace("MARK", mark))
    refused = admin("config", "apply", "-f", str(path))
    assert (refused.code, part.replace("MARK", mark) in refused.err, f"{path}:" in refused.err) == (1, True, True)
    assert admin("keys", "show", f"b-{mark}").code == 6


def test_what_the_server_refuses_is_told_with_its_place_and_what_was_made_is_shown(admin, wanted, tmp_path):
    _, mark = wanted
    path = tmp_path / "refused.yaml"
    path.write_text(f"mindgw: v1\nkeys:\n  good-{mark}: {{}}\n  bad-{mark}: {{role: none-such}}\n")
    refused = admin("config", "apply", "-f", str(path))
    assert refused.code != 0
    assert f"{path}:4: keys.bad-{mark}: " in refused.err and "1 of 2 changes are done" in refused.err
    assert refused.out.startswith(f"keys.good-{mark} mgw_")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("end", [KeyboardInterrupt, ClientError("gone")])
def test_no_secret_is_lost_whatever_ends_it(admin, wanted, tmp_path, monkeypatch, end, as_json):
    _, mark = wanted
    path = tmp_path / "many.yaml"
    path.write_text("mindgw: v1\nkeys:\n" + "".join(f"  k{number}-{mark}: {{}}\n" for number in range(5)))
    made, call = [], Server.call

    def until_the_third(self, request):
        if request.method == "POST" and len(made) == 3:
            raise end
        answer = call(self, request)
        if request.method == "POST":
            made.append(answer["key"])
        return answer

    monkeypatch.setattr(Server, "call", until_the_third)
    ended = admin("config", "apply", "-f", str(path), *(["--json"] if as_json else []))
    assert (ended.code != 0, len(made)) == (True, 3)
    shown = (
        [secret["secret"] for secret in json.loads(ended.out)["secrets"]]
        if as_json
        else [line.split()[1] for line in ended.out.splitlines()]
    )
    assert shown == made


def test_values_of_the_server_are_never_expanded(admin, wanted, tmp_path, monkeypatch):
    """Threat 30: what came in over the API comes back literally, and an export of it is taken literally."""
    _, mark = wanted
    monkeypatch.setenv("SECRET", "leaked")
    name = f"n-{mark} ${{SECRET}} {{{{7*7}}}}"
    made = read(admin("keys", "create", name, "--team", f"t-{mark} ${{SECRET}}", "--json"))
    assert (made["name"], made["team"]) == (name, f"t-{mark} ${{SECRET}}")
    exported = admin("config", "export", "--only", "keys")
    assert "leaked" not in exported.out
    path = tmp_path / "all.yaml"
    path.write_text(exported.out)
    assert admin("config", "diff", str(path)).code == 0
