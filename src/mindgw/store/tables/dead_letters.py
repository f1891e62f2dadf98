"""Requests that failed for good."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from mindgw.store.tables.columns import Count, Document, Row, UTCDateTime


class DeadLetter(Row, table=True):
    """No foreign keys: what a letter says stays true when what it names is gone."""

    __tablename__ = "dead_letters"

    #: Sorts by the moment of the failure.
    id: str = Field(primary_key=True)
    #: A request leaves one letter, however often it is sent.
    request_id: str = Field(unique=True)
    key_id: str
    user_id: str | None = None
    team_id: str | None = None
    org_id: str
    #: Who stood behind a trusted proxy; empty: nobody.
    end_user: str = ""
    model: str
    #: Path of the door: /v1/chat/completions and so on.
    endpoint: str
    stream: bool = False
    #: Whose fault it was: fleet, engine or gateway.
    fault: str
    #: HTTP status of the error, and what it says.
    status: int
    code: str
    message: str
    #: Workers that were tried, oldest first, each with what became of it: `{"worker": id, "outcome": code}`.
    attempts: list[dict[str, Any]] = Field(default_factory=list, sa_type=Document, nullable=False)
    started_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    failed_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
    queued_ms: int = 0
    total_ms: int = 0
    #: Bytes of its body.
    size: int = Field(default=0, sa_type=Count)
    #: Why the body is not kept: off, too_large or crowded; empty: it is.
    body_note: str = ""
    #: The body, encrypted; see `control.sealing`.
    sealed: bytes | None = None
    #: How often it was run again, and when last; the code of what went wrong then, empty: nothing did.
    retries: int = 0
    retried_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    retry_code: str = ""
