"""`mindgw workers tags`, in front of the real server."""

import asyncio

import pytest

from mindgw.store.tables import Worker
from tests.faces.test_keys import read


@pytest.fixture
def worker(gateway):
    """A worker that is away."""

    async def add() -> None:
        async with gateway.server.database.write() as session:
            session.add(Worker(name="tagged", public_key=b"k" * 32))

    asyncio.run_coroutine_threadsafe(add(), gateway.loop).result(30)
    return "tagged"


def test_tags_come_and_go(admin, worker):
    done = admin("workers", "tags", worker, "zone=lab", "pool=gpu")
    assert done.code == 0, done.err
    assert f"Undo: mindgw workers tags {worker} zone- pool-" in done.err
    changed = admin("workers", "tags", worker, "zone=eu", "pool-")
    assert f"Undo: mindgw workers tags {worker} zone=lab pool=gpu" in changed.err
    assert read(admin("workers", "tags", worker, "--json"))["tags"] == {"zone": "eu"}
    assert "zone=eu" in admin("workers", "show", worker).out
    for wrong in ("zone", "-", "=x", "zone=", "zone=a-b-="):
        assert admin("workers", "tags", worker, "--", wrong).code in {1, 2}, wrong
    assert admin("workers", "tags", "absent", "a=b").code == 6
