"""The way out of networks that let nothing out but through a proxy: HTTPS_PROXY and NO_PROXY, as other programs read them.

A proxy is asked for a connection (CONNECT) and sees ciphertext alone: the pin of the server is checked through it. What is dialled without
TLS is on this machine, and never goes through one.
"""

import base64
import contextlib
import http.client
import ipaddress
import socket
import threading
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

import msgspec

from mindgw_agent import address, clock, errors
from mindgw_agent.address import Address

#: Bytes of what a proxy may say before the connection is through.
_MOST: Final = 16 * 1024
_EXAMPLE: Final = "it should look like HTTPS_PROXY=http://proxy.example:3128"


class Proxy(msgspec.Struct, frozen=True):
    """Where a proxy listens, and what it wants to hear."""

    host: str
    port: int
    #: Value of Proxy-Authorization; empty: none.
    credential: str = ""

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": self.credential} if self.credential else {}


def proxy_for(target: Address) -> Proxy | None:
    """The proxy that the environment names for a server; None: there is none, or not for this one. Raises `Misuse` for one that cannot be
    used; its message never shows a password."""
    if not target.secure or address.is_loopback(target.host):
        return None
    known = getproxies_environment()
    url = known.get("https") or known.get("all") or ""
    if not url or is_excepted(target, known.get("no", "")):
        return None
    shown = address.masked(url)
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise errors.Misuse(f"HTTPS_PROXY {shown!r} is no proxy: {error}", hint=_EXAMPLE, code="bad_proxy") from None
    if parts.scheme != "http" or not host:
        raise errors.Misuse(f"HTTPS_PROXY {shown!r} cannot be used: only http:// proxies can", hint=_EXAMPLE, code="bad_proxy")
    return Proxy(host, port, _credential(parts.username, parts.password))


def is_excepted(target: Address, exceptions: str) -> bool:
    """Whether NO_PROXY names a server: as `*`, as its name or that of a domain above it, as an address or a network, each with or without
    its port."""
    return any(_covers(entry.strip().lower(), target) for entry in exceptions.split(","))


def _covers(entry: str, target: Address) -> bool:
    if entry in {"", "*"}:
        return entry == "*"
    try:
        return ipaddress.ip_address(target.host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and "]" not in port:
        if int(port) != target.port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    return bool(entry) and (target.host == entry or target.host.endswith(f".{entry}"))


def _credential(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()


class Reaching:
    """A connection that is being made, in a thread that blocks for it, and which another one may give up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: To the proxy, as long as it does not answer.
        self._plain: socket.socket | None = None
        self._over = False

    def give_up(self) -> None:
        """Nobody waits for it any more: whoever blocks on the proxy's answer stops doing so."""
        with self._lock:
            self._over = True
            if self._plain is not None:
                with contextlib.suppress(OSError):  # it is gone already
                    self._plain.shutdown(socket.SHUT_RDWR)

    def reach(self, target: Address, within: float) -> socket.socket:
        """A TCP connection to a server, through the proxy if there is one for it; nothing was sent to the server yet. Blocks for so many
        seconds to connect, and for as many until the proxy has answered. Raises OSError, one that names the proxy when that refuses, and
        `Misuse`."""
        proxy = proxy_for(target)
        if proxy is None:
            return socket.create_connection((target.host, target.port), within)
        try:
            plain = socket.create_connection((proxy.host, proxy.port), within)
        except OSError as error:
            raise ConnectionError(f"the proxy {proxy.netloc} cannot be reached: {error.strerror or error}") from None
        try:
            self._holds(plain)
            _ask(plain, proxy, target, clock.monotonic() + within)
            self._holds(None)
        except BaseException:
            self._holds(None)
            plain.close()
            raise
        plain.settimeout(within)
        return plain

    def _holds(self, plain: socket.socket | None) -> None:
        with self._lock:
            self._plain = plain
            if plain is not None and self._over:
                raise ConnectionError("nobody waits for it any more")


def reach(target: Address, within: float) -> socket.socket:
    """See `Reaching.reach`; nobody gives this one up."""
    return Reaching().reach(target, within)


def _ask(plain: socket.socket, proxy: Proxy, target: Address, deadline: float) -> None:
    """CONNECT. The answer is read byte by byte to its end and no further: what follows is the server's. Raises TimeoutError when it is
    not there by the deadline, in monotonic seconds."""
    where = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}", *(f"{name}: {value}" for name, value in proxy.headers.items())]
    plain.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    said = bytearray()
    while not said.endswith(b"\r\n\r\n"):
        left = deadline - clock.monotonic()
        if left <= 0:
            raise TimeoutError(f"the proxy {proxy.netloc} takes too long to answer")
        plain.settimeout(left)
        byte = plain.recv(1)
        said += byte
        if not byte or len(said) > _MOST:
            raise ConnectionError(f"the proxy {proxy.netloc} does not answer as a proxy")
    words = said.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if not words[0].startswith("HTTP/1.") or not 200 <= status < 300:
        reason = http.client.responses.get(status, "")
        raise ConnectionError(f"the proxy {proxy.netloc} refuses a connection to {where}: {status} {reason}".rstrip())
