"""Passes: what the server made it knows again, and nothing else that looks like a JWT."""

import base64
import json
import warnings

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mindgw.control import passes
from mindgw.control.passes import AUDIENCE, LONGEST, MAX_TEXT, Passes, is_jwt

SEED = bytes(range(32))
OWN = Passes(SEED, "f" * 32)
PRIVATE = Ed25519PrivateKey.from_private_bytes(SEED)
RAW = PRIVATE.public_key().public_bytes_raw()
PEM = PRIVATE.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
USER, SESSION = "01k9abcdefghjkmnpqrstvwxyz", "0123456789"
NOW = 1_800_000_000
CLAIMS = {"iss": "mindgw:" + "f" * 32, "aud": AUDIENCE, "sub": USER, "sid": SESSION, "iat": NOW, "exp": NOW + 900}
HEAD = {"alg": "EdDSA", "typ": "JWT"}
GOOD = OWN.make(USER, SESSION, NOW, 900)


def part(value) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims, head=HEAD, private=PRIVATE) -> str:
    """A token with any head and any claims, signed as ours are."""
    said = f"{part(head)}.{part(claims)}"
    return f"{said}.{part(private.sign(said.encode()))}"


def but(**changed) -> dict:
    return {**CLAIMS, **changed}


def without(*names: str) -> dict:
    return {name: value for name, value in CLAIMS.items() if name not in names}


def hmacked(secret: bytes, algorithm: str = "HS256") -> str:
    head, claims = part({"alg": algorithm, "typ": "JWT"}), part(CLAIMS)
    return f"{head}.{claims}.{part(jwt.get_algorithm_by_name(algorithm).sign(f'{head}.{claims}'.encode(), secret))}"


def head_of(**more) -> str:
    return signed(CLAIMS, {**HEAD, **more})


def made(private, algorithm: str) -> str:
    return jwt.encode(CLAIMS, private, algorithm=algorithm)


