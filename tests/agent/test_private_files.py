"""Files of secrets: closed to others, whole or not there."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from mindgw_agent import private_files


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_file_is_written_for_its_owner_alone_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "secret"
    for data in (b"one", b"two"):
        private_files.write(file, data)
        assert (private_files.read(file), mode(file)) == (data, 0o600)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_there_is_not_made_again(tmp_path):
    file = tmp_path / "secret"
    assert private_files.create(file, b"first")
    assert not private_files.create(file, b"second")
    assert (file.read_bytes(), mode(file), list(tmp_path.iterdir())) == (b"first", 0o600, [file])


def test_of_many_at_once_one_makes_the_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: private_files.create(tmp_path / "secret", bytes([number]) * 1000), range(8)))
    assert made.count(True) == 1
    assert (tmp_path / "secret").read_bytes() == bytes([made.index(True)]) * 1000


@pytest.mark.parametrize("open_mode", [0o644, 0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_closed_with_a_warning(tmp_path, caplog, open_mode):
    file = tmp_path / "secret"
    file.write_bytes(b"seen")
    file.chmod(open_mode)
    with caplog.at_level(logging.WARNING):
        assert private_files.read(file) == b"seen"
    assert mode(file) == 0o600
    assert str(file) in caplog.text
    caplog.clear()
    private_files.read(file)
    assert not caplog.text


def test_a_directory_is_made_for_its_owner_alone(tmp_path):
    new, old = tmp_path / "a" / "b", tmp_path / "old"
    old.mkdir(mode=0o755)
    for directory in (new, new, old):
        private_files.make_directory(directory)
        assert mode(directory) == 0o700


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        private_files.write(tmp_path / "taken", b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(FileNotFoundError):
        private_files.write(tmp_path / "nowhere" / "file", b"x")
