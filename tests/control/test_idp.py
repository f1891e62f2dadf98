"""Providers asked over real sockets: what is remembered of them, what is believed, and what becomes of those that misbehave."""

import asyncio
import base64
import hashlib
import hmac
import json
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mindgw import clock, config
from mindgw.control.idp import checkup, flows, keyring
from mindgw.control.idp.http import MOST, Http
from mindgw.control.idp.source import AWAY, FRESH, UNKNOWN, Source
from mindgw.control.idp.tokens import Tokens
from mindgw.errors import Conflict, ProviderError, ProviderFailed, ProviderUnreachable, Unauthenticated
from tests.identity_provider import CLIENT, KEYS, OID, OTHER, STRANGER, TENANT, Provider, b64

PEM = KEYS[0].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = KEYS[0].public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
JWK = RSAAlgorithm.to_jwk(KEYS[0].public_key()).encode()


@pytest.fixture(params=["entra"])
def provider(request):
    made = Provider(request.param)
    yield made
    made.close()


class Place:
    """A provider as this server knows it."""

    def __init__(self, provider, time=20.0, **more):
        said = config.parse(provider.settings(**more), "/d", {}).providers["work"]
        self.now, self.http = 1000.0, Http(time)
        self.source = Source(said, self.http, lambda: self.now)
        self.tokens = Tokens({"work": self.source})

    async def code(self, text):
        """Why a token is refused; "" when it is taken."""
        try:
            issued = await self.tokens.borne(text)
        except Unauthenticated as wrong:
            return wrong.code
        assert issued.name == "work"
        return ""

    async def close(self):
        self.source.close()
        if self.source._renewal is not None:
            await asyncio.wait([self.source._renewal])
        self.http.close()


@pytest.fixture
async def place(provider):
    made = Place(provider)
    yield made
    await made.close()


# -- tokens


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_tokens_of_both_versions_of_the_one_tenant_are_taken(provider, place, version):
    issuer = provider.v1 if version == "1.0" else provider.issuer
    assert await place.code(provider.token(iss=issuer, ver=version)) == ""


async def test_a_token_that_names_no_key_is_tried_on_all(provider, place):
    provider.kid = None
    assert await place.code(provider.token()) == ""
    assert await place.code(provider.token(STRANGER)) == "invalid_token"


def raw(header, claims, sign=lambda said: b"sig"):
    said = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{said}.{b64(sign(said.encode()))}"


def with_hmac(provider, secret, digest="sha256", name="HS256", **header):
    return raw({"alg": name, "kid": "k0", **header}, provider.claims(), lambda said: hmac.new(secret, said, digest).digest())


def embedded(provider):
    """Signed by a stranger, whose key it brings along."""
    own = {"jwk": json.loads(RSAAlgorithm.to_jwk(STRANGER.public_key()))}
    return provider.token(STRANGER, header=own)


