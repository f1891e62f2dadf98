"""The chain of receipts: every field counts, and every beginning is its own."""

from msgspec.structs import replace

from mindgw_agent import receipt
from mindgw_agent.receipt import Receipt, Receipts

ONE = Receipt(seq=1, tag=b"t", outcome="done", prompt=1, completion=2, cached=3, source="engine", events=4, bytes=5, at=6)


def test_each_field_and_what_came_before_change_the_hash():
    changes = [
        *({"seq": 2}, {"tag": b"x"}, {"outcome": "failed"}, {"prompt": 9}, {"completion": 9}, {"cached": 9}),
        *({"source": "counted"}, {"events": 9}, {"bytes": 9}, {"at": 9}),
    ]
    assert {name for change in changes for name in change} == set(Receipt.__struct_fields__)
    hashes = {receipt.chained(bytes(32), replace(ONE, **change)) for change in [{}, *changes]}
    hashes.add(receipt.chained(b"x" * 32, ONE))
    assert len(hashes) == len(changes) + 2


def test_each_beginning_is_its_own():
    beginnings = [
        *(receipt.genesis("a"), receipt.genesis("b")),
        *(receipt.anew("a", 1, "lost"), receipt.anew("b", 1, "lost"), receipt.anew("a", 2, "lost"), receipt.anew("a", 1, "broken")),
    ]
    assert len(set(beginnings)) == len(beginnings)


def test_the_last_number_of_a_batch_is_that_of_its_last_receipt():
    blank = Receipts(after=7, prev=bytes(32), head=bytes(32))
    assert (blank.last, replace(blank, receipts=[replace(ONE, seq=8), replace(ONE, seq=9)]).last) == (7, 9)
