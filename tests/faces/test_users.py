"""People from the command line, against the real server: from the invitation to the end."""

import io
import json
import os

import pytest

from mindgw.client import contexts, credentials
from mindgw_agent.tokens import parse_invitation, parse_key, parse_session


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture
def email():
    """Of somebody whom no other test knows."""
    return f"ana-{os.urandom(4).hex()}@example.com"


@pytest.fixture
def invitation(admin, email):
    made = admin("users", "invite", email.upper(), "--role", "operator", "--name", "Ana", "-q")
    assert (made.code, made.err) == (0, "")
    return made.out.strip()


@pytest.fixture
def ana(admin, gateway, invitation, monkeypatch):
    """`mindgw` for somebody who has just signed in, in a home of their own."""
    monkeypatch.delenv("MINDGW_TOKEN")
    done = admin("users", "accept", invitation, "--server", gateway.url, "--name", "lab")
    assert done.code == 0, done.err
    return admin


def test_an_invitation_is_data_and_the_rest_is_talk(admin, email, gateway):
    made = admin("users", "invite", email)
    secret = made.out.strip()
    assert parse_invitation(secret)
    assert secret not in made.err
    assert f"mindgw users accept INVITATION --server {gateway.url}" in made.err
    assert read(admin("users", "invite", email, "--json"))["state"] == "invited"


def test_who_accepts_is_signed_in(ana, email, gateway, monkeypatch):
    monkeypatch.delenv("MINDGW_SERVER")
    kept = credentials.find(contexts.load().get().fingerprint)
    assert parse_session(kept)
    assert read(ana("whoami", "--json"))["user"] == email
    assert email in ana("me").out
    assert read(ana("auth", "status", "--json"))["kind"] == "session"
    token = ana("auth", "print-token").out.strip()
    assert token.count(".") == 2
    monkeypatch.setenv("MINDGW_TOKEN", token)
    assert read(ana("whoami", "--json"))["user"] == email
    monkeypatch.delenv("MINDGW_TOKEN")
    assert ana("logout").code == 0
    monkeypatch.setenv("MINDGW_TOKEN", kept)
    gone = ana("whoami", "--server", gateway.url)
    assert gone.code == 4
    assert kept[-38:] not in gone.err