NOW = int(clock.wall())
#: What somebody may try -> how the token comes to be.
FORGED = {
    "none": lambda p: raw({"alg": "none", "kid": "k0"}, p.claims(), lambda _: b"x"),
    "none without a signature": lambda p: raw({"alg": "none"}, p.claims(), lambda _: b""),
    "None": lambda p: raw({"alg": "None", "kid": "k0"}, p.claims()),
    "no alg": lambda p: raw({"kid": "k0"}, p.claims()),
    "RS to HS with the PEM": lambda p: with_hmac(p, PEM),
    "RS to HS with the DER": lambda p: with_hmac(p, DER),
    "RS to HS with the JWK": lambda p: with_hmac(p, JWK),
    "RS to HS with the modulus": lambda p: with_hmac(p, KEYS[0].public_key().public_numbers().n.to_bytes(256, "big")),
    "HS512": lambda p: with_hmac(p, PEM, "sha512", "HS512"),
    "HS with the symmetric key of the JWKS": lambda p: with_hmac(p, b"secret", kid="k9"),
    "HS with nothing": lambda p: with_hmac(p, b""),
    "said RS256, is HMAC": lambda p: with_hmac(p, PEM, name="RS256"),
    "its own key": embedded,
    "jku": lambda p: p.token(STRANGER, header={"jku": "http://127.0.0.1:1/keys"}),
    "jku beside a good signature": lambda p: p.token(header={"jku": "http://127.0.0.1:1/keys"}),
    "x5u": lambda p: p.token(STRANGER, header={"x5u": "http://127.0.0.1:1/cert"}),
    "crit": lambda p: raw({"alg": "RS256", "kid": "k0", "crit": ["exp"]}, p.claims()),
    "b64 false": lambda p: raw({"alg": "RS256", "kid": "k0", "b64": False}, p.claims()),
    "a stranger's signature": lambda p: p.token(STRANGER),
    "a stranger's signature, no kid": lambda p: p.token(STRANGER, header={"kid": None}),
    "an unknown kid": lambda p: p.token(STRANGER, header={"kid": "unheard"}),
    "a good signature by an unknown kid": lambda p: p.token(header={"kid": "unheard"}),
    "a kid that is a path": lambda p: p.token(STRANGER, header={"kid": "../../dev/null"}),
    "a kid that is SQL": lambda p: p.token(STRANGER, header={"kid": "' OR 1=1--"}),
    "a kid of another kind": lambda p: p.token(header={"kid": "bad"}),
    "RS384": lambda p: p.token(algorithm="RS384"),
    "PS256": lambda p: p.token(algorithm="PS256"),
    "no signature": lambda p: p.token().rpartition(".")[0] + ".",
    "another token's signature": lambda p: ".".join([*p.token(sub="x").split(".")[:2], p.token().split(".")[2]]),
    "claims changed": lambda p: ".".join(
        [p.token().split(".")[0], b64(json.dumps(p.claims(roles=["a"])).encode()), p.token().split(".")[2]]
    ),
    "header changed": lambda p: ".".join([b64(b'{"alg":"RS256","kid":"k0","x":1}'), *p.token().split(".")[1:]]),
    "expired": lambda p: p.token(exp=NOW - 120),
    "no exp": lambda p: p.token(exp="gone"),
    "exp is text": lambda p: p.token(exp="9999999999"),
    "no iat": lambda p: p.token(iat="gone"),
    "no iss": lambda p: p.token(iss="gone"),
    "no aud": lambda p: p.token(aud="gone"),
    "no sub": lambda p: p.token(sub="gone"),
    "not yet": lambda p: p.token(nbf=NOW + 3600),
    "made tomorrow": lambda p: p.token(iat=NOW + 86400, nbf="gone"),
    "wrong aud": lambda p: p.token(aud="00000003-0000-0000-c000-000000000000"),
    "aud is a part": lambda p: p.token(aud=CLIENT[:-1]),
    "aud api": lambda p: p.token(aud=f"api://{CLIENT}"),
    "a JWE": lambda p: raw({"alg": "RSA-OAEP", "enc": "A256GCM"}, p.claims()),
    "a logout token": lambda p: p.token(header={"typ": "logout+jwt"}),
    "in two parts": lambda p: ".".join(p.token().split(".")[:2]),
    "in four parts": lambda p: p.token() + ".x",
}
#: The same of tokens of other tenants and issuers, well signed.
FOREIGN = {
    "v2 of another tenant": lambda p: p.token(iss=p.issuer.replace(TENANT, OTHER), tid=OTHER),
    "v1 of another tenant": lambda p: p.token(iss=p.v1.replace(TENANT, OTHER), tid=OTHER),
    "our issuer, other tid": lambda p: p.token(tid=OTHER),
    "v1, other tid": lambda p: p.token(iss=p.v1, tid=OTHER),
    "other issuer, our tid": lambda p: p.token(iss=p.issuer.replace(TENANT, OTHER)),
    "no tid": lambda p: p.token(tid="gone"),
    "v1 without tid": lambda p: p.token(iss=p.v1, tid="gone"),
    "tid in capitals": lambda p: p.token(tid=TENANT.upper()),
    "tid in a list": lambda p: p.token(tid=[TENANT]),
    "tid and more": lambda p: p.token(tid=TENANT + " "),
    "empty tid": lambda p: p.token(tid=""),
    "common": lambda p: p.token(iss=p.issuer.replace(TENANT, "common")),
    "organizations": lambda p: p.token(iss=p.issuer.replace(TENANT, "organizations")),
    "the template": lambda p: p.token(iss=p.issuer.replace(TENANT, "{tenantid}")),
    "a slash more": lambda p: p.token(iss=p.issuer + "/"),
    "a slash less": lambda p: p.token(iss=p.v1.rstrip("/")),
    "another host": lambda p: p.token(iss=f"https://login.evil.example/{TENANT}/v2.0"),
    "a host in front": lambda p: p.token(iss="https://evil.example/?" + p.issuer),
    "issuer in a list": lambda p: raw({"alg": "RS256", "kid": "k0"}, p.claims(iss=[p.issuer])),
    "Google": lambda p: p.token(iss="https://accounts.google.com"),
}


