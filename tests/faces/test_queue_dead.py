"""`mindgw queue dead`, against the real server."""

import asyncio
import json
import os

import pytest

from mindgw import clock, config
from mindgw.cli import queue_dead
from mindgw.store import dead_letters, people
from mindgw.store.database import Database
from mindgw.store.dead_letters import Letter
from tests.faces.conftest import Terminal


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def letter(gateway, admin):
    """Puts a letter into the server's database; returns its id and that of its request."""

    def put(**fields):
        at = clock.utcnow()
        name = os.urandom(6).hex()
        facts = {
            "id": f"z{name}", "request_id": f"req-{name}", "key_id": "0123456789", "org_id": "o", "model": "m",
            "endpoint": "/v1/chat/completions", "fault": "fleet", "status": 502, "code": "worker_lost", "message": "the wire\x1b[2J broke",
            "attempts": [{"worker": "box", "outcome": "worker_lost"}, {}], "started_at": at, "failed_at": at, "body_note": "off",
            "queued_ms": 1500, "total_ms": 4000, "size": 77,
        }  # fmt: skip

        async def work():
            database = Database(config.load(None, gateway.data_dir).database_url)
            async with database.write() as session:
                own = (await people.get_or_create_org(session)).id
                await dead_letters.append(session, [Letter(**(facts | {"org_id": own} | fields))])
            await database.close()

        asyncio.run(work())
        return facts["id"], facts["request_id"]

    return put


@pytest.mark.parametrize("verb", ["list", "ls"])
def test_the_list_says_what_became_of_what(admin, letter, verb):
    id, request_id = letter()
    listed = {item["id"]: item for item in read(admin("queue", "dead", verb, "--json"))["items"]}
    assert (listed[id]["request_id"], listed[id]["code"], listed[id]["state"]) == (request_id, "worker_lost", "dead")
    head, *rows = admin("queue", "dead", verb).out.splitlines()
    assert head.split() == ["ID", "FAILED", "REASON", "FAULT", "MODEL", "OWNER", "TRIES", "BODY", "STATE"]
    (row,) = [row for row in rows if row.startswith(id)]
    assert row.split()[3:] == ["worker_lost", "fleet", "m", "0123456789", "2", "off", "dead"]
    assert id in admin("queue", "dead", verb, "-q").out.splitlines()


def test_one_letter_is_shown_in_full_and_drives_no_terminal(admin, letter):
    id, request_id = letter()
    shown = admin("queue", "dead", "show", request_id)
    lines = dict(line.split("  ", 1) for line in shown.out.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert (lines["id"], lines["request"], lines["reason"]) == (id, request_id, "worker_lost")
    assert lines["attempts"] == "box: worker_lost, ?: ?"
    assert lines["queued"] == "1.5s of 4.0s" and lines["size"] == "77 bytes" and lines["retries"] == "0"
    assert "\x1b" not in shown.out
    never, _ = letter(attempts=[], code="queue_timeout")
    assert "never had a slot" in admin("queue", "dead", "show", never).out


def test_a_retry_without_a_body_exits_7_and_says_why(admin, letter):
    id, _ = letter()
    key = read(admin("keys", "create", "payer", "--json"))
    id, _ = letter(key_id=key["id"])
    refused = admin("queue", "dead", "retry", id)
    assert (refused.code, refused.out) == (7, "")
    assert "bodies were not kept" in refused.err and "dead_letters.keep_body: true" in refused.err
    assert "code=no_body" in refused.err


def test_a_retry_for_a_key_that_is_gone_exits_7(admin, letter):
    id, _ = letter(body_note="", sealed=b"x" * 99)
    refused = admin("queue", "dead", "retry", id)
    assert refused.code == 7 and "not good any more" in refused.err


@pytest.mark.parametrize("words", ["show nobody", "retry nobody", "drop nobody -y"])
def test_a_letter_that_is_not_there_exits_6(admin, words):
    refused = admin("queue", "dead", *words.split())
    assert refused.code == 6 and "mindgw queue dead list" in refused.err


def test_dropping_asks_first(admin, letter):
    id, request_id = letter()
    refused = admin("queue", "dead", "drop", id)
    assert refused.code == 2 and "--yes required" in refused.err
    terminal = Terminal("queue", "dead", "drop", id)
    assert request_id in terminal.hear("[y/N]")
    terminal.type("y\n")
    assert terminal.end().code == 0
    assert admin("queue", "dead", "show", id).code == 6


def test_several_are_dropped_at_once(admin, letter):
    ids = [letter()[0] for _ in range(2)]
    assert admin("queue", "dead", "drop", *ids, "-y").code == 0
    assert not {item["id"] for item in read(admin("queue", "dead", "list", "--json"))["items"]} & set(ids)


def test_an_answer_is_data_and_the_rest_is_talk(cli, fake):
    done = {"letter": {"id": "l1"}, "answer": {"choices": [{"message": {"content": "hello\nthere"}}]}}
    fake.body = json.dumps(done).encode()
    said = cli("queue", "dead", "retry", "l1", "l 2")
    assert (said.code, said.out) == (0, "hello\nthere\nhello\nthere\n") and "was answered" in said.err
    assert [(verb, path) for verb, path, *_ in fake.asked] == [
        ("POST", "/api/v1/dead-letters/l1/retry"),
        ("POST", "/api/v1/dead-letters/l%202/retry"),
    ]
    assert read(cli("queue", "dead", "retry", "l1", "--json")) == done


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"message": {"content": "hello"}}]}, "hello"),
        ({"choices": [{"text": "hello"}]}, "hello"),
        ({"choices": [{"message": {"content": None}}]}, None),
        ({"choices": [{"text": "a"}, {"text": "b"}]}, None),
        ({"choices": ["x"]}, None),
        ({"choices": [{"message": "x"}]}, None),
        ({"data": [{"embedding": [1]}]}, None),
    ],
)
def test_what_the_model_said_is_printed_else_the_whole_answer(answer, text):
    assert queue_dead._text(answer) == (text or json.dumps(answer))


def test_retries_are_told_with_their_end():
    now = clock.utcnow().isoformat()
    assert queue_dead._last({}) == ""
    assert queue_dead._last({"retried_at": now, "retry_code": ""}).endswith("ago: it went well")
    assert queue_dead._last({"retried_at": now, "retry_code": "worker_lost"}).endswith("worker_lost")
