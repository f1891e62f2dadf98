"""What an operator's file declares is read with its places; what is wrong in it is named."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindgw import declaration
from mindgw.declaration import Item
from mindgw.errors import ConfigError
from mindgw.settings_file import Place


def read(text, environ=None):
    return declaration.read(text, environ or {}, "gw.yaml")


def fields(text, environ=None):
    return {item.path: item.fields for item in read(f"mindgw: v1\n{text}", environ).items}


def refusal(text, environ=None):
    with pytest.raises(ConfigError) as refused:
        read(text, environ)
    return str(refused.value)


def test_a_file_says_what_there_is_to_be():
    found = read(
        """\
mindgw: v1
roles:
  auditor: {rank: 30, permissions: ["read:*"]}
users:
  ana@example.org: {role: operator, name: Ana}
  ci:
keys:
  ci-bot:
    team: nlp
    models: llama*            # one is a list of one
    addresses: [10.0.0.0/8, 192.0.2.7]
    rpm: 60
    tpm: null
    trusted_proxy: true
    expires_at: 2027-01-31
quotas:
  team:nlp: {tokens: [5M/month, 500k/day], usd: 50/month, on_exceed: soft}
rates: {"team:nlp": {rpm: 600}}
access:
  role:viewer: {deny: ["*-72b"]}
