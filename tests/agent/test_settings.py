"""The state directory: what is kept, how, and what is said when it cannot be read."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import errors, identity, settings, status
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.wire import EngineReport


def an_agent() -> Settings:
    return Settings(agent_id="a1", name="gpu", servers=["https://gw:8420"], server_identity=bytes(32), pins=[b"p" * 32])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


def test_settings_come_back_as_they_were_saved_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "deep" / "state")
    assert state.load() is None
    assert not state.path.exists()
    state.save(an_agent())
    assert state.load() == an_agent()
    assert (mode(state.path), mode(state.settings_file)) == (0o700, 0o600)
    assert [file.name for file in state.path.iterdir()] == ["agent.json"]


def test_a_newer_release_may_know_more_fields(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.settings_file.write_bytes(msgspec.json.encode(msgspec.to_builtins(an_agent()) | {"colour": "blue"}))
    assert state.load() == an_agent()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda good: b"", "agent.json"),
        (lambda good: good[:-20], "agent.json"),
        (lambda good: b"\xff\xfe" + good, "agent.json"),
        (lambda good: b"[]", "expected"),
        (lambda good: good.replace(b'"a1"', b"7"), "agent_id"),
        (lambda good: good.replace(b"https://gw", b"ftp://gw"), "ftp"),
        (lambda good: good.replace(b"https://gw", b"http://gw"), "plain HTTP"),
        (lambda good: good.replace(b'["https://gw:8420"]', b"[]"), "servers"),
        (lambda good: good.replace(b'"name"', b'"nome"'), "name"),
    ],
)
def test_damaged_settings_name_the_file_the_fault_and_the_next_step(tmp_path: Path, spoil, word: str) -> None:
    state = StateDir(tmp_path)
    state.settings_file.write_bytes(spoil(msgspec.json.encode(an_agent())))
    with pytest.raises(errors.BadState, match=r"agent\.json") as caught:
        state.load()
    assert word.lower() in caught.value.message.lower()
    assert f"leave --state-dir {tmp_path}" in caught.value.hint


@given(st.binary(max_size=200))
def test_no_bytes_in_the_settings_file_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    state = StateDir(tmp_path_factory.getbasetemp())
    state.settings_file.write_bytes(data)
    with pytest.raises(errors.BadState):
        state.load()


def test_the_private_key_is_a_file_for_its_owner_where_there_is_no_keyring(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    key = state.obtain_key()
    assert len(key) == 32
    assert mode(state.key_file) == 0o600
    assert key == state.obtain_key() == StateDir(tmp_path / "state").private_key()


@pytest.mark.parametrize("backend", ["keyring.backends.fail.Keyring", "keyring.backends.null.Keyring"])
def test_a_keyring_that_keeps_nothing_is_not_trusted_with_the_key(tmp_path: Path, backend: str) -> None:
    script = "import sys, pathlib, mindgw_agent.settings as s; print(s.StateDir(pathlib.Path(sys.argv[1])).obtain_key().hex())"
    environment = os.environ | {"PYTHON_KEYRING_BACKEND": backend}
    run = [
        subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert run[0].stdout == run[1].stdout
    assert mode(tmp_path / "agent.key") == 0o600


def test_an_agent_works_without_the_keyring_package(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['keyring'] = None; from mindgw_agent.settings import StateDir; s = StateDir(); s.obtain_key(); s.forget()"
    )
    environment = os.environ | {"MINDGW_AGENT_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=environment, check=True)


def test_a_keyring_that_works_keeps_the_key_and_no_file_does(tmp_path: Path) -> None:
    """A fake keyring: a backend that keeps secrets in a file beside the state directory."""
    (tmp_path / "fakering.py").write_text(
        "import json, pathlib\n"
        "from keyring.backend import KeyringBackend\n"
        "FILE = pathlib.Path(__file__).with_name('ring.json')\n"
        "class Ring(KeyringBackend):\n"
        "    priority = 1\n"
        "    def _all(self): return json.loads(FILE.read_text()) if FILE.exists() else {}\n"
        "    def get_password(self, s, u): return self._all().get(s + u)\n"
        "    def set_password(self, s, u, p): FILE.write_text(json.dumps(self._all() | {s + u: p}))\n"
        "    def delete_password(self, s, u): FILE.write_text(json.dumps({k: v for k, v in self._all().items() if k != s + u}))\n"
    )
    script = (
        "import sys, mindgw_agent.settings; s = mindgw_agent.settings.StateDir()\n"
        "assert s.obtain_key() == s.private_key(); sys.argv[1:] and s.forget()"
    )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path), "PYTHON_KEYRING_BACKEND": "fakering.Ring", "MINDGW_AGENT_DIR": str(tmp_path / "state")
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert len(msgspec.json.decode((tmp_path / "ring.json").read_bytes())) == 1
    assert not (tmp_path / "state" / "agent.key").exists()
    subprocess.run([sys.executable, "-c", script, "forget"], env=environment, check=True)
    assert msgspec.json.decode((tmp_path / "ring.json").read_bytes()) == {}


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "\xff"])
def test_a_damaged_key_is_told_and_never_replaced_in_silence(tmp_path: Path, text: str) -> None:
    state = StateDir(tmp_path)
    state.key_file.write_text(text, encoding="latin-1")
    for read in (state.private_key, state.obtain_key):
        with pytest.raises(errors.BadState, match="damaged"):
            read()


def test_a_directory_and_a_key_that_others_may_read_are_closed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = StateDir(tmp_path)
    key = state.obtain_key()
    state.path.chmod(0o755)
    state.key_file.chmod(0o644)
    assert state.private_key() == key
    assert mode(state.key_file) == 0o600
    assert str(state.key_file) in caplog.text
    state.save(an_agent())
    assert mode(state.path) == 0o700


def test_a_key_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.BadState, match="gone"):
        StateDir(tmp_path).private_key()


def test_one_process_serves_from_a_directory(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path), StateDir(tmp_path)
    assert not second.is_locked()
    with first.lock():
        assert second.is_locked()
        with pytest.raises(errors.Occupied) as caught, second.lock():
            pass
        assert caught.value.exit_code == 7
    assert not second.is_locked()
    with second.lock():
        pass


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadState, match="cannot make"):
        StateDir(tmp_path / "file" / "state").save(an_agent())


def test_the_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("MINDGW_AGENT_DIR", raising=False)
    assert settings.default_dir() == tmp_path / "mindgw-agent"
    monkeypatch.setenv("MINDGW_AGENT_DIR", str(tmp_path / "mine"))
    assert StateDir().path == tmp_path / "mine"


def test_forgetting_leaves_nothing_of_the_identity(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.obtain_key()
    state.save(an_agent())
    for _ in range(2):
        state.forget()
    assert state.load() is None
    assert not state.key_file.exists()


def test_a_status_is_read_as_written_while_the_process_lives_and_offline_after(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.save(an_agent())
    assert (status.read(state).tunnel, status.read(state).name, status.read(state).is_up) == ("offline", "gpu", False)
    engine = status.engine_of(EngineReport(id="e1", kind="fake", healthy=True, slots=2))
    with state.lock():
        assert status.read(state).tunnel == "connecting"
        status.write(state, status.Status(name="gpu", tunnel="ready", engine=engine, rtt_ms=1.5, models=["m"], slots=2))
        found = status.read(state)
        assert (found.tunnel, found.is_up, found.rtt_ms, found.models, found.pid) == ("ready", True, 1.5, ["m"], os.getpid())
    found = status.read(state)
    assert (found.tunnel, found.is_up, found.rtt_ms, found.pid) == ("offline", False, None, 0)


def test_a_damaged_status_is_no_status(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.status_file.write_bytes(b"{\xff")
    assert status.read(state).tunnel == "offline"


def test_signatures_hold_for_their_key_and_message_alone() -> None:
    key, other = identity.new_key(), identity.new_key()
    signature = identity.sign(key, b"message")
    assert identity.verify(identity.public_half(key), signature, b"message")
    assert not identity.verify(identity.public_half(other), signature, b"message")
    assert not identity.verify(identity.public_half(key), signature, b"another")


@given(st.binary(max_size=64), st.binary(max_size=80))
def test_malformed_keys_and_signatures_are_false_and_never_raise(key: bytes, signature: bytes) -> None:
    assert not identity.verify(key, signature, b"message")


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_pinned_certificate(data: bytes) -> None:
    with pytest.raises(errors.Untrusted):
        identity.pinned_part(b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----", [bytes(32)])
