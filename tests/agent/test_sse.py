"""The splitter: any bytes in any pieces come out as whole events, unchanged."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import sse

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
VALUES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8).map(str.encode)


@st.composite
def streams(draw) -> tuple[bytes, list[bytes]]:
    """A well-formed stream in one dialect of line ends, and the data of its events."""
    end = draw(LINE_ENDS)
    written, expected = [], []
    for _ in range(draw(st.integers(0, 5))):
        values = draw(st.lists(VALUES, max_size=3))
        lines = [b"data:" + draw(st.sampled_from([b" ", b""])) + value for value in values]
        lines += draw(st.lists(st.sampled_from([b": ping", b"event: x", b"id: 7", b"retry: 10"]), max_size=2))
        if not lines:
            continue
        written.append(end.join(lines) + end + end)
        if values:
            expected.append(values)
    raw = b"".join(written)
    return raw, expected


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
def test_cuts_do_not_matter(stream, cuts, marked):
    raw, expected = stream
    splitter = sse.Splitter()
    runs = [splitter.feed(piece) for piece in pieces_of((b"\xef\xbb\xbf" if marked else b"") + raw, cuts)]
    whole = b"".join(runs)
    assert raw.startswith(whole)
    # a lone CR at the very end may be half of a CRLF, so the last event of such a stream is still held
    assert whole == raw or (raw.endswith(b"\r") and splitter._held)
    found = [data for run in runs for data in sse.events(run)]
    assert len(found) >= len(expected) - (whole != raw)
    for data, values in zip(found, expected, strict=False):
        assert data in {b"\n".join(values), b"\n".join(value.removeprefix(b" ") for value in values)}


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_come_out_as_they_went_in(pieces):
    splitter = sse.Splitter()
    out = b"".join(splitter.feed(piece) for piece in pieces)
    whole = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    assert whole.startswith(out)
    assert len(out) + len(splitter._held) == len(whole) or len(b"".join(pieces)) < 3
    assert list(sse.events(out)) == [data for data in sse.events(out) if isinstance(data, bytes)]


def test_a_piece_that_ends_an_event_passes_uncopied():
    splitter = sse.Splitter()
    piece = b'data: {"a":1}\n\ndata: {"a":2}\n\n'
    assert splitter.feed(piece) is piece
    assert not splitter._held


def test_half_an_event_is_held_until_its_other_half():
    splitter = sse.Splitter()
    assert splitter.feed("data: {€".encode()[:-1]) == b""
    assert splitter.feed("€".encode()[-1:] + b"}\n") == b""
    assert splitter.feed(b"\ndata: x") == "data: {€}\n\n".encode()
    assert splitter._held == b"data: x"


def test_a_byte_order_mark_is_dropped_even_in_pieces():
    splitter = sse.Splitter()
    assert [splitter.feed(piece) for piece in (b"\xef", b"\xbb", b"\xbfdata: x\n\n")] == [b"", b"", b"data: x\n\n"]


def test_what_looks_like_a_mark_and_is_none_is_kept():
    splitter = sse.Splitter()
    assert [splitter.feed(piece) for piece in (b"\xef", b"x\n\n")] == [b"", b"\xefx\n\n"]


def test_crlf_is_one_line_end_wherever_it_is_cut():
    splitter = sse.Splitter()
    assert [splitter.feed(piece) for piece in (b"data: a\r", b"\ndata: b\r\n\r", b"\n")] == [b"", b"", b"data: a\r\ndata: b\r\n\r\n"]
    assert list(sse.events(b"data: a\r\ndata: b\r\n\r\n")) == [b"a\nb"]


def test_comments_and_foreign_fields_carry_no_data():
    assert list(sse.events(b": ping\n\nevent: x\nid: 3\n\nevent: y\ndata: 1\n\n\n\ndata:2\n\n")) == [b"1", b"2"]


def test_an_event_may_be_large_but_not_endless():
    splitter = sse.Splitter(limit=1000)
    assert splitter.feed(b"data: " + b"x" * 900) == b""
    assert len(splitter.feed(b"\n\n")) == 908
    with pytest.raises(sse.EventTooLarge):
        for _ in range(3):
            splitter.feed(b"x" * 400)
