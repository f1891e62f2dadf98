"""What this server must know when somebody comes back from a provider, kept by whoever began: sealed, good for a while, and once."""

import base64
import binascii
import secrets

import msgspec
from msgspec import Struct

from mindgw.control.sealing import Safe
from mindgw.errors import Unauthenticated

#: Seconds for which a sign-on with a browser may take; and characters of the longest ticket that is looked at.
LIFE, MAX_TEXT = 600.0, 4000
#: Who begins a sign-on: a program on somebody's machine, the same without a browser there, a browser.
TERMINAL, DEVICE, BROWSER = "terminal", "device", "browser"

_WHAT = b"mindgw sign-ons 1"
_NAME = "ticket"


class Ticket(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sign-on that is under way."""

    id: str
    #: Name of the provider in the settings.
    provider: str
    kind: str
    #: Seconds since 1970.
    expires: float
    #: What comes back with the code, and in the token; the secret that the code is worth nothing without; "" for the device flow.
    state: str = ""
    nonce: str = ""
    verifier: str = ""
    redirect_uri: str = ""
    #: What the provider knows the device by.
    device_code: str = ""


def fresh() -> str:
    """A text that nobody can guess, of 43 characters as PKCE wants them."""
    return secrets.token_urlsafe(32)


class Tickets:
    """Makes and reads the tickets of all servers that have the same data."""

    def __init__(self, sealing: bytes) -> None:
        self._safe = Safe(sealing, _WHAT)

    def made(self, ticket: Ticket) -> str:
        """The text of a ticket, which says nothing to whoever keeps it."""
        return base64.urlsafe_b64encode(self._safe.seal(_NAME, msgspec.json.encode(ticket))).decode()

    def read(self, text: str, kind: str, now: float) -> Ticket:
        """Raises Unauthenticated for what is none, is of another kind, or too old."""
        try:
            if len(text) > MAX_TEXT:
                raise ValueError("too long")
            ticket = msgspec.json.decode(self._safe.open(_NAME, base64.urlsafe_b64decode(text.encode("ascii"))), type=Ticket)
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            raise _unknown() from None
        if ticket.kind != kind:
            raise _unknown()
        if now >= ticket.expires:
            raise Unauthenticated("This sign-on has taken too long: begin anew.", code="expired_sign_on")
        return ticket


def _unknown() -> Unauthenticated:
    return Unauthenticated("This is no sign-on that was begun here.", code="invalid_sign_on")