def test_an_invitation_is_good_once_and_comes_from_stdin_too(admin, ana, invitation, gateway, email, monkeypatch):
    again = ana("users", "accept", invitation, "--server", gateway.url, "-y")
    assert again.code == 4
    assert invitation[-38:] not in again.err
    monkeypatch.setenv("MINDGW_TOKEN", gateway.key)
    fresh = admin("users", "invite", email, "-q").out
    monkeypatch.delenv("MINDGW_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO(fresh))
    assert ana("users", "accept", "-", "--server", gateway.url, "-y").code == 0


def test_a_key_that_is_kept_is_not_replaced_unasked(admin, ana, email, gateway, monkeypatch):
    first = credentials.find(contexts.load().get("lab").fingerprint)
    monkeypatch.setenv("MINDGW_TOKEN", gateway.key)
    second, third = (admin("users", "invite", email, "-q").out.strip() for _ in range(2))
    monkeypatch.delenv("MINDGW_TOKEN")
    refused = ana("users", "accept", third, "--server", gateway.url)
    assert refused.code == 2
    assert "--name keeps both" in refused.err
    assert ana("users", "accept", third, "--server", gateway.url, "--name", "other").code == 0
    known = contexts.load()
    assert known.current == "other"
    assert credentials.find(known.get("lab").fingerprint) == first != credentials.find(known.get("other").fingerprint)
    assert read(ana("whoami", "--json", "-c", "lab"))["user"] == email
    assert second != third


@pytest.mark.parametrize("text", ["", "hello", "mgw_0123456789_x", "mgwj1_x"])
def test_what_is_no_invitation_is_sent_nowhere(cli, text, fake, monkeypatch):
    assert cli("users", "accept", text, "--server", fake.url).code == 2
    assert fake.asked == []


def test_an_invitation_needs_a_server(cli):
    assert cli("users", "accept", "mgwi_x").code == 2


def test_people_are_listed_shown_and_changed(admin, email, invitation):
    assert email in admin("users", "list", "-q").out.split()
    shown = read(admin("users", "show", email, "--json"))
    assert (shown["role"], shown["state"], shown["name"]) == ("operator", "invited", "Ana")
    assert "invited" in admin("user", "get", email).out
    assert read(admin("users", "role", email, "viewer", "--json"))["role"] == "viewer"
    assert admin("users", "role", email, "nobody").code == 2
    assert admin("users", "role", email, "user", "--if-version", "1").code == 7
    assert admin("users", "show", "nobody@example.com").code == 6
    assert admin("users", "invite", "nonsense").code == 2


def test_shutting_somebody_out_asks_first_and_can_be_undone(admin, email, invitation):
    assert admin("users", "disable", email).code == 2
    assert read(admin("users", "disable", email, "-y", "--json"))["state"] == "disabled"
    assert "mindgw users enable" in admin("users", "disable", email, "-y").err
    assert admin("users", "invite", email).code == 7
    assert read(admin("users", "enable", email, "--json"))["state"] == "active"
    assert admin("users", "remove", email).code == 2
    assert admin("users", "rm", email, "-y").code == 0
    assert admin("users", "show", email).code == 6


def test_an_admin_sees_where_somebody_is_signed_in_and_ends_it(admin, ana, email, gateway, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", gateway.key)
    (session,) = read(admin("users", "sessions", email, "--json"))["items"]
    assert session["agent"].startswith("mindgw/")
    assert admin("users", "sessions", email, "--end").code == 2
    assert read(admin("users", "sessions", email, "--end", "-y", "--json")) == {"ended": 1}
    monkeypatch.delenv("MINDGW_TOKEN")
    assert ana("whoami").code == 4


def test_a_service_account_is_made(admin):
    name = f"bot-{os.urandom(4).hex()}"
    made = admin("users", "create", name, "--role", "viewer")
    assert made.code == 0
    assert f"--user {name}@service" in made.err
    assert admin("users", "create", name).code == 7
    assert admin("users", "create", "A B").code == 2
    assert "service" in admin("users", "list").out


def test_nobody_does_it_to_themselves(ana, email):
    assert ana("users", "role", email, "user").code == 5  # an operator changes nobody


# -- me


def test_people_see_what_is_theirs(ana, email):
    for words in (("limits",), ("usage",), ("models",), ("queue",), ("sessions",), ("keys", "list")):
        for form in ((), ("--json",), ("-q",)):
            shown = ana("me", *words, *form)
            assert shown.code == 0, (words, shown.err)
    assert read(ana("me", "sessions", "--json"))["items"][0]["current"] is True
    assert read(ana("me", "usage", "--by", "model", "--json"))["total"]["requests"] == 0
    assert ana("me", "usage", "--by", "nonsense").code == 2


def test_people_make_and_revoke_their_own_keys(ana, email):
    made = ana("me", "keys", "create", "laptop", "--models", "llama*", "--rpm", "10", "-q")
    assert (made.code, made.err) == (0, "")
    assert parse_key(made.out.strip())
    (key,) = read(ana("me", "keys", "list", "--json"))["items"]
    assert (key["name"], key["models"], key["rpm"], key["user"]) == ("laptop", ["llama*"], 10, email)
    assert ana("me", "keys", "create", "x", "--team", "other").code == 5
    assert ana("me", "keys", "revoke", "laptop").code == 2
    assert ana("me", "keys", "rm", made.out.strip(), "-y").code == 0
    assert ana("me", "keys", "revoke", "laptop", "-y").code == 6


def test_a_session_elsewhere_is_ended(admin, ana, gateway, email, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", gateway.key)
    other = admin("users", "invite", email, "-q").out.strip()
    monkeypatch.delenv("MINDGW_TOKEN")
    before = {each["id"] for each in read(ana("me", "sessions", "--json"))["items"]}
    assert ana("users", "accept", other, "--server", gateway.url, "-y").code == 0
    assert ana("me", "sign-out", *before).code == 0
    assert [each["current"] for each in read(ana("me", "sessions", "--json"))["items"]] == [True]
    assert ana("me", "sign-out", "0123456789").code == 6
