"""Bodies as an ASGI server hands them on: in parts, too large, too slow, never to their end."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import errors
from mindgw.server import bodies

HUNG_UP = {"type": "http.disconnect"}


def part(data: bytes, *, more: bool) -> dict:
    return {"type": "http.request", "body": data, "more_body": more}


class Sender:
    """A client that has sent these messages and then waits."""

    def __init__(self, *messages: dict) -> None:
        self.left = list(messages)

    async def __call__(self) -> dict:
        if not self.left:
            await asyncio.Event().wait()
        return self.left.pop(0)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=6))
def test_parts_become_one_body_up_to_the_limit(parts):
    whole = b"".join(parts)

    def read(limit: int) -> bytes:
        messages = [part(data, more=place < len(parts)) for place, data in enumerate(parts, 1)]
        return asyncio.run(bodies.read_body(Sender(*messages), [], limit))

    assert read(len(whole)) == whole
    if whole:
        with pytest.raises(errors.BodyTooLarge):
            read(len(whole) - 1)


async def test_a_body_that_is_declared_too_large_is_not_read():
    sender = Sender(part(b"x", more=False))
    with pytest.raises(errors.BodyTooLarge, match="larger than 10 bytes"):
        await bodies.read_body(sender, [(b"content-length", b"11")], 10)
    assert len(sender.left) == 1


async def test_a_client_that_leaves_in_the_middle_is_noticed():
    with pytest.raises(bodies.Hungup):
        await bodies.read_body(Sender(part(b"x", more=True), HUNG_UP), [], 10)


@pytest.mark.parametrize(
    ("headers", "unread"),
    [
        ([], False),
        ([(b"content-length", b"100")], False),
        ([(b"content-length", b"100000")], True),
        ([(b"content-length", b"9" * 5000)], True),
        ([(b"content-length", b"-1")], False),
        ([(b"transfer-encoding", b"chunked")], True),
        ([(b"content-length", b"1"), (b"expect", b"100-continue")], True),
    ],
    ids=str,
)
def test_small_bodies_are_skipped_and_their_connections_kept(headers, unread):
    assert bodies.unread(headers) is unread


async def test_what_a_refused_client_still_sends_is_taken_in():
    for last in (part(b"", more=False), HUNG_UP):
        sender = Sender(part(b"x", more=True), part(b"x", more=True), last)
        await bodies.linger(sender, [])
        assert sender.left == []


async def test_taking_it_in_has_an_end(monkeypatch):
    monkeypatch.setattr(bodies, "SILENCE", 0.01)
    await bodies.linger(Sender(part(b"x", more=True)), [])  # it falls silent
    monkeypatch.setattr(bodies, "LINGER", 0.0)
    endless = Sender(part(b"x", more=True))
    await bodies.linger(endless, [])
    assert len(endless.left) == 1


async def test_one_who_asked_before_sending_is_not_waited_for():
    sender = Sender(part(b"x", more=False))
    await bodies.linger(sender, [(b"expect", b"100-continue")])
    assert len(sender.left) == 1
