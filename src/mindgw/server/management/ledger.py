"""/api/v1/ledger and /api/v1/receipts"""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from mindgw.control import ledger, receipts
from mindgw.control.ledger import EntryView
from mindgw.control.pages import Page
from mindgw.control.receipts import ReceiptView
from mindgw.errors import Conflict
from mindgw.server.management.guard import Office, needs
from mindgw.store.database import Database

log = logging.getLogger("mindgw.ledger")

#: Id of a request, as its client has it in x-mindgw-request-id.
RequestId = Annotated[str, QueryParameter(name="request", max_length=1000, description="As its client has it in x-mindgw-request-id.")]

#: The last line of a check that could not go on.
FAILED = b'{"state":"failed"}\n'


@get("/ledger", opt=needs("read", "ledger"))
async def show_entries(database: NamedDependency[Database], request_id: RequestId) -> Page[EntryView]:
    """All rows of the ledger about one request."""
    return await ledger.entries(database, request_id)


@get("/ledger/verify", media_type="application/x-ndjson", opt=needs("read", "ledger", home=True))
async def verify_ledger(state: Office) -> Stream:
    """Look whether the books are right: JSON objects, one a line, as the check goes on. Their `state` is `checking` (how far it is),
    `broken` (something is wrong), and, in the last one, `done`, or `failed` when the check broke off. One check runs at a time."""
    if getattr(state, "verifying", False):
        raise Conflict("The ledger is being checked already.", code="already_checking", hint="wait for that check, or stop it")
    return Stream(_lines(state), media_type="application/x-ndjson")


async def _lines(state: Office) -> AsyncIterator[bytes]:
    state.verifying = True
    try:
        async with aclosing(ledger.check(state.database, state.secrets.chain_key)) as words:
            async for word in words:
                yield msgspec.json.encode(word) + b"\n"
    except Exception:  # the top of a request: its status is sent, so what went wrong can only be said in its place
        log.exception("the check of the ledger broke off")
        yield FAILED
    finally:
        state.verifying = False


@get("/receipts", opt=needs("read", "ledger"))
async def show_receipts(database: NamedDependency[Database], request_id: RequestId) -> Page[ReceiptView]:
    """What agents say that they delivered for one request, and whether it is true."""
    return await receipts.of_request(database, request_id)


HANDLERS = (show_entries, verify_ledger, show_receipts)
