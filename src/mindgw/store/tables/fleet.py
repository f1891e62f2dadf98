"""GPU boxes and the tokens that let them in."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Document, UTCDateTime, Versioned

_PRESENT = text("state_admin <> 'removed'")


class JoinToken(Versioned, table=True):
    __tablename__ = "join_tokens"

    #: The token's 8-byte id in hex.
    id: str = Field(primary_key=True)
    #: Public half of the Ed25519 key whose seed is the token's secret, 32 bytes.
    public_key: bytes
    #: The only worker name it is good for; None: any.
    name_bind: str | None = None
    #: "auto": the worker is active at once; "manual": it waits for an approval.
    approve: str = "auto"
    max_uses: int = 1
    uses: int = 0
    expires_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    revoked_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: Id of the key or user that made it; empty: made on the server's own disk.
    created_by: str = ""


class Worker(Versioned, table=True):
    __tablename__ = "workers"
    __table_args__ = (
        # a name is free again once its worker was removed
        Index("uq_workers_name", "name", unique=True, sqlite_where=_PRESENT, postgresql_where=_PRESENT),
    )

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str
    #: Ed25519 public key of the agent, 32 bytes.
    public_key: bytes
    #: What is said of it: pending, active, quarantined, locked or removed.
    state_admin: str = "active"
    #: Whether an operator wants it to take nothing new, whatever else is said of it.
    drained: bool = False
    #: Why it is quarantined, locked or removed, for people.
    reason: str = ""
    #: Number of its latest session; grows by one with every connect.
    epoch: int = Field(default=0)
    #: Models of its last report, as the wire's `Model` objects.
    models: list[dict[str, Any]] = Field(default_factory=list, sa_type=Document, nullable=False)
    #: Engines of its last report: kind, version and url of the first one; `engines`: those of each, its id and its models' ids.
    engine: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)
    hostname: str = ""
    software: str = ""
    #: What an operator says of it, such as {"zone": "lab"}; its agent has no say in that.
    tags: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)
    last_seen_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
