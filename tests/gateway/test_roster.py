"""Who serves what, as management and callers are told."""

from mindgw.gateway import roster
from mindgw.gateway.admission import Caller
from mindgw_agent import wire
from tests.gateway.test_routes import EU, US, adopt, route, world
from tests.gateway.world import Box, World, engine


def told(made, *, kinds=False):
    """Models by their ids; what callers are told has to say the same."""
    views = made.pipeline.served()
    assert [view.id for view in views] == [offer.id for offer in made.pipeline.models(Caller("k", "k", "o"))]
    return {view.id: view.kinds if kinds else (view.workers, view.slots, view.used, view.context) for view in views}


def test_models_are_summed_over_the_workers_that_are_ready():
    made = World()
    Box(made, "b", engine(slots=4, models=[wire.Model("z", 8192, ["chat"]), wire.Model("e", None, ["embeddings"])]))
    Box(made, "a", engine(slots=2, models=[wire.Model("z", 4096, ["completions"])]))
    Box(made, "c", engine("z"))
    made.pipeline.fleet.drain(made.pipeline.fleet.workers["c"])
    made.ask("e", path="/v1/embeddings", input="x")
    assert told(made) == {"e": (["b"], 4, 1, None), "z": (["a", "b"], 6, 1, 4096)}
    assert told(made, kinds=True) == {"e": ["embeddings"], "z": ["chat", "completions"]}


def test_a_model_has_the_slots_of_the_engines_that_have_it_and_no_others():
    made = World()
    engines = [engine("m", id="1", slots=4), engine("n", "m", id="2", slots=8), engine("n", id="3", slots=16)]
    Box(made, "box", *engines, engine("n", "gone", id="4", slots=32, healthy=False))
    assert told(made) == {"m": (["box"], 12, 0, None), "n": (["box"], 24, 0, None)}


def test_what_a_pin_forbids_is_not_told_as_served():
    made = world(route("m", pins=["region=eu"], name="pin"), tags={"there": EU, "here": US})
    Box(made, "here", engine("m", "n", slots=2))
    assert told(made) == {"n": (["here"], 2, 0, None)}
    Box(made, "there", engine("m", slots=3))
    assert told(made) == {"m": (["there"], 3, 0, None), "n": (["here"], 2, 0, None)}
    adopt(made)
    assert told(made)["m"] == (["here", "there"], 5, 0, None)


def test_what_an_engine_turned_out_not_to_serve_is_not_told_as_served():
    made = World()
    Box(made, "box", engine("m", "n", kinds=("chat", "completions")))
    Box(made, "other", engine("m", kinds=("chat", "completions")))
    (seat,) = made.pipeline.fleet.workers["box"].seats.values()
    assert made.pipeline.fleet.doubt(seat, "m", "chat", made.clock())
    assert told(made) == {"m": (["box", "other"], 2, 0, None), "n": (["box"], 1, 0, None)}
    assert made.pipeline.fleet.doubt(seat, "m", "completions", made.clock())
    assert told(made) == {"m": (["other"], 1, 0, None), "n": (["box"], 1, 0, None)}


def test_of_a_place_only_what_is_there_is_told():
    made = world(tags={"there": EU, "here": US})
    Box(made, "here", engine("m", "n")), Box(made, "there", engine("m"))
    where = (("region", ("eu",)),)
    assert [(view.id, view.workers) for view in roster.models(made.pipeline.fleet, where)] == [("m", ["there"])]
