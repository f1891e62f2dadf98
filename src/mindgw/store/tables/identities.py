"""People whom an identity provider knows, and sign-ons that are under way."""

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from mindgw.clock import utcnow
from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Row, UTCDateTime


class Identity(Row, table=True):
    """By what a provider knows one of our users."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    #: The issuer, and what it never gives to anybody else; no address.
    issuer: str
    subject: str
    user_id: str = Field(foreign_key="users.id", index=True)
    #: Name of the provider in the settings when it was last seen.
    provider: str
    #: The key that requests count under which carry a token of the provider.
    key_id: str = Field(foreign_key="keys.id")
    #: When the newest token was made whose claims were taken over.
    claims_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    #: When the provider last vouched for them, by whatever means; None: not yet.
    vouched_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: The role that the provider has given them in the whole organisation, "" for none.
    role: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False)


class Ticket(Row, table=True):
    """That a sign-on was finished, so that it cannot be once more. Kept for as long as it could be tried."""

    __tablename__ = "tickets"

    id: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
