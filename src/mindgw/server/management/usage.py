"""/api/v1/usage"""

from typing import Annotated

from litestar import get
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from mindgw.control import usage
from mindgw.control.usage import Summary
from mindgw.server.management.guard import needs
from mindgw.store.database import Database

Since = Annotated[str, QueryParameter(name="since", description="First UTC day, such as 2026-11-01, or a number of days, such as 7d.")]
Until = Annotated[str, QueryParameter(name="until", description="Last UTC day, such as 2026-11-30.")]
Whose = Annotated[str | None, QueryParameter(max_length=512)]


async def narrowed(key: Whose = None, team: Whose = None, user: Whose = None, model: Whose = None) -> dict[str, str]:
    """Of whom alone; those that are named."""
    given = {"key": key, "team": team, "user": user, "model": model}
    return {kind: name for kind, name in given.items() if name is not None}


@get("/usage", dependencies={"narrowed": Provide(narrowed)}, opt=needs("read", "usage"))
async def summarise_usage(
    database: NamedDependency[Database],
    narrowed: NamedDependency[dict[str, str]],
    by: FromQuery[str] = "key",
    since: Since = "",
    until: Until = "",
) -> Summary:
    """What was used and what it cost, summed up by key, user, team, org, model, day or worker; of one key, team, user or model alone, if
    they are named."""
    return await usage.summary(database, by, since, until, narrowed)


HANDLERS = (summarise_usage,)
