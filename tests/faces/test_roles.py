"""`mindgw roles` and `mindgw models access`, in front of the real server."""

import itertools
import json

import pytest

NUMBERS = itertools.count()


def read(result):
    assert result.code in {0, 3}, result.err
    return json.loads(result.out)


@pytest.fixture
def ada(admin):
    """Somebody who was invited; each test has its own."""
    email = f"ada{next(NUMBERS)}@example.org"
    assert admin("users", "invite", email, "-q").code == 0
    return email


@pytest.fixture
def auditor(admin):
    name = f"auditor-{next(NUMBERS)}"
    assert admin("roles", "create", name, "--allow", "read:*", "--rank", "30").code == 0
    return name


@pytest.mark.parametrize("words", ["roles list", "role list", "roles ls"])
def test_the_list_begins_with_the_highest(admin, words):
    head, first, *_ = admin(*words.split()).out.splitlines()
    assert head.split()[:2] == ["NAME", "RANK"]
    assert first.split()[:2] == ["admin", "100"]
    assert {"admin", "operator", "user", "viewer"} <= set(admin(*words.split(), "-q").out.split())
    assert read(admin(*words.split(), "--json"))["items"][0]["built_in"] is True


def test_a_role_is_shown_with_who_has_it(admin, ada, auditor):
    assert admin("roles", "bind", auditor, ada).code == 0
    shown = admin("roles", "show", auditor)
    assert "keys read" in shown.out
    assert ada in shown.out
    assert "everywhere" in shown.out
    assert [one["user"] for one in read(admin("roles", "show", auditor, "--json"))["bindings"]] == [ada]
    assert admin("roles", "show", auditor, "-q").out.split() == [auditor]


def test_a_role_is_given_and_taken_with_the_way_back(admin, ada):
    bound = admin("roles", "bind", "operator", ada, "--team", "default")
    assert f"mindgw roles unbind operator {ada} --team default" in bound.err
    refused = admin("roles", "unbind", "operator", ada, "--team", "default")
    assert refused.code == 2  # nobody can be asked
    assert admin("roles", "unbind", "operator", ada, "--team", "default", "--yes").code == 0
    assert admin("roles", "unbind", "operator", ada, "--team", "default", "--yes").code == 6


def test_what_somebody_may_do_is_answered_with_a_word_and_a_code(admin, ada):
    no = admin("roles", "can", ada, "create", "keys")
    assert (no.code, no.out.strip()) == (3, "no")
    admin("roles", "bind", "operator", ada, "--team", "default")
    in_a_team = admin("roles", "can", ada, "create", "keys")
    assert (in_a_team.code, "default" in in_a_team.err) == (3, True)
    admin("roles", "bind", "operator", ada)
    said = read(admin("roles", "can", ada, "create", "keys", "--json"))
    assert said["roles"] == ["operator"]
    # an invited person may do nothing before they have come in
    assert said["allowed"] is False


def test_who_is_there_may_what_their_role_says(admin):
    yes = admin("roles", "can", "admin@localhost", "delete", "workers")
    assert (yes.code, yes.out.strip(), "as admin" in yes.err) == (0, "yes", True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("roles", "can", "admin@localhost", "fly", "keys"), 2),
        (("roles", "can", "admin@localhost", "read:keys", "x"), 2),
        (("roles", "can", "nobody@x.org", "read", "keys"), 6),
        (("roles", "show", "nothing"), 6),
        (("roles", "create", "Loud", "--allow", "read:keys", "--rank", "5"), 2),
        (("roles", "create", "odd", "--allow", "fly:keys", "--rank", "5"), 2),
        (("roles", "create", "high", "--allow", "read:keys", "--rank", "100"), 2),
        (("roles", "create", "admin", "--allow", "read:keys", "--rank", "5"), 7),
        (("roles", "remove", "viewer", "--yes"), 7),
        (("models", "access", "allow", "nobody", "x"), 2),
        (("models", "access", "deny", "team:none-such", "x"), 6),
        (("models", "access", "remove", "none-such", "--yes"), 6),
    ],
)
def test_mistakes_have_their_codes(admin, words, code):
    refused = admin(*words)
    assert refused.code == code, refused.err
    assert refused.out == ""


def test_a_role_that_nobody_has_may_go(admin, ada, auditor):
    admin("roles", "bind", auditor, ada)
    assert admin("roles", "remove", auditor, "--yes").code == 7
    admin("roles", "unbind", auditor, ada, "-y")
    assert admin("roles", "rm", auditor, "--yes").code == 0
    assert auditor not in admin("roles", "list", "-q").out.split()


def test_models_are_allowed_and_denied_with_the_way_back(admin, ada):
    made = admin("models", "access", "allow", f"user:{ada}", "llama-*", "--json")
    rule = read(made)
    assert (rule["subject"], rule["effect"], rule["pattern"]) == (f"user:{ada}", "allow", "llama-*")
    head, row = admin("models", "access", "list", "--for", f"user:{ada}").out.splitlines()
    assert head.split()[0] == "ID"
    assert "llama-*" in row
    no = admin("models", "access", "can", ada, "qwen")
    assert (no.code, no.out.strip()) == (3, "no")
    yes = admin("models", "access", "can", ada, "llama-8b")
    assert (yes.code, rule["id"] in yes.err) == (0, True)
    denied = admin("models", "access", "deny", f"user:{ada}", "*-70b")
    assert "mindgw models access remove" in denied.err
    assert admin("models", "access", "can", ada, "llama-70b").code == 3
    ids = admin("models", "access", "list", "--for", f"user:{ada}", "-q").out.split()
    assert admin("models", "access", "remove", *ids, "--yes").code == 0
    assert admin("models", "access", "can", ada, "qwen").code == 0


def test_a_whole_key_in_a_rule_stands_for_its_id(admin):
    key = read(admin("keys", "create", "bound", "--json"))
    made = read(admin("models", "access", "deny", f"key:{key['key']}", "x", "--json"))
    assert made["subject"] == f"key:{key['id']}"
    admin("models", "access", "remove", made["id"], "--yes")


def test_whoever_may_not_is_told_what_it_takes(cli, admin, monkeypatch):
    key = read(admin("keys", "create", "plain", "--json"))["key"]
    monkeypatch.setenv("MINDGW_TOKEN", key)
    refused = cli("roles", "list")
    assert refused.code == 5
    assert "read:roles" in refused.err
