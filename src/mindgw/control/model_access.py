"""Which models are for whom, as management sees it: rules that allow and rules that deny. Every change is audited in its own transaction;
the running gateway hears of it when it is on the disk."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta, Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import handing, scopes
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.core import access as kernel
from mindgw.core.access import Rights
from mindgw.errors import BadRequest, NotFound, PreconditionFailed
from mindgw.store import access, audit, tenants, users
from mindgw.store.database import Database
from mindgw.store.tables import AccessRule, Key, User

KINDS = ("role", "team", "user", "key")
_WRITTEN = "A rule is about role:NAME, team:NAME, user:EMAIL or key:ID"

#: Told that who may use what has changed.
News = Callable[[], None]


class RuleView(Struct, frozen=True, kw_only=True):
    """A rule."""

    id: str
    #: As people write it: role:NAME, team:NAME, user:EMAIL or key:ID.
    subject: str
    #: allow or deny.
    effect: str
    #: A glob over the names of models.
    pattern: str
    created_at: datetime


class RuleWish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rule to be made says. Whoever is allowed some models may use no others; what is denied is denied, whatever allows it."""

    subject: Annotated[str, Meta(min_length=1, max_length=scopes.MAX)]
    effect: Literal["allow", "deny"]
    #: `*` stands for any characters, `?` for one.
    pattern: Annotated[str, Meta(min_length=1, max_length=200)]


class ModelUse(Struct, frozen=True, kw_only=True):
    """Whether somebody may use a model."""

    user: str
    model: str
    allowed: bool
    #: Where the name is that of a route: the models that it leads to which they may use, in its order.
    models: list[str] = []
    #: The rule that says so; None: there is none that would have to, or, where it is not allowed, none that allows it.
    rule: RuleView | None
    #: In words.
    reason: str


async def listing(database: Database, subject: str | None = None) -> Page[RuleView]:
    """All rules in the order of their making, or those about one subject. Raises BadRequest, NotFound for a subject that is not there."""
    async with database.read() as session:
        org_id = await tenants.own(session)
        about = None if subject is None else [await _stored(session, org_id, subject)]
        return Page(await _views(session, await access.rules(session, org_id, about)))


async def add(database: Database, who: Principal, wish: RuleWish, told: News) -> RuleView:
    """Makes a rule; a second time there is still one. Raises BadRequest, NotFound, Conflict, Forbidden for a rule about a role, a person, a
    key or a team's keys that are not below who asks."""
    pattern = wish.pattern.strip()
    if not pattern or not pattern.isprintable():
        raise BadRequest("'pattern' must have printable characters.", param="pattern")
    async with database.write() as session:
        org_id = await tenants.own(session)
        subject = await _stored(session, org_id, wish.subject)
        await _check(session, who, org_id, subject)
        row = await access.add_rule(session, AccessRule(org_id=org_id, subject=subject, effect=wish.effect, pattern=pattern))
        await audit.record(session, who, "access.add", row.id, subject=subject, effect=row.effect, pattern=row.pattern)
        (view,) = await _views(session, [row])
    told()
    return view


async def remove(database: Database, who: Principal, rule_id: str, told: News, *, version: int | None = None) -> RuleView:
    """Takes a rule away. Raises NotFound, Forbidden as `add` does, PreconditionFailed: no rule is ever changed, so all
    are at version 1."""
    async with database.write() as session:
        org_id = await tenants.own(session)
        row = await access.drop_rule(session, org_id, rule_id)
        if version not in {None, 1}:
            raise PreconditionFailed(f"It is at version 1 by now, not {version}.")
        await _check(session, who, org_id, row.subject)
        await audit.record(session, who, "access.remove", row.id, subject=row.subject, effect=row.effect, pattern=row.pattern)
        (view,) = await _views(session, [row])
    told()
    return view


class Served(Protocol):
    """What the running gateway knows of names."""

    def offers_of(self, model: str) -> Mapping[str, Collection[str]]:
        """Id of each model that goes by a name -> all names of that one."""

    def legs_of(self, model: str) -> Sequence[str]:
        """The models that the route of a name leads to; empty when it has none."""


