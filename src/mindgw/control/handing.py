"""Rights that are handed on: nobody gives, or makes a key that has, what they do not have themselves.

Commands on the server's own disk may do everything: whoever can call them has the database.
"""

from msgspec import Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.core.access import Rights, Role
from mindgw.errors import BadRequest, Forbidden, NotFound
from mindgw.store import access, keys
from mindgw.store.audit import Who
from mindgw.store.tables import Key, User

_TOO_HIGH = "role_too_high"


class Acting(Struct, frozen=True):
    """As what a key acts that somebody makes, changes or ends."""

    org_id: str
    user: User | None
    role: str | None
    team_id: str
    #: "" for one that is being made.
    key_id: str = ""


async def acting(session: AsyncSession, row: Key) -> Acting:
    """As what a key acts that is there."""
    user = await session.get(User, row.user_id) if row.user_id else None
    return Acting(row.org_id, user, row.role, row.team_id or "", row.id)


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
    """Whether somebody may change what a person with these rights is: only whoever stands above all their roles may, those in one team
    too, and may do all that they may. Raises Forbidden."""
    if isinstance(who, Principal) and not kernel.stands_above(who.rights, rights):
        raise Forbidden("Only somebody with a higher role, who may do all that this person may, may do that.", code=_TOO_HIGH)


def check_lasting(who: Who | str) -> None:
    """Whether somebody may make a credential that outlives their own: a pass makes none. Raises Forbidden."""
    if isinstance(who, Principal) and who.by_pass:
        raise Forbidden("This takes the session itself, not a token made from it.", code="session_required")


async def check_named(session: AsyncSession, org_id: str, role: str | None) -> None:
    """Raises BadRequest for a role that is not there."""
    if role is None:
        return
    try:
        await access.role(session, org_id, role)
    except NotFound as wrong:
        raise BadRequest(wrong.message, param="role", hint=wrong.hint) from None


async def check_strength(session: AsyncSession, who: Who | str, key: Acting) -> None:
    """Whether somebody may touch a key that acts so: it can do nothing that they cannot, nor could once its person may more. Raises
    Forbidden."""
    if not isinstance(who, Principal):
        return
    rights = await access.rights(session, key.org_id, key.user, key.role)
    mine = who.rights
    good = rights.rank <= mine.rank and rights.highest <= mine.highest and kernel.contains(mine, rights)
    if key.role is not None:
        named = (await access.roles(session, key.org_id, [key.role]))[key.role]
        good = good and named.rank <= mine.highest and not named.mask & ~mine.somewhere
    if not good:
        raise Forbidden("This key could do more than whoever touches it.", code=_TOO_HIGH)


async def check_acting(session: AsyncSession, who: Who | str, key: Acting, verb: str) -> None:
    """Whether somebody may hold a key that acts so: as `check_strength`; to act for others takes the permission (`verb`, on keys) in the
    whole organisation; and what is said of their own models is said of the key. Raises Forbidden."""
    await check_strength(session, who, key)
    if not isinstance(who, Principal):
        return
    if key.user is None or key.user.id == who.user_id:
        await _check_models(session, who, key)
    else:
        check_others(who, verb)


def check_others(who: Who | str, verb: str) -> None:
    """Whether somebody may hold keys of other people. Raises Forbidden."""
    if isinstance(who, Principal) and not who.may(verb, "keys"):
        raise Forbidden(f"A key of somebody else takes the permission {verb}:keys in the whole organisation.", code="not_yours")


async def _check_models(session: AsyncSession, who: Principal, key: Acting) -> None:
    """Raises Forbidden when a rule about whoever makes the key would be none about the key; whoever may lift all rules is not held."""
    if who.rights.rank >= kernel.TOP and who.may("delete", "access"):
        return
    held = await keys.held(session, who.key_id) if who.key_id else None
    mine = access.subjects(who.rights, key_id=who.key_id, user_id=who.user_id, team_id=held.team_id if held is not None else "")
    rights = await access.rights(session, key.org_id, key.user, key.role)
    user_id = key.user.id if key.user is not None else ""
    its = access.subjects(rights, key_id=key.key_id, user_id=user_id, team_id=key.team_id)
    lost = await access.rules(session, key.org_id, set(mine) - set(its))
    if lost:
        raise Forbidden("This key would not be held to what is said of your models.", code="models_escaped", hint="make it your own")
