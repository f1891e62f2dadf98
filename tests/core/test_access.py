import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import access
from mindgw.core.access import BITS, BUILT_IN, EVERYTHING, NOTHING, Allow, Deny, Role, Rule, combine, compile_models, glob, mask, names

PAIRS = sorted(BITS)
MASKS = st.integers(0, EVERYTHING)


def held(*roles, team=None):
    return combine((role, team) for role in roles)


def rule(effect, pattern, subject="user:u"):
    return Rule(f"{effect} {pattern}", subject, effect == "allow", pattern)


# -- permissions -------------------------------------------------------------------------------------------------------


def test_each_pair_has_a_bit_of_its_own():
    assert len(set(BITS.values())) == len(BITS)
    assert all(bit.bit_count() == 1 for bit in BITS.values())
    assert sum(BITS.values()) == EVERYTHING
    assert {verb for verb, _ in BITS} == {"read", "create", "update", "delete", "use"}


@given(MASKS)
def test_a_mask_and_its_words_say_the_same(bits):
    assert mask(names(bits)) == bits


def test_a_star_stands_for_all_there_is():
    assert mask(["*:*"]) == EVERYTHING
    assert set(names(mask(["*:keys"]))) == {"read:keys", "create:keys", "update:keys", "delete:keys"}
    assert set(names(mask(["read:*"]))) == {f"read:{what}" for verb, what in BITS if verb == "read"}


@pytest.mark.parametrize(
    "text", ["", "read", "read:", ":keys", "read:nothing", "fly:keys", "use:keys", "READ:keys", "read:keys ", "r*:keys"]
)
def test_what_names_no_permission_is_no_permission(text):
    with pytest.raises(ValueError, match="is no permission"):
        mask(["read:keys", text])


def test_what_another_release_permits_is_left_out():
    assert access.known(["read:keys", "fly:keys", "read:nothing", "*:queue"]) == mask(["read:keys", "*:queue"])


# -- roles -------------------------------------------------------------------------------------------------------------


def test_the_built_in_roles():
    ranks = {name: role.rank for name, role in BUILT_IN.items()}
    assert ranks == {"admin": 100, "operator": 75, "user": 50, "viewer": 25}
    assert all(role.built_in and role.name == name for name, role in BUILT_IN.items())
    assert BUILT_IN["admin"].mask == EVERYTHING
    assert "use:models" not in names(BUILT_IN["viewer"].mask)
    assert {word for word in names(BUILT_IN["viewer"].mask) if not word.startswith("read:")} == {"delete:me"}
    assert set(names(BUILT_IN["user"].mask)) == {"read:me", "create:me", "delete:me", "use:models"}


def test_an_operator_gives_nobody_rights():
    held = set(names(BUILT_IN["operator"].mask))
    changed = {"users", "teams", "orgs", "roles", "config"}
    assert not {f"{verb}:{what}" for verb in ("create", "update", "delete") for what in changed} & held
    assert {"read:users", "create:keys", "update:quotas", "delete:workers"} <= held


def test_nobody_has_no_rights():
    assert combine([]) == NOTHING
    assert not any(NOTHING.may(*pair) for pair in PAIRS)


@given(st.lists(st.tuples(st.sampled_from(sorted(BUILT_IN)), st.none() | st.sampled_from(["t1", "t2"]))))
def test_rights_are_those_of_all_roles_each_where_it_holds(given_roles):
    rights = combine((BUILT_IN[name], team) for name, team in given_roles)
    everywhere = [BUILT_IN[name] for name, team in given_roles if team is None]
    assert rights.rank == max((role.rank for role in everywhere), default=0)
    assert set(rights.roles) == {role.name for role in everywhere}
    for pair in PAIRS:
        assert rights.may(*pair) == any(role.mask & BITS[pair] for role in everywhere)
        wanted = {team for name, team in given_roles if team and BUILT_IN[name].mask & BITS[pair]}
        assert rights.teams_where(*pair) == (set() if rights.may(*pair) else wanted)


def test_rights_in_a_team_have_no_rank_and_hold_nowhere_else():
    rights = held(BUILT_IN["operator"], team="t")
    assert (rights.rank, rights.roles, rights.mask) == (0, (), 0)
    assert rights.teams_where("create", "keys") == {"t"}


def test_the_highest_role_comes_first():
    assert held(BUILT_IN["viewer"], Role("a", 75, 0), BUILT_IN["operator"]).roles == ("a", "operator", "viewer")


@pytest.mark.parametrize(("rank", "other", "so"), [(75, 50, True), (75, 75, False), (50, 75, False), (100, 100, True), (99, 99, False)])
def test_only_the_highest_may_act_among_equals(rank, other, so):
    assert access.outranks(rank, other) is so


