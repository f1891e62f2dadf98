"""May this caller ask this? Refuses only what is hopeless, and holds nothing."""

import re
from collections.abc import Collection
from typing import Protocol

from msgspec import Struct

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import access, payload
from mindgw.core.routing import EVERYWHERE, Leg, Where
from mindgw.gateway.course import Course
from mindgw.gateway.flows import Flow, flow
from mindgw.gateway.route import Needs
from mindgw.gateway.scope import Scope
from mindgw_agent import payload as media

#: Path of each endpoint -> the kind of model that it needs.
ENDPOINTS = {"/v1/chat/completions": payload.CHAT, "/v1/completions": payload.COMPLETIONS, "/v1/embeddings": payload.EMBEDDINGS}


#: Header with the seconds within which an answer must begin.
DEADLINE = b"x-mindgw-deadline"
#: Header that the SDKs send with a request that they send again: how often they did; and what stands for never.
RETRIES = b"x-stainless-retry-count"
_NEVER = (b"", b"0")
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
Headers = list[tuple[bytes, bytes]]


#: The rights of whoever has no others.
USER = access.combine([(access.BUILT_IN[access.USER], None)])
_USE = access.BITS[access.USE, "models"]


class Head(Protocol):
    """The head of a request, names of headers in lower case."""

    @property
    def request_id(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> Headers: ...


class Rate(Struct, frozen=True, gc=False):
    """How often somebody may ask: requests and tokens a minute, and requests at once; 0: as often as he likes."""

    rpm: int = 0
    tpm: int = 0
    concurrency: int = 0


class Caller(Struct, frozen=True, gc=False):
    """Who asks: a snapshot of a key, never written back."""

    key_id: str
    name: str
    org_id: str
    team_id: str = ""
    user_id: str = ""
    #: Name of the team and address of the user, "" for none.
    team: str = ""
    user: str = ""
    #: What it may do.
    rights: access.Rights = USER
    #: Which models it may use; None: all of them.
    models: access.Models | None = None
    #: Highest class in the queue that it may have: high, normal, batch or sheddable.
    priority: str = "normal"
    #: Whether this key may name the end user in a header.
    trusted_proxy: bool = False
    #: How often this key may ask; None: no limit of its own.
    rate: Rate | None = None
    #: What it is good for; None: everything.
    scope: Scope | None = None
    #: Where alone its requests may go, by the labels of the key and of its organisation.
    home: Where = EVERYWHERE


class Ask(Struct, frozen=True, gc=False):
    """A request that may stand in the queue."""

    caller: Caller
    path: str
    peek: payload.Peek
    needs: Needs
    flow: Flow
    #: Tokens of the prompt, estimated.
    prompt: int
    #: Seconds within which its answer must begin, as the caller wishes; None for no wish.
    deadline: float | None
    #: Whether its caller says that it was sent before.
    again: bool = False
    #: The way that it goes; None: it goes by no route.
    course: Course | None = None


class Models(Protocol):
    """The models that there are."""

    def names(self, model: str) -> Collection[str]:
        """All names that it goes by, this one too."""


class Ways(Protocol):
    """The ways that requests go."""

    def go(self, caller: Caller, model: str, kind: str, flow: Flow) -> tuple[Course | None, Leg]:
        """The way of a request and its first leg; None: it goes by no route. Raises the error that says why it goes nowhere."""


def require_use(caller: Caller) -> None:
    """Raises Forbidden for whoever may use no model at all."""
    if not caller.rights.mask & _USE:
        raise errors.Forbidden("The role of this API key may not use models.", code="role_not_allowed")


def admit(caller: Caller, head: Head, body: bytes, limits: Limits, models: Models, ways: Ways) -> Ask:
    """Reads and checks the request; raises the CallerError that says what is wrong with it, or the FleetError that says why it can go
    nowhere. A model that is not for the caller is one that is not there."""
    path, headers = head.path, head.headers
    kind = ENDPOINTS[path]
    seen = _read(kind, body, limits)
    if caller.scope is not None and not caller.scope.covers(seen.model):
        raise _not_found(seen.model)
    if caller.models is not None and not caller.models.permits(models.names(seen.model)):
        raise _not_found(seen.model)
    if kind == payload.CHAT and seen.text is None and (address := media.fetched(body)):
        raise errors.UnsupportedMedia(f"Media must be sent as data: URLs; the gateway does not fetch {address[:200]!r}.", param="messages")
    turn = flow(caller, headers, seen.end_user, seen.tier)
    course, leg = ways.go(caller, seen.model, kind, turn)
    needs = Needs(leg.model, kind)
    if course is not None or leg.where:
        needs = Needs(leg.model, kind, where=leg.where, strategy=course.strategy if course is not None else "")
    deadline, again = _wishes(headers)
    return Ask(caller, path, seen, needs, turn, media.estimate_tokens(body), deadline, again, course)


def is_for(caller: Caller, names: Collection[str]) -> bool:
    """Whether a model that goes by these names is for the caller."""
    return (caller.scope is None or caller.scope.covers(*names)) and (caller.models is None or caller.models.permits(names))


def recheck(ask: Ask, needs: Needs, model: str, models: Models) -> None:
    """Raises ModelNotFound when the model that would answer, by its id, is not for the caller: nobody knew what the name that is needed
    stands for while all its workers were away."""
    if ask.caller.models is not None and not ask.caller.models.permits({model, *models.names(needs.model)}):
        raise _not_found(ask.peek.model)


def _not_found(model: str) -> errors.ModelNotFound:
    return errors.ModelNotFound(f"The model '{model}' does not exist or no worker serves it.", param="model")


def read(path: str, body: bytes, limits: Limits) -> payload.Peek:
    """What the request asks for; raises BadRequest."""
    return _read(ENDPOINTS[path], body, limits)


def _read(kind: str, body: bytes, limits: Limits) -> payload.Peek:
    seen = payload.peek(body, kind, most_n=limits.n)
    if isinstance(seen, payload.Invalid):
        raise errors.BadRequest(seen.message, param=seen.param or None)
    return seen


def _wishes(headers: Headers) -> tuple[float | None, bool]:
    """The deadline, None when there is none, and whether the request was sent before."""
    deadline, retries = None, b""
    for name, text in headers:
        if name == DEADLINE:
            deadline = _seconds(text) if deadline is None else deadline
        elif name == RETRIES:
            retries = retries or text
    return deadline, retries not in _NEVER


def _seconds(text: bytes) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not seconds > 0:
        shown = text[:40].decode("latin-1")
        raise errors.BadRequest(f"X-MindGW-Deadline must be a number of seconds above 0, not {shown!r}.", code="invalid_deadline")
    return seconds
