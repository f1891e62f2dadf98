"""Limits and the ledger, with the real server, agent and llama.cpp engine: what clients see when a limit is reached, and what is booked."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.raw import Answer, Raw, request
from tests.e2e.world import World, until, world
from tests.real_engine import SLOW, start_engine

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with prices, and a box with two slots."""
    with world(tmp_path_factory.mktemp("money")) as made, start_engine(slots=2, shape=SLOW) as engine:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write('prices: "*=10/20"\nquotas:\n  output: 40\n')
        made.serve()
        made.join("box", engine.url)
        made.model = engine.alias
        yield made


def new_key(bank: World, name: str, *args: str) -> tuple[str, str]:
    """A key and its scope."""
    key = bank.admin("keys", "create", name, "-q", *args).stdout.strip()
    return key, f"key:{key.split('_')[1]}"


def say(bank: World, key: str, text: str = "x", **fields: Any) -> Answer:
    """One chat request."""
    body = {"model": bank.model, "messages": [{"role": "user", "content": text}], **fields}
    with Raw(bank.port) as raw:
        raw.send(request(key, json.dumps(body).encode()))
        return raw.answer()


def limits(bank: World, scope: str) -> dict[str, Any]:
    """The limit of a scope as the list shows it."""
    (item,) = [item for item in bank.items("quotas", "list") if item["scope"] == scope]
    return item


def settled(bank: World, scope: str) -> dict[str, Any]:
    """The same, once nothing runs and all that was used is in the ledger."""
    still = (b"mindgw_usage_rows_unwritten 0.0", b"mindgw_requests_running 0.0")
    until(lambda: all(line in bank.get("/metrics", bank.key)[1] for line in still), "all is settled")
    return limits(bank, scope)


def test_a_hard_limit_is_never_passed_and_says_that_it_is_used_up(bank: World) -> None:
    key, scope = new_key(bank, "hard")
    bank.admin("quotas", "set", scope, "--tokens", "300/total")
    answers = [say(bank, key, max_tokens=20) for _ in range(12)]
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(served) >= 3
    assert len(served) + len(refused) == 12
    last = json.loads(refused[-1].body)["error"]
    assert last["code"] == "insufficient_quota"
    assert refused[-1].headers["x-should-retry"] == "false"
    standing = settled(bank, scope)
    assert standing["used"] <= 300
    assert standing["used"] == sum(json.loads(answer.body)["usage"]["total_tokens"] for answer in served)


