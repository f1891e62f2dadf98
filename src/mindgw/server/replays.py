"""Requests with an Idempotency-Key: their registry, and the chores that keep the database up with it."""

import asyncio
from collections.abc import Sequence
from functools import partial

from mindgw.clock import utcnow
from mindgw.config import Config
from mindgw.control import replays
from mindgw.control.sealing import REPLAYS, Safe
from mindgw.control.secrets import Secrets
from mindgw.gateway.replay import Replay
from mindgw.server import problems
from mindgw.server.chores import Chore, all_but_the_bad
from mindgw.store.database import Database

#: Seconds between writes of what is over, and between looks for what is too old to be kept.
FLUSH, MINUTE = 0.5, 60.0


def registry(config: Config, secrets: Secrets, database: Database) -> tuple[Replay, Chore, Chore]:
    """The registry, what writes down what is over, and what takes old rows away."""
    settings, safe = config.idempotency, Safe(secrets.sealing, REPLAYS)
    replay = Replay(settings, secrets.replay_key, partial(replays.find, database, safe, settings), problems.body)
    append = all_but_the_bad(partial(replays.append, database, settings), "row of an answer", hidden={"identity", "fingerprint", "sealed"})

    async def write(sent: Sequence[replays.Sent]) -> None:
        await append(await asyncio.to_thread(replays.seal, safe, sent))

    writing = Chore("writing answers to be repeated", FLUSH, partial(replay.flush, write))
    forgetting = Chore("forgetting old answers", MINUTE, lambda: replays.forget(database, settings, utcnow()))
    return replay, writing, forgetting
