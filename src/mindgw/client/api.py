"""The management API as values: what to ask, without asking it. One function a call; the transports carry them out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

_ROOT = "/api/v1"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request below a server's root URL."""

    method: str
    path: str
    #: Sent as JSON; None: no body.
    json: dict[str, Any] | None = None
    #: Sent as `If-Match`: the change is refused when the object has another version by now.
    if_match: int | None = None
    #: Fields that the answer of every MindGateway has; who answers without them is none.
    fields: tuple[str, ...] = field(default=(), compare=False)


def root_url(url: str) -> str:
    """A server's root URL from what people paste: the base URL of the OpenAI API is as good."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _item(noun: str, name: str) -> str:
    return f"{_ROOT}/{noun}/{quote(name, safe='')}"


def following(request: Request, cursor: str) -> Request:
    """The same list from where its `next` points to."""
    path, _, query = request.path.partition("?")
    parts = [part for part in query.split("&") if part and not part.startswith("cursor=")]
    return Request(request.method, path + "?" + "&".join([*parts, urlencode({"cursor": cursor})]))


def list_keys() -> Request:
    return Request("GET", f"{_ROOT}/keys")


def create_key(
    name: str,
    *,
    team: str | None = None,
    user: str | None = None,
    priority: str | None = None,
    trusted_proxy: bool = False,
    role: str | None = None,
    bounds: Mapping[str, Any] = _NOTHING,
) -> Request:
    """`team` and `user` (an e-mail address) are made when they do not exist; `bounds`: what else is said of it, by field."""
    given = {"team": team, "user": user, "priority": priority, "trusted_proxy": trusted_proxy or None, "role": role}
    said = {"name": name, **{key: value for key, value in given.items() if value is not None}, **bounds}
    return Request("POST", f"{_ROOT}/keys", said, fields=("id", "name", "key"))


def show_key(key_id: str) -> Request:
    return Request("GET", _item("keys", key_id), fields=("id", "name"))


def revoke_key(key_id: str, *, version: int | None = None) -> Request:
    return Request("DELETE", _item("keys", key_id), if_match=version, fields=("id", "name"))


def list_join_tokens() -> Request:
    return Request("GET", f"{_ROOT}/join-tokens")


def create_join_token(
    *, ttl_seconds: int, max_uses: int, name: str | None = None, approve: str = "auto", public_pki: bool = False
) -> Request:
    body: dict[str, Any] = {"ttl_seconds": ttl_seconds, "max_uses": max_uses, "approve": approve}
    body |= {"public_pki": True} if public_pki else {}
    return Request("POST", f"{_ROOT}/join-tokens", body if name is None else {**body, "name": name}, fields=("id", "token", "expires_at"))


def revoke_join_token(token_id: str) -> Request:
    return Request("DELETE", _item("join-tokens", token_id), fields=("id",))


def list_workers() -> Request:
    return Request("GET", f"{_ROOT}/workers")


def show_worker(worker: str) -> Request:
    """`worker` is an id or a name."""
    return Request("GET", _item("workers", worker), fields=("id", "name"))


def worker_trend(worker: str, *, since: str = "", step: str = "") -> Request:
    """How it was; `since` is a span or a moment, `step` a span."""
    return Request("GET", asked(f"workers/{quote(worker, safe='')}/trend", since=since, step=step), fields=("worker", "columns"))


def remove_worker(worker: str, *, version: int | None = None) -> Request:
    return Request("DELETE", _item("workers", worker), if_match=version, fields=("id", "name"))


def set_worker(worker: str, what: str, *, version: int | None = None) -> Request:
    """`what` is drain, undrain or release."""
    return Request("POST", f"{_item('workers', worker)}/{what}", if_match=version, fields=("id", "name"))


def tag_worker(worker: str, tags: Mapping[str, str | None], *, version: int | None = None) -> Request:
    """None takes a tag away."""
    return Request("PATCH", f"{_item('workers', worker)}/tags", {"tags": dict(tags)}, if_match=version, fields=("name", "tags"))


def order_worker(worker: str, verb: str, argument: str = "") -> Request:
    """`verb` is restart, logs, load, unload or pull."""
    return Request("POST", f"{_item('workers', worker)}/commands", {"verb": verb, "argument": argument}, fields=("id", "state"))


def show_order(worker: str, command: str) -> Request:
    return Request("GET", f"{_item('workers', worker)}/commands/{quote(command, safe='')}", fields=("id", "state"))


def list_models() -> Request:
    return Request("GET", f"{_ROOT}/models")


def list_queue(*, state: str = "", model: str = "", team: str = "", user: str = "", key: str = "") -> Request:
    """Who waits; `state` is waiting, running or all. What is not empty leaves out all others."""
    given = {"state": state, "model": model, "team": team, "user": user, "key": key}
    asked = urlencode({name: value for name, value in given.items() if value})
    return Request("GET", f"{_ROOT}/queue{f'?{asked}' if asked else ''}")


def show_queued(request_id: str) -> Request:
    return Request("GET", _item("queue", request_id), fields=("id", "state"))


def cancel_queued(request_id: str) -> Request:
    return Request("DELETE", _item("queue", request_id), fields=("id", "state"))


def bump_queued(request_id: str) -> Request:
    return Request("POST", _item("queue", request_id) + "/bump", fields=("id", "state"))


def pause_queue(model: str = "") -> Request:
    """Of one model, or of all."""
    return Request("POST", f"{_ROOT}/queue/pause", {"model": model}, fields=("paused",))


def resume_queue(model: str = "") -> Request:
    """Of one model, or of all."""
    return Request("POST", f"{_ROOT}/queue/resume", {"model": model}, fields=("paused",))


def queue_stats() -> Request:
    return Request("GET", f"{_ROOT}/queue/stats", fields=("waiting", "running"))


def events() -> Request:
    """The feed; `client.feed` asks for it as a WebSocket."""
    return Request("GET", f"{_ROOT}/events")


def show_status() -> Request:
    return Request("GET", f"{_ROOT}/status", fields=("ready", "workers", "queue"))


def show_version() -> Request:
    return Request("GET", f"{_ROOT}/version", fields=("version",))


def readiness() -> Request:
    """Outside the management API, needs no key: 200 when the server can serve."""
    return Request("GET", "/readyz")


def authority() -> Request:
    """The server's CA certificate as PEM; needs no key, is absent on plain HTTP."""
    return Request("GET", "/.well-known/mindgw/ca.pem")


