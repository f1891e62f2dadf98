"""The queue from the management API, on the real server."""

import asyncio

import pytest
from sqlmodel import select

from mindgw.control.queue import Lists
from mindgw.errors import BadRequest, Draining
from mindgw.store import audit
from mindgw.store.tables import AuditEntry
from tests.gateway.world import JSON, Box, engine
from tests.server.site import Site, site

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class Crowd:
    """A server whose one slot is taken, and requests that wait for it."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.box = Box(place.world, "box", engine("m", "n", slots=1))
        self._asking: dict[str, asyncio.Task] = {}

    async def ask(self, key: str = "", **fields) -> str:
        """One more request; its id."""
        headers = {"authorization": f"Bearer {key or self.place.key}"}
        asking = asyncio.create_task(self.place.http.post(CHAT, json={**ASK, **fields}, headers=headers))
        (id,) = await self.place.until(lambda: {entry.id for entry in self.place.pipeline.lineup()} - self._asking.keys())
        self._asking[id] = asking
        return id

    async def answer(self, id: str):
        """What the client of a request was answered."""
        return await self.place.settled(self._asking[id])

    async def serve(self) -> None:
        """The engine answers what it has."""
        await self.place.until(lambda: self.box.requests)
        self.box.head(200, JSON, b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}')
        self.box.close()

    async def get(self, path: str):
        found = await self.place.call("GET", path)
        assert found.status_code == 200, found.text
        return found.json()

    async def order(self) -> list[str]:
        return [entry["id"] for entry in (await self.get("/queue"))["items"]]

    async def audited(self) -> list[tuple[str, str, str]]:
        async with self.place.database.read() as session:
            rows = (await session.exec(select(AuditEntry).order_by(AuditEntry.id))).all()
        return [(row.action, row.object, row.actor) for row in rows if row.action.startswith("queue.")]

    async def end(self) -> None:
        for entry in self.place.pipeline.lineup():
            self.place.pipeline.cancel_request(entry.id)
        await asyncio.gather(*self._asking.values())


@pytest.fixture
async def queue(tmp_path):
    """A crowd, kept by one task from its beginning to its end: the application's lifespan asks for that."""
    ready, over = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def keep() -> None:
        async with site(tmp_path / "data") as place:
            made = Crowd(place)
            ready.set_result(made)
            await over.wait()
            await made.end()

    keeper = asyncio.create_task(keep())
    await asyncio.wait([ready, keeper], return_when=asyncio.FIRST_COMPLETED)
    yield ready.result() if ready.done() else keeper.result()
    over.set()
    await keeper


async def test_who_waits_is_listed_in_the_order_of_their_turns_with_the_reason(queue):
    ids = [await queue.ask() for _ in range(3)]
    listed = (await queue.get("/queue"))["items"]
    assert [(entry["id"], entry["position"], entry["state"]) for entry in listed] == [(ids[1], 1, "waiting"), (ids[2], 2, "waiting")]
    assert all("no free slot 1/1" in entry["reason"] for entry in listed)
    everybody = (await queue.get("/queue?running=true"))["items"]
    assert [(entry["id"], entry["worker"]) for entry in everybody] == [(ids[1], ""), (ids[2], ""), (ids[0], "box")]


async def test_a_list_has_pages_that_miss_nobody_who_stays(queue):
    ids = [await queue.ask() for _ in range(7)][1:]
    first = await queue.get("/queue?limit=2")
    assert [entry["id"] for entry in first["items"]] == ids[:2]
    await queue.serve()
    await queue.place.until(lambda: queue.box.requests)
    second = await queue.get(f"/queue?limit=2&cursor={first['next']}")
    assert [(entry["id"], entry["position"]) for entry in second["items"]] == [(ids[2], 2), (ids[3], 3)]
    assert await queue.get(f"/queue?limit=2&cursor={first['next']}") != {"items": [], "next": None}  # as often as one likes
    await queue.place.call("DELETE", f"/queue/{ids[4]}")
    last = await queue.get(f"/queue?limit=2&cursor={second['next']}")
    assert [entry["id"] for entry in last["items"]] == [ids[5]] and last["next"] is None
    assert (await queue.get("/queue?limit=1000"))["next"] is None


async def test_pages_know_what_was_wanted(queue):
    key = await queue.place.new_key("bot", team="nlp", user="a@b.c")
    mine = []
    for number in range(6):
        id = await queue.ask(key["key"] if number % 2 else "")
        mine += [id] if number % 2 else []
    page = await queue.get("/queue?limit=2&team=nlp")
    rest = await queue.get(f"/queue?limit=2&cursor={page['next']}")
    assert {entry["id"] for entry in page["items"] + rest["items"]} == set(mine) and rest["next"] is None


