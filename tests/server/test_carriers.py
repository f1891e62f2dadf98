"""A key is held to the same bounds whichever header carries it, and nothing but these headers carries one; on both lanes."""

from datetime import timedelta

import pytest

from mindgw.clock import utcnow
from tests.e2e.raw import CHAT, head
from tests.server.hall import LANES, chat, hall
from tests.server.test_access import in_place

#: Name -> the line that carries a key.
CARRIERS = {
    "authorization": "Authorization: Bearer {key}",
    "x-api-key": "X-Api-Key: {key}",
    "api-key": "api-key: {key}",
    "twice": "x-api-key: {key}\r\nauthorization: bearer {key}",
}
#: What a key is held to -> (its columns, status and code of a chat request, and of the list of models).
BOUNDS = {
    "models": ({"scopes": {"models": ["other*"]}}, (404, "model_not_found"), (200, "")),
    "routes": ({"scopes": {"routes": ["embeddings"]}}, (403, "route_not_allowed"), (403, "route_not_allowed")),
    "addresses": ({"scopes": {"addresses": ["192.0.2.0/24"]}}, (403, "address_not_allowed"), (403, "address_not_allowed")),
    "role": ({"role": "viewer"}, (403, "role_not_allowed"), (200, "")),
    "end": ({"expires_at": utcnow() - timedelta(days=1)}, (401, "expired_api_key"), (401, "expired_api_key")),
    "rate": ({"rpm": 1}, (429, "rate_limit_exceeded"), (200, "")),
}
#: Where a key is not looked for: a query, and lines of a head.
ELSEWHERE = {
    "query": ("?api_key={key}&key={key}&token={key}&access_token={key}&authorization=Bearer%20{key}", ""),
    "cookie": ("", "cookie: {key}; api_key={key}; session={key}; authorization=Bearer {key}"),
    "subprotocol": ("", "sec-websocket-protocol: {key}, openai-insecure-api-key.{key}"),
    "proxy": ("", "proxy-authorization: Bearer {key}"),
    "other headers": ("", "x-goog-api-key: {key}\r\nx-auth-token: {key}\r\nauthentication: Bearer {key}\r\nx-authorization: Bearer {key}"),
}


@pytest.fixture(scope="module", params=LANES)
def here(request):
    with hall(request.param) as made:
        yield made


def asked(here, line, query="", *, path=CHAT):
    """(status, code of the error, body) of a request with that line in its head."""
    body = chat("plain") if path == CHAT else b""
    lines = [*line.split("\r\n")] if line else []
    size = [f"content-length: {len(body)}", "content-type: application/json"] if body else []
    with here.raw() as raw:
        raw.send(head(path + query, *lines, *size, method="POST" if body else "GET") + body)
        answer = raw.answer()
    return answer.status, answer.error["code"] if answer.status >= 400 else "", answer.body


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_every_bound_holds_for_every_carrier(here, bound, carrier):
    columns, of_chat, of_models = BOUNDS[bound]
    key = here.do(lambda: here.world.add_key(**columns))
    line = CARRIERS[carrier].format(key=key)
    if bound == "rate":
        assert asked(here, CARRIERS["authorization"].format(key=key))[0] == 200
    assert asked(here, line)[:2] == of_chat
    status, code, body = asked(here, line, path="/v1/models")
    assert (status, code) == of_models
    if bound == "models":
        assert b'"id"' not in body


@pytest.mark.parametrize("carrier", CARRIERS)
def test_without_a_bound_every_carrier_will_do(here, carrier):
    assert asked(here, CARRIERS[carrier].format(key=here.key))[:2] == (200, "")


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_a_key_anywhere_else_is_none(here, place, path):
    query, line = (text.format(key=here.key) for text in ELSEWHERE[place])
    assert asked(here, line, query, path=path)[:2] == (401, "missing_api_key")


@pytest.mark.parametrize("carrier", [name for name in CARRIERS if name != "twice"])
@in_place
async def test_management_holds_a_key_to_its_bounds_too(place, carrier):
    name, value = CARRIERS[carrier].split(": ")
    place.http.headers.pop("authorization", None)
    admin = {"authorization": f"Bearer {place.key}"}
    bounds = {
        "routes": ({"routes": ["chat"]}, (403, "route_not_allowed")),
        "addresses": ({"addresses": ["192.0.2.0/24"]}, (403, "address_not_allowed")),
        "role": ({"role": "user"}, (403, "forbidden")),
    }
    for bound, (facts, wanted) in bounds.items():
        made = await place.call("POST", "/keys", headers=admin, json={"name": bound, "role": "admin"} | facts)
        assert made.status_code == 201, made.text
        answer = await place.call("GET", "/keys", headers={name: value.format(key=made.json()["key"])})
        assert (answer.status_code, answer.json()["error"]["code"]) == wanted, bound
    good = await place.call("GET", "/keys", headers={name: value.format(key=place.key)})
    assert good.status_code == 200


@pytest.mark.parametrize("where", ELSEWHERE)
@in_place
async def test_management_looks_for_keys_in_no_other_place(place, where):
    place.http.headers.pop("authorization", None)
    query, lines = (text.format(key=place.key) for text in ELSEWHERE[where])
    headers = dict(line.split(": ", 1) for line in lines.split("\r\n") if line)
    for path in ("/api/v1/keys", "/metrics", "/api/v1/events", "/api/v1/me"):
        answer = await place.http.request("GET", path + query, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key"), path
