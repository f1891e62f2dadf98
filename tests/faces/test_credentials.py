"""Keys on the operator's own machine: in the keyring where there is one, else in a closed file."""

import importlib
import json

import keyring
import pytest
from keyring.backend import KeyringBackend

from mindgw.client import credentials
from mindgw.client.errors import ClientError

KEY, OTHER = "mgw_0123456789_" + "a" * 38, "mgw_0123456789_" + "b" * 38


class MemoryKeyring(KeyringBackend):
    """FAKE of a desktop's keyring, which a test machine has not: keeps passwords in a dictionary."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.held = {}

    def get_password(self, service, username):
        return self.held.get((service, username))

    def set_password(self, service, username, password):
        self.held[service, username] = password

    def delete_password(self, service, username):
        if self.held.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError(username)


@pytest.fixture
def use():
    """Sets the keyring of this process, until the test ends."""
    before = keyring.get_keyring()
    yield lambda backend: keyring.set_keyring(backend) or backend
    keyring.set_keyring(before)


@pytest.fixture(params=["keyring.backends.fail", "keyring.backends.null"])
def headless(request, use):
    """Both ways in which a machine can be without a keyring."""
    use(importlib.import_module(request.param).Keyring())


@pytest.mark.usefixtures("headless")
def test_without_a_keyring_keys_are_in_a_closed_file(tmp_path):
    directory = tmp_path / "config"
    assert credentials.find("f1", directory) is None
    assert credentials.keep("f1", KEY, directory) == str(directory / "credentials.json")
    credentials.keep("f2", OTHER, directory)
    assert (credentials.find("f1", directory), credentials.find("f2", directory)) == (KEY, OTHER)
    assert (directory / "credentials.json").stat().st_mode & 0o777 == 0o600
    credentials.forget("f1", directory)
    credentials.forget("unknown", directory)
    assert (credentials.find("f1", directory), credentials.find("f2", directory)) == (None, OTHER)
    credentials.forget("f2", directory)
    assert list(directory.iterdir()) == []


def test_with_a_keyring_no_file_is_made(tmp_path, use):
    ring = use(MemoryKeyring())
    assert credentials.keep("f1", KEY, tmp_path) == "the OS keyring"
    assert ring.held == {("mindgw", "f1"): KEY}
    assert credentials.find("f1", tmp_path) == KEY
    assert list(tmp_path.iterdir()) == []
    credentials.forget("f1", tmp_path)
    assert credentials.find("f1", tmp_path) is None


def test_a_key_that_moves_into_the_keyring_leaves_the_file(tmp_path, use):
    (tmp_path / "credentials.json").write_text(json.dumps({"f1": OTHER, "f2": OTHER}))
    use(MemoryKeyring())
    credentials.keep("f1", KEY, tmp_path)
    assert credentials.find("f1", tmp_path) == KEY
    assert json.loads((tmp_path / "credentials.json").read_text()) == {"f2": OTHER}


@pytest.mark.usefixtures("headless")
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"f1": 7}', b"\xff", b"[" * 100_000, b" " * 2**21])
def test_a_damaged_file_is_told_and_not_overwritten(tmp_path, content):
    file = tmp_path / "credentials.json"
    file.write_bytes(content)
    file.chmod(0o600)
    for act in (lambda: credentials.find("f1", tmp_path), lambda: credentials.keep("f1", KEY, tmp_path)):
        with pytest.raises(ClientError, match="damaged"):
            act()
    assert file.read_bytes() == content


@pytest.mark.usefixtures("headless")
def test_a_file_that_cannot_be_made_is_told_without_the_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match="cannot write") as refused:
        credentials.keep("f1", KEY, tmp_path / "file")
    assert KEY not in refused.value.message
    assert "MINDGW_TOKEN" in refused.value.hint


def test_the_home_of_settings_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert credentials.home() == tmp_path / "mindgw"
