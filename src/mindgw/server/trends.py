"""What workers measure: who notes it, and the chores that write it down and sum it up."""

from functools import partial

from mindgw.clock import utcnow, wall
from mindgw.control import trends
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.trends import STEP, Trends
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.store.database import Database

#: Seconds after which what was measured is written: a server that is killed loses as much of it.
RARELY = 600.0
MINUTE = 60.0


def registry(database: Database, fleet: Fleet) -> tuple[Trends, Chore, list[Chore]]:
    """Who notes it, what must be done once more at the end, and what must not."""
    noted = Trends(fleet, wall)
    keep = all_but_the_bad(partial(trends.keep, database), "stretch of measurements", hidden={"data"})
    others = [
        Chore("noting how workers are", STEP / 2, noted.sample),  # twice a step, or one would be left out now and then
        Chore("summing up old measurements", MINUTE, lambda: trends.forget(database, utcnow())),
    ]
    return noted, Chore("writing what was measured", RARELY, lambda: noted.flush(keep)), others
