"""What a request hears whose model, or whose role, is not good enough."""

from mindgw import errors
from mindgw.core import access
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import Box, Client, World, engine, finished


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
