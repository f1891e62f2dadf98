"""/api/v1/quotas"""

from typing import Annotated

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody, QueryParameter

from mindgw.control import quotas
from mindgw.control.pages import Page
from mindgw.control.quotas import QuotaChoice, QuotasSet, QuotaView, QuotaWish
from mindgw.server.management.guard import Office

_SCOPE = "key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME."

Anybody = Annotated[str | None, QueryParameter(name="scope", max_length=600, description=_SCOPE)]
Somebody = Annotated[str, QueryParameter(name="scope", max_length=600, description=_SCOPE)]


@get("/quotas")
async def list_quotas(state: Office, whose: Anybody = None) -> Page[QuotaView]:
    """Limits and how much of them is used, all of them or those of one scope."""
    return await quotas.listing(state.database, whose)


@put("/quotas")
async def set_quotas(
    state: Office, data: JSONBody[QuotaWish], actor: NamedDependency[str], version: NamedDependency[int | None]
) -> QuotasSet:
    """Set limits of one scope, all of them or none. The running gateway obeys at once."""
    ground = quotas.Ground(bool(state.config.prices), state.pipeline.snapshot())
    return await quotas.put(state.database, actor, data, state.quotas_changed, ground, version=version)


@delete("/quotas", status_code=200)
async def clear_quotas(
    state: Office,
    whose: Somebody,
    actor: NamedDependency[str],
    version: NamedDependency[int | None],
    unit: FromQuery[str] = "",
    period: FromQuery[str] = "",
) -> Page[QuotaView]:
    """Take limits of one scope away; the answer has them as they were."""
    choice = QuotaChoice(scope=whose, unit=unit, period=period)
    return await quotas.clear(state.database, actor, choice, state.quotas_changed, version=version)


@post("/quotas/reset", status_code=200)
async def reset_quotas(
    state: Office, data: JSONBody[QuotaChoice], actor: NamedDependency[str], version: NamedDependency[int | None]
) -> Page[QuotaView]:
    """Forgive what one scope has used in the windows that it is now. What is reserved stays reserved."""
    return await quotas.reset(state.database, actor, data, state.quotas_changed, version=version)


HANDLERS = (list_quotas, set_quotas, clear_quotas, reset_quotas)
