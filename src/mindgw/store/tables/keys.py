"""API keys. The secret is never stored: only its keyed digest, and the last four characters for people."""

from datetime import datetime

from sqlmodel import Field

from mindgw.store.tables.columns import Row, Serial, UTCDateTime, Versioned


class Key(Versioned, table=True):
    __tablename__ = "keys"

    #: The 10 base62 characters that stand in the key itself.
    id: str = Field(primary_key=True)
    name: str
    org_id: str = Field(foreign_key="orgs.id", index=True)
    team_id: str | None = Field(default=None, foreign_key="teams.id", index=True)
    user_id: str | None = Field(default=None, foreign_key="users.id", index=True)
    #: May use the management API.
    admin: bool = False
    #: Name of the priority class of its requests; empty: the default class.
    priority: str = ""
    #: Its requests may name the end user they are made for.
    trusted_proxy: bool = False
    #: HMAC-SHA256(pepper, secret), 32 bytes.
    digest: bytes
    #: Which pepper made the digest.
    pepper_version: int = 1
    last4: str = ""
    expires_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: Written at most once a minute, so it may lag.
    last_used_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class KeyChange(Row, table=True):
    """That a key is not what it was, or its team or user. Triggers write these rows and keep the newest thousand, never none: numbers
    become visible in their order, so that who knows the newest row misses nothing by reading on from there."""

    __tablename__ = "key_changes"

    id: int | None = Field(default=None, primary_key=True, sa_type=Serial)
    #: Table of the row that was changed or deleted, and its id; empty: nothing was, this is the first row of all.
    noun: str
    row_id: str
    at: datetime = Field(sa_type=UTCDateTime, nullable=False)
