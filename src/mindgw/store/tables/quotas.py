"""Limits, what is used of them, and which process has how much of them on loan."""

from sqlalchemy import CheckConstraint
from sqlmodel import Field

from mindgw.store.tables.columns import Count, Row, Versioned


class Quota(Versioned, table=True):
    """A limit that somebody has set."""

    __tablename__ = "quotas"

    #: key:ID, user:ID, team:ID, org:ID or model:NAME.
    scope: str = Field(primary_key=True)
    #: tokens, or usd: millionths of a dollar.
    unit: str = Field(primary_key=True)
    #: day, month or total.
    period: str = Field(primary_key=True)
    lim: int = Field(sa_type=Count)
    #: block, soft, queue-low, alert or shadow.
    on_exceed: str = "block"


class Budget(Row, table=True):
    """A quota in one window. `used + forgiven` is the sum of the billed rows of the ledger, `reserved` that of the leases."""

    __tablename__ = "budgets"
    __table_args__ = tuple(CheckConstraint(f'"{column}" >= 0', name=column) for column in ("used", "reserved", "over", "forgiven"))

    scope: str = Field(primary_key=True)
    unit: str = Field(primary_key=True)
    #: 2026-11-21, 2026-11 or total.
    window: str = Field(primary_key=True)
    period: str
    lim: int = Field(sa_type=Count)
    used: int = Field(default=0, sa_type=Count)
    reserved: int = Field(default=0, sa_type=Count)
    #: How far used and reserved went beyond the limit: what was used without being reserved, or a limit that was lowered.
    over: int = Field(default=0, sa_type=Count)
    #: What was used before the budget was reset.
    forgiven: int = Field(default=0, sa_type=Count)


class Lease(Row, table=True):
    """What one process may use of a budget without asking."""

    __tablename__ = "leases"
    __table_args__ = (CheckConstraint("amount >= 0", name="amount"),)

    epoch: int = Field(primary_key=True, sa_type=Count)
    scope: str = Field(primary_key=True)
    unit: str = Field(primary_key=True)
    window: str = Field(primary_key=True)
    amount: int = Field(sa_type=Count)
