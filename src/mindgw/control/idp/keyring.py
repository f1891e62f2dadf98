"""The public keys of a provider, as its JWKS has them."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import InvalidKeyError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

#: Keys of one provider that are looked at, and the least bits of an RSA key.
MOST, BITS = 100, 2048

_KINDS: dict[str, Callable[[Any], Any]] = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1"}


class PublicKey(NamedTuple):
    """A key that a provider signs with."""

    #: "" for one without a name.
    kid: str
    #: The only algorithm that it is for; "": any of its kind.
    algorithm: str
    key: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

    def fits(self, algorithm: str) -> bool:
        """Whether something may be signed with it in that way."""
        if self.algorithm not in ("", algorithm):
            return False
        if isinstance(self.key, RSAPublicKey):
            return algorithm[:2] in ("RS", "PS")
        if isinstance(self.key, EllipticCurvePublicKey):
            return _CURVES.get(algorithm) == self.key.curve.name
        return algorithm == "EdDSA"


def read(said: Any) -> list[PublicKey]:
    """The keys of a JWKS that can be used; others stand beside them at every provider, and do no harm."""
    several = said if isinstance(said, list) else []
    found = [_key(one) for one in several[:MOST] if isinstance(one, dict)]
    return [key for key in found if key is not None]


def matching(keys: Collection[PublicKey], kid: str, algorithm: str) -> list[PublicKey]:
    """Those by which a token may be signed: the one that it names, or, when it names none, all of its kind."""
    return [key for key in keys if key.fits(algorithm) and (not kid or key.kid == kid)]


def _key(said: dict[str, Any]) -> PublicKey | None:
    kid, algorithm, use = said.get("kid", ""), said.get("alg", ""), said.get("use", "sig")
    if not isinstance(kid, str) or not isinstance(algorithm, str) or use != "sig":
        return None
    public = {name: value for name, value in said.items() if name in ("kty", "n", "e", "crv", "x", "y")}
    try:
        key = _loaded(public)
    except (InvalidKeyError, ValueError, TypeError, KeyError, OverflowError):
        return None
    if isinstance(key, RSAPublicKey):
        return PublicKey(kid, algorithm, key) if key.key_size >= BITS else None
    return PublicKey(kid, algorithm, key) if isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey) else None


def _loaded(public: dict[str, Any]) -> Any:
    return _KINDS[public["kty"]](public)
