"""The management API over its real store; what is live behind it is a fake that each test fills."""

import asyncio
import re
from datetime import UTC, datetime

import pytest
from litestar import Litestar
from litestar.datastructures import State
from litestar.middleware.compression import CompressionMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.testing import TestClient
from sqlmodel import select

from mindgw import clock, config
from mindgw.control import secrets, setup
from mindgw.control.identify import Visitor
from mindgw.control.principal import Home
from mindgw.control.refusals import Watch
from mindgw.core import access
from mindgw.errors import Unauthenticated
from mindgw.gateway.snapshot import CircuitView, EngineView, ModelView, Snapshot, WorkerView
from mindgw.server import app, management, problems
from mindgw.store import fleet
from mindgw.store.database import Database
from mindgw.store.tables import AuditEntry
from mindgw_agent.tokens import JoinToken, parse_key
from mindgw_agent.wire import Model
from tests.server.test_access import rooms

ADMIN = {"authorization": "Bearer admin"}
USER = {"authorization": "Bearer user"}
SEEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: All routes, as `test_access` has them with what they take.
ROUTES = [(door.method, door.path) for door in rooms()]


class Floor:
    """A FAKE of the pipeline: shows what it was given, keeps what it was told."""

    def __init__(self) -> None:
        self.workers: list[WorkerView] = []
        self.models: list[ModelView] = []
        self.revoked: list[str] = []
        self.removed: list[str] = []

    def snapshot(self) -> Snapshot:
        return Snapshot(workers=self.workers, waiting=2, running=1, started_at=clock.monotonic() - 60)

    def served(self) -> list[ModelView]:
        return self.models

    def revoke_key(self, key_id: str) -> None:
        self.revoked.append(key_id)

    def remove_worker(self, worker_id: str) -> None:
        self.removed.append(worker_id)


class Keys:
    """A FAKE of the key check: `admin` and `user` are keys of the organisation that runs the server."""

    def __init__(self, home: Home) -> None:
        self.home = home

    async def __call__(self, headers: list[tuple[bytes, bytes]], path: str, address: str) -> Visitor:
        role = dict(headers).get(b"authorization", b"").removeprefix(b"Bearer ").decode()
        if role not in {"admin", "user"}:
            raise Unauthenticated
        rights = access.combine([(access.BUILT_IN[role], None)])
        return Visitor(key_id="root", org_id=await self.home.id(), user_id="", email="", rights=rights)


def serves(id, **values):
    facts = {"aliases": [], "created": 0, "workers": ["b"], "slots": 4, "used": 1, "context": None, "kinds": ["chat"]}
    return ModelView(id=id, **facts | values)


def runs(*models, id="e", slots=4, used=1, **values):
    facts = {"kind": "vllm", "version": "9", "url": "http://127.0.0.1:8000", "healthy": True} | values
    return EngineView(id=id, slots=slots, used=used, models=list(models) or [Model("m", 4096, ["chat"])], **facts)


def view(row, *engines, **values):
    engines = list(engines) or [runs()]
    slots, used = sum(engine.slots for engine in engines), sum(engine.used for engine in engines)
    facts = {
        "id": row.id, "name": row.name, "state": "ready", "slots": slots, "used": used, "engines": engines, "gpus": [],
        "rtt_ms": 1.5, "last_seen": SEEN, "epoch": 3,
    }  # fmt: skip
    return WorkerView(**{**facts, **values})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("management") / "data"
    asyncio.run(setup.initialise(made))
    return made


@pytest.fixture
def floor():
    return Floor()


@pytest.fixture
def database(directory):
    return Database(config.load(None, directory).database_url)


@pytest.fixture
def api(directory, floor, database):
    async def close():
        await database.close()

    state = State(
        {
            "database": database, "pipeline": floor, "home": Home(database), "identify": Keys(Home(database)), "refusals": Watch(database),
            "secrets": secrets.load(directory), "config": config.load(None, directory),
        }
    )  # fmt: skip
    described = OpenAPIConfig(
        title="t", version="1", path="/api/v1", openapi_router=management.described(), render_plugins=[management.openapi_json()]
    )
    app = Litestar([management.router()], state=state, exception_handlers=problems.HANDLERS, openapi_config=described, on_shutdown=[close])
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.headers.update(ADMIN)
        yield client


