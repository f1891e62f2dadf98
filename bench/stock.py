"""A database with many keys and many workers, filled before its server starts: what a large fleet leaves there, without the wait."""

import asyncio
from pathlib import Path

import msgspec

from mindgw.control import secrets
from mindgw.store import fleet, keys, people
from mindgw.store.database import Database
from mindgw_agent import identity


class Member(msgspec.Struct, frozen=True):
    """An agent that may connect: its id and its private key."""

    id: str
    key: bytes


class Stock(msgspec.Struct, frozen=True):
    """What the fleet and the callers need to know of it."""

    #: Public identity of the server.
    server: bytes
    members: list[Member]
    #: Keys as callers send them.
    keys: list[str]


def fill(data_dir: Path, members: int, many: int) -> Stock:
    """Adds so many workers and keys to the database of a server that does not run."""
    return asyncio.run(_fill(data_dir, members, many))


async def _fill(data_dir: Path, members: int, many: int) -> Stock:
    own = secrets.load(data_dir)
    database = Database(f"sqlite:///{data_dir / 'mindgw.db'}")
    try:
        async with database.write() as session:
            org = await people.get_or_create_org(session)
            team = await people.get_or_create_team(session, org.id)
            wanted = [keys.NewKey(name=f"bench-{number}", org_id=org.id, team_id=team.id) for number in range(many)]
            made = [(await keys.create(session, each, own.pepper))[1] for each in wanted]
            boxes = []
            for number in range(members):
                private = identity.new_key()
                row = await fleet.add_worker(session, f"bench-{number}", identity.public_half(private))
                boxes.append(Member(row.id, private))
    finally:
        await database.close()
    return Stock(own.public_identity, boxes, made)
