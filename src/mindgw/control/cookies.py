"""Sessions of browsers: kept in a cookie that no script reads, and good for changes only beside a word that only our own pages know."""

import hashlib
import hmac
from collections.abc import Sequence

from mindgw.errors import Forbidden
from mindgw_agent import tokens

#: Header with the word that our pages know.
CSRF = b"x-mindgw-csrf"
#: Headers that a browser itself says with what it was asked for, and what they may be: our own pages, or somebody who typed the address.
_SITE, _OURS = b"sec-fetch-site", frozenset({b"same-origin", b"none"})
_SAFE = frozenset({"GET", "HEAD"})
#: Bytes of a header with cookies that are looked at.
_MOST = 16 * 1024

Headers = Sequence[tuple[bytes, bytes]]


class Cookies:
    """The cookies of one server."""

    def __init__(self, sealing: bytes, root_url: str) -> None:
        #: Whether browsers come by TLS.
        self.is_secure = root_url.startswith("https:")
        prefix = "__Host-" if self.is_secure else ""
        #: Names: of a session, and of a sign-on that is under way.
        self.session, self.ticket = f"{prefix}mindgw", f"{prefix}mindgw-sign-on"
        self._key = hmac.digest(sealing, b"mindgw csrf 1", "sha256")

    def csrf(self, session: str) -> str:
        """The word that goes with a session."""
        return hmac.new(self._key, session.encode(), hashlib.sha256).hexdigest()

    def read(self, headers: Headers, name: str) -> str:
        """The value of a cookie, "" for none, and where several say different things; names of headers are in lower case. What else a
        browser keeps of this host, in whatever form, does not matter."""
        text = ";".join(value.decode("latin-1") for header, value in headers if header == b"cookie")
        if len(text) > _MOST:
            return ""
        pairs = (pair.strip(" \t").partition("=") for pair in text.split(";"))
        found = {value.strip('"') for known, _, value in pairs if known == name}
        return found.pop() if len(found) == 1 else ""

    def signed_in(self, headers: Headers) -> str:
        """The session of a browser, "" for none: by its form, not whether it is good."""
        found = self.read(headers, self.session)
        return found if tokens.parse_session(found) is not None else ""

    def admit(self, method: str, headers: Headers) -> str:
        """The session that a request may go by; "" when it brings none. Raises Forbidden for what another site had a browser ask, and for a
        change without the word."""
        session = self.signed_in(headers)
        if not session:
            return ""
        named = dict(headers)
        if named.get(_SITE, b"none") not in _OURS:
            raise Forbidden("Another site had your browser ask for this.", code="cross_site")
        if method not in _SAFE and not hmac.compare_digest(named.get(CSRF, b""), self.csrf(session).encode()):
            raise Forbidden(f"A change by a browser's session takes the header {CSRF.decode()}.", code="csrf_token")
        return session
