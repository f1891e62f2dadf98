"""Keys that cannot be keys: the whole server says 401 and its database hears nothing of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mindgw import config
from mindgw.control import secrets, setup
from mindgw.control.passes import Passes
from mindgw.server.app import build
from mindgw.store.database import Database
from mindgw_agent.tokens import make_key, make_session, parse_key

CARRIERS = ["authorization", "x-api-key", "api-key"]
PATHS = [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/api/v1/keys"), ("GET", "/metrics")]


@contextmanager
def statements() -> Iterator[list[str]]:
    """Every statement that any engine executes meanwhile."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    directory = tmp_path_factory.mktemp("garbage") / "data"
    asyncio.run(setup.initialise(directory))
    known = config.load(None, directory)
    database = Database(known.database_url)
    app = build(known, secrets.load(directory), database).app
    app.on_shutdown.append(database.close)
    with TestClient(app, base_url="http://127.0.0.1") as made:
        yield made


def ask(client, method, path, carrier, value):
    value = (b"Bearer " if carrier == "authorization" else b"") + value
    return client.request(method, path, headers=[(carrier.encode(), value)], content=b"{}" if method == "POST" else None)


def mistyped(good: bytes) -> st.SearchStrategy[bytes]:
    """One character of it is another."""
    return st.integers(0, len(good) - 1).map(
        lambda place: good[:place] + (b"0" if good[place : place + 1] != b"0" else b"1") + good[place + 1 :]
    )


hostile = st.one_of(
    st.binary(max_size=200),
    st.deferred(lambda: mistyped(SESSION)),
    st.deferred(lambda: mistyped(PASS)),
    st.sampled_from([b"mgws_", b"mgws_' OR 1=1--", b"eyJ..", b"eyJhbGciOiJub25lIn0.e30.", b"eyJ" + b"a" * 8000 + b".b.c"]),
    st.sampled_from([b"' OR 1=1--", b'"; DROP TABLE keys;--', b"\xff" * 8192, b"mgw_" + b"a" * 10 + b"_" + b"b" * 38, b"%00", b"mgw_"]),
    st.integers(0, 52).map(lambda place: GOOD[:place] + (b"0" if GOOD[place : place + 1] != b"0" else b"1") + GOOD[place + 1 :]),
).filter(lambda value: not set(value) & {0, 10, 13})

GOOD = make_key().text.encode()
SESSION = make_session().text.encode()
#: Of another server.
PASS = Passes(b"k" * 32, "f" * 32).make("0" * 26, "0" * 10, 1_800_000_000, 900).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.sampled_from(CARRIERS), hostile)
@example(PATHS[0], "authorization", b"a" * 8192)
def test_garbage_costs_no_statement(client, place, carrier, value):
    assert parse_key(value.decode("latin-1").strip()) is None
    with statements() as seen:
        answer = ask(client, *place, carrier, value)
    assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["content-type"] == "application/json"
    assert [
        statement for statement in seen if "keys" in statement or "sessions" in statement
    ] == []  # what runs beside the requests has statements of its own


def test_what_could_be_a_key_costs_one(client):
    with statements() as seen:
        assert ask(client, "GET", "/v1/models", "x-api-key", GOOD).status_code == 401
    assert len([statement for statement in seen if "FROM keys" in statement]) == 1
