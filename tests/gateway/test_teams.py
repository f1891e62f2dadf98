"""Workers that their owners keep for some teams: who is sent there, who never is, and what those hear of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core.routing import EVERYWHERE, both, kept_for, of_team, permits, shown, tags_of
from mindgw.gateway import signals
from mindgw.gateway.auth import _group
from mindgw.gateway.signals import State
from tests.gateway.test_routes import EU, adopt, answer, bound, headers, route, world
from tests.gateway.world import JSON, Box, Client, World, engine

KEPT = "The owners of the workers that serve 'm' keep them for other teams."
TEAMS = st.text(st.characters(blacklist_categories=["C"]), min_size=1, max_size=9)


def place(*teams, slots=1, **more):
    """A box that is kept for these, with a key of each team that is named."""
    made = World()
    box = Box(made, "box", engine("m", slots=slots), teams=list(teams))
    return made, box, {name: made.add_key(team=name, **more) for name in ("nlp", "vision", "")}


@given(st.lists(TEAMS, max_size=5), TEAMS | st.just(""))
def test_a_worker_is_for_the_teams_that_it_is_kept_for_and_for_all_when_for_none(teams, team):
    tags = {"worker": "w", **(kept_for(teams) if teams else {})}
    assert permits(of_team(team), tags) == (not teams or team in teams)
    assert permits(EVERYWHERE, tags)
    assert both(of_team(team), of_team(team)) == of_team(team)
    assert (shown(of_team(team)), tags_of(of_team(team))) == ("", [])


def test_whom_a_box_is_not_kept_for_hears_so_at_once_and_it_never_hears_of_them():
    made, box, keys = place("nlp", "audio", slots=4)
    for name in ("vision", ""):
        client = made.ask(key=keys[name])
        assert (client.error.status, client.code, client.error.message) == (503, "no_worker_available", KEPT)
    assert box.requests == {}
    client = made.ask(key=keys["nlp"])
    assert box.requests[box.stream].meta.team == "nlp"
    answer(box)
    assert client.state is State.DONE
    assert b"x-mindgw-served-by" not in headers(client)


def test_others_go_to_the_boxes_that_are_for_all_and_wait_for_those_alone():
    made, box, keys = place("nlp", slots=2)
    free = Box(made, "free")
    clients = [made.ask(key=keys["vision"]) for _ in range(3)]
    assert (len(free.requests), len(box.requests)) == (1, 0)
    assert (
        made.ask(key=keys["nlp"]).state is made.ask(key=keys["nlp"]).state is State.SENT
    )  # whoever waits stands before nobody of another team
    assert len(box.requests) == 2
    made.passes(10)
    free.head(500, JSON, b'{"error":"boom"}')
    free.close(status=500)
    assert (clients[0].code, len(free.requests), len(box.requests)) == ("engine_error", 1, 2)
    assert free.requests[free.stream].meta.team == ""  # a box that is for all is not told whose it is


def test_the_names_of_teams_are_those_of_one_organisation():
    made, box, _ = place("research", "lab/research", slots=9)
    for org, good in (("o", True), ("evil", False), ("lab", True)):
        client = made.ask(key=made.add_key(team="research", org_id=org, team_id=f"t-{org}"))
        assert (client.state is State.SENT) is good, org
    assert sorted(request.meta.team for request in box.requests.values()) == ["lab/research", "research"]


@pytest.mark.parametrize(
    ("org", "team", "group"),
    [("", "", ""), ("lab", "", ""), ("", "a", "a"), ("lab", "a", "lab/a"), ("home", "a/b", "home/a/b"), ("x/y", "a", "")],
)
def test_no_two_teams_go_by_one_name(org, team, group):
    assert _group(org, team) == group


def test_who_waits_when_a_box_is_kept_for_others_goes_there_no_more():
    made = World()
    box, key = Box(made, "box"), made.add_key(team="vision")
    running, waits, early = made.ask(key=key), made.ask(key=key), Client(made, key)
    box.says(engine("m", slots=9), teams=["nlp"])
    early.post(signals.Received(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'))
    made.passes(1)
    assert (running.state, waits.error.message, early.error.message, len(box.requests)) == (State.SENT, KEPT, KEPT, 1)
    box.head(500, JSON, b'{"error":"boom"}')
    box.close(status=500)
    assert (running.code, box.requests) == ("engine_error", {})
    box.says(engine("m"), teams=[])
    assert made.ask(key=key).state is State.SENT
    assert not made.pipeline.fleet.is_kept


def test_it_matters_again_whose_they_are_when_a_box_comes_back():
    made, box, keys = place("nlp")
    Box(made, "free")
    for _ in range(2):
        box.cut()
        assert made.pipeline.fleet.line("m", "chat") == ("m", "chat")
        assert made.ask(key=keys["vision"]).state is not State.DONE
        waits = made.ask(key=keys["vision"])
        assert not made.pipeline.fleet.is_kept
        box = Box(made, "box", epoch=box.epoch, teams=["nlp"])
        assert (waits.state, box.requests) == (State.WAITING, {})


def test_a_route_goes_on_where_a_leg_is_kept_for_others():
    made = world(route("fast", "m", fallbacks=["n"]))
    box, other = Box(made, "box", teams=["nlp"]), Box(made, "other", engine("n"))
    made.ask("fast")
    assert (box.requests, len(other.requests)) == ({}, 1)
    other.says(engine("n"), teams=["nlp"])
    assert made.ask("fast").error.message == KEPT
    assert made.pipeline.explain(made.auth.known(made.key, made.clock()), "fast", "chat").reason == KEPT


def test_a_place_and_a_team_bind_together():
    made = world(tags={"box": EU, "free": {}})
    box, free = Box(made, "box", engine("m"), teams=["nlp"]), Box(made, "free")
    assert made.ask(key=bound(made, region="eu")).error.message == KEPT
    assert made.ask(key=bound(made, region="us")).code == "residency_unmet"
    key = made.add_key(team="nlp", labels=EU)
    client = made.ask(key=key)
    assert (len(box.requests), free.requests) == (1, {})
    answer(box)
    assert headers(client)[b"x-mindgw-served-by"] == b"box; model=m; region=eu"
    adopt(made, tags={"free": EU})
    assert made.ask(key=made.add_key(team="vision", labels=EU)).state is State.SENT
    assert len(free.requests) == 1


def test_only_what_one_may_go_to_is_offered():
    made, _, keys = place("nlp")
    for name, found in (("nlp", ["m"]), ("vision", [])):
        made.ask(key=keys[name])
        caller = made.auth.known(keys[name], made.clock())
        assert [offer.id for offer in made.pipeline.models(caller)] == found
    assert [offer.id for offer in made.pipeline.models()] == ["m"]


# -- what an agent turns away ------------------------------------------------------------------------------------------


def test_a_box_that_was_paused_takes_requests_as_soon_as_it_goes_on():
    made = World()
    box = Box(made, "box", engine("m", slots=2))
    clients = [made.ask() for _ in range(2)]
    for _ in range(2):
        box.close("busy", "paused")
    assert ([client.state for client in clients], box.requests) == ([State.WAITING] * 2, {})
    box.says(engine("m", slots=2), paused_until=2_000_000_000)
    made.passes(1)
    assert box.requests == {}
    box.says(engine("m", slots=2), paused_until=0)
    assert len(box.requests) == 2


def test_a_box_that_turns_away_whom_it_is_kept_for_fails():
    made, box, keys = place("nlp", slots=4)
    client = made.ask(key=keys["nlp"])
    box.close("busy", "other_team", message="the owner keeps it")
    assert (client.error.status, client.error.message, box.requests) == (503, "the owner keeps it", {})
    Box(made, "free", engine("m", slots=9))
    for _ in range(9):
        made.ask(key=keys["nlp"])
        while box.requests:
            box.close("busy", "other_team")
    assert (("box", "e"), "m") in made.pipeline.fleet.breaker.tripped


def test_a_seat_that_is_paused_does_not_rest():
    made = World()
    box = Box(made)
    made.ask()
    seat = made.pipeline.fleet.workers["box"].seats["e"]
    rest = seat.rest
    box.close("busy", "paused")
    assert (seat.rest, seat.rests_until) == (rest, 0.0)


def test_where_nobody_is_kept_for_anybody_it_costs_nothing():
    made = World()
    Box(made)
    assert made.ask(key=made.add_key(team="nlp")).exchange.ticket.needs.where is EVERYWHERE
