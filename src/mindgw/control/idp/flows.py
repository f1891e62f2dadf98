"""What a provider is asked for people: where they sign in, what a code is worth, whether somebody is still theirs.

OAuth 2.0 (RFC 6749) with PKCE (RFC 7636, S256 alone), the device flow (RFC 8628), OpenID Connect Core 1.0.
"""

import base64
import hashlib
import re
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from mindgw.control.idp.http import Answer
from mindgw.control.idp.source import Metadata, Source
from mindgw.errors import Conflict, ProviderFailed, Unauthenticated
from mindgw.providers import is_address

_CLAIM = "groups"
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
#: What a provider is asked for unless the settings say something else, and what it is asked besides where it has that.
SCOPES, OFFLINE = ("openid", "profile", "email"), "offline_access"
#: What Graph wants for it to say in which of some groups somebody is, and of how many it says so at a time.
_READ, _GROUPS = "User.Read", 20
#: Seconds between polls when the provider does not say, and the least that are waited after it found us too quick.
INTERVAL, SLOWER = 5, 5
#: Seconds for which a device code may be good.
LONGEST = 1800


class Grant(Struct, frozen=True):
    """What somebody is worth who has signed in."""

    #: "" when a provider that was asked anew says nothing new of them (OpenID Connect Core 12.2).
    id_token: str
    #: "" for none.
    refresh_token: str = ""
    #: What Graph is asked with; "" for nothing.
    access_token: str = ""


class DeviceCode(Struct, frozen=True):
    """What somebody types in who signs in on another machine."""

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: int
    interval: int = INTERVAL
    verification_uri_complete: str = ""


class Pending(NamedTuple):
    """They have not done so yet."""

    slower: bool


class Lost(Unauthenticated):
    """What a provider was asked with is worth nothing any more. That says nothing of the person, who may have signed out there, changed a
    password or been on holiday (RFC 6749, 5.2)."""


class Gone(Lost):
    """The provider says that the person is none of its own any more, or is not meant for this server."""


def scopes(source: Source, metadata: Metadata) -> str:
    """What is asked for."""
    wanted = source.said.scopes or (*SCOPES, *([OFFLINE] if source.said.is_entra or OFFLINE in metadata.scopes_supported else []))
    return " ".join((*wanted, *([f"{source.said.graph}/{_READ}"] if source.said.graph else [])))


def challenge(verifier: str) -> str:
    """What is told of a verifier before it is shown (S256)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


async def address(source: Source, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
    """Where somebody signs in with a browser."""
    metadata = await source.metadata()
    asked = {
        "response_type": "code",
        "client_id": source.said.client_id,
        "redirect_uri": redirect_uri,
        "scope": scopes(source, metadata),
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge(verifier),
        "code_challenge_method": "S256",
    }
    if OFFLINE in asked["scope"].split() and not source.said.is_entra:
        asked["prompt"] = "consent"  # OpenID Connect Core 11: without it offline_access may be left out
    asked |= {name: value for name, value in source.said.ask.items() if name not in asked or name == "prompt"}
    joint = "&" if "?" in metadata.authorization_endpoint else "?"
    return metadata.authorization_endpoint + joint + urlencode(asked, quote_via=quote)


async def exchange(source: Source, code: str, redirect_uri: str, verifier: str, *, public: bool = False) -> Grant:
    """What a code is worth; `public`: asked without the client's secret. Raises Unauthenticated for one that is worth nothing,
    ProviderError."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": verifier}
    return _granted(await _ask(source, form, public=public))


async def begin_device(source: Source, *, public: bool = False) -> DeviceCode:
    """Raises Conflict for a provider that cannot do that, ProviderError."""
    metadata = await source.metadata()
    if not metadata.device_authorization_endpoint or not source.said.device:
        raise Conflict("This provider has no sign-in for other devices.", code="no_device_flow", hint="`mindgw login` without --device")
    form, headers = _as_client(source, metadata, {"scope": scopes(source, metadata)}, public=public)
    answer = await source.http.post(metadata.device_authorization_endpoint, form, headers)
    if answer.status != HTTPStatus.OK:
        raise _refusal(answer)
    said = dict(answer.said)
    said.setdefault("verification_uri", said.get("verification_url"))  # of before the RFC
    try:
        found = msgspec.convert(said, DeviceCode)
    except msgspec.ValidationError as wrong:
        raise ProviderFailed(f"The provider's code for devices makes no sense: {wrong}.") from None
    whole = found.verification_uri_complete
    if not is_address(found.verification_uri) or (whole and not is_address(whole.partition("?")[0])):
        raise ProviderFailed("The provider sends people to an address that is none.")
    if not found.user_code.isprintable() or found.expires_in <= 0 or not 0 < found.interval <= 60:
        raise ProviderFailed("The provider's code for devices makes no sense.")
    return msgspec.structs.replace(found, expires_in=min(found.expires_in, LONGEST))


async def poll_device(source: Source, device_code: str, *, public: bool = False) -> Grant | Pending:
    """Whether somebody has typed it in. Raises Unauthenticated when they have not and will not, ProviderError."""
    answer = await _ask(source, {"grant_type": _DEVICE, "device_code": device_code}, public=public)
    code = _error(answer)
    if code in ("authorization_pending", "slow_down"):
        return Pending(code == "slow_down")
    return _granted(answer)


