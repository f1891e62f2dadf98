"""`mindgw ledger` and `mindgw receipt`, against the real server, and against a FAKE of one that finds what is wrong."""

import json
import os
import sys

import pytest
from sqlalchemy import text

from mindgw_agent import identity, wire
from tests.faces.bookkeeping import book, in_database, receipt, used


def read(result, code=0):
    assert result.code == code, result.err
    return json.loads(result.out)


@pytest.fixture
def request_id(admin, gateway):
    """A request of a key that is called `payer`, in the ledger."""
    key = read(admin("keys", "create", "payer", "--json"))
    id = f"req-{os.urandom(6).hex()}"
    book(gateway, used(id, key, kind="wasted", completion_tokens=1), used(id, key, attempt=2, cost=2_000_000))
    return id


# -- rows --------------------------------------------------------------------------------------------------------------


def test_all_rows_of_a_request_are_shown(admin, request_id):
    shown = read(admin("ledger", "show", request_id, "--json"))["items"]
    assert [(row["attempt"], row["kind"], row["tokens_in"], row["tokens_out"], row["key"], row["cost_usd"]) for row in shown] == [
        (1, "wasted", 10, 1, "payer", "0.000003"), (2, "settled", 10, 5, "payer", "2.00")
    ]  # fmt: skip
    head, *rows = admin("ledger", "show", request_id).out.splitlines()
    assert head.split()[:3] == ["ATTEMPT", "KIND", "OUTCOME"] and [row.split()[1] for row in rows] == ["wasted", "settled"]
    assert len(admin("ledger", "show", request_id, "-q").out.splitlines()) == 2


@pytest.mark.parametrize("words", [["ledger", "show"], ["receipt"]])
@pytest.mark.parametrize(("request_name", "code"), [("nothing", 6), ("x" * 1001, 2), ("a/b?c&d=e#f", 6), ("", 2)])
def test_a_request_that_nobody_knows_exits_6(admin, words, request_name, code):
    refused = admin(*words, request_name)
    assert (refused.code, refused.out) == (code, "")


# -- the check ---------------------------------------------------------------------------------------------------------


def test_books_that_are_right_exit_0(admin, request_id):
    found = admin("ledger", "verify")
    assert (found.code, found.out) == (0, "") and "The books are right" in found.err and "rows" in found.err
    shown = read(admin("ledger", "verify", "--json"))
    assert (shown["ok"], shown["broken"], shown["broken_count"]) == (True, [], 0)
    assert shown["checked"]["rows"] >= 2
    head = shown["heads"][-1]
    assert len(bytes.fromhex(head["hash"])) == 32
    assert f"ends with commit {head['epoch']}.{head['seq']}, hash {head['hash']}" in found.err


def test_books_that_are_wrong_exit_3_and_are_told(admin, gateway):
    scope = f"model:{os.urandom(4).hex()}"
    admin("quotas", "set", scope, "--tokens", "10/total")

    async def tamper(session, used):

        await (await session.connection()).execute(
            text("UPDATE budgets SET used = :used WHERE scope = :scope"), {"used": used, "scope": scope}
        )

    in_database(gateway, lambda session: tamper(session, 7))
    try:
        found = admin("ledger", "verify")
        assert found.code == 3
        head, row = found.out.splitlines()
        assert head.split() == ["INVARIANT", "WHERE", "PROBLEM"] and row.split()[:2] == ["I1", scope]
        assert "The books are wrong: 1 thing;" in found.err
        shown = read(admin("ledger", "verify", "--json"), code=3)
        assert [(one["invariant"], one["where"]) for one in shown["broken"]] == [("I1", f"{scope} tokens total")]
        assert shown["ok"] is False
    finally:
        in_database(gateway, lambda session: tamper(session, 0))
    assert admin("ledger", "verify").code == 0


def words(*said):
    return b"".join(json.dumps(word).encode() + b"\n" for word in said)


CHECKING = {"state": "checking", "checked": {"rows": 5000}}
BROKEN = {"state": "broken", "invariant": "I4", "where": "req-1\x1b[2J", "what": "an attempt ended 2 times"}


