"""Who uses the gateway: organisations, their teams, their users."""

from datetime import datetime
from typing import Any

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Document, UTCDateTime, Versioned


class Org(Versioned, table=True):
    __tablename__ = "orgs"

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True)
    #: active or disabled.
    state: str = "active"
    #: Kept for routing, which does not keep to them yet, such as {"region": "eu"}.
    labels: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)


class Team(Versioned, table=True):
    __tablename__ = "teams"
    __table_args__ = (UniqueConstraint("org_id", "name"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    org_id: str = Field(foreign_key="orgs.id")
    name: str


class User(Versioned, table=True):
    __tablename__ = "users"
    #: Organisations know nothing of each other, not even whom the others have.
    __table_args__ = (UniqueConstraint("org_id", "email"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    org_id: str = Field(foreign_key="orgs.id", index=True)
    #: Always lower case: one person is one row however the address is typed.
    email: str
    name: str = ""
    #: Name of its role in the whole organisation; `role_bindings` may add others.
    role: str = "user"
    #: Identity by whose claims they have it; empty: somebody here has given it.
    role_from: str = ""
    #: invited, active, disabled, removed, or lapsed: an identity provider does not vouch for them any more.
    state: str = "active"
    #: Whether it is a program, which has keys but never signs in.
    service: bool = False
    #: HMAC-SHA256(pepper, invitation), 32 bytes; None once it was taken.
    invite_digest: bytes | None = None
    invite_expires_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: Written at most once a minute, so it may lag.
    last_seen_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
