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

from mindgw import errors

log = logging.getLogger("mindgw.server")

#: Sent when even an error cannot be written.
FALLBACK = b'{"error":{"message":"The gateway failed.","type":"server_error","param":null,"code":"internal_error"}}'

#: Errors that the SDKs must not retry although their status says so.
_FINAL = frozenset({"insufficient_quota", "revoked_api_key"})


def document(wrong: errors.MindGWError, request_id: str = "") -> dict[str, Any]:
    """The error object that a client reads."""
    inner: dict[str, Any] = {"message": wrong.message, "type": wrong.type, "param": wrong.param, "code": wrong.code}
    if request_id:
        inner["request_id"] = request_id
    return {"error": inner}


def body(wrong: errors.MindGWError, request_id: str = "") -> bytes:
    """The encoded error object; lone surrogates in a message never prevent an answer."""
    try:
        return msgspec.json.encode(document(wrong, request_id))
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
    if wrong.status == HTTPStatus.UNAUTHORIZED:
        out.append((b"www-authenticate", b"Bearer"))
    return out


def _known(request: Request[Any, Any, Any], wrong: errors.MindGWError, more: dict[str, str] | None = None) -> Response[bytes]:
    """An error of ours on the management API, with the framework's own headers."""
    if wrong.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.url.path, wrong)
    pairs = {name.decode(): value.decode() for name, value in headers(wrong)} | (more or {})
    return Response(body(wrong), status_code=wrong.status, media_type="application/json", headers=pairs)


#: Litestar's own refusals -> the error of ours that says the same.
_BY_STATUS: dict[int, type[errors.MindGWError]] = {
    400: errors.BadRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.BodyTooLarge,
}


def _framework(request: Request[Any, Any, Any], wrong: HTTPException) -> Response[bytes]:
    """A refusal by the framework: a path that is not there, a body that does not fit its model."""
    if wrong.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unknown(request, wrong)
    kind = _BY_STATUS.get(wrong.status_code, errors.BadRequest)
    return _known(request, kind(_detail(wrong) if kind is errors.BadRequest else None), wrong.headers)


def _detail(wrong: HTTPException) -> str:
    """What does not fit, field by field, when the framework says so."""
    extra = wrong.extra if isinstance(wrong.extra, list) else []
    said = [f"{e.get('key', '')}: {e.get('message', '')}".removeprefix(": ") for e in extra if isinstance(e, dict)]
    return "; ".join(said) or wrong.detail


def _unknown(request: Request[Any, Any, Any], wrong: Exception) -> Response[bytes]:
    """A bug: the log has the traceback, the client has none of it."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=wrong)
    return Response(body(errors.InternalError()), status_code=500, media_type="application/json")


#: For the Litestar application.
HANDLERS: ExceptionHandlersMap = {errors.MindGWError: _known, HTTPException: _framework, Exception: _unknown}
