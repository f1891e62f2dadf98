"""Who manages: whose key, session or pass a request carries."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from mindgw import clock
from mindgw.control.passes import is_jwt, is_like_ours
from mindgw.control.sessions import Sessions, is_session
from mindgw.core.access import Rights
from mindgw.errors import MindGWError, Unauthenticated
from mindgw.gateway.auth import credential

Headers = list[tuple[bytes, bytes]]


class Known(Protocol):
    """Whose key it is."""

    @property
    def key_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def org_id(self) -> str: ...
    @property
    def rights(self) -> Rights: ...


#: Takes headers, path and network address; keeps its own count of strangers.
ByKey = Callable[[Headers, str, str], Awaitable[Known]]


class Visitor(Struct, frozen=True, kw_only=True):
    """Somebody who was let in, by a key or by a session."""

    org_id: str
    user_id: str
    #: Address of the person, "" for a key that belongs to nobody.
    email: str
    rights: Rights
    #: One of both is empty.
    key_id: str = ""
    session_id: str = ""
    #: Whether it came with what is good for a while only: a pass that stands for the session, a token of an identity provider.
    by_pass: bool = False


class Strangers(Protocol):
    """Keeps count of addresses that come without anything good; moments are monotonic."""

    def patience(self, address: str, now: float) -> None:
        """Raises RateLimited for an address that was wrong too often."""

    def blame(self, address: str, wrong: Unauthenticated, now: float) -> MindGWError:
        """Counts one more; what it is to hear."""


class Identity:
    """Everybody who may come to the management API."""

    def __init__(self, by_key: ByKey, sessions: Sessions, strangers: Strangers) -> None:
        self._by_key = by_key
        self._sessions = sessions
        self._strangers = strangers

    async def __call__(self, headers: Headers, path: str = "", address: str = "") -> Visitor:
        """Names of headers are in lower case. Raises Unauthenticated, RateLimited for an address that was wrong too often, BadRequest
        for two credentials, Forbidden where a key is not good for the path or the address."""
        found = _shown(headers)
        if not is_session(found):
            caller, lasts = await self._by_key(headers, path, address), not is_jwt(found)
            return Visitor(
                org_id=caller.org_id,
                user_id=caller.user_id,
                email=caller.user,
                rights=caller.rights,
                key_id=caller.key_id,
                by_pass=not lasts,
            )
        now = clock.monotonic()
        if not self._sessions.knows(found):
            self._strangers.patience(address, now)
        try:
            signed = await self._sessions.identify(found)
        except Unauthenticated as wrong:
            raise self._strangers.blame(address, wrong, now) from None
        user, by_pass = signed.user, is_like_ours(found)
        return Visitor(
            org_id=signed.org.id, user_id=user.id, email=user.email, rights=signed.rights, session_id=signed.session.id, by_pass=by_pass
        )


def _shown(headers: Headers) -> str:
    """What the request carries; "" for what is refused as a key."""
    try:
        return credential(headers)
    except Unauthenticated:
        return ""