@pytest.mark.parametrize("how", FORGED)
async def test_forged_tokens_are_refused(provider, place, how):
    assert await place.code(provider.token()) == ""
    assert await place.code(FORGED[how](provider)) in {
        "invalid_token",
        "expired_token",
        "token_from_the_future",
        "wrong_audience",
        "wrong_issuer",
    }
    assert "/elsewhere" not in provider.asked


@pytest.mark.parametrize("how", FOREIGN)
async def test_tokens_of_other_tenants_are_refused(provider, place, how):
    assert await place.code(FOREIGN[how](provider)) in {"wrong_issuer", "wrong_tenant"}
    assert provider.asked == [], "nobody has us ask for keys with a token that will not do anyway"


def test_there_are_as_many_of_them_as_were_asked_for():
    assert len(FORGED) >= 40
    assert len(FOREIGN) >= 20


async def test_no_token_is_taken_where_the_settings_say_for_whom_none_may_be(provider):
    place = Place(provider, audiences="")
    assert await place.code(provider.token()) == "wrong_issuer"
    await place.close()


async def test_the_token_of_a_sign_on_answers_what_was_asked(provider, place):
    shown = place.tokens.shown
    assert (await shown("work", provider.token(nonce="n"), "n")).token.claims["oid"] == OID
    for text in (
        provider.token(nonce="m"),
        provider.token(),
        provider.token(nonce="n", aud=[CLIENT, "x"], azp="gone"),
        provider.token(nonce="n", azp="x"),
    ):
        with pytest.raises(Unauthenticated):
            await shown("work", text, "n")


# -- keys


PUBLIC = json.loads(RSAAlgorithm.to_jwk(KEYS[0].public_key()))


@pytest.mark.parametrize(
    ("said", "algorithm"),
    [
        (PUBLIC, "RS256"), (PUBLIC, "PS512"), ({**PUBLIC, "alg": "RS256"}, "RS256"),
        (json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())), "ES256"),
        (json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key())), "ES384"),
        (json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key())), "EdDSA"),
    ],
)  # fmt: skip
def test_keys_are_good_for_their_own_algorithms(said, algorithm):
    (key,) = keyring.read([said])
    assert key.fits(algorithm)
    others = {"RS256", "PS512", "ES256", "ES384", "EdDSA", "HS256", "none"} - {algorithm}
    assert {name for name in others if key.fits(name)} <= ({"RS256", "PS512"} if said is PUBLIC else set())


@pytest.mark.parametrize(
    "said",
    [
        None, {}, "x", [None], [[]], ["x"], [{}], [{"kty": "oct", "k": "AA"}], [{"kty": "RSA"}], [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}],
        [{"kty": ["RSA"]}], [{**PUBLIC, "use": "enc"}], [{**PUBLIC, "kid": 7}], [{**PUBLIC, "alg": 7}], [{**PUBLIC, "n": 7}],
        [{**PUBLIC, "kty": "EC"}], [{"kty": "OKP", "crv": "X25519", "x": b64(bytes(32))}],
        [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}],
        [json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key()))],
    ],
)  # fmt: skip
def test_what_is_no_key_that_can_be_used_is_passed_over(said):
    assert keyring.read(said) == []


