"""Join tokens, API keys, sessions, invitations: what is pasted comes back, what is mistyped is refused with a reason."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import tokens
from mindgw_agent.tokens import JoinToken, TokenError

TOKEN = JoinToken(urls=["https://gw.example:8420"], id=b"12345678", secret=b"s" * 32, pins=[b"p" * 32], srv=b"k" * 32, exp=1_800_000_000)
LETTERS = st.sampled_from(tokens.ALPHABET)


def fake_random(fill: bytes):
    return lambda size: fill * size


def signed(payload: bytes) -> str:
    text = tokens.JOIN_PREFIX + tokens.base62_encode(payload)
    return f"{text}_{tokens.crc6(text)}"


@given(st.binary(max_size=300))
def test_base62_gives_the_bytes_back(data):
    text = tokens.base62_encode(data)
    assert text.isalnum()
    assert tokens.base62_decode(text) == data


@given(st.text(max_size=20) | st.text(LETTERS, max_size=20))
def test_base62_has_one_text_for_each_value(text):
    try:
        data = tokens.base62_decode(text)
    except ValueError:
        return
    assert tokens.base62_encode(data) == text


@pytest.mark.parametrize("text", ["", "0", "02", "a b", "ä", "2"])
def test_base62_refuses_what_it_never_made(text):
    with pytest.raises(ValueError, match="base62"):
        tokens.base62_decode(text)


def test_crc6_is_the_crc32_in_six_digits():
    assert tokens.crc6("") == "000000"
    assert tokens.crc6("123456789") == "3jZRME"  # 0xCBF43926, the check value of CRC-32, by hand


# -- join tokens


@given(
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=32, max_size=32),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
    st.integers(0, 2**40),
)
def test_a_join_token_comes_back_as_it_was(identity, secret, pins, exp):
    token = JoinToken(urls=["http://127.0.0.1:8420", "https://[::1]:1"], id=identity, secret=secret, pins=pins, srv=secret[::-1], exp=exp)
    text = token.encode()
    assert re.fullmatch(r"mgwj1_[0-9A-Za-z]+_[0-9A-Za-z]{6}", text)
    assert JoinToken.decode(text) == token


def test_blanks_and_line_breaks_of_a_paste_do_no_harm():
    text = TOKEN.encode()
    assert JoinToken.decode(f"  {text[:40]}\n  {text[40:]}\t\r\n") == TOKEN


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("mgw_0000000000_x", "wrong_kind"),
        ("mgws_0000000000_x", "wrong_kind"),
        ("mgwi_0000000000_x", "wrong_kind"),
        ("hello", "wrong_kind"),
        ("mgwj2_abc_000000", "version"),
        ("mgwj1_", "truncated"),
        ("mgwj1_abc", "truncated"),
        ("mgwj1_abc_00000", "truncated"),
        ("mgwj1_abc_000000", "checksum"),
        ("mgwj1_abc_0000000", "checksum"),
        ("mgwj1_ab\ud800_000000", "checksum"),
        ("mgwj1_" + "a" * 5000, "payload"),
        (signed(b""), "payload"),
        (signed(b"\x91" * 2000), "payload"),
        (signed(b"\xff" * 9), "payload"),
    ],
)
def test_bad_join_tokens_say_what_is_wrong(text, code):
    with pytest.raises(TokenError) as caught:
        JoinToken.decode(text)
    assert caught.value.code == code
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"urls": []},
        {"urls": ["ftp://x"]},
        {"urls": ["https://x\x1b[2J"]},
        {"id": b"short"},
        {"secret": b""},
        {"pins": [b"x"]},
        {"srv": b""},
        {"exp": -1},
    ],
)
def test_payloads_with_a_wrong_field_are_refused(change):
    payload = msgspec.to_builtins(TOKEN, builtin_types=(bytes,)) | change
    with pytest.raises(TokenError) as caught:
        JoinToken.decode(signed(msgspec.msgpack.encode(payload)))
    assert caught.value.code == "payload"


@given(st.data())
def test_one_wrong_letter_is_found(data):
    text = TOKEN.encode()
    where = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(LETTERS.filter(lambda x: x != text[where]))
    with pytest.raises(TokenError):
        JoinToken.decode(text[:where] + letter + text[where + 1 :])


@given(st.integers(0, 200))
def test_a_cut_paste_is_found(size):
    text = TOKEN.encode()
    with pytest.raises(TokenError):
        JoinToken.decode(text[: min(size, len(text) - 1)])


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda t: "mgwj1_" + t))
def test_any_text_is_a_token_or_a_token_error(text):
    with pytest.raises(TokenError):
        JoinToken.decode(text)


# -- API keys


def test_a_new_key_has_the_documented_shape():
    key = tokens.make_key()
    assert re.fullmatch(r"\bmgw_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}\b", key.text)
    assert tokens.parse_key(key.text) == (key.id, key.secret)
    assert (len(key.id), len(key.secret)) == (10, 32)


def test_keys_differ():
    assert len({tokens.make_key().text for _ in range(50)}) == 50


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x5a"])
def test_keys_are_full_length_whatever_chance_gives(fill):
    key = tokens.make_key(fake_random(fill))
    assert tokens.parse_key(key.text) == (key.id, key.secret)


@given(st.data())
def test_one_wrong_letter_makes_no_key(data):
    text = tokens.make_key(fake_random(b"\x17")).text
    where = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(LETTERS.filter(lambda x: x != text[where]))
    assert tokens.parse_key(text[:where] + letter + text[where + 1 :]) is None


KEY = tokens.make_key(fake_random(b"\x2a")).text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mgw_",
        KEY[:-1],
        KEY + "a",
        KEY[:-1] + "\n",
        "\u0660".join([KEY[:5], KEY[6:]]),
        "sk-" + KEY[3:],
        "\ud800" * 53,
        "mgw_" + "x" * 10**6,
    ],
)
def test_what_is_no_key_is_refused(text):
    assert tokens.parse_key(text) is None


@given(st.text(max_size=60))
def test_any_text_is_refused_without_an_exception(text):
    assert tokens.parse_key(text) is None


def test_secrets_do_not_show_up_in_logs():
    key = tokens.make_key(fake_random(b"\x2a"))
    shown = f"{TOKEN!r} {TOKEN.__rich_repr__()} {key!r} {key.__rich_repr__()}"
    assert "sss" not in shown
    assert key.secret not in shown
    assert key.id in shown
    assert TOKEN.id.hex() in shown


# -- sessions and invitations

USER = "01k9abcdefghjkmnpqrstvwxyz"


def invite(random) -> tuple[str, str, str]:
    secret, text = tokens.make_invitation(USER, random)
    return USER, secret, text


def session(random) -> tuple[str, str, str]:
    made = tokens.make_session(random)
    return made.id, made.secret, made.text


KINDS = [(session, tokens.parse_session), (invite, tokens.parse_invitation)]


@pytest.mark.parametrize(("make", "parse"), KINDS)
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x2a"])
def test_a_session_and_an_invitation_come_back(make, parse, fill):
    id, secret, text = make(fake_random(fill))
    assert parse(text) == (id, secret)
    assert len(secret) == 32


@pytest.mark.parametrize(("make", "parse"), KINDS)
@given(data=st.data())
def test_no_typing_error_in_them_gets_through(make, parse, data):
    _, _, text = make(fake_random(b"\x17"))
    where = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters().filter(lambda c: c != text[where]))
    assert parse(text[:where] + letter + text[where + 1 :]) is None


@pytest.mark.parametrize("parse", [tokens.parse_key, tokens.parse_session, tokens.parse_invitation])
@given(st.text(max_size=80) | st.from_regex(r"mgw[si]?_[0-9A-Za-z]{10,26}_[0-9A-Za-z]{38}", fullmatch=True))
def test_nothing_that_was_not_made_is_any_of_them(parse, text):
    assert parse(text) is None


def test_no_kind_is_taken_for_another():
    key, signed_in = tokens.make_key(), tokens.make_session()
    _, invited = tokens.make_invitation(USER)
    parsers = {tokens.parse_key: key.text, tokens.parse_session: signed_in.text, tokens.parse_invitation: invited}
    for parse, own in parsers.items():
        assert [text for text in parsers.values() if parse(text) is not None] == [own]


def test_a_session_does_not_show_its_secret():
    made = tokens.make_session()
    assert repr(made) == f"Session(id={made.id!r})"
    assert made.secret not in str(made.__rich_repr__())
