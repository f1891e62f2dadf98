"""The way out through a proxy: which, for whom, and what a proxy may answer."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import address, errors, proxy, websocket

SERVER = address.parse("https://gw.example.org:8420")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.mark.parametrize(
    ("exceptions", "is_one"),
    [
        ("", False), ("*", True), ("gw.example.org", True), ("GW.Example.ORG", True), ("example.org", True), (".example.org", True),
        ("*.example.org", True), ("ample.org", False), ("a, example.org ,b", True), ("example.org:8420", True), ("example.org:443", False),
        ("10.0.0.0/8", False), (",,", False), (".", False), ("*.", False), (":8420", False),
    ],
)  # fmt: skip
def test_no_proxy_names_servers(exceptions, is_one):
    assert proxy.is_excepted(SERVER, exceptions) is is_one


@pytest.mark.parametrize(
    ("exceptions", "is_one"), [("10.0.0.0/8", True), ("10.1.2.3", True), ("10.1.2.3:9", True), ("10.1.2.3:8", False), ("fd00::/8", False)]
)
def test_no_proxy_names_networks(exceptions, is_one):
    assert proxy.is_excepted(address.parse("https://10.1.2.3:9"), exceptions) is is_one


@given(st.text(max_size=60))
def test_whatever_no_proxy_says_it_is_read(exceptions):
    assert proxy.is_excepted(SERVER, exceptions) in {True, False}


def test_the_environment_names_the_proxy(monkeypatch):
    assert proxy.proxy_for(SERVER) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://ana:p%40ss@proxy.example:3128")
    found = proxy.proxy_for(SERVER)
    assert found is not None
    assert (found.netloc, found.credential) == ("proxy.example:3128", "Basic YW5hOnBAc3M=")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert proxy.proxy_for(SERVER) is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:8420", "https://127.0.0.1:8420", "https://[::1]:8420"])
def test_this_machine_is_never_dialled_through_a_proxy(monkeypatch, url):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert proxy.proxy_for(address.parse(url)) is None


@pytest.mark.parametrize("url", ["socks5://proxy:1080", "https://u:hunter2@proxy:1", "http://u:hunter2@proxy:99999999", "http://"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch, url):
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(errors.Misuse) as wrong:
        proxy.proxy_for(SERVER)
    assert "hunter2" not in wrong.value.message
    assert wrong.value.code == "bad_proxy"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that says this to everybody; its URL, and what it heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            made, _ = listener.accept()
            with made, contextlib.suppress(OSError):  # who is refused hangs up
                heard.append(made.recv(4096))
                made.sendall(answer)
                made.shutdown(socket.SHUT_WR)
                made.recv(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://u:p@127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(10)


def test_what_follows_the_answer_is_the_servers(monkeypatch):
    with answering(b"HTTP/1.1 200 Connection established\r\nx: y\r\n\r\nhello") as (url, heard):
        monkeypatch.setenv("HTTPS_PROXY", url)
        with proxy.reach(SERVER, 10) as made:
            assert made.recv(100) == b"hello"
    assert heard == [b"CONNECT gw.example.org:8420 HTTP/1.1\r\nHost: gw.example.org:8420\r\nProxy-Authorization: Basic dTpw\r\n\r\n"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refuses a connection to gw.example.org:8420: 407"),
        (b"HTTP/1.1 403 no\r\n\r\n", "403 Forbidden"), (b"SSH-2.0-x\r\n\r\n", "refuses"), (b"HTTP/1.1 2x0\r\n\r\n", "refuses"),
        (b"", "does not answer as a proxy"), (b"x" * 20_000, "does not answer as a proxy"), (b"\r\n\r\n", "refuses"),
    ],
    ids=lambda value: repr(value[:20]),
)  # fmt: skip
def test_a_proxy_that_does_not_let_through_is_named(monkeypatch, answer, words):
    with answering(answer) as (url, _):
        monkeypatch.setenv("HTTPS_PROXY", url)
        with pytest.raises(ConnectionError, match=words) as wrong:
            proxy.reach(SERVER, 10)
        assert "127.0.0.1" in str(wrong.value)


def test_all_of_an_answer_must_be_there_in_time(monkeypatch):
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            made, _ = listener.accept()
            with made, contextlib.suppress(OSError):
                while not over.wait(0.02):
                    made.sendall(b"H")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(TimeoutError):
            proxy.reach(SERVER, 0.2)
        over.set()
        thread.join(10)


def test_who_is_given_up_before_it_began_does_not_wait(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        way = proxy.Reaching()
        way.give_up()
        with pytest.raises(ConnectionError, match="nobody waits"):
            way.reach(SERVER, 60)


async def test_nobody_goes_on_waiting_for_a_proxy_once_the_dial_was_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        dialling = asyncio.create_task(websocket.dial(SERVER, None, "x", "ua", most=1000, timeouts=(60.0, 1.0)))
        made, _ = await asyncio.to_thread(listener.accept)
        with made:
            made.settimeout(10)
            assert await asyncio.to_thread(made.recv, 4096)
            dialling.cancel()
            assert await asyncio.to_thread(made.recv, 4096) == b""
        await asyncio.gather(dialling, return_exceptions=True)
        assert dialling.cancelled()


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"the proxy 127\.0\.0\.1:9 cannot be reached"):
        proxy.reach(SERVER, 10)