def served_models() -> Request:
    """The models as the OpenAI API lists them; any key will do."""
    return Request("GET", "/v1/models")


def chat(model: str, messages: list[dict[str, str]], *, stream: bool = True, **more: Any) -> Request:
    """`more` are further fields of the request, such as `max_tokens`."""
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": stream, **more}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Request("POST", "/v1/chat/completions", body)


def list_dead_letters() -> Request:
    """Requests that failed for good, the latest first."""
    return Request("GET", f"{_ROOT}/dead-letters")


def show_dead_letter(letter: str) -> Request:
    """`letter` is its id or that of its request."""
    return Request("GET", _item("dead-letters", letter), fields=("id", "request_id", "code"))


def retry_dead_letter(letter: str) -> Request:
    """Takes as long as the request does."""
    return Request("POST", f"{_item('dead-letters', letter)}/retry", fields=("letter", "answer"))


def drop_dead_letter(letter: str) -> Request:
    return Request("DELETE", _item("dead-letters", letter), fields=("id",))


def asked(path: str, **given: str | None) -> str:
    """With what is given as a query."""
    query = urlencode({name: value for name, value in given.items() if value})
    return f"{_ROOT}/{path}{'?' if query else ''}{query}"


def list_quotas(scope: str | None = None) -> Request:
    """All limits, or those of one scope: key:ID, user:EMAIL, team:NAME, org:NAME or model:NAME."""
    return Request("GET", asked("quotas", scope=scope))


def set_quotas(scope: str, tokens: list[str], usd: list[str], on_exceed: str = "", *, version: int | None = None) -> Request:
    """Limits as people write them, such as 5M/month, in tokens and in dollars."""
    body = {"scope": scope, "tokens": tokens, "usd": usd, "on_exceed": on_exceed}
    return Request("PUT", f"{_ROOT}/quotas", body, if_match=version, fields=("items",))


def reset_quotas(scope: str, *, unit: str = "", period: str = "", version: int | None = None) -> Request:
    body = {"scope": scope, "unit": unit, "period": period}
    return Request("POST", f"{_ROOT}/quotas/reset", body, if_match=version, fields=("items",))


def clear_quotas(scope: str, *, unit: str = "", period: str = "", version: int | None = None) -> Request:
    return Request("DELETE", asked("quotas", scope=scope, unit=unit, period=period), if_match=version, fields=("items",))


def usage(by: str, *, since: str = "", until: str = "", **narrowed: str | None) -> Request:
    """`narrowed`: of which key, team, user or model."""
    return Request("GET", asked("usage", by=by, since=since, until=until, **narrowed), fields=("items", "total"))


def ledger_entries(request_id: str) -> Request:
    return Request("GET", asked("ledger", request=request_id))


def verify_ledger() -> Request:
    """The answer comes in lines, see `client.checks`."""
    return Request("GET", f"{_ROOT}/ledger/verify")


def show_receipts(request_id: str) -> Request:
    return Request("GET", asked("receipts", request=request_id))
