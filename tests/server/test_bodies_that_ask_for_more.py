"""Bodies of the management API that ask for more than there is to be had: privileged fields that nobody may set, roles above one's own,
and objects that a careless reader would make."""

import ast
import asyncio
import json
import pickle
import sqlite3
import typing
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from mindgw import config
from mindgw.control import secrets, setup
from mindgw.core import access
from mindgw.server import management
from mindgw.server.app import build
from mindgw.server.management import invitations
from mindgw.store.database import Database
from tests.house import ROOT

#: What somebody would add to a body who wants to be more than they are.
PRIVILEGED = (
    "role", "roles", "rank", "permissions", "mask", "is_admin", "admin", "is_home", "home", "org", "org_id", "user_id", "team_id",
    "id", "key_id", "version", "state", "limit", "lim", "rpm", "priority", "digest", "secret", "key", "created_at", "revoked_at",
    "built_in", "service", "scopes", "trusted_proxy", "labels", "__class__", "__proto__",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [True, None, 0, 1, 100, 2**31, "admin", "operator", "root", "admin@localhost", "*", "*:*", "active", "high", "default"]
    ),
    st.sampled_from([["*:*"], ["admin"], {"role": "admin"}, {"$set": {"role": "admin"}}, [], {}, "op@x.org", "me@x.org", "team:default"]),
)


def bodies():
    """(method, path, model) of each route of the management API that takes a body, by the table of routes."""
    for handler in (handler for room in management.ROOMS for handler in room.HANDLERS):
        wanted = typing.get_type_hints(handler.fn).get("data")
        for path in handler.paths if wanted is not None else ():
            yield min(handler.http_methods), path, wanted


TAKERS = [*bodies(), ("POST", "/invitations/accept", invitations.Shown)]


