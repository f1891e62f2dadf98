"""What was used, one row for what became of an attempt. Rows are only ever added: triggers refuse all else."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, Serial, UTCDateTime


class LedgerRow(Row, table=True):
    """No foreign keys: a row of the ledger stays true when what it names is gone."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("request_id", "attempt", "kind"),
        Index("ix_ledger_epoch_seq", "epoch", "seq"),
        *(Index(f"ix_ledger_{column}_day", column, "day") for column in ("key_id", "user_id", "team_id", "org_id", "model")),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=Serial)
    request_id: str
    #: Number of the attempt, from 1 on; 0: no worker was given it.
    attempt: int = 1
    #: settled: it is billed; estimated: billed without knowing; adjust: corrects what is billed, may be negative; wasted: an attempt
    #: that nobody pays for; refused: no worker was reached.
    kind: str = "settled"
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
    #: done, cancelled or failed; lease: no request, but what a server that is gone had reserved and nobody told of.
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
    #: Millionths of a dollar, and which prices said so; empty: there was no price.
    cost: int = Field(default=0, sa_type=Count)
    price_version: str = ""
    #: Tokens beyond what was reserved.
    over: int = Field(default=0, sa_type=Count)
    #: The UTC date that it is booked on, such as 2026-11-21; of a lease its window.
    day: str = Field(index=True)
    started_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
    #: The commit that it came with.
    epoch: int = Field(sa_type=Count)
    seq: int = Field(sa_type=Count)


class LedgerCommit(Row, table=True):
    """A batch of rows that were written in one transaction: a link of its epoch's chain."""

    __tablename__ = "ledger_commits"

    epoch: int = Field(primary_key=True, sa_type=Count)
    #: From 1 on, without a gap.
    seq: int = Field(primary_key=True, sa_type=Count)
    #: The link before and this one; see `core.chain`.
    prev: bytes
    hash: bytes
    #: Rows of it.
    entries: int
    #: What was offered with it but stood in the ledger already, so that the answer can be given again; MessagePack, or empty.
    known: bytes = b""
    committed_at: datetime = Field(sa_type=UTCDateTime, nullable=False)
