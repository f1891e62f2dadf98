"""TLS and pins, with real processes: who is believed, who is told what, and what a refusal says."""

import base64
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trustme
from cryptography import x509

from mindgw_agent import identity, wire
from mindgw_agent.tokens import JoinToken
from tests.e2e.in_between import Relay, relay
from tests.e2e.world import World, free_port, until, world
from tests.real_engine import start_engine

pytestmark = pytest.mark.e2e

#: What the official client does with nothing but SSL_CERT_FILE, a key and base URLs: a streamed answer from each in turn.
SDK = """
import sys
from openai import OpenAI
for url in sys.argv[2:]:
    with OpenAI(base_url=url, api_key=sys.argv[1], max_retries=0) as ai:
        ask = [{"role": "user", "content": "hello"}]
        stream = ai.chat.completions.create(model="tiny-babbler", messages=ask, max_tokens=6, stream=True)
        print(sum(1 for _ in stream), flush=True)
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """URL of one engine for all tests of this file."""
    with start_engine(slots=4) as made:
        yield made.url


@contextlib.contextmanager
def public(folder: Path, host: str = "127.0.0.1") -> Iterator[tuple[World, str]]:
    """A server with a TLS listener on loopback, and its public root URL."""
    with world(folder) as made:
        port = free_port()
        url = f"https://{host}:{port}"
        made.initialise("--public-url", url, "--listen", f"127.0.0.1:{port}")
        made.serve()
        yield made, url


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """One server for the tests that break nothing of it."""
    with public(tmp_path_factory.mktemp("door")) as made:
        yield made


@dataclass(frozen=True)
class Loiterers:
    """Seconds until the server gave up connections that were opened when it started, and said nothing or not enough since then."""

    #: No TLS handshake.
    mute: "Future[float]"
    #: An upgrade and no greeting; and one with pings.
    silent: "Future[float]"
    pinging: "Future[float]"


@pytest.fixture(scope="module", autouse=True)
def loiterers(one: tuple[World, str]) -> Iterator[Loiterers]:
    """They loiter while the tests of this file go on, so that nobody waits for them."""
    made, url = one
    with ThreadPoolExecutor(3) as pool, Caller(made, url) as silent, Caller(made, url) as pinging:
        pinging.send(b"are you there", opcode=9)
        with socket.create_connection(("127.0.0.1", port_of(url)), 30) as mute:
            yield Loiterers(*(pool.submit(seconds_to_the_end, end) for end in (mute, silent.socket, pinging.socket)))


def seconds_to_the_end(connection: socket.socket) -> float:
    """How long until the server closes the connection; whatever it still says is thrown away."""
    begun = time.monotonic()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while connection.recv(65536):
            pass
    return time.monotonic() - begun


@contextlib.contextmanager
def behind_relay(folder: Path) -> Iterator[tuple[World, Relay]]:
    """A server whose public URL is a relay."""
    with world(folder) as made, relay(free_port()) as between:
        made.initialise("--public-url", f"https://127.0.0.1:{between.port}")
        made.serve("--listen", f"127.0.0.1:{between.server}")
        try:
            yield made, between
        finally:
            made.close()  # before the relay, so that its threads find an end


def ca_file(made: World) -> Path:
    """What `mindgw ca export` prints, in a file."""
    file = made.folder / "mindgw-ca.pem"
    file.write_text(made.run("ca", "export").stdout)
    return file


def sdk(key: str, *roots: str, ca: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", **({"SSL_CERT_FILE": str(ca)} if ca else {})}
    command = [sys.executable, "-c", SDK, key, *(f"{root}/v1" for root in roots)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def shown(port: int, ca: Path, name: str) -> x509.Certificate:
    """The certificate on a port of this machine, after it was verified for a name."""
    context = ssl.create_default_context(cafile=str(ca))
    with socket.create_connection(("127.0.0.1", port), 30) as plain, context.wrap_socket(plain, server_hostname=name) as talk:
        return x509.load_der_x509_certificate(talk.getpeercert(binary_form=True) or b"")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def new_token(made: World, *args: str) -> str:
    return made.admin("join-tokens", "create", "-q", *args).stdout.strip()


def join_once(made: World, token: str, *args: str, state: str = "box", **env: str) -> subprocess.CompletedProcess[str]:
    """`agent join --enroll-only`, whatever comes of it."""
    directory = ("--state-dir", str(made.folder / f"agent-{state}"))
    return made.run("agent", "join", token, "--name", state, "--enroll-only", *directory, *args, code=None, env=env)


def refused(done: subprocess.CompletedProcess[str], exit_code: int, code: str) -> str:
    """Checks the three lines of a refusal; returns them."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines[-3:]] == ["error", "hint", "ref"], done.stderr
    assert code in lines[-1]
    return done.stderr


