"""What a token says, and whether an issuer's rules take it; signatures are not looked at here."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.core import tokens
from mindgw.core.tokens import MAX_TEXT, SKEW, Rules, Token, Wrong

NOW = 1_800_000_000.0
ISSUER, CLIENT = "https://idp.example", "client-1"
RULES = Rules(issuers=frozenset({ISSUER}), audiences=frozenset({CLIENT, "api://x"}), algorithms=frozenset({"RS256"}))
TENANT = Rules(issuers=RULES.issuers, audiences=RULES.audiences, algorithms=RULES.algorithms, tenant="t-1")
CLAIMS = {"iss": ISSUER, "aud": CLIENT, "sub": "s", "iat": NOW - 5, "exp": NOW + 300}


def part(value) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def made(header=None, claims=None, signature="c2ln") -> str:
    head = {"alg": "RS256", "typ": "JWT", "kid": "k1"} | (header or {})
    return f"{part({k: v for k, v in head.items() if v is not None})}.{part(claims or CLAIMS)}.{signature}"


def verdict(text, rules=RULES, now=NOW) -> str:
    """The code of the first objection, "" for none."""
    token = tokens.read(text)
    if isinstance(token, Wrong):
        return token.code
    wrong = tokens.check_header(token, rules) or tokens.check_claims(token, rules, now)
    return wrong.code if wrong is not None else ""


def claiming(**changes) -> str:
    return made(claims={name: value for name, value in {**CLAIMS, **changes}.items() if value != "gone"})


def test_a_good_token_is_taken():
    token = tokens.read(made())
    assert isinstance(token, Token)
    assert (token.algorithm, token.kid, token.issuer, token.ends) == ("RS256", "k1", ISSUER, NOW + 300)
    assert verdict(made()) == ""
    assert verdict(made({"typ": None, "kid": None})) == ""
    assert verdict(made({"typ": "at+JWT"})) == ""
    assert verdict(claiming(aud=["other", "api://x"])) == ""
    assert verdict(claiming(tid="t-1"), TENANT) == ""
    assert verdict(claiming(nbf=NOW - 1)) == ""
    assert tokens.is_jwt(made())


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"}, {"alg": "None"}, {"alg": ""}, {"alg": None}, {"alg": "HS256"}, {"alg": "rs256"}, {"alg": "RS512"},
        {"alg": "ES256"},
        {"alg": ["RS256"]}, {"alg": {"RS256": 1}}, {"alg": 5}, {"alg": "RS256 "}, {"alg": "RS256\0"},
        {"crit": ["exp"]}, {"crit": []}, {"jku": "https://evil.example/keys"}, {"jwk": {"kty": "oct", "k": "AA"}},
        {"x5u": "https://evil.example"},
        {"b64": False}, {"b64": True}, {"enc": "A128GCM"}, {"zip": "DEF"}, {"cty": "JWT"},
        {"typ": "JWE"}, {"typ": "dpop+jwt"}, {"typ": 7}, {"typ": "logout+jwt"}, {"typ": ""},
        {"kid": ""}, {"kid": 7}, {"kid": ["k1"]}, {"kid": "k" * 256}, {"kid": "../../etc/passwd\0"}, {"kid": "k1\n"},
    ],
)  # fmt: skip
def test_a_header_that_wants_more_than_its_issuer_may_is_refused(header):
    assert verdict(made(header)) == "invalid_token"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        *[({name: "gone"}, "invalid_token") for name in ("exp", "iat", "iss", "aud", "sub")],
        *[({name: None}, "invalid_token") for name in ("exp", "iat", "iss", "aud", "sub")],
        ({"exp": NOW - SKEW}, "expired_token"), ({"exp": 0}, "expired_token"), ({"exp": -1}, "invalid_token"),
        ({"exp": "soon"}, "invalid_token"), ({"exp": str(NOW + 300)}, "invalid_token"), ({"exp": True}, "invalid_token"),
        ({"exp": 2**41}, "invalid_token"), ({"exp": [NOW + 300]}, "invalid_token"),
        ({"iat": NOW + SKEW + 1}, "token_from_the_future"), ({"iat": "x"}, "invalid_token"), ({"iat": False}, "invalid_token"),
        ({"nbf": NOW + SKEW + 1}, "token_from_the_future"), ({"nbf": "x"}, "invalid_token"), ({"nbf": {}}, "invalid_token"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"), ({"iss": ISSUER.upper()}, "wrong_issuer"),
        ({"iss": "https://evil.example"}, "wrong_issuer"),
        ({"iss": [ISSUER]}, "wrong_issuer"), ({"iss": {ISSUER: 1}}, "wrong_issuer"), ({"iss": ""}, "wrong_issuer"),
        ({"aud": "client-2"}, "wrong_audience"), ({"aud": []}, "wrong_audience"), ({"aud": ["x"]}, "wrong_audience"),
        ({"aud": [CLIENT, 5]}, "wrong_audience"), ({"aud": {CLIENT: 1}}, "wrong_audience"), ({"aud": CLIENT + " "}, "wrong_audience"),
        ({"aud": ""}, "wrong_audience"), ({"aud": 7}, "wrong_audience"),
        ({"sub": ""}, "invalid_token"), ({"sub": 7}, "invalid_token"), ({"sub": "x" * 256}, "invalid_token"),
        ({"sub": "a\nb"}, "invalid_token"),
        ({"sub": "\ud800"}, "invalid_token"), ({"sub": ["s"]}, "invalid_token"),
    ],
)  # fmt: skip
def test_claims_that_are_not_as_they_must_be_are_refused(changes, code):
    assert verdict(claiming(**changes)) == code


@pytest.mark.parametrize("tid", ["gone", None, "", "T-1", "t-2", "t-1 ", ["t-1"], {"t-1": 1}, 1])
def test_another_tenant_is_refused(tid):
    assert verdict(claiming(tid=tid), TENANT) == "wrong_tenant"


def test_a_minute_of_skew_is_borne_and_no_more():
    assert verdict(claiming(exp=NOW - SKEW + 1)) == ""
    assert verdict(claiming(iat=NOW + SKEW, exp=NOW + 900)) == ""
    late = tokens.check_claims(tokens.read(claiming(exp=NOW - 100)), RULES, NOW)
    assert "100 s" in late.message
    early = tokens.check_claims(tokens.read(claiming(iat=NOW + 7200)), RULES, NOW)
    assert "7200 s" in early.message
    assert "clock" in early.message


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "eyJ..", "eyJ.eyJ.", "a.b.c", made() + ".x", made() + "=", made()[:-5] + "é", made() + "\n", " " + made(),
        part({"alg": "RS256"}) + "." + part([1]) + ".c2ln", part(["alg"]) + "." + part({}) + ".c2ln",
        part(b'{"alg":"RS256","alg":"none"}') + "." + part(CLAIMS) + ".c2ln",
        part({"alg": "RS256"}) + "." + part(b'{"exp":1,"exp":2}') + ".c2ln",
        part({"alg": "RS256"}) + "." + part(b'{"exp":NaN}') + ".c2ln", part({"alg": "RS256"}) + "." + part(b'{"exp":Infinity}') + ".c2ln",
        part({"alg": "RS256"}) + "." + part(b'{"a":"\xff"}') + ".c2ln",
        part({"alg": "RS256"}) + "." + part('{"a":1}'.encode("utf-16")) + ".c2ln",
        part({"alg": "RS256"}) + "." + part(b'{"a":' + b"[" * 9000 + b"]" * 9000) + ".c2ln", made() + "x" * MAX_TEXT,
        part({"alg": "RS256"}) + "." + part(b'{"exp":' + b"9" * 5000 + b"}") + ".c2ln",
    ],
)  # fmt: skip
def test_what_is_no_token_is_none(text):
    assert tokens.read(text) == Wrong("invalid_token", "This is not a token that can be read.")


def test_numbers_that_are_too_large_are_no_moments():
    text = f'{{"iss":"{ISSUER}","aud":"{CLIENT}","sub":"s","iat":1,"exp":1e400}}'
    assert verdict(f"{part({'alg': 'RS256'})}.{part(text.encode())}.c2ln") == "invalid_token"


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("moment", ["1" + 400 * "0", "-1" + 400 * "0", "1e400", str(2**39), "253402300800"])
def test_moments_beyond_all_calendars_are_none(name, moment):
    said = json.dumps({**CLAIMS, name: 77}).replace("77", moment)
    assert verdict(f"{part({'alg': 'RS256'})}.{part(said.encode())}.c2ln") == "invalid_token"


def borne(rules=RULES, **changes):
    wrong = tokens.check_bearer(tokens.read(claiming(**changes)), rules)
    return wrong.code if wrong is not None else ""


def test_what_says_who_has_signed_in_is_not_sent_in_place_of_a_key():
    assert borne() == borne(typ="Bearer") == borne(typ=["ID"]) == borne(TENANT, azp="a") == borne(TENANT, appid="a") == ""
    for changes in ({"nonce": "n"}, {"at_hash": "x"}, {"c_hash": None}, {"s_hash": ""}, {"typ": "ID"}, {"typ": "Refresh"}):
        assert borne(**changes) == borne(TENANT, azp="a", **changes) == "id_token"
    for changes in ({}, {"azp": None}, {"appid": 5}, {"azp": ["a"]}):
        assert borne(TENANT, **changes) == "id_token"


def test_a_token_of_version_1_hears_what_is_wrong_with_it():
    for ver, rules, told in (("1.0", TENANT, True), ("2.0", TENANT, False), (["1.0"], TENANT, False), ("1.0", RULES, False)):
        wrong = tokens.check_claims(tokens.read(claiming(aud="x", tid="t-1", ver=ver)), rules, NOW)
        assert (wrong.code, "requestedAccessTokenVersion" in wrong.message) == ("wrong_audience", told)


def test_an_issuer_that_is_none_is_nobody():
    assert tokens.read(claiming(iss=5)).issuer == ""


def signed_in(asked=None, **changes):
    wrong = tokens.check_sign_in(tokens.read(claiming(**changes)), CLIENT, asked)
    return wrong.code if wrong is not None else ""


def test_who_signs_in_shows_an_answer_to_what_was_asked_for_nobody_else():
    assert signed_in() == ""
    assert signed_in("n", nonce="n") == ""
    assert signed_in(aud=[CLIENT], azp=CLIENT) == ""
    assert signed_in(aud=[CLIENT, "other"], azp=CLIENT) == ""
    for changes in ({"aud": "api://x"}, {"aud": [CLIENT, "other"]}, {"aud": [CLIENT, "other"], "azp": "other"}, {"azp": "other"}):
        assert signed_in(**changes) == "wrong_audience"
    for nonce in ("gone", "", "m", "N", None, 5, ["n"]):
        assert signed_in("n", nonce=nonce) == "wrong_nonce"


@given(st.text() | st.binary().map(lambda raw: f"eyJ{part(raw)}.eyJ{part(raw)}.x"))
def test_any_text_is_read_or_refused(text):
    assert isinstance(tokens.read(text), Token | Wrong)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**2000), 2**2000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["iss", "aud", "sub", "iat", "exp", "nbf", "tid", "nonce", "azp", "typ", "ver"]), _JSON))
def test_any_claims_are_judged(claims):
    """Only what is word for word as it must be gets through."""
    token = Token({"alg": "RS256"}, claims)
    if tokens.check_claims(token, TENANT, NOW) is None:
        assert claims["iss"] == ISSUER and claims["tid"] == "t-1"
    if tokens.check_bearer(token, TENANT) is None:
        assert "nonce" not in claims and isinstance(claims["azp"], str)
    assert tokens.check_sign_in(token, CLIENT, "n") is None or claims.get("nonce") != "n" or claims.get("aud") != CLIENT or "azp" in claims


@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "jwk", "x"]), _JSON))
def test_any_header_is_judged(header):
    if tokens.check_header(Token(header, {}), RULES) is None:
        assert header["alg"] == "RS256"
