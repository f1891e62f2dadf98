"""What receipts are worth: hashes, the signature over the end of the batch, and what the ledger says of the same attempt."""

import os

import pytest

from mindgw import clock
from mindgw.control import receipts
from mindgw.errors import NotFound
from mindgw.store import fleet
from mindgw.store import receipts as stored
from mindgw.store.receipts import NewReceipt
from mindgw_agent import identity, wire
from tests.control.world import Place


class Box:
    """A worker with a key of its own, and the chain of its receipts."""

    def __init__(self, place):
        self.place = place
        self.private = identity.new_key()

    async def join(self):
        async with self.place.database.write() as session:
            self.id = (await fleet.add_worker(session, f"box-{os.urandom(3).hex()}", identity.public_half(self.private))).id
        self.seq, self.head = 0, wire.genesis(self.id)
        return self

    def receipt(self, request_id, *, attempt=1, outcome="done", prompt=10, completion=5):
        self.seq += 1
        at = clock.utcnow().replace(microsecond=250_000)
        facts = {"outcome": outcome, "prompt": prompt, "completion": completion, "source": "engine"}
        said = wire.Receipt(seq=self.seq, tag=b"tag", at=round(at.timestamp() * 1000), **facts)
        prev, self.head = self.head, wire.chained(self.head, said)
        return NewReceipt(seq=self.seq, tag=b"tag", request_id=request_id, attempt=attempt, prev=prev, hash=self.head, at=at, **facts)

    async def bring(self, *batch, signature=None):
        signed = signature or identity.sign(self.private, wire.transcript_receipts(self.id, self.seq, self.head))
        async with self.place.database.write() as session:
            await stored.append(session, self.id, batch, signed, clock.utcnow())


@pytest.fixture
async def place(database):
    return await Place(database).open()


@pytest.fixture
async def box(place):
    return await Box(place).join()


async def shown(place, request_id):
    return (await receipts.of_request(place.database, request_id)).items


async def only(place, request_id="r"):
    (found,) = await shown(place, request_id)
    return found


async def test_a_good_receipt_is_in_a_signed_chain_and_agrees_with_the_ledger(place, box):
    await place.use("r")
    before, mine, after = (box.receipt(name) for name in ("r0", "r", "r2"))
    await box.bring(before, mine, after)
    found = await only(place)
    assert (found.ok, found.problems, found.agrees) == (True, [], "yes")
    assert (found.seq, found.prev, found.hash, found.head.seq) == (2, before.hash.hex(), mine.hash.hex(), 3)
    assert found.head.hash == after.hash.hex()
    assert (found.tokens_in, found.tokens_out, found.ledger.kind, found.ledger.tokens_in) == (10, 5, "settled", 10)
    key, signature = bytes.fromhex(found.public_key), bytes.fromhex(found.head.signature)
    assert identity.verify(key, signature, wire.transcript_receipts(box.id, 3, after.hash)), "whoever sees it can check it"


async def test_each_attempt_has_its_own(place, box):
    other = await Box(place).join()
    await place.use("r", attempt=1, kind="wasted")
    await place.use("r", attempt=2)
    await other.bring(other.receipt("r", attempt=2))
    await box.bring(box.receipt("r", outcome="failed", completion=2))
    found = await shown(place, "r")
    assert [(one.attempt, one.worker_id, one.agrees, one.ok) for one in found] == [
        (1, box.id, "incomparable", True), (2, other.id, "yes", True)
    ]  # fmt: skip


async def test_a_request_without_a_receipt_is_told_from_one_with(place):
    await place.use("r")
    with pytest.raises(NotFound, match="no receipt"):
        await shown(place, "r")


COUNTS = [
    ({}, {}, "yes"), ({"completion": 900}, {"completion_tokens": 905}, "yes"), ({"completion": 900}, {"completion_tokens": 90}, "no"),
    ({"prompt": 900}, {"source": "counted"}, "yes"), ({"prompt": 900}, {}, "no"),
    ({"completion": 900}, {"source": "estimated"}, "incomparable"), ({"completion": 900, "outcome": "cancelled"}, {}, "incomparable"),
    ({"completion": 900}, {"outcome": "cancelled"}, "incomparable"), ({"completion": 900}, {"kind": "wasted"}, "incomparable"),
    ({}, {"outcome": "cancelled"}, "yes"),
]  # fmt: skip


