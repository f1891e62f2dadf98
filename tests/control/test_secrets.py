"""The secrets of a data directory: made once, closed to others, never half-replaced."""

import hashlib
import logging

import pytest

from mindgw.control import certificates, secrets
from mindgw.errors import ConfigError
from mindgw_agent import identity

FILES = ["ca.key", "ca.pem", "identity.key", "pepper", "sealing.key", "signing.key"]


@pytest.fixture
def directory(tmp_path):
    secrets.obtain(tmp_path / "data")
    return tmp_path / "data"


def test_secrets_are_made_once(directory):
    first = secrets.load(directory)
    assert secrets.obtain(directory) == first
    assert sorted(file.name for file in directory.iterdir()) == FILES
    assert secrets.missing(directory) == []
    assert len({first.identity, first.pepper, first.sealing, first.signing}) == 4


def test_they_are_closed_to_others_but_the_certificate(directory):
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()} == {
        name: 0o644 if name == "ca.pem" else 0o600 for name in FILES
    }


def test_the_names_of_a_server_follow_from_its_secrets(directory):
    own = secrets.load(directory)
    assert own.public_identity == identity.public_half(own.identity)
    assert own.fingerprint == hashlib.sha256(own.public_identity).hexdigest()[:32]
    assert own.ca_pin == identity.pin_of(own.ca_pem)
    assert own.pepper.hex() not in repr(own)
    assert repr(own.pepper) not in repr(own)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    assert secrets.missing(directory) == [name]
    with pytest.raises(ConfigError, match=name):
        secrets.load(directory)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"short", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 200])
def test_a_damaged_file_is_named(directory, name, content):
    (directory / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        secrets.load(directory)


def test_a_key_of_another_ca_is_noticed(directory):
    (directory / "ca.key").write_bytes(certificates.new_key())
    with pytest.raises(ConfigError, match="not that of the certificate"):
        secrets.load(directory)


def test_a_secret_that_others_may_read_is_closed(directory, caplog):
    (directory / "pepper").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        secrets.load(directory)
    assert "pepper" in caplog.text
    assert (directory / "pepper").stat().st_mode & 0o777 == 0o600


def test_what_a_crash_left_half_made_is_completed(directory):
    before = secrets.load(directory)
    for name in ("ca.pem", "signing.key"):
        (directory / name).unlink()
    after = secrets.obtain(directory)
    assert (after.ca_key, after.identity, after.ca_pin) == (before.ca_key, before.identity, before.ca_pin)


def test_a_place_where_nothing_can_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="data directory"):
        secrets.obtain(tmp_path / "file" / "data")
