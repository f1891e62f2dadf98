"""Rights that are handed on: nobody gives, or makes a key that has, what they do not have themselves.

Commands on the server's own disk may do everything: whoever can call them has the database.
"""

from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.core.access import Rights, Role
from mindgw.errors import BadRequest, Forbidden, NotFound
from mindgw.store import access
from mindgw.store.audit import Who
from mindgw.store.tables import User

_TOO_HIGH = "role_too_high"


def check_role(who: Who | str, role: Role) -> None:
    """Whether somebody may give, take or change this role: theirs is strictly higher, and they may do all that it permits. Raises
    Forbidden."""
    if not isinstance(who, Principal):
        return
    if not kernel.outranks(who.rights.rank, role.rank):
        raise Forbidden(f"Only a role above {role.name} ({role.rank}) gives it, takes it away or changes it.", code=_TOO_HIGH)
    if not kernel.covers(who.rights, role):
        raise Forbidden(f"The role {role.name} permits what yours does not: nobody hands on what they do not have.", code=_TOO_HIGH)


def check_person(who: Who | str, rights: Rights) -> None:
    """Whether somebody may change what a person with these rights is: only whoever stands above them may. Raises Forbidden."""
    if isinstance(who, Principal) and not kernel.outranks(who.rights.rank, rights.rank):
        raise Forbidden("Only somebody with a higher role may do that to this person.", code=_TOO_HIGH)


async def check_acting(session: AsyncSession, who: Who | str, org_id: str, user: User | None, role: str | None) -> None:
    """Whether somebody may make a key that acts so. Raises BadRequest for a role that is not there, Forbidden for one with more rights than
    whoever makes the key has."""
    if role is not None:
        try:
            await access.role(session, org_id, role)
        except NotFound as wrong:
            raise BadRequest(wrong.message, param="role", hint=wrong.hint) from None
    if not isinstance(who, Principal):
        return
    rights = await access.rights(session, org_id, user, role)
    more = rights.mask | sum_of(rights.teams)
    if rights.rank > who.rights.rank or more & ~who.rights.mask:
        raise Forbidden("This key could do more than whoever makes it.", code=_TOO_HIGH)


def sum_of(teams: tuple[tuple[str, int], ...]) -> int:
    """All bits that hold in some team."""
    bits = 0
    for _, mask in teams:
        bits |= mask
    return bits
