"""Who is signed in: what is refused, what is noted, on both databases; and who is let in to manage."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mindgw.control.identify import Identity
from mindgw.control.passes import Passes
from mindgw.control.sessions import NOTED, TTL, Sessions, is_session
from mindgw.core import access
from mindgw.errors import BadRequest, RateLimited, Unauthenticated
from mindgw.gateway.admission import Caller
from mindgw.store import people, sessions, users
from mindgw.store.tables import Org, Session, User
from mindgw_agent.tokens import crc6, make_key, make_session

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEPPER = b"p" * 32
LIFE = 3600.0


class Place:
    """Somebody who is signed in, and a clock that goes when it is told to."""

    def __init__(self, database) -> None:
        self.database = database
        self.now = NOON
        self.passes = Passes(b"k" * 32, "f" * 32)
        #: Monotonic seconds.
        self.ticks = 0.0
        self.sessions = Sessions(database, {1: PEPPER}, self.passes, LIFE, lambda: self.now, lambda: self.ticks)

    async def open(self) -> "Place":
        async with self.database.write() as session:
            org = await people.get_or_create_org(session)
            user, _ = await users.obtain(session, users.NewUser(org_id=org.id, email="ana@example.com", role="viewer"))
            row, self.text = await sessions.create(session, user.id, PEPPER, at=NOON, until=NOON + timedelta(seconds=LIFE))
            self.user, self.org, self.id = user.id, org.id, row.id
        return self

    async def change(self, table, id, **values):
        """As if another server of this database did it."""
        async with self.database.write() as session:
            row = await session.get(table, id)
            for name, value in values.items():
                setattr(row, name, value)

    async def code(self, credential: str | None = None) -> str:
        """ "" for who is let in."""
        try:
            await self.sessions.identify(self.text if credential is None else credential)
        except Unauthenticated as wrong:
            return wrong.code
        return ""

    async def a_pass(self, life: float = 900) -> str:
        return self.sessions.make_pass(await self.sessions.identify(self.text), life)[0]


@pytest.fixture
async def place(database):
    return await Place(database).open()


async def test_a_session_is_its_user_with_what_they_may_do(place):
    found = await place.sessions.identify(place.text)
    assert (found.user.id, found.org.id, found.session.id, found.rights.roles) == (place.user, place.org, place.id, ("viewer",))
    by_pass = await place.sessions.identify(await place.a_pass())
    assert (by_pass.user.id, by_pass.rights) == (place.user, found.rights)


@pytest.mark.parametrize("by_pass", [False, True])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((Session, {"revoked_at": NOON}), "revoked_session"),
        ((Session, {"expires_at": NOON}), "expired_session"),
        ((User, {"state": "disabled"}), "user_disabled"),
        ((User, {"state": "removed"}), "user_disabled"),
        ((User, {"state": "invited"}), "user_disabled"),
        ((Org, {"state": "disabled"}), "user_disabled"),
    ],
)
async def test_it_is_refused_from_the_moment_that_it_is_not_good(place, change, code, by_pass):
    credential = await place.a_pass() if by_pass else place.text
    assert await place.code(credential) == ""
    table, values = change
    await place.change(table, {Session: place.id, User: place.user}.get(table, place.org), **values)
    place.ticks += TTL
    assert await place.code(credential) == code


async def test_what_another_server_ends_is_over_here_a_second_later_and_what_this_one_ends_at_once(place):
    assert await place.code() == ""
    await place.change(Session, place.id, revoked_at=NOON)
    place.ticks += TTL - 0.001
    assert await place.code() == ""
    place.sessions.forget()
    assert await place.code() == "revoked_session"


async def test_a_session_that_is_remembered_is_compared_all_the_same(place):
    assert await place.code() == ""
    wrong = f"mgws_{place.id}_{'0' * 32}"
    assert await place.code(wrong + crc6(wrong)) == "invalid_session"
    place.now = NOON + timedelta(seconds=LIFE)
    assert await place.code() == "expired_session"


async def test_a_slow_look_up_brings_nothing_back(place, monkeypatch):
    """It began before the session was ended, and comes to its end after that."""
    began, go = asyncio.Event(), asyncio.Event()
    quick = sessions.find

    async def slow(*asked):
        found = await quick(*asked)
        began.set()
        await go.wait()
        return found

    monkeypatch.setattr(sessions, "find", slow)
    asking = asyncio.create_task(place.code())
    await began.wait()
    await place.change(Session, place.id, revoked_at=NOON)
    place.sessions.forget()
    go.set()
    assert await asking == "revoked_session"
    assert await place.code() == "revoked_session"


async def test_no_more_rows_are_remembered_than_there_is_room_for(place, monkeypatch):
    monkeypatch.setattr("mindgw.control.sessions.CAPACITY", 2)
    for _ in range(4):
        async with place.database.write() as session:
            _, text = await sessions.create(session, place.user, PEPPER, at=NOON, until=NOON + timedelta(seconds=LIFE))
        assert await place.code(text) == ""
        assert await place.code(make_session().text) == "invalid_session"
    assert len(place.sessions._rows) == 2


async def test_a_session_ends_in_time(place):
    place.now = NOON + timedelta(seconds=LIFE - 0.001)
    assert await place.code() == ""
    place.now = NOON + timedelta(seconds=LIFE)
    assert await place.code() == "expired_session"


async def test_a_pass_ends_before_its_session_does(place):
    text, until = place.sessions.make_pass(await place.sessions.identify(place.text), 900)
    assert until == NOON + timedelta(seconds=900)
    place.now = until - timedelta(seconds=1)
    assert await place.code(text) == ""
    place.now = until
    assert await place.code(text) == "invalid_token"
    place.now = NOON + timedelta(seconds=LIFE - 60)
    _, until = place.sessions.make_pass(await place.sessions.identify(place.text), 900)
    assert until == NOON + timedelta(seconds=LIFE)


async def test_what_is_forged_is_refused(place):
    session_id = place.text.split("_")[1]
    wrong = f"mgws_{session_id}_{'0' * 32}"
    assert await place.code(wrong + crc6(wrong)) == "invalid_session"
    assert await place.code(make_session().text) == "invalid_session"
    now = NOON.timestamp()
    strangers = [
        Passes(b"x" * 32, "f" * 32).make(place.user, place.id, now, 900),  # another's key
        Passes(b"k" * 32, "e" * 32).make(place.user, place.id, now, 900),  # another server
        place.passes.make(place.user, "0" * 10, now, 900),  # no such session
        place.passes.make("0" * 26, place.id, now, 900),  # somebody else's session
    ]
    assert [await place.code(text) for text in strangers] == ["invalid_token"] * 4
    await place.change(Session, place.id, pepper_version=2)
    place.sessions.forget()
    assert await place.code() == "invalid_session"


async def test_what_cannot_be_one_costs_no_statement(place):
    good = await place.a_pass()
    seen: list[str] = []
    event.listen(Engine, "before_cursor_execute", note := lambda _c, _u, statement, *_: seen.append(statement))
    try:
        for text in ("", "mgws_", place.text[:-1], place.text + "x", place.text.upper(), good[:-1], good + "=", good.replace(".", "..", 1)):
            assert await place.code(text) in {"invalid_session", "invalid_token"}
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert seen == []


async def test_when_it_was_seen_is_noted_once_a_minute(place):
    async def noted():
        await place.sessions.flush()
        async with place.database.read() as session:
            row, user = await session.get(Session, place.id), await session.get(User, place.user)
            assert row.last_seen_at == user.last_seen_at
            return row.last_seen_at

    assert await noted() is None
    await place.code()
    assert await noted() == NOON
    place.ticks += TTL
    place.now = NOON + timedelta(seconds=NOTED - 1)
    await place.code()
    assert await noted() == NOON
    place.ticks += TTL
    place.now = NOON + timedelta(seconds=NOTED)
    await place.code()
    await place.code("mgws_nonsense")
    assert await noted() == place.now


async def test_what_could_not_be_noted_is_noted_later(place, monkeypatch):
    await place.code()

    async def broken(*_):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "touch", broken)
        with pytest.raises(OSError):
            await place.sessions.flush()
    await place.sessions.flush()
    async with place.database.read() as session:
        assert (await session.get(Session, place.id)).last_seen_at == NOON


async def test_a_session_is_found_by_its_id_for_whoever_is_in_by_it(place):
    assert (await place.sessions.of(place.id)).user.id == place.user
    assert await place.sessions.of("") is None
    assert await place.sessions.of("0" * 10) is None


# -- who manages


class Counter:
    """A FAKE of what counts strangers: two of an address, then it is refused."""

    def __init__(self) -> None:
        self.blamed: list[str] = []

    def patience(self, address, now):
        if self.blamed.count(address) >= 2:
            raise RateLimited

    def blame(self, address, wrong, now):
        self.blamed.append(address)
        return wrong


class Gate:
    """An identity in front of a place; every API key is that of an operator."""

    def __init__(self, place) -> None:
        self.counter = Counter()
        self.keys: list[tuple[str, str]] = []
        self.identity = Identity(self._by_key, place.sessions, self.counter)

    async def _by_key(self, headers, path, address):
        self.keys.append((path, address))
        return Caller(key_id="k", name="k", org_id="o", rights=access.combine([(access.BUILT_IN["operator"], None)]))

    async def ask(self, *headers, address="192.0.2.1"):
        return await self.identity([(name, value.encode()) for name, value in headers], "/api/v1/x", address)


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"api-key"])
async def test_keys_and_sessions_come_in_by_the_same_headers(place, name):
    gate, scheme = Gate(place), "Bearer " if name == b"authorization" else ""
    found = await gate.ask((name, scheme + place.text))
    assert (found.session_id, found.key_id, found.user_id, found.org_id) == (place.id, "", place.user, place.org)
    assert gate.keys == []
    found = await gate.ask((name, scheme + make_key().text))
    assert (found.session_id, found.key_id, found.rights.roles) == ("", "k", ("operator",))
    assert gate.keys == [("/api/v1/x", "192.0.2.1")]
    with pytest.raises(BadRequest):
        await gate.ask((name, scheme + place.text), (b"x-api-key", make_key().text), (b"api-key", place.text))


async def test_who_comes_without_anything_is_refused_where_keys_are(place):
    gate = Gate(place)
    await gate.ask()
    await gate.ask((b"authorization", f"Basic {place.text}"))
    assert len(gate.keys) == 2


async def test_an_address_that_is_wrong_too_often_is_not_listened_to(place):
    gate = Gate(place)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await gate.ask((b"api-key", make_session().text))
    with pytest.raises(RateLimited):
        await gate.ask((b"api-key", place.text))
    assert (await gate.ask((b"api-key", place.text), address="192.0.2.2")).session_id == place.id


#: What only we begin a token with.
OURS = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.a.b"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("mgws_x", True),
        (OURS, True),
        ("eyJ.a.b", False),
        ("mgw_x", False),
        ("", False),
        ("eyJ.a", False),
        ("a.b.c", False),
        ("Mgws_x", False),
    ],
)
def test_sessions_are_known_by_their_form(text, is_one):
    assert is_session(text) is is_one


async def test_many_at_once_are_looked_up_each_for_itself(place):
    found = await asyncio.gather(*[place.sessions.identify(place.text) for _ in range(20)])
    assert {each.session.id for each in found} == {place.id}
