"""/sign-on: people who sign in with a browser, for the pages of this server. They come back with a cookie, see `control.cookies`."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request, Response, Router, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath

from mindgw import clock
from mindgw.control.cookies import CSRF, Cookies
from mindgw.control.idp import flows, tickets
from mindgw.control.sign_on import Returned
from mindgw.errors import Forbidden, MindGWError, Unauthenticated
from mindgw.server import pages
from mindgw.server.management.guard import Office, asked
from mindgw.server.management.sign_on import visit_of

#: Where a sign-on begins and ends; the cookie of one that is under way goes nowhere else.
ROOT = "/sign-on"
_HOME = "/me"
#: Says that a browser was sent to the server's own name once; a proxy that passes on another one must not have it sent for ever.
_SENT = "again"


@get("/by/{provider:str}")
async def leave(state: Office, request: Request[Any, Any, Any], provider: FromPath[str]) -> Response[bytes]:
    """Sends a browser to a provider."""
    root, host = state.sign_on.root, request.headers.get("host", "")
    if host != urlsplit(root).netloc and not request.query_params.get(_SENT):
        state.sign_on.source(provider)
        return _to(f"{root}{ROOT}/by/{provider}?{_SENT}=1")  # the provider leads back there, and cookies are of the name that was asked for
    begun = await state.sign_on.begin_browser(provider, visit_of(request))
    return _to(begun.url, _ticket(state.cookies, begun.ticket))


@get("/callback/{provider:str}")
async def come_back(state: Office, request: Request[Any, Any, Any], provider: FromPath[str]) -> Response[bytes]:
    """Where a provider sends it back. Whatever comes, that sign-on is over."""
    visit, now, said = visit_of(request), clock.monotonic(), request.query_params
    try:
        state.strangers.patience(visit.address, now)
        ticket = state.cookies.read(asked(request.scope).headers, state.cookies.ticket)
        state_said, code, issuer = (str(said.get(name, ""))[: tickets.MAX_TEXT] for name in ("state", "code", "iss"))
        back = Returned(ticket, state_said, code, issuer)
        if said.get("error"):
            state.sign_on.begun(tickets.BROWSER, back, provider)  # else these may be anybody's words
            raise Unauthenticated(
                f"The provider says: {flows.shown(said.get('error_description') or said['error'])}.", code="sign_on_refused"
            )
        signed = await state.sign_on.finish(tickets.BROWSER, back, visit, provider)
    except MindGWError as wrong:
        told = state.strangers.blame(visit.address, wrong, now) if isinstance(wrong, Unauthenticated) else wrong
        return pages.words(told.status, "Nobody is signed in", told.message, [_ticket(state.cookies, "")])
    return _to(_HOME, _ticket(state.cookies, ""), _session(state.cookies, signed.session))


@get("/session")
async def signed_in(state: Office, request: Request[Any, Any, Any]) -> dict[str, str]:
    """The word that changes take, for pages of the same origin alone; empty: nobody is signed in with this browser."""
    session = state.cookies.signed_in(asked(request.scope).headers)
    return {"csrf": state.cookies.csrf(session) if session else ""}


@post("/out", status_code=200)
async def out(state: Office, request: Request[Any, Any, Any]) -> Response[dict[str, str]]:
    """Has a browser forget its session, whether it is good or not."""
    headers = asked(request.scope).headers
    if not any(name == CSRF for name, _ in headers):
        raise Forbidden(f"This takes the header {CSRF.decode()}.", code="csrf_token")
    state.cookies.admit("POST", headers)
    return Response({"csrf": ""}, cookies=[_session(state.cookies, "")])


def _to(url: str, *cookies: Cookie) -> Response[bytes]:
    headers = {"location": url, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response(b"", status_code=303, headers=headers, cookies=list(cookies), media_type="text/plain")


def _ticket(cookies: Cookies, value: str) -> Cookie:
    """Lax: the provider's answer comes from another site."""
    age = int(tickets.LIFE) if value else 0
    path = "/" if cookies.is_secure else ROOT
    return Cookie(cookies.ticket, value=value, path=path, max_age=age, httponly=True, secure=cookies.is_secure, samesite="lax")


def _session(cookies: Cookies, value: str) -> Cookie:
    """Without an age: it goes with the browser, and is good for as long as the session in it."""
    age = None if value else 0
    return Cookie(cookies.session, value=value, path="/", max_age=age, httponly=True, secure=cookies.is_secure, samesite="strict")


def router() -> Router:
    """For an application whose state is a `guard.Office`."""
    return Router(path=ROOT, route_handlers=[leave, come_back, signed_in, out], include_in_schema=False)