def assert_nothing_secret(said: bytes, made: World, token: str, state: str = "box") -> None:
    """No token, no key, no signature, and none of their parts, in any of the usual forms."""
    parts = JoinToken.decode(token)
    key_file = made.folder / f"agent-{state}" / "agent.key"
    key = base64.b64decode(key_file.read_text()) if key_file.exists() else b""
    secrets = [parts.secret, identity.public_half(parts.secret), *([key, identity.public_half(key)] if key else [])]
    forms = [form for one in secrets for form in (one, one.hex().encode(), base64.b64encode(one).rstrip(b"="))]
    for form in (*forms, token.encode(), token.split("_")[1].encode(), made.key.encode(), made.key.split("_")[2].encode()):
        assert form not in said
    for word in (b"proof", b"signature", b"authorization", b"bearer", parts.id.hex().encode()):
        assert word not in said.lower()


# -- listeners and certificates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_listeners_answer_and_the_sdk_works_over_tls(tmp_path: Path, engine: str, host: str) -> None:
    with public(tmp_path, host) as (made, url):
        assert made.base_url == f"{url}/v1"
        assert made.get("/healthz")[0] == 200
        agent = made.join("box", engine)
        assert f"serving {url}" in agent.said
        ca = ca_file(made)
        trusting = sdk(made.key, url, ca=ca)
        assert trusting.returncode == 0 and int(trusting.stdout) > 0, trusting
        stranger = sdk(made.key, made.root, url)  # over the plain listener it has an answer, over TLS none
        assert int(stranger.stdout) > 0, stranger
        assert stranger.returncode != 0 and "CERTIFICATE_VERIFY_FAILED" in stranger.stderr
        curl = ["curl", "-sS", "--cacert", str(ca), "-H", f"Authorization: Bearer {made.key}", f"{url}/v1/models"]
        if shutil.which("curl"):
            assert b"tiny-babbler" in subprocess.run(curl, capture_output=True, timeout=30, check=True).stdout


def test_commands_use_the_public_url_with_the_pinned_authority(one: tuple[World, str]) -> None:
    made, url = one
    context = json.loads((made.folder / "home/.config/mindgw/contexts.json").read_text())
    [known] = context["items"].values()
    assert known["url"] == url and "BEGIN CERTIFICATE" in known["ca_pem"]
    talk = made.run("keys", "list", "-vv", "--json")
    assert json.loads(talk.stdout)["items"] and url in talk.stderr
    exported = made.run("ca", "export")
    assert exported.stdout == known["ca_pem"] and "SSL_CERT_FILE=mindgw-ca.pem" in exported.stderr


