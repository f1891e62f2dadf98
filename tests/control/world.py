"""A database with a team, a person and a key of theirs, and books in which requests of this key are written today."""

from mindgw import clock
from mindgw.store import keys, people
from tests.store.audited import entries
from tests.store.books import Books, entry


class Place:
    """`key`, `team`, `user` and `org` are ids."""

    def __init__(self, database):
        self.database = database
        #: Times that somebody was told of new limits.
        self.told = 0

    async def open(self):
        self.books = await Books(self.database).begin(clock.utcnow())
        async with self.database.write() as session:
            self.org = (await people.get_or_create_org(session)).id
            self.team = (await people.get_or_create_team(session, self.org, "nlp")).id
            self.user = (await people.get_or_create_user(session, self.org, "ana@example.org")).id
        self.key = await self.new_key("bot", team_id=self.team, user_id=self.user)
        return self

    async def new_key(self, name, **facts):
        async with self.database.write() as session:
            row, _ = await keys.create(session, keys.NewKey(name=name, org_id=self.org, **facts), b"p" * 32)
        return row.id

    async def use(self, request_id, **facts):
        """A request of the key is in the ledger: 10 tokens in, 5 out, 3 micro-dollars."""
        whose = {"key_id": self.key, "team_id": self.team, "user_id": self.user, "org_id": self.org}
        await self.books.commit(entry(request_id, **(whose | {"day": today(), "started_at": clock.utcnow()} | facts)))

    async def revoke(self, key):
        async with self.database.write() as session:
            await keys.revoke(session, key, clock.utcnow())

    async def changed(self):
        self.told += 1

    async def audited(self):
        async with self.database.read() as session:
            found = await entries(session)
        return [(entry.actor, entry.action, entry.object, entry.detail) for entry in found]

    async def names(self):
        async with self.database.read() as session:
            return [key.name for key in await keys.page(session)]


def today():
    return clock.utcnow().date().isoformat()
