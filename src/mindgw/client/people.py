"""What to ask about people: who one is, who else there is, who is signed in. One function a call, as in `client.api`."""

from typing import Any
from urllib.parse import quote, urlencode

from mindgw.client.api import Request

_ROOT = "/api/v1"


def _user(user: str, *more: str) -> str:
    return "/".join((f"{_ROOT}/users/{quote(user, safe='')}", *more))


def list_users() -> Request:
    return Request("GET", f"{_ROOT}/users")


def show_user(user: str) -> Request:
    """`user` is an id or an address, here and below."""
    return Request("GET", _user(user), fields=("id", "email"))


def invite_user(email: str, *, role: str | None = None, name: str | None = None, ttl_seconds: int | None = None) -> Request:
    """The answer's `invitation` is in it and nowhere else."""
    given = {"role": role, "name": name, "ttl_seconds": ttl_seconds}
    said = {"email": email, **{key: value for key, value in given.items() if value is not None}}
    return Request("POST", f"{_ROOT}/users", said, fields=("id", "email", "invitation"))


def create_service_account(name: str, *, role: str | None = None) -> Request:
    said = {"name": name} if role is None else {"name": name, "role": role}
    return Request("POST", f"{_ROOT}/service-accounts", said, fields=("id", "email"))


def change_user(user: str, *, role: str | None = None, name: str | None = None, version: int | None = None) -> Request:
    said = {key: value for key, value in {"role": role, "name": name}.items() if value is not None}
    return Request("PATCH", _user(user), said, if_match=version, fields=("id", "email"))


def disable_user(user: str, *, version: int | None = None) -> Request:
    return Request("POST", _user(user, "disable"), if_match=version, fields=("id", "email"))


def enable_user(user: str, *, version: int | None = None) -> Request:
    return Request("POST", _user(user, "enable"), if_match=version, fields=("id", "email"))


def remove_user(user: str, *, version: int | None = None) -> Request:
    return Request("DELETE", _user(user), if_match=version, fields=("id", "email"))


def accept_invitation(invitation: str) -> Request:
    """Needs no key. The answer's `session` is in it and nowhere else."""
    return Request("POST", f"{_ROOT}/invitations/accept", {"invitation": invitation}, fields=("session", "user"))


def list_sessions(user: str) -> Request:
    return Request("GET", _user(user, "sessions"))


def end_sessions(user: str) -> Request:
    return Request("DELETE", _user(user, "sessions"), fields=("ended",))


def list_identities(user: str) -> Request:
    return Request("GET", _user(user, "identities"))


def link(user: str, provider: str, subject: str) -> Request:
    """Whoever the provider knows as `subject` is that user from now on."""
    return Request("POST", _user(user, "identities"), {"provider": provider, "subject": subject}, fields=("id", "provider", "subject"))


def unlink(user: str, identity: str) -> Request:
    """`identity` is an id, or the name of a provider."""
    return Request("DELETE", _user(user, "identities", quote(identity, safe="")), fields=("id", "provider", "subject"))


# -- oneself


def me() -> Request:
    return Request("GET", f"{_ROOT}/me", fields=("kind", "roles"))


def my_limits() -> Request:
    return Request("GET", f"{_ROOT}/me/limits")


def my_usage(*, by: str = "day", since: str = "", until: str = "") -> Request:
    given = {"by": by, "since": since, "until": until}
    asked = urlencode({name: value for name, value in given.items() if value})
    return Request("GET", f"{_ROOT}/me/usage?{asked}", fields=("items", "total"))


def my_models() -> Request:
    return Request("GET", f"{_ROOT}/me/models")


def my_queue() -> Request:
    return Request("GET", f"{_ROOT}/me/queue")


def my_keys() -> Request:
    return Request("GET", f"{_ROOT}/me/keys")


def make_my_key(name: str, **given: Any) -> Request:
    said = {"name": name, **{key: value for key, value in given.items() if value is not None}}
    return Request("POST", f"{_ROOT}/me/keys", said, fields=("id", "name", "key"))


def revoke_my_key(key: str, *, version: int | None = None) -> Request:
    return Request("DELETE", f"{_ROOT}/me/keys/{quote(key, safe='')}", if_match=version, fields=("id", "name"))


def my_sessions() -> Request:
    return Request("GET", f"{_ROOT}/me/sessions")


def end_my_session(session: str = "current") -> Request:
    return Request("DELETE", f"{_ROOT}/me/sessions/{quote(session, safe='')}", fields=("ended",))


def end_my_sessions() -> Request:
    """All of them, on other machines too."""
    return Request("DELETE", f"{_ROOT}/me/sessions", fields=("ended",))


def my_pass() -> Request:
    """A short-lived token for the management API; for sessions alone."""
    return Request("POST", f"{_ROOT}/me/token", fields=("token", "expires_at"))