def test_serve_overrides_the_public_url_and_the_listener_and_renews_the_certificate(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        first, second = free_port(), free_port()
        made.initialise("--public-url", f"https://127.0.0.1:{first}")
        ca = ca_file(made)
        made.serve("--public-url", f"https://gw.test:{second}", "--listen", f"127.0.0.1:{second}")
        certificate = shown(second, ca, "gw.test")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", first), 5)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "gw.test" in names.get_values_for_type(x509.DNSName)
        assert JoinToken.decode(new_token(made)).urls[0] == f"https://gw.test:{second}"
        assert made.server is not None and made.server.stop() == 0
        # without the flags it is as init said, on all addresses, and the name is not asked for any more
        made.serve()
        assert shown(first, ca, "127.0.0.1").not_valid_after_utc >= certificate.not_valid_after_utc
        for address in ("127.0.0.1", "127.8.8.8"):
            socket.create_connection((address, first), 5).close()
        if socket.has_dualstack_ipv6():
            socket.create_connection(("::1", first), 5).close()


def test_plain_http_is_refused_on_the_tls_listener_and_on_every_other_address(tmp_path: Path) -> None:
    with public(tmp_path) as (made, url):
        with socket.create_connection(("127.0.0.1", port_of(url)), 30) as plain:
            plain.settimeout(30)
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"HTTP/1.1 200" not in plain.recv(1000)
        assert made.server is not None
        made.server.stop()
    with world(tmp_path / "plain") as bare:
        bare.initialise()
        for address in ("0.0.0.0:1234", "192.0.2.1:1234"):
            done = bare.run("serve", "--data-dir", str(bare.data_dir), "--listen", address, code=None)
            assert done.returncode in (1, 2), done
            assert "loopback" in done.stderr and "public_url" in done.stderr and "Traceback" not in done.stderr


# -- somebody in between -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [True, False], ids=["with a CA file of its own", "passing everything on"])
def test_a_man_in_the_middle_that_the_system_trusts_learns_nothing_at_join(tmp_path: Path, answers: bool) -> None:
    with behind_relay(tmp_path) as (made, between):
        impostor = trustme.CA(organization_name="Inspecting Proxy Inc")
        system = tmp_path / "system.pem"
        system.write_bytes(impostor.cert_pem.bytes())
        token = new_token(made)
        between.intercept(impostor, answers=answers)
        url = f"https://127.0.0.1:{between.port}"
        with urllib.request.urlopen(f"{url}/healthz", context=ssl.create_default_context(cafile=str(system)), timeout=30) as trusted:
            assert trusted.status == 200  # whoever believes the system walks into it
        between.heard.clear()
        done = join_once(made, token, "--server", url, SSL_CERT_FILE=str(system))
        said = refused(done, 9, "wrong_pin" if answers else "untrusted_server")
        assert "Inspecting Proxy Inc" in said and "Nothing secret was sent" in said and "proxy" in said
        assert {bytes(said).split(b"\r\n")[0] for said in between.heard if said} == {b"GET /.well-known/mindgw/ca.pem HTTP/1.1"}
        assert_nothing_secret(between.words, made, token)
        assert worker_names(made) == []
        between.intercept(None)
        assert join_once(made, token, "--server", url).returncode == 0  # the token is not spent


def test_a_man_in_the_middle_is_refused_at_every_connect_and_the_agent_returns_when_he_is_gone(tmp_path: Path, engine: str) -> None:
    with behind_relay(tmp_path) as (made, between):
        impostor = trustme.CA(organization_name="Inspecting Proxy Inc")
        (tmp_path / "system.pem").write_bytes(impostor.cert_pem.bytes())
        token = new_token(made)
        state = ("--state-dir", str(tmp_path / "agent-box"))
        env = {"SSL_CERT_FILE": str(tmp_path / "system.pem")}
        agent = made.spawn("box", "agent", "join", token, "--name", "box", "--engine-url", engine, *state, env=env)
        until(lambda: made.worker("box").get("state") == "ready", "the worker is ready")
        between.intercept(impostor)
        until(lambda: between.refused >= 2, "the agent has refused him twice")
        until(lambda: "Inspecting Proxy Inc" in agent.said, "the agent names the issuer")
        assert "is not the server that this agent joined" in agent.said
        until(lambda: made.worker("box")["state"] == "offline", "the worker is away")
        assert between.words == b""
        shown = made.run("agent", "status", *state, code=3)
        assert "is not the server that this agent joined" in shown.stdout
        between.intercept(None)
        until(lambda: made.worker("box")["state"] == "ready", "the worker is back")


def test_commands_tell_a_man_in_the_middle_no_key(tmp_path: Path) -> None:
    with behind_relay(tmp_path) as (made, between):
        assert made.run("keys", "list").returncode == 0
        impostor = trustme.CA()
        (tmp_path / "system.pem").write_bytes(impostor.cert_pem.bytes())
        between.intercept(impostor)
        done = made.run("keys", "list", code=9, env={"SSL_CERT_FILE": str(tmp_path / "system.pem")})
        refused(done, 9, "unreachable")
        assert between.refused == 1 and between.words == b""


def test_a_listener_on_the_agents_own_machine_cannot_pass_for_the_servers_plain_one(one: tuple[World, str]) -> None:
    """He listens where the token says the plain listener is, and speaks TLS to the real server on the agent's behalf."""
    made, url = one
    with relay(port_of(url)) as between:
        token = new_token(made)
        between.inward_tls = False
        between.intercept(trustme.CA())
        assert join_over(between.port, f"127.0.0.1:{port_of(url)}", token) == "", "he does pass everything on"
        # on another machine his is the port of the plain listener
        assert join_over(between.port, f"127.0.0.1:{made.port}", token) == "wrong_identity"


def join_over(port: int, host: str, token: str) -> str:
    """Join through a port of this machine under another Host header, as an agent for which that is the address; the error's code."""
    from mindgw_agent import address, door, errors
    from mindgw_agent.join import ask_who

    class Elsewhere(address.Address, frozen=True):
        @property
        def netloc(self) -> str:
            return host

    parts = JoinToken.decode(token)
    try:
        ask_who(door.open_door(Elsewhere(False, "127.0.0.1", port), []), parts.id.hex(), parts.srv)
    except errors.Untrusted as wrong:
        return wrong.code
    return ""


def worker_names(made: World) -> list[str]:
    return [worker["name"] for worker in made.items("workers", "list")]


# -- join tokens ---------------------------------------------------------------------------------------------------------


def test_each_spent_or_wrong_token_says_which_and_what_to_do_next(one: tuple[World, str]) -> None:
    made, _url = one
    new = "mindgw join-tokens create"
    expired = json.loads(made.admin("join-tokens", "create", "--ttl", "1s", "--json").stdout)
    revoked = json.loads(made.admin("join-tokens", "create", "--json").stdout)
    made.admin("join-tokens", "revoke", revoked["id"], "--yes")
    used = new_token(made, "--max-uses", "2")
    assert [join_once(made, used, state=name).returncode for name in ("one", "two")] == [0, 0]

    def state(token_id: str) -> str:
        return next(str(token["state"]) for token in made.items("join-tokens", "list") if token["id"] == token_id)

    until(lambda: state(expired["id"]) == "expired", "a second has passed")
    unknown = msgspec.structs.replace(JoinToken.decode(used), id=b"12345678").encode()
    forged = msgspec.structs.replace(JoinToken.decode(new_token(made)), secret=bytes(32)).encode()
    cases = (
        (expired["token"], 4, "join_token_expired", "expired", new),
        (used, 4, "join_token_used", "used", new),
        (revoked["token"], 4, "join_token_revoked", "revoked", new),
        (unknown, 4, "join_token_unknown", "no such join token", new),
        (forged, 4, "join_token_unknown", "no such join token", new),
        (used[:-9], 2, "join_token_", "opy it", ""),
        (used[:60] + used[61:], 2, "join_token_checksum", "typing error", ""),
        ("mgwj1_", 2, "join_token_truncated", "cut off", new),
        (made.key, 2, "join_token_wrong_kind", "API key", new),
    )
    for token, exit_code, code, words, hint in cases:
        said = refused(join_once(made, token), exit_code, code)
        assert words in said and hint in said, said
    bound = new_token(made, "--name", "only")
    assert "only" in refused(join_once(made, bound), 4, "join_name_bound")
    assert {"one", "two"} <= set(worker_names(made)) and "box" not in worker_names(made)
    for secret in (JoinToken.decode(used).secret.hex(), used):
        assert secret not in (made.server.said if made.server else "")


def test_a_taken_name_names_replace_and_replacing_cuts_the_old_one(one: tuple[World, str], engine: str) -> None:
    made, _url = one
    old = made.join("taken", engine)
    token = new_token(made)
    state = ("--state-dir", str(made.folder / "agent-taken-new"))
    taken = made.run("agent", "join", token, "--name", "taken", *state, "--enroll-only", code=7)
    assert "--replace" in refused(taken, 7, "name_taken")
    made.run("agent", "join", token, "--name", "taken", *state, "--enroll-only", "--replace")
    assert old.child.wait(30) == 4, old.said
    assert "leave" in old.said


def test_the_right_pin_with_another_identity_is_not_the_server(one: tuple[World, str]) -> None:
    made, url = one
    stranger = identity.public_half(identity.new_key())
    token = msgspec.structs.replace(JoinToken.decode(new_token(made)), srv=stranger, urls=[url]).encode()
    said = refused(join_once(made, token), 9, "wrong_identity")
    assert "another server" in said and "Nothing secret" in said
    nobody = msgspec.structs.replace(JoinToken.decode(token), urls=[f"https://127.0.0.1:{free_port()}"]).encode()
    assert "mindgw serve" in refused(join_once(made, nobody), 9, "unreachable")


def test_plain_http_goes_to_a_literal_loopback_address_only(tmp_path: Path, engine: str) -> None:
    with world(tmp_path) as made, socket.create_server(("127.0.0.1", 0)) as listener:
        made.serve()
        token = new_token(made)
        port = listener.getsockname()[1]
        for scheme in ("http", "ws"):
            for host in ("localhost", "192.0.2.1"):
                said = refused(join_once(made, token, "--server", f"{scheme}://{host}:{port}"), 2, "insecure_address")
                assert "--public-url" in said
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert join_once(made, token, "--server", f"ws://127.0.0.1:{made.port}").returncode == 0
        agent_file = tmp_path / "agent-box" / "agent.json"
        agent_file.write_text(agent_file.read_text().replace("http://127.0.0.1", "ws://localhost"))
        said = refused(made.run("agent", "run", "--state-dir", str(agent_file.parent), code=1), 1, "bad_state")
        assert "localhost" in said


def test_joining_twice_serves_and_ignores_the_token(one: tuple[World, str], engine: str) -> None:
    made, _url = one
    agent = made.join("twice", engine)
    agent.stop()
    until(lambda: made.worker("twice")["state"] == "offline", "the agent left")
    spent = new_token(made)
    made.admin("join-tokens", "revoke", JoinToken.decode(spent).id.hex(), "--yes")
    again = made.join("twice", engine, token=spent)
    assert "a token is not needed" in again.said
    assert worker_names(made).count("twice") == 1


# -- one identity, one place ---------------------------------------------------------------------------------------------


def test_an_old_copy_of_an_agent_is_locked_out_and_so_is_the_original(one: tuple[World, str], engine: str) -> None:
    made, _url = one
    agent = made.join("cloned", engine)
    agent.stop()
    shutil.copytree(made.folder / "agent-cloned", made.folder / "agent-cloned-copy")
    original = made.join("cloned", engine)
    copy = made.spawn("cloned-copy", "agent", "run", "--state-dir", str(made.folder / "agent-cloned-copy"))
    assert copy.child.wait(30) == 4, copy.said
    assert "locked" in copy.said and "mindgw workers remove" in copy.said
    assert made.worker("cloned")["state"] == "locked"
    # nobody can tell which of the two is the thief
    assert original.child.wait(30) == 4, original.said
    assert "locked" in original.said
    assert made.run("agent", "run", "--state-dir", str(made.folder / "agent-cloned"), code=4).stderr.count("locked") >= 1
    made.admin("workers", "remove", "cloned", "--yes")
    shutil.rmtree(made.folder / "agent-cloned")
    made.join("cloned", engine)


def test_of_two_live_sessions_the_newer_wins_and_the_older_is_told(one: tuple[World, str], engine: str) -> None:
    made, _url = one
    older = made.join("double", engine)
    epoch = made.worker("double")["epoch"]
    shutil.copytree(made.folder / "agent-double", made.folder / "agent-double-copy")
    newer = made.spawn("double-copy", "agent", "run", "--state-dir", str(made.folder / "agent-double-copy"))
    assert older.child.wait(30) == 7, older.said
    assert "replaced" in older.said and "copy of this state directory" in older.said
    worker = until(lambda: (found := made.worker("double"))["state"] == "ready" and found, "the newer one serves")
    assert worker["epoch"] > epoch and newer.child.poll() is None
    # the older one knows less now
    assert made.run("agent", "run", "--state-dir", str(made.folder / "agent-double"), code=4).stderr.count("locked") >= 1


def test_a_removed_worker_loses_its_tunnel_within_a_second(one: tuple[World, str], engine: str) -> None:
    made, url = one
    with relay(port_of(url)) as between:
        agent = made.join("gone", engine, "--server", f"https://127.0.0.1:{between.port}")
        request = urllib.request.Request(
            f"{made.root}/api/v1/workers/gone", method="DELETE", headers={"authorization": f"Bearer {made.key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
        begun = time.monotonic()
        until(lambda: not between.carrying, "the tunnel is closed", 5)
        assert time.monotonic() - begun < 1.5, "a second, and a little for a loaded machine"
        assert agent.child.wait(30) == 4
        assert "mindgw agent leave" in agent.said
        assert "gone" not in worker_names(made)


# -- the door of the tunnel ----------------------------------------------------------------------------------------------


class Caller:
    """A raw WebSocket client on the TLS listener, without manners."""

    def __init__(self, made: World, url: str, *headers: str, protocol: str = wire.SUBPROTOCOL) -> None:
        context = ssl.create_default_context(cafile=str(ca_file(made)))
        plain = socket.create_connection(("127.0.0.1", port_of(url)), 30)
        self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self.socket.settimeout(30)
        lines = ["GET /agent/v1/link HTTP/1.1", f"Host: 127.0.0.1:{port_of(url)}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", *headers]
        lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            data = self.socket.recv(4096)
            assert data, self.head
            self.head += data

    @property
    def status(self) -> int:
        return int(self.head.split(b" ")[1])

    def send(self, message: bytes, *, opcode: int = 2) -> None:
        """One masked WebSocket frame."""
        size = bytes([0x80 | len(message)]) if len(message) < 126 else b"\xff" + len(message).to_bytes(8, "big")
        self.socket.sendall(bytes([0x80 | opcode]) + size + bytes(4) + message)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_browsers_and_strangers_are_refused_before_the_upgrade(one: tuple[World, str]) -> None:
    made, url = one
    for origin in ("https://evil.example", "null", url):
        with Caller(made, url, f"Origin: {origin}") as browser:
            assert browser.status == 403
    for protocol in ("", "mindgw.9", "chat"):
        with Caller(made, url, protocol=protocol) as stranger:
            assert stranger.status == 403
    with Caller(made, url, "Sec-WebSocket-Extensions: permessage-deflate") as agent:
        assert agent.status == 101
        assert b"sec-websocket-protocol: mindgw.1" in agent.head.lower() and b"deflate" not in agent.head.lower()


def test_whoever_does_not_greet_is_gone_after_five_seconds(one: tuple[World, str], loiterers: Loiterers) -> None:
    made, url = one
    hello = wire.encode(wire.frame(wire.Hello(agent_id="nobody", nonce=bytes(32), software="test", last_epoch=0)))
    with Caller(made, url) as unknown:
        unknown.send(hello)
        assert seconds_to_the_end(unknown.socket) < 5  # a goodbye, and then no patience for one who does not answer it
    assert 1 < loiterers.silent.result(30) < 8
    assert 1 < loiterers.pinging.result(30) < 8


@pytest.mark.parametrize(
    ("message", "opcode"),
    [
        (bytes(100_000), 2),
        (bytes(3 * 2**20), 2),
        (b"hello", 1),
        (b"garbage", 2),
        (wire.encode(wire.frame(wire.Report(serial=1, engines=[]))), 2),
        (wire.encode(wire.Frame(0, wire.PING, b"")), 2),
        (wire.encode(wire.Frame(7, wire.DATA, b"x" * 1000)), 2),
    ],
    ids=["too many bytes", "more than a message", "text", "garbage", "a report first", "a ping first", "data first"],
)
def test_words_before_the_greeting_end_the_connection_at_once(one: tuple[World, str], message: bytes, opcode: int) -> None:
    made, url = one
    with Caller(made, url) as caller:
        assert caller.status == 101
        with contextlib.suppress(OSError):
            caller.send(message, opcode=opcode)
        assert seconds_to_the_end(caller.socket) < 4
    assert made.get("/healthz")[0] == 200
    assert made.server is not None and "Traceback" not in made.server.said


def test_handshakes_that_never_end_are_given_up(loiterers: Loiterers) -> None:
    assert 1 < loiterers.mute.result(30) < 15
