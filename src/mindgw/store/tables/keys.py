"""API keys. The secret is never stored: only its keyed digest, and the last four characters for people."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from mindgw.store.tables.columns import Count, Document, Row, Serial, UTCDateTime, Versioned


class Key(Versioned, table=True):
    __tablename__ = "keys"

    #: The 10 base62 characters that stand in the key itself.
    id: str = Field(primary_key=True)
    name: str
    org_id: str = Field(foreign_key="orgs.id", index=True)
    team_id: str | None = Field(default=None, foreign_key="teams.id", index=True)
    user_id: str | None = Field(default=None, foreign_key="users.id", index=True)
    #: Name of the role it acts with; None: that of its user, or "user".
    role: str | None = None
    #: Name of the priority class of its requests; empty: the default class.
    priority: str = ""
    #: Its requests may name the end user they are made for.
    trusted_proxy: bool = False
    #: HMAC-SHA256(pepper, secret), 32 bytes.
    digest: bytes
    #: Which pepper made the digest.
    pepper_version: int = 1
    last4: str = ""
    #: Identity provider whose tokens stand for it; then it has no secret. Empty: it has one.
    provider: str = ""
    #: What it is good for: {"models": [globs], "routes": [paths], "addresses": [networks]}; a list that is missing or empty allows all.
    scopes: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)
    #: Requests and tokens a minute, and requests at once; None: no limit of its own.
    rpm: int | None = None
    tpm: int | None = Field(default=None, sa_type=Count)
    concurrency: int | None = None
    #: Kept for routing, which does not keep to them yet, such as {"region": "eu"}.
    labels: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)
    #: The secret before the last rotation, good until `prior_until`.
    prior_digest: bytes | None = None
    prior_pepper_version: int | None = None
    prior_until: datetime | None = Field(default=None, sa_type=UTCDateTime)
    rotated_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: Written at most once a minute, so it may lag.
    last_used_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class KeyChange(Row, table=True):
    """That a key is not what it was, or those of a team, a user or an organisation may not be. Triggers write these rows and keep the
    newest thousand, never none: numbers become visible in their order, so that who knows the newest row misses nothing by reading on from
    there."""

    __tablename__ = "key_changes"

    id: int | None = Field(default=None, primary_key=True, sa_type=Serial)
    #: Whose keys these are (keys, teams, users or orgs), and its id; empty: nothing was changed, this is the first row of all.
    noun: str
    row_id: str
    at: datetime = Field(sa_type=UTCDateTime, nullable=False)
