"""Root URLs of servers: which of them the agent will dial at all. PURE.

TLS goes anywhere, for the pin says who answers. Plain HTTP goes to a literal loopback address only: the name `localhost` is
refused with the others, because what a name means is decided by a resolver that others can reach.
"""

import ipaddress
import re
from urllib.parse import urlsplit

import msgspec

from mindgw_agent import errors

_DEFAULT_PORTS = {"https": 443, "http": 80}


class Address(msgspec.Struct, frozen=True):
    """Where a server listens."""

    #: TLS; without it the host is a literal loopback address.
    secure: bool
    #: Name or address, IPv6 without its brackets.
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """What stands in the Host header: lower case, IPv6 in brackets, the port left out when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"

    @property
    def root(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.netloc}"

    @property
    def link(self) -> str:
        """The WebSocket address of the tunnel."""
        return f"{'wss' if self.secure else 'ws'}://{self.netloc}/agent/v1/link"


def parse(url: str) -> Address:
    """Read a root URL; a trailing slash or /v1 and the schemes ws and wss are understood. Raises `Misuse` with the reason."""
    if "@" in url:
        raise errors.Misuse(f"{masked(url)!r} is not a server address: a name or password has no place in it", hint=_EXAMPLE)
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise errors.Misuse(f"{masked(url)!r} is not a server address: {error}", hint=_EXAMPLE) from None
    scheme = {"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)
    host = (parts.hostname or "").lower()
    if scheme not in _DEFAULT_PORTS or not host or parts.query or parts.fragment:
        raise errors.Misuse(f"{masked(url)!r} is not a server address", hint=_EXAMPLE)
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise errors.Misuse(f"{masked(url)!r} is not the root of a server: it has the path {parts.path}", hint=_EXAMPLE)
    if scheme == "http" and not is_loopback(host):
        raise errors.Misuse(
            f"plain HTTP to {host} is refused: it would carry prompts unprotected",
            hint="start the server with --public-url https://…, or on one machine use the address http://127.0.0.1:PORT itself",
            code="insecure_address",
        )
    return Address(secure=scheme == "https", host=host, port=_DEFAULT_PORTS[scheme] if port is None else port)


def masked(url: str) -> str:
    """The URL as it may be shown: without what stands in front of an @ or behind a question mark, for that may be a secret."""
    scheme = re.match(r"[A-Za-z]*://", url)
    _, at, after = url.rpartition("@")
    place, mark, _ = after.partition("?")
    return (f"{scheme[0] if scheme else ''}***@" if at else "") + place + ("?***" if mark else "")


def is_loopback(host: str) -> bool:
    """Whether it is a literal address of this machine: 127.0.0.0/8 or ::1, never a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_EXAMPLE = "it should look like https://gateway.example:8420"
