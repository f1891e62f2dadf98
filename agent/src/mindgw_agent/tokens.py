"""Text that people paste: join tokens, API keys, sessions, invitations. Agents read the first, servers make and read all of them.

All end in crc6, the CRC-32 of all the text before it: a typing error is found before anything is looked up or sent.
"""

import re
import secrets
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: Join tokens and API keys begin with it.
JOIN_PREFIX: Final = "mgwj1_"
KEY_PREFIX: Final = "mgw_"
SESSION_PREFIX: Final = "mgws_"
INVITATION_PREFIX: Final = "mgwi_"
#: Longest text that is looked at.
MAX_TEXT: Final = 4096

_VALUES: Final = {letter: value for value, letter in enumerate(ALPHABET)}
_KEY: Final = re.compile(r"mgw_([0-9A-Za-z]{10})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)
_KEY_LENGTH: Final = 53
_SESSION: Final = re.compile(r"mgws_([0-9A-Za-z]{10})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)
_INVITATION: Final = re.compile(r"mgwi_([0-9a-z]{26})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)


class TokenError(ValueError):
    """The join token cannot be used; the message says why and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        #: One of: empty, wrong_kind, version, truncated, checksum, payload.
        self.code = code


def base62_encode(data: bytes) -> str:
    """Bytes as digits and letters; leading zero bytes survive."""
    return _digits(int.from_bytes(b"\x01" + data, "big"))


def base62_decode(text: str) -> bytes:
    """Reverse of base62_encode. ValueError when it never made this text."""
    number = 0
    for letter in text:
        if letter not in _VALUES:
            raise ValueError(f"{letter!r} is not a base62 digit")
        number = number * 62 + _VALUES[letter]
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    if data[:1] != b"\x01" or text[:1] == "0":
        raise ValueError("not a base62 text")
    return data[1:]


def crc6(text: str) -> str:
    """CRC-32 of the text as six base62 digits."""
    return _digits(zlib.crc32(text.encode()), 6)


def _digits(number: int, width: int = 1) -> str:
    digits = []
    while number:
        number, value = divmod(number, 62)
        digits.append(ALPHABET[value])
    return "".join(reversed(digits)).rjust(width, "0")


Id = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]+$", max_length=512)]


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """All that a GPU box needs to find its server, to know it again, and to be let in once."""

    #: Version of the payload.
    v: Literal[1] = 1
    #: Root URLs of the server, best first.
    urls: Annotated[list[Url], msgspec.Meta(min_length=1, max_length=8)]
    id: Id
    #: Seed of a one-use Ed25519 key; it never crosses the wire.
    secret: Key
    #: SHA-256 of the public key (SPKI, DER) of each CA that may vouch for the server; empty: any that the agent's system knows.
    pins: Annotated[list[Key], msgspec.Meta(max_length=8)] = []
    #: The server's public Ed25519 identity key.
    srv: Key
    #: Seconds since the epoch after which the server refuses it.
    exp: Annotated[int, msgspec.Meta(ge=0, le=2**40)]

    def __repr__(self) -> str:
        """Without the secret: this text may stand in logs and tracebacks."""
        return f"JoinToken(id={self.id.hex()}, urls={self.urls!r}, exp={self.exp})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("id", self.id.hex()), ("urls", self.urls), ("exp", self.exp)]

    def encode(self) -> str:
        """The text to paste."""
        text = JOIN_PREFIX + base62_encode(_to_msgpack(self))
        return f"{text}_{crc6(text)}"

    @classmethod
    def decode(cls, text: str) -> "JoinToken":
        """Read a pasted token; blanks and line breaks inside do no harm. TokenError says what is wrong with it."""
        text = "".join(text.split())
        _check_kind(text)
        body, _, digits = text[len(JOIN_PREFIX) :].rpartition("_")
        if not body or len(digits) < 6:
            raise TokenError("truncated", "The join token is cut off: copy it whole, it ends in '_' and six characters.")
        if not text.isascii() or crc6(JOIN_PREFIX + body) != digits:
            raise TokenError("checksum", "The join token has a typing error: its checksum does not match. Copy it again.")
        try:
            return _from_msgpack(base62_decode(body))
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise TokenError("payload", f"The join token was made wrongly ({error}): make a new one.") from None


_to_msgpack = msgspec.msgpack.Encoder().encode
_from_msgpack = msgspec.msgpack.Decoder(JoinToken).decode


def _check_kind(text: str) -> None:
    if not text:
        raise TokenError("empty", "The join token is empty.")
    if text.startswith((KEY_PREFIX, SESSION_PREFIX, INVITATION_PREFIX)):
        what = {KEY_PREFIX: "an API key", SESSION_PREFIX: "a session", INVITATION_PREFIX: "an invitation of a person"}
        kind = what[text[: text.index("_") + 1]]
        raise TokenError("wrong_kind", f"This is {kind}, not a join token: `mindgw join-tokens create` makes one.")
    if re.match(r"mgwj[0-9]+_", text) and not text.startswith(JOIN_PREFIX):
        raise TokenError("version", "The join token is of a newer kind: update mindgw on this machine.")
    if not text.startswith(JOIN_PREFIX):
        raise TokenError("wrong_kind", f"This is not a join token: it would begin with {JOIN_PREFIX!r}.")
    if len(text) > MAX_TEXT:
        raise TokenError("payload", "The join token is too long to be one.")


class ApiKey(msgspec.Struct, frozen=True):
    """A new API key: store the id and a keyed digest of the secret, show the text once."""

    id: str
    secret: str
    text: str

    def __repr__(self) -> str:
        """Without the secret: this text may stand in logs and tracebacks."""
        return f"{type(self).__name__}(id={self.id!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("id", self.id)]


def make_key(random: Callable[[int], bytes] = secrets.token_bytes) -> ApiKey:
    """A new API key, 190 bits of secret."""
    digits = _random_digits(42, random)
    text = f"{KEY_PREFIX}{digits[:10]}_{digits[10:]}"
    return ApiKey(digits[:10], digits[10:], text + crc6(text))


def parse_key(text: str) -> tuple[str, str] | None:
    """Id and secret of an API key, None when no such key can exist. The cost does not depend on the text; nothing is looked up."""
    return _parse(_KEY, _KEY_LENGTH, text)


class Session(ApiKey, frozen=True):
    """A new session: what a person stays signed in with. Kept and shown as an API key is."""


def make_session(random: Callable[[int], bytes] = secrets.token_bytes) -> Session:
    """A new session, 190 bits of secret."""
    digits = _random_digits(42, random)
    text = f"{SESSION_PREFIX}{digits[:10]}_{digits[10:]}"
    return Session(digits[:10], digits[10:], text + crc6(text))


def parse_session(text: str) -> tuple[str, str] | None:
    """Id and secret of a session, None when no such session can exist; as `parse_key`."""
    return _parse(_SESSION, _KEY_LENGTH + 1, text)


def make_invitation(user_id: str, random: Callable[[int], bytes] = secrets.token_bytes) -> tuple[str, str]:
    """The secret by which one invited user is known, 190 bits, and the text to paste that holds it and the id of the user (26 lower-case
    letters and digits)."""
    secret = _random_digits(32, random)
    text = f"{INVITATION_PREFIX}{user_id}_{secret}"
    return secret, text + crc6(text)


def parse_invitation(text: str) -> tuple[str, str] | None:
    """Id of the user and secret of an invitation, None when no such invitation can exist; as `parse_key`."""
    return _parse(_INVITATION, len(INVITATION_PREFIX) + 26 + 1 + 32 + 6, text)


def _random_digits(count: int, random: Callable[[int], bytes]) -> str:
    # 384 random bits for 250 wanted: the remainder is even to 2**-130
    return _digits(int.from_bytes(random(48), "big") % 62**count, count)


def _parse(form: re.Pattern[str], length: int, text: str) -> tuple[str, str] | None:
    if len(text) != length:
        return None
    match = form.fullmatch(text)
    if match is None or crc6(text[:-6]) != match[3]:
        return None
    return match[1], match[2]
