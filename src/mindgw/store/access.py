"""Who may do what, as it is stored: roles that people have made, who has which, and which models are for whom."""

from collections.abc import Iterable, Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import access
from mindgw.core.access import Models, Rights, Rule
from mindgw.errors import Conflict, NotFound
from mindgw.store import rows
from mindgw.store.tables import AccessRule, Key, Role, RoleBinding, User

#: What helps who has named a role, or a rule, that is not there.
SEE = "`mindgw roles list` shows them all"
_SEE_RULES = "`mindgw models access list` shows them all"
#: Most rules of one organisation: all that are about somebody are looked at when they ask.
MOST_RULES = 1000


# -- roles -------------------------------------------------------------------------------------------------------------


async def custom(session: AsyncSession, org_id: str) -> Sequence[Role]:
    """The roles that an organisation has made, the highest first."""
    own = col(Role.org_id) == org_id
    return (await session.exec(select(Role).where(own).order_by(col(Role.rank).desc(), col(Role.name)))).all()


async def roles(session: AsyncSession, org_id: str, names: Iterable[str]) -> dict[str, access.Role]:
    """Name -> role. One that is not there any more permits nothing."""
    wanted = set(names)
    found = {name: access.BUILT_IN.get(name) or access.Role(name, 0, 0) for name in wanted}
    own = wanted - access.BUILT_IN.keys()
    if own:
        made = await session.exec(select(Role).where(col(Role.org_id) == org_id, col(Role.name).in_(own)))
        found |= {row.name: as_role(row) for row in made.all()}
    return found


def as_role(row: Role) -> access.Role:
    """What stands in a row."""
    return access.Role(row.name, row.rank, access.known(row.permissions))


async def find(session: AsyncSession, org_id: str, name: str, *, lock: bool = False) -> Role:
    """A role that the organisation has made; with `lock` nobody else changes it until the transaction ends. Raises NotFound."""
    wanted = select(Role).where(col(Role.org_id) == org_id, col(Role.name) == name)
    row = (await session.exec(wanted.with_for_update() if lock else wanted)).first()
    if row is None:
        raise NotFound(f"There is no role {name[:80]!r}.", hint=SEE)
    return row


async def role(session: AsyncSession, org_id: str, name: str) -> access.Role:
    """A role, built in or made. Raises NotFound."""
    return access.BUILT_IN.get(name) or as_role(await find(session, org_id, name))


async def create(session: AsyncSession, wanted: Role) -> Role:
    """Raises Conflict when there is one of this name."""
    if wanted.name in access.BUILT_IN:
        raise Conflict(f"The role {wanted.name!r} is built in.", code="role_exists")
    await session.exec(rows.insert_once(session, Role).values(**wanted.model_dump()))
    row = await find(session, wanted.org_id or "", wanted.name)
    if row.id != wanted.id:
        raise Conflict(f"There is a role {wanted.name!r} already.", code="role_exists", hint=SEE)
    return row


async def in_use(session: AsyncSession, org_id: str, name: str) -> bool:
    """Whether anybody has the role, or a rule names it."""
    asked = (
        select(User.id).where(col(User.org_id) == org_id, col(User.role) == name),
        select(RoleBinding.id).join(User, col(User.id) == RoleBinding.user_id).where(col(User.org_id) == org_id, RoleBinding.role == name),
        select(Key.id).where(col(Key.org_id) == org_id, col(Key.role) == name, col(Key.revoked_at).is_(None)),
        select(AccessRule.id).where(col(AccessRule.org_id) == org_id, AccessRule.subject == f"role:{name}"),
    )
    for query in asked:
        if (await session.exec(query.limit(1))).first() is not None:
            return True
    return False


# -- who has which -----------------------------------------------------------------------------------------------------


async def bindings(session: AsyncSession, user_ids: Iterable[str]) -> Sequence[RoleBinding]:
    """Roles that these users have beside those in their own rows, in the order of their making."""
    mine = col(RoleBinding.user_id).in_(set(user_ids))
    return (await session.exec(select(RoleBinding).where(mine).order_by(col(RoleBinding.created_at), col(RoleBinding.id)))).all()


