"""What agents say that they delivered, as they signed it."""

from datetime import datetime

from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, UTCDateTime


class Receipt(Row, table=True):
    """What an agent delivered in one attempt: a link of the chain of its receipts."""

    __tablename__ = "receipts"

    worker_id: str = Field(primary_key=True)
    #: From 1 on, without a gap.
    seq: int = Field(primary_key=True, sa_type=Count)
    #: The billing tag, sealed as it was: the link is made of it.
    tag: bytes = b""
    request_id: str = Field(index=True)
    attempt: int
    #: done, cancelled or failed.
    outcome: str
    prompt: int = Field(sa_type=Count)
    completion: int = Field(sa_type=Count)
    cached: int = Field(default=0, sa_type=Count)
    #: Who counted: engine, counted or estimated.
    source: str
    #: What it wrote to its tunnel.
    events: int = Field(default=0, sa_type=Count)
    bytes_out: int = Field(default=0, sa_type=Count)
    #: The link before and this one.
    prev: bytes
    hash: bytes
    #: By the agent's clock.
    at: datetime = Field(sa_type=UTCDateTime, nullable=False)


class ReceiptHead(Row, table=True):
    """The signed end of a batch of receipts: it vouches for all before it."""

    __tablename__ = "receipt_heads"

    worker_id: str = Field(primary_key=True)
    #: Number of the last receipt that it covers.
    seq: int = Field(primary_key=True, sa_type=Count)
    hash: bytes
    #: Of the node's key.
    signature: bytes
    received_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
