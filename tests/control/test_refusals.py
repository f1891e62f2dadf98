"""Refusals are in the audit log, and whoever is refused cannot fill it."""

import pytest

from mindgw.control import refusals
from mindgw.control.principal import Principal
from mindgw.core.refusals import BURST, QUIET
from mindgw.errors import Draining
from tests.store import audited

WHO = Principal(org_id="o", is_home=True, key_id="k1", address="192.0.2.7")


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def watch(database, clock):
    return refusals.Watch(database, lambda: clock[0])


async def entries(database):
    async with database.read() as session:
        return [(e.actor, e.address, e.org_id, e.object, e.outcome, e.detail) for e in await audited.entries(session)]


async def test_both_kinds_are_written(watch, database):
    watch.stranger("192.0.2.1", "invalid_api_key")
    watch.known(WHO, "forbidden", "POST /api/v1/keys")
    await watch.flush()
    await watch.flush()
    assert await entries(database) == [
        ("k1", "192.0.2.7", "o", "POST /api/v1/keys", "refused", {"code": "forbidden", "count": 1}),
        ("", "192.0.2.1", None, "", "refused", {"code": "invalid_api_key", "count": 1}),
    ]


async def test_a_flood_of_strangers_leaves_few_lines_and_room_for_the_known(watch, database, clock):
    for number in range(20_000):
        watch.stranger(f"10.0.{number // 250}.{number % 250}", "invalid_api_key")
    watch.known(WHO, "forbidden", "DELETE /api/v1/keys/{key}")
    await watch.flush()
    found = await entries(database)
    assert found[0][0] == "k1"
    assert len(found) == 1 + BURST
    clock[0] += QUIET
    await watch.flush()
    told = await entries(database)
    assert len(told) <= 1 + BURST + QUIET
    clock[0] += 10 * QUIET
    for _ in range(20):
        clock[0] += QUIET
        await watch.flush()
    assert sum(detail["count"] for *_, detail in await entries(database)) == 20_001


async def test_what_cannot_be_written_is_kept(watch, database, monkeypatch):
    watch.stranger("192.0.2.1", "invalid_api_key")

    def away(*_):
        raise Draining("away")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", away)
        with pytest.raises(Draining):
            await watch.flush()
    await watch.flush()
    assert [detail["count"] for *_, detail in await entries(database)] == [1]


async def test_one_organisation_takes_no_line_of_another_s(watch, database, clock):
    for _ in range(120):
        for number in range(400):
            watch.known(
                Principal(org_id="loud", is_home=False, key_id=f"k{number % 40}", address=f"2001:db8::{number:x}"), "forbidden", "x:y"
            )
        watch.known(WHO, "forbidden", "update:roles")
        clock[0] += 1
        await watch.flush()
    found = [detail["count"] for actor, _, org, _, _, detail in await entries(database) if (actor, org) == ("k1", "o")]
    assert len(found) == 2 and sum(found) >= 60
    assert {org for _, _, org, *_ in await entries(database)} == {"loud", "o"}


async def test_one_network_of_strangers_is_one(watch, database):
    for number in range(1000):
        watch.stranger(f"2001:db8:0:7::{number:x}", "invalid_api_key")
    watch.stranger("::1", "invalid_api_key")
    await watch.flush()
    found = [(address, detail["count"]) for _, address, *_, detail in await entries(database)]
    assert found == [("2001:db8:0:7::/64", 1000), ("::1", 1)]
