"""Join tokens: the server keeps the half that cannot be used."""

from datetime import UTC, datetime, timedelta

import pytest

from mindgw.config import Config
from mindgw.control import invitation, secrets
from mindgw.control.invitation import Terms
from mindgw.errors import BadRequest
from mindgw_agent import identity
from mindgw_agent.tokens import JoinToken

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return secrets.obtain(tmp_path_factory.mktemp("data"))


def test_a_token_says_where_to_go_and_whom_to_believe(own):
    config = Config("/d", public_url="https://gpu.example:8443", tls_listen="0.0.0.0:8443")
    row, text = invitation.mint(own, config, NOON, Terms(max_uses=3, name="box", approve="manual"), created_by="k1")
    token = JoinToken.decode(text)
    assert token.urls == ["https://gpu.example:8443", "http://127.0.0.1:8420"]
    assert (token.pins, token.srv) == ([own.ca_pin], own.public_identity)
    assert token.exp == int((NOON + timedelta(hours=1)).timestamp())
    assert row.id == token.id.hex()
    assert row.public_key == identity.public_half(token.secret)
    assert (row.max_uses, row.name_bind, row.approve, row.created_by) == (3, "box", "manual", "k1")
    assert row.expires_at == NOON + timedelta(hours=1)
    assert token.secret not in row.model_dump().values()


def test_a_server_that_nobody_else_reaches_names_its_loopback_address_once(own):
    tokens = [JoinToken.decode(invitation.mint(own, Config("/d", listen="127.0.0.1:9"), NOON)[1]) for _ in range(2)]
    assert [token.urls for token in tokens] == [["http://127.0.0.1:9"]] * 2
    assert len({token.secret for token in tokens} | {token.id for token in tokens}) == 4


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        (Terms(life=timedelta(0)), "ttl_seconds"),
        (Terms(life=timedelta(days=366)), "ttl_seconds"),
        (Terms(max_uses=0), "max_uses"),
        (Terms(max_uses=10_001), "max_uses"),
        (Terms(approve="maybe"), "approve"),
        (Terms(name=""), "name"),
        (Terms(name="-box"), "name"),
        (Terms(name="a b"), "name"),
        (Terms(name="box\n"), "name"),
    ],
)
def test_terms_that_make_no_sense_are_refused(own, terms, param):
    with pytest.raises(BadRequest) as refused:
        invitation.mint(own, Config("/d"), NOON, terms)
    assert refused.value.param == param
