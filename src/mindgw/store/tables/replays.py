"""Requests with an Idempotency-Key that are over."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from mindgw.store.tables.columns import Row, UTCDateTime


class Replay(Row, table=True):
    """How one ended, so that it can be answered again without being run again."""

    __tablename__ = "replays"
    #: How many each key has, and which of them are the oldest.
    __table_args__ = (Index("ix_replays_key_id_done_at", "key_id", "done_at"),)

    #: Keyed digest of the API key's id, the path and the Idempotency-Key, which itself is not stored.
    identity: bytes = Field(primary_key=True)
    key_id: str
    #: The request that was run.
    request_id: str
    #: Keyed digest of its body.
    fingerprint: bytes
    #: HTTP status of the answer, and the code of the error, empty when it was none.
    status: int
    code: str = ""
    #: json or sse.
    kind: str
    #: Why the answer is not kept: off, too_large or crowded; empty: it is.
    note: str = ""
    #: The answer, encrypted; see `control.sealing`.
    sealed: bytes | None = None
    done_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
