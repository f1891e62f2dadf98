"""How often one may ask: what is let in, what is charged, what clients are told; and what a key is good for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import errors, metrics
from mindgw.config import Limits
from mindgw.core.bucket import MINUTE
from mindgw.gateway import rates, scope, signals
from mindgw.gateway.admission import Caller, Rate
from mindgw.gateway.rates import Rates, duration
from mindgw_agent import wire
from tests.gateway.world import CHUNK, DONE, EVENT, JSON, Box, Client, World, engine, finished

ELSEWHERE = "198.51.100.7"


def caller(**fields) -> Caller:
    return Caller(**({"key_id": "k", "name": "k", "org_id": "o"} | fields))


def told(client: Client) -> dict[str, str]:
    """What its headers say of rates."""
    error = client.error
    pairs = error.headers if isinstance(error, errors.RateLimited) else client.exchange.notes(client._world.clock)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs if name.startswith(b"x-ratelimit-")}


def answered(box: Box, prompt: int, completion: int) -> None:
    box.head(content_type=JSON, data=b"{}")
    box.close(usage=wire.Usage(prompt, completion, source="engine"))


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_key_may_ask_as_often_as_its_rate_says_and_then_as_time_passes():
    world = World()
    Box(world)
    key = world.add_key(rpm=3)
    assert [world.ask(key=key).code for _ in range(4)] == ["", "", "", "rate_limit_exceeded"]
    late = world.ask(key=key)
    assert late.error.status == 429
    assert late.error.retry_after == 20
    assert "on requests per min: Limit 3, Used 3. Please try again in 20s." in late.error.message
    assert told(late) == {"limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s"}
    world.clock.now += 20
    assert world.ask(key=key).code == ""
    assert world.ask().code == "", "others are not concerned"


def test_what_is_left_stands_in_every_answer():
    world = World()
    box = Box(world)
    key = world.add_key(rpm=60, tpm=1000)
    client = world.ask(key=key, max_tokens=100)
    assert told(client)["remaining-requests"] == "59"
    held = int(told(client)["remaining-tokens"])
    assert 850 < held <= 900, "the prompt and the cap are charged"
    answered(box, 10, 20)
    assert told(client)["remaining-tokens"] == "970", "in the end what it took"
    assert told(client)["reset-tokens"] == "1.8s"
    assert told(world.ask()) == {}, "nothing is said where there is no rate"


def test_a_request_is_refused_before_its_body_is_read():
    world = World()
    Box(world)
    key = world.add_key(rpm=1)
    world.ask(key=key)
    refused = Client(world, key)
    assert refused.code == "rate_limit_exceeded"
    assert refused.state is signals.State.DONE


def test_refused_requests_are_not_counted_again():
    world = World()
    Box(world)
    key = world.add_key(rpm=2)
    for _ in range(10):
        world.ask(key=key)
    world.clock.now += 30
    assert world.ask(key=key).code == ""


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_who_took_more_than_was_left_waits_for_all_of_it():
    world = World()
    box = Box(world)
    key = world.add_key(tpm=100)
    world.ask(key=key)
    answered(box, 50, 250)
    refused = world.ask(key=key)
    assert refused.code == "rate_limit_exceeded"
    assert "on tokens per min: Limit 100, Used 300." in refused.error.message
    assert refused.error.retry_after == pytest.approx(121, abs=0.6)
    assert not refused.error.worth_waiting, "no client waits for so long"
    world.clock.now += 119
    assert world.ask(key=key).code == "rate_limit_exceeded"
    world.clock.now += 2
    assert world.ask(key=key).code == ""


def test_a_stream_is_charged_when_it_ends():
    world = World()
    box = Box(world)
    key = world.add_key(tpm=1000)
    client = world.ask(key=key, stream=True)
    box.head(data=EVENT * 3)
    box.close(usage=wire.Usage(100, 300, source="engine"))
    assert client.body.endswith(DONE)
    assert told(client)["remaining-tokens"] == "600"


def test_what_was_never_answered_costs_nothing():
    world = World()
    box = Box(world)
    key = world.add_key(tpm=1000, concurrency=1)
    client = world.ask(key=key, max_tokens=900)
    box.close("failed", "engine_error")
    assert client.code
    assert told(world.ask(key=key))["remaining-tokens"] > "900"


def test_a_prompt_that_is_larger_than_a_minute_is_refused_for_good():
    world = World()
    Box(world)
    key = world.add_key(tpm=50)
    refused = world.ask(key=key, messages=[{"role": "user", "content": "long " * 200}])
    assert refused.code == "rate_limit_exceeded"
    assert "Request too large" in refused.error.message
    assert refused.error.retry_after is None
    assert not refused.error.worth_waiting
    assert world.ask(key=key).code == "", "it has taken nothing"


def test_a_cap_beyond_all_measure_is_charged_as_a_whole_minute():
    world = World()
    box = Box(world)
    key = world.add_key(tpm=100)
    client = world.ask(key=key, max_tokens=10**9)
    assert told(client)["remaining-tokens"] == "0"
    answered(box, 1, 1)
    assert told(client)["remaining-tokens"] == "98"


# -- requests at once --------------------------------------------------------------------------------------------------


def test_so_many_at_once_and_the_next_when_one_is_over():
    world = World()
    box = Box(world, "box", engine("m", slots=8))
    key = world.add_key(concurrency=2)
    world.ask(key=key)
    world.ask(key=key)
    refused = world.ask(key=key)
    assert refused.code == "rate_limit_exceeded"
    assert "on requests at once: Limit 2, Used 2." in refused.error.message
    assert refused.error.worth_waiting
    answered(box, 1, 1)
    assert world.ask(key=key).code == ""


@pytest.mark.parametrize("how", ["gone", "refused body", "no such model", "revoked", "engine fails", "worker lost"])
def test_whatever_becomes_of_a_request_it_counts_no_longer(how):
    world = World()
    box = Box(world)
    key = world.add_key(concurrency=1)
    finished(world.auth.look_up(key, world.clock()))
    client = Client(world, key)
    assert world.ask(key=key).code == "rate_limit_exceeded"
    if how == "refused body":
        client.post(signals.Refused(errors.BodyTooLarge()))
    elif how == "gone":
        client.post(signals.Gone())
    elif how == "revoked":
        world.pipeline.revoke_key(client.exchange.caller.key_id)
    else:
        model = "x" if how == "no such model" else "m"
        client.post(signals.Received(b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"x"}]}' % model.encode()))
        world.pump()
        if how == "engine fails":
            box.close("failed", "engine_error")
        elif how == "worker lost":
            box.head()
            box.data(EVENT)
            box.cut()
    assert client.end is not None or how == "gone"
    assert [gauge.running for gauge in world.rates._gauges.values()] == [0]


def test_one_that_was_cancelled_counts_until_its_worker_is_free():
    world = World()
    box = Box(world)
    key = world.add_key(concurrency=1)
    world.ask(key=key).post(signals.Gone())
    assert world.ask(key=key).code == "rate_limit_exceeded"
    world.pump()
    box.close("cancelled")
    assert world.ask(key=key).code == ""


# -- users, teams, organisations ---------------------------------------------------------------------------------------


def test_all_keys_of_a_team_share_its_rate_and_each_has_its_own():
    world = World()
    Box(world)
    world.rates.adopt({"team:t": Rate(rpm=3), "org:o": Rate(tpm=10**6)}, world.clock())
    one, other = world.add_key(team_id="t", rpm=2), world.add_key(team_id="t")
    assert [world.ask(key=one).code for _ in range(3)] == ["", "", "rate_limit_exceeded"]
    last = world.ask(key=other)
    assert last.code == ""
    assert told(last)["remaining-requests"] == "0", "the scope that has least is the one that is told of"
    assert told(last)["limit-tokens"] == "1000000"
    refused = world.ask(key=other)
    assert "team t on requests per min: Limit 3" in refused.error.message
    assert world.ask().code == ""


def test_a_refusal_takes_nothing_from_the_scopes_that_had_enough():
    world = World()
    Box(world)
    world.rates.adopt({"team:t": Rate(rpm=2)}, world.clock())
    mean, other = world.add_key(team_id="t", rpm=1), world.add_key(team_id="t")
    for _ in range(5):
        world.ask(key=mean)
    assert world.ask(key=other).code == ""


def test_rates_change_under_way():
    world = World()
    box = Box(world)
    key = world.add_key(team_id="t")
    world.rates.adopt({"team:t": Rate(rpm=10, concurrency=1)}, world.clock())
    world.ask(key=key)
    assert world.ask(key=key).code == "rate_limit_exceeded"
    world.rates.adopt({"team:t": Rate(rpm=10, concurrency=2)}, world.clock())
    assert world.ask(key=key).code == ""
    world.rates.adopt({"team:t": Rate(rpm=2)}, world.clock())
    assert world.ask(key=key).code == "", "four fifths of it were left"
    assert world.ask(key=key).code == "rate_limit_exceeded"
    world.rates.adopt({}, world.clock())
    assert [world.ask(key=key).code for _ in range(5)] == [""] * 5
    while box.requests:
        answered(box, 1, 1)
    world.rates.adopt({"team:t": Rate(concurrency=1)}, world.clock())
    assert world.ask(key=key).code == ""


def test_a_key_that_gets_another_rate_keeps_what_it_used():
    taken = Rates(metrics.Counters())
    for _ in range(10):
        taken.enter(caller(rate=Rate(rpm=10)), 0.0)
    with pytest.raises(errors.RateLimited):
        taken.enter(caller(rate=Rate(rpm=20)), 0.0)
    assert taken.enter(caller(rate=None), 0.0) is None
    assert taken.enter(caller(rate=Rate(rpm=20)), 3.0) is not None


def test_who_is_under_no_rate_is_not_looked_at():
    free = Rates(metrics.Counters())
    assert free.enter(caller(), 0.0) is None
    assert not free._of
    free.adopt({"team:other": Rate(rpm=1)}, 0.0)
    assert free.enter(caller(team_id="t"), 0.0) is None


def test_refusals_are_counted():
    counters = metrics.Counters()
    taken = Rates(counters)
    taken.enter(caller(rate=Rate(rpm=1)), 0.0)
    with pytest.raises(errors.RateLimited):
        taken.enter(caller(rate=Rate(rpm=1)), 0.0)
    assert counters.rates == {("key", "requests"): 1}


def test_keys_that_come_and_go_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(rates, "KNOWN", 10)
    taken = Rates(metrics.Counters())
    busy = taken.enter(caller(key_id="busy", rate=Rate(concurrency=1)), 0.0)
    for number in range(100):
        taken.enter(caller(key_id=f"k{number}", rate=Rate(rpm=60)), float(number)).end(0, float(number))
        assert len(taken._gauges) <= 12
        assert len(taken._of) <= 11
    with pytest.raises(errors.RateLimited):
        taken.enter(caller(key_id="busy", rate=Rate(concurrency=1)), 100.0)
    busy.end(0, 100.0)
    assert taken.enter(caller(key_id="busy", rate=Rate(concurrency=1)), 100.0)


def test_newcomers_do_not_look_at_all_who_are_busy(monkeypatch):
    monkeypatch.setattr(rates, "KNOWN", 10)
    looks, taken = [], Rates(metrics.Counters())
    monkeypatch.setattr(rates.Gauge, "idle", lambda gauge, now: looks.append(gauge) is not None)
    for number in range(1000):
        taken.enter(caller(key_id=f"k{number}", rate=Rate(concurrency=1)), 0.0)
    assert len(looks) < 3000


def test_a_key_that_was_moved_counts_where_it_is_now():
    taken = Rates(metrics.Counters())
    taken.adopt({"team:free": Rate(rpm=1000), "team:tight": Rate(rpm=1)}, 0.0)
    taken.enter(caller(team_id="free"), 0.0)
    moved = caller(team_id="tight")
    taken.enter(moved, 0.0)
    with pytest.raises(errors.RateLimited):
        taken.enter(moved, 0.0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["enter", "end"]), st.floats(0, 40)), max_size=60))
def test_no_more_run_than_may_and_each_is_given_back_once(steps):
    taken, now = Rates(metrics.Counters()), 0.0
    taken.adopt({"team:t": Rate(concurrency=3, rpm=10)}, now)
    running: dict[str, list[rates.Pass]] = {"a": [], "b": []}
    for who, what, pause in steps:
        now += pause
        if what == "end":
            if running[who]:
                running[who].pop().end(1, now)
            continue
        try:
            one = taken.enter(caller(key_id=who, team_id="t", rate=Rate(concurrency=2, tpm=100)), now)
        except errors.RateLimited:
            continue
        assert one is not None
        running[who].append(one)
        assert len(running[who]) <= 2
        assert sum(map(len, running.values())) <= 3
    assert all(
        gauge.running == (sum(map(len, running.values())) if scope == "team:t" else len(running[scope[4:]]))
        for scope, gauge in taken._gauges.items()
    )


# -- who has no key ----------------------------------------------------------------------------------------------------


def stranger(world: World, key: str = "rubbish", address: str = ELSEWHERE) -> str:
    lane = Client.__new__(Client)
    lane._world, lane.reads, lane.sent, lane.end = world, True, [], None
    head = signals.Head("r", "/v1/completions", [(b"authorization", b"Bearer " + key.encode())], "", address)
    lane.exchange = world.pipeline.open(head, lane)
    return lane.code


def test_an_address_is_heard_until_it_was_wrong_too_often():
    world = World(limits=Limits(failures_address=3))
    assert [stranger(world) for _ in range(4)] == ["invalid_api_key"] * 3 + ["rate_limit_exceeded"]
    assert stranger(world, address="198.51.100.8") == "invalid_api_key"
    assert [stranger(world, address="127.0.0.1") for _ in range(9)] == ["invalid_api_key"] * 9, "a proxy may speak for everybody"
    world.clock.now += 20
    assert stranger(world) == "invalid_api_key"


async def test_the_database_is_not_asked_for_an_address_that_was_wrong_too_often():
    world = World(limits=Limits(failures_address=2))
    known = world.add_key()
    await world.auth.look_up(known, world.clock())
    for _ in range(3):
        stranger(world)
    world.found.clear()
    fresh = world.add_key()
    assert stranger(world, fresh) == "rate_limit_exceeded"
    assert stranger(world, known) == "", "who is known goes on"
    for headers in ([(b"authorization", b"Bearer " + fresh.encode())], [(b"authorization", b"Bearer rubbish")]):
        with pytest.raises(errors.RateLimited, match="without a valid API key"):
            await world.pipeline.identify(headers, "/v1/models", ELSEWHERE)
    assert world.found == []


def test_addresses_are_not_remembered_without_end(monkeypatch):
    monkeypatch.setattr(rates, "KNOWN", 10)
    taken = Rates(metrics.Counters(), 1)
    for number in range(200):
        taken.blame(f"198.51.100.{number}", errors.Unauthenticated(), 0.0)
        assert len(taken._failed) <= 10
    assert isinstance(taken.blame("198.51.100.199", errors.Unauthenticated(), 0.0), errors.RateLimited), "the latest are remembered"
    for number in range(20):
        taken.blame(f"203.0.113.{number}", errors.Unauthenticated(), 1000.0)
    assert len(taken._failed) <= 10


def test_other_errors_are_nobodys_failure():
    taken = Rates(metrics.Counters(), 1)
    wrong = errors.BadRequest()
    assert [taken.blame(ELSEWHERE, wrong, 0.0) for _ in range(3)] == [wrong] * 3
    assert not taken._failed


# -- what clients read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0ms"), (1, "1ms"), (12_000, "12ms"), (999_001, "1s"), (1_000_000, "1s"), (8_640_000, "8.64s"), (59_999_000, "59.999s"),
        (59_999_001, "1m0s"),
        (MINUTE, "1m0s"), (6 * MINUTE, "6m0s"), (6 * MINUTE + 1, "6m1s"), (60 * MINUTE + 12_000_000, "1h0m12s"),
    ],
)  # fmt: skip
def test_durations_look_like_openais(micro, text):
    assert duration(micro) == text


# -- what a key is good for --------------------------------------------------------------------------------------------


def test_a_key_is_good_for_its_models_alone():
    world = World()
    box = Box(world, "box", engine("small-1", "large-1"))
    key = world.add_key(scopes={"models": ["small-*", "medium"]})
    assert world.ask("small-1", key=key).code == ""
    answered(box, 1, 1)
    hidden, absent = world.ask("large-1", key=key), world.ask("largo-1", key=key)
    assert hidden.code == absent.code == "model_not_found"
    assert hidden.error.message.replace("large-1", "largo-1") == absent.error.message, "what is not for it does not exist"


def test_a_key_is_good_for_its_routes_alone_and_hears_so_before_its_body_is_read():
    world = World()
    Box(world, "box", engine("m", kinds=("chat", "embeddings")))
    key = world.add_key(scopes={"routes": ["embeddings"]})
    finished(world.auth.look_up(key, world.clock()))
    assert Client(world, key).code == "route_not_allowed"
    assert Client(world, key, "/v1/embeddings").code == ""


def test_a_key_is_good_from_its_networks_alone():
    world = World()
    key = world.add_key(scopes={"addresses": ["198.51.100.0/24", "2001:db8::/32"]})
    finished(world.auth.look_up(key, world.clock()))
    assert stranger(world, key) == ""
    assert stranger(world, key, "2001:db8::5") == ""
    assert stranger(world, key, "198.51.101.1") == "address_not_allowed"
    assert stranger(world, key, "") == "address_not_allowed"


@pytest.mark.parametrize(
    ("routes", "path", "good"),
    [
        (["manage"], "/api/v1/keys", True),
        (["manage"], "/api/v1", True),
        (["manage"], "/api/v10", False),
        (["models"], "/v1/models/a/b", True),
        (["/v1/"], "/v1/anything", True),
        (["chat"], "/v1/chat/completions", True),
        (["chat"], "/v1/completions", False),
    ],
)
def test_a_route_covers_what_is_below_it(routes, path, good):
    bounds = scope.read({"routes": routes})
    if good:
        bounds.admit(path, "")
        return
    with pytest.raises(errors.Forbidden):
        bounds.admit(path, "")


def test_no_bounds_are_none():
    assert scope.read({}) is None
    assert scope.read({"models": [], "routes": []}) is None
    assert scope.read({"models": ["*"]}).covers("anything")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("models", [""]), ("models", ["x" * 201]), ("models", ["a"] * 101), ("models", ["a\n"]),
        ("routes", ["chats"]), ("addresses", ["10.0.0.1/8"]), ("addresses", ["home"]),
    ],
)  # fmt: skip
def test_bounds_that_make_no_sense_are_refused(field, said):
    with pytest.raises(ValueError, match=r"^must be"):
        scope.written(field, said)


def test_bounds_are_kept_as_they_are_written_shortest():
    assert scope.written("addresses", [" 10.0.0.1", "10.0.0.1/32", "2001:DB8::/32"]) == ["10.0.0.1/32", "10.0.0.1/32", "2001:db8::/32"]
    assert scope.written("routes", ["chat", "chat", "/v1/x"]) == ["chat", "/v1/x"]


def test_the_answer_begins_as_ever():
    """What a key with a rate is sent is what others are sent."""
    world = World()
    box = Box(world)
    client = world.ask(key=world.add_key(rpm=5, tpm=5000), stream=True)
    box.head(data=EVENT)
    box.close()
    assert CHUNK in client.body
