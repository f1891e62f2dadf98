"""One request at a time over HTTP to a server that is known by its pin: for joining and leaving, never for work.

Follows no redirect, reads no more than it must, and believes the system's authorities only when the token was made so
(`--public-pki`): then it names no pin. Blocks; call it from a thread where an event loop runs.
"""

import http.client
import ssl
from typing import TypeVar

import msgspec

from mindgw_agent import __version__, enrolment, errors, identity, proxy
from mindgw_agent.address import Address

#: Seconds for each step of a request: connect, send, each read.
TIMEOUT = 15.0
#: Most bytes that are read of any answer.
MAX_ANSWER = 64 * 1024

_AGENT = {"User-Agent": f"mindgw-agent/{__version__}", "Accept": "application/json", "Connection": "close"}
#: A proxy or a server on its way up or down: another URL, or a later try, may work.
_PASSING = frozenset({502, 503, 504})
#: Why a certificate is refused when the token names no pin.
_PUBLIC = "the token is for a server with a public certificate (--public-pki), and no authority that this system knows vouches for this one"
_REFUSALS: dict[str, type[errors.AgentError]] = {
    "join_token_expired": errors.TokenRefused,
    "join_token_used": errors.TokenRefused,
    "join_token_revoked": errors.TokenRefused,
    "join_token_unknown": errors.TokenRefused,
    "join_name_bound": errors.TokenRefused,
    "name_taken": errors.NameTaken,
    "agent_unknown": errors.Dismissed,
}

T = TypeVar("T")


class Door:
    """A server that may be told secrets: over TLS its CA is pinned or a public one, without TLS it is on a literal loopback address."""

    def __init__(self, address: Address, ca: bytes, issuer: str = "") -> None:
        #: Where it is.
        self.address = address
        #: PEM of the CA that vouches for it; empty without TLS, and where a public one does.
        self.ca = ca
        #: Who issued the certificate that was seen there, for people.
        self.issuer = issuer
        #: Believes that CA alone; None without TLS.
        self._context = (identity.pinned_context(ca) if ca else identity.public_context()) if address.secure else None

    def ask(self, path: str, question: msgspec.Struct, kind: type[T]) -> T:
        """POST a question. Raises `Unreachable`, `Untrusted`, or the error that the server's refusal stands for."""
        try:
            status, answer, _ = _exchange(self.address, self._context, "POST", path, msgspec.json.encode(question))
        except errors.Untrusted as error:
            seen = f" (issued by {self.issuer})" if self.issuer else ""
            hint = _PUBLIC if not self.ca and error.hint == identity.WRONG_SERVER else error.hint
            raise errors.Untrusted(f"the certificate of {self.address.netloc}{seen} is refused: {error.message}", hint=hint) from None
        if status not in (200, 201):
            raise _refusal(self.address, status, answer)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _stranger(self.address, f"its answer cannot be read ({error})") from None


def open_door(address: Address, pins: list[bytes]) -> Door:
    """Find out whether this is the pinned server, before it is told anything.

    Over TLS the server's CA file is read blindly and its pin checked; every question is then asked under that CA alone, so that
    somebody who shows the right file but is not the server is told nothing either. Without pins the system's authorities vouch for it;
    that it is the server of the token it proves in its first answer. Raises `Untrusted` or `Unreachable`.
    """
    if not address.secure:
        return Door(address, b"")
    if not pins:
        return Door(address, b"")
    status, pem, certificate = _exchange(address, identity.blind_context(), "GET", enrolment.CA_PATH, b"")
    if status != 200:
        raise _stranger(address, f"it has no CA file (status {status})")
    issuer = identity.issuer_of(certificate)
    try:
        return Door(address, identity.pinned_part(pem, pins), issuer)
    except errors.Untrusted as error:
        raise errors.Untrusted(f"{error.message}; its certificate is issued by {issuer}", hint=error.hint, code=error.code) from None


def issuer_at(address: Address) -> str:
    """Who issued the certificate that is shown there, for people; empty when nobody can be asked. Sends nothing but a TLS handshake."""
    try:
        with (
            proxy.reach(address, TIMEOUT) as plain,
            identity.blind_context().wrap_socket(plain, server_hostname=address.host) as talk,
        ):
            return identity.issuer_of(talk.getpeercert(binary_form=True) or b"")
    except OSError:
        return ""


def _exchange(address: Address, context: ssl.SSLContext | None, method: str, path: str, body: bytes) -> tuple[int, bytes, bytes]:
    """Status, body and certificate (DER) of the answer. The status alone decides nothing here."""
    connection = _connection(address, context)
    headers = _AGENT | {"Host": address.netloc} | ({"Content-Type": "application/json"} if body else {})
    try:
        connection.connect()
        sock = connection.sock
        certificate = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_ANSWER + 1)[:MAX_ANSWER], certificate or b""
    except ssl.SSLCertVerificationError as error:
        raise errors.Untrusted(error.verify_message or str(error), hint=_certificate_hint(address, error)) from None
    except ssl.SSLError as error:
        raise errors.Unreachable(f"{address.root} does not speak TLS: {error.reason or error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise errors.Unreachable(f"cannot reach {address.root}: {_reason(error)}") from None
    finally:
        connection.close()


def _connection(address: Address, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """One that is not open yet; through the proxy, if there is one for this server."""
    if not address.secure:
        return http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
    through = proxy.proxy_for(address)
    if through is None:
        return http.client.HTTPSConnection(address.host, address.port, timeout=TIMEOUT, context=context)
    connection = http.client.HTTPSConnection(through.host, through.port, timeout=TIMEOUT, context=context)
    connection.set_tunnel(address.host, address.port, through.headers)
    return connection


def _certificate_hint(address: Address, error: ssl.SSLCertVerificationError) -> str:
    # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
    if error.verify_code in (62, 64):
        return f"the server's certificate is not for {address.host}: run `mindgw init --public-url {address.root}` there"
    return identity.WRONG_SERVER


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__


def _refusal(address: Address, status: int, answer: bytes) -> errors.AgentError:
    try:
        fault = msgspec.json.decode(answer, type=enrolment.Problem).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if status in _PASSING:
            return errors.Unreachable(f"{address.root} is not ready: status {status}")
        return _stranger(address, f"status {status}")
    if status in _PASSING:
        return errors.Unreachable(f"{address.root} is not ready: {fault.message}", hint=fault.hint)
    kind = _REFUSALS.get(fault.code, errors.AgentError)
    return kind(fault.message or f"the server refused with status {status}", hint=fault.hint, code=fault.code)


def _stranger(address: Address, why: str) -> errors.AgentError:
    return errors.Unreachable(
        f"what answers at {address.root} is not a MindGateway: {why}",
        hint="check the address; it is the root of the server, without a path",
        code="not_mindgw",
    )