def other_ending(text: str) -> str:
    """The same signature to a lenient decoder: only bits that mean nothing differ."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + letters[letters.index(text[-1]) ^ 1]


JWK = {"kty": "OKP", "crv": "Ed25519", "x": part(RAW)}
OTHER = Ed25519PrivateKey.generate()
WRITTEN = json.dumps(CLAIMS, separators=(",", ":")).encode()
SAID, BODY, SIGNATURE = GOOD.split(".")

CORPUS = {
    # the algorithm is ours to choose
    "no algorithm": f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(CLAIMS)}.",
    "no algorithm, a signature all the same": f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(CLAIMS)}.{SIGNATURE}",
    "NoNe": f"{part({'alg': 'NoNe', 'typ': 'JWT'})}.{part(CLAIMS)}.",
    "HMAC with the public key": hmacked(RAW),
    "HMAC with the public key in PEM": hmacked(PEM),
    "HMAC of another size": hmacked(RAW, "HS512"),
    "HMAC with nothing": hmacked(b""),
    "another curve": made(ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "RSA": made(rsa.generate_private_key(65537, 2048), "RS256"),
    "our signature under another name": signed(CLAIMS, {"alg": "ES256", "typ": "JWT"}),
    "a list of algorithms": signed(CLAIMS, {"alg": ["EdDSA"], "typ": "JWT"}),
    "no head at all": signed(CLAIMS, {}),
    # nothing in a head is looked at
    "another's key": signed(CLAIMS, private=OTHER),
    "another's key, brought along": signed(CLAIMS, {**HEAD, "jwk": {**JWK, "x": part(OTHER.public_key().public_bytes_raw())}}, OTHER),
    "our key, brought along": head_of(jwk=JWK),
    "a key at an address": head_of(jku="http://127.0.0.1/keys"),
    "a certificate at an address": head_of(x5u="http://127.0.0.1/cert"),
    "a name of a key that is a path": head_of(kid="../../../dev/null"),
    "a name of a key that is SQL": head_of(kid="' OR 1=1--"),
    "what must be understood": head_of(crit=["exp"]),
    "a body that is not encoded": head_of(b64=False, crit=["b64"]),
    "a pass in a pass": head_of(cty="JWT"),
    "another type": signed(CLAIMS, {"alg": "EdDSA", "typ": "at+jwt"}),
    "the same head, written differently": signed(CLAIMS, b'{"alg": "EdDSA", "typ": "JWT"}'),
    "two algorithms": signed(CLAIMS, b'{"alg":"none","alg":"EdDSA","typ":"JWT"}'),
    # every claim is there and is what it is
    **{f"no {name}": signed(without(name)) for name in CLAIMS},
    "nothing said": signed({}),
    "another server's": Passes(SEED, "e" * 32).make(USER, SESSION, NOW, 900),
    "several issuers": signed(but(iss=[CLAIMS["iss"]])),
    "for others": signed(but(aud="mindgw/data")),
    "for us and others": signed(but(aud=[AUDIENCE, "others"])),
    "for us, in a list": signed(but(aud=[AUDIENCE])),
    "a user that is a number": signed(but(sub=1)),
    "a user that is nobody": signed(but(sub="")),
    "a user that is SQL": signed(but(sub="' OR 1=1--")),
    "a user and a line more": signed(but(sub=USER + "\n")),
    "no session": signed(but(sid=None)),
    "a session that is SQL": signed(but(sid="' OR 1=1--")),
    "more than is known": signed(but(admin=True)),
    "a role of its own": signed(but(role="admin")),
    # time
    "over": signed(but(iat=NOW - 900, exp=NOW)),
    "over long ago": signed(but(iat=0, exp=1)),
    "made tomorrow": signed(but(iat=NOW + 86400, exp=NOW + 86400 + 900)),
    "for ever": signed(but(exp=2**40)),
    "a second longer than may be": signed(but(exp=NOW + LONGEST + 1)),
    "over before it began": signed(but(iat=NOW + 1, exp=NOW + 1)),
    "an end that is text": signed(but(exp=str(NOW + 900))),
    "an end that is a fraction": signed(but(exp=NOW + 900.5)),
    "an end that is true": signed(but(iat=0, exp=True)),
    "an end that is no number": signed(json.dumps(but(iat=0, exp=float("nan")), separators=(",", ":")).encode()),
    "everything twice": signed(WRITTEN[:-1] + b"," + WRITTEN[1:]),
    "in another order": signed(dict(reversed(CLAIMS.items()))),
    "an end beyond all numbers": signed(but(exp=10**400)),
    "a beginning that is negative": signed(but(iat=-1)),
    "a beginning that is a list": signed(but(iat=[NOW])),
    # its form
    "nothing": "",
    "dots": "..",
    "no signature": f"{SAID}.{BODY}.",
    "no body": f"{SAID}..{SIGNATURE}",
    "two parts": f"{SAID}.{BODY}",
    "four parts": f"{GOOD}.{SIGNATURE}",
    "five parts": f"{SAID}.a.b.c.d",
    "padding": f"{GOOD}==",
    "a blank before it": f" {GOOD}",
    "a line after it": f"{GOOD}\n",
    "a blank within": f"{SAID}.{BODY} .{SIGNATURE}",
    "a NUL after it": f"{GOOD}\0",
    "a dot that is none": GOOD.replace(".", "\uff0e"),
    "another ending of the same signature": other_ending(GOOD),
    "a signature that is too short": f"{SAID}.{BODY}.{part(PRIVATE.sign(f'{SAID}.{BODY}'.encode())[:-1])}",
    "a signature of zeros": f"{SAID}.{BODY}.{part(bytes(64))}",
    "a signature of another body": f"{SAID}.{part(but(sub='01k9zzzzzzzzzzzzzzzzzzzzzz'))}.{SIGNATURE}",
    "a body that is a list": signed([CLAIMS]),
    "a body that is text": signed("hello"),
    "a body that is not JSON": signed(b"{"),
    "a body that is not text": signed(b"\xff\xfe"),
    "a body with a mark before it": signed(b"\xef\xbb\xbf" + json.dumps(CLAIMS).encode()),
    "a body that is deep": signed(b"[" * 500 + b"]" * 500),
    "longer than any": signed(but(sub=USER + "z" * MAX_TEXT)),
}  # fmt: skip


def test_a_pass_says_what_it_was_made_for():
    said = OWN.read(GOOD, NOW)
    assert said is not None
    assert (said.sub, said.sid, said.iat, said.exp) == (USER, SESSION, NOW, NOW + 900)
    assert jwt.get_unverified_header(GOOD) == HEAD
    assert len(GOOD) < MAX_TEXT // 2


def test_what_is_signed_by_hand_is_as_good():
    """Else the corpus below would show nothing."""
    assert signed(CLAIMS) == GOOD


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)
def test_what_is_not_ours_is_refused(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert OWN.read(text, NOW) is None


def test_a_pass_lives_from_its_making_to_its_end():
    assert OWN.read(GOOD, NOW - passes.AHEAD) is not None  # the clock of another server of this database may be a little ahead
    assert OWN.read(GOOD, NOW - passes.AHEAD - 1) is None
    assert OWN.read(GOOD, NOW + 899.9) is not None
    assert OWN.read(GOOD, NOW + 900) is None


def test_no_pass_is_made_for_longer_than_an_hour():
    said = OWN.read(OWN.make(USER, SESSION, NOW, 10**9), NOW)
    assert said is not None
    assert said.exp == NOW + LONGEST


@given(st.text(max_size=200) | st.from_regex(r"eyJ[\w-]{0,50}\.[\w-]{0,50}\.[\w-]{86}", fullmatch=True) | st.binary().map(part))
def test_no_text_is_more_than_a_refusal(text):
    assert OWN.read(text, NOW) is None
    assert isinstance(is_jwt(text), bool)


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_no_change_of_a_pass_gets_through(where, letter):
    changed = GOOD[:where] + letter + GOOD[where + 1 :]
    assert (OWN.read(changed, NOW) is not None) == (changed == GOOD)


def test_a_jwt_is_known_by_its_form():
    assert is_jwt(GOOD)
    assert is_jwt(CORPUS["RSA"])
    assert not is_jwt("mgw_0123456789_x")
    assert not is_jwt(f"{GOOD}.more")


def test_they_do_not_share_a_key_between_servers():
    assert Passes(SEED[::-1], "f" * 32).read(GOOD, NOW) is None
