"""Requests with an Idempotency-Key, on the real server with a FAKE engine: run once, heard as often as somebody asks."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.raw import CHAT, Answer, Raw, request
from tests.e2e.stage import Stage, chat, said, stage, stream_error
from tests.e2e.world import until

pytestmark = pytest.mark.e2e

KEEP = "idempotency:\n  keep_body: true\n"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server that keeps answers."""
    with stage(tmp_path_factory.mktemp("kept"), KEEP) as made:
        yield made
        made.world.admin("ledger", "verify")


@pytest.fixture(autouse=True)
def closed(kept: Stage) -> Iterator[None]:
    """The gate is closed at the beginning of each test."""
    kept.engine.gate.clear()
    yield
    kept.engine.gate.set()


def send(here: Stage, name: str, scene: str, **fields: Any) -> Raw:
    """A request with an Idempotency-Key, whose answer is read by the caller."""
    raw = Raw(here.world.port)
    raw.send(request(here.world.key, chat(scene, **fields), CHAT, f"Idempotency-Key: {name}"))
    return raw


def ask(here: Stage, name: str, scene: str, **fields: Any) -> Answer:
    with send(here, name, scene, **fields) as raw:
        answer = raw.answer()
    here.paid.append(answer.headers["x-request-id"])
    return answer


def asked(here: Stage, name: str, scene: str, **fields: Any) -> Answer:
    """The answer, once the request is not being run any more."""

    def over() -> Answer | None:
        answer = ask(here, name, scene, **fields)
        return None if answer.status == 409 and answer.error["code"] == "idempotency_in_progress" else answer

    return until(over, "the request is over", 20) or ask(here, name, scene, **fields)


def runs(here: Stage, scene: str) -> int:
    """How often the engine was asked to play a scene."""
    return sum(body["messages"][-1]["content"] == scene for body, _ in here.engine.requests)


def test_a_retry_attaches_and_another_body_is_refused(kept: Stage) -> None:
    with send(kept, "attach", "waits") as first, send(kept, "attach", "waits") as second:
        until(lambda: runs(kept, "waits") == 1, "it runs")
        other = until(lambda: (a := ask(kept, "attach", "waits", n=1)).status == 422 and a, "the other body is refused", 5)
        assert other.error["code"] == "idempotency_key_reused"
        kept.engine.gate.set()
        answers = [first.answer(), second.answer()]
    assert [answer.status for answer in answers] == [200, 200] and answers[0].body == answers[1].body
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", "true"]
    assert runs(kept, "waits") == 1
    rows = [kept.row(answer.headers["x-request-id"]) for answer in answers]
    assert sorted((row["kind"], row["outcome"], row["completion_tokens"]) for row in rows) == [
        ("refused", "replayed", 0),
        ("settled", "done", 3),
    ]


def test_a_stream_is_never_shared_and_comes_again_when_it_is_over(kept: Stage) -> None:
    with send(kept, "stream", "patience", stream=True) as first:
        first.until(b"wait")
        refused = ask(kept, "stream", "patience", stream=True)
        assert (refused.status, refused.error["code"]) == (409, "idempotency_in_progress") and int(refused.headers["retry-after"]) > 0
        kept.engine.gate.set()
        first.until(b"data: [DONE]\n\n")
    again = asked(kept, "stream", "patience", stream=True)
    assert again.headers["idempotent-replayed"] == "true" and said(again) == "wait"
    assert again.headers["content-type"].startswith("text/event-stream") and b": still here" not in again.body
    assert runs(kept, "patience") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_and_comes_back_has_its_answer(kept: Stage, stream: bool) -> None:
    scene = "gated" if stream else "waits"
    before, fields = runs(kept, scene), {"stream": True, "count": 5} if stream else {}
    with send(kept, f"hang up {stream}", scene, **fields):
        until(lambda: runs(kept, scene) == before + 1, "it runs")
    kept.engine.gate.set()
    answer = asked(kept, f"hang up {stream}", scene, **fields)
    assert (said(answer) == "0 1 2 3 4 ") if stream else json.loads(answer.body)["choices"][0]["message"]["content"] == "one two"
    assert answer.headers["idempotent-replayed"] == "true" and runs(kept, scene) == before + 1
    paid = kept.row(answer.headers["x-mindgw-original-request-id"])
    assert (paid["kind"], paid["outcome"], paid["status"]) == ("settled", "done", 200)