async def test_a_list_may_have_some_alone(queue):
    key = await queue.place.new_key("bot", team="nlp", user="a@b.c")
    running, mine, other = await queue.ask(), await queue.ask(key["key"]), await queue.ask(model="n")
    for query, wanted in (
        ("team=nlp", [mine]), ("user=a%40b.c", [mine]), ("key=bot", [mine]), (f"key={key['id']}", [mine]), ("model=n", [other]),
        ("model=m", [mine]), ("state=running", [running]), ("state=waiting&running=true&model=n", [other]), ("team=none", []),
        ("state=all&model=m", [mine, running]), ("running=true&model=m", [mine, running]), ("team=nlp&model=n", []),
    ):  # fmt: skip
        assert [entry["id"] for entry in (await queue.get(f"/queue?{query}"))["items"]] == wanted, query


async def test_a_page_that_is_not_kept_is_refused(queue):
    queue.place.server.app.state.lists.keep(["x"])
    for cursor in ("", "x", "0123456789abcdef.0", "0123456789abcdef.", "..", "%01", "1" * 64, f"{'0' * 16}.99999999999"):
        refused = await queue.place.call("GET", f"/queue?cursor={cursor}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cursor"), cursor
    for query, param in (("state=asleep", "state"), ("limit=0", "limit"), (f"model={'m' * 513}", "model")):
        refused = await queue.place.call("GET", f"/queue?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), query


def test_few_lists_are_kept():
    lists = Lists()
    first = lists.keep(["a", "b"])
    others = [lists.keep(["x"]) for _ in range(7)]
    assert lists.page(first, 1) == (["a"], first[:-1] + "1")
    lists.keep(["y"])  # the one that was not read for longest goes
    assert lists.page(first[:-1] + "1", 1) == (["b"], None)
    with pytest.raises(BadRequest, match="not kept"):
        lists.page(others[0], 1)
    assert lists.page(f"{first[:-1]}9", 5) == ([], None)


async def test_a_request_that_is_ending_is_not_cancelled_again(queue):
    id = await queue.ask()
    assert (await queue.place.call("DELETE", f"/queue/{id}")).status_code == 200
    await queue.answer(id)
    refused = await queue.place.call("DELETE", f"/queue/{id}")  # its box has not confirmed the end
    assert (refused.status_code, "is over" in refused.json()["error"]["message"]) == (404, True)
    assert [action for action, _, _ in await queue.audited()] == ["queue.cancel"]
    queue.box.close("cancelled")


async def test_one_request_shows_whose_it_is(queue):
    key = await queue.place.new_key("bot", team="nlp", user="a@b.c", priority="batch")
    await queue.ask()
    id = await queue.ask(key["key"])
    shown = await queue.get(f"/queue/{id}")
    assert shown["key_id"] == key["id"]
    assert {
        "id": id,
        "state": "waiting",
        "team": "nlp",
        "user": "a@b.c",
        "key": "bot",
        "priority": "batch",
        "model": "m",
    }.items() <= shown.items()


async def test_a_cancelled_request_ends_with_a_reason_that_no_client_tries_again(queue):
    running, waiting = await queue.ask(), await queue.ask()
    for id in (waiting, running):
        gone = await queue.place.call("DELETE", f"/queue/{id}")
        assert (gone.status_code, gone.json()["id"]) == (200, id)
        answer = await queue.answer(id)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cancelled_by_operator")
        assert answer.headers["x-should-retry"] == "false"
    actor = queue.place.key.split("_")[1]
    assert await queue.audited() == [("queue.cancel", waiting, actor), ("queue.cancel", running, actor)]


async def test_a_bumped_request_is_before_all_others(queue):
    ids = [await queue.ask() for _ in range(4)]
    bumped = await queue.place.call("POST", f"/queue/{ids[3]}/bump")
    assert (bumped.json()["position"], bumped.json()["priority"]) == (1, "bumped")
    assert await queue.order() == [ids[3], ids[1], ids[2]]
    await queue.serve()
    await queue.place.until(lambda: queue.box.requests)
    assert await queue.order() == [ids[1], ids[2]]
    assert [(action, what) for action, what, _ in await queue.audited()] == [("queue.bump", ids[3])]


async def test_who_runs_already_cannot_be_bumped(queue):
    running = await queue.ask()
    refused = await queue.place.call("POST", f"/queue/{running}/bump")
    assert (refused.status_code, "does not wait" in refused.json()["error"]["message"]) == (404, True)
    assert await queue.audited() == []


async def test_who_is_not_there_is_not_found_whatever_the_name(queue):
    for id in ("req-nothing", "x" * 300, "%01%1b[2J", "..%2fkeys", "%F0%9F%92%A9"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/bump")):
            refused = await queue.place.call(method, f"/queue/{id}{path}")
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (404, "not_found"), (method, id)
            assert len(error["message"]) < 200 and error["message"].isprintable()
    assert await queue.audited() == []


async def test_a_pause_holds_everybody_until_it_ends(queue):
    paused = await queue.place.call("POST", "/queue/pause", json={})
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    id = await queue.ask()
    (entry,) = (await queue.get("/queue"))["items"]
    assert entry["reason"] == "paused by an operator"
    resumed = await queue.place.call("POST", "/queue/resume", json={})
    assert resumed.json()["paused"] is False
    await queue.serve()
    assert (await queue.answer(id)).status_code == 200
    assert [(action, what) for action, what, _ in await queue.audited()] == [("queue.pause", "*"), ("queue.resume", "*")]


@pytest.fixture
def unwritable(queue, monkeypatch):
    """The audit log takes nothing."""

    def fails(*_, **__):
        raise Draining("The disk is full.", code="database_unavailable")

    monkeypatch.setattr(audit, "record", fails)


async def test_what_cannot_be_recorded_is_not_done(queue, unwritable):
    ids = [await queue.ask() for _ in range(4)]
    order = await queue.order()
    for method, path, body in [
        ("POST", "/queue/pause", {}),
        ("POST", "/queue/pause", {"model": "m"}),
        ("POST", f"/queue/{ids[3]}/bump", None),
        ("DELETE", f"/queue/{ids[2]}", None),
    ]:
        assert (await queue.place.call(method, path, json=body)).status_code == 503
    stats = await queue.get("/queue/stats")
    assert (stats["paused"], stats["paused_models"], await queue.order()) == (False, [], order)
    assert all(queue.place.pipeline.is_under_way(id) for id in ids)
    queue.place.pipeline.pause_queue()
    assert (await queue.place.call("POST", "/queue/resume", json={})).status_code == 503
    assert (await queue.get("/queue/stats"))["paused"] is True
    queue.place.pipeline.resume_queue()


@pytest.mark.parametrize(("verb", "path"), [("DELETE", ""), ("POST", "/bump")])
async def test_what_ended_while_it_was_recorded_is_told_as_refused(queue, monkeypatch, verb, path):
    ids = [await queue.ask() for _ in range(3)]
    monkeypatch.setattr(queue.place.pipeline, "cancel_request" if verb == "DELETE" else "bump_request", lambda id: False)
    assert (await queue.place.call(verb, f"/queue/{ids[2]}{path}")).status_code == 404
    monkeypatch.undo()
    async with queue.place.database.read() as session:
        rows = (await session.exec(select(AuditEntry).order_by(AuditEntry.seq))).all()
    assert [row.outcome for row in rows if row.object == ids[2]] == ["ok", "refused"]


async def test_a_pause_of_one_model_holds_no_other(queue):
    stats = (await queue.place.call("POST", "/queue/pause", json={"model": "m"})).json()
    assert (stats["paused"], stats["paused_models"], stats["paused_unserved"]) == (False, ["m"], [])
    held = await queue.ask()
    other = await queue.ask(model="n")
    await queue.serve()
    assert (await queue.answer(other)).status_code == 200
    assert await queue.order() == [held]
    await queue.place.call("POST", "/queue/resume", json={"model": "m"})
    await queue.serve()
    assert (await queue.answer(held)).status_code == 200


async def test_the_figures_count_who_waits_and_runs(queue):
    key = await queue.place.new_key("b", priority="batch")
    await queue.ask(), await queue.ask(), await queue.ask(key["key"])
    stats = await queue.get("/queue/stats")
    assert (stats["waiting"], stats["running"]) == (2, 1)
    assert {name: count for name, count in stats["classes"].items() if count} == {"normal": 1, "batch": 1}
    assert stats["bytes"] > 0


async def test_a_pause_that_makes_no_sense_is_refused(queue):
    bodies = [
        (b"", None), (b"[]", None), (b"{", None), (b'{"model": 3}', "model"), (b'{"model": null}', "model"), (b'{"x": 1}', None),
        (b'{"model": "%s"}' % (b"m" * 513), "model"), (b"[" * 9999, None),
    ]  # fmt: skip
    for verb in ("pause", "resume"):
        for body, param in bodies:
            refused = await queue.place.call("POST", f"/queue/{verb}", content=body, headers={"content-type": "application/json"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), body
    assert await queue.audited() == []
    assert (await queue.get("/queue/stats"))["paused"] is False


async def test_a_list_that_cannot_be_is_refused(queue):
    for said in ("maybe", ""):
        refused = await queue.place.call("GET", f"/queue?running={said}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "running")


async def test_nobody_but_an_admin_touches_the_queue_not_even_his_own_request(queue):
    key = await queue.place.new_key("user")
    await queue.ask()
    own = await queue.ask(key["key"])
    for method, path in (("GET", ""), ("GET", f"/{own}"), ("DELETE", f"/{own}"), ("POST", f"/{own}/bump"), ("POST", "/pause")):
        refused = await queue.place.call(method, f"/queue{path}", headers={"authorization": f"Bearer {key['key']}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert await queue.order() == [own]
