"""Who changed what, and when. Rows are only ever added."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from mindgw.clock import utcnow
from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Count, Document, Row, UTCDateTime


class AuditEntry(Row, table=True):
    __tablename__ = "audit"

    id: str = Field(default_factory=new_id, primary_key=True)
    at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False, index=True)
    #: Id of the key that asked, "agent:<id>", or "local" for a command on the server's own disk.
    actor: str
    #: noun.verb, such as key.create or worker.remove.
    action: str
    #: Id of what was changed.
    object: str
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=Document, nullable=False)
    #: Its place among all of them, from 1 on, without gaps.
    seq: int = Field(sa_type=Count, unique=True, index=True)
    #: Organisation that it concerns; None: the whole installation.
    org_id: str | None = Field(default=None, index=True)
    #: Network address that the request came from, "" for none.
    address: str = ""
    #: ok or refused.
    outcome: str = "ok"
    #: Its link in the chain, see `core.chain`; None: older than the chain.
    hash: bytes | None = None


class AuditHead(Row, table=True):
    """Where the chain stood at the end of a day, signed."""

    __tablename__ = "audit_heads"

    #: 2026-11-21, in UTC.
    day: str = Field(primary_key=True)
    #: The last entry of that day.
    seq: int = Field(sa_type=Count)
    hash: bytes
    #: Of the server's identity key, over all of the above.
    signature: bytes
    #: When the entries up to here left the database for a file.
    archived_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