def call(api, method, path, **more):
    return api.request(method, f"/api/v1{path}", **more)


# -- the door -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"authorization": ""}, {"authorization": "Bearer x"}])
def test_nobody_comes_in_without_a_key(api, headers):
    for method, path in ROUTES:
        refused = call(api, method, path, headers=headers, content=b"not even read")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("GET", "/keys/nothing", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", "/nothing/at/all", {}, 404),
        ("PUT", "/keys", {}, 405),
        ("POST", "/keys", {"json": {}}, 400),
        ("POST", "/keys", {"content": b"[" * 9999}, 400),
        ("GET", "/keys", {"headers": {"authorization": ""}}, 401),
        ("DELETE", "/keys/x", {"headers": {"if-match": "x"}}, 400),
    ],
)
def test_every_refusal_has_an_id_that_the_log_knows(api, caplog, method, path, more, status):
    caplog.set_level("INFO", "mindgw.request")
    refused = call(api, method, path, **more)
    error = refused.json()["error"]
    assert (refused.status_code, error["request_id"]) == (status, refused.headers["x-mindgw-request-id"])
    (line,) = [record.fields for record in caplog.records if record.name == "mindgw.request"]
    assert (line["request_id"], line["status"], line["error_code"]) == (error["request_id"], status, error["code"])


def test_the_callers_own_id_comes_back_from_a_refusal(api):
    refused = call(api, "GET", "/keys/nothing", headers={"x-request-id": "mine"})
    assert refused.headers["x-request-id"] == "mine" != refused.json()["error"]["request_id"]


def test_refusals_say_what_to_do_where_something_can_be_done(api, join):
    join("seen")
    assert "mindgw roles" in call(api, "GET", "/keys", headers=USER).json()["error"]["hint"]
    assert "--new-admin-key" in call(api, "GET", "/keys", headers={"authorization": ""}).json()["error"]["hint"]
    assert "again" in call(api, "DELETE", "/workers/seen", headers={"if-match": "9"}).json()["error"]["hint"]
    assert "mindgw keys list" in call(api, "GET", "/keys/nothing").json()["error"]["hint"]
    assert "hint" not in call(api, "GET", "/nothing").json()["error"]


def test_the_table_of_routes_is_complete(api):
    paths = api.get("/api/v1/openapi.json").json()["paths"]
    told = {(method.upper(), re.sub(r"{\w+}", "x", path)) for path, methods in paths.items() for method in methods}
    assert told == {(method, f"/api/v1{path}") for method, path in ROUTES}


def test_the_description_is_openapi_3_1_and_complete_in_itself(api):
    described = api.get("/api/v1/openapi.json", headers={"authorization": ""})
    assert described.headers["content-type"].startswith("application/vnd.oai.openapi+json")
    document = described.json()
    assert document["openapi"].startswith("3.1")
    assert "key" in document["components"]["securitySchemes"]
    wish = document["components"]["schemas"]["KeyWish"]
    assert wish["required"] == ["name"]
    assert "cdn" not in described.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None), (b"{", None), (b"[]", None), (b"null", None), (b'"x"', None), (b"[" * 20_000, None), (b"\xff\xfe", None),
        (b"{}", None), (b'{"name": 3}', "name"), (b'{"name": ""}', "name"), (b'{"name": "\\u0001"}', "name"), (b'{"name": " "}', "name"),
        (b'{"name": "x", "role": 7}', "role"), (b'{"name": "x", "colour": 1}', None), (b'{"name": "x", "user": "nobody"}', "user"),
        (b'{"name": "x", "team": "\\n"}', "team"), (b'{"name": "x", "priority": "a b"}', "priority"),
        (b'{"name": "%s"}' % (b"x" * 201), "name"),
    ],
)  # fmt: skip
def test_a_body_that_does_not_fit_is_named(api, body, param):
    refused = call(api, "POST", "/keys", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert "Traceback" not in refused.text


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"[]", "The request body must be an object, not a list.", None),
        (b"{}", "'name' is missing.", None),
        (b'{"name": 3}', "'name' must be a text, not a whole number.", "name"),
        (b'{"name": ""}', "'name' must have at least 1 character.", "name"),
        (b'{"name": "x", "trusted_proxy": "yes"}', "'trusted_proxy' must be true or false, not a text.", "trusted_proxy"),
        (b'{"name": "x", "colour": 1}', "There is no field 'colour'.", None),
        (b'{"name": "x", "priority": "bogus"}', "'priority' must be high, normal, batch or sheddable, not 'bogus'.", "priority"),
    ],
)
def test_what_does_not_fit_is_told_in_plain_words(api, body, message, param):
    error = call(api, "POST", "/keys", content=body, headers={"content-type": "application/json"}).json()["error"]
    assert (error["message"], error["param"]) == (message, param)


