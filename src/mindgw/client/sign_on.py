"""What to ask when somebody signs in by an identity provider. One function a call, as in `client.api`."""

from mindgw.client.api import Request

_ROOT = "/api/v1/sign-on"


def list_providers() -> Request:
    """Needs no key; nor do the others but `renew`."""
    return Request("GET", _ROOT, fields=("items",))


def begin(provider: str, redirect_uri: str = "") -> Request:
    """Without an address that the browser leads back to it is another device that has a browser."""
    said = {"provider": provider, **({"redirect_uri": redirect_uri} if redirect_uri else {})}
    return Request("POST", f"{_ROOT}/begin", said, fields=("ticket", "expires_in"))


def finish(ticket: str, *, code: str, state: str, iss: str = "") -> Request:
    """The answer's `session` is in it and nowhere else."""
    return Request("POST", f"{_ROOT}/finish", {"ticket": ticket, "code": code, "state": state, "iss": iss}, fields=("session", "user"))


def poll(ticket: str) -> Request:
    """The answer has a `session`, or a `state` that is pending."""
    return Request("POST", f"{_ROOT}/poll", {"ticket": ticket})


def renew() -> Request:
    """Has the session last longer by which it is asked."""
    return Request("POST", "/api/v1/me/sessions/renew", fields=("expires_in",))


def check(provider: str) -> Request:
    return Request("GET", f"/api/v1/providers/{provider}/check", fields=("items",))