@given(MASKS, MASKS)
def test_nobody_hands_on_what_they_do_not_have(mine, theirs):
    assert access.covers(access.Rights(mask=mine), Role("r", 1, theirs)) is (set(names(theirs)) <= set(names(mine)))


GIVEN = st.lists(
    st.tuples(st.builds(Role, st.sampled_from("abc"), st.integers(0, 100), MASKS), st.sampled_from([None, "t1", "t2"])), max_size=4
)


@given(GIVEN, st.integers(0, 100), MASKS)
def test_a_key_with_a_role_may_do_what_both_its_role_and_its_person_may(given_roles, rank, bits):
    person, role = combine(given_roles), Role("own", rank, bits)
    key = access.narrowed(person, role)
    assert (key.roles, key.behind, key.rank) == (("own",), person.roles, min(rank, person.rank))
    assert key.highest <= min(rank, person.highest)
    assert access.contains(person, key)
    for pair in PAIRS:
        permitted = bool(bits & BITS[pair])
        assert key.may(*pair) is (permitted and person.may(*pair))
        assert key.teams_where(*pair) == (person.teams_where(*pair) if permitted else set())


@given(GIVEN, GIVEN)
def test_rights_contain_others_when_they_hold_wherever_those_do(mine, theirs):
    ours, others = combine(mine), combine(theirs)

    def places(rights, pair):
        return {None, "t1", "t2"} if rights.may(*pair) else rights.teams_where(*pair)

    assert access.contains(ours, others) is all(places(others, pair) <= places(ours, pair) for pair in PAIRS)
    above = ours.rank > others.highest or ours.rank == 100
    covered = all(ours.may(*pair) for pair in PAIRS if places(others, pair))
    assert access.stands_above(ours, others) is (above and covered)


def test_the_highest_role_counts_wherever_it_holds():
    rights = combine([(BUILT_IN["user"], None), (BUILT_IN["admin"], "t")])
    assert (rights.rank, rights.highest) == (50, 100)
    assert rights.somewhere == EVERYTHING
    assert not access.stands_above(held(BUILT_IN["operator"]), rights)


# -- models ------------------------------------------------------------------------------------------------------------


def test_without_rules_every_model_is_for_everybody():
    assert compile_models([]) is None


@pytest.mark.parametrize(
    ("rules", "model", "wanted"),
    [
        ([rule("allow", "llama*")], "llama-8b", Allow(rule("allow", "llama*"))),
        ([rule("allow", "llama*")], "qwen", Deny()),
        ([rule("deny", "*-70b")], "llama-8b", Allow()),
        ([rule("deny", "*-70b")], "llama-70b", Deny(rule("deny", "*-70b"))),
        ([rule("allow", "*"), rule("deny", "*-70b")], "llama-70b", Deny(rule("deny", "*-70b"))),
        ([rule("deny", "*"), rule("allow", "llama-8b")], "llama-8b", Deny(rule("deny", "*"))),
        ([rule("allow", "LLAMA*")], "llama-8b", Deny()),
        ([rule("allow", "org/*")], "org/a/b", Allow(rule("allow", "org/*"))),
    ],
)
def test_deny_wins_and_whoever_is_allowed_some_is_allowed_no_others(rules, model, wanted):
    models = compile_models(rules)
    assert models.decide([model]) == wanted
    assert models.permits([model]) is isinstance(wanted, Allow)


def test_a_model_is_one_thing_by_whatever_name_it_is_asked_for():
    big = ["llama-70b", "gpt-4"]
    assert not compile_models([rule("deny", "gpt-4")]).permits(big)
    assert not compile_models([rule("deny", "llama-70b")]).permits(big)
    assert compile_models([rule("allow", "gpt-*")]).permits(big)


RULES = st.lists(st.builds(rule, st.sampled_from(["allow", "deny"]), st.text("ab*?", max_size=5)), max_size=5)


@given(RULES, st.lists(st.text("ab", max_size=6), min_size=1, max_size=3))
def test_both_ways_to_ask_agree(rules, model):
    models = compile_models(rules)
    if models is None:
        return
    assert models.permits(model) is isinstance(models.decide(model), Allow)


@given(st.text("ab*?.[\n", max_size=8), st.text("ab.[\n", max_size=10))
def test_a_glob_matches_what_a_glob_matches(pattern, name):
    known = fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
    assert (glob([pattern]).match(name) is not None) is known


def test_no_glob_takes_its_time():
    assert glob(["*a" * 40 + "b"]).match("a" * 5000) is None
    assert glob(["*a?" * 40 + "*b"]).match("a" * 5000) is None
