"""/api/v1/quotas"""

from typing import Annotated

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody, QueryParameter

from mindgw.control import quotas
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.quotas import QuotaChoice, QuotasSet, QuotaView, QuotaWish
from mindgw.server.management.guard import Office, needs
from mindgw.store.database import Database

_SCOPE = "key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME."

Anybody = Annotated[str | None, QueryParameter(name="scope", max_length=600, description=_SCOPE)]
Somebody = Annotated[str, QueryParameter(name="scope", max_length=600, description=_SCOPE)]


@get("/quotas", opt=needs("read", "quotas"))
async def list_quotas(database: NamedDependency[Database], whose: Anybody = None) -> Page[QuotaView]:
    """Limits and how much of them is used, all of them or those of one scope."""
    return await quotas.listing(database, whose)


@put("/quotas", opt=needs("update", "quotas"))
async def set_quotas(
    state: Office,
    database: NamedDependency[Database],
    data: JSONBody[QuotaWish],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> QuotasSet:
    """Set limits of one scope, all of them or none. The running gateway obeys at once."""
    ground = quotas.Ground(bool(state.config.prices), state.pipeline.snapshot())
    return await quotas.put(database, who, data, state.quotas_changed, ground, version=version)


@delete("/quotas", status_code=200, opt=needs("delete", "quotas"))
async def clear_quotas(
    state: Office,
    database: NamedDependency[Database],
    whose: Somebody,
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
    unit: FromQuery[str] = "",
    period: FromQuery[str] = "",
) -> Page[QuotaView]:
    """Take limits of one scope away; the answer has them as they were."""
    choice = QuotaChoice(scope=whose, unit=unit, period=period)
    return await quotas.clear(database, who, choice, state.quotas_changed, version=version)


@post("/quotas/reset", status_code=200, opt=needs("update", "quotas"))
async def reset_quotas(
    state: Office,
    database: NamedDependency[Database],
    data: JSONBody[QuotaChoice],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> Page[QuotaView]:
    """Forgive what one scope has used in the windows that it is now. What is reserved stays reserved."""
    return await quotas.reset(database, who, data, state.quotas_changed, version=version)


HANDLERS = (list_quotas, set_quotas, clear_quotas, reset_quotas)