def test_what_is_not_told_one_by_one_is_counted(cli, fake):
    fake.body = words(CHECKING, BROKEN, {"state": "done", "ok": False, "broken": 5000, "checked": {}})
    found = cli("ledger", "verify")
    assert found.code == 3 and "5000 things, 4999 of them are not shown; looked at nothing yet" in found.err
    assert "\x1b" not in found.out + found.err, "progress is for terminals, and names drive none"


@pytest.mark.parametrize("heads", [None, 3, "x", [], [None, 3], [{}], [{"hash": "\x1b[2J"}]])
def test_heads_in_no_known_shape_break_nothing(cli, fake, heads):
    fake.body = words({"state": "done", "ok": True, "broken": 0, "checked": {}, "heads": heads})
    for flags in ([], ["--json"]):
        found = cli("ledger", "verify", *flags)
        assert found.code == 0 and "\x1b" not in found.out + found.err


@pytest.mark.parametrize("body", [b"", words(CHECKING), words(CHECKING, BROKEN), words(CHECKING, {"state": "failed"})])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_check_that_breaks_off_is_no_good_news(cli, fake, body, flags):
    fake.body = body
    found = cli("ledger", "verify", *flags)
    assert (found.code, found.out) == (1, "") and "the check broke off" in found.err


@pytest.mark.parametrize("body", [b"<html>", b"{}\n", b"[]\n", b'{"state": 3}\n', b"\xff\n", b"[" * 5000, b'{"state":"' + b"x" * 2**20])
def test_somebody_who_checks_nothing_is_no_mindgateway(cli, fake, body):
    fake.body = body
    found = cli("ledger", "verify")
    assert found.code == 9 and "code=not_mindgw" in found.err


def test_a_terminal_shows_how_far_it_is(cli, fake, monkeypatch):
    fake.body = words(CHECKING, {"state": "done", "ok": True, "broken": 0, "checked": {"rows": 9000}})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    found = cli("ledger", "verify")
    shown, _, rest = found.err.partition("5,000 rows")
    assert (found.code, shown) == (0, "\rchecking: ") and rest.startswith("\x1b[K\r\r\x1b[K\r"), "it is gone when the end is told"
    assert "9,000 rows" in rest
    assert "checking" not in cli("ledger", "verify", "-q").err


# -- receipts ----------------------------------------------------------------------------------------------------------


def test_a_receipt_that_is_true_exits_0(admin, gateway):
    key = read(admin("keys", "create", "payer", "--json"))
    id = f"req-{os.urandom(6).hex()}"
    book(gateway, used(id, key))
    box = receipt(gateway, id)
    found = admin("receipt", id)
    lines = {line.split("  ")[0].strip(): line.split("  ", 1)[1].strip() for line in found.out.splitlines()}
    assert (found.code, lines["verified"], lines["request"]) == (0, "yes", id) and box in lines["worker"]
    assert lines["ledger"] == "settled: 10 in, 5 out, 0 cached; it agrees"
    (shown,) = read(admin("receipts", id, "--json"))["items"]
    head, worker = shown["head"], shown["worker_id"]
    message = wire.transcript_receipts(worker, head["seq"], bytes.fromhex(head["hash"]))
    assert identity.verify(bytes.fromhex(shown["public_key"]), bytes.fromhex(head["signature"]), message)
    assert admin("receipt", id, "-q").out.strip() == shown["hash"] == lines["hash"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"honest": False}, "the signature is not that of its worker"), ({"completion": 500}, "the ledger has other numbers")],
)
def test_a_receipt_that_is_not_true_exits_3(admin, gateway, facts, said):
    key = read(admin("keys", "create", "payer", "--json"))
    id = f"req-{os.urandom(6).hex()}"
    book(gateway, used(id, key))
    receipt(gateway, id, **facts)
    found = admin("receipt", id)
    assert found.code == 3 and f"NO: {said}" in found.out and f"attempt 1 is not true: {said}" in found.err
    (shown,) = read(admin("receipt", id, "--json"), code=3)["items"]
    assert (shown["ok"], shown["problems"]) == (False, [said])


def test_a_receipt_without_a_row_is_not_true(admin, gateway):
    id = f"req-{os.urandom(6).hex()}"
    receipt(gateway, id)
    found = admin("receipt", id)
    assert found.code == 3 and "ledger     no row" in found.out
