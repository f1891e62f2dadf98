"""Errors -> HTTP, in one place: OpenAI's envelope on every path, because every client can read it.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

import logging
import math
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mindgw import errors
from mindgw.server.bodies import Headers
from mindgw.server.marks import Mark, as_lines, ties_of

log = logging.getLogger("mindgw.server")

#: Sent when even an error cannot be written.
FALLBACK = b'{"error":{"message":"The gateway failed.","type":"server_error","param":null,"code":"internal_error"}}'

#: Errors that the SDKs must not retry although their status says so.
_FINAL = frozenset({"cancelled_by_operator", "idempotency_not_kept", "insufficient_quota", "revoked_api_key"})


#: What to do next, for people who manage the server.
HINTS = {
    "invalid_api_key": "`mindgw init --new-admin-key` on the server makes a new admin key",
    "missing_api_key": "`mindgw init --new-admin-key` on the server makes a new admin key",
    "revoked_api_key": "`mindgw init --new-admin-key` on the server makes a new admin key",
    "expired_api_key": "`mindgw init --new-admin-key` on the server makes a new admin key",
    **dict.fromkeys(
        ("invalid_session", "revoked_session", "expired_session", "invalid_token", "sign_on_lost"), "sign in again: `mindgw login`"
    ),
    "forbidden": "`mindgw roles show ROLE` says who may do that, `mindgw keys create NAME --role ROLE` makes a key that may",
    "version_mismatch": "read the object again: somebody has changed it meanwhile",
    "server_draining": "try again when the server is back",
    "auth_unavailable": "try again; the server's log says why the database does not answer",
    "internal_error": "the server's log says more under the request id",
}


def document(wrong: errors.MindGWError, request_id: str = "", hint: str = "") -> dict[str, Any]:
    """The error object that a client reads."""
    inner: dict[str, Any] = {"message": wrong.message, "type": wrong.type, "param": wrong.param, "code": wrong.code}
    if request_id:
        inner["request_id"] = request_id
    if hint:
        inner["hint"] = hint
    return {"error": inner}


def body(wrong: errors.MindGWError, request_id: str = "", hint: str = "") -> bytes:
    """The encoded error object; lone surrogates in a message never prevent an answer."""
    try:
        return msgspec.json.encode(document(wrong, request_id, hint))
    except UnicodeEncodeError:
        return FALLBACK


def headers(wrong: errors.MindGWError) -> list[tuple[bytes, bytes]]:
    """Headers that tell a client whether and when to try again."""
    out: list[tuple[bytes, bytes]] = []
    if wrong.retry_after is not None:
        out.append((b"retry-after", b"%d" % math.ceil(wrong.retry_after)))
        out.append((b"retry-after-ms", b"%d" % math.ceil(wrong.retry_after * 1000)))
    if wrong.code in _FINAL:
        out.append((b"x-should-retry", b"false"))
    elif isinstance(wrong, errors.RateLimited):
        out += [(b"x-should-retry", b"true" if wrong.worth_waiting else b"false"), *wrong.headers]
    if wrong.status == HTTPStatus.UNAUTHORIZED:
        out.append((b"www-authenticate", b"Bearer"))
    return out


def answer(wrong: errors.MindGWError, common: Headers, mark: Mark) -> bytes:
    """All bytes of an answer on a connection that closes; `common` headers are the server's own."""
    text = body(wrong, mark.request_id)
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(text)),
        *mark.ids(),
        *mark.more,
        *headers(wrong),
        (b"connection", b"close"),
    ]
    return STATUS_LINE[wrong.status] + as_lines([*common, *own]) + b"\r\n" + text


def refusal(request: Request[Any, Any, Any] | None, wrong: errors.MindGWError, more: dict[str, str] | None = None) -> Response[bytes]:
    """An error on a path of the framework's, with `more` headers: it has an id, under which a line in the log says what was asked for.
    None: the framework did not say for which request."""
    ties = ties_of(request.scope) if request else None
    mark = ties.mark if ties is not None else None
    mark = mark or Mark([(name.lower(), value) for name, value in request.scope["headers"]] if request else [])
    path = f"{request.method} {request.url.path}" if request else ""
    if wrong.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", mark.request_id, path, wrong)
    mark.report(request.url.path if request else "", wrong.status, wrong.code)
    pairs = {name.decode(): value.decode() for name, value in (*headers(wrong), *mark.ids())} | (more or {})
    text = body(wrong, mark.request_id, wrong.hint or HINTS.get(wrong.code, ""))
    return Response(text, status_code=wrong.status, media_type="application/json", headers=pairs)


def _known(request: Request[Any, Any, Any], wrong: errors.MindGWError) -> Response[bytes]:
    return refusal(request, wrong)


#: Litestar's own refusals -> the error of ours that says the same.
_BY_STATUS: dict[int, type[errors.MindGWError]] = {
    400: errors.BadRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.BodyTooLarge,
}


#: What the framework calls a defect of ours: a client that left while it sent.
_LEFT = "client disconnected prematurely"


def _framework(request: Request[Any, Any, Any], wrong: HTTPException) -> Response[bytes]:
    """A refusal by the framework: a path that is not there, a body that does not fit its model."""
    if wrong.detail == _LEFT:
        return refusal(request, errors.RequestTimeout("The client left before its request was complete."))
    if wrong.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unknown(request, wrong)
    kind = _BY_STATUS.get(wrong.status_code, errors.BadRequest)
    return refusal(request, kind(_detail(wrong) if kind is errors.BadRequest else None), wrong.headers)


def _detail(wrong: HTTPException) -> str:
    """What does not fit, field by field, when the framework says so."""
    extra = wrong.extra if isinstance(wrong.extra, list) else []
    said = [f"{e.get('key', '')}: {e.get('message', '')}".removeprefix(": ") for e in extra if isinstance(e, dict)]
    return "; ".join(said) or wrong.detail


def _unknown(request: Request[Any, Any, Any], wrong: Exception) -> Response[bytes]:
    """A bug: the log has the traceback, the client has none of it."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=wrong)
    return refusal(request, errors.InternalError())


#: For the Litestar application.
HANDLERS: ExceptionHandlersMap = {errors.MindGWError: _known, HTTPException: _framework, Exception: _unknown}
