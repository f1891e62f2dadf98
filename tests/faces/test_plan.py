"""What a file declares against what a server has: what is to be done, in which order, and nothing when all is as it should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import declaration
from mindgw.client import kinds
from mindgw.client.kinds import KINDS, Asking
from mindgw.client.plan import Known, counted, plan
from mindgw.declaration import Declared, Item
from mindgw.errors import ConfigError
from mindgw.settings_file import Place

MINE = Asking("id-mine", lambda: {"id-bot": "bot"})


def declared(text):
    found = declaration.read(f"mindgw: v1\n{text}", {}, "gw.yaml")
    return Declared([kinds.normal(item) for item in found.items], found.sections, found.file)


def key(name, **fields):
    item = {"id": f"id-{name}", "name": name, "state": "active", "priority": "", "models": [], "version": 3, **fields}
    return KINDS["keys"].known([item], MINE)[0]


def user(email, **fields):
    return KINDS["users"].known([{"email": email, "role": "user", "name": "", "version": 2, **fields}], MINE)[0]


def quotas(*limits):
    items = [
        dict(zip(("scope", "name", "unit", "period", "limit", "on_exceed"), limit, strict=True)) for limit in limits
    ]  # fmt: skip
    return KINDS["quotas"].known(items, MINE)


def told(changes):
    return [(change.verb, change.path, dict(change.fields)) for change in changes]


def requests(changes):
    return [(r.method, r.path, r.json, r.if_match) for change in changes for r in KINDS[change.kind].requests(change)]


def test_what_is_missing_is_made_in_order():
    wanted = declared(
        "quotas: {'team:nlp': {tokens: 5M/month}}\nkeys: {bot: {team: nlp, rpm: 60}}\nusers: {ana@x.org: {role: operator}, ci: {}}"
    )
    changes = plan(wanted, [])
    assert [change.path for change in changes] == ["users.ana@x.org", "users.ci", "keys.bot", "quotas.team:nlp"]
    assert counted(changes) == {"create": 4, "update": 0, "remove": 0}
    assert requests(changes) == [
        ("POST", "/api/v1/users", {"email": "ana@x.org", "role": "operator"}, None),
        ("POST", "/api/v1/service-accounts", {"name": "ci"}, None),
        ("POST", "/api/v1/keys", {"name": "bot", "team": "nlp", "rpm": 60}, None),
        ("PUT", "/api/v1/quotas", {"scope": "team:nlp", "tokens": ["5000000/month"], "usd": [], "on_exceed": ""}, None),
    ]


def test_what_is_as_declared_is_left_alone():
    wanted = declared(
        "keys: {bot: {models: [b, a], priority: normal, addresses: 10.0.0.1, expires_at: '2027-01-01T02:00:00+02:00', rpm: null}}\n"
        "quotas: {'team:nlp': {tokens: [0.5k/day, 5M/month], usd: 12.50/month}}\nusers: {ana@x.org: {}}"
    )
    there = [
        key("bot", models=["a", "b"], addresses=["10.0.0.1/32"], expires_at="2027-01-01T00:00:00Z"),
        user("ana@x.org", role="admin"),
        *quotas(
            ("team:nlp", "nlp", "tokens", "month", 5_000_000, "soft"),
            ("team:nlp", "nlp", "tokens", "day", 500, "soft"),
            ("team:nlp", "nlp", "usd", "month", "12.50", "soft"),
        ),
    ]
    assert plan(wanted, there) == []


def test_only_what_differs_is_changed_at_the_version_that_was_read():
    wanted = declared("keys: {bot: {rpm: 5, models: [a]}}\nusers: {ana@x.org: {role: viewer}, ci: {name: Builds}}")
    there = [key("bot", rpm=9, models=["a"]), user("ana@x.org"), user("ci@service")]
    assert requests(plan(wanted, there)) == [
        ("PATCH", "/api/v1/users/ana%40x.org", {"role": "viewer"}, 2),
        ("PATCH", "/api/v1/users/ci%40service", {"name": "Builds"}, 2),
        ("PATCH", "/api/v1/keys/id-bot", {"rpm": 5}, 3),
    ]


def test_limits_that_are_not_named_any_more_are_taken_away():
    wanted = declared("quotas: {'team:nlp': {tokens: [7/day]}}")
    there = quotas(
        ("team:nlp", "nlp", "tokens", "month", 5, "soft"),
        ("team:nlp", "nlp", "tokens", "day", 5, "soft"),
        ("team:nlp", "nlp", "usd", "day", "1.00", "soft"),
    )
    assert requests(plan(wanted, there)) == [
        ("DELETE", "/api/v1/quotas?scope=team%3Anlp&unit=tokens&period=month", None, None),
        ("PUT", "/api/v1/quotas", {"scope": "team:nlp", "tokens": ["7/day"], "usd": ["1/day"], "on_exceed": "soft"}, None),
    ]


def test_what_a_section_does_not_name_is_removed_when_asked_and_no_other():
    wanted = declared("keys: {bot: {}}\nquotas:\n")
    there = [
        key("bot"), key("old"), key("mine"), key("boss", role="admin"), user("ana@x.org"),
        *quotas(("team:a", "a", "tokens", "day", 5, "block")),
    ]  # fmt: skip
    assert plan(wanted, there) == []
    changes = plan(wanted, there, prune=True)
    assert told(changes) == [("remove", "quotas.team:a", {}), ("remove", "keys.old", {})]
    assert requests(changes) == [
        ("DELETE", "/api/v1/quotas?scope=team%3Aa", None, None),
        ("DELETE", "/api/v1/keys/id-old", None, 3),
    ]


def test_the_first_administrator_is_never_removed():
    assert plan(declared("users:\n"), [user("admin@localhost"), user("ana@x.org")], prune=True)[0].name == "ana@x.org"


@pytest.mark.parametrize(
    ("there", "part"),
    [
        ([key("bot", team="vision")], "gw.yaml:2: keys.bot.team: is 'vision' and cannot become 'nlp'"),
        ([key("bot", team="nlp"), key("bot", team="nlp")], "several of this name"),
    ],
)
def test_what_cannot_be_changed_is_told_with_its_place(there, part):
    with pytest.raises(ConfigError) as refused:
        plan(declared("keys: {bot: {team: nlp}}"), there)
    assert part in str(refused.value)


def rule(id, subject, effect, pattern):
    return {"id": id, "subject": subject, "effect": effect, "pattern": pattern}


def test_rules_are_added_and_taken_away_one_by_one():
    items = [
        rule("r1", "role:user", "allow", "a*"),
        rule("r2", "role:user", "deny", "b"),
        rule("r3", "key:id-bot", "deny", "c"),
        rule("r4", "team:old", "deny", "d"),
    ]
    there = KINDS["access"].known(items, MINE)
    same = declared("access: {'role:user': {allow: a*, deny: [b]}, 'key:bot': {deny: c}, 'team:old': {}}")
    assert plan(same, there, prune=True) == []
    wanted = declared("access: {'role:user': {allow: [a*, z]}, 'key:bot': {deny: []}, 'team:nlp': {deny: [q]}}")
    assert requests(plan(wanted, there, prune=True)) == [
        ("POST", "/api/v1/access/rules", {"subject": "role:user", "effect": "allow", "pattern": "z"}, None),
        ("DELETE", "/api/v1/access/rules/r3", None, None),
        ("POST", "/api/v1/access/rules", {"subject": "team:nlp", "effect": "deny", "pattern": "q"}, None),
        ("DELETE", "/api/v1/access/rules/r4", None, None),
    ]


@pytest.mark.parametrize(
    ("said", "same"),
    [
        (["read:*"], True),
        (["read:keys", "read:audit"], True),
        (["read:keys"], False),
        (["*:keys"], False),
        (["read:*", "use:models"], False),
    ],
)
def test_a_role_is_what_its_patterns_come_to(said, same):
    items = [
        {"name": "auditor", "rank": 30, "permissions": ["read:keys", "read:audit"], "built_in": False, "version": 1},
        {"name": "admin", "rank": 100, "permissions": [], "built_in": True, "version": 0},
    ]
    (there,) = KINDS["roles"].known(items, MINE)
    wanted = declared(f"roles: {{auditor: {{rank: 30, permissions: {said}}}}}")
    if same:
        assert plan(wanted, [there]) == []
    else:
        with pytest.raises(ConfigError, match="cannot become"):
            plan(wanted, [there])


def test_a_role_is_made_first_and_removed_last():
    wanted = declared("users: {ana@x.org: {role: auditor}}\nroles: {auditor: {rank: 30, permissions: ['read:*']}}")
    assert requests(plan(wanted, []))[0] == (
        "POST", "/api/v1/roles", {"name": "auditor", "permissions": ["read:*"], "rank": 30}, None,
    )  # fmt: skip
    old = Known("roles", "old", "old", {}, 4)
    changes = plan(declared("users:\nroles:\n"), [old, user("ana@x.org")], prune=True)
    assert [change.path for change in changes] == ["users.ana@x.org", "roles.old"]
    assert requests(changes)[1] == ("DELETE", "/api/v1/roles/old", None, 4)


def test_a_rate_is_set_whole():
    there = KINDS["rates"].known([{"scope": "team:nlp", "rpm": 5, "tpm": None, "concurrency": 2, "version": 3}], MINE)
    wanted = declared("rates: {'team:nlp': {rpm: 9, concurrency: null}, 'team:x': {rpm: 1}}")
    assert requests(plan(wanted, there)) == [
        ("PUT", "/api/v1/rates", {"scope": "team:nlp", "rpm": 9, "tpm": None, "concurrency": None}, 3),
        ("PUT", "/api/v1/rates", {"scope": "team:x", "rpm": 1}, None),
    ]
    assert requests(plan(declared("rates:\n"), there, prune=True)) == [("DELETE", "/api/v1/rates?scope=team%3Anlp", None, 3)]


def test_revoked_keys_do_not_count():
    item = {"id": "i", "name": "bot", "state": "revoked"}
    assert KINDS["keys"].known([item], MINE) == []


@pytest.mark.parametrize(
    ("text", "form"),
    [("5M/month", "5000000/month"), ("2.5k/day", "2500/day"), ("12.50/total", "12.5/total"), ("0/day", "0/day"), ("x", "x")],
)
def test_a_limit_has_one_form(text, form):
    assert kinds.limit(text) == form


FIELDS = st.fixed_dictionaries({}, optional={"rpm": st.none() | st.integers(1, 3), "models": st.lists(st.sampled_from("abc"), unique=True)})


@given(st.dictionaries(st.sampled_from("abc"), FIELDS), st.dictionaries(st.sampled_from("abc"), FIELDS), st.booleans())
def test_once_it_is_done_there_is_nothing_left_to_do(wanted, there, prune):
    file = Declared([kinds.normal(Item("keys", name, said, Place("f"))) for name, said in wanted.items()], frozenset({"keys"}), "f")
    known = {name: key(name, **{"rpm": None, **said}) for name, said in there.items()}
    for change in plan(file, known.values(), prune=prune):
        if change.verb == "remove":
            del known[change.name]
        else:
            before = known.get(change.name, key(change.name, rpm=None))
            known[change.name] = Known("keys", change.name, before.reference, {**before.fields, **change.fields})
    assert plan(file, known.values(), prune=prune) == []
    assert set(known) == (set(wanted) if prune else set(wanted) | set(there))
    exported = Declared(kinds.declared(known.values(), Place("f")), frozenset({"keys"}), "f")
    assert plan(exported, known.values(), prune=True) == []