async def test_keys_are_fetched_once_and_an_unknown_one_once_a_minute(provider, place):
    for _ in range(5):
        assert await place.code(provider.token()) == ""
    assert provider.asked.count("/keys") == 1
    provider.rotate()
    for _ in range(5):
        assert await place.code(provider.token()) == "invalid_token", "too soon"
    place.now += UNKNOWN
    assert await place.code(provider.token()) == ""
    assert provider.asked.count("/keys") == 2
    for kid in "abcdefghij":
        assert await place.code(provider.token(header={"kid": kid})) == "invalid_token"
    assert provider.asked.count("/keys") == 2
    place.now += UNKNOWN
    await asyncio.gather(*(place.code(provider.token(header={"kid": kid})) for kid in "abcdefghij"))
    assert provider.asked.count("/keys") == 3, "of many who look for an unknown key one asks"


async def test_of_many_who_come_first_one_asks(provider, place):
    texts = [provider.token(jti=str(number)) for number in range(10)]
    assert await asyncio.gather(*map(place.code, texts)) == [""] * 10
    assert sorted(provider.asked) == ["/.well-known/openid-configuration", "/keys"]


async def test_keys_that_are_known_stay_good_while_the_provider_is_away(provider, place):
    assert await place.code(provider.token()) == ""
    provider.trouble, token = "broken", provider.token()
    place.now += 10 * FRESH
    assert await place.code(token) == ""
    await asyncio.wait([place.source._renewal])
    asked = len(provider.asked)
    assert await place.code(token) == ""
    for _ in range(3):
        with pytest.raises(ProviderUnreachable):  # nobody can tell whether that is one of its keys by now
            await place.code(provider.token(STRANGER, header={"kid": "x"}))
    assert len(provider.asked) == asked, "nor is it asked all the time"
    provider.trouble = ""
    provider.rotate()
    place.now += AWAY
    assert await place.code(provider.token()) == ""


async def test_a_key_that_was_taken_back_is_good_no_longer_than_an_hour(provider, place):
    old = provider.token()
    assert await place.code(old) == ""
    provider.rotate()
    place.now += FRESH
    assert await place.code(old) == ""
    await asyncio.wait([place.source._renewal])
    assert await place.code(old) == "invalid_token"


TROUBLES = {
    "slow": (ProviderUnreachable, "does not answer within"), "garbage": (ProviderFailed, "no JSON"),
    "huge": (ProviderFailed, "more than 1 MiB"),
    "redirect": (ProviderFailed, "leads elsewhere"), "broken": (ProviderUnreachable, "answers 500"),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("where", ["/.well-known", "/keys"])
async def test_a_provider_that_misbehaves_lets_nobody_in(provider, trouble, where):
    place = Place(provider, time=0.3 if trouble == "slow" else 20.0)
    kind, words = TROUBLES[trouble]
    provider.trouble, provider.troubled = trouble, (where,)
    with pytest.raises(kind, match=words):
        await place.code(provider.token())
    with pytest.raises(ProviderError):
        await place.code(provider.token())
    assert len(provider.asked) <= 2, "it is not asked again at once"
    assert "/elsewhere" not in provider.asked
    provider.trouble = ""
    place.now += AWAY
    assert await place.code(provider.token()) == ""
    await place.close()


async def test_a_provider_that_is_not_there(provider):
    said = provider.settings()
    provider.close()
    source = Source(config.parse(said, "/d", {}).providers["work"], http := Http(5))
    with pytest.raises(ProviderUnreachable, match="cannot be reached"):
        await source.metadata()
    http.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"issuer": "https://evil.example"}, "of the issuer 'https://evil.example'"),
        ({"issuer": "https://login.microsoftonline.com/{tenantid}/v2.0"}, "issuer"),
        ({"issuer": 7}, "makes no sense"), ({"jwks_uri": None}, "makes no sense"), ({"token_endpoint": "file:///etc/passwd"}, "no https"),
        ({"jwks_uri": "http://10.0.0.1/keys"}, "no https"), ({"authorization_endpoint": "javascript:alert(1)"}, "no https"),
        ({"device_authorization_endpoint": "ftp://x"}, "no https"), ({"token_endpoint": "https://u:p@x/"}, "no https"),
        ({"scopes_supported": "openid"}, "makes no sense"),
    ],
)  # fmt: skip
async def test_metadata_that_leads_elsewhere_is_not_believed(provider, place, said, words):
    provider.metadata = said
    with pytest.raises(ProviderFailed, match=words):
        await place.source.metadata()


