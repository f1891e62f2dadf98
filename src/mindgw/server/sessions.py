"""Sessions in the application: who looks them up, what is written of them beside the requests."""

from datetime import timedelta
from typing import NamedTuple

from mindgw.clock import utcnow
from mindgw.config import Config
from mindgw.control.identify import ByKey, Identity, Strangers
from mindgw.control.passes import Passes
from mindgw.control.secrets import Secrets
from mindgw.control.sessions import Sessions
from mindgw.server.chores import Chore
from mindgw.store import sessions
from mindgw.store.database import Database

#: Seconds between writes of when sessions were seen, and between looks for those that are long over.
NOTE, LOOK = 5.0, 3600.0
#: For how long a session that has ended can still be looked at.
KEPT = timedelta(days=30)


class People(NamedTuple):
    """Who comes to the management API."""

    sessions: Sessions
    identity: Identity
    #: What notes when sessions were seen, and forgets those that ended long ago.
    chores: list[Chore]


def registry(config: Config, secrets: Secrets, database: Database, by_key: ByKey, strangers: Strangers) -> People:
    """The sessions of the database, beside the keys that `by_key` knows."""
    known = Sessions(database, {1: secrets.pepper}, Passes(secrets.signing, secrets.fingerprint), config.sessions.keep)

    async def forget() -> None:
        async with database.write() as session:
            await sessions.forget(session, utcnow() - KEPT)

    chores = [Chore("noting when sessions were seen", NOTE, known.flush), Chore("forgetting old sessions", LOOK, forget)]
    return People(known, Identity(by_key, known, strangers), chores)
