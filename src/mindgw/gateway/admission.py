"""May this caller ask this? Refuses only what is hopeless, and holds nothing."""

import re
import secrets
from collections.abc import Collection
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import access, affinity, payload
from mindgw.core.routing import EVERYWHERE, Leg, Where, both
from mindgw.gateway.course import Course
from mindgw.gateway.experience import Traits
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
#: Header with the conversation that a request belongs to, and letters of its name that count.
_SESSION = b"x-claude-code-session-id"
_NAME = 128
#: Field with the text that an engine may remember; embeddings have none.
_TEXTS = {payload.CHAT: b'"messages"', payload.COMPLETIONS: b'"prompt"'}
#: Nobody outside of this process can tell which texts are taken for the same.
_SEED = secrets.token_bytes(16)
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
    #: Which of its secrets was shown: the beginning of what is stored of it; empty for what is done on its behalf.
    secret: bytes = b""
    #: Where alone its requests may go, by the labels of the key and of its organisation.
    home: Where = EVERYWHERE
    #: Its team as owners of workers name it, who keep them for some: TEAM in the organisation that runs the server, else ORG/TEAM.
    group: str = ""


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
    #: Whether it is tried on a second worker when it is late to begin.
    hedge: bool = False


class Names(Protocol):
    """What models go by."""

    def offers(self, name: str) -> dict[str, frozenset[str]]:
        """Id of each model that goes by this name -> all names of that one; empty when nobody knows it now."""

    def present(self, model: str, where: Where) -> bool:
        """Whether a connected worker in that place takes requests for the model."""


class Models(Protocol):
    """The models that there are."""

    def has_choice(self, model: str, kind: str, where: Where) -> bool:
        """Whether several in that place could answer `kind`."""


class Served(Protocol):
    """A model where it runs."""

    @property
    def names(self) -> Collection[str]:
        """All names that it goes by there."""


class Ways(Protocol):
    """The ways that requests go."""

    @property
    def hedge(self) -> bool:
        """Whether streams that go by no route are tried on a second worker when they are late to begin."""

    def go(self, caller: Caller, model: str, kind: str, flow: Flow, named: str = "") -> tuple[Course | None, Leg]:
        """The way of a request and its first leg; None: it goes by no route. `named`: the end user that its body names.
        Raises the error that says why it goes nowhere: `not_found`
        for a model that is not for the caller."""


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
    if kind == payload.CHAT and seen.text is None and (address := media.fetched(body)):
        raise errors.UnsupportedMedia(f"Media must be sent as data: URLs; the gateway does not fetch {address[:200]!r}.", param="messages")
    turn = flow(caller, headers, seen.end_user, seen.tier)
    course, leg = ways.go(caller, seen.model, kind, turn, seen.end_user)
    deadline, again, named = _wishes(headers)
    prompt = media.estimate_tokens(body)
    # what nobody could choose by is not read; what costs nothing is kept, as there may be a choice before its turn comes
    prefix = _prefix(caller, body, (seen, leg.model), kind) if models.has_choice(leg.model, kind, leg.where) else None
    session = seen.session or named.decode("latin-1")
    said = (caller.key_id, session[:_NAME]) if session else None
    traits = Traits(prompt, seen.max_tokens, prefix, caller.key_id, said, caller.org_id)
    needs = Needs(leg.model, kind, where=leg.where, strategy=course.strategy if course is not None else "", traits=traits)
    hedge = seen.stream and (course.hedge if course is not None else ways.hedge)
    return Ask(caller, path, seen, needs, turn, prompt, deadline, again, course, hedge)


def _prefix(caller: Caller, body: bytes, asked: tuple[payload.Peek, str], kind: str) -> affinity.Prefix | None:
    """How it begins; None: nobody will remember that. `asked`: the request, and which model is meant."""
    seen, model = asked
    start = body.find(_TEXTS[kind]) if kind in _TEXTS else -1
    # what one organisation asked says nothing to another, not even by which worker it is sent to or how soon it is answered
    return affinity.prefix(body, start, (_SEED, caller.org_id, seen.salt, model)) if start >= 0 else None


def is_for(caller: Caller, names: Collection[str]) -> bool:
    """Whether a model that goes by these names is for the caller."""
    return (caller.scope is None or caller.scope.covers(*names)) and (caller.models is None or caller.models.permits(names))


def meant(caller: Caller, asked: str, models: Names, where: Where) -> str | None:
    """The name to be served for one that was asked for: several models may go by it, and not all of them be for the caller; of those that
    are, one that somebody takes requests for in that place. None when none is, or not even the name."""
    if caller.models is None and caller.scope is None:
        return asked
    offers = models.offers(asked) or {asked: frozenset((asked,))}
    good = [id for id, names in offers.items() if is_for(caller, names)]
    if not good:
        return None
    if len(good) == len(offers):
        return asked
    return min([id for id in good if models.present(id, where)] or good)


def bound(ask: Ask, caller: Caller) -> Ask:
    """The request of a caller who may go to fewer places by now."""
    needs, course, home = ask.needs, ask.course, caller.home
    if course is not None:
        course = replace(course, legs=tuple(Leg(leg.model, both(leg.where, home)) for leg in course.legs))
    return replace(ask, caller=caller, needs=replace(needs, where=both(needs.where, home)), course=course)


def recheck(ask: Ask, served: Served) -> None:
    """Raises ModelNotFound when the model that would answer is not for the caller: nobody knew what the asked name stands for while all
    its workers were away."""
    caller = ask.caller
    if (caller.models is not None or caller.scope is not None) and not is_for(caller, served.names):
        raise not_found(ask.peek.model)


def not_found(model: str) -> errors.ModelNotFound:
    """What is said of a model that is not there, and of one that is not for who asks."""
    return errors.ModelNotFound(f"The model '{model}' does not exist or no worker serves it.", param="model")


def read(path: str, body: bytes, limits: Limits) -> payload.Peek:
    """What the request asks for; raises BadRequest."""
    return _read(ENDPOINTS[path], body, limits)


def _read(kind: str, body: bytes, limits: Limits) -> payload.Peek:
    seen = payload.peek(body, kind, most_n=limits.n)
    if isinstance(seen, payload.Invalid):
        raise errors.BadRequest(seen.message, param=seen.param or None)
    return seen


def _wishes(headers: Headers) -> tuple[float | None, bool, bytes]:
    """The deadline, None when there is none, whether the request was sent before, and the conversation that it belongs to."""
    deadline, retries, session = None, b"", b""
    for name, text in headers:
        if name == DEADLINE:
            deadline = _seconds(text) if deadline is None else deadline
        elif name == RETRIES:
            retries = retries or text
        elif name == _SESSION:
            session = session or text
    return deadline, retries not in _NEVER, session


def _seconds(text: bytes) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not seconds > 0:
        shown = text[:40].decode("latin-1")
        raise errors.BadRequest(f"X-MindGW-Deadline must be a number of seconds above 0, not {shown!r}.", code="invalid_deadline")
    return seconds