async def decide(database: Database, user: str, model: str, served: Served) -> ModelUse:
    """Whether somebody may use a model, or one of several that go by its name, and what says so. Of the name of a route that has to be true
    of the name and of one of the models that it leads to. Rules about keys and their teams are left out. Raises NotFound."""
    async with database.read() as session:
        org_id = await tenants.own(session)
        row = await users.find(session, org_id, user)
        rights = await access.rights(session, org_id, row)
        models = await access.models(session, org_id, access.subjects(rights, user_id=row.id))
        legs = list(served.legs_of(model))
        said = _judge(models, model, served)
        each = [(leg, _judge(models, leg, served)) for leg in legs] if isinstance(said, kernel.Allow) else []
        good = [(leg, one) for leg, one in each if isinstance(one, kernel.Allow)]
        if each:
            said = (good or each)[0][1]
        rule = None
        if said.rule is not None:
            found = [one for one in await access.rules(session, org_id, [said.rule.subject]) if one.id == said.rule.id]
            (rule,) = await _views(session, found)
    if not rights.may(kernel.USE, "models"):
        return _use(row, model, None, f"the role {' and '.join(rights.roles)} may not use models")
    if isinstance(said, kernel.Deny):
        return _use(row, model, rule, _denied(each or [(model, said)], is_route=bool(each)))
    return _use(row, model, rule, "a rule allows it" if rule else "no rule speaks against it", [leg for leg, _ in good], allowed=True)


def _judge(models: kernel.Models | None, name: str, served: Served) -> kernel.Allow | kernel.Deny:
    """What is said of a name: the best of what is said of the models that go by it."""
    if models is None:
        return kernel.Allow()
    offers = served.offers_of(name)
    each = [models.decide(offers[id]) for id in sorted(offers)] or [models.decide((name,))]
    return next((one for one in each if isinstance(one, kernel.Allow)), each[0])


def _denied(each: Sequence[tuple[str, kernel.Allow | kernel.Deny]], *, is_route: bool) -> str:
    """Why not, in words: what is said of a name, or of the models that the route of that name leads to."""
    by_rule = [one.rule is not None for _, one in each]
    led = f"the route leads to {' and '.join(leg for leg, _ in each)}, and " if is_route else ""
    if any(by_rule) and not all(by_rule):
        return f"{led}none of them is allowed"
    these, all_of = ("these", " each of them") if is_route else ("this one", " it")
    return f"{led}a rule denies{all_of}" if all(by_rule) else f"{led}there are rules that allow models, and none of them {these}"


def _use(user: User, model: str, rule: RuleView | None, reason: str, models: Sequence[str] = (), *, allowed: bool = False) -> ModelUse:
    return ModelUse(user=user.email, model=model, allowed=allowed, models=list(models), rule=rule, reason=reason)


async def _check(session: AsyncSession, who: Principal, org_id: str, subject: str) -> None:
    """Raises Forbidden unless who asks stands above the role, the person, the key or all keys of the team that a rule is about."""
    kind, _, id = subject.partition(":")
    if kind == "role":
        known = await access.roles(session, org_id, [id])
        handing.check_person(who, kernel.combine([(known[id], None)]))
    elif kind == "user":
        try:
            row = await users.find(session, org_id, id)
        except NotFound:  # removed meanwhile: nobody stands above who takes the rule away
            return
        handing.check_person(who, await access.rights(session, org_id, row))
    else:
        for rights in await _of_keys(session, org_id, Key.id == id if kind == "key" else Key.team_id == id):
            handing.check_person(who, rights)


async def _of_keys(session: AsyncSession, org_id: str, which: Any) -> list[Rights]:
    """What some good keys may do, each set of rights once."""
    found = select(Key.user_id, Key.role).where(which, Key.org_id == org_id, col(Key.revoked_at).is_(None)).distinct()
    pairs = (await session.exec(found)).all()
    people = {user_id: await session.get(User, user_id) for user_id in {user_id for user_id, _ in pairs if user_id}}
    return [await access.rights(session, org_id, people.get(user_id or ""), role) for user_id, role in pairs]


async def _stored(session: AsyncSession, org_id: str, text: str) -> str:
    """A subject as it is stored. Raises BadRequest, NotFound, Conflict."""
    kind, colon, name = text.strip().partition(":")
    if not colon or kind not in KINDS:
        raise BadRequest(f"{_WRITTEN}, not {text[:80]!r}.", param="subject")
    if kind == "role":
        return f"role:{(await access.role(session, org_id, name.strip())).name}"
    return f"{kind}:{await scopes.lookup(session, kind, name)}"


async def _views(session: AsyncSession, found: Sequence[AccessRule]) -> list[RuleView]:
    named = await scopes.named(session, {row.subject for row in found})
    return [
        RuleView(
            id=row.id,
            subject=scopes.written(row.subject, named[row.subject]),
            effect=row.effect,
            pattern=row.pattern,
            created_at=row.created_at,
        )
        for row in found
    ]
