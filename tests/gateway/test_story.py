"""What is told of a request is what happened to it, and nothing that it said."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.config import Limits, Timeouts
from mindgw.core import routing
from mindgw.core.routing import Rules
from mindgw.gateway import moments, signals, story
from mindgw.gateway.moments import Samples, note
from mindgw.store import ids, stories
from tests.gateway.test_hedge import fleet, late, obeys
from tests.gateway.test_replay import Shop
from tests.gateway.world import EVENT, JSON, SSE, Box, Client, World, engine, finished

ANSWER = b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'


def kept(world: World) -> list[stories.Story]:
    """The stories of all requests that are over, as they are written."""
    found: list[stories.Story] = []

    async def write(facts):
        found.extend(story.written(facts))

    finished(world.stories.flush(write))
    return found


def of(world: World, client) -> tuple[stories.Story, stories.Document]:
    (told,) = [each for each in kept(world) if each.request_id == client.request_id]
    return told, stories.unpack(told.document)


def whats(document) -> list[str]:
    return [moment.what for moment in document.moments]


def answer(box: Box, data: bytes = ANSWER) -> None:
    box.head(content_type=JSON, data=data)
    box.close()


def test_placed_at_once():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    client = world.ask("m", max_tokens=9)
    world.clock.now += 2.0
    answer(box)
    told, document = of(world, client)
    assert whats(document) == ["arrived", "identified", "admitted", "sent", "first_byte", "ended"]
    assert [moment.at for moment in document.moments] == [0, 0, 0, 0, 2_000_000, 2_000_000]
    assert document.moments[1].kind == "memory"
    sent, ended = document.moments[3], document.moments[-1]
    assert (sent.kind, sent.worker, sent.model, sent.choice) == ("first", "box", "m", None)
    assert (ended.code, ended.status, ended.worker) == ("done", 200, "box")
    assert (told.outcome, told.status, told.error_code, told.attempts, told.worker_id) == ("done", 200, "", 1, "box")
    assert (told.tokens_in, told.tokens_out, told.queued_ms, told.ttft_ms, told.total_ms, told.speed) == (7, 3, 0, 2000, 2000, 1.5)
    assert (told.asked, told.model, told.org_id, told.key_id) == ("m", "m", "o", client.exchange.caller.key_id)
    assert (document.endpoint, document.stream, document.priority, document.billed, document.cap) == (
        "/v1/chat/completions", False, "normal", "settled", 9,
    )  # fmt: skip
    assert document.size > 20 and document.prompt > 0
    assert told.id[:10] == ids.bound(client.exchange._tally.started + 2.0)[:10]


def test_a_key_that_had_to_be_looked_up():
    world = World()
    box = Box(world, "box")
    world.auth.forget_all()
    client_key = world.add_key()

    async def asked():
        client = Client(world, client_key)
        world.clock.now += 0.25
        for task in list(world.pipeline._tasks):
            await task
        client.post(signals.Received(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'))
        world.pump()
        return client

    client = asyncio.run(asked())
    answer(box)
    _, document = of(world, client)
    assert [(moment.what, moment.at, moment.kind) for moment in document.moments[:3]] == [
        ("arrived", 0, ""), ("identified", 250_000, "database"), ("admitted", 250_000, ""),
    ]  # fmt: skip


def test_waited():
    """It stood in line, was told where, and had its turn."""
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    first, second = world.ask("m"), world.ask("m", stream=True)
    third = world.ask("m", stream=True)
    world.passes(12)
    answer(box)
    world.passes(3)
    answer(box, b"")
    everything = {each.request_id: each for each in kept(world)}
    assert set(everything) == {first.request_id, second.request_id}
    told = everything[second.request_id]
    document = stories.unpack(told.document)
    waited = next(moment for moment in document.moments if moment.what == "waited")
    assert (waited.at, waited.position) == (0, 1)
    stood = [moment for moment in document.moments if moment.what == "stood"]
    assert [(moment.at, moment.position) for moment in stood] == [(5_000_000, 1), (10_000_000, 1)]
    assert whats(document).index("sent") > max(whats(document).index("stood"), whats(document).index("waited"))
    assert told.queued_ms == 12_000
    live = world.pipeline.story(third.request_id)
    positions = [moment.position for moment in stories.unpack(live.document).moments if moment.what in {"waited", "stood"}]
    assert positions == [2, 2, 2, 1] and live.outcome == ""


def test_failed_over_twice():
    world = World()
    boxes = {name: Box(world, name, engine("m", slots=1)) for name in ("a", "b", "c")}
    client = world.ask("m", stream=True)
    tried = []
    for end in ("lost", "failed"):
        (name,) = [name for name, box in boxes.items() if box.requests]
        tried.append(name)
        world.clock.now += 1.0
        box = boxes.pop(name)
        if end == "lost":
            box.cut()
        else:
            box.head(500, JSON, b'{"error":{"message":"out of memory"}}')
            box.close("failed", "engine_error")
    ((last, box),) = [(name, box) for name, box in boxes.items() if box.requests]
    world.clock.now += 1.0
    box.head(data=EVENT)
    world.clock.now += 1.0
    box.data(EVENT)
    box.close()
    told, document = of(world, client)
    assert whats(document) == [
        "arrived", "identified", "admitted", "sent", "failed", "sent", "first_byte", "failed", "sent",
        "first_byte", "ended",
    ]  # fmt: skip
    sent = [moment for moment in document.moments if moment.what == "sent"]
    assert [(moment.kind, moment.worker, moment.at) for moment in sent] == [
        ("first", tried[0], 0), ("retry", tried[1], 1_000_000), ("retry", last, 2_000_000),
    ]  # fmt: skip
    assert [moment.worker for moment in document.moments if moment.what == "first_byte"] == [tried[1], last]
    failed = [moment for moment in document.moments if moment.what == "failed"]
    assert [(moment.worker, moment.code, moment.status) for moment in failed] == [
        (tried[0], "worker_lost", 0), (tried[1], failed[1].code, 500),
    ]  # fmt: skip
    assert failed[1].code not in {"", "worker_lost"}
    assert (told.attempts, told.worker_id, told.outcome, told.ttft_ms) == (3, last, "done", 3000)
    considered = sent[0].choice.considered
    assert {worker for worker, _ in considered} == {"a", "b", "c"} and sent[0].choice.strategy == "score"
    assert {worker for worker, _ in sent[1].choice.considered} == {"a", "b", "c"} - {tried[0]}
    assert sent[2].choice is None or {worker for worker, _ in sent[2].choice.considered} == {last}


def test_turned_down_any_number_of_times():
    """What stands in the middle is counted."""
    world = World(Timeouts(queue=300_000))
    box = Box(world, "box", engine("m", slots=1))
    client = world.ask("m")
    for _ in range(100):
        box.close("busy")
        world.passes(10)
        assert box.requests
    answer(box)
    told, document = of(world, client)
    assert told.attempts == 101
    assert len(document.moments) <= moments.MOST + 8
    (omitted,) = [moment for moment in document.moments if moment.what == "omitted"]
    noted = [moment.what for moment in document.moments if moment.what not in {"arrived", "identified", "admitted", "first_byte", "ended"}]
    assert len(noted) - 1 + omitted.count == 301  # sent, turned down and back in line a hundred times, then sent
    assert [moment.at for moment in document.moments] == sorted(moment.at for moment in document.moments)
    assert document.moments[-3].what == "sent" and document.moments[-1].what == "ended"


@pytest.mark.parametrize("case", ["model", "quota", "full"])
def test_refused(case):
    world = World(limits=Limits(queue=1))
    Box(world, "box", engine("m", slots=1))
    if case == "quota":
        world.limit("org:o", 10)
        client = world.ask("m", messages=[{"role": "user", "content": "x" * 400}])
    elif case == "model":
        client = world.ask("none")
    else:
        world.ask("m")
        world.ask("m")
        client = world.ask("m")
    told, document = of(world, client)
    code = {"model": "model_not_found", "quota": "insufficient_quota", "full": "queue_full"}[case]
    assert (told.outcome, told.error_code, told.status, told.attempts, told.worker_id) == ("failed", code, client.error.status, 0, "")
    assert whats(document)[-1] == "ended" and "sent" not in whats(document)
    assert (document.moments[-1].code, document.moments[-1].status, document.moments[-1].worker) == (code, client.error.status, "")
    assert document.billed == "refused"
    if case == "quota":
        assert [(limit.scope, limit.unit, limit.limit, limit.mode) for limit in document.limits] == [("org:o", "tokens", 10, "block")]


def test_nobody_is_told_of_who_has_no_good_key():
    world = World()
    Box(world, "box")
    client = world.ask("m")
    refused = type(client)(world, "nonsense")
    assert refused.error is not None
    assert [told for told in kept(world) if told.request_id == refused.request_id] == []
    assert world.pipeline.story(refused.request_id) is None


def test_cancelled_by_an_operator():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    client = world.ask("m")
    world.clock.now += 3.0
    assert world.pipeline.cancel_request(client.request_id)
    world.clock.now += 1.0
    world.pump()
    box.close("cancelled")
    told, document = of(world, client)
    assert (told.outcome, told.error_code) == ("failed", "cancelled_by_operator")
    assert [(moment.what, moment.at, moment.worker, moment.code) for moment in document.moments[-2:]] == [
        ("left", 3_000_000, "box", "cancelled_by_operator"), ("ended", 4_000_000, "box", "cancelled_by_operator"),
    ]  # fmt: skip


def test_client_gone_in_the_middle_of_a_stream():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    client = world.ask("m", stream=True)
    world.clock.now += 1.0
    box.head(data=EVENT)
    world.clock.now += 1.0
    for _ in range(10):
        box.data(EVENT)
    client.post(signals.Gone())
    world.pump()
    world.clock.now += 2.0
    box.close("cancelled")
    told, document = of(world, client)
    assert (told.outcome, told.error_code, told.status) == ("cancelled", "client_disconnected", client.exchange._tally.status)
    assert whats(document)[-3:] == ["first_byte", "left", "ended"]
    assert (document.moments[-2].code, document.moments[-2].at) == ("client_disconnected", 2_000_000)
    assert document.billed == "settled" and told.tokens_out >= 10
    assert told.speed == told.tokens_out - 1, "the second until it left counts, what came later does not"


def test_a_route_that_fell_back():
    world = World()
    a, b = Box(world, "a", engine("big")), Box(world, "b", engine("small"))
    made = routing.Route(name="best", match="best", targets=(routing.Target("big"),), fallbacks=(routing.Target("small"),))
    world.pipeline.adopt_routes(Rules((made,)), {})
    client = world.ask("best")
    world.clock.now += 1.0
    a.head(500, JSON, b'{"error":{"message":"no"}}')
    a.close("failed", "engine_error")
    answer(b)
    told, document = of(world, client)
    assert (told.asked, told.model, told.worker_id, document.route, told.outcome) == ("best", "small", "b", "best", "done")
    assert whats(document) == ["arrived", "identified", "admitted", "sent", "first_byte", "failed", "moved", "sent", "first_byte", "ended"]
    assert document.moments[6].model == "small"
    assert document.served_by.startswith("b; model=small")


def test_one_that_runs_is_told_so_far():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    runs, waits = world.ask("m"), world.ask("m")
    world.clock.now += 1.0
    told = world.pipeline.story(runs.request_id)
    assert (told.outcome, told.status, told.worker_id, told.attempts) == ("", 0, "box", 1)
    assert whats(stories.unpack(told.document))[-1] == "sent"
    told = world.pipeline.story(waits.request_id)
    assert (told.outcome, told.worker_id) == ("", "")
    assert whats(stories.unpack(told.document))[-1] == "waited"
    answer(box)
    over = world.pipeline.story(runs.request_id)
    assert over.outcome == "done", "it is found until it is written"
    assert kept(world)
    assert world.pipeline.story(runs.request_id) is None
    assert world.pipeline.story("req-nobody") is None


def test_funding_is_told():
    """It waits for the database with its slot."""

    async def asked():
        world = World()
        box = Box(world, "box", engine("m", slots=1))
        world.limit("org:o", 10**9)
        client = world.ask("m")
        assert client.state is signals.FUNDING
        world.clock.now += 0.5
        for task in list(world.pipeline._tasks):
            await task
        world.pump()
        answer(box)
        return world, client

    world, client = asyncio.run(asked())
    _, document = of(world, client)
    found = [(moment.what, moment.at, moment.worker) for moment in document.moments]
    assert found[3:6] == [("funding", 0, "box"), ("funded", 500_000, ""), ("sent", 500_000, "box")]


def test_of_two_that_had_it_the_first_byte_of_the_faster_one_is_told_before_the_end_of_the_other():
    world = fleet()
    client, first, second = late(world)
    second.head()
    second.data(b": one moment\n")  # a first byte, and no answer yet
    world.clock.now += 0.5
    second.data(EVENT)
    world.clock.now += 1.0
    second.close()
    obeys(first)
    _, document = of(world, client)
    found = [(moment.what, moment.at, moment.worker) for moment in document.moments[3:]]
    assert found == [
        ("sent", 0, first.name), ("sent", 1_000_000, second.name), ("first_byte", 1_000_000, second.name),
        ("failed", 1_500_000, first.name), ("ended", 2_500_000, second.name),
    ]  # fmt: skip


# -- how many there are ------------------------------------------------------------------------------------------------


class Crowd:
    def __init__(self, monkeypatch, most=40, plain=20):
        monkeypatch.setattr(story, "MOST", most)
        monkeypatch.setattr(story, "PLAIN", plain)
        self.world = World()
        self.box = Box(self.world, "box", engine("m", slots=1))

    def plain(self, **whose):
        self.world.ask("m", **whose)
        answer(self.box)

    def eventful(self, **whose):
        first, _ = self.world.ask("m", **whose), self.world.ask("m", **whose)
        self.world.clock.now += 1.0
        answer(self.box)
        answer(self.box)
        return first

    @property
    def unwritten(self):
        return self.world.stories.unwritten

    @property
    def lost(self):
        return self.world.stories._counters.stories_lost


def test_of_too_many_those_that_nothing_happened_to_are_only_counted(monkeypatch):
    crowd = Crowd(monkeypatch)
    for _ in range(13):
        crowd.plain()
    assert (crowd.unwritten, crowd.lost) == (10 + 1, 2)
    for _ in range(100):
        crowd.eventful()
    assert crowd.unwritten == 20 + 1, "those that waited have more room, and that is bounded, too"
    assert crowd.lost > 50
    kept(crowd.world)
    crowd.plain()
    assert crowd.unwritten == 1


def test_however_many_one_key_has_there_is_room_for_those_of_others(monkeypatch):
    crowd = Crowd(monkeypatch)
    keys = [crowd.world.add_key() for _ in range(30)]
    for _ in range(50):
        crowd.plain()
    for key in keys[:5]:
        crowd.plain(key=key)
    assert (crowd.unwritten, crowd.lost) == (10 + 1 + 5, 39)
    for _ in range(50):
        crowd.eventful()
    assert crowd.unwritten == 20 + 1, "with the one that it had in the other half before"
    for key in keys[5:10]:
        crowd.eventful(key=key)
    assert crowd.unwritten == 21 + 5 * 2
    for key in keys[5:]:
        crowd.eventful(key=key)
    assert crowd.unwritten == 40
    kept(crowd.world)
    assert not crowd.world.stories._late


def test_whoever_waited_for_a_first_byte_may_ask_why(monkeypatch):
    crowd = Crowd(monkeypatch, plain=0)
    crowd.plain()
    assert crowd.world.stories.unwritten == 0
    slow = crowd.world.ask("m")
    crowd.world.clock.now += 1.5
    answer(crowd.box)
    assert [told.request_id for told in kept(crowd.world)] == [slow.request_id]


def test_refusals_of_one_key_are_bounded_by_the_second():
    world = World()
    for _ in range(150):
        world.ask("none")
    assert world.stories.unwritten == story.REFUSED
    world.clock.now += 1.0
    world.ask("none")
    assert world.stories.unwritten == story.REFUSED + 1
    world.ask("none", key=world.add_key())
    assert world.stories.unwritten == story.REFUSED + 2
    assert world.stories._counters.stories_lost == 140
    kept(world)
    assert not world.stories._refusals._left_out


def test_what_the_database_refuses_is_offered_again():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    for _ in range(3):
        world.ask("m")
        answer(box)

    async def away(facts):
        raise OSError("the database is away")

    with pytest.raises(OSError, match="away"):
        finished(world.stories.flush(away))
    assert world.stories.unwritten == 3 and len(kept(world)) == 3 and world.stories.unwritten == 0


@given(st.lists(st.integers(min_value=0, max_value=5), max_size=300))
def test_moments_are_few_and_none_is_lost_in_silence(kinds):
    found: list[moments.Moment] = []
    for number, _ in enumerate(kinds):
        note(found, (moments.SENT, float(number)))
    assert len(found) <= moments.MOST
    counted = sum(moment[2] if moment[0] == moments.OMITTED else 1 for moment in found)
    assert counted == len(kinds)
    assert sum(moment[0] == moments.OMITTED for moment in found) <= 1
    times = [moment[1] for moment in found]
    assert times == sorted(times)
    if kinds:
        assert found[-1][1] == len(kinds) - 1


@given(st.integers(min_value=0, max_value=5000))
def test_samples_are_few_and_spread(count):
    samples = Samples()
    for number in range(count):
        samples.add(float(number), 1, None)
    assert len(samples.taken) <= Samples.MOST
    assert bool(samples.taken) == bool(count)
    times = [now for now, *_ in samples.taken]
    assert times == sorted(set(times))
    if count > 200:
        steps = {round(later - earlier) for earlier, later in pairwise(times)}
        assert max(steps) <= 4 * count / Samples.MOST + 1


# -- what it never tells -----------------------------------------------------------------------------------------------

MARKS = st.text(st.characters(categories=("Lu", "Ll", "Nd")), min_size=12, max_size=40)


@given(
    mark=MARKS,
    end=st.sampled_from(["done", "engine_says", "broken", "cancelled", "lost", "refused", "event", "gone"]),
    stream=st.booleans(),
)
def test_nothing_of_the_prompt_or_the_answer_is_in_it(mark, end, stream):
    mark = f"marker{mark}"
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    fields = {"model": "none"} if end == "refused" else {}
    client = world.ask(
        stream=stream, messages=[{"role": "user", "content": f"my {mark} is"}], user="u", prompt_cache_key="c", stop=[mark],
        **({"model": "m"} | fields),
    )  # fmt: skip
    world.clock.now += 1.0
    text = json.dumps({"choices": [{"delta": {"content": mark}, "message": {"content": mark}}]}).encode()
    if end in {"done", "gone"}:
        box.head(content_type=SSE if stream else JSON, data=b"data: %s\n\n" % text if stream else text)
        client.post(signals.Gone()) if end == "gone" else None
        world.pump()
        box.close("done" if end == "done" else "cancelled")
    elif end == "engine_says":
        box.head(400, JSON, json.dumps({"error": {"message": f"no {mark}", "code": mark, "type": mark}}).encode())
        box.close()
    elif end == "broken":
        box.close("failed", "engine_error", message=f"{mark} is too much")
    elif end == "event":
        box.head(data=b'data: {"error":{"message":"%s"}}\n\n' % mark.encode())
        box.close()
    elif end == "cancelled":
        world.pipeline.cancel_request(client.request_id)
        world.pump()
        box.close("cancelled")
    elif end == "lost":
        box.cut()
        world.passes(400)
    live = world.pipeline.story(client.request_id)
    found = [*kept(world), *([live] if live is not None else [])]
    assert found
    for told in found:
        for value in [getattr(told, name) for name in told.__struct_fields__]:
            assert mark not in str(value)
        assert mark.encode() not in told.document
        assert "user" not in stories.unpack(told.document).__struct_fields__


def test_what_is_kept_holds_neither_body_nor_frames():
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    world.ask("m")
    box.close("failed", "engine_error")
    (facts,) = world.stories._facts
    assert facts.tally.body is None and facts.tally.wrong is None
    assert facts.ask.peek.text is None or not any(
        isinstance(getattr(facts.ask.peek.text, name), str | bytes) for name in facts.ask.peek.text.__struct_fields__
    )


def test_names_that_no_database_takes_are_made_fit():
    world = World()
    name = "m\x07\u2028" + "x" * 400
    box = Box(world, "box", engine("m"))
    world.pipeline.adopt_routes(Rules((routing.Route(name="any", match="m*", targets=(routing.Target("m"),)),)), {})
    world.ask(name)
    answer(box)
    (told,) = kept(world)
    assert (told.asked, told.model) == ("m  " + "x" * 253, "m")


async def test_an_answer_that_is_given_again():
    """No worker has it, and the story says what it was."""
    shop = Shop()
    await shop.ask()
    shop.answer()
    again = await shop.ask()
    told, document = of(shop.world, again)
    assert (told.outcome, told.status, told.attempts, told.worker_id, told.asked) == ("replayed", 200, 0, "", "m")
    assert whats(document) == ["arrived", "identified", "ended"] and document.billed == "refused"
