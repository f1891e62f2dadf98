"""/api/v1/sign-on: the way in for whom an identity provider knows; and what is asked of providers by who is in already."""

from typing import Annotated, Any

from litestar import Request, Response, Router, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from mindgw import clock
from mindgw.control.idp import checkup, tickets
from mindgw.control.idp.checkup import Finding
from mindgw.control.pages import Page
from mindgw.control.rechecks import Renewed
from mindgw.control.sign_on import Begun, ProviderView, Returned, SignedOn, Visit
from mindgw.errors import Forbidden, Unauthenticated
from mindgw.server.management.guard import Office, asked, needs
from mindgw.server.management.users import Who
from mindgw.store.sessions import MAX_AGENT

Text = Annotated[str, Meta(max_length=tickets.MAX_TEXT)]


class Wish(Struct, frozen=True, forbid_unknown_fields=True):
    """How somebody wants to sign in."""

    #: Name of the provider.
    provider: Annotated[str, Meta(max_length=63)]
    #: Loopback address that the browser leads back to; empty: it is another device that has a browser.
    redirect_uri: Annotated[str, Meta(max_length=200)] = ""


class Answer(Struct, frozen=True, forbid_unknown_fields=True):
    """What came back from the provider."""

    ticket: Text
    code: Text
    state: Annotated[str, Meta(max_length=200)]
    #: What the provider calls itself there; empty: it does not.
    iss: Annotated[str, Meta(max_length=500)] = ""


class Shown(Struct, frozen=True, forbid_unknown_fields=True):
    """A sign-on with another device."""

    ticket: Text


class Patience(Struct, frozen=True):
    """It is not finished yet."""

    state: str
    #: Seconds that are to be added to the interval between polls.
    slower: int


@get("/")
async def list_providers(state: Office) -> Page[ProviderView]:
    """Identity providers that people may sign in by."""
    return Page(state.sign_on.listing())


@post("/begin", status_code=200)
async def begin_sign_on(state: Office, request: Request[Any, Any, Any], data: JSONBody[Wish]) -> Begun:
    """Begin to sign in with a browser on the same machine, or, without `redirect_uri`, on another device."""
    visit = visit_of(request)
    if data.redirect_uri:
        return await state.sign_on.begin(data.provider, data.redirect_uri, visit)
    return await state.sign_on.begin_device(data.provider, visit)


@post("/finish", status_code=201)
async def finish_sign_on(state: Office, request: Request[Any, Any, Any], data: JSONBody[Answer]) -> SignedOn:
    """Sign in with what the provider sent back. The `session` is in this answer and nowhere else."""
    visit, now = visit_of(request), clock.monotonic()
    state.strangers.patience(visit.address, now)
    try:
        return await state.sign_on.finish(tickets.TERMINAL, Returned(data.ticket, data.state, data.code, data.iss), visit)
    except Unauthenticated as wrong:
        raise state.strangers.blame(visit.address, wrong, now) from None


@post("/poll", status_code=201)
async def poll_sign_on(state: Office, request: Request[Any, Any, Any], data: JSONBody[Shown]) -> SignedOn | Response[Patience]:
    """Ask whether somebody has signed in on another device: 202 as long as they have not. The `session` is in this answer and nowhere
    else."""
    visit, now = visit_of(request), clock.monotonic()
    state.strangers.patience(visit.address, now)
    try:
        found = await state.sign_on.poll(data.ticket, visit)
    except Unauthenticated as wrong:
        raise state.strangers.blame(visit.address, wrong, now) from None
    return found if isinstance(found, SignedOn) else Response(Patience("pending", found), status_code=202)


def visit_of(request: Request[Any, Any, Any]) -> Visit:
    """Who asks."""
    return Visit(request.headers.get("user-agent", "")[:MAX_AGENT], asked(request.scope).address)


def router(**shared: Any) -> Router:
    """Beside the other routes, not among them: their guard lets nobody in without a key."""
    handlers = [list_providers, begin_sign_on, finish_sign_on, poll_sign_on]
    return Router(path="/api/v1/sign-on", route_handlers=handlers, **shared)


# -- for who is in -----------------------------------------------------------------------------------------------------


@post("/me/sessions/renew", status_code=200, opt=needs("read", "me"))
async def renew_my_session(state: Office, who: Who) -> Renewed:
    """Have the session that asks last longer: the identity provider is asked whether it still vouches for its person."""
    if not who.session_id or who.by_pass:
        raise Forbidden("This takes a session itself.", code="session_required")
    renewed = await state.rechecks.one(who.session_id)
    state.sessions.forget()
    return renewed


@get("/providers/{provider:str}/check", opt=needs("read", "status", home=True))
async def check_provider(state: Office, provider: FromPath[str]) -> Page[Finding]:
    """What is right and what is wrong with an identity provider, asked now."""
    return Page(await checkup.examine(state.sign_on.source(provider)))


HANDLERS = (renew_my_session, check_provider)
