import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindgw.core import sse

#: Pieces of which streams are made, good ones and bad ones.
PIECES = [
    b"data: {", b"}\n\n", b'data: {"a":1}\n\n', b"data:{}\n\n", b"data:\n", b"data", b": ping\n", b":\n\n", b"\n", b"\r", b"\r\n", b"\n\n",
    b"event: x\n", b"id: 1\n", b"retry: 5\n\n", b"data: [DONE]\n\n",
    b"{", b"}", b" ", b'"usage', b'data: {"error":1}\n\n', b"\xff", b"\x00", b"x",
]  # fmt: skip
streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=14).map(b"".join)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


def read(pieces: list[bytes]) -> list[bytes]:
    splitter = sse.Splitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


@given(streams, st.lists(st.integers(0, 80), max_size=12))
@example(b"data: a\r\ndata: b\r\r\n\n", [8, 9, 17])
def test_a_cut_stream_has_the_events_of_the_whole(stream, places):
    assert read(cut(stream, places)) == read([stream])


@given(streams)
def test_a_stream_cut_at_every_byte_has_the_events_of_the_whole(stream):
    assert read([stream[i : i + 1] for i in range(len(stream))]) == read([stream])


@given(streams)
def test_plain_bytes_are_what_the_splitter_makes_of_them(stream):
    if sse.plain(stream):
        assert b"".join(map(sse.event, read([stream]))) == stream


@given(streams, streams)
def test_plain_bytes_leave_the_splitter_between_events(before, stream):
    splitter = sse.Splitter()
    splitter.feed(before)
    if splitter.empty and sse.plain(stream):
        splitter.feed(stream)
        assert splitter.empty


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9)), min_size=1, max_size=4))
def test_events_of_plain_json_are_plain(documents):
    stream = b"".join(sse.event(json.dumps(document).encode()) for document in documents)
    assert sse.plain(stream) == len(documents) or any(mark in stream for mark in sse.MARKS)


@pytest.mark.parametrize(
    "stream",
    [
        b"", b"data: {}", b"data: {}\n", b"data: {}\n\n\n", b"data:{}\n\n", b": ping\n", b"data: [DONE]\n\n", b"event: x\ndata: {}\n\n",
        b"data: {}\n\nid: 1\ndata: {}\n\n", b"data: {\ndata: }\n\n", b"data: {}\r\n\r\n", b'data: {"usage":1}\n\n',
        b'data: {"reasoning":""}\n\n', b'data: {"error":{}}\n\n', b"data: {}\n\n: c\n\ndata: {}\n\n",
        b"data: {}\n\ndata: x\n\ndata: {}\n\n", b"data: {}\n\nevil: {}\n\n",
    ],
)  # fmt: skip
def test_anything_else_is_not_plain(stream):
    assert not sse.plain(stream)


def test_lines_of_one_event_are_joined_with_line_feeds():
    assert read([b"data: a\ndata:  b\ndata:c\n\n"]) == [b"a\n b\nc"]


def test_comments_and_foreign_fields_are_dropped():
    assert read([b": hi\n\nevent: x\nid: 1\nretry: 3\ndata: 1\nfoo\n\n\n"]) == [b"1"]


def test_every_kind_of_line_end_ends_a_line():
    assert read([b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\n"]) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("rest", [b"d", b"data: 1", b"data: 1\n", b"data: 1\n\r"])
def test_a_splitter_within_an_event_is_not_empty(rest):
    splitter = sse.Splitter()
    splitter.feed(b"data: 0\n\n" + rest)
    assert not splitter.empty


@pytest.mark.parametrize("piece", [b"x", b"data: xx\n", b"data:\n", b"\rdata:", b"data"])
def test_an_event_without_end_is_refused_within_its_limit(piece):
    """Whatever it is made of: empty lines of data must not fill the memory either."""
    splitter = sse.Splitter(limit=100)
    with pytest.raises(sse.EventTooLarge, match="100 bytes"):
        for _ in range(101):
            splitter.feed(b"data: y" + piece if splitter.empty else piece)


def test_a_limit_holds_for_each_event_and_not_for_the_stream():
    splitter = sse.Splitter(limit=40)
    assert len([event for _ in range(50) for event in splitter.feed(b"data: " + b"x" * 20 + b"\n\n")]) == 50


def test_a_long_line_of_small_pieces_costs_no_more_than_its_size():
    """A worker chooses how it cuts: a line of a quarter megabyte must not be copied once for each of its bytes."""
    splitter = sse.Splitter()
    for _ in range(2**18):
        splitter.feed(b"x")
    assert splitter.feed(b"\ndata: 1\n\n") == [b"1"]


def test_an_event_is_one_line_of_data():
    assert sse.event(b"{}") == b"data: {}\n\n"


def test_a_ping_is_no_event():
    assert read([sse.PING, sse.event(b"1"), sse.PING]) == [b"1"]
