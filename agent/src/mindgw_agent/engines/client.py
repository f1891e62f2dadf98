"""The only way from an agent to an engine: one origin, listed methods and paths, no redirect, no proxy, no cookie."""

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mindgw_agent import address
from mindgw_agent.engines.pool import Connections
from mindgw_agent.engines.reply import READ_ON, Garbled, Lost, NoConnection, Reply
from mindgw_agent.wire import Meta

#: Seconds to connect, unless a request says otherwise.
CONNECT = 10.0
#: Seconds for a whole reading of an engine's state, and its largest answer in bytes.
READING = 5.0
MAX_READING = 4 * 1024 * 1024
#: Bytes of one line of an answer that comes in lines.
MAX_LINE = 64 * 1024

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


def open_session() -> Connections:
    """The connections of one agent, a context. No limit on those that carry a request: slots are counted elsewhere."""
    return Connections()


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
    """One engine's address and key. The connections stay the property of whoever opened them."""

    def __init__(self, session: Connections, url: str, key: str = "") -> None:
        """`url` is the root, as in http://127.0.0.1:11434; a trailing slash or /v1 is dropped. Raises ValueError on anything else."""
        #: Root URL without a trailing slash.
        self.url = root_of(url)
        self._session = session
        #: The lines that are in the head of every request. The engine's own key is in them, the caller's never comes here.
        self._lines = _lines(self.url, key)

    async def read(self, route: Route, allowed: frozenset[Route], body: bytes = b"", within: float = READING) -> Answer:
        """Ask the engine about itself, or for something that takes longer. Raises NotAllowed, and Unreachable for a MindGateway too: two
        of them in front of each other would send requests round in a circle."""
        reply = self.call(route, allowed, body)
        try:
            async with asyncio.timeout(within):
                await reply.begun()
                data = await reply.read(MAX_READING)
        except (NoConnection, Lost, Garbled, TimeoutError) as error:
            raise _unreachable(self.url, error) from error
        finally:
            reply.end()
        if len(data) > MAX_READING:
            raise Unreachable(f"{self.url}: the answer is larger than {MAX_READING} bytes")
        answer = Answer(reply.status, reply.server.lower(), data)
        if answer.server.startswith("mindgw"):
            raise Unreachable(f"a MindGateway answers at {self.url}, not an engine", hopeless=True)
        return answer

    async def lines(self, route: Route, allowed: frozenset[Route], body: bytes, take: Callable[[bytes], None], silence: float) -> int:
        """Hand over an answer line by line as it comes; its status. Raises NotAllowed, and Unreachable when it breaks, when a line is
        longer than MAX_LINE or when nothing comes for `silence` seconds."""
        reply = self.call(route, allowed, body)
        rest = b""
        loop = asyncio.get_running_loop()

        def feed(data: bytes) -> int:
            nonlocal rest
            patience.reschedule(loop.time() + silence)
            *whole, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE:
                raise Unreachable(f"{self.url}: a line of more than {MAX_LINE} bytes")
            for line in whole:
                take(line)
            return READ_ON

        try:
            async with asyncio.timeout(silence) as patience:
                await reply.begun()
                await reply.each(feed)
        except (NoConnection, Lost, Garbled, TimeoutError) as error:
            raise _unreachable(self.url, error) from error
        finally:
            reply.end()
        if rest:
            take(rest)
        return reply.status

    def call(self, route: Route, allowed: frozenset[Route], body: bytes = b"", meta: Meta | None = None, stream: bool = False) -> Reply:
        """Send a request. The caller calls `end` of what it gets. Raises NotAllowed before anything is sent."""
        check(route, allowed)
        method, path = route
        head = f"{method} {path} HTTP/1.1\r\n{self._lines}Accept: {'text/event-stream' if stream else 'application/json'}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if meta is not None and _REQUEST_ID.fullmatch(meta.request_id):
            head += f"X-Request-Id: {meta.request_id}\r\n"
        patience = CONNECT if meta is None else meta.connect
        return self._session.origin(self.url).ask(f"{head}\r\n".encode("latin-1"), body, patience)


def _lines(url: str, key: str) -> str:
    """The lines that say where a request goes and who sends it. ValueError for a key that does not fit in one."""
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the engine's key does not fit in a header")
    host = url.partition("://")[2]
    zone = re.sub(r"%[^\]]*", "", host)  # of a link-local address; it means nothing to the other end
    return f"Host: {zone}\r\nAccept-Encoding: identity\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")


def _unreachable(url: str, error: Exception) -> Unreachable:
    """What it means that a reading failed."""
    match error.__cause__:
        case ssl.SSLCertVerificationError() as wrong:
            return Unreachable(f"{url}: its certificate is refused: {wrong.verify_message}", hopeless=True)
        case ssl.SSLError() as wrong:
            return Unreachable(f"what answers at {url} does not speak TLS ({wrong.reason or wrong})", hopeless=True)
    if isinstance(error, Garbled):
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
        name = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"{shown!r} is not an engine's address: {error}") from None
    if parts.scheme not in {"http", "https"} or not name or parts.query or parts.fragment:
        raise ValueError(f"{shown!r} is not an engine's address: it should look like http://127.0.0.1:11434")
    if parts.path.rstrip("/") not in {"", "/v1"}:
        raise ValueError(f"{shown!r} is not the root of an engine: give only scheme, host and port")
    host = f"[{name}]" if ":" in name else name
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
