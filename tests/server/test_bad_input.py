"""What makes no sense, in every place of every route where something can be said, by the server's own description: it is refused in words,
on both databases alike, and nothing fails."""

import json
import re
from urllib.parse import quote

import pytest

from tests.server.site import site

NUL = "a\0b"
#: What a field of a body is said to be.
VALUES = [
    *(None, True, 0, -1, 1.5, 2**63, 10**30, "", "\ud800", "x" * 5000, [], [None], {}, {"a": 1}, "9999-12-31T23:59:59Z"),
    *("0001-01-01T00:00:00+23:59", "9999999d", "*", ["*"] * 200, ["10.0.0.5/8"], "1e400", "${HOME}", "'; DROP TABLE keys;--"),
]
#: The same with a character that Postgres does not take.
NULS = [NUL, [NUL], {NUL: "x"}, {"x": NUL}, "\0", "\\\0"]
#: What a part of a path or of a query is said to be, as it is sent.
WORDS = ["%ff", "%ed%a0%80", "%0d%0aX:1", "-1", "9" * 30, "a" * 3000, "%25", "0001-01-01", "36500d", "user:%ff", "%F0%9F%92%A5", ""]
#: What fits, so that the other field is what is wrong.
GOOD = {
    "name": "n",
    "email": "u@x.org",
    "scope": "team:default",
    "permissions": ["read:keys"],
    "rank": 5,
    "subject": "role:user",
    "effect": "allow",
    "pattern": "a",
    "user": "admin@localhost",
    "role": "user",
    "invitation": "mgwi_x",
}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def requests(description):
    """(method, path, body, whether it has a NUL) of all that is tried."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            told = operation.get("parameters", [])
            bare = re.sub(r"\{[^}]*\}", "x", path)
            for one in [*WORDS, quote(NUL)]:
                if "{" in path:
                    yield method, re.sub(r"\{[^}]*\}", one or "x", path), None, "%00" in one
                for name in [each["name"] for each in told if each["in"] == "query"]:
                    yield method, f"{bare}?{name}={one}", None, "%00" in one
            for body in bodies(description, operation):
                yield method, bare, body, body is not None and "\\u0000" in body


def bodies(description, operation):
    if "requestBody" not in operation:
        return
    schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
    model = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    fits = {name: GOOD[name] for name in model.get("required", ()) if name in GOOD}
    for name in model.get("properties", {}):
        yield from (json.dumps({**fits, name: value}) for value in [*VALUES, *NULS])


async def test_nothing_that_is_said_anywhere_makes_the_server_fail(tmp_path, url):
    async with site(tmp_path / "data", database_url=url) as place:
        description = (await place.call("GET", "/openapi.json")).json()
        failed, taken, tried = [], [], 0
        for method, path, body, has_nul in requests(description):
            headers = {"content-type": "application/json"} if body is not None else {}
            answer = await place.http.request(method.upper(), path, content=body, headers=headers)
            tried += 1
            if answer.status_code >= 500:
                failed.append((method, path[:80], (body or "")[:80], answer.status_code))
            if has_nul and answer.status_code != 400:
                taken.append((method, path[:80], (body or "")[:80], answer.status_code))
        assert (failed, taken) == ([], [])
        assert tried > 2000


async def test_a_text_that_only_speaks_of_it_is_taken(tmp_path):
    async with site(tmp_path / "data") as place:
        made = await place.call(
            "PATCH", "/users/admin@localhost", content=rb'{"name": "a\\u0000%00"}', headers={"content-type": "application/json"}
        )
        assert (made.status_code, made.json()["name"]) == (200, "a\\u0000%00")
        assert (await place.call("GET", "/keys/a%2500b")).status_code == 404
