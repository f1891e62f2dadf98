"""What the agent says to servers that are not, or not yet known to be, the one of its token."""

import base64
import contextlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from mindgw_agent import address, errors, identity, join
from mindgw_agent.door import MAX_ANSWER, open_door
from mindgw_agent.settings import StateDir
from mindgw_agent.tokens import JoinToken

Reply = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n".encode() + body


class Recorder:
    """A server that writes down all that it is told."""

    def __init__(self, reply: Reply, context: ssl.SSLContext | None) -> None:
        self.heard: list[bytes] = []
        self.connections = 0
        self._reply = reply
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), plain:
                self._talk(plain)

    def _talk(self, plain: socket.socket) -> None:
        plain.settimeout(5)
        with self._context.wrap_socket(plain, server_side=True) if self._context else plain as talk:
            data = talk.recv(65536)
            while data[:4] in (b"GET ", b"POST") and b"\r\n\r\n" not in data:
                data += talk.recv(65536)
            self.heard.append(data)
            talk.sendall(self._reply(data))

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@contextlib.contextmanager
def recording(reply: Reply, authority: trustme.CA | None = None, name: str = "127.0.0.1") -> Iterator[Recorder]:
    context = None
    if authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
    with Recorder(reply, context) as made:
        yield made


def a_token(*urls: str, pins: list[bytes] | None = None) -> JoinToken:
    srv = identity.public_half(identity.new_key())
    return JoinToken(urls=list(urls), id=secrets.token_bytes(8), secret=secrets.token_bytes(32), pins=pins or [], srv=srv, exp=2**33)


def assert_no_secret(recorder: Recorder, token: JoinToken, state: StateDir) -> None:
    said = b"".join(recorder.heard)
    key = state.private_key()
    for secret in (token.secret, token.id, key, identity.public_half(key)):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), base64.urlsafe_b64encode(secret).rstrip(b"=")):
            assert form not in said


@pytest.mark.parametrize("shown", ["its own CA", "the right CA"])
def test_a_wrong_server_is_told_nothing_even_when_the_system_trusts_it(shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor, real = trustme.CA(), trustme.CA()
    (tmp_path / "system.pem").write_bytes(impostor.cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    pem = (impostor if shown == "its own CA" else real).cert_pem.bytes()
    state = StateDir(tmp_path / "state")
    with recording(lambda _: answer(pem), impostor) as server:
        # the system trusts it indeed
        plain = socket.create_connection(("127.0.0.1", server.port))
        with ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1") as trusted:
            trusted.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert trusted.recv(12) == b"HTTP/1.1 200"
        token = a_token(f"https://127.0.0.1:{server.port}", pins=[identity.pin_of(real.cert_pem.bytes())])
        with pytest.raises(errors.Untrusted) as caught:
            join.join(state, token)
    assert (caught.value.exit_code, state.load()) == (9, None)
    assert caught.value.hint
    assert_no_secret(server, token, state)
    assert {line.split(b" ")[1] for line in server.heard[1:]} <= {b"/.well-known/mindgw/ca.pem"}


def test_the_error_names_who_issued_the_certificate_of_an_opened_connection(tmp_path: Path) -> None:
    inspecting, real = trustme.CA(organization_name="Inspecting Proxy Inc"), trustme.CA()
    with recording(lambda _: answer(real.cert_pem.bytes()), inspecting) as server:
        token = a_token(f"https://127.0.0.1:{server.port}", pins=[identity.pin_of(real.cert_pem.bytes())])
        with pytest.raises(errors.Untrusted, match="Inspecting Proxy Inc") as caught:
            join.join(StateDir(tmp_path), token)
    assert "proxy" in caught.value.hint


def test_a_certificate_for_another_name_is_refused_with_the_remedy(tmp_path: Path) -> None:
    authority = trustme.CA()
    with recording(lambda _: answer(authority.cert_pem.bytes()), authority, name="10.1.2.3") as server:
        token = a_token(f"https://127.0.0.1:{server.port}", pins=[identity.pin_of(authority.cert_pem.bytes())])
        with pytest.raises(errors.Untrusted) as caught:
            join.join(StateDir(tmp_path), token)
        assert_no_secret(server, token, StateDir(tmp_path))
    assert f"--public-url https://127.0.0.1:{server.port}" in caught.value.hint


def test_a_token_without_a_pin_is_for_servers_that_the_system_believes(tmp_path: Path) -> None:
    """Nobody else is told anything; and one that the system believes must still prove that it is the server of the token."""
    authority = trustme.CA()
    with recording(lambda _: answer(b"{}"), authority) as server:
        token = a_token(f"https://127.0.0.1:{server.port}")
        with pytest.raises(errors.Untrusted, match="is refused") as caught:
            join.join(StateDir(tmp_path), token)
        assert server.heard in ([], [b""])
    assert "--public-pki" in caught.value.hint


def test_a_server_with_a_public_certificate_must_be_the_one_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    (tmp_path / "roots.pem").write_bytes(authority.cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    state = StateDir(tmp_path / "agent")
    with recording(lambda _: answer(b'{"nonce":"","server_version":"1","signature":""}'), authority) as server:
        token = a_token(f"https://127.0.0.1:{server.port}")
        with pytest.raises((errors.Untrusted, errors.Unreachable)):
            join.join(state, token)
        assert len(server.heard) == 1, "it is asked who it is, and told no more"
        assert_no_secret(server, token, state)


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"", "404 Not Found"),
        answer(b"", "302 Found", "Location: https://127.0.0.1:1/\r\n"),
        answer(b"<html>hello</html>"),
        answer(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        answer(b"x" * (MAX_ANSWER * 2)),
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
    ids=["404", "redirect", "html", "damaged", "huge", "ssh", "nothing"],
)
def test_strange_ca_files_end_the_join_before_anything_is_said(reply: bytes, tmp_path: Path) -> None:
    authority = trustme.CA()
    state = StateDir(tmp_path)
    with recording(lambda _: reply, authority) as server:
        token = a_token(f"https://127.0.0.1:{server.port}", pins=[identity.pin_of(authority.cert_pem.bytes())])
        with pytest.raises((errors.Untrusted, errors.Unreachable)) as caught:
            join.join(state, token)
        assert_no_secret(server, token, state)
    assert caught.value.exit_code == 9


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", errors.Unreachable),
        (b"\r\n\r\n", errors.Unreachable),
        (b"HTTP/1.1 banana\r\n\r\n", errors.Unreachable),
        (answer(b"<html>", "500 Oops"), errors.Unreachable),
        (answer(b"<html>", "503 Later"), errors.Unreachable),
        (answer(b'{"error":{"message":"draining","code":"server_draining"}}', "503 Later"), errors.Unreachable),
        (answer(b"{}"), errors.Unreachable),
        (answer(b'{"nonce":"AA","signature":""}'), errors.Unreachable),
        (answer(b"\xff"), errors.Unreachable),
        (answer(b"[" * 60_000), errors.Unreachable),
        (answer(b'{"error":{"message":"no","code":"teapot"}}', "418 I am"), errors.AgentError),
        (answer(b'{"error":7}', "400 Bad"), errors.Unreachable),
        (answer(b"", "307 Away", "Location: http://127.0.0.1:1/\r\n"), errors.Unreachable),
    ],
)
def test_strange_answers_to_the_question_are_told_and_get_no_proof(reply: bytes, kind: type[Exception], tmp_path: Path) -> None:
    with recording(lambda _: reply) as server:
        token = a_token(f"http://127.0.0.1:{server.port}")
        with pytest.raises(kind):
            join.join(StateDir(tmp_path), token)
    assert not any(b"proof" in said for said in server.heard)


