"""Every error of the gateway, and whose fault it is.

MindGWError
├── CallerError            the request is wrong; sending it again will not help
│   ├── BadRequest             400 invalid_request
│   ├── UnsupportedMedia       400 unsupported_media_url
│   ├── ContextTooLong         400 context_length_exceeded
│   ├── NotFound               404 not_found
│   │   └── ModelNotFound      404 model_not_found
│   ├── MethodNotAllowed       405 method_not_allowed
│   ├── RequestTimeout         408 request_timeout
│   ├── Conflict               409 conflict
│   ├── PreconditionFailed     412 version_mismatch
│   ├── BodyTooLarge           413 request_too_large
│   ├── KeyReused              422 idempotency_key_reused
│   └── HeadTooLarge           431 headers_too_large
├── PolicyError            the caller is not allowed to do this now
│   ├── Unauthenticated        401 invalid_api_key
│   ├── Forbidden              403 forbidden
│   ├── RateLimited            429 rate_limit_exceeded
│   └── QuotaExceeded          429 insufficient_quota
├── FleetError             no worker can take the request; trying again later helps
│   ├── NoWorker               503 no_worker_available
│   │   └── NoResidence        503 residency_unmet
│   ├── QueueFull              503 queue_full
│   ├── QueueTimeout           503 queue_timeout
│   ├── TooLate                503 deadline_unmeetable
│   ├── Draining               503 server_draining
│   ├── Cancelled              503 cancelled_by_operator
│   └── WorkerLost             502 worker_lost
├── UpstreamError          the engine behind a worker failed
│   ├── EngineFailed           502 engine_error
│   ├── EngineUnreachable      502 engine_unreachable
│   ├── EngineRefused          4xx engine_refused: the engine's own status, passed on
│   └── EngineTimeout          504 engine_timeout
├── ProviderError          an identity provider did not do its part
│   ├── ProviderUnreachable    502 provider_unreachable
│   └── ProviderFailed         502 provider_failed: what it says makes no sense
├── ConfigError            a setting is wrong: names key, value and file
└── InternalError          500 internal_error: our fault

The docstring of a class is its default message. `server/problems.py` is the only place that turns them into HTTP.
"""

from collections.abc import Sequence
from typing import Self

#: Seconds that a client waits of itself before it tries again.
PATIENCE = 120.0


class MindGWError(Exception):
    """Something went wrong inside the gateway."""

    #: HTTP status that reports it.
    status: int = 500
    #: Machine-readable code, stable across releases.
    code: str = "internal_error"
    #: OpenAI's coarse class of error.
    type: str = "server_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        hint: str = "",
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        #: The request field at fault, None when it is not one field.
        self.param = param
        #: Seconds after which a new try can succeed; None when waiting does not help.
        self.retry_after = retry_after
        #: What to do next, for people who manage a server; "" when nothing is better than to read the message.
        self.hint = hint
        if code is not None:
            self.code = code
        super().__init__(self.message)

    def bare(self) -> Self:
        """Itself without what led to it: an error that is kept as a value keeps no frame, and so no request, alive."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class CallerError(MindGWError):
    """The request is wrong."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class BadRequest(CallerError):
    """The request body is not valid."""


class UnsupportedMedia(CallerError):
    """Media must be sent as data: URLs; the gateway does not fetch addresses."""

    code = "unsupported_media_url"


class ContextTooLong(CallerError):
    """The prompt is longer than the model's context."""

    code = "context_length_exceeded"


class NotFound(CallerError):
    """There is nothing here."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No worker serves this model."""

    code = "model_not_found"


class MethodNotAllowed(CallerError):
    """This path does not take this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(CallerError):
    """The request came too slowly."""

    status = 408
    code = "request_timeout"


class Conflict(CallerError):
    """That name is taken, or the object changed meanwhile."""

    status = 409
    code = "conflict"


class PreconditionFailed(CallerError):
    """The object changed since it was read."""

    status = 412
    code = "version_mismatch"


class BodyTooLarge(CallerError):
    """The request body is over the limit."""

    status = 413
    code = "request_too_large"


class KeyReused(CallerError):
    """This Idempotency-Key was used for a request with another body."""

    status = 422
    code = "idempotency_key_reused"


class HeadTooLarge(CallerError):
    """The headers of the request are too large."""

    status = 431
    code = "headers_too_large"


class PolicyError(MindGWError):
    """The caller may not do this now."""

    status = 403
    code = "forbidden"
    type = "permission_error"


class Unauthenticated(PolicyError):
    """Incorrect API key provided."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(PolicyError):
    """This key is not allowed to do that."""


class RateLimited(PolicyError):
    """Too many requests."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        #: What the answer says of the limits.
        self.headers = headers

    @property
    def worth_waiting(self) -> bool:
        """Whether clients should try again by themselves; those that read `retry-after` sit out no more than two minutes."""
        return self.retry_after is not None and self.retry_after <= PATIENCE


class QuotaExceeded(PolicyError):
    """The quota is used up."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"


class FleetError(MindGWError):
    """No worker can take the request now."""

    status = 503
    code = "no_worker_available"
    type = "service_unavailable_error"


class NoWorker(FleetError):
    """No worker that serves this model is connected."""


class NoResidence(NoWorker):
    """No worker that this request may go to serves the model."""

    code = "residency_unmet"


class QueueFull(FleetError):
    """The queue is full."""

    code = "queue_full"


class QueueTimeout(FleetError):
    """No worker became free in time."""

    code = "queue_timeout"


class TooLate(FleetError):
    """The answer could not begin before the deadline of the request."""

    code = "deadline_unmeetable"


class Draining(FleetError):
    """The server is shutting down."""

    code = "server_draining"


class Cancelled(FleetError):
    """An operator of the gateway cancelled this request."""

    code = "cancelled_by_operator"


class WorkerLost(FleetError):
    """The connection to the worker was lost before the answer was complete."""

    status = 502
    code = "worker_lost"


class UpstreamError(MindGWError):
    """The engine behind the worker failed."""

    status = 502
    code = "engine_error"
    type = "upstream_error"


class EngineFailed(UpstreamError):
    """The engine answered with an error."""


class EngineUnreachable(UpstreamError):
    """The worker cannot reach its engine."""

    code = "engine_unreachable"


class EngineRefused(UpstreamError):
    """The engine refused the request."""

    status = 400
    code = "engine_refused"
    type = "invalid_request_error"

    def __init__(self, message: str | None = None, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)
        #: The engine's own status, 400..499.
        self.status = status


class EngineTimeout(UpstreamError):
    """The engine did not answer in time."""

    status = 504
    code = "engine_timeout"


class ProviderError(MindGWError):
    """The identity provider did not do its part."""

    status = 502
    code = "provider_failed"
    type = "upstream_error"


class ProviderUnreachable(ProviderError):
    """The identity provider does not answer."""

    code = "provider_unreachable"


class ProviderFailed(ProviderError):
    """The identity provider gave an answer that makes no sense."""


class ConfigError(MindGWError):
    """A setting is wrong."""

    code = "config_error"


class InternalError(MindGWError):
    """The gateway failed; the request id finds the cause in its log."""
