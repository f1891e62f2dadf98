"""What stands in the outbox, byte for byte: records of `length u32, crc32 u32, MessagePack`, one behind the other. PURE.

The first record says where the chain begins, each of the others adds a receipt or says which of them the server has. Reading never
fails: what cannot be read is told, and whatever is still whole behind it is found again.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from mindgw_agent import receipt
from mindgw_agent.receipt import Hash, Receipt
from mindgw_agent.vocabulary import Count

_HEADER = struct.Struct("!II")
#: Bytes of one record at most; the longest tag is half of that.
MAX_RECORD: Final = 16 * 1024
#: Bytes that are searched for the next whole record, between two of them.
MAX_SEARCH: Final = 1024 * 1024


class Base(msgspec.Struct, frozen=True, array_like=True, tag="base"):
    """Where the chain of this file begins: everything up to here was acknowledged, or is lost."""

    agent_id: str
    seq: Count
    hash: Hash
    #: Number behind which the chain began anew, and why; "" when it never did.
    gap_after: Count = 0
    gap: str = ""


class Entry(msgspec.Struct, frozen=True, array_like=True, tag="receipt"):
    """A receipt and its hash in the chain."""

    receipt: Receipt
    hash: Hash


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag="received"):
    """The server has all receipts up to this one."""

    seq: Count


Record = Base | Entry | Acknowledged
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def pack(record: Record) -> bytes:
    """One record."""
    data = _encode(record)
    return _HEADER.pack(len(data), zlib.crc32(data)) + data


def unpack(data: bytes | memoryview, start: int = 0) -> tuple[Record, int] | None:
    """The record that begins there and where it ends; None when none does."""
    body = start + _HEADER.size
    if body > len(data):
        return None
    size, crc = _HEADER.unpack_from(data, start)
    stop = body + size
    if not 0 < size <= MAX_RECORD or stop > len(data) or zlib.crc32(data[body:stop]) != crc:
        return None
    try:
        return _decode(data[body:stop]), stop
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def compose(base: Base, receipts: Iterable[Receipt]) -> tuple[bytes, list[int], int, bytes]:
    """A file of these receipts, numbered anew: its bytes, where each begins, the last number and its hash."""
    data = bytearray(pack(base))
    starts: list[int] = []
    last, head = base.seq, base.hash
    for one in receipts:
        last += 1
        numbered = msgspec.structs.replace(one, seq=last)
        head = receipt.chained(head, numbered)
        starts.append(len(data))
        data += pack(Entry(numbered, head))
    return bytes(data), starts, last, head


class Contents:
    """What a file holds. Make it with `read`."""

    def __init__(self) -> None:
        #: None when not even the beginning can be read, or when it belongs to somebody else.
        self.base: Base | None = None
        #: The newest number that was acknowledged.
        self.acked = 0
        #: Receipts in their order, and where the record of each begins.
        self.entries: list[Entry] = []
        self.starts: list[int] = []
        #: Bytes up to which everything is whole.
        self.end = 0
        #: What is wrong behind that; "" when nothing is, or only a last record that was never finished.
        self.damage = ""
        #: Receipts behind the damage, in no chain.
        self.found: list[Receipt] = []

    @property
    def last(self) -> tuple[int, bytes]:
        """Number and hash of the newest receipt of the chain."""
        if self.entries:
            return self.entries[-1].receipt.seq, self.entries[-1].hash
        return (self.base.seq, self.base.hash) if self.base else (0, b"")

    def take(self, record: Record, start: int) -> str:
        """Add a record; the answer is why it cannot stand there, "" when it can."""
        if self.base is None or isinstance(record, Base):
            if self.base is not None or not isinstance(record, Base):
                return "it does not begin with its beginning"
            self.base = record
            self.acked = record.seq
            return ""
        seq, hash = self.last
        if isinstance(record, Acknowledged):
            self.acked = max(self.acked, min(record.seq, seq))
            return ""
        if record.receipt.seq != seq + 1 or record.hash != receipt.chained(hash, record.receipt):
            return f"receipt {record.receipt.seq} does not follow receipt {seq}"
        self.entries.append(record)
        self.starts.append(start)
        return ""


def read(data: bytes, agent_id: str) -> Contents:
    """All that can be read of an agent's file."""
    contents = Contents()
    view = memoryview(data)
    while contents.end < len(data):
        there = unpack(view, contents.end)
        if there is None:
            contents.damage = "" if _is_torn(view, contents.end) else f"no record can be read at byte {contents.end}"
        else:
            contents.damage = contents.take(there[0], contents.end)
        if contents.base is not None and contents.base.agent_id != agent_id:
            contents = Contents()
            contents.damage = "it is another agent's"
            return contents
        if there is None or contents.damage:
            break
        contents.end = there[1]
    if contents.base is None:
        contents.damage = contents.damage or "it holds nothing"
    if contents.end < len(data):
        contents.found, contents.acked = _search(view, contents.end, contents.acked)
    if contents.found:
        contents.damage = contents.damage or f"no record can be read at byte {contents.end}"
    return contents


def _is_torn(data: memoryview, start: int) -> bool:
    """Whether the file ends in the middle of a record, as after a power cut: such a record was never sent to anybody."""
    left = len(data) - start
    if left < _HEADER.size:
        return True
    size: int = _HEADER.unpack_from(data, start)[0]
    return 0 < size <= MAX_RECORD and left < _HEADER.size + size


def _search(data: memoryview, start: int, acked: int) -> tuple[list[Receipt], int]:
    """Receipts that are whole behind what cannot be read, less those that were acknowledged, and the newest number of these."""
    found: list[Receipt] = []
    limit = start + MAX_SEARCH
    while start < min(len(data), limit):
        there = unpack(data, start)
        if there is None:
            start += 1
            continue
        if isinstance(there[0], Entry):
            found.append(there[0].receipt)
        elif isinstance(there[0], Acknowledged):
            acked = max(acked, there[0].seq)
        start = there[1]
        limit = start + MAX_SEARCH
    return [receipt for receipt in found if receipt.seq > acked], acked
