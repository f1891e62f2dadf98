"""`mindgw usage`, against the real server."""

import json
import os

import pytest

from mindgw import clock
from tests.faces.bookkeeping import book, used
from tests.faces.conftest import KEY, SECRET


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def key(admin, gateway):
    """A key that has used 25 tokens for two models, today."""
    made = read(admin("keys", "create", f"k-{os.urandom(4).hex()}", "--json"))
    other = {"model": "n", "prompt_tokens": 9, "completion_tokens": 1000, "cost": 2_500_000}
    book(gateway, used(f"r1-{made['id']}", made), used(f"r2-{made['id']}", made, **other))
    return made


def test_sums_are_items_with_tokens_and_a_total(admin, key):
    found = read(admin("usage", "summary", "--key", key["name"], "--by", "model", "--json"))
    assert [(one["name"], one["requests"], one["tokens_in"], one["tokens_out"], one["cost_usd"]) for one in found["items"]] == [
        ("m:1", 1, 10, 5, "0.000003"), ("n", 1, 9, 1000, "2.50")
    ]  # fmt: skip
    assert found["total"]["tokens_out"] == 1005 and found["total"]["cost_usd"] == "2.500003" and found["next"] is None
    (mine,) = [one for one in read(admin("usage", "summary", "--json"))["items"] if one["id"] == key["id"]]
    assert (mine["name"], mine["requests"], mine["tokens_in"]) == (key["name"], 2, 19)


def test_the_table_ends_with_the_total(admin, key):
    found = admin("usage", "summary", "--key", key["id"], "--by", "model")
    head, *rows = found.out.splitlines()
    assert head.split("  ")[0] == "MODEL" and "TOKENS OUT" in head and "COST USD" in head
    assert [row.split() for row in rows] == [
        ["m:1", "1", "10", "5", "0", "0.000003"], ["n", "1", "9", "1,000", "0", "2.50"], ["TOTAL", "2", "19", "1,005", "0", "2.500003"]
    ]  # fmt: skip
    assert clock.utcnow().date().isoformat() in found.err
    assert admin("usage", "summary", "--key", key["id"], "--by", "model", "-q").out.splitlines() == ["m:1", "n"]
    assert admin("usage", "summary", "--key", key["id"], "--by", "user").out.splitlines()[1].startswith("–")


def test_days_and_whom_can_be_chosen(admin, key):
    today = clock.utcnow().date().isoformat()
    only = ["--key", key["id"], "--json"]
    assert read(admin("usage", "summary", "--since", today, "--until", today, *only))["total"]["requests"] == 2
    assert read(admin("usage", "summary", "--since", "1d", "--model", "n", *only))["total"]["requests"] == 1
    empty = admin("usage", "summary", "--since", "2020-01-01", "--until", "2020-01-31", "--key", key["id"])
    assert (empty.code, empty.out) == (0, "") and "nothing" in empty.err
    assert read(admin("usage", "summary", "--by", "day", *only))["items"][0]["id"] == today


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--by", "colour"], 2), (["--since", "soon"], 2), (["--since", "2026-02-30"], 2), (["--until", "7d"], 2), (["--since", "0d"], 2),
        (["--since", "2026-11-02", "--until", "2026-11-01"], 2), (["--team", "nobody"], 6), (["--user", "nobody@example.org"], 6),
        (["--key", "nobody"], 6),
    ],
)  # fmt: skip
def test_wrong_flags_have_their_code(admin, flags, code):
    refused = admin("usage", "summary", *flags)
    assert (refused.code, refused.out) == (code, ""), refused.err


def test_a_whole_key_stays_at_home(cli, fake):
    fake.body = b'{"items": [], "total": {}}'
    assert cli("usage", "summary", "--key", KEY).code == 0
    (asked,) = fake.asked
    assert SECRET not in asked[1] and "key=0123456789" in asked[1]
