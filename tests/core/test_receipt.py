"""What a server takes of an agent's chain, and what it does not."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.core.receipt import Broken, check
from mindgw_agent import wire
from mindgw_agent.wire import Receipt, Receipts

WORKER = "w1"


def chain(size: int, *, after: int = 0, gap: str = "", start: bytes = b"") -> list[tuple[Receipt, bytes]]:
    """Receipts and their hashes, behind what is numbered `after`."""
    newest = start or (wire.anew(WORKER, after, gap) if gap else wire.genesis(WORKER))
    pairs = []
    for seq in range(after + 1, after + size + 1):
        one = Receipt(seq=seq, tag=b"tag %d" % seq, outcome="done", prompt=seq, completion=1)
        newest = wire.chained(newest, one)
        pairs.append((one, newest))
    return pairs


def batch(pairs: list[tuple[Receipt, bytes]], first: int, stop: int, **fields) -> Receipts:
    """Those from `first` to before `stop`, counted from 0."""
    prev = pairs[first - 1][1] if first else wire.genesis(WORKER)
    piece = pairs[first:stop]
    head = piece[-1][1] if piece else prev
    return Receipts(**{"receipts": [one for one, _ in piece], "after": pairs[0][0].seq - 1 + first, "prev": prev, "head": head} | fields)


CHAIN = chain(9)


def known(seq: int) -> tuple[int, bytes]:
    return (seq, CHAIN[seq - 1][1]) if seq else (0, b"")


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 9))
def test_a_chain_is_taken_once_however_it_is_cut_and_sent_again(cuts, again):
    last, hash = 0, b""
    taken: list[tuple[Receipt, bytes]] = []
    edges = sorted({0, *cuts, 9})
    for first, stop in pairwise(edges):
        for start in (first, min(first, again)):
            new = check(batch(CHAIN, start, stop), WORKER, last, hash)
            assert isinstance(new, list)
            taken += new
            last, hash = known(stop)
    assert taken == CHAIN


def test_a_batch_without_receipts_is_taken_where_it_stands():
    for last in (0, 4):
        assert check(batch(CHAIN, last, last), WORKER, *known(last)) == []


def test_what_is_known_may_come_again_without_what_follows():
    assert check(batch(CHAIN, 0, 3), WORKER, *known(7)) == []


@pytest.mark.parametrize(
    ("piece", "last", "fault"),
    [
        (batch(CHAIN, 0, 3, receipts=[CHAIN[0][0], CHAIN[2][0]]), 0, "order"),
        (batch(CHAIN, 0, 3, receipts=[CHAIN[1][0], CHAIN[0][0], CHAIN[2][0]]), 0, "order"),
        (batch(CHAIN, 2, 4, after=1), 2, "order"),
        (batch(CHAIN, 0, 2, receipts=[CHAIN[0][0], replace(CHAIN[1][0], completion=0)]), 0, "head"),
        (batch(CHAIN, 0, 2, receipts=[CHAIN[0][0]]), 0, "head"),
        (batch(CHAIN, 0, 2, prev=bytes(32)), 0, "head"),
        (batch(CHAIN, 0, 2, head=bytes(32)), 0, "head"),
        (batch(CHAIN, 3, 3, head=bytes(32)), 3, "head"),
        (batch(CHAIN, 5, 9), 3, "missing"),
        (batch(CHAIN, 5, 5), 3, "missing"),
        (batch(chain(9, start=b"x" * 32), 0, 2, prev=b"x" * 32), 0, "fork"),
        (batch(chain(9, start=b"x" * 32), 3, 5), 3, "fork"),
        (batch(chain(9, start=b"x" * 32), 2, 5), 3, "fork"),
        (batch(CHAIN, 0, 3, gap="lost"), 0, "gap"),
    ],
)
def test_what_does_not_fit_is_not_taken(piece, last, fault):
    broken = check(piece, WORKER, *known(last))
    assert isinstance(broken, Broken)
    assert broken.fault == fault
    assert broken.why


def test_another_workers_chain_is_a_fork():
    broken = check(batch(CHAIN, 0, 2), "w2", 0, b"")
    assert isinstance(broken, Broken)
    assert broken.fault == "fork"


@pytest.mark.parametrize("last", [0, 5, 50])
def test_a_chain_that_begins_anew_with_a_reason_goes_on_from_there(last):
    after, gap = 50, "the outbox was damaged"
    fresh = chain(4, after=after, gap=gap)
    start = wire.anew(WORKER, after, gap)
    first = batch(fresh, 0, 2, prev=start, gap=gap)
    assert check(first, WORKER, last, b"k" * 32) == fresh[:2]
    assert check(batch(fresh, 2, 4), WORKER, 52, fresh[1][1]) == fresh[2:]
    assert check(batch(fresh, 0, 4, prev=start, gap=gap), WORKER, 52, fresh[1][1]) == fresh[2:]
    assert check(batch(fresh, 0, 0, prev=start, head=start, gap=gap), WORKER, last, b"k" * 32) == []
    assert isinstance(check(replace(first, gap="another reason"), WORKER, last, b""), Broken)


def test_a_server_that_forgot_may_take_the_agents_word():
    piece = batch(CHAIN, 5, 9)
    assert isinstance(check(piece, WORKER, *known(3)), Broken)
    assert check(piece, WORKER, piece.after, piece.prev) == CHAIN[5:]
