"""Asking a provider: one small answer in a bounded time, from the address that was asked and from no other.

The standard library's client in threads of its own, a few for each provider: one that hangs holds none that others need. Whoever waits
stops waiting in time and closes the connection under the thread.
"""

import asyncio
import http.client
import logging
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from mindgw import __version__, clock
from mindgw.errors import ProviderFailed, ProviderUnreachable
from mindgw_agent import proxy
from mindgw_agent.address import Address

log = logging.getLogger("mindgw.idp")

#: Seconds for an answer, from the first to the last byte; and its most bytes.
TIME, MOST = 10.0, 2**20
#: Questions that one provider is asked at once.
THREADS = 4
_PIECE = 64 * 1024


class Answer(NamedTuple):
    """What a provider says."""

    status: int
    said: dict[str, Any]


class Http:
    """The way to one provider. Call `close` in the end."""

    def __init__(self, time: float = TIME) -> None:
        self._time = time
        self._threads = ThreadPoolExecutor(THREADS, "idp")
        #: Whom it trusts; made when somebody is first asked by TLS.
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: str) -> dict[str, Any]:
        """A document. Raises ProviderUnreachable, ProviderFailed."""
        answer = await self._ask(_Call(url, None, {}, self._time, self._trust(url)))
        if answer.status != http.client.OK:
            raise ProviderFailed(f"{url} answers {answer.status}.")
        return answer.said

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        """An answer to a form, a refusal too. Raises as `get`."""
        kind = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self._ask(_Call(url, urlencode(form).encode(), kind, self._time, self._trust(url)))

    async def post_json(self, url: str, said: Any, headers: Mapping[str, str]) -> Answer:
        """An answer to a document, a refusal too. Raises as `get`."""
        kind = {"content-type": "application/json", **headers}
        return await self._ask(_Call(url, msgspec.json.encode(said), kind, self._time, self._trust(url)))

    def close(self) -> None:
        """Waits for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _trust(self, url: str) -> ssl.SSLContext | None:
        if self._tls is None and url.startswith("https:"):
            self._tls = ssl.create_default_context()
        return self._tls

    async def _ask(self, call: "_Call") -> Answer:
        host = urlsplit(call.url).netloc
        running = asyncio.get_running_loop().run_in_executor(self._threads, call.run)
        try:
            async with asyncio.timeout(self._time):
                status, body = await running
        except TimeoutError:
            raise ProviderUnreachable(f"The identity provider at {host} does not answer within {self._time:g} s.", retry_after=10) from None
        except ssl.SSLError as wrong:
            raise ProviderUnreachable(f"No trust in the identity provider at {host}: {wrong.reason or 'TLS'}.", retry_after=10) from None
        except (OSError, http.client.HTTPException) as wrong:
            log.warning("%s cannot be asked: %r", host, wrong)
            raise ProviderUnreachable(f"The identity provider at {host} cannot be reached.", retry_after=10) from None
        finally:
            call.hang_up()
        return _read(call.url, status, body)


def _read(url: str, status: int, body: bytes) -> Answer:
    if 300 <= status < 400:
        raise ProviderFailed(f"{url} leads elsewhere, which is not followed.")
    if status >= http.client.INTERNAL_SERVER_ERROR or status == http.client.TOO_MANY_REQUESTS:
        raise ProviderUnreachable(f"{url} answers {status}.", retry_after=10)
    if len(body) > MOST:
        raise ProviderFailed(f"{url} answers with more than {MOST >> 20} MiB.")
    try:
        said = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ProviderFailed(f"{url} answers with what is no JSON object.")
    return Answer(status, said)


class _Call:
    """One question, carried out by a thread."""

    def __init__(self, url: str, body: bytes | None, headers: Mapping[str, str], time: float, tls: ssl.SSLContext | None) -> None:
        self.url = url
        self._sent = body
        self._headers = {"accept": "application/json", "user-agent": f"mindgw/{__version__}", "connection": "close", **headers}
        self._time = time
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> tuple[int, bytes]:
        """Status and body, of which no more is read than shows that it is too long."""
        end = clock.monotonic() + self._time
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection = connection = self._connected(parts.scheme == "https", parts.hostname or "", parts.port)
        try:
            connection.request("GET" if self._sent is None else "POST", path, self._sent, self._headers)
            answer = connection.getresponse()
            body = b""
            while len(body) <= MOST and (piece := answer.read1(_PIECE)):
                body += piece
                if clock.monotonic() >= end:
                    raise TimeoutError
            return answer.status, body
        finally:
            connection.close()

    def _connected(self, secure: bool, host: str, port: int | None) -> http.client.HTTPConnection:
        if not secure:
            return http.client.HTTPConnection(host, port or 80, timeout=self._time)
        through = proxy.proxy_for(Address(True, host, port or 443))
        if through is None:
            return http.client.HTTPSConnection(host, port or 443, timeout=self._time, context=self._tls)
        connection = http.client.HTTPSConnection(through.host, through.port, timeout=self._time, context=self._tls)
        connection.set_tunnel(host, port or 443, headers=through.headers)
        return connection

    def hang_up(self) -> None:
        """Ends a read that nobody waits for; after the end it does nothing."""
        sock: socket.socket | None = getattr(self._connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
