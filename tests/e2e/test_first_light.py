"""The walking skeleton: everything that a user does first, with real parts only."""

import json

import pytest
from openai import OpenAI

from tests.e2e.world import World, until

pytestmark = pytest.mark.e2e

ASK = [{"role": "user", "content": "hello world"}]


def client(world: World, key: str = "") -> OpenAI:
    return OpenAI(base_url=world.base_url, api_key=key or world.key, max_retries=0)


def test_chat_in_one_piece_reports_usage(shared: World) -> None:
    with client(shared) as ai:
        answer = ai.chat.completions.create(model="tiny-babbler", messages=ASK, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.prompt_tokens > 0


def test_chat_as_a_stream_ends_with_a_reason(shared: World) -> None:
    with client(shared) as ai:
        chunks = list(ai.chat.completions.create(model="tiny-babbler", messages=ASK, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_carries_usage_when_asked(shared: World) -> None:
    with client(shared) as ai:
        chunks = list(
            ai.chat.completions.create(
                model="tiny-babbler", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


def test_completions_both_ways(shared: World) -> None:
    with client(shared) as ai:
        whole = ai.completions.create(model="tiny-babbler", prompt="hello", max_tokens=6)
        stream = list(ai.completions.create(model="tiny-babbler", prompt="hello", max_tokens=6, stream=True))
    assert whole.choices[0].text and whole.usage
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_embeddings(shared: World) -> None:
    with client(shared) as ai:
        answer = ai.embeddings.create(model="tiny-babbler", input=["hello", "world"])
    assert len(answer.data) == 2 and len(answer.data[0].embedding) > 8


def test_models_are_listed_and_shown(shared: World) -> None:
    with client(shared) as ai:
        assert [model.id for model in ai.models.list()] == ["tiny-babbler"]
        assert ai.models.retrieve("tiny-babbler").object == "model"


def test_both_workers_are_used(shared: World) -> None:
    with client(shared) as ai:
        for _ in range(6):
            ai.chat.completions.create(model="tiny-babbler", messages=ASK, max_tokens=2)
    workers = {worker["id"] for worker in json.loads(shared.get("/api/v1/workers", shared.key)[1])["items"]}
    until(lambda: {row["worker_id"] for row in shared.rows() if row["outcome"] == "done"} >= workers, "rows of both workers")


def test_metrics_are_for_admins(shared: World) -> None:
    guest = shared.admin("keys", "create", "metrics-guest", "-q").stdout.strip()
    assert [shared.get("/metrics", key)[0] for key in ("", guest, shared.key)] == [401, 403, 200]
    page = shared.get("/metrics", shared.key)[1].decode()
    assert 'mindgw_worker_ready{worker="one"} 1.0' in page and "mindgw_requests_total{" in page


def test_doors_that_need_no_key_say_only_that_they_are_there(shared: World) -> None:
    assert [shared.get(path)[0] for path in ("/healthz", "/readyz", "/")] == [200, 200, 200]
    assert [shared.get(path)[0] for path in ("/v1/models", "/api/v1/workers", "/api/v1/status")] == [401, 401, 401]
    description = json.loads(shared.get("/api/v1/openapi.json")[1])
    assert description["openapi"].startswith("3.1") and "/api/v1/keys" in description["paths"]
