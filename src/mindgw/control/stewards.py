"""Who looks after an organisation: its administrators, of whom there is always one left who can let others in."""

from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control.principal import Principal
from mindgw.core.access import ADMIN
from mindgw.errors import Conflict
from mindgw.store.tables import Org, RoleBinding, User
from mindgw.store.users import ACTIVE, INVITED

HINT = "make somebody else an administrator first: `mindgw roles bind admin EMAIL`"


async def spare(session: AsyncSession, who: Principal, row: User) -> None:
    """To be asked before a locked user is no longer an administrator, or no longer let in. Raises Conflict for the last one of an
    organisation, unless who asks runs the server. Nobody else of the organisation is taken away until the transaction ends."""
    if who.is_home or not await _are(session, col(User.id) == row.id):
        return
    await session.exec(select(Org.id).where(Org.id == row.org_id).with_for_update())
    others = col(User.id) != row.id, col(User.org_id) == row.org_id, col(User.state).in_((ACTIVE, INVITED)), col(User.service).is_(False)
    if not await _are(session, *others):
        raise Conflict(f"{row.email} is the last administrator of this organisation.", code="last_admin", hint=HINT)


async def _are(session: AsyncSession, *where: object) -> bool:
    """Whether any of these users is an administrator of the whole organisation."""
    bound = select(RoleBinding.user_id).where(RoleBinding.role == ADMIN, col(RoleBinding.team_id).is_(None))
    wanted = select(User.id).where(*where, or_(col(User.role) == ADMIN, col(User.id).in_(bound)))  # type: ignore[arg-type]
    return (await session.exec(wanted.limit(1))).first() is not None