async def test_a_provider_that_is_reached_by_tls_has_nothing_asked_without(provider, place, monkeypatch):
    """Metadata must not send us to what listens on this machine."""
    said = {**provider._described(), "issuer": f"https://idp.example/{TENANT}/v2.0"}
    secure = Source(config.parse(provider.settings(authority="https://idp.example"), "/d", {}).providers["work"], place.http)
    with pytest.raises(ProviderFailed, match="no https"):
        secure._believed(said)


async def test_an_answer_may_be_as_long_as_it_may(provider, place):
    provider.metadata = {"x": "y" * (MOST - 10_000)}
    assert (await place.source.metadata()).issuer == provider.issuer


# -- flows


async def sign_in(place, provider, **changes):
    """As a browser would: the code that comes back, and the verifier."""
    state, nonce, verifier = "s", "n", "v" * 43
    url = await flows.address(place.source, "http://localhost:1", state, nonce, verifier)
    assert url.startswith(provider.root + "/authorize?")
    asked = dict(parse_qsl(url.partition("?")[2]))
    assert asked["code_challenge"] == base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    provider._codes["c"] = {**asked, **changes}
    return "c", verifier, asked


async def test_a_code_is_worth_something_once_and_with_its_verifier(provider, place):
    code, verifier, asked = await sign_in(place, provider)
    assert (asked["client_id"], asked["response_type"], asked["scope"]) == (CLIENT, "code", "openid profile email offline_access")
    with pytest.raises(Unauthenticated, match="AADSTS70008: The code is not good") as refused:
        await flows.exchange(place.source, code, "http://localhost:1", "w" * 43)
    assert "Trace" not in refused.value.message
    code, verifier, _ = await sign_in(place, provider)
    grant = await flows.exchange(place.source, code, "http://localhost:1", verifier)
    assert (await place.tokens.shown("work", grant.id_token, "n")).token.claims["oid"] == OID
    with pytest.raises(Unauthenticated):
        await flows.exchange(place.source, code, "http://localhost:1", verifier)


@pytest.mark.parametrize("methods", [["client_secret_basic"], ["client_secret_post"], [], None])
async def test_a_secret_is_told_as_the_provider_wants_it(provider, methods):
    provider.secret = "s%/ecret"
    if methods is not None:
        provider.metadata = {"token_endpoint_auth_methods_supported": methods}
    place = Place(provider, client_secret="s%/ecret")
    provider.secret = "s%25%2Fecret" if methods != ["client_secret_post"] else provider.secret
    code, verifier, _ = await sign_in(place, provider)
    assert (await flows.exchange(place.source, code, "http://localhost:1", verifier)).refresh_token
    provider.secret = "another"
    code, verifier, _ = await sign_in(place, provider)
    with pytest.raises(ProviderFailed, match="look at its client id and secret"):
        await flows.exchange(place.source, code, "http://localhost:1", verifier)
    await place.close()


async def test_who_asks_without_the_secret_is_not_told_it(provider):
    """What began at a terminal Entra takes from a client without a secret alone."""
    provider.secret = "s"
    place = Place(provider, client_secret="s")
    code, verifier, _ = await sign_in(place, provider)
    with pytest.raises(ProviderFailed, match="Invalid client secret"):
        await flows.exchange(place.source, code, "http://localhost:1", verifier, public=True)
    await place.close()


async def test_a_device_is_waited_for(provider, place):
    code = await flows.begin_device(place.source)
    assert (code.user_code, code.interval, code.expires_in) == ("ABCD-1234", 1, 900)
    assert await flows.poll_device(place.source, code.device_code) == flows.Pending(slower=False)
    provider.devices[code.device_code] = True
    grant = await flows.poll_device(place.source, code.device_code)
    assert (await place.tokens.shown("work", grant.id_token, None)).name == "work"
    with pytest.raises(Unauthenticated, match="expired_token"):
        await flows.poll_device(place.source, code.device_code)


