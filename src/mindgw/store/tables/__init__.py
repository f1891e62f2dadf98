"""The tables; importing this package registers all of them in `metadata`."""

from mindgw.store.tables.audit import AuditEntry
from mindgw.store.tables.columns import Row, UTCDateTime
from mindgw.store.tables.dead_letters import DeadLetter
from mindgw.store.tables.fleet import JoinToken, Worker
from mindgw.store.tables.keys import Key
from mindgw.store.tables.ledger import Usage
from mindgw.store.tables.people import Org, Team, User
from mindgw.store.tables.queue import FlowCounter

metadata = Row.metadata

__all__ = [
    "AuditEntry",
    "DeadLetter",
    "FlowCounter",
    "JoinToken",
    "Key",
    "Org",
    "Team",
    "UTCDateTime",
    "Usage",
    "User",
    "Worker",
    "metadata",
]