@pytest.mark.parametrize("url", ["http://localhost:{port}", "ws://localhost:{port}", "http://gw.example:{port}", "http://0.0.0.0:{port}"])
def test_nobody_is_dialled_without_tls_but_a_literal_loopback_address(url: str, tmp_path: Path) -> None:
    with recording(lambda _: answer(b"{}")) as server:
        with pytest.raises(errors.Misuse, match="plain HTTP") as caught:
            join.join(StateDir(tmp_path), a_token("http://127.0.0.1:1"), servers=(url.format(port=server.port),))
        assert server.connections == 0
    assert caught.value.exit_code == 2


def test_the_gravest_failure_is_told_when_no_url_is_good(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    with recording(lambda _: answer(other.cert_pem.bytes()), other) as server:
        urls = ("http://127.0.0.1:1", "http://localhost:1", f"https://127.0.0.1:{server.port}")
        with pytest.raises(errors.Untrusted):
            join.join(StateDir(tmp_path), a_token(*urls, pins=[identity.pin_of(authority.cert_pem.bytes())]))


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.Unreachable, match="Connection refused") as caught:
        join.join(StateDir(tmp_path), a_token("http://127.0.0.1:1"))
    assert "mindgw serve" in caught.value.hint


def test_plain_http_behind_an_https_address_is_told() -> None:
    with recording(lambda _: answer(b"hello")) as server, pytest.raises(errors.Unreachable, match="does not speak TLS"):
        open_door(address.parse(f"https://127.0.0.1:{server.port}"), [bytes(32)])


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "empty"), ("mgw_abc", "wrong_kind"), ("hello", "wrong_kind"), ("mgwj9_x", "version"), ("mgwj1_abc", "truncated")],
)
def test_a_text_that_is_no_token_is_told(text: str, code: str) -> None:
    with pytest.raises(errors.Misuse) as caught:
        join.read_token(text)
    assert (caught.value.exit_code, caught.value.code) == (2, f"join_token_{code}")


def test_a_pin_picks_its_certificate_out_of_a_bundle_and_drops_the_others() -> None:
    ours, theirs = trustme.CA().cert_pem.bytes(), trustme.CA().cert_pem.bytes()
    kept = identity.pinned_part(theirs + b"# a comment\n" + ours, [identity.pin_of(ours)])
    assert kept.strip() == ours.strip()
    assert len(identity.pinned_context(kept).get_ca_certs()) == 1
