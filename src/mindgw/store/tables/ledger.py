"""What was used, one row a finished request. Rows are only ever added."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, Serial, UTCDateTime


class Usage(Row, table=True):
    """No foreign keys: a row of the ledger stays true when what it names is gone."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_key_id_started_at", "key_id", "started_at"),)

    id: int | None = Field(default=None, primary_key=True, sa_type=Serial)
    #: A request is counted once, however often its row is sent.
    request_id: str = Field(unique=True)
    key_id: str
    user_id: str | None = None
    team_id: str | None = None
    org_id: str
    #: As the engine calls it, after aliases.
    model: str
    #: Empty when no worker was reached.
    worker_id: str = ""
    #: Path of the door: /v1/chat/completions and so on.
    endpoint: str
    stream: bool = False
    #: HTTP status that the caller saw.
    status: int
    #: done, cancelled or failed.
    outcome: str
    error_code: str = ""
    prompt_tokens: int = Field(default=0, sa_type=Count)
    completion_tokens: int = Field(default=0, sa_type=Count)
    cached_tokens: int = Field(default=0, sa_type=Count)
    #: Who counted: engine, counted or estimated.
    source: str = ""
    queued_ms: int = 0
    #: Milliseconds from arrival to the first token; None when there was none.
    ttft_ms: int | None = None
    total_ms: int = 0
    bytes_out: int = Field(default=0, sa_type=Count)
    started_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
