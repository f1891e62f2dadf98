"""Sealed bodies: nobody reads or changes them without the key."""

import pytest

from mindgw.control.sealing import Safe

KEY = b"k" * 32
BODY = b'{"messages":[{"role":"user","content":"a secret"}]}' * 5


def test_what_was_sealed_comes_back():
    sealed = Safe(KEY).seal("req-1", BODY)
    assert Safe(KEY).open("req-1", sealed) == BODY
    assert b"secret" not in sealed
    assert Safe(KEY).seal("req-1", BODY) != sealed
    assert Safe(KEY).open("", Safe(KEY).seal("", b"")) == b""


@pytest.mark.parametrize("how", ["key", "name", "nonce", "text", "tag", "short", "empty"])
def test_what_is_not_as_it_was_sealed_is_refused(how):
    sealed = Safe(KEY).seal("req-1", BODY)
    at = {"nonce": 3, "text": 40, "tag": len(sealed) - 1}.get(how)
    changed = sealed if at is None else sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
    changed = {"short": sealed[:20], "empty": b""}.get(how, changed)
    with pytest.raises(ValueError, match="sealed by another key"):
        Safe(b"x" * 32 if how == "key" else KEY).open("req-2" if how == "name" else "req-1", changed)
