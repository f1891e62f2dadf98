"""What a request hears whose model, or whose role, is not good enough."""

import pytest

from mindgw import errors
from mindgw.core import access
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import CHAT, Box, Client, World, engine, finished


def deny(pattern):
    return access.compile_models([access.Rule("r", "user:u", False, pattern)])


def test_a_model_that_was_away_when_it_was_asked_for_is_looked_at_when_it_comes_back():
    world = World()
    key = world.add_key()
    world.rules[next(reversed(world.keys))] = deny("real")
    world.pipeline.fleet.remembered["box"] = frozenset({"alias"})
    client = world.ask("alias", key)
    assert client.state is State.WAITING
    box = Box(world, "box", engine("x", models=[wire.Model("real", aliases=["alias"], kinds=["chat"])]))
    assert isinstance(client.error, errors.ModelNotFound)
    assert (box.requests, world.used) == ({}, 0)
    other = world.ask("alias")
    assert other.error is None
    assert len(box.requests) == 1


def test_whoever_may_use_no_models_is_refused_by_the_head_alone():
    world = World()
    Box(world)
    key = world.add_key(role="viewer")
    finished(world.auth.look_up(key, world.clock()))
    client = Client(world, key)
    assert (client.error.code, client.error.status) == ("role_not_allowed", 403)
    assert world.settled()[0].error_code == "role_not_allowed"


def test_a_change_of_rights_holds_from_the_next_request_on():
    world = World()
    Box(world)
    key = world.add_key()
    assert world.ask(key=key).error is None
    world.rules[next(reversed(world.keys))] = deny("*")
    assert Client(world, key).exchange.caller.models is None  # remembered
    world.pipeline.forget_callers()
    assert isinstance(world.ask(key=key).error, errors.ModelNotFound)


def allow(pattern):
    return access.compile_models([access.Rule("r", "user:u", True, pattern)])


def shared():
    """Two boxes whose models, small and big, go by the name of chat as well."""
    world = World()
    boxes = [Box(world, id, engine(id, models=[wire.Model(id, aliases=["chat"], kinds=["chat"])])) for id in ("small", "big")]
    return world, boxes


@pytest.mark.parametrize("rule", [allow("small"), deny("big"), None], ids=["allowed", "denied", "key"])
def test_a_name_that_several_models_go_by_stands_for_those_that_one_may_use(rule):
    world, (small, big) = shared()
    key = world.add_key(scopes={} if rule else {"models": ["small"]})
    if rule is not None:
        world.rules[next(reversed(world.keys))] = rule
    assert [world.ask("chat", key).state for _ in range(2)] == [State.SENT, State.WAITING]
    assert (len(small.requests), big.requests) == (1, {})
    assert isinstance(world.ask("big", key).error, errors.ModelNotFound)
    assert world.ask("chat").state is State.SENT
    assert len(big.requests) == 1


def test_of_the_models_that_one_may_use_that_is_meant_which_is_there():
    world, (small, big) = shared()
    Box(world, "other", engine("o", models=[wire.Model("other", aliases=["chat"], kinds=["chat"])]))
    key = world.add_key()
    world.rules[next(reversed(world.keys))] = deny("other")
    big.says(*big.report.engines, draining=True)
    assert world.ask("chat", key).state is State.SENT
    assert (len(small.requests), big.requests) == (1, {})


def lies(world, box):
    box.door.lied("it said what cannot be")


@pytest.mark.parametrize("approved", [False, True])
def test_nobody_outside_says_what_a_name_means(approved):
    world = World()
    honest, key = Box(world, "honest", engine("llama", slots=9)), world.add_key()
    world.rules[next(reversed(world.keys))] = deny("gpt-*")
    models = [wire.Model(id, aliases=["llama"], kinds=["chat"]) for id in ("0good", "gpt-x")]
    box = Box(world, "box", engine(id="0", models=models[:1]), engine(id="1", models=models[1:]), approved=approved)
    if approved:
        lies(world, box)
    fleet = world.pipeline.fleet
    for _ in range(2):
        assert world.ask("llama", key).state is State.SENT
    assert (len(honest.requests), box.requests, fleet.offers("llama")) == (2, {}, {"llama": {"llama"}})
    assert fleet.canonical == {"llama": "llama"}
    assert (fleet.serves("0good"), fleet.models().keys()) == (False, {"llama"})


def test_what_nobody_was_let_in_with_is_not_there():
    world = World()
    box = Box(world, "box", engine("m"), approved=False)
    assert world.ask().code == "model_not_found"
    box.says(engine("m", "n"))
    assert world.ask("n").code == "model_not_found"
    box.cut()
    assert world.ask().code == "model_not_found"


def test_what_a_worker_in_quarantine_had_is_waited_for_until_it_is_released():
    world = World()
    box, fleet = Box(world), world.pipeline.fleet
    lies(world, box)
    client = world.ask()
    assert (client.state, fleet.known("m"), fleet.canonical) == (State.WAITING, True, {})
    box.says(engine("m", "n"))
    assert world.ask("n").code == "model_not_found"
    fleet.release(fleet.workers["box"])
    world.pump()
    assert (client.state, fleet.remembered) == (State.SENT, {})
    box.close()
    lies(world, box)
    box.cut()
    assert (world.ask().state, world.ask("x").code) == (State.WAITING, "model_not_found")


def test_globs_of_keys_are_those_of_rules():
    world = World()
    Box(world, "box", engine("llama2"))
    assert isinstance(world.ask("llama2", world.add_key(scopes={"models": ["llama[1-3]*"]})).error, errors.ModelNotFound)
    assert world.ask("llama2", world.add_key(scopes={"models": ["lla?a*"]})).error is None


async def test_what_is_run_again_for_somebody_keeps_to_what_they_may_do():
    world = World()
    Box(world)
    body = b'{"model": "m", "messages": []}'
    for columns, code in (({"role": "viewer"}, "role_not_allowed"), ({"scopes": {"routes": ["embeddings"]}}, "route_not_allowed")):
        world.add_key(**columns)
        with pytest.raises(errors.Forbidden) as refused:
            await world.pipeline.rerun(next(reversed(world.keys)), CHAT, [], body)
        assert refused.value.code == code
    world.add_key(rpm=1, scopes={"addresses": ["192.0.2.0/24"]})
    key_id = next(reversed(world.keys))
    world.pipeline.accounts.rates.enter(await world.auth.holder(key_id), world.clock())
    with pytest.raises(errors.RateLimited):
        await world.pipeline.rerun(key_id, CHAT, [], body)
