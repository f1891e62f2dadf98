"""What workers measured, over time."""

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from mindgw.store.tables.columns import Row


class SeriesBlock(Row, table=True):
    """A stretch of one worker's measurements, see `core.series`."""

    __tablename__ = "series_blocks"
    #: What is too old to be kept as it is.
    __table_args__ = (Index("ix_series_blocks_step_start", "step", "start"),)

    worker_id: str = Field(primary_key=True)
    #: Seconds between two values: 10 as they were measured, 3600 as they were summed up.
    step: int = Field(primary_key=True)
    #: Unix seconds of its first value.
    start: int = Field(primary_key=True, sa_type=BigInteger)
    data: bytes
