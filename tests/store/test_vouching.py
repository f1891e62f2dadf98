"""Whom providers are to be asked about, and what hangs on the answer, on both databases."""

import asyncio
from datetime import timedelta

import pytest

from mindgw.clock import utcnow
from mindgw.store import identities, people, sessions, vouching
from mindgw.store.tables import Identity, Key, Session, User

NOW = utcnow()
HOUR, PAUSE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
async def world(database):
    """Makes people whom a provider knows, and is about whom to ask."""

    class World:
        async def person(self, name, *, key=False, sessions=(HOUR / 4,), state="active", **facts):
            async with database.write() as session:
                org = await people.get_or_create_org(session)
                user = await people.get_or_create_user(session, org.id, f"{name}@x.org")
                user.state = state
                mine = {"org_id": org.id, "user_id": user.id, "digest": b"d"}
                session.add(Key(id=f"t-{name}", name=f"t-{name}", provider="work", **mine))
                if key:
                    session.add(Key(id=f"k-{name}", name=f"k-{name}", **mine, **(key if isinstance(key, dict) else {})))
                await session.flush()
                said = {"refresh": b"r", "due_at": NOW, "claims_at": NOW - HOUR, "vouched_at": NOW - HOUR} | facts
                same = {"issuer": "i", "subject": name, "provider": "work", "user_id": user.id, "key_id": f"t-{name}"}
                session.add(Identity(id=name, **same | said))
                await session.flush()
                for number, left in enumerate(sessions):
                    about = {"user_id": user.id, "digest": b"d", "identity_id": name, "ends_at": NOW + HOUR}
                    session.add(Session(id=f"{name}{number}", expires_at=NOW + left, **about))

        async def due(self, now=NOW, most=10):
            async with database.read() as session:
                return list(await vouching.due(session, "i", now, PAUSE, most))

        async def ask(self, function, *args):
            async with database.write() as session:
                return await function(session, *args)

        async def row(self, table, key):
            async with database.read() as session:
                return await session.get(table, key)

    return World()


async def test_those_are_asked_about_on_whom_something_hangs(world):
    await world.person("signed-in")
    await world.person("key", key=True, sessions=(), due_at=NOW - HOUR)
    await world.person("key-that-ends", key={"expires_at": NOW + HOUR}, sessions=(), due_at=NOW - 2 * HOUR)
    await world.person("over", sessions=(-HOUR,), key={"expires_at": NOW - HOUR})
    await world.person("revoked", sessions=(), key={"revoked_at": NOW})
    await world.person("token", sessions=())
    await world.person("disabled", state="disabled")
    await world.person("lapsed", state="lapsed")
    await world.person("not-yet", due_at=NOW + HOUR)
    await world.person("nothing-to-ask-with", refresh=None)
    await world.person("another", issuer="j")
    await world.person("asked", checked_at=NOW - PAUSE / 2)
    await world.person("given-up", checked_at=NOW - 2 * PAUSE, due_at=NOW - HOUR / 2)
    assert await world.due() == ["key-that-ends", "key", "given-up", "signed-in"]
    assert await world.due(most=2) == ["key-that-ends", "key"]
    idle = await world.ask(vouching.idle, NOW, 10)
    assert [(one.id, one.issuer, one.refresh) for one in idle] == [(name, "i", b"r") for name in ("over", "revoked", "token")]


async def test_of_many_one_asks_and_says_how_it_ended(world):
    await world.person("ada", sessions=(HOUR / 4, -HOUR, 3 * HOUR))
    begun = await asyncio.gather(*(world.ask(vouching.begin, "ada", NOW, PAUSE) for _ in range(4)))
    assert sorted(begun) == [False] * 3 + [True]
    assert await world.due() == []
    await world.ask(vouching.put_off, "ada", NOW + HOUR / 8)
    assert (await world.due(), await world.due(NOW + HOUR / 8)) == ([], ["ada"])
    assert not await world.ask(vouching.begin, "ada", NOW, PAUSE)
    await world.ask(vouching.vouch, "ada", NOW, 2 * HOUR)
    found = await world.row(Identity, "ada")
    assert (found.vouched_at, found.due_at, found.checked_at) == (NOW, NOW + HOUR, None)
    ends = [(await world.row(Session, f"ada{number}")).expires_at for number in range(3)]
    assert ends == [NOW + HOUR, NOW - HOUR, NOW + 3 * HOUR], "not beyond their end, not again, not shorter"
    assert await world.ask(vouching.end_sessions, "ada", NOW) == 2


async def test_what_is_asked_with_is_replaced_by_who_knew_it(world):
    await world.person("ada")
    assert await world.ask(vouching.swap, "ada", b"r", b"s")
    assert not await world.ask(vouching.swap, "ada", b"r", None)
    assert (await world.row(Identity, "ada")).refresh == b"s"
    assert await world.ask(vouching.swap, "ada", b"s", None)
    assert not await world.ask(vouching.begin, "ada", NOW, PAUSE), "with nothing nobody asks"


async def test_silence_is_of_all_providers_and_about_keys(world):
    old = NOW - 48 * HOUR
    await world.person("silent", key=True, vouched_at=old)
    await world.person("no-key", vouched_at=old)
    await world.person("never", key=True, vouched_at=identities.NEVER, claims_at=identities.NEVER)
    await world.person("fresh", key=True)
    await world.person("out", key=True, vouched_at=old, state="lapsed")
    await world.person("two", key=True, vouched_at=old)
    user_id = (await world.row(Identity, "two")).user_id

    async def second(session):
        facts = {"issuer": "j", "subject": "two", "provider": "p", "key_id": "t-two", "claims_at": NOW, "vouched_at": NOW}
        session.add(Identity(id="two-2", user_id=user_id, **facts))

    await world.ask(second)
    assert await world.ask(vouching.silent, NOW - 24 * HOUR, NOW, 10) == ["silent"]
    await world.ask(vouching.trust, (await world.row(Identity, "silent")).user_id, NOW)
    assert await world.ask(vouching.silent, NOW - 24 * HOUR, NOW, 10) == []


async def test_a_session_knows_by_whom_it_was_made(world):
    await world.person("ada")
    known = await world.ask(identities.known, (await world.row(Session, "ada0")).identity_id)
    assert (known.identity.subject, known.user.email) == ("ada", "ada@x.org")
    assert await world.ask(identities.known, "") is None
    made, _ = await world.ask(lambda session: sessions.create(session, known.user.id, b"p" * 32, at=NOW, until=NOW + HOUR))
    assert made.identity_id == ""
    assert await world.row(User, known.user.id) is not None
