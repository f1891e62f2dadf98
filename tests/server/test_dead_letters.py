"""Requests that failed for good, on the real server: from the failure to the letter, to a second try, to its end."""

import asyncio
import json
import shutil
from datetime import timedelta

import msgspec
import pytest
from sqlmodel import select

from mindgw import clock, config, errors
from mindgw.control import dead_letters, secrets
from mindgw.control.sealing import Safe
from mindgw.gateway import signals
from mindgw.gateway.rerun import Rerun
from mindgw.server import app as assembly
from mindgw.store import dead_letters as stored
from mindgw.store import ledger
from mindgw.store.dead_letters import Letter
from mindgw.store.tables import AuditEntry, DeadLetter
from tests.gateway.world import JSON, Box, engine
from tests.server.site import site

CHAT = "/v1/chat/completions"
KEEP = "dead_letters:\n  keep_body: true\n"
ASK = {"model": "m", "messages": [{"role": "user", "content": "a secret"}], "stream": True, "stream_options": {"include_usage": True}}
ANSWER = {"choices": [{"message": {"content": "here you are"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


async def lose(place, box, key="", **fields):
    """A request that its engine fails; its answer."""
    headers = {"authorization": f"Bearer {key or place.key}"}
    asking = asyncio.create_task(place.http.post(CHAT, json={**ASK, **fields}, headers=headers))
    await place.until(lambda: box.requests)
    box.close("failed", "engine_error", message="out of memory")
    return await place.settled(asking)


async def letters(place, count=1):
    """The letters, once there are as many."""
    async with asyncio.timeout(20):
        while True:
            found = (await place.call("GET", "/dead-letters")).json()["items"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def again(place, box, letter, answer=ANSWER):
    """A retry, and the request that the engine got."""
    retrying = asyncio.create_task(place.call("POST", f"/dead-letters/{letter}/retry"))
    await place.until(lambda: box.requests or retrying.done())
    if retrying.done():
        return retrying.result(), None
    (request,) = box.requests.values()
    if answer is None:
        box.close("failed", "engine_error")
    else:
        box.head(200, JSON, json.dumps(answer).encode())
        box.close()
    return await place.settled(retrying), request


async def put(place, number=0, **fields):
    """A letter in the database; its id."""
    at = clock.utcnow()
    facts = {
        "id": f"l{number:03}", "request_id": f"req-{number}", "key_id": "0123456789", "org_id": await place.server.app.state.home.id(),
        "model": "m", "endpoint": CHAT, "fault": "engine", "status": 502, "code": "engine_error", "message": "m",
        "started_at": at, "failed_at": at,
    }  # fmt: skip
    async with place.database.write() as session:
        await stored.append(session, [Letter(**(facts | fields))])
    return facts["id"]


async def audited(place):
    async with place.database.read() as session:
        found = (await session.exec(select(AuditEntry).order_by(AuditEntry.id))).all()
    return [(entry.action, entry.object, entry.detail["code"]) for entry in found if entry.action.startswith("dead_letter.")]


async def test_a_failure_is_recorded_run_again_and_dropped(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box")
        made = await place.new_key("bot", team="nlp", user="ana@example.org", trusted_proxy=True)
        failed = await lose(place, box, made["key"], user="end-user")
        assert failed.status_code == 502
        (letter,) = await letters(place)
        assert {
            "request_id": failed.headers["x-mindgw-request-id"], "state": "dead", "key_id": made["id"], "key": "bot", "team": "nlp",
            "user": "ana@example.org", "end_user": "end-user", "model": "m", "endpoint": CHAT, "stream": True, "fault": "engine",
            "status": 502, "code": "engine_error", "message": "out of memory", "attempts": [{"worker": "box", "outcome": "engine_error"}],
            "body": "kept", "retries": 0, "retried_at": None,
        }.items() <= letter.items()  # fmt: skip
        async with place.database.read() as session:
            row = await stored.find(session, letter["id"])
        assert row.sealed is not None and b"secret" not in row.sealed

        done, request = await again(place, box, letter["request_id"])
        assert (done.status_code, done.json()["answer"]) == (200, ANSWER)
        sent = json.loads(request.body)
        assert (sent["messages"], sent["user"], sent["stream"]) == (ASK["messages"], "end-user", False) and "stream_options" not in sent
        assert done.json()["letter"]["state"] == "retried" and done.json()["letter"]["retries"] == 1
        await place.until(lambda: not place.pipeline.accounts.meter.unwritten)
        async with place.database.read() as session:
            paid = (await ledger.recent(session))[0]
        assert (paid.key_id, paid.outcome, paid.completion_tokens, paid.stream) == (made["id"], "done", 4, False)

        assert (await place.call("DELETE", f"/dead-letters/{letter['id']}")).json()["id"] == letter["id"]
        assert (await place.call("GET", f"/dead-letters/{letter['id']}")).status_code == 404
        assert await audited(place) == [("dead_letter.retry", letter["id"], ""), ("dead_letter.drop", letter["id"], "engine_error")]


async def test_a_retry_that_fails_is_noted_and_leaves_no_letter_of_its_own(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box")
        await lose(place, box)
        (letter,) = await letters(place)
        refused, _ = await again(place, box, letter["id"], answer=None)
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine_error")
        done, _ = await again(place, box, letter["id"])
        assert (done.status_code, done.json()["letter"]["retries"]) == (200, 2)
        refused, _ = await again(place, box, letter["id"], answer=None)
        (shown,) = await letters(place)
        assert (shown["state"], shown["retries"], shown["retry_code"]) == ("dead", 3, "engine_error")
        assert [code for _, _, code in await audited(place)] == ["engine_error", "", "engine_error"]
        assert place.pipeline._stages.dead.unwritten == 0


async def test_a_retry_waits_its_turn_and_ends_with_the_server(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box", engine("m", slots=1))
        await lose(place, box)
        (letter,) = await letters(place)
        asking = asyncio.create_task(place.http.post(CHAT, json=ASK))
        await place.until(lambda: box.requests)
        retrying = asyncio.create_task(place.call("POST", f"/dead-letters/{letter['id']}/retry"))
        await place.until(lambda: place.pipeline.queue.waiting == 1)
        (entry,) = (await place.call("GET", "/queue")).json()["items"]
        assert entry["reason"].startswith("no free slot")
        place.pipeline.stop()
        stopped = await place.settled(retrying)
        assert (stopped.status_code, stopped.json()["error"]["code"]) == (503, "server_draining")
        box.close("cancelled")
        await place.settled(asking)
        place.pipeline.drain()
        refused, _ = await again(place, box, letter["id"])
        assert refused.status_code == 503


async def by_hand(place, letter, hang_up):
    """A retry over a connection that is cut when `hang_up` is set; the status that it was answered, None for none."""
    told = [{"type": "http.request", "body": b"", "more_body": False}]
    said = []

    async def receive():
        if told:
            return told.pop()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        said.append(message)

    path = f"/api/v1/dead-letters/{letter}/retry"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("127.0.0.1", 1), "server": ("gw", 80), "state": {},
        "headers": [(b"host", b"gw"), (b"authorization", f"Bearer {place.key}".encode())],
    }  # fmt: skip
    await place.server.app(scope, receive, send)
    return next((message["status"] for message in said if message["type"] == "http.response.start"), None)


@pytest.mark.parametrize("state", ["waiting", "running"])
async def test_a_retry_ends_with_the_operator_who_hangs_up(tmp_path, state):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box", engine("m", slots=1))
        await lose(place, box)
        (letter,) = await letters(place)
        asking = None
        if state == "waiting":
            asking = asyncio.create_task(place.http.post(CHAT, json={**ASK, "stream": False}))
            await place.until(lambda: box.requests)
        hang_up = asyncio.Event()
        retrying = asyncio.create_task(by_hand(place, letter["id"], hang_up))
        await place.until(lambda: place.pipeline.queue.waiting if asking else box.requests)
        hang_up.set()
        assert await place.settled(retrying) == 503  # to nobody
        assert place.pipeline.queue.waiting == 0
        if asking:
            assert len(box.requests) == 1 and not box.cancelled
            box.head(200, JSON, json.dumps(ANSWER).encode())
            box.close()
            assert (await place.settled(asking)).status_code == 200
        else:
            await place.until(lambda: box.cancelled)
            box.close("cancelled")
        (shown,) = await letters(place)
        assert (shown["state"], shown["retries"], shown["retry_code"]) == ("dead", 1, "client_disconnected")
        assert await audited(place) == [("dead_letter.retry", letter["id"], "client_disconnected")]
        done, _ = await again(place, box, letter["id"])
        assert done.status_code == 200


async def test_one_letter_is_run_again_once_at_a_time(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box", engine("m", slots=2))
        await lose(place, box)
        (letter,) = await letters(place)
        retrying = asyncio.create_task(place.call("POST", f"/dead-letters/{letter['id']}/retry"))
        await place.until(lambda: box.requests)
        for name in (letter["id"], letter["request_id"]):
            refused = await place.call("POST", f"/dead-letters/{name}/retry")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "retry_under_way")
        box.head(200, JSON, json.dumps(ANSWER).encode())
        box.close()
        assert (await place.settled(retrying)).json()["letter"]["retries"] == 1
        assert await audited(place) == [("dead_letter.retry", letter["id"], "")]
        done, _ = await again(place, box, letter["id"])
        assert done.json()["letter"]["retries"] == 2


async def test_without_its_body_a_request_cannot_be_run_again(tmp_path):
    async with site(tmp_path / "data") as place:
        box = Box(place.world, "box")
        await lose(place, box)
        (letter,) = await letters(place)
        assert letter["body"] == "off" and letter["size"] > 100
        refused, _ = await again(place, box, letter["id"])
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (409, "no_body")
        assert "dead_letters.keep_body: true" in error["hint"] and "not kept when it failed" in error["message"]


@pytest.mark.parametrize(
    ("note", "said", "hint"),
    [("too_large", "larger", "max_body"), ("crowded", "too many", "keep_body"), ("of another release", "not kept", "keep_body")],
)
async def test_why_there_is_no_body_is_told(tmp_path, note, said, hint):
    async with site(tmp_path / "data") as place:
        made = await place.new_key("k")
        id = await put(place, key_id=made["id"], body_note=note)
        error = (await place.call("POST", f"/dead-letters/{id}/retry")).json()["error"]
        assert error["code"] == "no_body" and said in error["message"] and hint in error["hint"]


@pytest.mark.parametrize("how", ["revoked", "gone", "expired"])
async def test_on_behalf_of_a_key_that_is_not_good_nothing_is_run(tmp_path, how):
    async with site(tmp_path / "data", KEEP) as place:
        made = await place.new_key("k")
        if how == "revoked":
            await place.call("DELETE", f"/keys/{made['id']}")
        if how == "expired":
            async with place.database.write() as session:
                (await dead_letters.keys.get(session, made["id"])).expires_at = clock.utcnow()
        id = await put(place, key_id="nobody" if how == "gone" else made["id"], sealed=b"x" * 50)
        refused = await place.call("POST", f"/dead-letters/{id}/retry")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "key_not_good")
        assert await audited(place) == []


async def test_a_key_that_dies_while_its_request_runs_again_is_told_as_such(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box")
        made = await place.new_key("k")
        await lose(place, box, made["key"])
        (letter,) = await letters(place)
        retrying = asyncio.create_task(place.call("POST", f"/dead-letters/{letter['id']}/retry"))
        await place.until(lambda: box.requests)
        await place.call("DELETE", f"/keys/{made['id']}")
        refused = await place.settled(retrying)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "key_not_good")
        assert [code for _, _, code in await audited(place)] == ["revoked_api_key"]
        box.close("cancelled")


async def test_a_body_sealed_with_another_key_is_told_as_such(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        made = await place.new_key("k")
        ours = Safe(place.server.app.state.secrets.sealing)
        for number, sealed in enumerate([b"", b"x" * 100, Safe(b"x" * 32).seal("req-2", b"{}"), ours.seal("req-3", b"[")]):
            id = f"l{number:03}"
            await put(place, number, id=id, request_id=f"req-{number}", key_id=made["id"], sealed=sealed)
            error = (await place.call("POST", f"/dead-letters/{id}/retry")).json()["error"]
            assert error["code"] == "body_unreadable" and "sealing.key" in error["hint"]


async def test_pages_join_from_the_newest_on(tmp_path):
    async with site(tmp_path / "data") as place:
        for number in range(5):
            await put(place, number, id=f"l{number:03}", request_id=f"req-{number}")
        found, cursor = [], ""
        while cursor is not None:
            page = (await place.call("GET", f"/dead-letters?limit=2{f'&cursor={cursor}' if cursor else ''}")).json()
            found += [item["id"] for item in page["items"]]
            cursor = page["next"]
        assert found == ["l004", "l003", "l002", "l001", "l000"]
        for method, path in (("GET", ""), ("POST", "/retry"), ("DELETE", "")):
            refused = await place.call(method, f"/dead-letters/nobody{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


async def test_what_failed_last_is_written_when_the_server_ends(tmp_path):
    async with site(tmp_path / "data", KEEP) as place:
        box = Box(place.world, "box")
        await lose(place, box)
    async with site(tmp_path / "data") as place:
        (letter,) = await letters(place)
        assert letter["code"] == "engine_error"
        done, _ = await again(place, Box(place.world, "box"), letter["id"])
        assert done.status_code == 200


async def test_old_letters_are_forgotten(tmp_path):
    async with site(tmp_path / "data") as place:
        now = clock.utcnow()
        for number in range(6):
            await put(place, number, id=f"l{number:03}", request_id=f"req-{number}", failed_at=now - timedelta(days=10 - number))
        settings = config.DeadLetters(keep=7.5 * 86400, most=2)
        assert await dead_letters.forget(place.database, settings, now) == 4
        assert [letter["id"] for letter in await letters(place)] == ["l005", "l004"]
        assert await dead_letters.forget(place.database, settings, now) == 0


async def test_one_letter_that_cannot_be_written_keeps_no_other_back(tmp_path, caplog):
    at = clock.utcnow()
    good = Letter(
        id="a", request_id="r-a", key_id="k", org_id="o", model="m", endpoint=CHAT, fault="fleet", status=503, code="queue_timeout",
        message="m", started_at=at, failed_at=at,
    )  # fmt: skip
    bad = msgspec.structs.replace(good, id="b", request_id="r-b", status=None)
    async with site(tmp_path / "data") as place:
        write, own = assembly._writer(place.database, Safe(b"k" * 32)), await place.server.app.state.home.id()
        good, bad = (msgspec.structs.replace(letter, org_id=own) for letter in (good, bad))
        await write([(good, None), (bad, b"the body"), (msgspec.structs.replace(good, id="c", request_id="r-c"), b"x")])
        assert [letter["id"] for letter in await letters(place, 2)] == ["c", "a"]
    (record,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert "a dead letter cannot be written" in record.getMessage() and "r-b" in record.getMessage() and "sealed" not in record.getMessage()


async def test_the_database_holds_no_prompt_and_the_data_directory_can(tmp_path):
    directory = tmp_path / "data"
    async with site(directory, KEEP) as place:
        await lose(place, Box(place.world, "box"))
    shutil.copy(directory / "mindgw.db", tmp_path / "copy.db")
    held = b"".join(file.read_bytes() for file in directory.glob("mindgw.db*"))
    assert b"a secret" not in held
    async with site(directory) as place, place.database.read() as session:
        row = (await session.exec(select(DeadLetter))).one()
    opened = Safe(secrets.load(directory).sealing).open(row.request_id, row.sealed)
    assert json.loads(opened)["messages"] == ASK["messages"]


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b'{"a"'])
def test_what_is_no_request_cannot_be_made_whole(body):
    with pytest.raises(ValueError, match="not a JSON object"):
        dead_letters.whole(body)


def test_a_request_is_made_whole_and_otherwise_left_alone():
    said = (
        b'{"model":"m","seed":18446744073709551617,"top_p":0.10,"stream":true,"stream_options":{"include_usage":true},"x":{"stream":true}}'
    )
    assert dead_letters.whole(said) == b'{"model":"m","seed":18446744073709551617,"top_p":0.10,"stream":false,"x":{"stream":true}}'
    assert dead_letters.whole(b'{"input":"x"}') == b'{"input":"x"}'


async def test_a_lane_takes_the_first_end_that_it_hears():
    lane = Rerun()
    lane.perform([signals.Begin()])
    lane.perform([signals.Answer(200, b"{}"), signals.Fail(errors.WorkerLost(), False)])
    assert await lane.answer() == b"{}"
