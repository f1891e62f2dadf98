"""Limits, sums of use, the ledger and receipts over HTTP, on the real server."""

import asyncio
import json
import threading

from sqlmodel import select

from mindgw import clock
from mindgw.control import search
from mindgw.store import verify
from mindgw.store.tables import AuditEntry
from mindgw.store.verify import Broken
from tests.gateway.world import JSON, Box
from tests.server.site import site

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
ANSWER = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'


async def good(place, method, path, **more):
    found = await place.call(method, path, **more)
    assert found.status_code == 200, found.text
    return found.json()


async def refused(place, status, method, path, **more):
    found = await place.call(method, path, **more)
    assert found.status_code == status, found.text
    return found.json()["error"]


async def ask(place, box, key):
    """A request that is answered and written down; its id."""
    asking = asyncio.create_task(place.http.post(CHAT, json=ASK, headers={"authorization": f"Bearer {key}"}))
    await place.until(lambda: box.requests or asking.done())
    if not asking.done():
        box.head(200, JSON, ANSWER)
        box.close()
    answer = await place.settled(asking)
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-mindgw-request-id"]
    async with asyncio.timeout(20):
        while (await place.call("GET", "/ledger", params={"request": request_id})).status_code != 200:
            await asyncio.sleep(0.02)
    return request_id


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_limit_is_set_listed_reset_and_cleared(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("bot", team="nlp")
        scope = f"key:{made['id']}"
        done = await good(place, "PUT", "/quotas", json={"scope": scope, "tokens": ["100k/day", "1M/total"], "usd": ["2/month"]})
        assert [(one["unit"], one["period"], one["limit"]) for one in done["items"]] == [
            ("tokens", "day", 100_000), ("tokens", "total", 1_000_000), ("usd", "month", "2.00")
        ]  # fmt: skip
        assert len(done["warnings"]) == 1 and "prices" in done["warnings"][0]
        listed = await good(place, "GET", "/quotas")
        assert listed == {"items": done["items"], "next": None}
        assert await good(place, "GET", "/quotas", params={"scope": "key:bot"}) == listed
        assert (await good(place, "GET", "/quotas", params={"scope": "team:nlp"}))["items"] == []
        again = await good(place, "POST", "/quotas/reset", json={"scope": scope, "unit": "tokens", "period": "day"})
        assert [one["used"] for one in again["items"]] == [0]
        gone = await good(place, "DELETE", "/quotas", params={"scope": scope, "unit": "tokens"})
        assert [one["period"] for one in gone["items"]] == ["day", "total"]
        assert [one["unit"] for one in (await good(place, "GET", "/quotas"))["items"]] == ["usd"]
        async with place.database.read() as session:
            rows = (await session.exec(select(AuditEntry.action).where(AuditEntry.object == scope).order_by(AuditEntry.id))).all()
        assert rows == ["quota.set"] * 3 + ["quota.reset"] + ["quota.clear"] * 2


async def test_a_change_is_refused_when_somebody_was_faster(tmp_path):
    async with site(tmp_path / "data") as place:
        wish = {"scope": "model:a/b", "tokens": ["5/day"]}
        assert (await refused(place, 412, "PUT", "/quotas", json=wish, headers={"if-match": "1"}))["code"] == "version_mismatch"
        await good(place, "PUT", "/quotas", json=wish)
        await good(place, "PUT", "/quotas", json=wish, headers={"if-match": '"1"'})
        await refused(place, 412, "PUT", "/quotas", json=wish, headers={"if-match": "1"})
        await refused(place, 412, "POST", "/quotas/reset", json={"scope": "model:a/b"}, headers={"if-match": "1"})
        await refused(place, 412, "DELETE", "/quotas", params={"scope": "model:a/b"}, headers={"if-match": "1"})
        await good(place, "DELETE", "/quotas", params={"scope": "model:a/b"}, headers={"if-match": "2"})


SENSELESS = [
    ({}, None), ({"scope": "model:m"}, "tokens"), ({"scope": "m", "tokens": ["1/day"]}, "scope"),
    ({"scope": "model:m", "tokens": "1/day"}, "tokens"), ({"scope": "model:m", "tokens": [5]}, None),
    ({"scope": "model:m", "tokens": ["1/day"] * 4}, "tokens"), ({"scope": "model:m", "tokens": ["-1/day"]}, "tokens"),
    ({"scope": "model:m", "tokens": ["x" * 65]}, None), ({"scope": "x" * 601, "tokens": ["1/day"]}, "scope"),
    ({"scope": "", "tokens": ["1/day"]}, "scope"), ({"scope": "model:m", "usd": ["NaN/day"]}, "usd"),
    ({"scope": "model:m", "tokens": ["1/day"], "on_exceed": "x"}, "on_exceed"),
    ({"scope": "model:m", "tokens": ["1/day"], "rpm": 5}, None), ([], None),
]  # fmt: skip


async def test_a_wish_that_makes_no_sense_is_named(tmp_path):
    async with site(tmp_path / "data") as place:
        for body, param in SENSELESS:
            error = await refused(place, 400, "PUT", "/quotas", json=body)
            assert param in {None, error["param"]}, error
        assert (await good(place, "GET", "/quotas"))["items"] == []


NOWHERE = [
    ("GET", "/quotas", {"params": {"scope": "nothing"}}, 400), ("GET", "/quotas", {"params": {"scope": "team:x"}}, 404),
    ("GET", "/quotas", {"params": {"scope": "x" * 601}}, 400), ("DELETE", "/quotas", {}, 400),
    ("DELETE", "/quotas", {"params": {"scope": "model:m"}}, 404),
    ("DELETE", "/quotas", {"params": {"scope": "model:m", "unit": "x"}}, 400),
    ("POST", "/quotas/reset", {"json": {"scope": "model:m"}}, 404), ("POST", "/quotas/reset", {"json": {}}, 400),
    ("GET", "/usage", {"params": {"by": "x"}}, 400), ("GET", "/usage", {"params": {"since": "x"}}, 400),
    ("GET", "/usage", {"params": {"team": "x"}}, 404), ("GET", "/usage", {"params": {"model": "x" * 513}}, 400),
    ("GET", "/ledger", {}, 400), ("GET", "/ledger", {"params": {"request": "x"}}, 404),
    ("GET", "/receipts", {}, 400), ("GET", "/receipts", {"params": {"request": "x"}}, 404),
    ("GET", "/receipts", {"params": {"request": "x" * 1001}}, 400),
]  # fmt: skip


async def test_what_is_not_there_is_refused(tmp_path):
    async with site(tmp_path / "data") as place:
        for method, path, more, status in NOWHERE:
            error = await refused(place, status, method, path, **more)
            assert error["message"]


async def test_the_gateway_is_told_at_once(tmp_path):
    async with site(tmp_path / "data") as place:
        told = asyncio.Event()

        async def changed():
            told.set()

        place.server.app.state.quotas_changed = changed
        await refused(place, 400, "PUT", "/quotas", json={"scope": "model:m", "tokens": ["x"]})
        assert not told.is_set()
        for method, more in (
            ("PUT", {"json": {"scope": "model:m", "tokens": ["1/day"]}}),
            ("DELETE", {"params": {"scope": "model:m"}}),
        ):
            told.clear()
            await good(place, method, "/quotas", **more)
            assert told.is_set()


# -- use, the ledger, receipts -----------------------------------------------------------------------------------------


async def test_a_request_is_in_the_sums_and_in_the_ledger(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world, "box")
        made = await place.new_key("bot", team="nlp", user="ana@example.org")
        request_id = await ask(place, box, made["key"])
        for by, name in (
            ("key", "bot"),
            ("user", "ana@example.org"),
            ("team", "nlp"),
            ("org", "default"),
            ("model", "m"),
            ("worker", "box"),
        ):
            found = await good(place, "GET", "/usage", params={"by": by})
            (line,) = found["items"]
            assert {"requests": 1, "tokens_in": 3, "tokens_out": 4, "tokens_cached": 0, "cost_usd": "0.00"}.items() <= line.items()
            assert line["name"] == name or by == "worker"
            assert (found["by"], found["next"], found["total"]["tokens_out"]) == (by, None, 4)
        today = clock.utcnow().date().isoformat()
        found = await good(place, "GET", "/usage", params={"since": today, "until": today, "by": "day", "team": "nlp", "model": "m"})
        assert [line["id"] for line in found["items"]] == [today]
        (row,) = (await good(place, "GET", "/ledger", params={"request": request_id}))["items"]
        assert {
            "request_id": request_id,
            "attempt": 1,
            "kind": "settled",
            "key": "bot",
            "tokens_in": 3,
            "tokens_out": 4,
        }.items() <= row.items()


def lines(answer):
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_books_are_checked_and_the_end_is_told(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world, "box")
        request_id = await ask(place, box, place.key)
        *_, last = lines(await place.call("GET", "/ledger/verify"))
        assert (last["state"], last["ok"], last["broken"], last["checked"]["rows"]) == ("done", True, 0, 1)
        ((head,), (row,)) = last["heads"], (await good(place, "GET", "/ledger", params={"request": request_id}))["items"]
        assert (head["epoch"], head["seq"], len(head["hash"])) == (row["epoch"], row["seq"], 64)
        again = lines(await place.call("GET", "/ledger/verify"))
        assert again[-1]["ok"], "a check that is over makes room for another"


async def test_what_is_wrong_is_told_line_by_line(tmp_path, monkeypatch):
    async with site(tmp_path / "data") as place:

        async def broken(session, key, checked):
            assert key == place.server.app.state.secrets.chain_key
            yield Broken("I1", "team:x tokens 2026-11", "used 1 is not 2")

        monkeypatch.setattr(verify, "broken", broken)
        *_, wrong, last = lines(await place.call("GET", "/ledger/verify"))
        assert wrong == {"state": "broken", "invariant": "I1", "where": "team:x tokens 2026-11", "what": "used 1 is not 2"}
        assert (last["state"], last["ok"], last["broken"]) == ("done", False, 1)


async def test_a_check_that_breaks_off_says_so(tmp_path, monkeypatch, caplog):
    async with site(tmp_path / "data") as place:

        async def broken(session, key, checked):
            raise OSError("no disk")
            yield

        monkeypatch.setattr(verify, "broken", broken)
        assert lines(await place.call("GET", "/ledger/verify")) == [{"state": "failed"}]
        assert "no disk" in caplog.text
        assert not place.server.app.state.verifying


async def test_one_check_runs_at_a_time(tmp_path, monkeypatch):
    async with site(tmp_path / "data") as place:
        began, go = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        async def broken(session, key, checked):
            loop.call_soon_threadsafe(began.set)
            await asyncio.to_thread(go.wait)
            if False:
                yield

        monkeypatch.setattr(verify, "broken", broken)
        monkeypatch.setattr(search, "PERIOD", 0.01)
        first = asyncio.create_task(place.call("GET", "/ledger/verify"))
        await began.wait()
        assert (await refused(place, 409, "GET", "/ledger/verify"))["code"] == "already_checking"
        go.set()
        states = [word["state"] for word in lines(await first)]
        assert states[-1] == "done"
        assert lines(await place.call("GET", "/ledger/verify"))[-1]["ok"]
