"""Who changed what, and when. Rows are only ever added."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from mindgw.clock import utcnow
from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Document, Row, UTCDateTime


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
