"""An organisation keeps an administrator, also when two take each other away at the same moment; on both databases."""

import asyncio

import pytest

from mindgw.control import people, roles
from mindgw.control.principal import Principal
from mindgw.core import access
from mindgw.errors import Conflict
from mindgw.store import people as stored
from mindgw.store import users
from mindgw.store.tenants import View
from mindgw.store.users import NewUser

ADMIN = access.combine([(access.BUILT_IN["admin"], None)])
EMAILS = ("ana@x.org", "bea@x.org")


async def two_administrators(database, org):
    async with database.write() as session:
        found = [await users.obtain(session, NewUser(org_id=org, email=email, role="admin")) for email in EMAILS]
        return {email: Principal(org_id=org, is_home=False, rights=ADMIN, user_id=row.id, session_id="s" * 10) for email, (row, _) in
                zip(EMAILS, found, strict=True)}  # fmt: skip


async def disables(database, who, whom):
    await people.disable(database, who, whom, lambda _: None)


async def lowers(database, who, whom):
    await people.change(database, who, whom, people.UserChange(role="user"))


async def removes(database, who, whom):
    await people.remove(database, who, whom, lambda _: None)


async def unbinds(database, who, whom):
    await roles.unbind(database, who, "admin", roles.BindingWish(user=whom), lambda: None)


@pytest.mark.parametrize("take", [disables, lowers, removes, unbinds])
async def test_of_two_who_take_each_other_away_one_stays(database, take):
    for trial in range(5):
        async with database.write() as session:
            org = (await stored.get_or_create_org(session, f"acme{trial}")).id
        own = database.within(View(org))
        who = await two_administrators(database, org)
        ana, bea = EMAILS
        done = await asyncio.gather(take(own, who[ana], bea), take(own, who[bea], ana), return_exceptions=True)
        assert sorted(wrong.code for wrong in done if isinstance(wrong, Conflict)) == ["last_admin"], done
        async with database.read() as session:
            left = [row for row in await users.page(session, org) if (row.role, row.state) == ("admin", "active")]
        assert len(left) == 1


@pytest.mark.parametrize("take", [disables, lowers, removes, unbinds])
async def test_who_runs_the_server_may_take_the_last_one_away(database, take):
    async with database.write() as session:
        org = (await stored.get_or_create_org(session)).id
        await users.obtain(session, NewUser(org_id=org, email=EMAILS[0], role="admin"))
    root = Principal(org_id=org, is_home=True, rights=ADMIN, key_id="k" * 10)
    await take(database.within(View(org, True)), root, EMAILS[0])
