"""What was used, summed up by key, person, team and so on."""

import re
from collections.abc import Mapping
from datetime import date, timedelta

from msgspec import Struct

from mindgw import clock
from mindgw.control import scopes
from mindgw.control.amounts import dollars
from mindgw.errors import BadRequest, Forbidden
from mindgw.store import tenants, totals
from mindgw.store.database import Database
from mindgw.store.totals import Total

#: What sums may be asked for by.
BY = tuple(totals.BY)
#: What they may be narrowed to.
FILTERS = ("key", "team", "user", "model")
#: Days that are summed up unless somebody says which.
DAYS = "30d"

_SPAN = re.compile(r"([0-9]{1,5})d", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class UsageView(Struct, frozen=True, kw_only=True):
    """What one key, person, team, model, worker or day has used, as it is billed."""

    #: Empty: what belongs to none, such as the requests of keys without a user.
    id: str
    #: The id where there is no better one.
    name: str
    requests: int
    #: Tokens of prompts and of answers.
    tokens_in: int
    tokens_out: int
    #: Those of the prompts that came out of an engine's cache.
    tokens_cached: int
    #: Decimal dollars, as text.
    cost_usd: str


class Summary(Struct, frozen=True, kw_only=True):
    """Sums over the UTC days from `since` to `until`, both included."""

    by: str
    since: str
    until: str
    items: list[UsageView]
    #: Of all of them; a request that two workers were billed for counts for each.
    total: UsageView
    #: There is one page.
    next: None = None


async def summary(database: Database, by: str, since: str, until: str, narrowed: Mapping[str, str]) -> Summary:
    """`since` is a day, or a number of days that ends today, such as 7d; `until` is a day; both may be empty. `narrowed` maps words of
    FILTERS to whom they mean. Raises BadRequest, NotFound, Conflict, and Forbidden for what machines did, to other organisations."""
    if by not in BY:
        raise BadRequest(f"'by' must be {', '.join(BY[:-1])} or {BY[-1]}, not {by[:63]!r}.", param="by")
    today = clock.utcnow().date()
    first = _since(since or DAYS, today)
    last = _day(until, "until") if until else max(first, today)
    if first > last:
        raise BadRequest(f"'since' ({first}) is after 'until' ({last}).", param="since")
    async with database.read() as session:
        where = {kind: await scopes.lookup(session, kind, name) for kind, name in narrowed.items()}
        view = tenants.view_of(session)
        if by == "worker" and view is not None and not view.is_home:
            raise Forbidden("Which machines there are is known to whoever runs the server.", code="not_yours")
        where |= {"org": view.org_id} if view is not None else {}
        found = await totals.totals(session, by, first.isoformat(), last.isoformat(), where)
        names = await scopes.names(session, by, [total.name for total in found])
    items = [_view(total, names[total.name]) for total in found]
    return Summary(by=by, since=first.isoformat(), until=last.isoformat(), items=items, total=_view(_sum(found), "total"))


def _view(total: Total, name: str) -> UsageView:
    return UsageView(
        id=total.name,
        name=name,
        requests=total.requests,
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        tokens_cached=total.cached,
        cost_usd=dollars(total.cost),
    )


def _sum(found: list[Total]) -> Total:
    return Total(
        name="",
        tokens_in=sum(total.tokens_in for total in found),
        tokens_out=sum(total.tokens_out for total in found),
        cached=sum(total.cached for total in found),
        requests=sum(total.requests for total in found),
        cost=sum(total.cost for total in found),
    )


def _since(text: str, today: date) -> date:
    said = _SPAN.fullmatch(text)
    if said is None:
        return _day(text, "since")
    days = int(said[1])
    if not 1 <= days <= 36_500:
        raise BadRequest(f"'since' must be 1 to 36500 days, not {text}.", param="since")
    return today - timedelta(days=days - 1)


def _day(text: str, param: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    also = ", or a number of days such as 7d" if param == "since" else ""
    raise BadRequest(f"'{param}' must be a day such as 2026-11-21{also}, not {text[:40]!r}.", param=param)
