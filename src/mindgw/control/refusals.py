"""Refusals on their way into the audit log: counted at once, written a little later, never more than a bounded number of lines.

Whoever is known is told of apart from those who are not, so that nobody without a key can crowd out a line about somebody with one.
"""

from collections.abc import Callable

from mindgw import clock
from mindgw.control.principal import Principal
from mindgw.core.refusals import Kind, Refusals
from mindgw.store import audit
from mindgw.store.database import Database

#: What is recorded.
ACTION = "request.refuse"


class Watch:
    """Of one server."""

    def __init__(self, database: Database, now: Callable[[], float] = clock.monotonic) -> None:
        self._database = database
        self._now = now
        self._strangers = Refusals()
        self._known = Refusals()

    def stranger(self, address: str, code: str) -> None:
        """A request without a good key, from this address."""
        self._strangers.note(Kind("", address, code, ""))

    def known(self, who: Principal, code: str, what: str) -> None:
        """`who` may not do that: a method and the pattern of a path."""
        self._known.note(Kind(who.actor, who.address, code, what, who.org_id))

    async def flush(self) -> None:
        """Writes what is due; to be called about once a second. What cannot be written is kept for the next time."""
        now = self._now()
        due = [(refusals, refusals.due(now)) for refusals in (self._known, self._strangers)]
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
