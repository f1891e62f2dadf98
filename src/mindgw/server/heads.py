"""The head of a request: how much of it there may be, and what in it somebody else on the way may read in another way."""

from itertools import chain

from mindgw.server.bodies import Headers

#: Most bytes of a request line and its headers, and most headers.
MAX_HEAD = 64 * 1024
MAX_FIELDS = 100

_VERSIONS = frozenset({"1.0", "1.1"})
#: Characters that a host and its port are made of.
_HOST = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=%:[]"
#: Headers that mean something else to somebody else when there are two of them.
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding"})


def require_sense(url: bytes, headers: Headers, fields: dict[bytes, bytes], version: str) -> None:
    """Raises ValueError for what somebody else on the way may read in another way."""
    if version not in _VERSIONS or b"#" in url:
        raise ValueError("nobody speaks so")
    if len(fields) != len(headers) and any(name in _ONCE for name in _repeated(headers)):
        raise ValueError("said twice")
    host, coding = fields.get(b"host"), fields.get(b"transfer-encoding")
    if (not host and version == "1.1") or (host and host.translate(None, _HOST)):
        raise ValueError("a request names one host")
    if coding is not None and (b"content-length" in fields or version == "1.0" or coding.lower() != b"chunked"):
        raise ValueError("a body has one length")


def _repeated(headers: Headers) -> list[bytes]:
    """Names that are there more than once."""
    seen: set[bytes] = set()
    return [name for name, _ in headers if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The head, without the wish to speak something else."""
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
    kept = [pair for pair in headers if pair[0] not in (b"connection", b"upgrade", b"http2-settings")]
    lines = [b"%b: %b\r\n" % pair for pair in (*kept, *([(b"connection", b"close")] if closes else []))]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), b"".join(lines))


def is_too_large(url: bytes, headers: Headers) -> bool:
    """True when it has too many bytes or headers."""
    return len(headers) > MAX_FIELDS or len(url) + 4 * len(headers) + sum(map(len, chain.from_iterable(headers))) > MAX_HEAD