async def test_other_numbers_are_wrong_where_they_can_be_compared(place, box):
    for number, (said, booked, agrees) in enumerate(COUNTS):
        await place.use(f"r{number}", **booked)
        await box.bring(box.receipt(f"r{number}", **said))
        found = await only(place, f"r{number}")
        assert (found.agrees, found.ok) == (agrees, agrees != "no"), (said, booked)
        assert found.ok or "other numbers" in found.problems[0]


async def test_an_attempt_that_nobody_booked_is_missed(place, box):
    await place.use("r", attempt=2)
    await box.bring(box.receipt("r"))
    found = await only(place)
    assert (found.ledger, found.agrees, found.ok) == (None, "missing", False)


async def test_a_signature_of_somebody_else_is_no_signature(place, box):
    await place.use("r")
    mine = box.receipt("r")
    await box.bring(mine, signature=identity.sign(identity.new_key(), wire.transcript_receipts(box.id, 1, mine.hash)))
    assert (await only(place)).problems == ["the signature is not that of its worker"]


async def test_a_receipt_of_a_worker_that_is_not_known_proves_nothing(place, box):
    await place.use("r")
    box.id, box.head = "gone", wire.genesis("gone")
    await box.bring(box.receipt("r"))
    found = await only(place)
    assert (found.worker, found.public_key, found.ok) == ("gone", "", False)
    assert "nobody knows" in found.problems[0]


async def test_a_removed_worker_still_answers_for_its_receipts(place, box):
    await place.use("r")
    await box.bring(box.receipt("r"))
    async with place.database.write() as session:
        await fleet.set_state(session, box.id, "removed")
    assert (await only(place)).ok


@pytest.mark.parametrize(
    ("tampered", "said"),
    [
        ("UPDATE receipts SET hash = :x WHERE seq = 2", "is broken"),
        ("UPDATE receipts SET prev = :x WHERE seq = 2", "does not go on"),
        ("UPDATE receipts SET prev = :x WHERE seq = 3", "is broken"),
        ("UPDATE receipts SET prompt = prompt + 1", "they were changed"),
        ("UPDATE receipts SET completion = 4, outcome = 'cancelled'", "they were changed"),
        ("UPDATE receipts SET tag = :x", "they were changed"),
        ("UPDATE receipts SET bytes_out = 9", "they were changed"),
        ("UPDATE receipts SET hash = :x WHERE seq = 1", "does not go on"),
        ("DELETE FROM receipts WHERE seq = 3", "is broken"),
        ("UPDATE receipt_heads SET hash = :x", "is broken"),
        ("UPDATE receipt_heads SET seq = 400000", "is broken"),
        ("DELETE FROM receipt_heads", "no signature"),
    ],
)
async def test_a_chain_that_was_tampered_with_is_found_out(place, box, tampered, said):
    await place.use("r")
    await box.bring(box.receipt("r0"), box.receipt("r"), box.receipt("r2"))
    values = {"x": b"x" * 32} if ":x" in tampered else {}
    await place.books.sql(tampered, **values)
    found = await only(place)
    assert not found.ok and any(said in problem for problem in found.problems), found.problems


async def test_the_first_receipt_follows_the_name_of_its_worker(place, box):
    await place.use("r")
    await box.bring(box.receipt("r"))
    assert (await only(place)).ok
    await place.books.sql("UPDATE receipts SET prev = :x", x=b"x" * 32)
    assert any("does not go on" in problem for problem in (await only(place)).problems)


async def test_after_a_gap_nobody_knows_what_was_before(place, box):
    await place.use("r")
    box.seq, box.head = 40, wire.anew(box.id, 40, "the disk was lost")
    await box.bring(box.receipt("r"))
    assert (await only(place)).ok
