"""Management from the command line, against the real server."""

import asyncio
import json
import os

import pytest

from mindgw import config
from mindgw.client.errors import ClientError
from mindgw.store import fleet
from mindgw.store.database import Database
from mindgw_agent.tokens import JoinToken, parse_key
from tests.faces.conftest import Terminal


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def key(admin):
    """A new key, as `keys create --json` shows it."""
    return read(admin("keys", "create", "ci-bot", "--team", "nlp", "--user", "Ana@Example.org", "--priority", "high", "--json"))


@pytest.fixture
def worker(gateway):
    """A worker that has joined and is away now."""

    async def add():
        database = Database(config.load(None, gateway.data_dir).database_url)
        async with database.write() as session:
            row = await fleet.add_worker(session, f"box-{os.urandom(4).hex()}", os.urandom(32))
            await fleet.note_report(
                session, row.id, row.created_at, models=[{"id": "m", "kinds": ["chat"]}], engine={"kind": "vllm", "version": "9"}
            )
        await database.close()
        return row.name

    return asyncio.run(add())


# -- keys ---------------------------------------------------------------------------------------------------------------------


def test_quietly_made_a_key_is_all_that_is_printed(admin):
    made = admin("keys", "create", "quiet", "-q")
    assert (made.code, made.err) == (0, "")
    assert parse_key(made.out.rstrip("\n"))


def test_a_new_key_is_data_and_the_rest_is_talk(admin):
    made = admin("keys", "create", "loud")
    secret = made.out.strip()
    assert parse_key(secret)
    assert secret not in made.err
    assert "not shown again" in made.err


def test_a_key_tells_whose_it_is(key):
    assert {
        "name": "ci-bot",
        "team": "nlp",
        "user": "ana@example.org",
        "priority": "high",
        "role": None,
        "version": 1,
    }.items() <= key.items()


def test_the_secret_is_shown_once(admin, key):
    shown = read(admin("keys", "show", key["id"], "--json"))
    assert shown == {field: value for field, value in key.items() if field != "key"}
    assert key["key"] not in admin("keys", "list", "--json").out


@pytest.mark.parametrize("words", ["keys list", "key list", "keys ls", "key ls"])
def test_the_list_has_aliases_and_one_shape(admin, key, words):
    listed = read(admin(*words.split(), "--json"))
    assert listed.keys() == {"items", "next"}
    assert listed["next"] is None
    assert key["id"] in [item["id"] for item in listed["items"]]


@pytest.mark.parametrize("flags", [["-o", "name"], ["-q"]])
def test_names_alone_are_for_pipes(admin, key, flags):
    listed = admin("keys", "list", *flags)
    assert key["id"] in listed.out.splitlines()
    assert all(len(line) == 10 for line in listed.out.splitlines())


def test_the_table_has_a_head_and_straight_columns(admin, key):
    head, *rows = admin("keys", "list").out.splitlines()
    assert head.split()[:3] == ["ID", "NAME", "OWNER"]
    row = next(row for row in rows if row.startswith(key["id"]))
    assert row[head.index("NAME") :].startswith("ci-bot")
    assert row[head.index("STATE") :].startswith("active")


@pytest.mark.parametrize("verb", ["revoke", "rm", "remove", "delete"])
def test_revoking_is_final_and_may_be_repeated(admin, key, verb):
    assert admin("keys", verb, key["id"], "--yes").code == 0
    again = read(admin("key", verb, key["id"], "--yes", "--json"))
    assert again["state"] == "revoked"
    assert again["version"] == 2


def test_a_whole_key_stands_for_its_id_and_never_reaches_an_address(admin, key):
    shown = admin("keys", "show", key["key"], "-v", "--json")
    assert read(shown)["id"] == key["id"]
    assert key["key"] not in shown.err


def test_revoking_asks_and_cannot_be_asked_in_a_script(admin, key):
    for flags in ([], ["--no-input"]):
        refused = admin("keys", "revoke", key["id"], *flags)
        assert refused.code == 2
        assert "--yes required" in refused.err
    assert read(admin("keys", "show", key["id"], "--json"))["state"] == "active"


@pytest.mark.parametrize(
    ("answer", "code", "state"), [("y\n", 0, "revoked"), ("\n", 1, "active"), ("\x04", 1, "active"), ("\x03", 130, "active")]
)
def test_on_a_terminal_the_answer_decides(admin, key, answer, code, state):
    terminal = Terminal("keys", "revoke", key["id"])
    asked = terminal.hear("[y/N]")
    assert "ci-bot" in asked and "never used" in asked
    terminal.type(answer)
    assert terminal.end().code == code
    assert read(admin("keys", "show", key["id"], "--json"))["state"] == state


