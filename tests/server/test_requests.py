"""What became of requests, on the real server: from the request to the list, the story and its end; who sees which of them."""

import asyncio
import json
from datetime import timedelta

import pytest

from mindgw import clock, config, metrics
from mindgw.control import stories
from mindgw.server import stories as assembly
from mindgw.store import ids, keys
from mindgw.store import stories as stored
from mindgw.store.stories import Choice, Document, Limit, Moment, Story
from mindgw.store.tables import Org
from tests.gateway.world import JSON, Box, World, engine
from tests.server.site import site
from tests.server.test_access import in_place, invite

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}
ANSWER = b'{"choices":[{"message":{"content":"yes"}}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'


async def begin(place, box, key="", **fields):
    """A request that a box has now: the task of its client, its stream, and its id."""
    before = set(box.requests)
    asking = asyncio.create_task(place.http.post(CHAT, json=ASK | fields, headers={"authorization": f"Bearer {key or place.key}"}))
    stream = await place.until(lambda: next(iter(set(box.requests) - before), None))
    return asking, stream, box.requests[stream].meta.request_id


async def served(place, box, key="", **fields):
    """Its id, once it is over."""
    asking, stream, _ = await begin(place, box, key, **fields)
    box.head(200, JSON, ANSWER, stream=stream)
    box.close(stream=stream)
    answer = await place.settled(asking)
    assert answer.status_code == 200
    return answer.headers["x-mindgw-request-id"]


async def listed(place, count=1, headers=None, **query):
    """The list, once it has so many."""
    async with asyncio.timeout(20):
        while True:
            answer = await place.call("GET", "/requests", params=query, headers=headers)
            assert answer.status_code == 200, answer.text
            if len(answer.json()["items"]) >= count:
                return answer.json()["items"]
            await asyncio.sleep(0.02)


async def put(place, number=0, document=None, **fields):
    """One in the database that was over so many seconds ago."""
    at = clock.utcnow() - timedelta(seconds=number)
    facts = {
        "id": ids.new_id(at.timestamp()), "request_id": f"req-{number}", "key_id": "0123456789", "asked": "m", "model": "m",
        "org_id": await place.server.app.state.home.id(), "outcome": "done", "status": 200, "started_at": at,
        "document": stored.pack(document or Document()),
    }  # fmt: skip
    async with place.database.write() as session:
        await stored.append(session, [Story(**(facts | fields))])
    return facts["id"]


@in_place
async def test_a_request_is_told_while_it_runs_and_when_it_is_over(place):
    box = Box(place.world, "box", engine("m", slots=1))
    made = await place.new_key("bot", team="nlp", user="ana@example.org")
    asking, stream, request_id = await begin(place, box, made["key"])
    running = (await place.call("GET", f"/requests/{request_id}")).json()
    assert (running["state"], running["outcome"], running["worker"], running["ended_at"], running["paid"]) == (
        "running",
        "",
        "box",
        None,
        None,
    )
    waiting = asyncio.create_task(place.http.post(CHAT, json=ASK))
    waits = await place.until(lambda: _waiting(place))
    told = (await place.call("GET", f"/requests/{waits}")).json()
    assert (told["state"], told["worker"], told["moments"][-1]["what"], told["moments"][-1]["position"]) == ("waiting", "", "waited", 1)

    box.head(200, JSON, ANSWER, stream=stream)
    box.close(stream=stream)
    assert (await place.settled(asking)).status_code == 200
    over = (await place.call("GET", f"/requests/{request_id}")).json()  # whether it is written down yet or not
    stream = await place.until(lambda: next(iter(box.requests), None))
    box.head(200, JSON, ANSWER, stream=stream)
    box.close(stream=stream)
    await place.settled(waiting)
    second, first = await listed(place, 2)
    assert (first["id"], second["id"]) == (request_id, waits)
    assert {
        "state": "over", "outcome": "done", "status": 200, "code": "", "model": "m", "served_model": "m", "worker": "box", "key": "bot",
        "key_id": made["id"], "user": "ana@example.org", "team": "nlp", "attempts": 1, "tokens_in": 3, "tokens_out": 4, "queued_ms": 0,
    }.items() <= first.items()  # fmt: skip
    assert first["total_ms"] >= first["ttft_ms"] >= 0 and first["ended_at"] >= first["started_at"]
    story = (await place.call("GET", f"/requests/{request_id}")).json()
    assert story == over | {"worker": "box"}
    assert {name: story[name] for name in first} == first
    assert [moment["what"] for moment in story["moments"]] == ["arrived", "identified", "admitted", "sent", "first_byte", "ended"]
    assert [moment["worker"] for moment in story["moments"] if "worker" in moment] == ["box", "box", "box"]
    assert story["paid"] == {"kind": "settled", "cost_usd": "0.00", "tokens_cached": 0, "counted_by": story["paid"]["counted_by"]}
    assert "a secret" not in json.dumps(story) and "yes" not in json.dumps(story)


