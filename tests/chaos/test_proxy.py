"""The chaos proxy does what it is told: each of its ways shown on plain sockets."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.counting_engine import loop_aside
from tests.chaos.proxy import Proxy, chaos_proxy
from tests.e2e.world import until

BIG = bytes(range(256)) * 4096


class Echo:
    """Sends back what it hears, and the end as well."""

    def __init__(self) -> None:
        self.heard = 0
        #: How connections ended: "" for an end in order, else the name of the error.
        self.ends: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    self.heard += len(data)
                    sock.sendall(data)
                self.ends.append("")
            except OSError as error:
                self.ends.append(type(error).__name__)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with loop_aside() as made:
        yield made


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(loop: asyncio.AbstractEventLoop, echo: Echo) -> Iterator[Proxy]:
    with chaos_proxy(loop, echo.port) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as sock:
        yield sock


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or what came before the end."""
    found = b""
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return found


def said(sock: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    found = read(sock, len(data))
    sender.join()
    return found


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing is there to be read, not even an end."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(30)
    return False


def test_bytes_and_ends_pass_as_they_are(proxy: Proxy, client: socket.socket) -> None:
    assert said(client, BIG) == BIG
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert (proxy.up.carried, proxy.down.carried, proxy.accepted) == (len(BIG), len(BIG), 1)
    until(lambda: proxy.open == 0, "it has let go")


def test_late_and_unevenly_late_bytes_keep_their_order(proxy: Proxy, client: socket.socket) -> None:
    proxy.up.delay, proxy.up.jitter, proxy.down.jitter = 0.01, 0.02, 0.03
    assert said(client, BIG) == BIG


def test_a_slow_way_carries_so_much_a_second_and_no_more(proxy: Proxy, client: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    proxy.down.rate = 1_000_000
    begun = loop.time()
    assert said(client, BIG[:200_000]) == BIG[:200_000]
    assert loop.time() - begun >= 0.2


def test_what_is_stalled_stays_and_goes_on_where_it_was(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    assert said(client, b"one") == b"one"
    proxy.stall()
    client.sendall(b"two")
    client.shutdown(socket.SHUT_WR)
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as other:
        until(lambda: proxy.open == 2, "who comes later is let in")
        assert is_silent(client)
        assert is_silent(other)
        assert (echo.heard, echo.ends) == (3, [])
        proxy.go_on()
        assert read(client, 9) == b"two"
        assert said(other, b"three") == b"three"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_of_a_half_open_connection_nobody_hears_the_end(proxy: Proxy, client: socket.socket, echo: Echo, how: str) -> None:
    assert said(client, b"one") == b"one"
    proxy.half_open()
    client.sendall(b"two")
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as other:
        assert said(other, b"three") == b"three"  # a new one is well
    assert echo.heard == 8
    until(lambda: echo.ends == [""], "the other one has ended")
    assert proxy.open == 1


def test_a_half_open_connection_says_nothing_of_the_other_ends_death(
    loop: asyncio.AbstractEventLoop, proxy: Proxy, client: socket.socket, echo: Echo
) -> None:
    assert said(client, b"one") == b"one"
    proxy.half_open(future=True)
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as other:
        other.sendall(b"two")
        until(lambda: proxy.accepted == 2, "it is accepted")
        assert is_silent(client)
        assert is_silent(other)
        proxy.heal()
        with socket.create_connection(("127.0.0.1", proxy.port), 30) as third:
            assert said(third, b"three") == b"three"
        assert is_silent(other)
    assert echo.heard == 8


def test_a_reset_is_one_at_both_ends(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    assert said(client, b"one") == b"one"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    until(lambda: echo.ends == ["ConnectionResetError"], "the other end has heard it")


def test_a_cut_is_an_end_at_both_ends(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    assert said(client, b"one") == b"one"
    proxy.cut()
    assert client.recv(1) == b""
    until(lambda: echo.ends == [""], "the other end has heard it")


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_a_connection_is_cut_after_so_many_bytes(proxy: Proxy, client: socket.socket, size: int) -> None:
    proxy.down.left = size
    client.sendall(BIG[:100_000])
    assert read(client, 100_000) == BIG[:size]
    proxy.down.left = None
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as other:
        assert said(other, BIG) == BIG


def test_nobody_behind_it_is_an_end(loop: asyncio.AbstractEventLoop, echo: Echo) -> None:
    echo.close()
    with chaos_proxy(loop, echo.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 30) as sock:
        assert sock.recv(1) == b""
    echo._listener = socket.create_server(("127.0.0.1", 0))  # for the fixture to close
