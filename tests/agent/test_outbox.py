"""The outbox: nothing that was appended is lost, whatever happens to the process, and little of it, whatever happens to the disk."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mindgw.core.receipt import check
from mindgw_agent import outbox as rooms
from mindgw_agent import wire
from mindgw_agent.outbox import Outbox
from mindgw_agent.wire import Receipt

NOW = 1_790_000_000_000


def new(path: Path, *, fresh: bool = True, **more) -> Outbox:
    made = Outbox(path, "a1", fresh=fresh, now=lambda: NOW, **more)
    made.open()
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def one(name: str = "t", **fields) -> Receipt:
    return Receipt(tag=name.encode(), outcome="done", **fields)


def synced(outbox: Outbox) -> Outbox:
    outbox.sync_done(outbox.chain, outbox.last, None)
    return outbox


def sent(outbox: Outbox) -> list[wire.Receipts]:
    """All that waits, as a link sends it."""
    synced(outbox)
    batches: list[wire.Receipts] = []
    after, prev = outbox.acked, outbox.acked_hash
    while (batch := outbox.batch(after, prev)) is not None:
        batches.append(batch)
        after, prev = batch.last, batch.head
    return batches


def tags(outbox: Outbox) -> list[str]:
    return [receipt.tag.decode() for batch in sent(outbox) for receipt in batch.receipts]


def test_what_was_appended_is_there_in_its_order_and_after_a_restart(path):
    outbox = new(path)
    for name in "abc":
        outbox.append(one(name, completion=7))
    assert (outbox.waiting, outbox.last, outbox.trouble) == (3, 3, "")
    for _ in range(2):
        [batch] = sent(outbox)
        assert [(receipt.seq, receipt.tag, receipt.completion) for receipt in batch.receipts] == [(1, b"a", 7), (2, b"b", 7), (3, b"c", 7)]
        assert (batch.after, batch.prev, batch.head, batch.gap) == (0, wire.genesis("a1"), outbox.head, "")
        outbox = new(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_acknowledged_is_forgotten_and_the_chain_goes_on(path):
    outbox = new(path)
    for name in "abc":
        outbox.append(one(name))
    synced(outbox).acknowledged(2)
    assert (outbox.waiting, outbox.acked, tags(outbox)) == (1, 2, ["c"])
    outbox.acknowledged(1)
    outbox.acknowledged(2)
    assert (outbox.waiting, outbox.acked) == (1, 2)
    outbox = new(path)
    assert (outbox.waiting, outbox.acked, tags(outbox)) == (1, 2, ["c"])
    outbox.acknowledged(3)
    head = outbox.head
    outbox = new(path)
    assert (outbox.waiting, outbox.last, outbox.head, outbox.acked_hash, sent(outbox)) == (0, 3, head, head, [])
    outbox.append(one("d"))
    assert [(batch.after, batch.prev, batch.last) for batch in sent(outbox)] == [(3, head, 4)]


def test_an_append_is_one_write_and_waits_for_no_disk(path, monkeypatch):
    outbox = new(path)
    calls: list[str] = []
    for name in ("write", "pwrite", "fsync", "fdatasync", "open", "ftruncate"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real, **more: (calls.append(name), real(*args, **more))[1])
    for _ in range(10):
        outbox.append(one())
    assert calls == ["pwrite"] * 10


def test_what_is_not_on_the_disk_for_good_is_not_sent(path):
    outbox = new(path)
    outbox.append(one("a"))
    assert outbox.needs_sync
    assert outbox.batch(0, outbox.acked_hash) is None
    last = outbox.last
    outbox.append(one("b"))
    outbox.sync_done(outbox.chain, last, None)
    batch = outbox.batch(0, outbox.acked_hash)
    assert batch is not None
    assert (batch.last, outbox.needs_sync) == (1, True)
    outbox.sync_done(outbox.chain - 1, 2, None)
    assert outbox.synced == 1, "that was another file"


def test_a_batch_ends_where_a_frame_does(path):
    outbox = new(path)
    for _ in range(30):
        outbox.append(one("x" * 4096))
    for _ in range(2 * wire.MAX_BATCH):
        outbox.append(one("y"))
    batches = sent(outbox)
    assert all(wire.frame(batch) for batch in batches)
    assert [batch.last for batch in batches][-1] == 30 + 2 * wire.MAX_BATCH
    assert len(batches[0].receipts) == 11
    assert max(len(batch.receipts) for batch in batches) == wire.MAX_BATCH


# -- a file that is not as it should be ----------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_a_gap_but_for_an_agent_that_never_served(path):
    assert [batch.gap for batch in sent(new(path))] == []
    assert new(path).acked == 0
    path.unlink()
    outbox = new(path, fresh=False)
    outbox.append(one("a"))
    [batch] = sent(outbox)
    assert (batch.gap, batch.after, batch.prev) == ("the outbox was missing", NOW, wire.anew("a1", NOW, "the outbox was missing"))
    assert check(batch, "a1", 77, b"k" * 32) == [(batch.receipts[0], batch.head)]
    assert [again.gap for again in sent(new(path, fresh=False))] == ["the outbox was missing"]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 30])
def test_a_beginning_that_is_gone_is_a_gap_and_the_file_kept_aside(path, size, caplog):
    new(path)
    path.write_bytes(path.read_bytes()[:size])
    outbox = new(path)
    outbox.append(one("a"))
    [batch] = sent(outbox)
    assert batch.gap == "the outbox was damaged: it holds nothing"
    assert path.with_name("outbox.damaged").stat().st_size == size
    assert "is damaged: it holds nothing" in caplog.text


def test_damage_in_the_middle_costs_the_record_that_it_hit(path, caplog):
    outbox = new(path)
    for name in "abcdef":
        outbox.append(one(name))
    synced(outbox).acknowledged(1)
    place = outbox._starts[2] + 20
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    for again in range(2):
        outbox = new(path)
        assert tags(outbox) == ["b", "c", "e", "f"]
        assert outbox.trouble == ""
        [batch] = sent(outbox)
        assert batch.gap.startswith("the outbox was damaged: no record can be read at byte")
        assert batch.after >= NOW
        assert isinstance(check(batch, "a1", 6, b"k" * 32), list)
        assert path.with_name("outbox.damaged").read_bytes() == data
        assert caplog.text.count("4 receipts go on in a new chain") == 1, f"start {again}"
    outbox.acknowledged(batch.last)
    assert (outbox.waiting, new(path).waiting) == (0, 0)


def test_a_new_chain_is_numbered_beyond_the_old_one_whatever_the_clock_says(path):
    outbox = Outbox(path, "a1", fresh=False, now=lambda: NOW)
    outbox.open()
    outbox.append(one("a"))
    outbox.append(one("b"))
    data = path.read_bytes()
    path.write_bytes(data[:-5] + b"xxxxx")
    outbox = Outbox(path, "a1", fresh=False, now=lambda: 5)
    outbox.open()
    assert outbox.acked >= NOW + 2
    assert tags(outbox) == ["a"]


def test_damaged_files_are_kept_up_to_a_bound(path):
    for _ in range(rooms.KEPT + 3):
        path.write_bytes(b"noise")
        assert new(path).trouble == ""
    assert len(list(path.parent.glob("outbox.damaged*"))) == rooms.KEPT


def test_another_agents_file_is_put_aside(path):
    new(path).append(one("a"))
    other = Outbox(path, "a2", fresh=True)
    other.open()
    assert (other.waiting, other.trouble) == (0, "")
    assert path.with_name("outbox.damaged").exists()


def test_receipts_that_change_under_a_running_agent_are_found_out(path):
    outbox = new(path)
    for name in "abc":
        outbox.append(one(name))
    synced(outbox)
    data = bytearray(path.read_bytes())
    data[outbox._starts[1] + 12] ^= 255
    path.write_bytes(data)
    assert outbox.batch(0, outbox.acked_hash) is None
    assert "not as they were written" in outbox.trouble
    assert not outbox.is_settled
    outbox.acknowledged(1)
    outbox.append(one("d"))
    outbox.repair()
    assert (outbox.trouble, tags(outbox)) == ("", ["a", "c", "d"])


def test_a_disk_that_does_not_give_them_back_is_trouble_until_it_does(path, monkeypatch):
    outbox = new(path)
    outbox.append(one("a"))
    synced(outbox)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", fail)
        assert outbox.batch(0, outbox.acked_hash) is None
    assert "Input/output error" in outbox.trouble
    outbox.repair()
    assert (outbox.trouble, tags(outbox)) == ("", ["a"])


# -- a server that knows more --------------------------------------------------------------------------------------------


def test_a_server_that_knows_later_receipts_makes_the_chain_begin_anew(path):
    outbox = new(path)
    outbox.append(one("a"))
    outbox.append(one("b"))
    synced(outbox).acknowledged(9)
    [batch] = sent(outbox)
    assert (batch.after, batch.gap, tags(outbox)) == (9, "the server knows of receipts that are not on this disk", ["a", "b"])
    assert isinstance(check(batch, "a1", 9, b"k" * 32), list)
    assert tags(new(path)) == ["a", "b"]


def test_a_server_that_speaks_of_absurd_numbers_is_not_obeyed(path, caplog):
    outbox = new(path)
    outbox.append(one("a"))
    outbox.acknowledged(2**53)
    assert (outbox.waiting, outbox.acked) == (1, 0)
    assert "the newest one is 1" in caplog.text


# -- a disk that refuses -------------------------------------------------------------------------------------------------


class Full:
    """A disk that takes no more than so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, *, truncates: bool = True) -> None:
        self.room = room
        self.truncates = truncates
        self._pwrite, self._ftruncate = os.pwrite, os.ftruncate
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "ftruncate", self.ftruncate)

    def pwrite(self, file: int, data: bytes, place: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._pwrite(file, data[: self.room], place)
        self.room -= done
        return done

    def ftruncate(self, file: int, size: int) -> None:
        if not self.truncates:
            raise OSError(errno.EIO, "Input/output error")
        self._ftruncate(file, size)


@pytest.mark.parametrize("room", [0, 5])
@pytest.mark.parametrize("truncates", [True, False])
def test_a_full_disk_stops_new_work_and_loses_nothing(path, monkeypatch, room, truncates):
    outbox = new(path)
    outbox.append(one("a"))
    with monkeypatch.context() as patched:
        disk = Full(patched, room, truncates=truncates)
        outbox.append(one("b"))
        outbox.append(one("c"))
        assert "No space left" in outbox.trouble
        assert (outbox.waiting, outbox.last, outbox.needs_repair, outbox.is_settled) == (3, 1, True, False)
        outbox.repair()
        assert "No space left" in outbox.trouble or not truncates
        disk.room, disk.truncates = 10**6, True
        outbox.repair()
    assert (outbox.trouble, outbox.last, outbox.is_settled) == ("", 3, True)
    assert tags(outbox) == tags(new(path)) == ["a", "b", "c"]
    assert list(path.parent.glob("*.damaged")) == []


def test_what_a_failed_write_left_is_no_damage_after_a_kill(path, monkeypatch):
    outbox = new(path)
    outbox.append(one("a"))
    Full(monkeypatch, 30, truncates=False)
    outbox.append(one("b"))
    assert path.stat().st_size > outbox._end
    assert tags(new(path)) == ["a"]
    assert list(path.parent.glob("*.damaged")) == []


@pytest.mark.parametrize("broken", ["read", "open", "write", "link"])
def test_a_file_that_cannot_be_opened_is_trouble_until_it_can(path, monkeypatch, broken):
    if broken in {"read", "open"}:
        new(path).append(one("a"))
    if broken == "link":
        path.write_bytes(b"noise")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        where = os if broken in {"open", "link"} else rooms.private_files
        patched.setattr(where, broken, fail)
        if broken == "open":  # the file is read in another way
            patched.setattr(rooms.private_files, "read", lambda path: path.read_bytes())
        outbox = new(path, fresh=broken != "link")
        outbox.append(one("b"))
        assert "Read-only" in outbox.trouble
        assert (outbox.waiting, outbox.needs_sync, outbox.needs_copy) == (1, False, False)
        outbox.acknowledged(1)
        assert outbox.batch(0, outbox.acked_hash) is None
        outbox.close()
    outbox.repair()
    assert (outbox.trouble, tags(outbox)) == ("", ["a", "b"] if broken in {"read", "open"} else ["b"])


def test_a_new_chain_that_cannot_be_written_is_tried_again(path, monkeypatch):
    outbox = new(path)
    outbox.append(one("a"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(rooms.private_files, "write", fail)
        outbox.acknowledged(9)
    assert "No space left" in outbox.trouble
    outbox.repair()
    assert (outbox.trouble, tags(outbox)) == ("", ["a"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", lambda *_: b"")
        outbox.acknowledged(9)
    assert "cannot be read" in outbox.trouble
    outbox.repair()
    assert (outbox.trouble, tags(outbox)) == ("", ["a"])


def test_beyond_its_bound_nothing_new_is_begun_but_what_runs_is_kept(path):
    outbox = new(path, limit=2000)
    while not outbox.trouble:
        outbox.append(one("x" * 100))
    assert "2000 bytes" in outbox.trouble
    assert not outbox.needs_repair
    before = outbox.waiting
    outbox.append(one("last"))
    assert (outbox.waiting, tags(outbox)[-1]) == (before + 1, "last")


# -- random lives --------------------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Appends, acknowledgements, kills and copies in any order, against a list."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "outbox"
        self.outbox = new(self.path, limit=10**9)
        self.all: list[str] = []
        self.acked = 0
        self.random = random.Random(seed)

    @rule(count=st.integers(1, 5))
    def appends(self, count: int) -> None:
        for _ in range(count):
            self.all.append(f"{len(self.all)}" * self.random.randint(1, 40))
            self.outbox.append(one(self.all[-1]))

    @rule(share=st.floats(0, 1))
    def acknowledges(self, share: float) -> None:
        self.acked += round((len(self.all) - self.acked) * share)
        self.outbox.acknowledged(self.acked)

    @rule()
    def syncs(self) -> None:
        synced(self.outbox)

    @rule()
    def is_killed(self) -> None:
        self.outbox._let_go()
        self.outbox = new(self.path, fresh=False)

    @rule(cut=st.integers(1, 60))
    def loses_power(self, cut: int) -> None:
        """What was never synced may be cut off, in the middle of a record too."""
        base = self.outbox._starts[self.outbox.synced - self.outbox.acked] if self.outbox.needs_sync else self.outbox._end
        self.outbox._let_go()
        data = self.path.read_bytes()
        keep = max(base, len(data) - cut)
        self.path.write_bytes(data[:keep])
        self.outbox = new(self.path, fresh=False)
        assert list(self.path.parent.glob("*.damaged")) == []
        self.all = self.all[: self.outbox.last]
        self.acked = self.outbox.acked

    @precondition(lambda self: self.outbox._end > self.outbox._starts[0] if self.outbox._starts else True)
    @rule(count=st.integers(0, 3))
    def copies(self, count: int) -> None:
        from mindgw_agent import bookkeeping

        copy = self.outbox.copy_begin()
        file, size = bookkeeping._write(copy)
        for _ in range(count):
            self.appends(1)
        self.acknowledges(0.3)
        self.outbox.copy_done(copy, file, size)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "outbox"):
            assert (self.outbox.last, self.outbox.acked, self.outbox.trouble) == (len(self.all), self.acked, "")
            synced_before = self.outbox.synced
            assert tags(self.outbox) == self.all[self.acked :]
            self.outbox.synced = synced_before

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()
            self.directory.cleanup()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_outbox_that_is_cut_or_damaged_anywhere_opens_and_goes_on(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "outbox"
    outbox = new(path)
    names = [f"r{number}" for number in range(data.draw(st.integers(1, 8)))]
    for name in names:
        outbox.append(one(name))
    outbox.acknowledged(acked := data.draw(st.integers(0, len(names))))
    outbox.close()
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    outbox = new(path)
    assert outbox.trouble == ""
    left = tags(outbox)
    assert left == [name for name in names if name in left], "in their order, none twice, none made up"
    outbox.append(one("new"))
    last, head = (acked, b"k" * 32) if sent(outbox)[0].gap else (outbox.acked, outbox.acked_hash)
    for batch in sent(outbox):
        assert isinstance(check(batch, "a1", last, head), list)
        last, head = batch.last, batch.head
    assert tags(new(path)) == [*left, "new"]
    outbox.close()


KILLED = """
import sys
from pathlib import Path
from mindgw_agent.outbox import Outbox
from mindgw_agent.wire import Receipt
outbox = Outbox(Path(sys.argv[1]), "a1", fresh=True)
outbox.open()
while True:
    outbox.append(Receipt(tag=b"t" * 200, outcome="done"))
    if outbox.last % 7 == 0:
        outbox.sync_done(outbox.chain, outbox.last, None)
        outbox.acknowledged(outbox.last - 3)
    sys.stdout.write(f"{outbox.last}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("after", [1, 40, 700])
def test_a_process_that_is_killed_loses_nothing_that_it_had_appended(path, after):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(after):
        said = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    said = max([said, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.wait()
    process.stdout.close()
    outbox = new(path, fresh=False)
    assert outbox.trouble == ""
    assert outbox.last in {said, said + 1}
    assert outbox.waiting == outbox.last - outbox.acked
    assert list(path.parent.glob("*.damaged")) == []
