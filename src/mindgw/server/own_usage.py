"""What a key has used, for `GET /v1/me/usage`: the same as `GET /api/v1/me/usage`, where its holder looks for it."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from mindgw.control import usage
from mindgw.errors import BadRequest, Forbidden
from mindgw.store.database import Database
from mindgw.store.tenants import View

#: What may be asked for, and what it is when it is not.
ASKED = {"by": "day", "since": "", "until": ""}


def own_usage(database: Database) -> Callable[[str, Any], Awaitable[bytes]]:
    """Takes a query and a caller. Raises BadRequest, Forbidden."""

    async def answer(query: str, caller: Any) -> bytes:
        try:
            said = {name: values[-1] for name, values in parse_qs(query, max_num_fields=10).items()}
        except ValueError:
            raise BadRequest("There is too much in the query.") from None
        if not caller.rights.may("read", "me"):
            raise Forbidden("The role of this API key may not read what it has used.", code="role_not_allowed")
        by, since, until = (said.get(name, usual) for name, usual in ASKED.items())
        mine = database.within(View(caller.org_id))
        return msgspec.json.encode(await usage.summary(mine, by, since, until, {"key": caller.key_id}))

    return answer