def test_a_large_body_is_refused(api):
    assert call(api, "POST", "/keys", content=b" " * (management.MAX_BODY + 1)).status_code == 413


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=" + "x" * 65])
def test_a_page_that_cannot_be_is_refused(api, query):
    refused = call(api, "GET", f"/keys?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == query.partition("=")[0]
    assert "`" not in refused.text


# -- keys ---------------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_and_revoked(api, floor):
    made = call(api, "POST", "/keys", json={"name": "one", "team": "nlp", "user": "a@b.c", "trusted_proxy": True})
    assert made.status_code == 201
    key = made.json()
    assert parse_key(key["key"])[0] == key["id"]
    assert key["created_at"].endswith("Z")
    shown = call(api, "GET", f"/keys/{key['id']}").json()
    assert shown == {field: value for field, value in key.items() if field != "key"}
    assert call(api, "GET", "/keys/one").json() == shown
    assert floor.revoked == []
    gone = call(api, "DELETE", "/keys/one").json()
    assert (gone["state"], gone["version"], floor.revoked) == ("revoked", 2, [key["id"]])


def test_pages_of_keys_join_without_gap_or_repetition(api):
    made = [call(api, "POST", "/keys", json={"name": f"p{number}"}).json()["id"] for number in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        page = call(api, "GET", f"/keys?limit=2{f'&cursor={cursor}' if cursor else ''}").json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert found == [item["id"] for item in call(api, "GET", "/keys").json()["items"]]
    assert len(set(found)) == len(found)
    assert [key for key in found if key in made] == made


@pytest.mark.parametrize(("header", "status"), [("1", 200), ('"1"', 200), ('W/"1"', 200), ("*", 200), ("7", 412), ("x", 400), ("-1", 400)])
def test_a_version_that_was_seen_is_honoured(api, floor, header, status):
    key = call(api, "POST", "/keys", json={"name": "versioned"}).json()["id"]
    assert call(api, "DELETE", f"/keys/{key}", headers={"if-match": header}).status_code == status
    assert floor.revoked == ([key] if status == 200 else [])


def test_a_name_that_two_keys_have_is_refused(api):
    ids = [call(api, "POST", "/keys", json={"name": "twin"}).json()["id"] for _ in range(2)]
    assert call(api, "DELETE", "/keys/twin").status_code == 409
    call(api, "DELETE", f"/keys/{ids[0]}")
    assert call(api, "GET", "/keys/twin").json()["id"] == ids[1]


def test_changes_are_audited_with_who_made_them(api, database):
    key = call(api, "POST", "/keys", json={"name": "audited"}).json()["id"]
    call(api, "DELETE", f"/keys/{key}")
    call(api, "DELETE", f"/keys/{key}")

    async def entries():
        fresh = Database(str(database.url).replace("+aiosqlite", ""))
        async with fresh.read() as session:
            found = (await session.exec(select(AuditEntry).where(AuditEntry.object == key).order_by(AuditEntry.id))).all()
        await fresh.close()
        return [(entry.actor, entry.action) for entry in found]

    assert asyncio.run(entries()) == [("root", "key.create"), ("root", "key.revoke")]


# -- join tokens --------------------------------------------------------------------------------------------------------------


def test_a_join_token_is_made_for_this_server(api, directory):
    made = call(api, "POST", "/join-tokens", json={"ttl_seconds": 60, "max_uses": 2, "name": "box"})
    assert made.status_code == 201
    token = JoinToken.decode(made.json()["token"])
    assert token.srv == secrets.load(directory).public_identity
    assert token.id.hex() == made.json()["id"]
    listed = next(item for item in call(api, "GET", "/join-tokens").json()["items"] if item["id"] == made.json()["id"])
    assert "token" not in listed
    assert (listed["state"], listed["uses"], listed["max_uses"], listed["name"], listed["created_by"]) == ("active", 0, 2, "box", "root")


def test_a_join_token_is_revoked(api):
    made = call(api, "POST", "/join-tokens", json={}).json()
    assert call(api, "DELETE", f"/join-tokens/{made['id']}").json()["state"] == "revoked"
    assert call(api, "DELETE", f"/join-tokens/{made['id']}").json()["version"] == 2
    assert call(api, "DELETE", "/join-tokens/nothing").status_code == 404


@pytest.mark.parametrize(
    "body", [{"ttl_seconds": 0}, {"max_uses": 0}, {"approve": "maybe"}, {"name": "a b"}, {"ttl_seconds": 10**9}, {"x": 1}]
)
def test_terms_that_make_no_sense_are_refused(api, body):
    assert call(api, "POST", "/join-tokens", json=body).status_code == 400


# -- workers and models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def join(directory):
    """Adds workers to the store, as joining does."""
    made = []

    def add(name, engine=None, models=None, **values):
        async def work():
            database = Database(config.load(None, directory).database_url)
            async with database.write() as session:
                row = await fleet.add_worker(session, name, name.encode().ljust(32, b"k"), **values)
                await fleet.note_report(
                    session,
                    row.id,
                    SEEN,
                    models=[{"id": "old", "kinds": ["chat"]}, {"odd": 1}] if models is None else models,
                    engine={"kind": "ollama"} if engine is None else engine,
                )
            await database.close()
            return row

        made.append(asyncio.run(work()))
        return made[-1]

    yield add

    async def remove():
        database = Database(config.load(None, directory).database_url)
        async with database.write() as session:
            for row in made:
                await fleet.set_state(session, row.id, "removed")
        await database.close()

    asyncio.run(remove())


def test_what_is_live_wins_over_what_is_stored(api, floor, join):
    here, away = join("here"), join("away")
    floor.workers = [view(here, circuits=[CircuitView(model="m", state="open", retry_s=4.2)])]
    first, second = call(api, "GET", "/workers").json()["items"]
    assert (first["circuits"], second["circuits"]) == ([{"model": "m", "state": "open", "retry_s": 4.2}], [])
    assert {"name": "here", "state": "ready", "slots": 4, "used": 1, "rtt_ms": 1.5, "epoch": 3, "version": 1}.items() <= first.items()
    assert first["engine"] == {"kind": "vllm", "version": "9", "url": "http://127.0.0.1:8000"}
    assert first["last_seen"] == "2026-01-02T03:04:05Z"
    assert {"name": "away", "state": "offline", "slots": 0, "used": 0, "rtt_ms": None}.items() <= second.items()
    assert second["engine"]["kind"] == "ollama"
    assert [model["id"] for model in second["models"]] == ["old"]
    assert call(api, "GET", f"/workers/{away.id}").json() == call(api, "GET", "/workers/away").json()


@pytest.mark.parametrize("state", ["pending", "locked"])
def test_what_the_operator_says_of_a_worker_wins_over_its_link(api, floor, join, state):
    floor.workers = [view(join(f"held-{state}", state=state))]
    assert call(api, "GET", f"/workers/held-{state}").json()["state"] == state


def test_a_removed_worker_is_gone_and_its_tunnel_is_told(api, floor, join):
    row = join("doomed")
    assert call(api, "DELETE", "/workers/doomed", headers={"if-match": "9"}).status_code == 412
    assert floor.removed == []
    assert call(api, "DELETE", "/workers/doomed").json()["id"] == row.id
    assert floor.removed == [row.id]
    assert call(api, "GET", "/workers/doomed").status_code == 404
    assert call(api, "DELETE", f"/workers/{row.id}").status_code == 404


def test_models_are_told_as_they_are_served(api, floor):
    floor.models = [serves("e"), serves("z", context=4096, workers=["a", "b"], slots=6, used=3, kinds=["chat", "completions"])]
    found = call(api, "GET", "/models").json()
    assert found == {
        "items": [
            {"id": "e", "workers": ["b"], "slots": 4, "used": 1, "context": None, "kinds": ["chat"]},
            {"id": "z", "workers": ["a", "b"], "slots": 6, "used": 3, "context": 4096, "kinds": ["chat", "completions"]},
        ],
        "next": None,
    }


def test_all_engines_of_a_worker_are_shown(api, floor, join):
    floor.workers = [view(join("box"), runs(Model("m"), id="e1"), runs(Model("m"), id="e2", kind="ollama", slots=8, used=2))]
    shown = call(api, "GET", "/workers/box").json()
    assert [(e["id"], e["kind"], e["slots"], e["used"]) for e in shown["engines"]] == [("e1", "vllm", 4, 1), ("e2", "ollama", 8, 2)]
    assert (shown["slots"], shown["used"], shown["engine"]["kind"], [model["id"] for model in shown["models"]]) == (12, 3, "vllm", ["m"])
    assert [model["id"] for model in shown["engines"][1]["models"]] == ["m"]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({}, []),
        ({"kind": 3}, []),
        ({"kind": "vllm", "version": "9"}, [("", "vllm", [])]),
        (
            {"kind": "a", "engines": [{"id": "1", "kind": "a", "models": ["m", "x"]}, {"id": "2", "kind": "b"}]},
            [("1", "a", ["m"]), ("2", "b", [])],
        ),
    ],
)
def test_engines_of_a_worker_that_is_away_are_those_of_its_last_report(api, join, stored, shown):
    join("away", engine=stored, models=[{"id": "m"}])
    engines = call(api, "GET", "/workers/away").json()["engines"]
    assert [(e["id"], e["kind"], [model["id"] for model in e["models"]]) for e in engines] == shown
    assert not any(e["healthy"] or e["slots"] or e["used"] for e in engines)


