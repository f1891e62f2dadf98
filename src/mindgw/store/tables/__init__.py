"""The tables; importing this package registers all of them in `metadata`."""

from mindgw.store.tables.access import AccessRule, Rate, Role, RoleBinding
from mindgw.store.tables.audit import AuditEntry, AuditHead
from mindgw.store.tables.columns import Row, UTCDateTime
from mindgw.store.tables.dead_letters import DeadLetter
from mindgw.store.tables.epochs import Epoch, EpochWorker
from mindgw.store.tables.fleet import JoinToken, Worker
from mindgw.store.tables.identities import Departure, Identity, Ticket
from mindgw.store.tables.keys import Key, KeyChange
from mindgw.store.tables.ledger import LedgerCommit, LedgerRow
from mindgw.store.tables.people import Org, Team, User
from mindgw.store.tables.queue import FlowCounter
from mindgw.store.tables.quotas import Budget, Lease, Quota
from mindgw.store.tables.receipts import Receipt, ReceiptHead
from mindgw.store.tables.replays import Replay
from mindgw.store.tables.routes import Route
from mindgw.store.tables.series import SeriesBlock
from mindgw.store.tables.sessions import Session
from mindgw.store.tables.stories import Story

metadata = Row.metadata

__all__ = [
    "AccessRule",
    "AuditEntry",
    "AuditHead",
    "Budget",
    "DeadLetter",
    "Departure",
    "Epoch",
    "EpochWorker",
    "FlowCounter",
    "Identity",
    "JoinToken",
    "Key",
    "KeyChange",
    "Lease",
    "LedgerCommit",
    "LedgerRow",
    "Org",
    "Quota",
    "Rate",
    "Receipt",
    "ReceiptHead",
    "Replay",
    "Role",
    "RoleBinding",
    "Route",
    "SeriesBlock",
    "Session",
    "Story",
    "Team",
    "Ticket",
    "UTCDateTime",
    "User",
    "Worker",
    "metadata",
]
