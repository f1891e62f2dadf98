"""Every way that a server can fail, and the exit code that says so. The server here is a FAKE that fails on demand."""

import json
import socket
import ssl
import threading

import pytest
import trustme

from mindgw.client import api, contexts, credentials
from mindgw.client.contexts import Context, Contexts
from mindgw.client.errors import ClientError, Unreachable, UsageProblem
from mindgw.client.redaction import redact
from mindgw.client.transport import Server
from tests.faces.conftest import KEY, SECRET

ENVELOPE = {"error": {"message": "No.", "type": "t", "param": None, "code": "nope", "hint": "Ask again.", "request_id": "r-1"}}


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 4), (403, 5), (404, 6), (405, 1), (409, 7), (412, 7), (413, 1), (429, 8), (500, 1), (502, 1), (503, 1), (302, 1)],
)
def test_each_status_has_its_exit_code(cli, fake, status, code):
    fake.status, fake.body = status, json.dumps(ENVELOPE).encode()
    refused = cli("keys", "list")
    assert (refused.code, refused.out) == (code, "")
    assert refused.err == f"error: No.\nhint:  Ask again.\nref:   code=nope  rid=r-1  exit {code}\n"


def test_errors_are_one_json_object_on_stderr_when_data_would_be(cli, fake):
    fake.status, fake.body = 404, json.dumps(ENVELOPE).encode()
    refused = cli("keys", "list", "--json")
    assert (refused.code, refused.out) == (6, "")
    assert json.loads(refused.err) == {"error": {"code": "nope", "message": "No.", "hint": "Ask again.", "request_id": "r-1"}}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>nginx</html>", b"null", b"[]", b'{"error":"text"}', b'{"error":{}}', b"\xff\xfe", b"[" * 9000, b'{"error":null}',
        b'{"detail":"Not Found"}', b'{"error":{"message":"No.","type":"NotFoundError","param":null,"code":404}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 401, 404, 500])
def test_an_error_without_our_envelope_is_that_of_somebody_else(cli, fake, status, body):
    fake.status, fake.body = status, body
    refused = cli("keys", "list")
    assert (refused.code, refused.out, refused.err.count("\n")) == (9, "", 3)
    assert f"{fake.url} is not a MindGateway: GET /api/v1/keys ends with HTTP {status}" in refused.err
    assert "code=not_mindgw" in refused.err


def test_where_somebody_else_sends_us_is_told_and_not_followed(cli, fake):
    fake.status, fake.headers["location"], fake.body = 301, "https://login.example/\x1b[2J", b""
    refused = cli("keys", "list")
    assert refused.code == 9
    assert "see https://login.example/\\x1b[2J" in refused.err
    assert len(fake.asked) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_whose_server_is_away_is_told_from_a_stranger(cli, fake, status):
    fake.status, fake.body = status, b"<html>nginx</html>"
    refused = cli("keys", "list")
    assert (refused.code, refused.err.count("\n")) == (9, 3)
    assert "does not reach the server" in refused.err
    assert "code=unreachable" in refused.err


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]", b"{}", b'{"items":3}', b'{"items":[1]}', b"\x00", b"[" * 9000])
def test_a_server_that_answers_something_else_is_no_defect_of_ours(cli, fake, body):
    fake.body = body
    refused = cli("keys", "list")
    assert refused.code == 9
    assert "code=not_mindgw" in refused.err
    assert refused.err.count("\n") == 3


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("version", "--check"), ("keys", "create", "x"), ("keys", "show", "x"), ("keys", "revoke", "x", "-y"),
        ("join-tokens", "create"), ("join-tokens", "revoke", "x", "-y"), ("workers", "show", "x"), ("workers", "remove", "x", "-y"),
        ("models", "list"), ("chat", "hi"), ("chat", "hi", "-m", "m"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"<html>\n<h1>It works!</h1>", b'{"status":"ok"}', b'"hello"'])
def test_no_command_takes_a_stranger_for_a_server(cli, fake, words, body):
    fake.body = body
    refused = cli(*words)
    assert (refused.code, refused.out) == (9, "")
    assert "code=not_mindgw" in refused.err
    assert "mindgw init" in refused.err
    assert refused.err.count("\n") == 3


def test_what_nobody_foresaw_says_so_and_shows_its_traceback_on_debug_alone(cli, fake):
    fake.body = b'{"ready": true, "workers": {}, "queue": {}}'
    plain = cli("status")
    assert plain.code == 1
    assert "this is a defect" in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in cli("status", "--debug").err


def test_verbose_shows_the_exchange_without_the_secret(cli, fake):
    fake.body, fake.headers["x-request-id"] = b'{"items":[],"next":null}', "r-7"
    said = cli("keys", "list", "-v")
    assert "> GET " in said.err
    assert "< 200 OK" in said.err
    assert "request r-7" in said.err
    assert "mgw_0123456789_***" in said.err
    assert SECRET not in said.err + said.out
    assert fake.asked[0][2]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("flags", [[], ["--json"], ["-v"], ["--debug"]])
