"""Roles, who has them, and rules for models, on both databases."""

import pytest

from mindgw.core import access as kernel
from mindgw.core.access import BUILT_IN, combine
from mindgw.errors import Conflict, NotFound
from mindgw.store import access, keys, people
from mindgw.store.tables import AccessRule, Role, User

PEPPER = b"p" * 32


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


@pytest.fixture
async def org(session):
    return (await people.get_or_create_org(session)).id


@pytest.fixture
async def ada(session, org):
    return await people.get_or_create_user(session, org, "ada@example.org")


async def make_role(session, org, name="little", permissions=("read:keys",), rank=10):
    return await access.create(session, Role(org_id=org, name=name, permissions=list(permissions), rank=rank))


async def rule(session, org, subject, effect, pattern):
    return await access.add_rule(session, AccessRule(org_id=org, subject=subject, effect=effect, pattern=pattern))


async def holder(session, org, **facts):
    row, _ = await keys.create(session, keys.NewKey(name="k", org_id=org, **facts), PEPPER)
    return await keys.holder(session, row.id)


async def test_a_key_has_what_its_role_says_or_its_person_or_a_users(session, org, ada):
    assert (await holder(session, org)).rights == combine([(BUILT_IN["user"], None)])
    assert (await holder(session, org, role="viewer")).rights == combine([(BUILT_IN["viewer"], None)])
    await access.bind(session, ada.id, "operator", None)
    assert (await holder(session, org, user_id=ada.id)).rights.roles == ("operator", "user")
    rights = (await holder(session, org, user_id=ada.id, role="viewer")).rights
    assert (rights.roles, rights.behind) == (("viewer",), ("operator", "user"))
    assert rights.mask == BUILT_IN["viewer"].mask & (BUILT_IN["operator"].mask | BUILT_IN["user"].mask)


async def test_a_role_of_ones_own_is_what_its_row_says(session, org, ada):
    await make_role(session, org, permissions=["read:keys", "of:tomorrow"])
    await access.bind(session, ada.id, "little", None)
    rights = await access.rights(session, org, ada)
    assert rights.may("read", "keys")
    assert rights.roles == ("user", "little")


async def test_a_role_that_is_gone_permits_nothing(session, org):
    assert (await holder(session, org, role="vanished")).rights.mask == 0


async def test_roles_of_another_organisation_are_not_there(session, org, ada):
    other = (await people.get_or_create_org(session, "other")).id
    await make_role(session, other, permissions=["*:*"], rank=99)
    assert (await access.rights(session, org, None, "little")).mask == 0
    assert (await access.rights(session, org, ada, "little")).mask == 0
    with pytest.raises(NotFound):
        await access.role(session, org, "little")
    assert [row.name for row in await access.custom(session, org)] == []
    await make_role(session, org)  # of the same name


@pytest.mark.parametrize("name", ["little", "admin"])
async def test_there_is_one_role_of_a_name(session, org, name):
    await make_role(session, org)
    with pytest.raises(Conflict):
        await make_role(session, org, name)


async def test_a_role_is_bound_once_in_each_place(session, org, ada):
    team = await people.get_or_create_team(session, org, "red")
    assert [await access.bind(session, ada.id, "viewer", place) for place in (None, None, team.id, team.id)] == [True, False, True, False]
    rights = await access.rights(session, org, ada)
    assert rights.roles == ("user", "viewer")
    assert await access.unbind(session, ada.id, "viewer", None) is True
    assert await access.unbind(session, ada.id, "viewer", None) is False
    assert [row.team_id for row in await access.bindings(session, [ada.id])] == [team.id]
    assert (await access.rights(session, org, ada)).teams_where("read", "queue") == {team.id}


async def test_who_uses_a_role_is_found(session, org, ada):
    await make_role(session, org)
    assert not await access.in_use(session, org, "little")
    await access.bind(session, ada.id, "little", None)
    assert await access.in_use(session, org, "little")
    await access.unbind(session, ada.id, "little", None)
    made = await rule(session, org, "role:little", "deny", "*")
    assert await access.in_use(session, org, "little")
    await access.drop_rule(session, org, made.id)
    held = await holder(session, org, role="little")
    assert await access.in_use(session, org, "little")
    await session.delete(held.key)
    (await session.get(User, ada.id)).role = "little"
    await session.flush()
    assert await access.in_use(session, org, "little")


async def test_the_rules_of_all_that_a_key_is_are_one(session, org, ada):
    team = await people.get_or_create_team(session, org, "red")
    facts = {"user_id": ada.id, "team_id": team.id}
    assert (await holder(session, org, **facts)).models is None
    for subject, effect, pattern in ((f"team:{team.id}", "allow", "a*"), (f"user:{ada.id}", "allow", "b*"), ("role:user", "deny", "*9")):
        await rule(session, org, subject, effect, pattern)
    await rule(session, org, "user:somebody-else", "deny", "*")
    models = (await holder(session, org, **facts)).models
    assert [models.permits([name]) for name in ("a1", "b1", "c1", "a9")] == [True, True, False, False]
    assert (await holder(session, org, role="viewer")).models is None
    small = (await holder(session, org, user_id=ada.id, role="viewer")).models
    assert small.denied.match("a9"), "a role of its own leads past no rule about its person's"


async def test_a_rule_is_there_once_however_often_it_is_made(session, org):
    first, second = [await rule(session, org, "role:user", "deny", "x") for _ in range(2)]
    assert first.id == second.id
    assert len(await access.rules(session, org)) == 1


async def test_rules_are_bounded(session, org, monkeypatch):
    monkeypatch.setattr(access, "MOST_RULES", 1)
    await rule(session, org, "role:user", "deny", "x")
    with pytest.raises(Conflict) as refused:
        await rule(session, org, "role:user", "deny", "y")
    assert refused.value.code == "too_many_rules"


async def test_a_rule_of_another_organisation_is_not_there(session, org):
    other = (await people.get_or_create_org(session, "other")).id
    made = await rule(session, other, "role:user", "deny", "x")
    with pytest.raises(NotFound):
        await access.drop_rule(session, org, made.id)
    assert (await holder(session, org)).models is None


def test_somebody_is_many_things_to_a_rule():
    rights = combine([(kernel.BUILT_IN["viewer"], None), (kernel.BUILT_IN["user"], "t2")])
    assert access.subjects(rights, key_id="k", user_id="u") == ["role:viewer", "key:k", "user:u"]


async def test_teams_are_named_with_their_organisation_where_another_could_have_that_name(session, org):
    other = (await people.get_or_create_org(session, "lab")).id
    found = {}
    for where, name in ((org, "nlp"), (org, "lab/nlp"), (other, "nlp")):
        team = await people.get_or_create_team(session, where, name)
        found[where == org, name] = (await holder(session, where, team_id=team.id)).org
    home = (await people.get_or_create_org(session)).name
    assert found == {(True, "nlp"): "", (True, "lab/nlp"): home, (False, "nlp"): "lab"}
    assert (await holder(session, other)).org == ""
