"""`mindgw audit`, against the real server."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mindgw.cli.app import main


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def made(admin):
    """A key with a name of its own."""
    return read(admin("keys", "create", f"k-{os.urandom(4).hex()}", "--json"))


def test_what_was_done_is_listed(admin, made):
    shown = admin("audit", "list", "--object", made["id"])
    head, row = shown.out.splitlines()
    assert head.split() == ["SEQ", "WHEN", "ACTOR", "FROM", "ACTION", "OUTCOME", "OBJECT", "DETAIL"]
    assert {"admin", "key.create", "ok", made["id"], f"name={made['name']}"} <= set(row.split())
    (item,) = read(admin("audit", "list", "--object", made["id"], "--json"))["items"]
    assert admin("audit", "list", "--object", made["id"], "-o", "name").out.split() == [str(item["seq"])]
    assert read(admin("audit", "ls", "--actor", "nobody", "--json"))["items"] == []
    assert len(read(admin("audit", "list", "--limit", "1", "--action", "key.*", "--json"))["items"]) == 1


def test_a_whole_key_that_is_pasted_is_not_sent(admin, made):
    (item,) = read(admin("audit", "list", "--object", made["key"], "--action", "key.create", "--json"))["items"]
    assert item["object"] == made["id"]


def test_the_last_ones_are_shown_oldest_first(admin, made):
    lines = [json.loads(line) for line in admin("audit", "tail", "-n", "3", "--json").out.splitlines()]
    numbers = [line["seq"] for line in lines]
    assert numbers == sorted(numbers) and len(numbers) == 3
    assert made["id"] in admin("audit", "tail").out


def test_those_that_come_are_followed_until_ctrl_c(admin, gateway):
    command = [sys.executable, "-m", "mindgw", "audit", "tail", "-f", "-n", "1", "--interval", "0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline()
        made = read(admin("keys", "create", "followed", "--json"))
        found = ""
        while made["id"] not in found:
            found = child.stdout.readline()
            assert found
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
    admin("keys", "revoke", made["id"], "--yes")


def test_all_of_it_is_exported_and_its_end_is_told(admin, made, tmp_path):
    done = admin("audit", "export")
    *entries, last = [json.loads(line) for line in done.out.splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert last["end"]["hash"] == entries[-1]["hash"]
    assert f"{len(entries)} entries" in done.err and last["end"]["hash"] in done.err
    assert made["key"] not in done.out


def test_an_export_that_breaks_off_is_a_failure(fake, cli):
    fake.body = b'{"seq":1}\n'
    done = cli("audit", "export")
    assert (done.code, "broke off" in done.err) == (1, True)


def test_a_record_that_is_right_is_said_to_be(admin, made):
    done = admin("audit", "verify")
    assert done.code == 0 and "as it was written" in done.err and "The chain ends with entry" in done.err
    assert read(admin("audit", "verify", "--json"))["ok"] is True


WORDS = [
    {"state": "checking", "checked": {"entries": 5}},
    {"state": "broken", "seq": 4, "what": "it is not what was written"},
    {"state": "done", "ok": False, "broken": 2, "first": 4, "checked": {"entries": 9}, "end": {"seq": 9, "hash": "ab"}},
]


def test_a_record_that_was_changed_ends_with_code_3(fake, cli):
    fake.body = b"".join(json.dumps(word).encode() + b"\n" for word in WORDS)
    done = cli("audit", "verify")
    assert done.code == 3
    assert done.out.splitlines()[1].split()[0] == "4"
    assert "entry 4 is the first that is wrong, of 2, 1 of them are not shown" in done.err
    found = cli("audit", "verify", "--json")
    assert found.code == 3
    shown = json.loads(found.out)
    assert (shown["ok"], shown["first"], shown["broken_count"], shown["broken"]) == (
        False, 4, 2, [{"seq": 4, "what": "it is not what was written"}],
    )  # fmt: skip


def test_a_check_that_breaks_off_is_a_failure(fake, cli):
    fake.body = b'{"state":"failed"}\n'
    assert cli("audit", "verify").code == 1


def test_nobody_without_the_right_reads_it(admin, gateway, monkeypatch, capfd, made):
    monkeypatch.setenv("MINDGW_TOKEN", made["key"])
    assert main(["audit", "list"]) == 5
    assert main(["audit", "verify"]) == 5
    assert main(["audit", "export"]) == 5
    assert "read:audit" in capfd.readouterr().err
