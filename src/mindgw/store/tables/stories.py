"""What became of each request, moment by moment."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, UTCDateTime


class Story(Row, table=True):
    """No foreign keys: what a story says stays true when what it names is gone. Nothing of a prompt or an answer is in it."""

    __tablename__ = "stories"
    __table_args__ = (Index("ix_stories_org_id_id", "org_id", "id"),)

    #: Sorts by the moment at which the request was over.
    id: str = Field(primary_key=True)
    request_id: str = Field(unique=True)
    org_id: str
    team_id: str | None = None
    user_id: str | None = None
    key_id: str
    #: Who stood behind a trusted proxy; empty: nobody.
    end_user: str = ""
    #: What was asked for, and what the worker that was asked last calls it.
    asked: str
    model: str
    #: That worker; empty: none was.
    worker_id: str = ""
    #: done, cancelled, failed or replayed, and the status that the caller saw with the code of the error.
    outcome: str
    status: int
    error_code: str = ""
    #: Times that it was sent to a worker.
    attempts: int = 0
    tokens_in: int = Field(default=0, sa_type=Count)
    tokens_out: int = Field(default=0, sa_type=Count)
    queued_ms: int = 0
    #: None: there was no first byte.
    ttft_ms: int | None = None
    total_ms: int = 0
    #: Tokens of the answer in a second, from its first one on; None: nobody knows.
    speed: float | None = None
    started_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    #: All else, see `store.stories.Document`; MessagePack.
    document: bytes
