"""Refusals on their way into the audit log: counted at once, written a little later, never more than a bounded number of lines.

Every organisation is told of apart from all others, and from those whom nobody knows, so that nobody can crowd out a line about somebody
else's key.
"""

from collections.abc import Callable
from typing import Protocol

from mindgw import addresses, clock
from mindgw.control.principal import Principal
from mindgw.core.refusals import Kind, Refusals
from mindgw.store import audit
from mindgw.store.database import Database

#: What is recorded.
ACTION = "request.refuse"
#: Parts of a path that are told of, with the empty one before it: /v1/models, /api/v1/keys; and their longest.
DEPTH = {False: 3, True: 4}
LONGEST = 100


class Caller(Protocol):
    """Whose key it is."""

    @property
    def key_id(self) -> str: ...
    @property
    def org_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def user(self) -> str: ...


class Watch:
    """Of one server."""

    def __init__(self, database: Database, now: Callable[[], float] = clock.monotonic) -> None:
        self._database = database
        self._now = now
        self._strangers = Refusals()
        #: By organisation. Bounded: by those that exist.
        self._known: dict[str, Refusals] = {}

    def stranger(self, address: str, code: str) -> None:
        """A request without a good key, from this address; those of one network of IPv6 are one."""
        self._strangers.note(Kind("", addresses.network(address), code, ""))

    def known(self, who: Principal, code: str, what: str) -> None:
        """`who` may not do that: the permission that it takes."""
        self._note(Kind(who.actor, who.address, code, what, who.org_id, who.user_id, who.email))

    def key(self, caller: Caller, address: str, code: str, path: str) -> None:
        """A key is not good for this path, or not from this address."""
        what = "/".join(path.split("/")[: DEPTH[path.startswith("/api/")]])[:LONGEST]
        self._note(Kind(caller.key_id, address, code, what, caller.org_id, caller.user_id, caller.user))

    def _note(self, kind: Kind) -> None:
        if kind.org_id not in self._known:
            self._known[kind.org_id] = Refusals(kind.org_id)
        self._known[kind.org_id].note(kind)

    async def flush(self) -> None:
        """Writes what is due; to be called about once a second. What cannot be written is kept for the next time."""
        now = self._now()
        due = [(refusals, refusals.due(now)) for refusals in (*self._known.values(), self._strangers)]
        if not any(told for _, told in due):
            return
        written = False
        try:
            async with self._database.write() as session:
                for kind, count in (one for _, told in due for one in told):
                    await audit.refused(session, kind, ACTION, kind.what, code=kind.code, count=count)
            written = True
        finally:
            for refusals, told in () if written else due:
                refusals.keep(told)
