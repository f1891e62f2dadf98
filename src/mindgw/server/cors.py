"""Pages of which origins may call `/v1` (https://fetch.spec.whatwg.org/#http-cors-protocol). Off unless it is set.

Keys travel in a header that pages set themselves, so cookies and the like are never allowed.
"""

import re

Headers = list[tuple[bytes, bytes]]

#: What a page may read of an answer beside its body.
EXPOSED = b"x-request-id, x-mindgw-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry"
#: Seconds for which a browser need not ask again.
REMEMBERED = b"7200"
#: Headers that a page wants to send: names, at most a thousand characters of them.
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1000}")


class Cors:
    """The origins that are allowed, "*" for all."""

    def __init__(self, origins: str = "") -> None:
        """`origins` as the settings have them, separated by commas."""
        self._allowed = frozenset(origin.strip().encode() for origin in origins.split(",") if origin.strip())
        self._everybody = b"*" in self._allowed

    @property
    def is_on(self) -> bool:
        """False when no answer has headers of this kind."""
        return bool(self._allowed)

    def headers(self, origin: bytes | None) -> Headers:
        """Headers of an answer to a page of that origin; to who is no page, of none."""
        if not self._allowed:
            return []
        if self._everybody:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        vary = (b"vary", b"origin")
        if origin is None or origin not in self._allowed:
            return [vary]
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), vary]

    def of(self, path: bytes, asked: Headers) -> Headers:
        """The same for a request for `path` with the headers `asked`, in lower case; none outside `/v1`."""
        return self.headers(dict(asked).get(b"origin")) if self._allowed and path.startswith(b"/v1/") else []

    def preflight(self, headers: Headers) -> Headers:
        """Headers of the answer to a browser that asks before it asks; none when no browser does, or for a page that is not allowed."""
        named = dict(headers)
        origin = named.get(b"origin", b"")
        if b"access-control-request-method" not in named or not (self._everybody or origin in self._allowed):
            return []
        wanted = named.get(b"access-control-request-headers", b"")
        more = [(b"access-control-allow-headers", wanted)] if _NAMES.fullmatch(wanted) else []
        allowed = [(b"access-control-allow-methods", b"GET, POST"), *more, (b"access-control-max-age", REMEMBERED)]
        return [*self.headers(origin), *allowed]
