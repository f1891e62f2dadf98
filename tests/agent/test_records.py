"""The bytes of the outbox: cut anywhere and damaged anywhere, what is whole is read and nothing is made up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import receipt, records
from mindgw_agent.receipt import Receipt
from mindgw_agent.records import Acknowledged, Base, Entry, pack, read, unpack

BASE = Base("a1", 0, receipt.genesis("a1"))


def chain(size: int, base: Base = BASE) -> list[Entry]:
    entries = []
    seq, hash = base.seq, base.hash
    for number in range(size):
        one = Receipt(seq=seq + number + 1, tag=b"tag %d" % number, outcome="done", completion=number)
        hash = receipt.chained(hash, one)
        entries.append(Entry(one, hash))
    return entries


CHAIN = chain(6)
PIECES = [pack(record) for record in (BASE, *CHAIN[:3], Acknowledged(2), *CHAIN[3:])]
WHOLE = b"".join(PIECES)
#: Where records begin, and where the last one ends.
EDGES = [sum(map(len, PIECES[:number])) for number in range(len(PIECES) + 1)]


def test_what_was_packed_is_read():
    contents = read(WHOLE, "a1")
    assert (contents.base, contents.entries, contents.acked, contents.end) == (BASE, CHAIN, 2, len(WHOLE))
    assert (contents.damage, contents.found) == ("", [])
    assert [unpack(WHOLE, start)[0] for start in contents.starts] == CHAIN  # type: ignore[index]


def test_a_file_that_is_cut_anywhere_loses_its_last_record_and_nothing_else():
    for size in range(EDGES[1], len(WHOLE)):
        contents = read(WHOLE[:size], "a1")
        assert (contents.damage, contents.found) == ("", [])
        assert contents.end == max(edge for edge in EDGES if edge <= size)
        assert contents.entries == CHAIN[: len(contents.entries)]
    for size in range(EDGES[1]):
        assert read(WHOLE[:size], "a1").damage == "it holds nothing"


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_byte_that_changed_costs_the_record_that_it_stood_in(place, change):
    data = bytearray(WHOLE)
    data[place] ^= change
    contents = read(bytes(data), "a1")
    whole = [entry.receipt for entry in contents.entries] + contents.found
    hit = max(number for number, edge in enumerate(EDGES[:-1]) if edge <= place)
    lost = [record.receipt for record in [unpack(PIECES[hit])[0]] if isinstance(record, Entry)]  # type: ignore[index]
    rest = [entry.receipt for entry in CHAIN if entry.receipt not in lost]
    if contents.base is None:  # then nothing is known of what was acknowledged before the damage
        rest = [one for one in rest if one.seq > 2]
    assert [one for one in rest if one.seq > 2] == [one for one in whole if one.seq > 2]
    assert {one.seq for one in whole} <= {one.seq for one in rest}
    last = place >= EDGES[-2]
    assert contents.damage or last


@given(st.binary(max_size=400))
def test_noise_is_damage(noise):
    contents = read(noise, "a1")
    assert contents.base is None
    assert contents.damage
    assert contents.found == []


@given(st.binary(min_size=1, max_size=300), st.integers(1, len(PIECES) - 1))
def test_noise_between_records_costs_nothing_but_itself(noise, place):
    contents = read(b"".join([*PIECES[:place], noise, *PIECES[place:]]), "a1")
    assert contents.damage
    seen = [entry.receipt.seq for entry in contents.entries] + [one.seq for one in contents.found]
    assert [seq for seq in seen if seq > 2] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([], "it holds nothing"),
        (PIECES[1:], "it does not begin with its beginning"),
        ([PIECES[0], *PIECES], "it does not begin with its beginning"),
        ([PIECES[0], PIECES[2]], "receipt 2 does not follow receipt 0"),
        ([*PIECES[:2], PIECES[1]], "receipt 1 does not follow receipt 1"),
        ([*PIECES[:2], pack(Entry(CHAIN[1].receipt, bytes(32)))], "receipt 2 does not follow receipt 1"),
        ([*PIECES[:2], pack(BASE)[:-1] + b"x"], f"no record can be read at byte {EDGES[2]}"),
        ([*PIECES[:2], bytes(100)], f"no record can be read at byte {EDGES[2]}"),
        ([*PIECES[:2], records._HEADER.pack(3, records.zlib.crc32(b"abc")) + b"abc"], f"no record can be read at byte {EDGES[2]}"),
    ],
)
def test_what_cannot_stand_where_it_stands_is_named(pieces, why):
    assert read(b"".join(pieces), "a1").damage == why


def test_another_agents_file_is_left_alone():
    contents = read(WHOLE, "a2")
    assert (contents.base, contents.entries, contents.found) == (None, [], [])
    assert contents.damage == "it is another agent's"


def test_an_acknowledgement_of_what_is_not_there_stops_at_what_is():
    assert read(b"".join([*PIECES[:3], pack(Acknowledged(99))]), "a1").acked == 2


def test_the_search_for_whole_records_has_an_end(monkeypatch):
    monkeypatch.setattr(records, "MAX_SEARCH", 64)
    data = b"".join(PIECES[:2])
    assert [one.seq for one in read(data + bytes(63) + PIECES[2] + bytes(63) + PIECES[3], "a1").found] == [2, 3]
    assert read(data + bytes(64) + PIECES[2], "a1").found == []
