"""Sign-ins of people. The secret is never stored: only its keyed digest."""

from datetime import datetime

from sqlmodel import Field

from mindgw.clock import utcnow
from mindgw.store.tables.columns import Row, UTCDateTime


class Session(Row, table=True):
    __tablename__ = "sessions"

    #: The 10 base62 characters that stand in the secret itself, mgws_<id>_….
    id: str = Field(primary_key=True)
    user_id: str = Field(foreign_key="users.id", index=True)
    #: HMAC-SHA256(pepper, secret), 32 bytes.
    digest: bytes
    #: Which pepper made the digest.
    pepper_version: int = 1
    created_at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False)
    expires_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
    #: Written at most once a minute, so it may lag.
    last_seen_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: What its client calls itself.
    agent: str = ""
    #: By which identity it was made; empty: by an invitation.
    identity_id: str = Field(default="", index=True)
    #: Beyond this it is not good, however often the provider is asked; None: `expires_at` is the end.
    ends_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
