"""/api/v1/rates"""

from typing import Annotated

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter

from mindgw.control import rates
from mindgw.control.pages import Page
from mindgw.control.principal import Principal
from mindgw.control.rates import RateView, RateWish
from mindgw.server.management.guard import Office, needs
from mindgw.store.database import Database

_SCOPE = "user:EMAIL, team:NAME or org:NAME."

Anybody = Annotated[str | None, QueryParameter(name="scope", max_length=600, description=_SCOPE)]
Somebody = Annotated[str, QueryParameter(name="scope", max_length=600, description=_SCOPE)]


@get("/rates", opt=needs("read", "rates"))
async def list_rates(database: NamedDependency[Database], whose: Anybody = None) -> Page[RateView]:
    """How often people, teams and organisations may ask; keys have their rates in themselves."""
    return await rates.listing(database, whose)


@put("/rates", opt=needs("update", "rates"))
async def set_rate(
    state: Office,
    database: NamedDependency[Database],
    data: JSONBody[RateWish],
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> RateView:
    """Set how often one scope may ask. The running gateway obeys at once."""
    return await rates.put(database, who, data, state.quotas_changed, version=version)


@delete("/rates", status_code=200, opt=needs("delete", "rates"))
async def clear_rate(
    state: Office,
    database: NamedDependency[Database],
    whose: Somebody,
    who: NamedDependency[Principal],
    version: NamedDependency[int | None],
) -> RateView:
    """Take the rate of one scope away; the answer has it as it was."""
    return await rates.clear(database, who, whose, state.quotas_changed, version=version)


HANDLERS = (list_rates, set_rate, clear_rate)
