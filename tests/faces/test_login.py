"""Getting to know a server, signing in to it, leaving it: against a server that each test plays."""

import hashlib
import io
import json
import ssl

import pytest
import trustme

from mindgw.client import contexts, credentials
from mindgw.client.contexts import Context, Contexts
from tests.faces.conftest import KEY, SECRET, Terminal

SESSION = f"mgws_0123456789_{SECRET}"
WHO = {
    "kind": "key", "user": "ana@example.com", "name": "Ana", "team": "nlp", "roles": ["operator"], "permissions": [],
    "key": {"id": "0123456789", "name": "k", "expires_at": None},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _stranger(monkeypatch, fake):
    """Nothing is known of the fake server."""
    monkeypatch.delenv("MINDGW_TOKEN")
    monkeypatch.delenv("MINDGW_SERVER")
    fake.body = json.dumps(WHO).encode()


@pytest.fixture
def types(monkeypatch):
    """Puts a text into stdin."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def secured(fake):
    """The fake behind TLS with an authority of its own: its address, and the PEM."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    fake.http.socket = tls.wrap_socket(fake.http.socket, server_side=True)
    fake.body = authority.cert_pem.bytes()
    fake.then = [json.dumps(WHO).encode()]
    return fake.url.replace("http:", "https:"), authority.cert_pem.bytes().decode()


def sha256(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()


# -- login


@pytest.mark.parametrize("token", [KEY, SESSION, f"  {KEY}\n\nmore"])
def test_a_key_that_is_good_is_kept(cli, fake, types, token):
    types(token)
    done = cli("login", fake.url + "/v1", "--with-token")
    assert (done.code, done.out) == (0, "")
    assert "ana@example.com (operator)" in done.err
    assert SECRET not in done.err
    assert [(method, path, headers["authorization"]) for method, path, headers, _ in fake.asked] == [
        ("GET", "/api/v1/me", f"Bearer {token.strip().split()[0]}")
    ]
    context = contexts.load().get()
    assert (context.name, context.url) == ("127.0.0.1", fake.url)
    assert credentials.find(context.fingerprint) == token.strip().split()[0]
    assert (credentials.home() / "credentials.json").stat().st_mode & 0o777 == 0o600
    fake.body = b'{"items":[],"next":null}'
    assert cli("keys", "list").code == 0


def test_without_a_keyring_it_says_so_unless_told_not_to(cli, fake, types):
    for words, said in (((), True), (("--insecure-storage",), False)):
        types(KEY)
        assert ("no keyring" in cli("login", fake.url, "--with-token", *words).err) is said


def test_a_key_that_is_not_good_is_not_kept(cli, fake, types):
    fake.status, fake.body = 401, b'{"error":{"message":"no","code":"invalid_api_key"}}'
    types(KEY)
    assert cli("login", fake.url, "--with-token").code == 4
    assert contexts.load() == Contexts()
    assert not (credentials.home() / "credentials.json").exists()


def test_what_answers_and_is_no_gateway_is_not_believed(cli, fake, types):
    fake.body = b"{}"
    types(KEY)
    assert cli("login", fake.url, "--with-token").code == 9
    assert contexts.load() == Contexts()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither"),
        ("\n", "neither"),
        ("hello", "neither"),
        (KEY[:-1], "neither"),
        (f"mgwj1_{SECRET}_123456", "join token"),
        (f"mgwi_01k9abcdefghjkmnpqrstvwxyz_{SECRET}", "invitation"),
        ("x" * 10_000, "neither"),
    ],
)
def test_what_is_no_key_is_sent_nowhere(cli, fake, types, text, said):
    types(text)
    done = cli("login", fake.url, "--with-token")
    assert done.code == 2
    assert said in done.err
    assert SECRET not in done.err
    assert fake.asked == []


def test_a_server_must_be_named_the_first_time(cli, types):
    types(KEY)
    assert cli("login", "--with-token").code == 2


@pytest.mark.parametrize("url", ["http://gw.example", "ftp://127.0.0.1", "https://", "https://u:p@h"])
def test_an_address_that_would_carry_it_in_the_clear_is_refused_before_it_is_read(cli, types, url):
    types(KEY)
    assert cli("login", url, "--with-token").code == 2


