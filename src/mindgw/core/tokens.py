"""Tokens that others have signed: what a JWT says of itself, and whether the rules of its issuer take it. PURE.

Whoever takes one goes through it in this order: `read`, `check_header`, then the signature, which is not this room's, then `check_claims`.
Nothing that a token says of how it should be checked is followed: which algorithms, issuers and audiences are good stands in the rules.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

#: Characters of the longest text that is looked at: the largest tokens, with two hundred groups, have some ten thousand.
MAX_TEXT: Final = 16 * 1024
#: Seconds that the clock of an issuer may differ from ours.
SKEW: Final = 60
#: What must be said.
REQUIRED: Final = ("exp", "iat", "iss", "aud", "sub")

_FORM: Final = re.compile(r"(eyJ[0-9A-Za-z_-]+)\.(eyJ[0-9A-Za-z_-]+)\.([0-9A-Za-z_-]+)", re.ASCII)
#: Kinds of JWT that say who somebody is, in lower case.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
#: Words of a header that would have a token say by which key it is checked, or that it is something else than signed claims.
_FOREIGN: Final = ("crit", "jku", "jwk", "x5u", "b64", "enc", "zip", "cty")
_MAX_NAME: Final = 255
#: Claims of ID tokens alone; what Keycloak says that is no access token; and who asked, which Entra says in access tokens alone.
_OF_SIGN_IN: Final = ("nonce", "at_hash", "c_hash", "s_hash")
_OTHERS: Final = frozenset({"ID", "Refresh", "Offline", "Logout"})
_CLIENTS: Final = ("azp", "appid")
#: The last day of the year 9999; what is later is no moment.
_LAST: Final = 253_402_214_400


class Rules(Struct, frozen=True, kw_only=True):
    """What the tokens of one issuer must be like."""

    #: Its names, each word for word.
    issuers: frozenset[str]
    #: Whom they may be meant for.
    audiences: frozenset[str]
    #: How they may be signed; names as they stand in a header.
    algorithms: frozenset[str]
    #: What `tid` must be; "" where there are no tenants.
    tenant: str = ""


class Token(Struct, frozen=True):
    """What a text says, true or not."""

    header: dict[str, Any]
    claims: dict[str, Any]

    @property
    def algorithm(self) -> str:
        """How it says that it is signed; only after `check_header` is it one of the rules'."""
        return str(self.header.get("alg", ""))

    @property
    def kid(self) -> str:
        """Name of the key, "" for none; only after `check_header` is it a name."""
        return str(self.header.get("kid") or "")

    @property
    def issuer(self) -> str:
        """Who it says has made it; "" for nobody."""
        found = self.claims.get("iss")
        return found if isinstance(found, str) else ""

    @property
    def ends(self) -> float:
        """Seconds since 1970; only after `check_claims`."""
        return float(self.claims["exp"])


class Wrong(Struct, frozen=True):
    """Why a token is not taken."""

    code: str
    #: For people; has nothing of the token in it but names that the rules know too.
    message: str


_GARBAGE: Final = Wrong("invalid_token", "This is not a token that can be read.")


def is_jwt(text: str) -> bool:
    """Whether somebody made this as a JWT, good or not."""
    return len(text) <= MAX_TEXT and _FORM.fullmatch(text) is not None


def read(text: str) -> Token | Wrong:
    """What a text says. Takes any text; a name that is said twice makes it unreadable, for two readers might take two of its values."""
    match = _FORM.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None:
        return _GARBAGE
    try:
        header, claims = (json.loads(_text(part), object_pairs_hook=_once, parse_constant=_number) for part in match.groups()[:2])
    except (ValueError, RecursionError):
        return _GARBAGE
    return Token(header, claims) if isinstance(header, dict) and isinstance(claims, dict) else _GARBAGE


def _text(part: str) -> str:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("said twice")
    return found


