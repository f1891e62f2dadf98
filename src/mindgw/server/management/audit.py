"""/api/v1/audit"""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter
from litestar.response import Stream

from mindgw.control import audit
from mindgw.control.audit import AuditPage, Wanted
from mindgw.control.principal import Principal
from mindgw.server.management.guard import Office, needs
from mindgw.server.management.pages import Limit

log = logging.getLogger("mindgw.audit")

Text = Annotated[str, QueryParameter(max_length=512)]
Since = Annotated[str, QueryParameter(name="since", max_length=64, description="First UTC day, such as 2026-11-01, or a span such as 7d.")]
Until = Annotated[str, QueryParameter(name="until", max_length=64, description="Last UTC day.")]
Before = Annotated[int | None, QueryParameter(name="cursor", ge=0, le=2**62, description="The `next` of the page before.")]
After = Annotated[int, QueryParameter(name="after", ge=0, le=2**62, description="Number of the last entry that is known.")]

_LINES = "application/x-ndjson"
#: The last line of a check that could not go on.
FAILED = b'{"state":"failed"}\n'


async def wanted(
    actor: Text = "", action: Text = "", outcome: Text = "", object: Text = "", since: Since = "", until: Until = ""
) -> Wanted:
    """Which entries: of whom; noun.verb, with `*` for any characters; ok or refused; about what; of when."""
    return Wanted(actor=actor, action=action, outcome=outcome, object=object, since=since, until=until)


_CHOSEN: dict[str, Any] = {"dependencies": {"wanted": Provide(wanted)}, "opt": needs("read", "audit")}


@get("/audit", **_CHOSEN)
async def list_audit(
    state: Office, who: NamedDependency[Principal], wanted: NamedDependency[Wanted], before: Before = None, limit: Limit = 100
) -> AuditPage:
    """Who did what, and what was refused, newest first."""
    return await audit.listing(state.database, who, wanted, before=before, limit=limit)


@get("/audit/news", **_CHOSEN)
async def follow_audit(
    state: Office, who: NamedDependency[Principal], wanted: NamedDependency[Wanted], after: After = 0, limit: Limit = 1000
) -> AuditPage:
    """What came after an entry, oldest first; ask again behind `next`."""
    return await audit.news(state.database, who, wanted, after=after, limit=limit)


@get("/audit/export", media_type=_LINES, **_CHOSEN)
async def export_audit(state: Office, who: NamedDependency[Principal], wanted: NamedDependency[Wanted]) -> Stream:
    """All entries as JSON objects, one a line, oldest first. The last line has `end`: the last entry that whoever asks can
    see, which to whoever runs the server is where the chain ends."""
    await audit.listing(state.database, who, wanted, limit=1)  # what cannot be asked for is refused before the stream begins
    return Stream(_exported(state, who, wanted), media_type=_LINES)


async def _exported(state: Office, who: Principal, wanted: Wanted) -> AsyncIterator[bytes]:
    try:
        async with aclosing(audit.export(state.database, who, wanted)) as views:
            async for view in views:
                yield msgspec.json.encode(view) + b"\n"
        yield msgspec.json.encode({"end": await audit.end(state.database, who)}) + b"\n"
    except Exception:  # the top of a request: its status is sent, and without the last line its reader knows that it is not whole
        log.exception("an export of the audit log broke off")


@get("/audit/verify", media_type=_LINES, opt=needs("read", "audit", home=True))
async def verify_audit(state: Office) -> Stream:
    """Look whether every entry is as it was written: JSON objects, one a line, as the check goes on. Their `state` is `checking`, `broken`
    (an entry is not right), and, in the last one, `done`, or `failed` when the check broke off."""
    return Stream(_words(state), media_type=_LINES)


async def _words(state: Office) -> AsyncIterator[bytes]:
    try:
        async with aclosing(audit.check(state.database, state.secrets, state.config.directory)) as words:
            async for word in words:
                yield msgspec.json.encode(word) + b"\n"
    except Exception:  # the top of a request: its status is sent, so what went wrong can only be said in its place
        log.exception("the check of the audit log broke off")
        yield FAILED


HANDLERS = (list_audit, follow_audit, export_audit, verify_audit)
