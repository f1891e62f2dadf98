"""Passes: short-lived JWTs for the management API, for programs that should not hold what they are made from.

A pass stands for a session and is good only while that session is: who reads one looks its session up. All passes have one header, word
for word, so nothing that a stranger writes into a header is ever looked at.
"""

import re
from typing import Annotated, Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Who may be told one: the management API and nobody else.
AUDIENCE: Final = "mindgw/management"
ALGORITHM: Final = "EdDSA"
#: Seconds that a pass lives at most, whatever it says itself; and that its maker's clock may be ahead of ours.
LONGEST, AHEAD = 3600, 60
#: Characters of the longest text that is looked at; ours have some 400.
MAX_TEXT: Final = 1024

#: {"alg":"EdDSA","typ":"JWT"}
_HEAD: Final = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9"
#: What anybody's JWT looks like; and one that begins as ours do, which nobody but us makes.
_FORM: Final = re.compile(r"eyJ[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*", re.ASCII)
_LIKE_OURS: Final = re.compile(rf"{_HEAD}\.[0-9A-Za-z_-]*\.[0-9A-Za-z_-]*", re.ASCII)
#: Ours: a signature has 64 bytes.
_OURS: Final = re.compile(rf"{_HEAD}\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]{{86}}", re.ASCII)


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pass says."""

    iss: str
    aud: str
    #: Id of the user.
    sub: Annotated[str, msgspec.Meta(pattern="^[0-9a-z]{26}\\Z")]
    #: Id of the session it was made from.
    sid: Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z]{10}\\Z")]
    #: Seconds since 1970.
    iat: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    exp: Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Passes:
    """Makes and reads the passes of one server."""

    def __init__(self, signing: bytes, fingerprint: str) -> None:
        """`signing` is the seed of an Ed25519 key that signs nothing else, `fingerprint` the server's name."""
        self._private = Ed25519PrivateKey.from_private_bytes(signing)
        self._public = self._private.public_key()
        self._issuer = f"mindgw:{fingerprint}"

    def make(self, user_id: str, session_id: str, now: float, life: float) -> str:
        """A pass for `life` seconds, an hour at most."""
        at = int(now)
        return self._written(Pass(self._issuer, AUDIENCE, user_id, session_id, at, at + min(int(life), LONGEST)))

    def read(self, text: str, now: float) -> Pass | None:
        """What a pass says, None when it is not one of ours or its time is over. Takes any text; nothing is looked up."""
        if len(text) > MAX_TEXT or _OURS.fullmatch(text) is None:
            return None
        try:
            said = msgspec.convert(self._verified(text), Pass)
        except (jwt.InvalidTokenError, msgspec.ValidationError):
            return None
        timely = said.iat <= now + AHEAD and said.iat < said.exp <= said.iat + LONGEST and now < said.exp
        # one pass has one text: what a lenient decoder also takes for it was never made here
        return said if timely and self._written(said) == text else None

    def _written(self, said: Pass) -> str:
        return jwt.encode(msgspec.to_builtins(said), self._private, algorithm=ALGORITHM)

    def _verified(self, text: str) -> dict[str, Any]:
        """Times are left out: they are measured by the caller's clock."""
        return jwt.decode(
            text,
            self._public,
            algorithms=["EdDSA"],
            audience=AUDIENCE,
            issuer=self._issuer,
            options={
                "require": ["exp", "iat", "iss", "aud", "sub", "sid"],
                "strict_aud": True,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )


def is_jwt(text: str) -> bool:
    """Whether somebody made this as a JWT, good or not."""
    return _FORM.fullmatch(text) is not None


def is_like_ours(text: str) -> bool:
    """Whether it would be a pass, if it were good. Other JWTs are made by others."""
    return _LIKE_OURS.fullmatch(text) is not None
