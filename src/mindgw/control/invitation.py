"""Join tokens: made here whole, stored by half."""

import os
import re
from datetime import datetime, timedelta

import msgspec

from mindgw.config import Config
from mindgw.control.secrets import Secrets
from mindgw.errors import BadRequest
from mindgw.store.tables import JoinToken
from mindgw_agent import enrolment, identity, tokens

#: How long a token is good unless its maker says otherwise, and at most.
LIFE = timedelta(hours=1)
MAX_LIFE = timedelta(days=365)
MAX_USES = 10_000

_ID, _SECRET = 8, 32


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is good for."""

    life: timedelta = LIFE
    max_uses: int = 1
    #: The only worker name it is good for; None: any.
    name: str | None = None
    #: "auto" lets the worker serve at once, "manual" makes it wait for an operator.
    approve: str = "auto"
    #: Whether the system's authorities vouch for the server: a public certificate, and no pin. Always so where another than the server
    #: itself sees to the certificate.
    public_pki: bool = False


def mint(secrets: Secrets, config: Config, now: datetime, terms: Terms | None = None, *, created_by: str = "") -> tuple[JoinToken, str]:
    """The row to store with `fleet.add_join_token`, and the token itself, which exists nowhere else. Raises BadRequest."""
    terms = terms or Terms()
    _check(terms)
    if terms.public_pki and not config.public_url:
        hint = "`mindgw init --public-url https://…` says where others reach this server"
        raise BadRequest("A public certificate is for a server with a public URL.", param="public_pki", hint=hint)
    token_id, secret = os.urandom(_ID), os.urandom(_SECRET)
    expires_at = now + terms.life
    text = tokens.JoinToken(
        urls=list(dict.fromkeys((config.root_url, config.loopback_url))),
        id=token_id,
        secret=secret,
        pins=[] if terms.public_pki or config.tls else [secrets.ca_pin],
        srv=secrets.public_identity,
        exp=int(expires_at.timestamp()),
    ).encode()
    row = JoinToken(
        id=token_id.hex(),
        public_key=identity.public_half(secret),
        name_bind=terms.name,
        approve=terms.approve,
        max_uses=terms.max_uses,
        expires_at=expires_at,
        created_by=created_by,
    )
    return row, text


def _check(terms: Terms) -> None:
    if not timedelta(0) < terms.life <= MAX_LIFE:
        raise BadRequest(f"A join token lives from 1 second to {MAX_LIFE.days} days.", param="ttl_seconds")
    if not 1 <= terms.max_uses <= MAX_USES:
        raise BadRequest(f"A join token is good for 1 to {MAX_USES} uses.", param="max_uses")
    if terms.approve not in {"auto", "manual"}:
        raise BadRequest("approve is auto or manual.", param="approve")
    if terms.name is not None and not re.fullmatch(enrolment.NAME_PATTERN, terms.name):
        raise BadRequest("A worker's name has 1 to 63 letters, digits, dots, dashes and underscores.", param="name")
