"""Receipts are kept as they came, each once, in one chain a worker."""

import pytest

from mindgw.errors import Conflict
from mindgw.store import receipts
from mindgw.store.receipts import NewReceipt
from tests.store.books import NOON


@pytest.fixture
async def session(database):
    async with database.write() as session:
        yield session


def made(seq, request_id="r", attempt=1, chain=b"a"):
    base = {"outcome": "done", "prompt": 3, "completion": 2**40, "cached": 1, "source": "engine", "events": 9, "bytes_out": 99, "at": NOON}
    return NewReceipt(
        seq=seq, request_id=request_id, attempt=attempt, prev=chain * 31 + bytes([seq - 1]), hash=chain * 31 + bytes([seq]), **base
    )


async def test_receipts_are_read_as_they_came_with_the_signature_that_covers_them(session):
    assert await receipts.head(session, "w") is None
    await receipts.append(session, "w", [made(1), made(2, attempt=2)], b"s2", NOON)
    await receipts.append(session, "w", [made(3, "other")], b"s3", NOON)
    await receipts.append(session, "x", [made(1, attempt=3)], b"x1", NOON)
    found = await receipts.get(session, "r")
    assert [(one.receipt.worker_id, one.receipt.attempt, one.head.seq, one.head.signature) for one in found] == [
        ("w", 1, 2, b"s2"),
        ("w", 2, 2, b"s2"),
        ("x", 3, 1, b"x1"),
    ]
    assert (found[0].receipt.completion, found[0].receipt.at, found[0].receipt.hash) == (2**40, NOON, made(1).hash)
    assert await receipts.head(session, "w") == (3, made(3).hash)
    assert await receipts.get(session, "nothing") == []


async def test_a_batch_may_come_again_with_more(session):
    await receipts.append(session, "w", [made(1), made(2)], b"s2", NOON)
    await receipts.append(session, "w", [], b"", NOON)
    await receipts.append(session, "w", [made(2), made(3)], b"s3", NOON)
    await receipts.append(session, "w", [made(1), made(2)], b"again", NOON)
    assert [one.head.signature for one in await receipts.get(session, "r")] == [b"s2", b"s2", b"s3"]


@pytest.mark.parametrize("seqs", [[2], [3], [2, 3]])
async def test_another_chain_of_the_same_worker_is_refused(session, seqs):
    await receipts.append(session, "w", [made(1), made(2)], b"s2", NOON)
    with pytest.raises(Conflict):
        await receipts.append(session, "w", [made(seq, chain=b"b") for seq in seqs], b"other", NOON)
    assert await receipts.head(session, "w") == (2, made(2).hash)
