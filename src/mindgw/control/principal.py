"""Who manages: the person or the key behind a request to the management API, and what they may see and do."""

from msgspec import Struct

from mindgw.core.access import NOTHING, Rights


class Principal(Struct, frozen=True, kw_only=True):
    """Somebody who was let in."""

    #: The organisation whose objects alone this principal can see.
    org_id: str
    #: Whether that is the one that runs the server, and so what all organisations share.
    is_home: bool
    rights: Rights = NOTHING
    #: "" for a key that belongs to nobody.
    user_id: str = ""
    #: One of both is empty.
    key_id: str = ""
    session_id: str = ""
    #: Network address that the request came from, "" for none.
    address: str = ""

    @property
    def actor(self) -> str:
        """Id of the key or session that asks, as the audit log has it."""
        return self.key_id or self.session_id
