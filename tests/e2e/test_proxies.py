"""The real server behind the real nginx and the real Caddy, each with the site that `mindgw init` renders; and with a certificate of
one's own. Agents join and clients stream through them, and believe nothing but the system's authorities."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import CHAT, Raw, head, request
from tests.e2e.stage import chat
from tests.e2e.world import PATIENCE, Process, World, free_port, until, world

pytestmark = pytest.mark.e2e

NGINX, CADDY = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"), shutil.which("caddy")
HOST = "localhost"
#: An address of this machine that is none of its proxies'.
ELSEWHERE = "127.0.0.7"


@dataclass
class Site:
    """A server, what stands in front of it, and a worker that has joined through that."""

    world: World
    url: str
    port: int
    roots: Path
    engine: FakeEngine

    @property
    def host(self) -> bytes:
        """The line that names it."""
        return f"host: {HOST}:{self.port}".encode()

    def client(self, source: str = "127.0.0.1") -> httpx.Client:
        trust = ssl.create_default_context(cafile=str(self.roots))
        transport = httpx.HTTPTransport(verify=trust, local_address=source)
        headers = {"authorization": f"Bearer {self.world.key}"}
        return httpx.Client(base_url=self.url, transport=transport, timeout=PATIENCE, headers=headers)

    def raw(self) -> Raw:
        """A connection, beneath which there is TLS."""
        raw = Raw(self.port)
        context = ssl.create_default_context(cafile=str(self.roots))
        context.set_alpn_protocols(["http/1.1"])
        raw.socket = context.wrap_socket(raw.socket, server_hostname=HOST)
        return raw

    def new_key(self, *args: str) -> str:
        return str(json.loads(self.world.admin("keys", "create", "bot", "--json", *args).stdout)["key"])


def nginx(made: World, rendered: str, certificate: Path, key: Path) -> list[str]:
    folder = made.folder / "nginx"
    folder.mkdir()
    lines = rendered.replace("/etc/letsencrypt/live/localhost/fullchain.pem", str(certificate))
    site = lines.replace("/etc/letsencrypt/live/localhost/privkey.pem", str(key))
    assert "/etc/" not in site.partition("map $http_upgrade")[2]
    paths = "".join(f"{what}_temp_path {folder}/{what};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nworker_processes 1;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{site}\n}}\n"
    )
    command = [str(NGINX), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    return command


def caddy(made: World, rendered: str, certificate: Path, key: Path) -> list[str]:
    """Caddy gets no certificate of its own here: no authority would give one for this machine."""
    site = made.folder / "Caddyfile"
    own = f"\ttls {certificate} {key}\n\treverse_proxy"
    site.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + rendered.replace("\treverse_proxy", own, 1))
    env = {**made.env, "XDG_DATA_HOME": str(made.folder / "caddy")}
    command = [str(CADDY), "validate", "--config", str(site), "--adapter", "caddyfile"]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert tested.returncode == 0, tested.stderr
    return [str(CADDY), "run", "--config", str(site), "--adapter", "caddyfile"]


def own(made: World, rendered: str, certificate: Path, key: Path) -> list[str]:
    """Nothing in front: the server has a public certificate itself."""
    return []


INSTALL = {"nginx": "apt-get install nginx", "caddy": "apt-get install caddy"}
FRONTS = {"nginx": (NGINX, nginx), "caddy": (CADDY, caddy), "own": ("-", own)}


@pytest.fixture(scope="module", params=FRONTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program, prepare = FRONTS[request.param]
    if program is None:
        pytest.skip(f"not run: no {request.param} here ({INSTALL[request.param]})")
    folder = tmp_path_factory.mktemp(request.param)
    authority, port = trustme.CA(), free_port()
    certificate, key, roots = folder / "cert.pem", folder / "key.pem", folder / "roots.pem"
    issued = authority.issue_cert(HOST)
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(roots)
    with world(folder / "w") as made, fake_engine() as engine:
        made.env["SSL_CERT_FILE"] = str(roots)
        url = f"https://{HOST}:{port}"
        wanted = [] if request.param == "own" else ["--with", request.param]
        tls = ["--tls", "off", "--trusted-proxies", "127.0.0.1"] if wanted else ["--tls", f"{certificate}:{key}"]
        made.initialise("--public-url", url, *tls, *([] if wanted else ["--listen", f"127.0.0.1:{port}"]), *wanted)
        rendered = "".join(file.read_text() for file in (made.data_dir / "templates").glob("*")) if wanted else ""
        front(made, prepare(made, rendered, certificate, key), port)
        token = made.admin("join-tokens", "create", "-q").stdout.strip()
        made.join("fake", engine.url, "--slots", "2", token=token)
        yield Site(made, url, port, roots, engine)
        engine.gate.set()


def front(made: World, command: list[str], port: int) -> None:
    made.serve()
    if not command:
        return
    process = Process(command, {**made.env, "XDG_DATA_HOME": str(made.folder / "caddy")}, made.folder / "front.log")
    made.processes.append(process)

    def up() -> bool:
        assert process.child.poll() is None, process.said
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(up, "the proxy is up")


def test_the_worker_joined_through_it_by_a_public_certificate(site: Site) -> None:
    kept = json.loads((site.world.folder / "agent-fake" / "agent.json").read_text())
    assert (kept["servers"][0], kept["pins"], kept["ca"]) == (site.url, [], "")
    assert site.world.worker("fake")["state"] == "ready"


def test_an_answer_streams_through_it(site: Site) -> None:
    """The first token is there before the engine says the last."""
    site.engine.gate.clear()
    body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "patience"}]}
    with site.client() as client, client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-encoding" not in answer.headers
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        assert "choices" in first
        site.engine.gate.set()
        assert [line for line in lines if line.startswith("data: ")][-1] == "data: [DONE]"


def test_a_client_that_leaves_is_noticed(site: Site) -> None:
    site.engine.gate.clear()
    with site.raw() as raw:
        raw.send(request(site.world.key, chat("patience", stream=True)).replace(b"host: x", site.host))
        raw.until(b"data: ")
    until(lambda: site.world.worker("fake")["used"] == 0, "its slot is free", 20)
    site.engine.gate.set()


def test_a_refusal_comes_before_the_body(site: Site) -> None:
    key = site.new_key("--rpm", "1")
    with site.client() as client:
        mine = {"authorization": f"Bearer {key}"}
        assert client.post(CHAT, content=chat("plain"), headers=mine).status_code == 200
        refused = client.post(CHAT, content=chat("plain"), headers=mine)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "true")
        assert int(refused.headers["retry-after-ms"]) > 0 and refused.headers["x-ratelimit-remaining-requests"] == "0"
    with site.raw() as raw:
        whole, sent = 20 * 2**20, 0
        raw.send(head(CHAT, f"authorization: Bearer {key}", f"content-length: {whole}").replace(b"host: x", site.host))
        # Caddy passes an early answer on when the next piece of the body comes, the others at once
        raw.socket.settimeout(0.2)
        while not raw.held:
            with contextlib.suppress(TimeoutError):
                raw.more()
                continue
            raw.send(b"x" * 1024)
            sent += 1024
            assert sent < 2**16, "it is read"
        raw.socket.settimeout(PATIENCE)
        assert raw.answer().status == 429


def test_a_large_body_goes_through(site: Site) -> None:
    with site.client() as client:
        assert client.post(CHAT, content=chat("plain", pad="x" * 10_000_000)).status_code == 200


def test_who_asks_is_known_whatever_the_client_says(site: Site) -> None:
    """The client comes from an address that nobody trusts, and says that it is somebody else."""
    here, there = site.new_key("--from", ELSEWHERE), site.new_key("--from", "192.0.2.0/24")
    with site.client(ELSEWHERE) as client:
        for key, status in ((here, 200), (there, 403)):
            for more in ({}, {"x-forwarded-for": "192.0.2.7"}, {"forwarded": "for=192.0.2.7", "x-real-ip": "192.0.2.7"}):
                found = client.post(CHAT, content=chat("plain"), headers={"authorization": f"Bearer {key}", **more})
                assert found.status_code == status, found.text


def test_who_opens_a_websocket_is_known_too(site: Site, request: pytest.FixtureRequest) -> None:
    """What a trusted proxy says of it is believed, and nobody else."""
    key = site.new_key("--admin", "--from", "192.0.2.0/24")
    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==")
    with Raw(site.world.port) as raw:
        raw.send(head("/api/v1/events", f"authorization: Bearer {key}", "x-forwarded-for: 192.0.2.7", *upgrade, method="GET"))
        assert raw.answer(head_only=True).status == (403 if "[own]" in request.node.name else 101)


def test_the_management_api_and_the_feed_go_through(site: Site) -> None:
    listed = site.world.run("keys", "list", "--json", env={"MINDGW_TOKEN": site.world.key, "MINDGW_SERVER": site.url})
    assert json.loads(listed.stdout)["items"]
    with site.client() as client:
        found = client.get("/api/v1/status").json()
        assert found["workers"] == {"ready": 1, "total": 1}


def test_openais_own_client_needs_nothing_but_the_address(site: Site) -> None:
    script = (
        "import sys; from openai import OpenAI\n"
        "with OpenAI(base_url=sys.argv[2] + '/v1', api_key=sys.argv[1]) as ai:\n"
        "    stream = ai.chat.completions.create(model='fake', stream=True, messages=[{'role': 'user', 'content': 'plain'}])\n"
        "    print(sum(1 for _ in stream))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, site.world.key, site.url],
        env=site.world.env, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


def refusal(made: World, *args: str) -> Any:
    done = made.run("serve", "--data-dir", str(made.data_dir), *args, code=None)
    assert done.returncode != 0
    return done.stderr


def test_tls_that_makes_no_sense_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        made.initialise()
        assert "--public-url" in refusal(made, "--tls", "off")
        url = ("--public-url", f"https://{HOST}:{free_port()}")
        assert "trusted_proxies" in refusal(made, *url, "--tls", "off", "--listen", "0.0.0.0:8443")
        assert "CERT:KEY" in refusal(made, *url, "--tls", "sometimes")
        missing = refusal(made, *url, "--tls", f"{tmp_path}/none.pem:{tmp_path}/none.key", "--listen", f"127.0.0.1:{free_port()}")
        assert "none.pem" in missing and "No such file" in missing
        assert "must be addresses or networks" in refusal(made, "--trusted-proxies", "10.0.0.1/8")


def other_address() -> str:
    """An address of this machine that is not loopback; "" when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("192.0.2.1", 9))  # nothing is sent
        return str(sock.getsockname()[0])
    return ""


def test_plain_http_is_for_trusted_proxies_alone(tmp_path: Path) -> None:
    address = other_address()
    if not address or address.startswith("127."):
        pytest.skip("not run: this machine has no address but loopback")
    with world(tmp_path / "w") as made:
        port = free_port()
        plain = ("--tls", "off", "--listen", f"0.0.0.0:{port}")
        made.initialise("--public-url", f"https://{HOST}", *plain, "--trusted-proxies", "198.51.100.1")
        made.serve()
        headers = {"authorization": f"Bearer {made.key}"}
        refused = httpx.get(f"http://{address}:{port}/v1/models", headers=headers, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "plain_http")
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers, trust_env=False).status_code == 200
        assert made.server is not None
        made.server.stop()
        made.serve("--trusted-proxies", address)
        assert httpx.get(f"http://{address}:{port}/v1/models", headers=headers, trust_env=False).status_code == 200
