"""Who manages: the person or the key behind a request to the management API, and what they may see and do."""

from msgspec import Struct
from sqlmodel import col, select

from mindgw.core.access import NOTHING, Rights
from mindgw.store.database import Database
from mindgw.store.tables import Org


class Principal(Struct, frozen=True, kw_only=True):
    """Somebody who was let in."""

    #: The organisation whose objects alone this principal can see.
    org_id: str
    #: Whether that is the one that runs the server, and so what all organisations share.
    is_home: bool
    rights: Rights = NOTHING
    #: "" for a key that belongs to nobody.
    user_id: str = ""
    #: Their address.
    email: str = ""
    #: One of both is empty.
    key_id: str = ""
    session_id: str = ""
    #: Whether it came with a pass, which stands for the session for a while.
    by_pass: bool = False
    #: Network address that the request came from, "" for none.
    address: str = ""

    @property
    def actor(self) -> str:
        """Id of the key or session that asks, as the audit log has it."""
        return self.key_id or self.session_id

    def may(self, verb: str, resource: str, *, team: bool = False) -> bool:
        """Whether they may do that in the whole organisation; with `team`, whether they may in one of its teams at least. Raises KeyError
        for what is no permission."""
        return self.rights.may(verb, resource) or (team and bool(self.rights.teams_where(verb, resource)))

    def teams(self, verb: str, resource: str) -> frozenset[str] | None:
        """Ids of the teams in which they may do that; None: in all of them, and with what belongs to none."""
        return None if self.rights.may(verb, resource) else self.rights.teams_where(verb, resource)


class Home:
    """Which organisation runs the server: the first that there was."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._id = ""

    async def id(self) -> str:
        """ "" as long as there is none. Asks the database once."""
        if not self._id:
            first = select(Org.id).order_by(col(Org.created_at), col(Org.id)).limit(1)
            async with self._database.read() as session:
                self._id = (await session.exec(first)).first() or ""
        return self._id