def test_the_status_counts(api, floor, join):
    rows = [join("up"), join("down")]
    floor.workers, floor.models = [view(rows[0])], [serves("m")]
    found = call(api, "GET", "/status").json()
    assert found["ready"] is True
    assert (found["workers"], found["models"], found["queue"]) == ({"ready": 1, "total": 2}, 1, {"waiting": 2, "running": 1})
    assert found["uptime_s"] >= 60
    assert call(api, "GET", "/version").json() == {"version": found["version"]}


# -- compression --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip", "gzip"), ("identity", None), ("", None)])
def test_long_lists_are_compressed_for_who_can_read_them(api, floor, accepted, encoding):
    floor.models = [serves(f"model-{number}") for number in range(100)]
    found = call(api, "GET", "/models", headers={"accept-encoding": accepted})
    assert found.headers.get("content-encoding") == encoding
    assert (int(found.headers.get("content-length", 0)) < len(found.content) / 4) == (encoding is not None)
    assert len(found.json()["items"]) == 100


def test_short_answers_and_refusals_are_sent_as_they_are(api):
    for path, status in (("/version", 200), ("/keys/none", 404)):
        found = call(api, "GET", path, headers={"accept-encoding": "gzip"})
        assert found.status_code == status and "content-encoding" not in found.headers


def test_nothing_but_management_is_compressed(database, directory):
    """Events of an answer would wait for each other."""
    made = app.build(config.load(None, directory), secrets.load(directory), database)
    compressing = {
        route.path
        for route in made.app.routes
        for handler in getattr(route, "route_handlers", [getattr(route, "route_handler", None)])
        if handler is not None
        and any(getattr(layer, "middleware", None) is CompressionMiddleware for layer in handler.resolve_middleware())
    }
    assert "/api/v1/models" in compressing
    assert all(path.startswith("/api/v1/") and path != "/api/v1/events" for path in compressing)
    assert made.app.compression_config is None
