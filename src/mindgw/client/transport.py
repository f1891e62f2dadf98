"""The blocking transport: one request of `client.api` over `http.client`, TLS pinned to the context's CA, errors as `client.errors`.

Importing it is slow (`ssl`, `http.client`), so faces import it when they make their first call.
"""

import hashlib
import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from mindgw import __version__, clock
from mindgw.client.api import Request, following, root_url
from mindgw.client.errors import ClientError, NotMindGW, Unreachable, UsageProblem, kind_for, next_step
from mindgw.client.redaction import redact

#: Answers of the management API are small; more than this is not one.
MAX_ANSWER = 32 * 2**20
_MAX_PAGES = 1000
UNVERIFIED = "unverified"


def _silent(line: str) -> None:
    """The default of `Server.note`."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how to be let in. Holds no connection: every call opens and closes its own."""

    #: Root URL, no trailing slash and no /v1.
    url: str
    #: API key; empty for calls that need none.
    token: str = field(default="", repr=False)
    #: PEM of the only authority that is trusted; None: the system's. `UNVERIFIED`: nobody is asked, for `fetch_unverified` alone.
    ca_pem: str | None = None
    #: Seconds that connecting may take, and that the server may stay silent.
    timeout: float = 30.0
    #: Takes one line of talk about each exchange, already without secrets.
    note: Callable[[str], None] = _silent

    @staticmethod
    def at(
        url: str, token: str = "", *, ca_pem: str | None = None, timeout: float = 30.0, note: Callable[[str], None] = _silent
    ) -> "Server":
        """Checks `url` before anything secret can travel. Raises UsageProblem on addresses that cannot be used."""
        root = root_url(url)
        if not _is_address(root):
            raise UsageProblem(f"{url!r} is not an address of a server", hint="write it as https://host:port or http://127.0.0.1:8420")
        parts = urlsplit(root)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise UsageProblem(
                f"{root} would carry the API key in the clear", hint="use https://, or http:// with a loopback address such as 127.0.0.1"
            )
        return Server(root, token, ca_pem, timeout, note)

    def call(self, request: Request) -> Any:
        """The decoded JSON answer; None when it has no body. Raises ClientError for every other outcome."""
        raw = self.fetch(request)
        if not raw and not request.fields:
            return None
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError) as problem:
            raise NotMindGW(self.url, "its answer is not JSON") from problem
        if request.fields and not (isinstance(answer, dict) and answer.keys() >= set(request.fields)):
            raise NotMindGW(self.url, f"its answer to {request.path} has no {' or no '.join(request.fields)}")
        return answer

    def items(self, request: Request) -> list[dict[str, Any]]:
        """All items of a list, however many pages it takes."""
        found: list[dict[str, Any]] = []
        page = request
        for _ in range(_MAX_PAGES):
            answer = self.call(page)
            found.extend(_list_in(answer, "items", self.url, request.path))
            if not answer.get("next"):
                break
            page = following(request, str(answer["next"]))
        return found

    def data(self, request: Request) -> list[dict[str, Any]]:
        """The items of a list of the OpenAI API, which has one page."""
        return _list_in(self.call(request), "data", self.url, request.path)

    def fetch(self, request: Request) -> bytes:
        """The raw body of a 2xx answer."""
        with self.open(request) as answer:
            raw = answer.read(MAX_ANSWER + 1)
        if len(raw) > MAX_ANSWER:
            raise NotMindGW(self.url, f"its answer to {request.path} has more than {MAX_ANSWER >> 20} MiB")
        return raw

    @contextmanager
    def open(self, request: Request) -> Iterator[http.client.HTTPResponse]:
        """The 2xx answer, its body not read yet; the connection is closed on the way out. Redirects are not followed."""
        self.note(asked(self, request))
        began = clock.monotonic()
        try:
            with closing(connection_to(self)) as connection:
                connection.request(request.method, request.path, _body(request), _headers(self, request))
                answer = connection.getresponse()
                took = (clock.monotonic() - began) * 1000
                self.note(redact(f"< {answer.status} {answer.reason}   {took:.0f} ms   request {answer.getheader('x-request-id') or '-'}"))
                if not 200 <= answer.status < 300:
                    raise refusal(self, request, answer)
                yield answer
        except (OSError, http.client.HTTPException) as problem:
            raise unreachable(self, problem) from problem


def _list_in(answer: Any, field: str, url: str, path: str) -> list[dict[str, Any]]:
    found = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise NotMindGW(url, f"its answer to {path} is no list of {field}")
    return found


def _is_address(root: str) -> bool:
    if any(character <= " " or character == "\x7f" for character in root):
        return False
    try:
        parts = urlsplit(root)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def asked(server: Server, request: Request) -> str:
    """The line of talk about a request that is being sent."""
    return redact(f"> {request.method} {server.url}{request.path}   authorization: {f'Bearer {server.token}' if server.token else 'none'}")


def _body(request: Request) -> bytes | None:
    return None if request.json is None else json.dumps(request.json).encode()


