"""Who the agent is and whom it believes: Ed25519 keys, pins of public keys, TLS contexts that know one CA."""

import hashlib
import re
import ssl
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mindgw_agent import errors

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?\s-----END CERTIFICATE-----", re.DOTALL)
#: A chain is a few kilobytes; more is not a CA file.
_MAX_CERTIFICATES = 16


def new_key() -> bytes:
    """A fresh private key, 32 raw bytes."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_half(private: bytes) -> bytes:
    """The 32 bytes that may be told to everybody. Raises ValueError unless `private` has 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, message: bytes) -> bytes:
    """64 bytes that only the holder of the private key can make. Raises ValueError unless `private` has 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of `public` signed `message`; False for malformed keys and signatures too."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of the public key (DER SubjectPublicKeyInfo, as in RFC 7469) of one PEM certificate. Raises ValueError when it is none."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).digest()


def pinned_part(pem: bytes, pins: Iterable[bytes]) -> bytes:
    """The certificates of a PEM file whose public key is pinned, and no other. Raises `Untrusted` when there is none."""
    found = _PEM.findall(pem)[:_MAX_CERTIFICATES]
    wanted = frozenset(pins)
    try:
        chosen = [certificate for certificate in found if pin_of(certificate) in wanted]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise errors.Untrusted(f"the server's CA file is damaged: {error}", hint=WRONG_SERVER, code="bad_ca") from None
    if not chosen:
        what = "it shows another CA than the token names" if found else "it shows no certificate at all"
        raise errors.Untrusted(f"this is not the server of the token: {what}", hint=WRONG_SERVER, code="wrong_pin")
    return b"\n".join(chosen) + b"\n"


def pinned_context(ca: bytes) -> ssl.SSLContext:
    """A context that believes this CA alone (never the system's) and checks the host name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
    return context


def public_context() -> ssl.SSLContext:
    """A context that believes the system's authorities and checks the host name: for servers behind a public certificate."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def blind_context() -> ssl.SSLContext:
    """A context that believes anybody: only for reading the public CA file, whose pin is checked before anything else is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def issuer_of(der: bytes) -> str:
    """Who signed this certificate, for people; empty when it cannot be read."""
    try:
        return x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except ValueError:
        return ""


WRONG_SERVER = "check the address in the token; a proxy that opens TLS also looks like this. Nothing secret was sent"