def _number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def check_header(token: Token, rules: Rules) -> Wrong | None:
    """Whether a signature may be looked at; None: it may."""
    header = token.header
    if not _in(header.get("alg"), rules.algorithms):
        return Wrong("invalid_token", f"The token must be signed with {' or '.join(sorted(rules.algorithms))}.")
    foreign = next((word for word in _FOREIGN if word in header), None)
    if foreign is not None:
        return Wrong("invalid_token", f"The header of the token has {foreign!r}, which is not followed here.")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        return Wrong("invalid_token", "The token is of a kind that says nothing of who somebody is.")
    kid = header.get("kid", "-")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_NAME or not kid.isprintable():
        return Wrong("invalid_token", "The header of the token names its key in no good way.")
    return None


def check_claims(token: Token, rules: Rules, now: float) -> Wrong | None:
    """Whether a token that is signed well says what it must; None: it does. `now`: seconds since 1970."""
    claims = token.claims
    lacking = [name for name in REQUIRED if claims.get(name) is None]
    if lacking:
        return Wrong("invalid_token", f"The token does not say {', '.join(lacking)}.")
    if not _in(claims["iss"], rules.issuers):
        return Wrong("wrong_issuer", "The token is from another issuer.")
    if rules.tenant and claims.get("tid") != rules.tenant:
        return Wrong("wrong_tenant", "The token is from another tenant.")
    if not audiences(claims) & rules.audiences:
        old = ' It is of version 1: "requestedAccessTokenVersion" must be 2.' if rules.tenant and claims.get("ver") == "1.0" else ""
        return Wrong("wrong_audience", f"The token is meant for somebody else.{old}")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_NAME or not subject.isprintable():
        return Wrong("invalid_token", "The token names its subject in no good way.")
    return _check_times(claims, now)


def _in(value: Any, known: frozenset[str]) -> bool:
    return isinstance(value, str) and value in known


def _check_times(claims: Mapping[str, Any], now: float) -> Wrong | None:
    exp, iat, nbf = (_moment(claims.get(name)) for name in ("exp", "iat", "nbf"))
    if exp is None or iat is None or (nbf is None and claims.get("nbf") is not None):
        return Wrong("invalid_token", "The token has a time that is none.")
    if now >= exp + SKEW:
        return Wrong("expired_token", f"The token is over since {now - exp:.0f} s, by the clock of this server.")
    ahead = max(iat, nbf or iat) - now
    if ahead > SKEW:
        return Wrong("token_from_the_future", f"The token is good only in {ahead:.0f} s, by the clock of this server: is that right?")
    return None


def _moment(value: Any) -> float | None:
    """Seconds since 1970; None for what is no moment."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _LAST else None  # compared first: there are whole numbers that are no float


def audiences(claims: Mapping[str, Any]) -> frozenset[str]:
    """Whom a token is meant for; nobody when that is not said as it should be."""
    said = claims.get("aud")
    several: list[Any] = said if isinstance(said, list) else [said]
    return frozenset(several) if all(isinstance(one, str) and one for one in several) else frozenset()


def check_bearer(token: Token, rules: Rules) -> Wrong | None:
    """What is asked of a token that is sent in place of a key, beyond the rest: it was made to be shown. One that says to a client who has
    signed in goes through many hands, and opens nothing (RFC 9068, 5)."""
    claims = token.claims
    shown = not any(name in claims for name in _OF_SIGN_IN) and not _in(claims.get("typ"), _OTHERS)
    if shown and rules.tenant:
        shown = any(isinstance(claims.get(name), str) for name in _CLIENTS)
    return None if shown else Wrong("id_token", "This token says who has signed in; what is sent in place of a key is an access token.")


def check_sign_in(token: Token, client: str, nonce: str | None) -> Wrong | None:
    """What is asked of a token that a person signs in with, beyond the rest: it is meant for the client that asked for it alone, and
    answers what was asked. `nonce` None: none was sent."""
    claims = token.claims
    meant = audiences(claims)
    if client not in meant or (len(meant) > 1 and claims.get("azp") != client) or claims.get("azp", client) != client:
        return Wrong("wrong_audience", "The token is meant for somebody else.")
    if nonce is not None and claims.get("nonce") != nonce:
        return Wrong("wrong_nonce", "The token answers another question.")
    return None
