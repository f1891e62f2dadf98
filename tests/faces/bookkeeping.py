"""Rows in the ledger of a running server, and receipts, as if its requests and workers had left them."""

import asyncio
import os

import msgspec

from mindgw import clock, config
from mindgw.control import secrets
from mindgw.store import epochs, fleet, ledger, people, receipts
from mindgw.store.database import Database
from mindgw_agent import identity, wire
from tests.store.books import entry


def in_database(gateway, work):
    """What `work` does with a session of the server's database."""

    async def run():
        database = Database(config.load(None, gateway.data_dir).database_url)
        try:
            async with database.write() as session:
                return await work(session)
        finally:
            await database.close()

    return asyncio.run(run())


def book(gateway, *entries):
    """Writes entries in an epoch of their own, with the server's key."""

    async def work(session):
        now = clock.utcnow()
        begun = await epochs.begin(session, f"books {os.urandom(4).hex()}", now)
        own = (await people.get_or_create_org(session)).id
        writer = ledger.Writer(begun.id, secrets.load(gateway.data_dir).chain_key, 0, begun.genesis)
        await ledger.commit(session, writer, [msgspec.structs.replace(entry, org_id=own) for entry in entries])
        await epochs.end(session, begun.id, now)

    in_database(gateway, work)


def used(request_id, key, **facts):
    """A request of a key, as `keys create --json` shows it: 10 tokens in, 5 out, 3 micro-dollars, today."""
    now = clock.utcnow()
    whose = {"key_id": key["id"], "user_id": None, "org_id": "o", "day": now.date().isoformat(), "started_at": now}
    return entry(request_id, **(whose | facts))


def receipt(gateway, request_id, *, honest=True, **counts):
    """The signed receipt of a new worker; its name."""
    private, name, now = identity.new_key(), f"box-{os.urandom(4).hex()}", clock.utcnow().replace(microsecond=0)
    facts = {"outcome": "done", "prompt": 10, "completion": 5, "source": "engine", **counts}

    async def work(session):
        worker = await fleet.add_worker(session, name, identity.public_half(private))
        prev = wire.genesis(worker.id)
        head = wire.chained(prev, wire.Receipt(seq=1, tag=b"t", at=int(now.timestamp() * 1000), **facts))
        signed = identity.sign(private if honest else identity.new_key(), wire.transcript_receipts(worker.id, 1, head))
        made = receipts.NewReceipt(seq=1, tag=b"t", request_id=request_id, attempt=1, prev=prev, hash=head, at=now, **facts)
        await receipts.append(session, worker.id, [made], signed, now)

    in_database(gateway, work)
    return name
