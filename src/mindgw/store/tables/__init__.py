"""The tables; importing this package registers all of them in `metadata`."""

from mindgw.store.tables.audit import AuditEntry
from mindgw.store.tables.columns import Row, UTCDateTime
from mindgw.store.tables.dead_letters import DeadLetter
from mindgw.store.tables.epochs import Epoch, EpochWorker
from mindgw.store.tables.fleet import JoinToken, Worker
from mindgw.store.tables.keys import Key, KeyChange
from mindgw.store.tables.ledger import LedgerCommit, LedgerRow
from mindgw.store.tables.people import Org, Team, User
from mindgw.store.tables.queue import FlowCounter
from mindgw.store.tables.quotas import Budget, Lease, Quota
from mindgw.store.tables.receipts import Receipt, ReceiptHead
from mindgw.store.tables.replays import Replay

metadata = Row.metadata

__all__ = [
    "AuditEntry",
    "Budget",
    "DeadLetter",
    "Epoch",
    "EpochWorker",
    "FlowCounter",
    "JoinToken",
    "Key",
    "KeyChange",
    "Lease",
    "LedgerCommit",
    "LedgerRow",
    "Org",
    "Quota",
    "Receipt",
    "ReceiptHead",
    "Replay",
    "Team",
    "UTCDateTime",
    "User",
    "Worker",
    "metadata",
]