"""
    )
    assert {item.path: item.fields for item in found.items} == {
        "roles.auditor": {"rank": 30, "permissions": ["read:*"]},
        "users.ana@example.org": {"role": "operator", "name": "Ana"},
        "users.ci": {},
        "keys.ci-bot": {
            "team": "nlp", "models": ["llama*"], "addresses": ["10.0.0.0/8", "192.0.2.7"], "rpm": 60, "tpm": None,
            "trusted_proxy": True, "expires_at": "2027-01-31T00:00:00Z",
        },
        "quotas.team:nlp": {"tokens": ["5M/month", "500k/day"], "usd": ["50/month"], "on_exceed": "soft"},
        "rates.team:nlp": {"rpm": 600},
        "access.role:viewer": {"deny": ["*-72b"]},
    }  # fmt: skip
    assert found.sections == {"roles", "users", "keys", "quotas", "rates", "access"}
    assert [item.place.line for item in found.items] == [3, 5, 6, 8, 17, 18, 20]


def test_values_come_from_the_environment_and_names_never_do():
    environ = {"RPM": "7", "MODELS": "a*", "EVIL": "1, tpm: 9"}
    assert fields("keys:\n  ${RPM}: {rpm: '${RPM}', models: ['${MODELS}', '${NONE:-b}']}", environ) == {
        "keys.${RPM}": {"rpm": 7, "models": ["a*", "b"]}
    }
    assert fields("keys:\n  k: {team: '$${RPM}{{7*7}}'}", environ) == {"keys.k": {"team": "${RPM}{{7*7}}"}}
    assert "keys.k.rpm" in refusal("mindgw: v1\nkeys: {k: {rpm: '${EVIL}'}}", environ)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["gw.yaml:1", "must begin with `mindgw: v1`"]),
        ("- a", ["gw.yaml:1", "must begin with"]),
        ("keys: {}", ["gw.yaml:1", "mindgw", "must be v1"]),
        ("mindgw: v2", ["gw.yaml:1", "mindgw", "must be v1"]),
        ("mindgw: v1\nusers: {}\nusres: {}", ["gw.yaml:3", "usres", "no such section", "users"]),
        ("mindgw: v1\nkeys: 3", ["gw.yaml:2", "keys", "lines of"]),
        ("mindgw: v1\nkeys:\n  a: {}\n  a: {}", ["gw.yaml:4", "keys.a", "twice"]),
        ("mindgw: v1\nkeys:\n  ? [x]\n  : {}", ["gw.yaml:3", "must be a name"]),
        ("mindgw: v1\nkeys:\n  a:\n    rpm: 1\n    rmp: 2", ["gw.yaml:5", "keys.a.rmp", "no such field", "rpm"]),
        ("mindgw: v1\nkeys:\n  a:\n    rpm: many", ["gw.yaml:4", "keys.a.rpm", "'many'"]),
        ("mindgw: v1\nkeys: {a: {rpm: 0}}", ["keys.a.rpm", "'0'"]),
        ("mindgw: v1\nkeys: {a: {rpm: 1.5}}", ["keys.a.rpm", "'1.5'"]),
        ("mindgw: v1\nkeys: {a: {trusted_proxy: perhaps}}", ["keys.a.trusted_proxy", "'perhaps'"]),
        ("mindgw: v1\nkeys: {a: {priority: urgent}}", ["keys.a.priority", "'urgent'"]),
        ("mindgw: v1\nkeys: {a: {addresses: [10.0.0.0/40]}}", ["keys.a.addresses", "10.0.0.0/40"]),
        ("mindgw: v1\nkeys: {a: {addresses: [10.0.0.5/8]}}", ["keys.a.addresses", "10.0.0.5/8", ":2"]),
        (f"mindgw: v1\nkeys: {{a: {{addresses: [{', '.join(['10.0.0.1'] * 150)}]}}}}", ["keys.a.addresses", "at most 100", ":2"]),
        ("mindgw: v1\nkeys: {a: {expires_at: '0001-01-01T00:00:00+23:59'}}", ["keys.a.expires_at", "UTC", ":2"]),
        ("mindgw: v1\nkeys: {a: {expires_at: '9999-12-31T23:59:59-23:59'}}", ["keys.a.expires_at", "UTC", ":2"]),
        ("mindgw: v1\nkeys: {a: {expires_at: tomorrow}}", ["keys.a.expires_at", "'tomorrow'"]),
        ("mindgw: v1\nkeys: {a: {expires_at: '2027-01-01T00:00:00'}}", ["keys.a.expires_at", "zone"]),
        ("mindgw: v1\nkeys: {a: {admin: true}}", ["keys.a.admin", "no such field"]),
        ("mindgw: v1\nkeys: {a: {models: {b: c}}}", ["keys.a.models"]),
        ("mindgw: v1\nkeys: {a: {labels: {region: [eu]}}}", ["keys.a.labels"]),
        ("mindgw: v1\nroles: {x: {rank: 3}}", ["roles.x.permissions", "is missing"]),
        ("mindgw: v1\nroles: {x: {rank: 100, permissions: []}}", ["roles.x.rank", "'100'"]),
        ("mindgw: v1\nroles: {x: {rank: 3, permissions: [everything]}}", ["roles.x.permissions", "everything"]),
        ("mindgw: v1\nroles: {X: {}}", ["roles.X", "lower-case"]),
        ("mindgw: v1\nusers: {'a b@c': {}}", ["users.a b@c", "an address"]),
        ("mindgw: v1\nquotas: {'everybody': {}}", ["quotas.everybody", "team:NAME"]),
        ("mindgw: v1\nquotas:\n  'team:a': {tokens: 5M}", ["gw.yaml:3", "quotas.team:a.tokens", "5M"]),
        ("mindgw: v1\nquotas: {'team:a': {on_exceed: explode}}", ["on_exceed", "'explode'"]),
        ("mindgw: v1\nkeys: {a: {rpm: '${NOPE}'}}", ["gw.yaml:2", "keys.a.rpm", "NOPE"]),
        ("mindgw: v1\nkeys: {a: *x}", ["gw.yaml:2", "not YAML"]),
        ("mindgw: v1\na: 'open", ["not YAML"]),
        ("[" * 20_000, ["gw.yaml", "too deeply"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, parts):
    message = refusal(text)
    assert [part for part in parts if part not in message] == []


def test_a_thousand_aliases_of_a_thousand_things_are_refused():
    levels = "\n".join(f"    l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9))
    text = f"mindgw: v1\nkeys:\n  a:\n    labels:\n      l0: &l0 [x]\n{levels.replace('    l', '      l')}\n"
    assert "more than 100,000 things" in refusal(text)


def test_a_settings_file_is_told_from_a_declaration():
    assert declaration.is_one("mindgw: v1\n", "f")
    assert declaration.is_one("users: {}\n", "f")
    assert not declaration.is_one("listen: 127.0.0.1:1\nquotas: {output: 3}\nkeys: {max_age: 3d}\n", "f")
    assert not declaration.is_one("", "f")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
GLOBS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=10), max_size=3)


@given(st.dictionaries(NAMES, st.fixed_dictionaries({}, optional={
    "models": GLOBS, "rpm": st.none() | st.integers(1, 2**31 - 1), "trusted_proxy": st.booleans(), "team": NAMES,
    "labels": st.dictionaries(NAMES, NAMES, max_size=2),
}), max_size=4))  # fmt: skip
@example({"yes": {}, "null": {}, "1": {"team": "true"}, "${HOME}": {"team": "${HOME}", "models": ["*", "$${x}", "~", ": -"]}})
def test_what_is_written_is_read_back(keys):
    items = [Item("keys", name, said, Place("f")) for name, said in keys.items()]
    assert fields(declaration.write(items).removeprefix("mindgw: v1\n")) == {item.path: item.fields for item in items}


@given(st.text() | st.text(st.sampled_from("mindgw: v1\nkeysurolqta-{}[]&*!|>'\"%#,?~0.$/=\t\r\x00é"), max_size=80))
@example("mindgw: v1\nkeys: {a: {labels: !!python/object/apply:os.system [exit]}}")
@example("\ufeff")
def test_any_text_declares_something_or_is_refused(text):
    for given_text in (text, f"mindgw: v1\n{text}"):
        try:
            read(given_text)
        except ConfigError as refused:
            assert "gw.yaml" in str(refused)  # noqa: PT017 - either way is good