def _waiting(place):
    return next((entry.id for entry in place.pipeline.lineup() if entry.state == "waiting"), None)


@in_place
async def test_lists_leave_out_what_was_not_asked_for(place):
    made = await place.new_key("bot", team="nlp", user="ana@example.org")
    org = await place.server.app.state.home.id()
    async with place.database.read() as session:
        holder = (await keys.holder(session, made["id"])).key
    facts = {"key_id": made["id"], "team_id": holder.team_id, "user_id": holder.user_id, "org_id": org}
    await put(place, 1, status=502, outcome="failed", error_code="engine_error", total_ms=6000, worker_id="box1", **facts)
    await put(place, 70, asked="best", model="m7", end_user="ella")
    await put(place, 4000, status=429, outcome="failed")
    await put(place, 90_000, status=499, outcome="cancelled", total_ms=400)
    cases = {
        (): [1, 70, 4000, 90_000],
        ("status", "5xx"): [1], ("status", "429"): [4000], ("status", "4xx"): [4000, 90_000],
        ("slow", "5s"): [1], ("slow", "400ms"): [1, 90_000], ("slow", "10000"): [],
        ("model", "m"): [1, 4000, 90_000], ("model", "best"): [70], ("model", "m7"): [70],
        ("key", "bot"): [1], ("key", made["id"]): [1], ("team", "nlp"): [1], ("user", "ana@example.org"): [1], ("user", "ella"): [70],
        ("user", "nobody@x.org"): [],
        ("outcome", "failed"): [1, 4000], ("outcome", "cancelled"): [90_000],
        ("since", "1m"): [1], ("since", "1h"): [1, 70], ("until", "60s"): [70, 4000, 90_000],
        ("since", (clock.utcnow() - timedelta(seconds=3700)).isoformat()): [1, 70],
        ("until", clock.utcnow().date().isoformat()): [1, 70, 4000, 90_000], ("since", "2999-01-01"): [],
    }  # fmt: skip
    for query, found in cases.items():
        answer = await place.call("GET", "/requests", params=dict([query]) if query else {})
        assert [item["id"] for item in answer.json()["items"]] == [f"req-{number}" for number in found], query
    both = await place.call("GET", "/requests", params={"outcome": "failed", "status": "429"})
    assert [item["id"] for item in both.json()["items"]] == ["req-4000"]


