"""A box whose network lets nothing out but through a proxy: the proxy here is real, it opens connections and passes bytes."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.fake_engine import fake_engine
from tests.e2e.raw import ask
from tests.e2e.stage import chat
from tests.e2e.world import free_port, until, world

pytestmark = pytest.mark.e2e

NAME = "gw.test"
BASIC = b"Proxy-Authorization: Basic YW5hOmh1bnRlcjI="


class Proxy:
    """Knows one name, which nobody else can resolve."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port = listener.getsockname()[1]
        #: First lines of what was asked, and all bytes that went through.
        self.asked: list[bytes] = []
        self.passed = bytearray()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.asked.append(head.partition(b"\r\n")[0])
            if BASIC not in head:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = head.split(b" ")[1].rpartition(b":")
            assert host == NAME.encode()
            with socket.create_connection(("127.0.0.1", int(port)), 10) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                threading.Thread(target=self._pipe, args=(server, client), daemon=True).start()
                self._pipe(client, server)

    def _pipe(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passed += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(listener)
        threading.Thread(target=made.serve, daemon=True).start()
        yield made


def test_a_box_joins_and_works_through_a_proxy_that_sees_ciphertext_alone(tmp_path: Path) -> None:
    with world(tmp_path) as made, fake_engine() as engine, proxy() as between:
        port = free_port()
        made.initialise("--public-url", f"https://{NAME}:{port}", "--listen", f"127.0.0.1:{port}")
        made.serve()
        made.env["HTTPS_PROXY"] = f"http://ana:hunter2@127.0.0.1:{between.port}"
        agent = made.join("box", engine.url)
        assert {line.rpartition(b" ")[0] for line in between.asked} == {f"CONNECT {NAME}:{port}".encode()}
        assert len(between.asked) >= 2  # to join, and to work
        assert ask(made, chat("plain")).status == 200
        assert b"one two" not in between.passed
        assert "hunter2" not in agent.said
        assert "hunter2" not in made.admin("workers", "logs", "box").stdout
        agent.stop()
        made.env["HTTPS_PROXY"] = f"http://ana:wrong@127.0.0.1:{between.port}"
        refused = made.spawn("refused", "agent", "run", "--state-dir", str(tmp_path / "agent-box"))
        until(lambda: f"refuses a connection to {NAME}:{port}: 407" in refused.said, "it says who refuses")
        assert "wrong@" not in refused.said