def test_nobody_is_asked_where_nobody_can_answer(cli, fake, types):
    types(KEY)
    done = cli("login", fake.url)
    assert done.code == 2
    assert "--with-token" in done.err


def test_a_person_types_it_without_being_seen(fake):
    terminal = Terminal("login", fake.url)
    terminal.hear("API key or session:")
    terminal.type(f"{KEY}\n")
    done = terminal.end()
    assert done.code == 0
    assert SECRET not in done.out + done.err
    assert credentials.find(contexts.load().get().fingerprint) == KEY


def test_signing_in_again_needs_no_address_and_replaces_the_key(cli, fake, types):
    types(KEY)
    cli("login", fake.url, "--with-token", "--name", "lab")
    types(SESSION)
    assert cli("login", "--with-token").code == 0
    known = contexts.load()
    assert list(known.items) == ["lab"]
    assert credentials.find(known.get().fingerprint) == SESSION


def test_one_may_be_several_people_on_one_server(cli, fake, types):
    for name, token in (("ana", KEY), ("root", SESSION)):
        types(token)
        assert cli("login", fake.url, "--with-token", "--name", name).code == 0
    known = contexts.load()
    assert [credentials.find(known.get(name).fingerprint) for name in ("ana", "root")] == [KEY, SESSION]
    types(KEY)
    assert cli("login", fake.url, "--with-token", "--name", "root").code == 0
    assert credentials.find(contexts.load().get("root").fingerprint) == KEY


def test_the_name_of_another_server_is_taken(cli, fake, types):
    """Else its key would go to this one, or this one's to it."""
    lab = Context("lab", "https://lab.example", "PEM", "f1")
    contexts.save(Contexts().put(lab))
    for _ in range(2):
        types(KEY)
        assert cli("login", fake.url, "--with-token", "--name", "lab").code == 7
        assert fake.asked == []
        contexts.save(Contexts().put(lab).put(Context("here", fake.url, "", "f2")))
    assert contexts.load().get("lab") == lab


def test_a_server_cannot_claim_the_name_of_another(cli, fake, types):
    """A key is kept under a name that is made here, so no server can have another's key sent to it."""
    contexts.save(Contexts().put(Context("lab", "https://lab.example", "PEM", "f1")))
    credentials.keep("f1", "mgw_labs")
    fake.body = json.dumps({**WHO, "fingerprint": "f1", "server": {"fingerprint": "f1"}}).encode()
    types(KEY)
    assert cli("login", fake.url, "--with-token").code == 0
    assert credentials.find("f1") == "mgw_labs"
    assert contexts.load().get().fingerprint != "f1"