def test_a_key_that_is_not_an_admins_may_not_manage(cli, gateway, key, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", key["key"])
    refused = cli("keys", "list", "--server", gateway.url)
    assert refused.code == 5
    assert "read:keys" in refused.err


@pytest.mark.parametrize(
    ("words", "code"),
    [(["show", "nobody"], 6), (["revoke", "nobody", "-y"], 6), (["create", " "], 2), (["create", "x", "--user", "nobody"], 2)],
)
def test_what_cannot_be_done_has_its_code(admin, words, code):
    refused = admin("keys", *words)
    assert (refused.code, refused.out) == (code, "")


def test_of_two_keys_with_one_name_the_id_decides(admin):
    for _ in range(2):
        admin("keys", "create", "twin")
    assert admin("keys", "show", "twin").code == 7


# -- join tokens --------------------------------------------------------------------------------------------------------------


def test_quietly_made_a_join_token_is_all_that_is_printed(admin):
    made = admin("join-tokens", "create", "-q", "--ttl", "15m", "--uses", "3", "--name", "box")
    assert (made.code, made.err) == (0, "")
    token = JoinToken.decode(made.out.strip())
    shown = next(item for item in read(admin("join-tokens", "list", "--json"))["items"] if item["id"] == token.id.hex())
    assert {"state": "active", "uses": 0, "max_uses": 3, "name": "box", "approve": "auto"}.items() <= shown.items()


def test_a_revoked_join_token_says_so(admin):
    made = read(admin("join-token", "create", "--json"))
    assert admin("join-tokens", "revoke", made["id"], "-y").code == 0
    listed = read(admin("join-tokens", "ls", "--json"))["items"]
    assert [item["state"] for item in listed if item["id"] == made["id"]] == ["revoked"]
    assert made["token"] not in json.dumps(listed)


@pytest.mark.parametrize("flags", [["--ttl", "soon"], ["--ttl", "0s"], ["--uses", "0"], ["--name", "a b"]])
def test_terms_that_make_no_sense_are_refused(admin, flags):
    assert admin("join-tokens", "create", *flags).code == 2


# -- workers, models, the rest ------------------------------------------------------------------------------------------------


def test_a_worker_that_is_away_is_shown_with_what_it_last_said(admin, worker):
    listed = admin("workers", "list")
    assert worker in listed.out
    assert "offline: " in listed.err and worker in listed.err
    shown = read(admin("worker", "get", worker, "--json"))
    assert {"name": worker, "state": "offline", "slots": 0, "used": 0}.items() <= shown.items()
    assert shown["engine"] == {"kind": "vllm", "version": "9", "url": ""}
    assert [model["id"] for model in shown["models"]] == ["m"]
    assert worker in admin("workers", "list", "-q").out.splitlines()


@pytest.mark.parametrize("by", [["--yes"], ["--confirm", "{}"]])
def test_a_removed_worker_is_gone(admin, worker, by):
    assert admin("workers", "remove", worker, *(word.format(worker) for word in by)).code == 0
    assert admin("workers", "show", worker).code == 6


def test_removing_a_worker_asks_for_its_name(admin, worker):
    refused = admin("workers", "rm", worker, "--confirm", "another")
    assert refused.code == 2
    assert f"--confirm={worker}" in refused.err
    assert admin("workers", "show", worker).code == 0


@pytest.mark.parametrize(("typed", "code", "left"), [("{}\n", 0, 6), ("another\n", 2, 0), ("\n", 2, 0)])
def test_on_a_terminal_the_typed_name_decides(admin, worker, typed, code, left):
    terminal = Terminal("workers", "remove", worker)
    assert "0 requests in flight" in terminal.hear("Type its name:")
    terminal.type(typed.format(worker))
    assert terminal.end().code == code
    assert admin("workers", "show", worker).code == left


def test_no_model_is_served_yet(admin):
    assert read(admin("models", "list", "--json")) == {"items": [], "next": None}
    assert admin("models", "list").out == ""
    refused = admin("chat", "hello")
    assert refused.code == 6
    assert "join-tokens create" in refused.err


def test_status_ends_with_3_while_nothing_can_answer(admin):
    found = admin("status", "--json")
    assert found.code == 3
    assert json.loads(found.out)["ready"] is True
    assert "worker" in found.err


def test_versions_are_compared(admin):
    found = read(admin("version", "--check", "--json"))
    assert found["server"] == found["version"]


def test_the_ca_is_the_servers(admin, gateway):
    shown = admin("ca", "export")
    assert shown.out == (gateway.data_dir / "ca.pem").read_text()
    assert "SSL_CERT_FILE=" in shown.err


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_colours_are_for_terminals_and_those_who_insist(admin, monkeypatch, environment, coloured, worker):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in admin("workers", "list").out) is coloured
    assert "\x1b[" not in admin("workers", "list", "--no-color").out
    assert "\x1b[" not in admin("workers", "list", "--json").out


def test_errors_of_the_client_are_all_documented():
    kinds = ClientError.__subclasses__()
    assert sorted(kind.exit_code for kind in kinds) == [2, 3, 4, 5, 6, 7, 8, 9]