def test_a_secret_that_a_server_repeats_is_not_passed_on(cli, fake, flags):
    fake.status = 401
    fake.body = json.dumps({"error": {"message": f"bad key {KEY}", "hint": f"Bearer {SECRET}"}}).encode()
    refused = cli("keys", "list", *flags)
    assert refused.code == 4
    assert SECRET not in refused.err + refused.out


def test_all_pages_of_a_list_are_read(fake):
    fake.body, fake.then = b'{"items":[{"id":"a"}],"next":"c/1"}', [b'{"items":[{"id":"b"}],"next":null}']
    assert [item["id"] for item in Server.at(fake.url, KEY).items(api.list_keys())] == ["a", "b"]
    assert [path for _, path, _, _ in fake.asked] == ["/api/v1/keys", "/api/v1/keys?cursor=c%2F1"]


# -- no server at all ---------------------------------------------------------------------------------------------------------


def test_without_a_server_it_says_how_to_get_one(cli):
    refused = cli("keys", "list")
    assert refused.code == 4
    assert "mindgw init" in refused.err


def test_without_a_key_it_says_which_variable(cli):
    refused = cli("keys", "list", "--server", "https://gw.example")
    assert refused.code == 4
    assert "MINDGW_TOKEN" in refused.err


@pytest.mark.parametrize(
    "url", ["", "gw", "ftp://x", "https://", "http://:8420", "https://h:99999", "https://h:x", "https://a b", "https://u:p@h"]
)
def test_a_wrong_address_is_a_wrong_command(url):
    with pytest.raises(UsageProblem):
        Server.at(url, KEY)


@pytest.mark.parametrize("url", ["http://gw.example:8420", "http://10.0.0.1", "http://localhost.example"])
def test_a_key_does_not_travel_in_the_clear(cli, monkeypatch, url):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    refused = cli("keys", "list", "--server", url)
    assert refused.code == 2
    assert "in the clear" in refused.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:8420/v1/", "http://127.0.0.1:8420/v1", "http://127.0.0.1:8420/"])
def test_the_base_url_of_the_openai_api_is_as_good(url):
    assert Server.at(url).url == "http://127.0.0.1:8420"


def test_nobody_there_ends_with_9(cli, monkeypatch, closed_port):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    refused = cli("keys", "list", "--server", f"http://127.0.0.1:{closed_port}")
    assert refused.code == 9
    assert "nothing listens" in refused.err


