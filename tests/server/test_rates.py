"""Rates, bounds of keys and trusted proxies on both lanes, byte by byte."""

import openai
import pytest

from mindgw import metrics
from mindgw.addresses import Networks, client
from mindgw.clock import utcnow
from mindgw.config import Limits
from mindgw.errors import RateLimited, Unauthenticated
from mindgw.gateway.admission import Rate
from mindgw.gateway.rates import Rates
from tests.e2e.raw import CHAT, head, request
from tests.server.hall import LANES, chat, hall

LIMITS = Limits(failures_address=3, body=32 * 2**20)


@pytest.fixture(scope="module", params=LANES)
def lane(request):
    with hall(request.param, limits=LIMITS, trusted=("127.0.0.1", "10.0.0.0/8")) as made:
        yield made


@pytest.fixture
def here(lane):
    lane.gate.clear()
    yield lane
    lane.gate.set()
    lane.idle()


def new_key(here, **columns):
    return here.do(lambda: here.world.add_key(**columns))


def ask(here, key, *lines, scene="plain", **fields):
    with here.raw() as raw:
        raw.send(request(key, chat(scene, **fields), CHAT, *lines))
        return raw.answer()


def of_rates(answer):
    return {name: value for name, value in answer.headers.items() if name.startswith(("x-ratelimit-", "retry-after", "x-should-retry"))}


# -- what clients are told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_says_how_much_is_left(here, stream):
    key = new_key(here, rpm=60, tpm=6000)
    told = of_rates(ask(here, key, stream=stream, max_tokens=100))
    assert list(told) == [f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("60", "59")
    assert told["x-ratelimit-limit-tokens"] == "6000" and 0 < int(told["x-ratelimit-remaining-tokens"]) < 6000
    assert told["x-ratelimit-reset-requests"] == "1s" or told["x-ratelimit-reset-requests"].endswith("ms")


def test_nothing_is_said_where_there_is_no_rate(here):
    assert of_rates(ask(here, new_key(here))) == {}


def test_a_refusal_says_when_to_come_back(here):
    key = new_key(here, rpm=1)
    assert ask(here, key).status == 200
    refused = ask(here, key)
    assert refused.status == 429
    assert (refused.error["code"], refused.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    told = of_rates(refused)
    assert told["x-should-retry"] == "true"
    assert 0 < int(told["retry-after-ms"]) <= 60_000 and int(told["retry-after"]) == -(-int(told["retry-after-ms"]) // 1000)
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert told["x-ratelimit-reset-requests"] in {"1m0s", *(f"{n / 1000:g}s" for n in range(50_000, 60_000))}


def test_nobody_is_told_to_sit_out_more_than_two_minutes(here):
    key = new_key(here, tpm=10)
    refused = ask(here, key, max_tokens=None, messages=[{"role": "user", "content": "plain " * 100}])
    assert (refused.status, of_rates(refused)["x-should-retry"]) == (429, "false")
    assert "retry-after" not in refused.headers


def test_other_errors_say_how_much_is_left_too(here):
    told = ask(here, new_key(here, rpm=5), model="absent")
    assert (told.status, told.headers["x-ratelimit-remaining-requests"]) == (404, "4")


def test_openais_own_client_waits_as_long_as_it_is_told(here):
    key = new_key(here, rpm=100_000, concurrency=1)
    waits = here.raw()
    with waits, openai.OpenAI(base_url=f"http://127.0.0.1:{here.port}/v1", api_key=key, max_retries=0) as client:
        waits.send(request(key, chat("waits"), CHAT))
        here.until(lambda: here.box.requests, "it runs")
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "plain"}])
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.response.headers["retry-after-ms"] == "1000"
        here.gate.set()
        assert waits.answer().status == 200
        assert client.chat.completions.create(model="m", messages=[{"role": "user", "content": "plain"}]).choices


# -- before the body is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("columns", "status", "code"),
    [
        ({"rpm": 1}, 429, "rate_limit_exceeded"),
        ({"scopes": {"routes": ["embeddings"]}}, 403, "route_not_allowed"),
        ({"scopes": {"addresses": ["192.0.2.0/24"]}}, 403, "address_not_allowed"),
        ({"revoked_at": utcnow()}, 401, "revoked_api_key"),
    ],
)
def test_who_is_refused_need_not_send_a_body(here, columns, status, code, known):
    """Thirty megabytes are announced and none of them sent: the answer comes all the same."""
    key = new_key(here, **columns)
    if "rpm" in columns:
        assert ask(here, key).status == 200
    elif known:
        ask(here, key)
    if not known:
        here.do(lambda: here.world.auth.forget(key[4:14]))
    with here.raw() as raw:
        raw.send(head(CHAT, f"authorization: Bearer {key}", f"content-length: {30 * 2**20}"))
        answer = raw.answer()
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.headers["connection"] == "close"


def test_a_key_that_must_be_looked_up_may_send_a_large_body(here):
    key = new_key(here)
    body = chat("plain", pad="x" * 500_000)
    with here.raw() as raw:
        raw.send(request(key, body, CHAT))
        assert raw.answer().status == 200


def test_who_leaves_while_its_key_is_looked_up_leaves_nothing(here):
    key = new_key(here)
    with here.raw() as raw:
        raw.send(head(CHAT, f"authorization: Bearer {key}", "content-length: 1000000") + b"x" * 1000)
    here.idle()