@in_place
async def test_pages_join(place):
    made = [await put(place, number) for number in range(5)]
    found, cursor = [], None
    for _ in range(3):
        page = (await place.call("GET", "/requests", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert found == [f"req-{number}" for number in range(5)] and cursor is None and len(set(made)) == 5


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"status": "6xx"}, "status"), ({"status": "20"}, "status"), ({"status": "²00"}, "status"), ({"outcome": "good"}, "outcome"),
        ({"slow": "x"}, "slow"), ({"slow": "9000000000"}, "slow"), ({"since": "yesterday"}, "since"), ({"until": "2026-13-01"}, "until"),
        ({"limit": "0"}, "limit"),
    ],
)  # fmt: skip
@in_place
async def test_what_cannot_be_asked_for_is_said(place, query, param):
    answer = await place.call("GET", "/requests", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@in_place
async def test_names_of_nobody_are_not_found(place):
    for query in ({"key": "nobody"}, {"team": "nobody"}, {"worker": "nobody"}):
        assert (await place.call("GET", "/requests", params=query)).status_code == 404
    for path in ("/requests/req-nobody", "/me/requests/req-nobody"):
        assert (await place.call("GET", path)).status_code == 404


@in_place
async def test_who_sees_which(place):
    """The organisation its own, whoever runs the server all, and everybody what they sent."""
    box = Box(place.world, "box", engine("m", slots=4))
    ana = await place.new_key("ana1", user="ana@example.org", role="user")
    other = await place.new_key("ana2", user="ana@example.org", role="user")
    bob = await place.new_key("bob", user="bob@example.org", role="user")
    watching = await place.new_key("watch", role="viewer")
    request_id = await served(place, box, ana["key"])
    await listed(place, 1)
    seen = {}
    for name, key in (("ana", ana), ("other", other), ("bob", bob), ("watch", watching)):
        headers = {"authorization": f"Bearer {key['key']}"}
        answers = [
            await place.call("GET", path, headers=headers)
            for path in ("/requests", f"/requests/{request_id}", f"/me/requests/{request_id}")
        ]
        seen[name] = [answer.status_code for answer in answers]
    # a key sees what is its own, and not what another key of its person sent
    assert seen == {"ana": [403, 403, 200], "other": [403, 403, 404], "bob": [403, 403, 404], "watch": [200, 200, 404]}

    async with place.database.write() as session:
        session.add(Org(id="acme", name="acme"))
        await session.flush()
        _, theirs = await keys.create(session, keys.NewKey(name="own", org_id="acme", role="admin"), place.server.app.state.secrets.pepper)
    headers = {"authorization": f"Bearer {theirs}"}
    assert (await place.call("GET", "/requests", headers=headers)).json()["items"] == []
    assert (await place.call("GET", f"/requests/{request_id}", headers=headers)).status_code == 404
    asking, stream, running = await begin(place, box)
    assert (await place.call("GET", f"/requests/{running}", headers=headers)).status_code == 404, "nor while it runs"
    box.close("failed", "engine_error", stream=stream)
    await place.settled(asking)
    own = await served(place, box, theirs)
    (mine,) = await listed(place, 1, headers)
    assert (mine["id"], mine["org"]) == (own, "acme")
    assert own in {item["id"] for item in await listed(place, 3)}
    assert (await place.call("GET", f"/requests/{own}")).status_code == 200
    refused = await place.call("GET", "/requests?worker=box", headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours")
    assert (await place.call("GET", "/requests?worker=box")).status_code in {200, 404}


@in_place
async def test_a_person_sees_what_all_their_keys_sent(place):
    box = Box(place.world, "box", engine("m", slots=1))
    session = await invite(place, "eve@x.org")
    made = await place.call("POST", "/keys", json={"name": "eves", "user": "eve@x.org", "role": "user"})
    request_id = await served(place, box, made.json()["key"])
    assert (await place.call("GET", f"/me/requests/{request_id}", headers=session)).json()["id"] == request_id
    another = await served(place, box)
    assert (await place.call("GET", f"/me/requests/{another}", headers=session)).status_code == 404


@in_place
async def test_which_other_machines_were_looked_at_is_for_whoever_runs_the_server(place):
    choice = Choice("score", (("w1", 0.5), ("w2", 0.75)), 700, 300, 4.0, 0.1, 0.2)
    said = Document(
        moments=(Moment(0, "sent", "first", "w1", "m", choice=choice), Moment(5, "ended", status=200)),
        limits=(
            Limit("org:acme", "tokens", 5, "day", "block"),
            Limit("org:acme", "usd", 2_500_000, "month", "soft"),
            Limit("org:acme", "rpm", 60),
        ),
    )
    async with place.database.write() as session:
        session.add(Org(id="acme", name="acme"))
        await session.flush()
        _, theirs = await keys.create(session, keys.NewKey(name="own", org_id="acme", role="admin"), place.server.app.state.secrets.pepper)
    await put(place, 1, said, org_id="acme", worker_id="w1")
    theirs = (await place.call("GET", "/requests/req-1", headers={"authorization": f"Bearer {theirs}"})).json()
    mine = (await place.call("GET", "/requests/req-1")).json()
    own = {"strategy": "score", "prompt_tokens": 700, "cached_tokens": 300, "reading_s": 0.2}
    assert theirs["worker"] == "w1"
    assert theirs["moments"][0]["choice"] == own | {"considered": [], "cold_s": 0.0, "ahead_s": 0.0}, "nor what it had to do for others"
    considered = [{"worker": "w1", "seconds": 0.5}, {"worker": "w2", "seconds": 0.75}]
    assert mine["moments"][0]["choice"] == own | {"considered": considered, "cold_s": 4.0, "ahead_s": 0.1}
    assert mine["limits"] == [
        {"scope": "org:acme", "unit": "tokens", "limit": "5", "period": "day", "on_exceed": "block"},
        {"scope": "org:acme", "unit": "usd", "limit": "2.50", "period": "month", "on_exceed": "soft"},
        {"scope": "org:acme", "unit": "rpm", "limit": "60", "period": "", "on_exceed": ""},
    ]


# -- as long as they are remembered ------------------------------------------------------------------------------------


@in_place
async def test_what_is_too_old_or_too_much_goes(place):
    for number in (1, 2, 3, 86_400 * 8, 86_400 * 6):
        await put(place, number)
    assert await stories.forget(place.database, config.Requests(), clock.utcnow()) == 1
    assert await stories.forget(place.database, config.Requests(most=2), clock.utcnow()) == 2
    assert [item["id"] for item in await listed(place, 2)] == ["req-1", "req-2"]
    for number in range(10, 15):
        await put(place, number)
    with pytest.MonkeyPatch.context() as patch:  # look by look, and each look in steps
        patch.setattr(stored, "LOT", 3)
        patch.setattr(stored, "STEP", 2)
        assert await stories.forget(place.database, config.Requests(keep_days=0), clock.utcnow()) == 7
    assert (await place.call("GET", "/requests")).json()["items"] == []


async def test_where_nothing_is_to_be_kept_only_those_under_way_are_told(tmp_path):
    async with site(tmp_path / "data", "requests:\n  keep_days: 0\n") as place:
        box = Box(place.world, "box", engine("m", slots=1))
        asking, stream, request_id = await begin(place, box)
        assert (await place.call("GET", f"/requests/{request_id}")).json()["state"] == "running"
        box.head(200, JSON, ANSWER, stream=stream)
        box.close(stream=stream)
        await place.settled(asking)
        assert (await place.call("GET", f"/requests/{request_id}")).status_code == 404
        assert (await place.call("GET", "/requests")).json()["items"] == []


async def test_what_is_over_at_the_end_is_written_down(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world, "box", engine("m", slots=1))
        request_id = await served(place, box)
    async with site(tmp_path / "data") as place:
        assert (await place.call("GET", f"/requests/{request_id}")).json()["outcome"] == "done"


@in_place
async def test_one_that_cannot_be_stored_keeps_back_no_other(place, caplog):
    world = World()
    box = Box(world, "box", engine("m", slots=1))
    for _ in range(3):
        world.ask("m")
        box.head(content_type=JSON, data=ANSWER)
        box.close()
    kept, (writing,), _ = assembly.registry(place.server.app.state.config, place.database, metrics.Counters())
    facts = list(world.stories._facts)
    facts[1].tally.worker = "\ud800"
    for each in facts:
        kept.add(each)
    assert await writing.once() and not kept.unwritten
    assert {item["id"] for item in await listed(place, 2)} == {facts[0].id, facts[2].id}
    (said,) = [record for record in caplog.records if "cannot be told and is not kept" in record.message]
    assert facts[1].id in said.message


@in_place
async def test_the_scrape_counts_those_that_are_not_kept(place):
    place.pipeline.accounts.meter.counters.stories_lost = 7
    assert "mindgw_stories_lost_total 7.0" in (await place.http.get("/metrics")).text