def test_what_the_environment_says_wins_and_that_is_told(cli, fake, types, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    types(SESSION)
    assert "MINDGW_TOKEN is set" in cli("login", fake.url, "--with-token").err


# -- whose certificate


def test_an_authority_that_is_named_is_pinned_before_the_key_is_sent(cli, fake, secured, types):
    url, pem = secured
    types(KEY)
    digits = sha256(pem)
    done = cli("login", url, "--with-token", "--ca-sha256", ":".join(digits[at : at + 2] for at in range(0, 64, 2)).upper())
    assert done.code == 0, done.err
    assert contexts.load().get().ca_pem.strip() == pem.strip()
    assert ["authorization" in headers for _, _, headers, _ in fake.asked] == [False, True]
    assert cli("whoami", "--json").code == 0


def test_another_authority_than_the_one_that_is_named_ends_it(cli, fake, secured, types):
    types(KEY)
    done = cli("login", secured[0], "--with-token", "--ca-sha256", "0" * 64)
    assert done.code == 9
    assert "another CA" in done.err
    assert not any("authorization" in headers for _, _, headers, _ in fake.asked)
    assert contexts.load() == Contexts()


@pytest.mark.parametrize("status", [200, 404])
def test_a_certificate_that_the_system_vouches_for_needs_no_flag(cli, fake, secured, types, tmp_path, monkeypatch, status):
    url, pem = secured
    (tmp_path / "system.pem").write_text(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    assert cli("contexts", "add", "public", url).code == 0 if status == 200 else True
    types(KEY)
    fake.status, fake.then = status, []
    fake.body = json.dumps(WHO).encode() if status == 200 else b'{"error":{"message":"This server has no CA.","code":"not_found"}}'
    done = cli("login", url, "--with-token")
    assert done.code == (0 if status == 200 else 6)
    assert [context.ca_pem for context in contexts.load().items.values()] == ([""] if status == 200 else [])


def test_a_server_that_is_known_without_a_name_for_its_key_gets_one(cli, fake, types):
    contexts.save(Contexts().put(Context("old", fake.url)))
    types(KEY)
    assert cli("login", "--with-token").code == 0
    known = contexts.load().get()
    assert (known.name, credentials.find(known.fingerprint)) == ("old", KEY)


def test_what_is_to_be_compared_is_shown_on_the_server(cli, fake, secured):
    url, pem = secured
    contexts.save(Contexts().put(Context("lab", url, pem, "f1")))
    shown = cli("ca", "fingerprint", "-q")
    assert (shown.code, shown.out.strip().replace(":", "")) == (0, sha256(pem))
    assert json.loads(cli("ca", "fingerprint", "--json").out)["sha256"] == shown.out.strip()
    contexts.save(Contexts().put(Context("lab", url, "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "f1")))
    assert cli("ca", "fingerprint").code == 1


def test_a_number_that_is_none_is_refused(cli, secured, types):
    types(KEY)
    assert cli("login", secured[0], "--with-token", "--ca-sha256", "12:34").code == 2


def test_an_authority_may_come_in_a_file(cli, fake, secured, types, tmp_path):
    url, pem = secured
    file = tmp_path / "ca.pem"
    file.write_text(pem)
    fake.body = json.dumps(WHO).encode()
    types(KEY)
    assert cli("login", url, "--with-token", "--ca", str(file)).code == 0
    types(KEY)
    file.write_text(trustme.CA().cert_pem.bytes().decode())
    assert cli("login", url, "--with-token", "--ca", str(file)).code == 9
    assert contexts.load().get().ca_pem == pem
    for damaged in ("nothing", "-----BEGIN CERTIFICATE-----\nx"):
        file.write_text(damaged)
        types(KEY)
        assert cli("login", url, "--with-token", "--ca", str(file)).code == 2
    assert cli("login", url, "--with-token", "--ca", str(tmp_path / "no")).code == 2


def test_an_authority_that_nobody_named_is_asked_about(cli, fake, secured, types):
    types(KEY)
    done = cli("login", secured[0], "--with-token")
    assert done.code == 2
    assert "--yes required" in done.err
    assert sha256(secured[1])[:2] in done.err
    assert not any("authorization" in headers for _, _, headers, _ in fake.asked)
    fake.body, fake.then = secured[1].encode(), [json.dumps(WHO).encode()]
    types(KEY)
    assert cli("login", secured[0], "--with-token", "--yes").code == 0


# -- logout, whoami, auth


@pytest.fixture
def signed_in(cli, fake, types):
    """Signed in to the fake, with a session."""
    types(SESSION)
    assert cli("login", fake.url, "--with-token", "--name", "lab").code == 0
    fake.asked.clear()
    return fake


def test_logging_out_ends_the_session_and_forgets_it(cli, signed_in):
    signed_in.body = b'{"ended":1}'
    assert cli("logout").code == 0
    assert [(method, path) for method, path, _, _ in signed_in.asked] == [("DELETE", "/api/v1/me/sessions/current")]
    assert credentials.find(contexts.load().get().fingerprint) is None
    assert cli("whoami").code == 4
    assert cli("logout").code == 0


def test_a_session_that_cannot_be_ended_is_forgotten_all_the_same(cli, signed_in):
    signed_in.status = 500
    done = cli("logout")
    assert done.code == 0
    assert "could not be ended" in done.err
    assert credentials.find(contexts.load().get().fingerprint) is None


def test_who_is_not_signed_out_everywhere_hears_so_and_can_try_again(cli, signed_in):
    signed_in.status = 500
    assert cli("logout", "--everywhere").code == 9
    assert [(method, path) for method, path, _, _ in signed_in.asked][:1] == [("DELETE", "/api/v1/me/sessions")]
    assert credentials.find(contexts.load().get().fingerprint) is not None


def test_a_key_is_forgotten_and_stays_good(cli, fake, types):
    types(KEY)
    cli("login", fake.url, "--with-token")
    fake.asked.clear()
    done = cli("logout", "--all", "--everywhere")
    assert done.code == 0
    assert "sessions elsewhere are not ended" in done.err
    assert fake.asked == []
    assert credentials.find(contexts.load().get().fingerprint) is None


def test_logging_out_where_nobody_is_in_is_told(cli):
    assert cli("logout").code == 4
    assert cli("logout", "--all").code == 0


def test_who_one_is(cli, signed_in):
    shown = cli("whoami")
    assert (shown.code, shown.err) == (0, "")
    assert "ana@example.com" in shown.out
    assert "key k (0123456789)" in shown.out
    assert json.loads(cli("whoami", "--json").out) == WHO
    signed_in.body = json.dumps({**WHO, "kind": "session", "key": None, "session": {"id": "abc"}}).encode()
    assert "session abc" in cli("whoami").out


def test_the_state_of_what_is_kept(cli, signed_in, monkeypatch):
    good = json.loads(cli("auth", "status", "--json").out)
    assert (good["state"], good["kind"], good["user"], good["source"]) == ("good", "session", "ana@example.com", "what is kept here")
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    assert json.loads(cli("auth", "status", "--json").out)["source"] == "MINDGW_TOKEN"
    signed_in.status, signed_in.body = 401, b'{"error":{"message":"no","code":"revoked_session"}}'
    dead = cli("auth", "status", "--json")
    assert (dead.code, json.loads(dead.out)["state"]) == (4, "refused")
    signed_in.status = 500
    assert cli("auth", "status").code == 1


def test_the_state_of_what_is_kept_for_a_server_that_is_away(cli, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    monkeypatch.setenv("MINDGW_SERVER", "http://127.0.0.1:1")
    away = cli("auth", "status", "--json")
    assert (away.code, json.loads(away.out)["state"]) == (9, "unreachable")


def test_a_program_gets_a_token_in_place_of_a_session(cli, signed_in, monkeypatch):
    signed_in.body = json.dumps({"token": "eyJ.a.b", "expires_at": "2026-01-01T00:00:00Z"}).encode()
    printed = cli("auth", "print-token")
    assert (printed.code, printed.out, printed.err) == (0, "eyJ.a.b\n", "")
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    signed_in.asked.clear()
    assert cli("auth", "print-token").out == f"{KEY}\n"
    assert signed_in.asked == []


def test_a_token_that_would_drive_the_terminal_is_none(cli, signed_in):
    signed_in.body = json.dumps({"token": "\x1b[2J", "expires_at": ""}).encode()
    assert cli("auth", "print-token").code == 1


# -- contexts


def test_contexts_are_added_used_renamed_and_removed(cli, fake):
    assert cli("contexts", "list").code == 0
    assert cli("contexts", "show").code == 6
    assert cli("contexts", "add", "lab", fake.url).code == 0
    assert cli("contexts", "add", "lab", fake.url).code == 7
    assert cli("contexts", "add", "home", "http://127.0.0.1:1").code == 0
    assert cli("contexts", "list", "-q").out.split() == ["lab", "home"]
    assert json.loads(cli("contexts", "show", "--json").out)["name"] == "home"
    assert cli("contexts", "use", "lab").code == 0
    assert json.loads(cli("context", "show", "--json").out)["url"] == fake.url
    assert cli("contexts", "rename", "lab", "home").code == 7
    assert cli("contexts", "rename", "lab", "office").code == 0
    assert contexts.load().current == "office"
    for words in (("use", "lab"), ("show", "lab"), ("rename", "lab", "x"), ("remove", "lab")):
        assert cli("contexts", *words).code == 6
    assert cli("contexts", "remove", "office").code == 2
    assert cli("contexts", "remove", "office", "--yes").code == 0
    assert list(contexts.load().items) == ["home"]
    assert contexts.load().current == ""


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101])
def test_a_name_that_is_none_is_refused(cli, fake, name):
    assert cli("contexts", "add", name, fake.url).code == 2
    assert contexts.load() == Contexts()


def test_a_key_goes_with_the_last_context_that_shares_it(cli, signed_in):
    known = contexts.load()
    contexts.save(known.put(Context("twin", "https://twin.example", "", known.get().fingerprint)))
    fingerprint = known.get().fingerprint
    assert cli("contexts", "remove", "lab", "-y").code == 0
    assert credentials.find(fingerprint) == SESSION
    assert cli("contexts", "remove", "twin", "-y").code == 0
    assert credentials.find(fingerprint) is None
