"""/api/v1/events: a WebSocket on which whoever runs the server follows the live picture of the server, as plain ASGI.

A key that is not good is refused before the upgrade, with the status and the body of every other refusal. What the other side says is
read and dropped.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from litestar import Litestar, Router, asgi
from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send

from mindgw.control.feed import Listener
from mindgw.errors import BadRequest, Forbidden, InternalError, MindGWError, Unauthenticated
from mindgw.server import problems
from mindgw.server.management import guard
from mindgw.server.marks import Mark
from mindgw.store import faults

log = logging.getLogger("mindgw.feed")

#: Seconds between looks at whether the key is still good.
DOUBT = 0.25
#: Seconds for which a listener may leave a message unread; then its connection is given up.
STALL = 30.0
#: Seconds that it has to take the reason.
PARTING = 1.0

#: WebSocket close codes: ours say the same as the HTTP status behind the 4.
BROKEN, TOO_SLOW, NO_KEY, NOT_ALLOWED = 1011, 1013, 4401, 4403


#: What following takes.
NEED = guard.Need("read", "events", home=True)


class Parting(NamedTuple):
    """Why a feed ends; a code of 0: the other side is gone, and there is nobody to tell."""

    code: int
    reason: str


GONE = Parting(0, "")


def router() -> Router:
    """Beside the other routes, not among them: their guard refuses after the fashion of HTTP, which an upgrade does not understand."""
    return Router(path="/api/v1", route_handlers=[follow], include_in_schema=False)


@asgi("/events", copy_scope=False, opt=guard.needs(*NEED[:2], home=NEED.home))
async def follow(scope: Scope, receive: Receive, send: Send) -> None:
    """Serves one WebSocket, from the upgrade to its end."""
    office = cast("guard.Office", Litestar.from_scope(scope).state)
    request = guard.asked(scope)
    if scope["type"] != ScopeType.WEBSOCKET:
        await guard.admit(office, request, NEED)
        raise BadRequest("This is a WebSocket: it must be asked for with an upgrade.", code="websocket_required")
    await receive()  # what asks for the upgrade
    try:
        await guard.admit(office, request, NEED)
        listener = office.feed.listen()
    except MindGWError as wrong:
        await _refuse(wrong, scope, request.headers, send)
        return
    except Exception:  # the top of a request; the framework would tell its client that it may not come in
        log.exception("a feed failed before it began")
        await _refuse(InternalError(), scope, request.headers, send)
        return
    try:
        await _carry(listener, lambda: _until_doubted(office, request), receive, send)
    finally:
        listener.close()


async def _carry(listener: Listener, doubt: Callable[[], Awaitable[Parting]], receive: Any, send: Any) -> None:
    """From the upgrade on: sends what there is until one of the three has a reason to end it."""
    await send({"type": "websocket.accept"})
    watches = [asyncio.ensure_future(each) for each in (_until_gone(receive), doubt(), _until_broken(listener, send))]
    try:
        done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        parting = min(task.result() for task in done)
    finally:
        for task in watches:
            task.cancel()
        await asyncio.wait(watches)
    if parting.code:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(PARTING):
                await send({"type": "websocket.close", "code": parting.code, "reason": parting.reason})


async def _until_gone(receive: Any) -> Parting:
    while (await receive())["type"] != "websocket.disconnect":
        pass
    return GONE


async def _until_doubted(office: guard.Office, request: guard.Asked) -> Parting:
    """Until the key is good for it no longer: revoked, expired, of a lower role."""
    while True:
        await asyncio.sleep(DOUBT)
        try:
            await guard.admit(office, request, NEED)
        except Forbidden as wrong:
            return Parting(NOT_ALLOWED, wrong.code)
        except MindGWError as wrong:
            return Parting(NO_KEY, wrong.code)
        except faults.FAULTS:
            continue  # the database is away, and nobody can revoke a key meanwhile


async def _until_broken(listener: Listener, send: Any) -> Parting:
    """Sends until the other side is gone or too slow, or the feed breaks down."""
    while (message := await listener.next()) is not None:
        try:
            async with asyncio.timeout(STALL):
                await send({"type": "websocket.send", "text": message.decode()})
        except TimeoutError:
            return Parting(TOO_SLOW, "too_slow")
        except (OSError, RuntimeError):  # each server has its own way to say that the peer is gone
            return GONE
    return Parting(BROKEN, InternalError.code)


async def _refuse(wrong: MindGWError, scope: Any, headers: list[tuple[bytes, bytes]], send: Any) -> None:
    """An HTTP answer in place of the upgrade, where the web server can give one; elsewhere it answers 403 by itself."""
    mark = Mark(headers)
    mark.report(scope["path"], wrong.status, wrong.code)
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": NO_KEY if isinstance(wrong, Unauthenticated) else NOT_ALLOWED, "reason": wrong.code})
        return
    body = problems.body(wrong, mark.request_id, wrong.hint or problems.HINTS.get(wrong.code, ""))
    own = [(b"content-type", b"application/json"), *problems.headers(wrong), *mark.ids()]
    await send({"type": "websocket.http.response.start", "status": wrong.status, "headers": own})
    await send({"type": "websocket.http.response.body", "body": body})
