"""A bill by itself: what goes back at once, what is bounded, and what it costs where nothing limits it."""

import asyncio
import json

import pytest

from mindgw.core.price import Price, Prices
from mindgw.core.quota import BLOCK, MODES, SOFT, USD
from mindgw.gateway import signals
from mindgw.gateway.bill import UNSEEN
from mindgw.store.entries import MOST, check
from mindgw_agent import wire
from tests.gateway.test_money import LIMIT, PROMPT, Town, usage
from tests.gateway.world import EVENT, JSON, Box, World, engine

#: A limit of which two requests leave less than a process keeps for itself.
SCARCE = PROMPT + 104


def test_what_a_request_leaves_of_a_scarce_limit_goes_back_at_once():
    town = Town(SCARCE)
    town.ask()
    town.box.head(200, JSON, b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}')
    town.box.close()
    assert town.world.quotas.desk.spare == {town.key}


@pytest.mark.parametrize("end", ["gone", "busy", "failed", "lost"])
def test_so_does_all_that_an_attempt_without_an_answer_held(end):
    town = Town(SCARCE)
    client = town.ask()
    if end == "gone":
        client.post(signals.Gone())
        town.world.pump()
        town.box.close("cancelled")
    elif end == "lost":
        town.box.cut()
    else:
        town.box.close(end, "engine_error" if end == "failed" else "")
    assert town.held() == 0
    assert town.world.quotas.desk.spare == {town.key}


def test_of_a_limit_with_plenty_left_nothing_goes_back():
    town = Town()
    town.world.quotas.desk.leases.lend(town.key, 0, 0, LIMIT, 10**9)
    town.ask()
    town.box.close("failed", "engine_error")
    assert town.world.quotas.desk.spare == set()


def test_without_limits_usage_is_billed_and_nothing_is_drawn():
    world = World()
    box = Box(world, "box", engine("dear"))
    client = world.ask("dear", stream=True)
    assert json.loads(box.requests[1].body) == {"model": "dear", "messages": [{"role": "user", "content": "x"}], "stream": True}
    box.head()
    box.data(EVENT + usage(3, 2))
    box.close(finish="length")
    (row,) = world.settled()
    assert (row.kind, row.cost, row.draws, row.over, b"mindgw" in client.body) == ("settled", 7, (), 0, False)


@pytest.mark.parametrize("outcome", ["done", "failed", "cancelled"])
@pytest.mark.parametrize("limited", [False, True])
def test_no_report_makes_a_row_that_the_ledger_must_refuse(limited, outcome):
    """Not even with the dearest price that can be set."""
    world = World()
    world.quotas.prices = Prices([("*", Price(2**53, 2**53))])
    if limited:
        budget = world.limit("org:o", 10**6, SOFT)
        world.vault.budgets[budget] = [0, 10**6]
        world.quotas.desk.leases.lend(budget, 10**6, 0, 10**6, 10**6)
    box = Box(world)
    world.ask(stream=True)
    box.head()
    box.data(usage(2**53, 2**53))
    box.close(outcome, usage=wire.Usage(2**53, 2**53, 2**53))
    (row,) = world.settled()
    check(row)
    assert row.prompt_tokens <= UNSEEN + 1000
    assert row.cost == MOST


def test_an_answer_of_thoughts_that_are_not_sent_is_paid():
    """Engines count them all the same."""
    town = Town(10**6, SOFT)
    town.ask()
    town.box.head(200, JSON, b'{"usage":{"prompt_tokens":3,"completion_tokens":60000}}')
    town.box.close()
    assert town.rows() == [("settled", 1, "done", 3, 60_000, "engine")]


@pytest.mark.parametrize("mode", MODES)
async def test_a_model_that_costs_nothing_falls_under_no_limit_of_money(mode):
    town = Town(0, mode, USD, lent=False)
    client = town.ask()
    assert client.state is signals.State.SENT
    assert town.world.vault.loans == 0


async def test_a_limit_of_money_that_is_used_up_refuses_a_model_whose_prompts_are_free():
    town = Town(10, SOFT, USD, lent=False)
    town.world.quotas.prices = Prices([("dear", Price(0, 10**6))])
    town.world.vault.budgets[town.key] = [10, 0]
    town.boxes = [Box(town.world, "box", engine("dear"))]
    client = town.world.ask("dear")
    await town.funded()
    assert client.code == "insufficient_quota"


async def test_a_request_under_a_limit_that_lowers_goes_to_the_end_of_the_queue():
    town = Town(10, "queue-low", lent=False)
    town.world.vault.budgets[town.key] = [10, 0]
    town.ask()
    other = town.world.add_key()
    while not town.world.quotas.desk._task.done():
        await asyncio.sleep(0)
    low, normal = town.world.ask(), town.world.ask(key=other)
    town.box.head(200, JSON, b"{}")
    town.box.close()
    assert (normal.state, low.state) == (signals.State.SENT, signals.State.WAITING)


def test_the_engine_of_a_hard_limit_is_not_asked_for_more_than_its_context_holds():
    town = Town(mode=BLOCK)
    Box(town.world, "box", engine(models=[wire.Model("m", context=60, kinds=["chat"])]))
    town.world.ask()
    (box,) = town.world.boxes
    assert json.loads(box.requests[1].body)["max_tokens"] < 60
