"""The server's own CA and the certificate that it shows. Agents and contexts pin the CA, so the certificate below it may change at will.

A CA lives for 10 years; a certificate for 90 days, and it is replaced when a third of that is left, when a name is missing from it,
or when it is not of this CA. ECDSA on P-256 throughout: every TLS client knows it.
"""

import fcntl
import socket
import struct
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mindgw import clock
from mindgw.errors import ConfigError
from mindgw_agent import identity, private_files

_Public = ec.EllipticCurvePublicKey

CA_LIFE = timedelta(days=3652)
LEAF_LIFE = timedelta(days=90)
#: Clocks of clients may be behind.
_BACKDATED = timedelta(hours=1)

SERVER_PEM, SERVER_KEY = "server.pem", "server.key"
#: Names that every certificate has.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def spki_pin(pem: bytes) -> bytes:
    """SHA-256 of the certificate's public key (DER SubjectPublicKeyInfo), 32 bytes. Raises ValueError when it is no certificate."""
    return identity.pin_of(pem)


def new_key() -> bytes:
    """A new private key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def new_ca(key_pem: bytes, now: datetime | None = None) -> bytes:
    """The certificate of a CA with this key, PEM."""
    key = _private(key_pem)
    now = now or clock.utcnow()
    authority = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"MindGateway CA {authority.digest.hex()[:8]}")
    builder = _builder(name, name, key.public_key(), now, CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue(ca_pem: bytes, ca_key: bytes, leaf_key: bytes, names: Iterable[str], now: datetime | None = None) -> bytes:
    """A certificate for a server with these host names and addresses, PEM. Raises ValueError on a name that cannot stand in one."""
    ca, signer, key = x509.load_pem_x509_certificate(ca_pem), _private(ca_key), _private(leaf_key)
    alternatives = x509.SubjectAlternativeName([_general(name) for name in dict.fromkeys(names)])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = _builder(_name("MindGateway server"), ca.subject, key.public_key(), now or clock.utcnow(), LEAF_LIFE)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(authority, critical=False)
        .add_extension(alternatives, critical=False)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def check_pair(pem: bytes, key_pem: bytes) -> None:
    """Raises ValueError unless the certificate is that of the key."""
    if x509.load_pem_x509_certificate(pem).public_key() != _private(key_pem).public_key():
        raise ValueError("the key is not that of the certificate")


def is_fresh(pem: bytes, ca_pem: bytes, names: Iterable[str], now: datetime) -> bool:
    """Whether the certificate is of this CA, has all the names, and a third of its life ahead. False for damaged ones."""
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
        present = set(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    young = leaf.not_valid_before_utc <= now and leaf.not_valid_after_utc - now >= life / 3
    return young and {_general(name) for name in names} <= present


def obtain_server(directory: Path, ca_pem: bytes, ca_key: bytes, names: Iterable[str], now: datetime | None = None) -> bool:
    """Puts a fresh certificate and its key into the data directory; True when there was no fresh one and it must be loaded anew.
    Call it at the start and once a day. The key stays the same while it lasts. Raises ConfigError."""
    pem, key = directory / SERVER_PEM, directory / SERVER_KEY
    names, now = list(names), now or clock.utcnow()
    try:
        found = pem.read_bytes() if pem.exists() and key.exists() else b""
        leaf_key = private_files.read(key) if found else b""
        if found and is_fresh(found, ca_pem, names, now) and _fits(found, leaf_key):
            return False
        leaf_key = leaf_key if found and _fits(found, leaf_key) else new_key()
        issued = issue(ca_pem, ca_key, leaf_key, names, now)
        # the chain: clients that pin the CA by its key want to see it
        private_files.write(key, leaf_key)
        private_files.write(pem, issued + ca_pem)
    except OSError as error:
        hint = "who runs this must own the data directory and its files"
        raise ConfigError(f"cannot write the server's certificate in {directory}: {error.strerror}", hint=hint) from None
    except ValueError as error:
        hint = "is the name in --public-url (public_url in config.yaml) right?"
        raise ConfigError(f"cannot make a certificate for {', '.join(names)}: {error}", hint=hint) from None
    return True


def names_of(public_url: str) -> list[str]:
    """Host names and addresses that the server on this machine is reached by."""
    host = urlsplit(public_url).hostname if public_url else None
    found = [*LOCAL_NAMES, socket.gethostname(), *local_addresses(), *([host] if host else [])]
    return [name for name in dict.fromkeys(found) if name and _can_stand(name)]


def local_addresses() -> list[str]:
    """Addresses of this machine; nothing is sent and no name is looked up, so some may be missed on unusual systems."""
    found = [address for target, family in _PROBES if (address := _source_address(target, family))]
    if sys.platform == "linux":
        found += [address for _, name in socket.if_nameindex() if (address := _interface_address(name))]
    return [address for address in dict.fromkeys(found) if not ip_address(address).is_loopback]


#: Addresses of documentation, where nobody is.
_PROBES = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
_SIOCGIFADDR = 0x8915


def _source_address(target: str, family: socket.AddressFamily) -> str:
    """The address that a packet to `target` would leave from."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


def _interface_address(name: str) -> str:
    """The first IPv4 address of a network interface; empty when it has none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])


def _fits(pem: bytes, key_pem: bytes) -> bool:
    try:
        check_pair(pem, key_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _can_stand(name: str) -> bool:
    try:
        _general(name)
    except ValueError:
        return False
    return True


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode("ascii").lower())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: _Public, now: datetime, life: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic-curve key")
    return key