# -- who asks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["x-forwarded-for: 192.0.2.7"], 200),
        (["x-forwarded-for: 6.6.6.6, 192.0.2.7, 10.0.0.9"], 200),
        (["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 192.0.2.7"], 200),
        (["x-forwarded-for: 192.0.2.7, 6.6.6.6"], 403),
        ([], 403),
        (["x-real-ip: 192.0.2.7", "forwarded: for=192.0.2.7", "cf-connecting-ip: 192.0.2.7"], 403),
    ],
)
def test_a_trusted_proxy_is_believed_about_who_asks(here, path, lines, status):
    key = new_key(here, scopes={"addresses": ["192.0.2.0/24"]})
    with here.raw() as raw:
        body = chat("plain") if path == CHAT else b""
        raw.send(request(key, body, CHAT, *lines) if body else head(path, f"authorization: Bearer {key}", *lines, method="GET"))
        assert raw.answer().status == status


@pytest.mark.parametrize("name", LANES)
def test_nobody_else_is_believed(name):
    with hall(name) as made:
        key = new_key(made, scopes={"addresses": ["192.0.2.0/24"]})
        refused = ask(made, key, "x-forwarded-for: 192.0.2.7")
        assert (refused.status, refused.error["code"]) == (403, "address_not_allowed")


def test_requests_of_one_connection_may_come_from_several(here):
    key = new_key(here, scopes={"addresses": ["192.0.2.7"]})
    with here.raw() as raw:
        for address, status in (("192.0.2.7", 200), ("192.0.2.8", 403), ("192.0.2.7", 200)):
            raw.send(request(key, chat("plain"), CHAT, f"x-forwarded-for: {address}"))
            assert raw.answer().status == status


def test_an_address_that_is_wrong_too_often_is_told_to_wait(here):
    wrong = f"mgw_{'0' * 10}_{'0' * 38}"
    source = f"x-forwarded-for: 198.51.100.{1 + list(LANES).index('fast' if here.config.fast_lane else 'asgi')}"
    codes = []
    for path in (CHAT, "/v1/models", CHAT, "/v1/models", CHAT):
        with here.raw() as raw:
            body = chat("plain") if path == CHAT else b""
            raw.send(request(wrong, body, CHAT, source) if body else head(path, f"authorization: Bearer {wrong}", source, method="GET"))
            codes.append(raw.answer().error["code"])
    assert codes == ["invalid_api_key"] * 3 + ["rate_limit_exceeded"] * 2
    assert ask(here, wrong, "x-forwarded-for: 203.0.113.5").error["code"] == "invalid_api_key"


# -- teams -------------------------------------------------------------------------------------------------------------


def test_a_team_shares_its_rate(here):
    here.do(lambda: here.world.rates.adopt({"team:t": Rate(rpm=2)}, here.world.clock()))
    one, other = new_key(here, team_id="t"), new_key(here, team_id="t")
    assert [ask(here, key).status for key in (one, other, one)] == [200, 200, 429]
    here.do(lambda: here.world.rates.adopt({}, here.world.clock()))
    assert ask(here, one).status == 200


def test_refused_requests_leave_rows_that_say_so(here):
    key = new_key(here, rpm=1)
    assert [ask(here, key).status for _ in range(3)] == [200, 429, 429]
    rows = [row for row in here.settled() if row.key_id == key[4:14]]
    assert [(row.status, row.error_code, row.kind) for row in rows[1:]] == [(429, "rate_limit_exceeded", "refused")] * 2


# -- addresses that are made up ----------------------------------------------------------------------------------------

#: Whoever makes up a new address for each request.
ROTATED = 10_000


@pytest.mark.parametrize("trusted", [(), ("10.0.0.1",)])
def test_ten_thousand_made_up_addresses_are_one(trusted):
    """Threat 25: of a peer that nobody trusts, and of one behind a proxy, which writes whom it sees behind what is there."""
    rates, banished = Rates(metrics.Counters(), failures=60), 0
    stranger, wrong = "198.51.100.77", Unauthenticated()
    for number in range(ROTATED):
        made_up = b"%d.%d.%d.%d" % (11 + number % 80, number // 256 % 256, number % 256, 1 + number % 250)
        peer, lines = (trusted[0], [made_up + b", " + stranger.encode()]) if trusted else (stranger, [made_up])
        asks = client(peer, lines, Networks(trusted))
        assert asks == stranger
        try:
            rates.patience(asks, 1000.0)
        except RateLimited:
            banished += 1
        else:
            banished += isinstance(rates.blame(asks, wrong, 1000.0), RateLimited)
    assert banished == ROTATED - 60
    rates.patience("198.51.100.78", 1000.0)  # others are not concerned


def test_made_up_addresses_are_one_on_the_wire_too(here):
    wrong = f"mgw_{'0' * 10}_{'0' * 38}"
    real = f"198.51.100.{201 + list(LANES).index('fast' if here.config.fast_lane else 'asgi')}"
    lines = [f"x-forwarded-for: 203.0.113.{number}, 192.0.2.{number}, {real}" for number in range(50)]
    codes = [ask(here, wrong, line).error["code"] for line in lines]
    assert codes == ["invalid_api_key"] * 3 + ["rate_limit_exceeded"] * 47