def test_what_failed_fails_again_and_what_was_refused_is_tried_again(kept: Stage) -> None:
    first, again = ask(kept, "fails", "error at once"), ask(kept, "fails", "error at once")
    assert first.status == again.status == 502 and first.body == again.body
    assert (again.headers["x-should-retry"], runs(kept, "error at once")) == ("false", 1)
    streams = [ask(kept, "breaks off", "cut", stream=True) for _ in range(2)]
    assert streams[0].body == streams[1].body and stream_error(streams[0])["code"] == "engine_error"
    assert ask(kept, "nobody", "plain", model="nobody").status == 404
    assert ask(kept, "nobody", "plain").status == 200
    bad = ask(kept, "x" * 256, "plain")
    assert (bad.status, bad.error["code"]) == (400, "invalid_idempotency_key")


def test_the_openai_sdk_gets_what_it_got_before(kept: Stage) -> None:
    before = runs(kept, "plain")
    with openai.OpenAI(base_url=kept.world.base_url, api_key=kept.world.key, max_retries=0) as ai:
        fields: Any = {"model": "fake", "messages": [{"role": "user", "content": "plain"}], "extra_headers": {"Idempotency-Key": "sdk"}}
        first, again = (ai.chat.completions.with_raw_response.create(**fields) for _ in range(2))
        assert first.parse() == again.parse() and again.headers["idempotent-replayed"] == "true"
        fields["extra_headers"] = {"Idempotency-Key": "sdk stream"}
        texts = [[chunk.choices[0].delta.content for chunk in ai.chat.completions.create(**fields, stream=True)] for _ in range(2)]
        assert texts[0] == texts[1] and texts[0].count("one") == 1
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ai.chat.completions.create(**fields, stream=True, temperature=0.5)
    assert caught.value.code == "idempotency_key_reused" and runs(kept, "plain") == before + 2


def test_a_restart_forgets_nothing_that_is_kept_and_the_disk_gives_nothing_away(kept: Stage) -> None:
    """Last in this file: the server is another one afterwards."""
    name, scene = "a name that nobody may read", "a question that nobody may read"
    first = ask(kept, name, scene)
    until(lambda: kept.world.query(f"select * from replays where request_id = '{first.headers['x-request-id']}'"), "it is written", 10)
    files = [path for path in kept.world.data_dir.iterdir() if path.name.startswith("mindgw.db")]
    disk = b"".join(path.read_bytes() for path in files)
    assert len(files) > 1 and first.headers["x-request-id"].encode() in disk
    assert not [secret for secret in (name, scene, "one two", "chatcmpl") if secret.encode() in disk]
    assert kept.world.server is not None and kept.world.server.stop() == 0
    kept.world.serve()
    until(lambda: kept.world.worker("fake")["state"] == "ready", "the worker is back")
    again = ask(kept, name, scene)
    assert (again.status, again.body, again.headers["idempotent-replayed"]) == (200, first.body, "true")
    assert ask(kept, name, "plain").status == 422 and runs(kept, scene) == 1


def test_without_a_shelf_an_answer_is_not_made_twice_either(tmp_path) -> None:
    with stage(tmp_path) as here:
        first = ask(here, "once", "plain")
        assert ask(here, "once", "plain").body == first.body
        until(lambda: here.world.query("select * from replays"), "it is written", 10)
        assert here.world.server is not None and here.world.server.stop() == 0
        here.world.serve()
        until(lambda: here.world.worker("fake")["state"] == "ready", "the worker is back")
        refused = ask(here, "once", "plain")
        assert (refused.status, refused.error["code"], refused.headers["x-should-retry"]) == (409, "idempotency_not_kept", "false")
        assert first.headers["x-request-id"] in refused.error["message"] and "idempotency.keep_body" in refused.error["message"]
        (row,) = here.world.query("select * from replays")
        assert (row["note"], row["sealed"], row["status"]) == ("off", None, 200)
        with send(here, "left", "patience", stream=True) as raw:  # a stream that nobody keeps is cancelled as always
            raw.until(b"wait")
        assert here.engine.left.wait(20)
        here.idle()
        assert runs(here, "plain") == 1
