"""Sessions that end soon unless they are renewed: when that is to be done, and how."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from mindgw import clock
from mindgw.client import sign_on
from mindgw.client.api import Request
from mindgw.client.contexts import Context
from mindgw.client.errors import ClientError, NotLoggedIn

#: The part of a session's time after which it is renewed.
PART = 0.75


class Server(Protocol):
    def call(self, request: Request) -> Any:
        """The decoded answer; raises ClientError."""


def lasting(context: Context, answer: Mapping[str, Any]) -> Context:
    """The context with the moment at which its session is to be renewed, if it can be; the clock of this machine alone matters."""
    seconds = answer.get("expires_in")
    if not answer.get("renewable", True) or not isinstance(seconds, int) or seconds <= 0:
        return replace(context, renew_at="")
    return replace(context, renew_at=(clock.utcnow() + timedelta(seconds=seconds * PART)).isoformat())


def is_due(context: Context) -> bool:
    """Whether the session that is kept for a server is to be renewed now."""
    try:
        return bool(context.renew_at) and datetime.fromisoformat(context.renew_at) <= clock.utcnow()
    except (ValueError, TypeError):
        return True


def renewed(server: Server, context: Context) -> Context:
    """Asks for more time. Raises NotLoggedIn when there is none any more; any other trouble can wait until the session is over."""
    try:
        return lasting(context, server.call(sign_on.renew()))
    except NotLoggedIn as over:
        raise NotLoggedIn(over.message, hint=f"mindgw login {context.url}", code=over.code, request_id=over.request_id) from None
    except ClientError:
        return context
