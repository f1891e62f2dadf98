"""The only way from an agent to an engine: one origin, listed methods and paths, no redirect, no proxy, no cookie.

Every call opens its own connection. Engines close idle ones after seconds (llama.cpp after 5), so a pooled connection may die under a
request that cannot be sent twice; on loopback a new one costs a fraction of a millisecond, and closing it cancels the work behind it.
"""

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from mindgw_agent import address
from mindgw_agent.wire import Meta

#: Seconds to connect, unless a request says otherwise.
CONNECT = 10.0
#: Seconds for a whole reading of an engine's state, and its largest answer in bytes.
READING = 5.0
MAX_READING = 4 * 1024 * 1024

Route = tuple[str, str]

#: What callers may reach, on any engine.
GENERATION: frozenset[Route] = frozenset({("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings")})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class NotAllowed(Exception):
    """This method and path are not on the engine's list. A bug or an attack, never the engine's fault."""


class Unreachable(Exception):
    """No answer that can be used: nothing listens, the connection broke, the time is over, or who answers is no engine."""

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        #: Waiting does not help: something listens there that can never be an engine under this address.
        self.hopeless = hopeless


def check(route: Route, allowed: frozenset[Route]) -> None:
    """Raises NotAllowed unless method and path stand on the list letter by letter: so `..`, `//`, `%2f` and queries never pass."""
    if route not in allowed:
        raise NotAllowed(f"{route[0]} {route[1][:200]!r} is not allowed on this engine")


def open_session() -> aiohttp.ClientSession:
    """The one session of an agent; the caller closes it. No limit on connections: slots are counted elsewhere."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent",),
        read_bufsize=64 * 1024,
    )


class Answer(msgspec.Struct, frozen=True):
    """What an engine said about itself."""

    status: int
    #: Value of the `Server` header in lower case, "" without one.
    server: str = ""
    body: bytes = b""

    def json(self) -> Any:
        """The body, None when the status is not 200 or the body is not JSON."""
        if self.status != 200:
            return None
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class Client:
    """One engine's address and key. The session stays the property of whoever opened it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str = "") -> None:
        """`url` is the root, as in http://127.0.0.1:11434; a trailing slash or /v1 is dropped. Raises ValueError on anything else."""
        #: Root URL without a trailing slash.
        self.url = root_of(url)
        self._session = session
        #: The engine's own key, b"" for none. The caller's never comes here.
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})

    async def read(self, route: Route, allowed: frozenset[Route], body: bytes = b"") -> Answer:
        """Ask the engine about itself. Raises NotAllowed, and Unreachable for a MindGateway too: two of them in front of each other
        would send requests round in a circle."""
        try:
            async with asyncio.timeout(READING), self.call(route, allowed, body) as response:
                data = await response.content.read(MAX_READING + 1)
                while len(data) <= MAX_READING and (more := await response.content.read(MAX_READING + 1 - len(data))):
                    data += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self.url, error) from error
        if len(data) > MAX_READING:
            raise Unreachable(f"{self.url}: the answer is larger than {MAX_READING} bytes")
        answer = Answer(response.status, response.headers.get("Server", "").lower(), data)
        if answer.server.startswith("mindgw"):
            raise Unreachable(f"a MindGateway answers at {self.url}, not an engine", hopeless=True)
        return answer

    def call(self, route: Route, allowed: frozenset[Route], body: bytes = b"", meta: Meta | None = None, stream: bool = False) -> Any:
        """A request, as a context that gives aiohttp's response. Raises NotAllowed before anything is sent."""
        check(route, allowed)
        headers = self._headers | {"Accept": "text/event-stream" if stream else "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        if meta is not None and _REQUEST_ID.fullmatch(meta.request_id):
            headers["X-Request-Id"] = meta.request_id
        method, path = route
        patience = aiohttp.ClientTimeout(total=None, sock_connect=meta.connect if meta is not None else CONNECT)
        return self._session.request(method, self.url + path, data=body or None, headers=headers, allow_redirects=False, timeout=patience)


def _unreachable(url: str, error: Exception) -> Unreachable:
    """What it means that a reading failed. What aiohttp says of a bad status line quotes it, over several lines."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            wrong = error.certificate_error
            return Unreachable(f"{url}: its certificate is refused: {getattr(wrong, 'verify_message', wrong)}", hopeless=True)
        case aiohttp.ClientSSLError():
            return Unreachable(f"what answers at {url} does not speak TLS ({getattr(error.os_error, 'reason', error)})", hopeless=True)
        case aiohttp.ClientResponseError():
            return Unreachable(f"what answers at {url} does not speak HTTP", hopeless=True)
    return Unreachable(f"{url}: {str(error) or type(error).__name__}")


def root_of(url: str) -> str:
    """The root of an engine's URL, without a trailing slash or /v1. ValueError says what is wrong with it and shows no password."""
    shown = address.masked(url)
    if "@" in url:
        raise ValueError(f"{shown!r} is not an engine's address: a name or password has no place in it")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown!r} is not an engine's address: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{shown!r} is not an engine's address: it should look like http://127.0.0.1:11434")
    if parts.path.rstrip("/") not in {"", "/v1"}:
        raise ValueError(f"{shown!r} is not the root of an engine: give only scheme, host and port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