def structs(kind):
    """The model, and all models that stand in it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs(field.type)
    for part in typing.get_args(kind):
        yield from structs(part)


def test_there_are_such_routes():
    assert len(TAKERS) >= 20
    assert all(list(structs(model)) for _, _, model in TAKERS)


@pytest.mark.parametrize(("method", "path", "model"), TAKERS, ids=[f"{method} {path}" for method, path, _ in TAKERS])
def test_no_model_takes_a_field_that_it_does_not_know(method, path, model):
    assert [each.__name__ for each in structs(model) if not each.__struct_config__.forbid_unknown_fields] == []


class House:
    """A server with an administrator, an operator and a user, the database of which is read beside it."""

    def __init__(self, client: TestClient, file: Path, admin: str) -> None:
        self.client, self.file = client, file
        self.keys = {"admin": admin}
        for email, role in (("op@x.org", "operator"), ("me@x.org", "user")):
            self.ask("POST", "/users", {"email": email, "role": role})
            made = self.ask("POST", "/keys", {"name": role, "user": email})
            assert made.status_code == 201, made.text
            self.keys[role] = made.json()["key"]
        invited = self.ask("POST", "/users", {"email": "me@x.org"}).json()["invitation"]
        self.keys["session"] = self.ask("POST", "/invitations/accept", {"invitation": invited}, who=None).json()["session"]
        assert self.ask("POST", "/orgs", {"name": "acme"}).status_code == 201
        assert self.ask("POST", "/teams", {"name": "nlp"}).status_code == 201

    def ask(self, method, path, body=None, who="admin", **more):
        headers = {"authorization": f"Bearer {self.keys[who]}"} if who else {}
        said = {"json": body} if "content" not in more else {}
        return self.client.request(method, f"/api/v1{path}", headers=headers | more.pop("headers", {}), **said, **more)

    def stored(self, *tables):
        """All rows as they are, without when they were last seen, which is written beside the requests."""
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            found = {table: [dict(row) for row in db.execute(f"select * from {table}")] for table in tables}
        beside = {"last_used_at", "last_seen_at"}
        return {table: sorted(str(row | dict.fromkeys(beside & set(row))) for row in rows) for table, rows in found.items()}

    def risen(self):
        """Who can do as much as an administrator, or stands as high: people, keys and roles; and which organisations there are."""
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as db:
            asked = (
                "select email, role from users where role not in ('user', 'viewer')",
                "select id, role, user_id from keys where role not in ('user', 'viewer') or priority = 'high'",
                "select user_id, role, team_id from role_bindings",
                "select name, rank, permissions from roles",
                "select id, name, state from orgs",
            )
            return [sorted(map(repr, db.execute(one))) for one in asked]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    directory = tmp_path_factory.mktemp("more") / "data"
    made = asyncio.run(setup.initialise(directory))
    known = config.load(None, directory)
    database = Database(known.database_url)
    app = build(known, secrets.load(directory), database).app
    app.on_shutdown.append(database.close)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield House(client, directory / "mindgw.db", made.api_key)


def path_of(template, person):
    """Somebody, or something, that is there."""
    names = {"key": person, "user": f"{person}@x.org", "role": "operator", "org": "acme", "entry": "x", "letter": "x"}
    return "/".join(names.get(part.strip("{}").partition(":")[0], part) if part.startswith("{") else part for part in template.split("/"))


#: Bodies that are good as they are.
GOOD = {
    "/keys": {"name": "k"}, "/keys/{key:str}": {"name": "k"}, "/users": {"email": "new@x.org"}, "/users/{user:str}": {"name": "N"},
    "/service-accounts": {"name": "bot"}, "/roles": {"name": "mine", "permissions": ["read:keys"], "rank": 1},
    "/roles/{role:str}/bindings": {"user": "me@x.org"}, "/orgs": {"name": "other"}, "/orgs/{org:str}": {"labels": {}},
    "/teams": {"name": "t"},
    "/rates": {"scope": "team:nlp", "rpm": 5}, "/quotas": {"scope": "team:nlp", "tokens": ["5/day"]}, "/me/keys": {"name": "mine"},
    "/access/rules": {"subject": "role:user", "effect": "deny", "pattern": "x"},
}  # fmt: skip
#: Everything that these routes change.
STATE = ("keys", "users", "roles", "role_bindings", "orgs", "teams", "rates", "quotas", "access_rules", "join_tokens", "audit")


@pytest.mark.parametrize(("method", "path", "model"), TAKERS, ids=[f"{method} {path}" for method, path, _ in TAKERS])
def test_a_field_that_is_not_ones_to_set_is_refused_and_changes_nothing(house, method, path, model):
    before = house.stored(*STATE)
    for field in PRIVILEGED:
        if field in model.__struct_fields__:
            continue
        who = "session" if path.startswith("/me/") else "admin"
        answer = house.ask(method, path_of(path, "user"), GOOD.get(path, {}) | {field: "admin"}, who=who)
        assert answer.status_code == 400, (field, answer.text)
        assert house.stored(*STATE) == before, field


some = st.sampled_from(TAKERS).flatmap(
    lambda taker: st.tuples(
        st.just(taker),
        st.dictionaries(st.sampled_from(sorted({*taker[2].__struct_fields__, *PRIVILEGED[:8]})), VALUES, max_size=4),
        st.booleans(),
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some, st.sampled_from(["user", "session", "operator"]), st.sampled_from(["user", "operator", "admin"]))
def test_nobody_rises_whatever_the_body_says(house, asked, who, whom):
    (method, path, _), fields, good = asked
    before = house.risen()
    body = (GOOD.get(path, {}) if good else {}) | fields
    answer = house.ask(method, path_of(path, whom), body, who=who)
    assert answer.status_code < 500, answer.text
    rights = [house.ask("GET", "/me", who=each).json()["permissions"] for each in ("user", "session", "operator")]
    assert rights == [access.names(access.BUILT_IN[role].mask) for role in ("user", "user", "operator")]
    after = house.risen()
    assert [row for table in after for row in table if "admin" in row] == [row for table in before for row in table if "admin" in row]
    assert after[2:] == before[2:], "bindings, roles and organisations"


# -- objects -----------------------------------------------------------------------------------------------------------


class Touch:
    """Leaves a file behind when somebody reads it with pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def disguised(trap):
    """(media type, body) of each way to have a reader make an object."""
    yaml = f"!!python/object/apply:os.system ['touch {trap}']\n"
    calls = {"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, [f"touch {trap}"]]}
    return [
        ("application/yaml", yaml.encode()),
        ("application/x-yaml", f"name: !!python/object/new:os.system ['touch {trap}']".encode()),
        ("application/json", yaml.encode()),
        *((kind, pickle.dumps(Touch(trap))) for kind in ("application/octet-stream", "application/x-pickle", "application/json")),
        ("application/x-msgpack", msgspec.msgpack.encode({"name": "k"})),
        ("application/json", json.dumps({"name": calls}).encode()),
        ("application/json", json.dumps({"name": "k", **calls}).encode()),
        ("application/json", json.dumps({"name": "k", "__reduce__": ["os.system", [f"touch {trap}"]]}).encode()),
        ("application/xml", b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><name>&x;</name>'),
        ("text/plain", f"__import__('os').system('touch {trap}')".encode()),
    ]


@pytest.mark.parametrize(
    "path", ["/api/v1/keys", "/api/v1/orgs", "/api/v1/me/keys", "/v1/chat/completions", "/v1/embeddings", "/agent/v1/join"]
)
def test_nothing_but_json_is_read_and_nothing_is_made_of_it(house, tmp_path, path):
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists(), "it works where somebody reads it"
    trap.unlink()
    before = house.stored("keys", "orgs", "users")
    for kind, body in disguised(trap):
        headers = {"content-type": kind, "authorization": f"Bearer {house.keys['session' if '/me/' in path else 'admin']}"}
        answer = house.client.post(path, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (kind, body, answer.text)
        assert "root:" not in answer.text
    assert not trap.exists()
    assert house.stored("keys", "orgs", "users") == before


#: What makes objects, or runs code, of data.
FORBIDDEN = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "joblib",
    "jinja2",
    "eval",
    "exec",
    "unsafe_load",
    "full_load",
}


def test_nothing_in_the_program_makes_objects_of_data():
    """By name: what is not there cannot be misused. YAML goes by the safe loader, and is composed into nodes, never loaded."""
    found, seen = [], 0
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "agent" / "src").rglob("*.py")]:
        seen += 1
        for node in ast.walk(ast.parse(path.read_text())):
            names = {
                ast.Import: lambda node: [alias.name.partition(".")[0] for alias in node.names],
                ast.ImportFrom: lambda node: [(node.module or "").partition(".")[0]],
                ast.Call: lambda node: [getattr(node.func, "id", "")],
                ast.Attribute: lambda node: [node.attr] if node.attr in {"unsafe_load", "full_load", "UnsafeLoader", "FullLoader"} else [],
            }.get(type(node), lambda _: [])(node)
            found += [f"{path.name}:{node.lineno} {name}" for name in names if name in FORBIDDEN or name.endswith("Loader")]
            is_yaml = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "yaml" and node.attr in {"load", "load_all"}
            found += [f"{path.name}:{node.lineno} yaml.{node.attr}"] if is_yaml else []
    assert seen > 200
    assert found == []