def test_the_sdk_gives_up_at_once_when_the_limit_is_used_up(bank: World) -> None:
    key, scope = new_key(bank, "sdk")
    bank.admin("quotas", "set", scope, "--tokens", "0/month")
    client = openai.OpenAI(base_url=bank.base_url, api_key=key, max_retries=5, timeout=60)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=bank.model, messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_where_the_limit_does_and_says_why(bank: World, stream: bool) -> None:
    key, scope = new_key(bank, f"cut {stream}")
    bank.admin("quotas", "set", scope, "--tokens", "130/total")
    answer = say(bank, key, "count", stream=stream, stream_options={"include_usage": True} if stream else None, ignore_eos=True)
    assert answer.status == 200
    if not stream:
        whole = json.loads(answer.body)
        assert whole["choices"][0]["finish_reason"] == "length"
        assert whole["mindgw"] == {"cut": "quota"}
        assert whole["usage"]["total_tokens"] <= 130
        return
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: {")]
    finishes = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert finishes == ["length"]
    assert [event["mindgw"] for event in events if "mindgw" in event] == [{"cut": "quota"}]
    assert events[-1]["usage"]["total_tokens"] <= 130
    assert settled(bank, scope)["used"] == events[-1]["usage"]["total_tokens"]


def test_no_cap_is_touched_without_a_hard_limit(bank: World) -> None:
    key, scope = new_key(bank, "soft")
    bank.admin("quotas", "set", scope, "--tokens", "100000/total", "--on-exceed", "soft")
    answer = json.loads(say(bank, key, "count", max_tokens=60, ignore_eos=True).body)
    assert answer["usage"]["completion_tokens"] == 60
    assert "mindgw" not in answer


def test_a_soft_limit_lets_the_last_request_finish_and_refuses_the_next(bank: World) -> None:
    key, scope = new_key(bank, "softly")
    bank.admin("quotas", "set", scope, "--tokens", "50/total", "--on-exceed", "soft")
    assert say(bank, key, "count", max_tokens=80, ignore_eos=True).status == 200
    assert settled(bank, scope)["used"] > 50
    refused = say(bank, key, max_tokens=5)
    assert refused.status == 429
    assert json.loads(refused.body)["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("mode", ["queue-low", "alert", "shadow"])
def test_modes_that_only_tell_refuse_nobody(bank: World, mode: str) -> None:
    key, scope = new_key(bank, mode)
    bank.admin("quotas", "set", scope, "--tokens", "1/total", "--on-exceed", mode)
    assert [say(bank, key, max_tokens=5).status for _ in range(4)] == [200] * 4
    assert settled(bank, scope)["used"] > 1
    counted = f'mindgw_quota_exceeded_total{{mode="{mode}",scope="key"}}'.encode()

    def asked() -> bool:
        say(bank, key, max_tokens=2)
        return counted in bank.get("/metrics", bank.key)[1]

    until(asked, "it is counted")


def test_money_is_a_limit_too(bank: World) -> None:
    key, scope = new_key(bank, "money")
    bank.admin("quotas", "set", scope, "--usd", "0.003/month")
    statuses = [say(bank, key, max_tokens=30, ignore_eos=True).status for _ in range(8)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert float(settled(bank, scope)["used"]) <= 0.003


def test_a_team_pays_for_all_its_keys(bank: World) -> None:
    one, _ = new_key(bank, "first of the team", "--team", "students")
    other, _ = new_key(bank, "second of the team", "--team", "students")
    bank.admin("quotas", "set", "team:students", "--tokens", "200/day")
    statuses = [say(bank, key, max_tokens=20, ignore_eos=True).status for key in (one, other) * 6]
    assert statuses[:2] == [200, 200]
    assert statuses[-2:] == [429, 429]
    assert settled(bank, "team:students")["used"] <= 200


def test_a_limit_that_is_raised_counts_at_once(bank: World) -> None:
    key, scope = new_key(bank, "raised")
    bank.admin("quotas", "set", scope, "--tokens", "1/total")
    assert say(bank, key, max_tokens=5).status == 429
    bank.admin("quotas", "set", scope, "--tokens", "1M/total")
    assert say(bank, key, max_tokens=5).status == 200
    bank.admin("quotas", "clear", scope, "--yes")
    assert say(bank, key, max_tokens=5).status == 200


def test_the_ledger_is_whole_and_every_receipt_agrees(bank: World) -> None:
    key, _ = new_key(bank, "receipts")
    answer = say(bank, key, max_tokens=5)
    receipt = until(lambda: bank.admin("receipt", answer.headers["x-request-id"], "--json", code=None), "a receipt")
    until(lambda: bank.admin("receipt", answer.headers["x-request-id"], code=None).returncode == 0, "a receipt")
    assert receipt is not None
    bank.admin("ledger", "verify")


def test_a_server_that_dies_loses_nothing(bank: World) -> None:
    """Killed in the middle of a stream: the agent's receipt is booked when it is back, once."""
    key, scope = new_key(bank, "survivor")
    bank.admin("quotas", "set", scope, "--tokens", "100k/total")
    body = {"model": bank.model, "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 400, "ignore_eos": True}
    assert bank.server is not None
    with Raw(bank.port) as raw:
        raw.send(request(key, json.dumps(body).encode()))
        raw.until(b"data: {")
        bank.server.kill()
    bank.serve()
    until(lambda: bank.worker("box").get("state") == "ready", "the worker is back")
    until(lambda: any(row["key_id"] == scope[4:] for row in bank.rows()), "its receipt is booked")
    standing = settled(bank, scope)
    (row,) = [row for row in bank.rows() if row["key_id"] == scope[4:]]
    assert row["kind"] == "settled"
    assert row["completion_tokens"] >= 1
    assert standing["used"] == row["prompt_tokens"] + row["completion_tokens"]
    bank.admin("ledger", "verify")


def test_what_was_noted_outlives_a_restart(bank: World) -> None:
    assert bank.server is not None
    before = bank.items("quotas", "list")
    assert bank.server.stop() == 0
    bank.serve()
    until(lambda: bank.worker("box").get("state") == "ready", "the worker is back")
    strip = ("used", "limit", "scope", "window")
    assert [[item[name] for name in strip] for item in bank.items("quotas", "list")] == [[item[name] for name in strip] for item in before]
