"""Runs of server processes, and the workers that were linked to each."""

from datetime import datetime

from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, Serial, UTCDateTime


class Epoch(Row, table=True):
    """One run of one process: it owns leases and writes a chain of the ledger."""

    __tablename__ = "epochs"

    id: int | None = Field(default=None, primary_key=True, sa_type=Serial)
    #: The data directory that it runs on: of one directory only one process runs at a time.
    instance: str
    started_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    #: When it last said that it lives.
    beat_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    #: When it had no lease any more: it ended well, or all that it left was recovered.
    ended_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    #: What its chain starts from: the last link of another epoch's, or the genesis of all (0, 0).
    genesis: bytes
    after_epoch: int = Field(default=0, sa_type=Count)
    after_seq: int = Field(default=0, sa_type=Count)
    #: Last link of its own chain, `genesis` when there is none.
    head: bytes
    head_seq: int = Field(default=0, sa_type=Count)
    #: Number of the last time that it gave something back: what is said twice is done once.
    returns: int = Field(default=0, sa_type=Count)


class EpochWorker(Row, table=True):
    """A worker that was linked in an epoch: it may have receipts of it."""

    __tablename__ = "epoch_workers"

    epoch: int = Field(primary_key=True, sa_type=Count)
    worker_id: str = Field(primary_key=True)
    #: When all its receipts of that time were in the ledger.
    cleared_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
