"""`mindgw orgs` and `mindgw teams`, against the real server."""

import json
import os

import pytest


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def name():
    return f"acme-{os.urandom(4).hex()}"


def test_an_organisation_is_made_changed_and_shut_out(admin, name):
    made = admin("orgs", "create", name, "--admin", f"boss@{name}.example", "--label", "region=eu")
    assert made.code == 0 and made.out.startswith("mgwi_")
    head, *rows = admin("orgs", "list").out.splitlines()
    assert head.split() == ["NAME", "STATE", "LABELS", "CREATED", "ID"]
    assert [row.split()[:3] for row in rows if row.startswith(name)] == [[name, "active", "region=eu"]]
    bare = admin("orgs", "set", name, "--no-labels")
    assert bare.code == 0 and f"{name} has no labels" in bare.err
    other = admin("orgs", "set", name, "--admin", f"other@{name}.example")
    assert other.code == 0 and other.out.startswith("mgwi_")
    assert admin("orgs", "disable", name).code == 2
    assert admin("orgs", "disable", name, "--yes").code == 0
    found = next(one for one in read(admin("org", "ls", "--json"))["items"] if one["name"] == name)
    assert (found["state"], found["labels"]) == ("disabled", {})
    assert admin("orgs", "enable", name).code == 0
    assert admin("orgs", "create", name).code == 7
    assert admin("orgs", "disable", "default", "--yes").code == 7


def test_what_makes_no_sense_is_refused_before_anything_is_sent(admin, name):
    assert admin("orgs", "set", name).code == 2
    assert admin("orgs", "create", name, "--label", "eu").code == 2
    assert admin("orgs", "set", name, "--label", "a=b").code == 6


def test_who_has_one_organisation_never_sees_the_word(admin):
    assert "orgs" not in admin("--help").out


def test_a_team_is_made_once(admin, name):
    assert admin("teams", "create", name).code == 0
    assert name in admin("teams", "list", "-o", "name").out.split()
    assert admin("team", "create", name).code == 7


def test_both_can_be_declared(admin, name, tmp_path):
    path = tmp_path / "gw.yaml"
    path.write_text(f"mindgw: v1\norgs:\n  {name}: {{labels: {{region: eu}}, admin: boss@{name}.example}}\nteams:\n  t-{name}:\n")
    done = admin("config", "apply", "-f", str(path))
    assert done.code == 0 and done.out.startswith(f"orgs.{name} mgwi_") and "✓ +2 ~0 -0" in done.err
    assert admin("config", "diff", str(path)).code == 0
    assert read(admin("config", "apply", "-f", str(path), "--prune", "--json"))["remove"] == 0
    path.write_text(path.read_text().replace("region: eu", "region: us"))
    assert "~ orgs." in admin("config", "diff", str(path)).err
    assert admin("config", "apply", "-f", str(path)).code == 0
    exported = admin("config", "export", "--only", "orgs").out
    assert f"{name}: {{labels: {{region: us}}}}" in exported
