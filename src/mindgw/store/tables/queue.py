"""What the queue knows of its flows, kept over a restart."""

from datetime import datetime

from sqlmodel import Field

from mindgw.store.tables.columns import Row, UTCDateTime


class FlowCounter(Row, table=True):
    """How far a flow was ahead of those it stood with. Whoever is missing here is not ahead of anybody."""

    __tablename__ = "flow_counters"

    #: Names from the organisation down to the end user, a JSON array in ASCII.
    path: str = Field(primary_key=True)
    #: Weighted units, from 0 on.
    counter: float
    #: When the counter became what it is.
    updated_at: datetime = Field(sa_type=UTCDateTime, nullable=False, index=True)
