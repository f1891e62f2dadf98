"""The CA and the certificate below it: believed by OpenSSL, renewed in time, replaced when they no longer fit."""

import asyncio
import hashlib
import ipaddress
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mindgw.clock import utcnow
from mindgw.control import certificates
from mindgw.errors import ConfigError

KEY = certificates.new_key()
CA = certificates.new_ca(KEY)
NAMES = ["localhost", "127.0.0.1", "::1", "gpu.example", "bücher.example"]


@pytest.fixture
def directory(tmp_path):
    assert certificates.obtain_server(tmp_path, CA, KEY, NAMES)
    return tmp_path


def leaf(directory):
    return x509.load_pem_x509_certificate((directory / "server.pem").read_bytes())


def alternatives(directory):
    return leaf(directory).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize("name", ["gpu.example", "localhost", "127.0.0.1", "::1"])
def test_openssl_believes_the_certificate(directory, name):
    flag = "-verify_hostname" if name[0].isalpha() else "-verify_ip"
    (directory / "ca.pem").write_bytes(CA)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", flag, name, "-CAfile", "ca.pem", "server.pem"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


async def handshake(directory, name, ca=CA):
    """What a client that believes `ca` alone finds at a server with the certificate of `directory`, called `name`."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(directory / "server.pem", directory / "server.key")
    client_side = ssl.create_default_context(cadata=ca.decode())
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side, server_hostname=name)
        found = writer.get_extra_info("peercert")
        writer.close()
    return found


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "gpu.example", "xn--bcher-kva.example"])
async def test_a_client_of_our_ca_is_let_in(directory, name):
    assert await handshake(directory, name)


async def test_a_client_that_wants_another_name_or_knows_another_ca_is_not(directory):
    other = certificates.new_ca(certificates.new_key())
    for name, ca in [("other.example", CA), ("gpu.example", other)]:
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(directory, name, ca)


def test_what_stands_in_a_certificate(directory):
    found = leaf(directory)
    names = alternatives(directory)
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gpu.example", "xn--bcher-kva.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    life = found.not_valid_after_utc - utcnow()
    assert timedelta(days=89, hours=23) < life <= timedelta(days=90)
    assert found.not_valid_before_utc < utcnow() - timedelta(minutes=50)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (directory / "server.pem").read_bytes().endswith(CA)
    assert {name: (directory / name).stat().st_mode & 0o777 for name in ("server.key", "server.pem")} == {
        "server.key": 0o600,
        "server.pem": 0o600,
    }


def test_what_stands_in_a_ca():
    found = x509.load_pem_x509_certificate(CA)
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert found.public_key().curve.name == "secp256r1"
    years = (found.not_valid_after_utc - utcnow()) / timedelta(days=365.25)
    assert 9.9 < years < 10.1
    spki = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificates.spki_pin(CA) == hashlib.sha256(spki).digest()


def test_a_certificate_that_lasts_is_kept(directory):
    before = (directory / "server.pem").read_bytes()
    soon = utcnow() + timedelta(days=59)
    assert not certificates.obtain_server(directory, CA, KEY, NAMES, soon)
    assert not certificates.obtain_server(directory, CA, KEY, NAMES[:1])
    assert (directory / "server.pem").read_bytes() == before


@pytest.mark.parametrize("days", [61, 89, 91, 400, -2])
def test_one_with_less_than_a_third_of_its_life_is_renewed_with_the_same_key(directory, days):
    before, later = (directory / "server.key").read_bytes(), utcnow() + timedelta(days=days)
    assert certificates.obtain_server(directory, CA, KEY, NAMES, later)
    assert (directory / "server.key").read_bytes() == before
    assert abs(leaf(directory).not_valid_after_utc - later - timedelta(days=90)) < timedelta(seconds=2)


def test_one_that_lacks_a_name_is_replaced(directory):
    assert certificates.obtain_server(directory, CA, KEY, [*NAMES, "new.example"])
    assert "new.example" in leaf(directory).extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )


async def test_one_of_another_ca_is_replaced(directory):
    key = certificates.new_key()
    ca = certificates.new_ca(key)
    assert certificates.obtain_server(directory, ca, key, NAMES)
    assert await handshake(directory, "gpu.example", ca)


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", certificates.new_key(), CA])
async def test_a_damaged_pair_is_replaced(directory, name, content):
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    assert certificates.obtain_server(directory, CA, KEY, NAMES)
    assert await handshake(directory, "gpu.example")


def test_a_place_that_cannot_be_written_and_a_name_that_cannot_stand_are_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"):
        certificates.obtain_server(tmp_path / "nowhere", CA, KEY, NAMES)
    with pytest.raises(ConfigError, match="cannot make a certificate"):
        certificates.obtain_server(tmp_path, CA, KEY, ["a" * 64 + ".example"])


def test_a_certificate_has_all_names_that_the_machine_is_reached_by():
    found = certificates.names_of("https://gpu.example:8443")
    assert found[:3] == ["localhost", "127.0.0.1", "::1"]
    assert {socket.gethostname(), "gpu.example", *certificates.local_addresses()} <= set(found)
    assert certificates.names_of("https://[2001:db8::5]:1")[-1] == "2001:db8::5"
    assert len(certificates.names_of("")) == len(set(certificates.names_of("")))


def test_addresses_of_this_machine_are_those_that_can_be_listened_on():
    for address in certificates.local_addresses():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind((address, 0))
        assert not ipaddress.ip_address(address).is_loopback


def test_times_are_those_that_were_given():
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    found = x509.load_pem_x509_certificate(certificates.issue(CA, KEY, certificates.new_key(), ["a.example"], moment))
    assert found.not_valid_after_utc == moment + timedelta(days=90)
