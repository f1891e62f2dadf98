"""What became of requests: where that is kept, and the chores that write it down and take it away again."""

import asyncio
from collections.abc import Sequence
from functools import partial

from mindgw import metrics
from mindgw.clock import utcnow
from mindgw.config import Config
from mindgw.control import stories
from mindgw.gateway.story import Facts, Stories, written
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.store.database import Database

#: Seconds between writes of what is over, and between looks for what is too old to be kept.
FLUSH, MINUTE = 0.5, 60.0


def registry(config: Config, database: Database, counters: metrics.Counters) -> tuple[Stories | None, list[Chore], Chore]:
    """The registry, None where nothing is to be kept; what writes down what is over, and what takes old rows away."""
    settings = config.requests
    forgetting = Chore("forgetting old requests", MINUTE, lambda: stories.forget(database, settings, utcnow()))
    if not settings.keep_days:
        return None, [], forgetting
    kept = Stories(counters)
    append = all_but_the_bad(partial(stories.append, database), "story of a request", hidden={"document"})

    async def write(facts: Sequence[Facts]) -> None:
        await append(await asyncio.to_thread(written, facts))

    return kept, [Chore("writing what became of requests", FLUSH, partial(kept.flush, write))], forgetting