async def refresh(source: Source, refresh_token: str, *, public: bool = False) -> Grant:
    """Whether the provider still vouches for somebody. Raises Gone, Lost, ProviderError."""
    answer = await _ask(source, {"grant_type": "refresh_token", "refresh_token": refresh_token}, public=public)
    if _error(answer) in _SPENT:
        raise (Gone if _is_gone(answer) else Lost)(_words(answer), code="sign_on_lost")
    try:
        return _granted(answer, named=False)
    except Unauthenticated as wrong:
        raise ProviderFailed(wrong.message) from None


async def revoke(source: Source, refresh_token: str, *, public: bool = False) -> None:
    """Has the provider forget what it would be asked anew with, where it can (RFC 7009). Raises ProviderError."""
    metadata = await source.metadata()
    if metadata.revocation_endpoint:
        form = {"token": refresh_token, "token_type_hint": "refresh_token"}
        whole, headers = _as_client(source, metadata, form, public=public)
        await source.http.post(metadata.revocation_endpoint, whole, headers)


#: That what a provider was asked with will not do: it has ended, or somebody must sign in there once more.
_SPENT = frozenset({"invalid_grant", "access_denied", "interaction_required", "login_required", "consent_required"})
#: What Entra says of accounts that are disabled or deleted, or that were taken from the application; and what Keycloak says.
_ACCOUNTS = frozenset({50034, 50057, 50105, 500341, 500571})
_DISABLED = "user disabled"
_CODE = re.compile(r"AADSTS([0-9]{4,9})\b", re.ASCII)


def _is_gone(answer: Answer) -> bool:
    """Whether a provider says why, and it is the person."""
    text, several = str(answer.said.get("error_description", "")), answer.said.get("error_codes")
    codes = set(map(int, _CODE.findall(text[:1000])))
    codes |= {one for one in several[:10] if isinstance(one, int)} if isinstance(several, list) else set()
    return bool(codes & _ACCOUNTS) or text.strip().lower() == _DISABLED


async def groups_of(source: Source, access_token: str) -> list[str]:
    """In which of the groups that the settings name somebody is, as Microsoft Graph says. Raises ProviderError. Where it is asked the
    settings say: what a token says of that is not looked at."""
    said = source.said
    wanted = [*(said.roles if _CLAIM in said.role_claims else ()), *(said.teams if _CLAIM in said.team_claims else ())]
    found: list[str] = []
    for first in range(0, len(wanted), _GROUPS):
        asked = {"groupIds": wanted[first : first + _GROUPS]}
        url = f"{said.graph}/v1.0/me/checkMemberGroups"
        answer = await source.http.post_json(url, asked, {"authorization": f"Bearer {access_token}"})
        several = answer.said.get("value")
        if answer.status != HTTPStatus.OK or not isinstance(several, list):
            raise ProviderFailed(f"{url} does not say in which groups somebody is (HTTP {answer.status}).")
        found += [one for one in several if isinstance(one, str)]
    return found


async def _ask(source: Source, form: dict[str, str], *, public: bool) -> Answer:
    metadata = await source.metadata()
    whole, headers = _as_client(source, metadata, form, public=public)
    return await source.http.post(metadata.token_endpoint, whole, headers)


def _as_client(source: Source, metadata: Metadata, form: dict[str, str], *, public: bool) -> tuple[dict[str, str], dict[str, str]]:
    """A form and headers that say who asks (RFC 6749, 2.3.1)."""
    said = source.said
    if public or not said.client_secret:
        return {**form, "client_id": said.client_id}, {}
    methods = metadata.token_endpoint_auth_methods_supported
    if "client_secret_basic" in methods or "client_secret_post" not in methods:
        pair = f"{quote(said.client_id, safe='')}:{quote(said.client_secret, safe='')}"
        return form, {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {**form, "client_id": said.client_id, "client_secret": said.client_secret}, {}


def _granted(answer: Answer, *, named: bool = True) -> Grant:
    """`named`: there must be an ID token."""
    if answer.status != HTTPStatus.OK:
        raise _refusal(answer)
    id_token, refresh_token = answer.said.get("id_token"), answer.said.get("refresh_token", "")
    id_token = id_token if named or id_token is not None else ""
    if not isinstance(id_token, str) or not isinstance(refresh_token, str):
        raise ProviderFailed("The provider's answer has no ID token: is openid among the scopes?")
    access_token = answer.said.get("access_token")
    return Grant(id_token, refresh_token, access_token if isinstance(access_token, str) else "")


#: What a provider says when it does not know us, rather than the person.
_OURS = frozenset({"invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type", "invalid_request"})


def _refusal(answer: Answer) -> Unauthenticated | ProviderFailed:
    if _error(answer) in _OURS or not _error(answer):
        return ProviderFailed(f"The provider does not take what this server asks ({_words(answer)}): look at its client id and secret.")
    return Unauthenticated(f"The provider says: {_words(answer)}.", code="sign_on_refused")


def _error(answer: Answer) -> str:
    """The code of a refusal; "" for what is none, or says none."""
    code = answer.said.get("error")
    return code if isinstance(code, str) and answer.status != HTTPStatus.OK else ""


def _words(answer: Answer) -> str:
    """What a provider says of an error, in one line that can be shown."""
    return shown(answer.said.get("error_description") or answer.said.get("error") or f"HTTP {answer.status}")


def shown(text: Any) -> str:
    """A text of somebody else's, as far as it may be shown."""
    first = str(text).strip().splitlines()[:1]
    return "".join(c for c in (first[0] if first else "")[:300] if c.isprintable()).rstrip(".")