def test_silence_ends_with_9_when_the_time_is_up(cli, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused = cli("keys", "list", "--timeout", "0.2", "--server", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert refused.code == 9
    assert "within 0.2 s" in refused.err


def test_what_is_not_http_ends_with_9(cli, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    with socket.create_server(("127.0.0.1", 0)) as odd:
        thread = threading.Thread(target=_say, args=(odd, b"SSH-2.0-OpenSSH\r\n\r\n"))
        thread.start()
        refused = cli("keys", "list", "--server", f"http://127.0.0.1:{odd.getsockname()[1]}")
        thread.join()
    assert refused.code == 9


def _say(listener, words, heard=None):
    connection, _ = listener.accept()
    with connection:
        said = connection.recv(4096)
        if heard is not None:
            heard.append(said)
        connection.sendall(words)


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize("key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("url", ["foo", "gw.example:8420", "ftp://gw.example", "http://:8420"])
def test_what_is_not_an_address_is_a_wrong_command_with_a_key_or_without(cli, monkeypatch, url, key):
    if key:
        monkeypatch.setenv("MINDGW_TOKEN", KEY)
    refused = cli("keys", "list", "--server", url)
    assert (refused.code, refused.err.count("\n")) == (2, 3)
    assert f"{url!r} is not an address of a server" in refused.err
    assert "https://host:port" in refused.err


# -- the way out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "way"),
    [
        (("keys", "show", "nobody"), 6, "mindgw keys list"),
        (("keys", "revoke", "nobody", "-y"), 6, "mindgw keys list"),
        (("workers", "show", "nobody"), 6, "mindgw workers list"),
        (("workers", "remove", "nobody", "-y"), 6, "mindgw workers list"),
        (("join-tokens", "revoke", "nobody", "-y"), 6, "mindgw join-tokens list"),
        (("keys", "create", "x", "--priority", "bogus"), 2, "high, normal, batch or sheddable"),
        (("chat", "hi", "-m", "nothing"), 6, "mindgw models list"),
        (("chat", "hi"), 6, "mindgw join-tokens create"),
    ],
)
def test_a_refusal_names_the_next_command(admin, words, code, way):
    refused = admin(*words)
    assert (refused.code, refused.out) == (code, "")
    assert way in refused.err
    assert [line.split(":")[0] for line in refused.err.splitlines()] == ["error", "hint", "ref"]


def test_a_key_that_is_not_good_or_not_there_names_the_way_to_another(cli, admin, gateway, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    assert "mindgw init --new-admin-key" in cli("keys", "list").err
    monkeypatch.delenv("MINDGW_TOKEN")
    refused = cli("keys", "list")
    assert refused.code == 4
    assert "mindgw init --new-admin-key" in refused.err


def test_the_classes_of_priority_are_taken(admin):
    for name in ("high", "normal", "batch"):
        made = admin("keys", "create", f"of-{name}", "--priority", name, "--json")
        assert json.loads(made.out)["priority"] == name
    assert "high|normal|batch" in admin("keys", "create", "--help").out


# -- TLS ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def secured(fake):
    """The fake behind TLS, and the authority that its certificate is from."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    fake.http.socket = tls.wrap_socket(fake.http.socket, server_side=True)
    fake.body = b'{"items":[],"next":null}'
    return fake.url.replace("http:", "https:"), authority.cert_pem.bytes().decode()


def test_the_pinned_authority_is_believed(secured):
    url, pem = secured
    assert Server.at(url, KEY, ca_pem=pem).items(api.list_keys()) == []


def test_an_authority_of_somebody_else_is_not(secured):
    url, _ = secured
    other = trustme.CA().cert_pem.bytes().decode()
    for pem in (other, None):
        with pytest.raises(Unreachable, match="cannot trust"):
            Server.at(url, KEY, ca_pem=pem).items(api.list_keys())


def test_a_damaged_authority_is_named(secured):
    with pytest.raises(UsageProblem, match="cannot be read"):
        Server.at(secured[0], KEY, ca_pem="-----BEGIN NOTHING").items(api.list_keys())


def test_tls_to_a_plain_port_ends_with_9(fake):
    with pytest.raises(Unreachable):
        Server.at(fake.url.replace("http:", "https:"), KEY, timeout=5).items(api.list_keys())


def test_ca_export_of_an_unknown_server_shows_what_to_compare(cli, fake, secured):
    url, pem = secured
    fake.body = pem.encode()
    shown = cli("ca", "export", "--server", url)
    assert (shown.code, shown.out) == (0, pem)
    assert "nobody vouches" in shown.err
    assert "SSL_CERT_FILE=" in shown.err
    assert all("authorization" not in {name.lower() for name in headers} for _, _, headers, _ in fake.asked)


def test_a_proxy_is_asked_for_what_is_far_away_and_hears_no_key(cli, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", KEY)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        thread = threading.Thread(target=_say, args=(proxy, b"HTTP/1.1 403 Forbidden\r\n\r\n", heard))
        thread.start()
        refused = cli("keys", "list", "--server", "https://gw.example:8443")
        thread.join()
    assert refused.code == 9
    assert "403" in refused.err
    assert heard[0].startswith(b"CONNECT gw.example:8443 HTTP/1.")
    assert SECRET.encode() not in heard[0]


# -- contexts -----------------------------------------------------------------------------------------------------------------


def test_the_current_context_is_used_with_its_kept_key(cli, fake, monkeypatch):
    monkeypatch.delenv("MINDGW_TOKEN")
    monkeypatch.delenv("MINDGW_SERVER")
    contexts.save(Contexts().put(Context("lab", fake.url, "", "f1")).put(Context("other", "https://gone.example", "", "f2")))
    credentials.keep("f1", KEY)
    fake.body = b'{"items":[],"next":null}'
    assert cli("keys", "list", "--context", "lab").code == 0
    assert cli("keys", "list", "--server", fake.url + "/v1").code == 0
    assert fake.asked[0][2]["authorization"] == f"Bearer {KEY}"
    assert cli("keys", "list", "-c", "nowhere").code == 6
    assert cli("keys", "list").code == 4


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"Authorization: Bearer {KEY}",
        "mgwj1_abcDEF123_aB3dE9",
        f"mgws_0123456789_{SECRET}",
        f"Bearer mgws_0123456789_{SECRET}",
        f"mgwi_01k9abcdefghjkmnpqrstvwxyz_{SECRET}",
        f"eyJhbGciOiJFZERTQSJ9.eyJpc3MiOjF9.{SECRET}",
        "Bearer abc.def.ghi",
        "basic dXNlcjpwYXNz",
        "postgres://joe:hunter2@db/x",
    ],
)
def test_no_secret_survives_redaction(text):
    assert not any(secret in redact(text) for secret in (SECRET, "abcDEF123", "abc.def", "dXNlcjpwYXNz", "hunter2"))


def test_errors_never_carry_a_secret():
    error = ClientError(f"with {KEY}", hint=KEY)
    assert SECRET not in error.message + error.hint + str(error)
    assert SECRET not in repr(Server.at("https://h", KEY))
