"""Routes: what people write is what is read back, weights are kept, and nothing ever goes where it may not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import routing
from mindgw.core.routing import EVERYWHERE, Leg, Plan, Route, Rules, Target, both, permits, plan, residency, target, where, written

NAMES, VALUES = ("region", "zone", "pool", "gen"), ("eu", "us", "lab", "4", "80")
tags = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES))
places = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4).map(
    lambda pairs: where(f"{name}={value}" for name, value in pairs)
)
models = st.from_regex(r"[^\s@,]{1,20}", fullmatch=True).filter(lambda name: not name.startswith("pool:"))
targets = st.builds(Target, models, places, st.integers(0, routing.HEAVIEST)) | st.builds(
    Target, st.just(""), places.filter(bool), st.integers(0, routing.HEAVIEST)
)
labels = st.dictionaries(st.sampled_from(NAMES), st.sampled_from((*VALUES, "eu|us", "", "eu|")), max_size=2)


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_worker_needs_one_value_of_each_name():
    place = where(["zone=lab", "region=eu", "region=uk"])
    assert place == (("region", ("eu", "uk")), ("zone", ("lab",)))
    assert permits(place, {"region": "uk", "zone": "lab", "more": "x"})
    for lacking in ({"region": "uk"}, {"region": "us", "zone": "lab"}, {}):
        assert not permits(place, lacking)
    assert permits(EVERYWHERE, {})
    assert routing.shown(place) == "region=eu|uk,zone=lab"


@given(places, places, tags)
def test_two_places_together_are_as_narrow_as_each(one, other, worker):
    assert permits(both(one, other), worker) == (permits(one, worker) and permits(other, worker))


@given(labels, labels, tags)
def test_labels_bind_to_workers_with_such_tags_and_to_no_others(org, key, worker):
    good = all(worker.get(name) in value.split("|") for some in (org, key) for name, value in some.items())
    assert permits(residency(org, key), worker) == good


def test_labels_that_contradict_each_other_leave_nobody():
    place = residency({"region": "eu"}, {"region": "us"})
    assert place == (("region", ()),)
    assert not permits(place, {"region": "eu"})
    assert routing.shown(place) == "region=nothing"


@pytest.mark.parametrize(
    "text", ["", "zone", "zone=", "=lab", "zo ne=lab", "zone=a b", "zone=a,b", "zone=a=b", "zone=a@b", "-x=1", "zone=" + "x" * 64]
)
def test_what_is_no_tag_is_refused(text):
    with pytest.raises(ValueError, match="must be NAME=VALUE"):
        where([text])


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("qwen3:8b", Target("qwen3:8b")),
        ("qwen3:8b=90", Target("qwen3:8b", weight=90)),
        (" org/model=0 ", Target("org/model", weight=0)),
        ("m@zone=lab,zone=eu,gen=4", Target("m", where(["zone=lab", "zone=eu", "gen=4"]))),
        ("m@gen=4=80", Target("m", where(["gen=4"]), 80)),
        ("@pool=gpu", Target("", where(["pool=gpu"]))),
        ("pool:gpu=80", Target("", where(["pool=gpu"]), 80)),
        ("a=b", Target("a=b")),
    ],
)
def test_a_target_is_what_people_write(text, meant):
    assert target(text) == meant
    assert target(written(meant)) == meant


@given(targets)
def test_what_is_written_is_read_back(one):
    assert target(written(one)) == one


@pytest.mark.parametrize("text", ["", "=90", "@", "m@", "@=90", "a b", "m@x", "m@x=1@y=2", "m=99999", "x" * 201, "pool:", "a,b"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(ValueError, match="must be|may weigh"):
        target(text)


@given(st.text(max_size=30))
def test_any_text_is_a_target_or_is_refused(text):
    try:
        one = target(text)
    except ValueError:
        return
    assert target(written(one)) == one


# -- rules -------------------------------------------------------------------------------------------------------------


def route(match, *to, **more):
    return Route(**{"name": match, "match": match, "targets": tuple(map(target, to))} | more)


def test_a_name_goes_before_a_glob_and_a_longer_glob_before_a_shorter():
    rules = Rules([route("*"), route("qwen*"), route("qwen3*"), route("qwen3:8b"), route("x?"), route("[ab]")])
    found = {name: rules.of(name)[0].name for name in ("qwen3:8b", "qwen3:9b", "qwen2", "llama", "xy", "a", "[ab]")}
    assert found == {"qwen3:8b": "qwen3:8b", "qwen3:9b": "qwen3*", "qwen2": "qwen*", "llama": "*", "xy": "x?", "a": "*", "[ab]": "[ab]"}
    assert Rules().of("m") == (None, None)


def test_names_that_callers_make_up_are_not_kept_for_ever():
    rules = Rules([route("m")])
    for number in range(routing._KNOWN + 10):
        rules.of(f"x{number}")
    assert len(rules._found) <= routing._KNOWN
    assert rules.of("m")[0].name == "m"
    assert rules.of("m") is rules.of("m")


def test_a_shadow_counts_for_nothing_but_is_known():
    rules = Rules([route("m", "a"), route("m", "b", name="new", shadow=True, pins=where(["zone=lab"]))])
    real, shadow = rules.of("m")
    assert (real.name, shadow.name) == ("m", "new")
    assert not rules.pins
    assert rules.pinned(["m"]) == EVERYWHERE


def test_a_model_is_pinned_by_any_of_its_names():
    rules = Rules([route("big*", pins=where(["worker=a", "worker=b"])), route("b?g-1", pins=where(["zone=lab"]))])
    assert rules.pins
    assert rules.pinned(["small", "big-1"]) == where(["worker=a", "worker=b", "zone=lab"])
    assert rules.pinned(["small"]) == EVERYWHERE


def test_a_plan_is_the_chosen_target_the_others_and_the_fallbacks():
    one = route(
        "fast", "a@pool=gpu", fallbacks=(target("b"), target("@pool=cpu"), target("b")), require=where(["zone=lab"]), spill=True, hedge=True
    )
    made = plan(one, "fast", residency({"region": "eu"}), "ada")
    assert (made.route, made.spill, made.hedge) == ("fast", True, True)
    assert [(leg.model, routing.shown(leg.where)) for leg in made.legs] == [
        ("a", "pool=gpu,region=eu,zone=lab"), ("b", "region=eu,zone=lab"), ("fast", "pool=cpu,region=eu,zone=lab"),
    ]  # fmt: skip


def test_a_route_without_targets_is_about_the_model_itself():
    assert plan(route("m*", fallbacks=(target("b"),)), "m1", EVERYWHERE, "ada").legs == (Leg("m1"), Leg("b"))


def test_a_route_that_nobody_can_read_leads_nowhere():
    assert plan(route("m", "a", broken=True), "m", EVERYWHERE, "ada") == Plan("m", ())


def test_a_target_without_weight_is_nobodys():
    some = route("m", "a=0", "b=3")
    assert [one.model for one in routing.ranked(some, "ada")] == ["b"]
    assert plan(route("m", "a=0"), "m", EVERYWHERE, "ada").legs == ()


@pytest.mark.parametrize("weights", [(1, 1), (90, 10), (99, 1), (5, 3, 2), (1, 1, 1, 1), (10_000, 1)])
def test_weights_are_kept_over_ten_thousand_users(weights):
    some = route("fast", *(f"m{number}={weight}" for number, weight in enumerate(weights)))
    first = [routing.ranked(some, f"user-{number}")[0].model for number in range(10_000)]
    for number, weight in enumerate(weights):
        assert abs(first.count(f"m{number}") / 10_000 - weight / sum(weights)) <= 0.02


@given(st.lists(targets, min_size=2, max_size=5, unique_by=lambda one: (one.model, one.where)), st.text(max_size=20), st.integers(1, 100))
def test_who_has_a_target_keeps_it_unless_another_grows(some, who, more):
    heavy = [Target(one.model, one.where, one.weight or 1) for one in some]
    before = routing.ranked(Route(name="r", match="r", targets=tuple(heavy)), who)
    assert before == routing.ranked(Route(name="r", match="r", targets=tuple(reversed(heavy))), who)
    kept = before[0]
    grown = [Target(one.model, one.where, one.weight + more * (one == kept)) for one in heavy]
    after = routing.ranked(Route(name="r", match="r", targets=tuple(grown)), who)
    assert (after[0].model, after[0].where) == (kept.model, kept.where)
    without = [one for one in heavy if one != before[-1]]
    assert routing.ranked(Route(name="r", match="r", targets=tuple(without)), who) == before[:-1]


@given(st.lists(targets, max_size=3), st.lists(targets, max_size=3), places, labels, labels, tags)
def test_no_leg_is_wider_than_its_caller_and_its_route(some, others, require, org, key, worker):
    home = residency(org, key)
    one = Route(name="r", match="r", targets=tuple(some), fallbacks=tuple(others), require=require)
    for leg in plan(one, "m", home, "ada").legs:
        if permits(leg.where, worker):
            assert permits(home, worker)
            assert permits(require, worker)