async def bind(session: AsyncSession, user_id: str, name: str, team_id: str | None) -> bool:
    """Gives a role; False when the user has it already. The caller holds the user's row."""
    if any((row.role, row.team_id) == (name, team_id) for row in await bindings(session, [user_id])):
        return False
    session.add(RoleBinding(user_id=user_id, role=name, team_id=team_id))
    await session.flush()
    return True


async def unbind(session: AsyncSession, user_id: str, name: str, team_id: str | None) -> bool:
    """Takes a role away; False when there was none to take. The caller holds the user's row."""
    mine = [row for row in await bindings(session, [user_id]) if (row.role, row.team_id) == (name, team_id)]
    for row in mine:
        await session.delete(row)
    await session.flush()
    return bool(mine)


async def rights(session: AsyncSession, org_id: str, user: User | None, acting: str | None = None) -> Rights:
    """What somebody may do. A key that acts with a role of its own may do what that role permits and, where it is somebody's, its user
    may, too; other keys, and sessions, may do what their user may; a key that is nobody's and has no role is a user's."""
    if user is None:
        name = acting or access.USER
        return access.combine([((await roles(session, org_id, [name]))[name], None)])
    held: list[tuple[str, str | None]] = [(user.role, None)]
    held += [(row.role, row.team_id) for row in await bindings(session, [user.id])]
    known = await roles(session, org_id, [name for name, _ in held] + [name for name in [acting] if name])
    theirs = access.combine((known[name], team) for name, team in held)
    return access.narrowed(theirs, known[acting]) if acting else theirs


# -- models ------------------------------------------------------------------------------------------------------------


def subjects(rights: Rights, *, key_id: str = "", user_id: str = "", team_id: str = "") -> list[str]:
    """All that somebody is to a rule: a key with a role of its own is held to what is said of its person's roles, too."""
    ids = {"key": key_id, "user": user_id, "team": team_id}
    return [
        *(f"role:{name}" for name in dict.fromkeys((*rights.roles, *rights.behind))),
        *(f"{kind}:{id}" for kind, id in ids.items() if id),
    ]


async def rules(session: AsyncSession, org_id: str, about: Iterable[str] | None = None) -> Sequence[AccessRule]:
    """The rules of an organisation in the order of their making; those about some subjects alone."""
    where = [col(AccessRule.org_id) == org_id, *([] if about is None else [col(AccessRule.subject).in_(set(about))])]
    return (await session.exec(select(AccessRule).where(*where).order_by(col(AccessRule.created_at), col(AccessRule.id)))).all()


async def models(session: AsyncSession, org_id: str, about: Iterable[str]) -> Models | None:
    """Which models somebody may use who is all of these subjects; None: all."""
    return access.compile_models(as_rule(row) for row in await rules(session, org_id, about))


def as_rule(row: AccessRule) -> Rule:
    """What stands in a row."""
    return Rule(row.id, row.subject, row.effect == "allow", row.pattern)


async def add_rule(session: AsyncSession, wanted: AccessRule) -> AccessRule:
    """The rule that says so; there is one, however often it is made. Raises Conflict when there are too many."""
    if len(await rules(session, wanted.org_id)) >= MOST_RULES:
        raise Conflict(f"There are {MOST_RULES} rules already.", code="too_many_rules", hint="globs such as llama* say more with fewer")
    await session.exec(rows.insert_once(session, AccessRule).values(**wanted.model_dump()))
    fields = ("org_id", "subject", "effect", "pattern")
    same = [col(getattr(AccessRule, field)) == getattr(wanted, field) for field in fields]
    return (await session.exec(select(AccessRule).where(*same))).one()


async def drop_rule(session: AsyncSession, org_id: str, rule_id: str) -> AccessRule:
    """Takes a rule away; returns it as it was. Raises NotFound."""
    found = (await session.exec(select(AccessRule).where(col(AccessRule.org_id) == org_id, col(AccessRule.id) == rule_id))).first()
    if found is None:
        raise NotFound(f"There is no rule {rule_id[:80]!r}.", hint=_SEE_RULES)
    await session.delete(found)
    await session.flush()
    return found