@pytest.mark.parametrize(
    "said",
    [
        {"verification_uri": "javascript:alert(1)"}, {"verification_uri_complete": "ftp://x"}, {"verification_uri": None},
        {"device_code": None},
        {"user_code": "\x1b[31m"}, {"expires_in": 0}, {"interval": 0}, {"interval": 3600}, {"expires_in": "soon"},
        {"user_code": 7},
    ],
)  # fmt: skip
async def test_a_code_for_devices_that_makes_no_sense_is_shown_to_nobody(provider, place, said):
    provider.device = said
    with pytest.raises(ProviderFailed):
        await flows.begin_device(place.source)


async def test_a_code_for_devices_in_the_words_of_before_is_one(provider, place):
    provider.device = {"verification_uri": None, "verification_url": f"{provider.root}/old", "expires_in": 10**9}
    code = await flows.begin_device(place.source)
    assert (code.verification_uri, code.expires_in) == (f"{provider.root}/old", 1800)


async def test_a_provider_that_is_asked_for_more_is(provider):
    place = Place(provider, ask="access_type=offline, prompt=login, state=evil", scopes="openid calendar")
    asked = dict(parse_qsl((await flows.address(place.source, "http://localhost:1", "s", "n", "v")).partition("?")[2]))
    assert (asked["access_type"], asked["prompt"], asked["state"], asked["scope"]) == ("offline", "login", "s", "openid calendar")
    await place.close()


@pytest.mark.parametrize("id_token", [None, 7, ["x"]])
async def test_an_answer_without_an_id_token_lets_nobody_in(provider, place, id_token):
    provider.granted = {"id_token": id_token}
    code, verifier, _ = await sign_in(place, provider)
    with pytest.raises(ProviderFailed, match="no ID token"):
        await flows.exchange(place.source, code, "http://localhost:1", verifier)


async def test_a_provider_without_devices_says_so(provider, place):
    provider.metadata = {"device_authorization_endpoint": ""}
    with pytest.raises(Conflict):
        await flows.begin_device(place.source)


async def test_a_refresh_is_good_until_the_provider_does_not_vouch_any_more(provider, place):
    code, verifier, _ = await sign_in(place, provider)
    grant = await flows.exchange(place.source, code, "http://localhost:1", verifier)
    again = await flows.refresh(place.source, grant.refresh_token)
    assert again.refresh_token != grant.refresh_token
    provider.thrown_out = True
    with pytest.raises(flows.Lost, match="account is disabled"):
        await flows.refresh(place.source, again.refresh_token)


async def test_what_a_provider_says_is_shown_in_one_line():
    assert flows.shown("AADSTS1: no.\r\nTrace ID: 5") == "AADSTS1: no"
    assert flows.shown("\x1b[31mred") == "[31mred"
    assert len(flows.shown("x" * 10_000)) == 300


# -- the check


async def about(provider, **more):
    place = Place(provider, **more)
    found = await checkup.examine(place.source)
    await place.close()
    return {(one.about, one.state): one.text for one in found}


async def test_the_check_says_what_is_right_and_what_to_look_at(provider):
    found = await about(provider)
    assert {key for key in found if key[1] == "bad"} == set()
    assert "requestedAccessTokenVersion" in found["tokens", "hint"]
    assert "http://localhost" in found["sign-in", "good"]
    assert ("tokens", "hint") in await about(provider, audiences="")
    assert ("scopes", "hint") in await about(provider, scopes="openid calendar")


async def test_the_check_says_what_is_wrong(provider):
    assert ("keys", "bad") in await about(provider, algorithms="ES256")
    provider.metadata = {"code_challenge_methods_supported": ["plain"], "id_token_signing_alg_values_supported": ["HS256"]}
    found = await about(provider)
    assert {("sign-in", "bad"), ("algorithms", "bad")} <= found.keys()
    provider.metadata = {"device_authorization_endpoint": ""}
    assert ("device", "hint") in await about(provider)
    provider.trouble, provider.troubled = "garbage", ("/keys",)
    assert ("keys", "bad") in await about(provider)
    provider.troubled = ("/",)
    assert list(await about(provider)) == [("metadata", "bad")]