def _headers(server: Server, request: Request) -> dict[str, str]:
    headers = {"accept": "application/json, text/event-stream, */*", "user-agent": f"mindgw/{__version__}", "connection": "close"}
    if server.token:
        headers["authorization"] = f"Bearer {server.token}"
    if request.json is not None:
        headers["content-type"] = "application/json"
    if request.if_match is not None:
        headers["if-match"] = str(request.if_match)
    return headers


def connection_to(server: Server) -> http.client.HTTPConnection:
    """Not open yet; TLS trusts the pinned authority alone, a proxy is used where one is set. The caller closes it."""
    parts = urlsplit(server.url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        # what a name means is decided by a resolver, and this connection proves nothing about the other end: dial the address itself
        return http.client.HTTPConnection("127.0.0.1" if host == "localhost" else host, parts.port or 80, timeout=server.timeout)
    return _secure_connection(server, host, parts.port or 443)


def _secure_connection(server: Server, host: str, port: int) -> http.client.HTTPSConnection:
    tls = _tls(server)
    proxy = _proxy_for(host)
    if proxy is None:
        return http.client.HTTPSConnection(host, port, timeout=server.timeout, context=tls)
    connection = http.client.HTTPSConnection(proxy.hostname or "", proxy.port or 3128, timeout=server.timeout, context=tls)
    connection.set_tunnel(host, port)
    return connection


def _tls(server: Server) -> ssl.SSLContext:
    if server.ca_pem == UNVERIFIED:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        return tls
    try:
        # with an authority of its own the context trusts that one alone
        return ssl.create_default_context(cadata=server.ca_pem)
    except (ssl.SSLError, ValueError) as problem:
        raise UsageProblem(f"the CA certificate kept for {server.url} cannot be read: {problem}") from problem


def fetch_unverified(server: Server, request: Request) -> tuple[str, str]:
    """A certificate (PEM) from a server that nobody vouches for, and its SHA-256, to be compared by a person. Sends no key."""
    pem = replace(server, token="", ca_pem=UNVERIFIED).fetch(request).decode("ascii", "replace")
    try:
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()
    except ValueError as problem:
        raise NotMindGW(server.url, "it shows no certificate of its own") from problem
    return pem, ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def _proxy_for(host: str) -> SplitResult | None:
    """The proxy that HTTPS_PROXY names, unless NO_PROXY or a loopback address says otherwise."""
    address = getproxies().get("https")
    if not address or _is_loopback(host) or proxy_bypass(host):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


class Answer(Protocol):
    """What of an answer tells why a request was refused."""

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> str: ...
    def getheader(self, name: str) -> str | None: ...
    def read(self, amount: int) -> bytes: ...


def refusal(server: Server, request: Request, answer: Answer) -> ClientError:
    """What an answer other than 2xx means."""
    request_id = answer.getheader("x-request-id") or ""
    try:
        error = json.loads(answer.read(2**20))["error"]
        message, code, hint = str(error["message"]), error.get("code") or "", str(error.get("hint") or "")
        if not isinstance(code, str):
            raise TypeError("somebody else's codes are numbers")
        request_id = str(error.get("request_id") or request_id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _stranger(server, request, answer)
    return kind_for(answer.status, code)(message, hint=hint or next_step(code, answer.status), code=code, request_id=request_id)


def _stranger(server: Server, request: Request, answer: Answer) -> ClientError:
    """The refusal of somebody who does not speak as we do: a proxy in front of the server, or another program."""
    said = f"HTTP {answer.status} {answer.reason}".strip()
    if answer.status in {502, 503, 504}:
        hint = "is `mindgw serve` up where the proxy looks for it?"
        return Unreachable(f"a proxy at {server.url} does not reach the server ({said})", hint=hint)
    elsewhere = answer.getheader("location")
    return NotMindGW(server.url, f"{request.method} {request.path} ends with {said}{f', see {elsewhere}' if elsewhere else ''}")


def unreachable(server: Server, problem: Exception) -> ClientError:
    """Why there is no connection, or none any more."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return Unreachable(
            f"cannot trust {server.url} (TLS: {problem.verify_message})",
            hint="has the server's CA changed? compare `mindgw ca export` on the server",
        )
    if isinstance(problem, ssl.SSLError):
        return Unreachable(f"cannot reach {server.url} (TLS: {problem.reason or problem})", hint="does this port speak TLS?")
    if isinstance(problem, TimeoutError):
        return Unreachable(f"{server.url} did not answer within {server.timeout:g} s", hint="is it up? --timeout waits longer")
    if isinstance(problem, ConnectionRefusedError):
        return Unreachable(f"nothing listens at {server.url}", hint="start it with `mindgw serve`")
    if isinstance(problem, http.client.HTTPException) and not isinstance(problem, ConnectionError):
        return Unreachable(f"{server.url} does not speak HTTP ({type(problem).__name__})", hint="is this the right port?")
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem) or type(problem).__name__
    return Unreachable(f"cannot reach {server.url} ({reason})", hint="check the address and the network")
