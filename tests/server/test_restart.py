"""What the fair order knows, over a restart of the real server."""

import asyncio

from mindgw.clock import utcnow
from mindgw.server import app as assembly
from mindgw.store import flows
from mindgw_agent import wire
from tests.gateway.world import JSON, Box, Client, engine
from tests.server.site import site

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def request(place, key):
    """A request that waits for its turn or has it; its task."""
    return asyncio.create_task(place.http.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {key['key']}"}))


async def answered(place, box, tokens):
    """The request that runs is answered; these tokens were used."""
    await place.until(lambda: box.requests)
    box.head(200, JSON, b'{"choices":[]}')
    box.close(usage=wire.Usage(10, tokens, 0, "engine"))


async def waiting(place, count):
    await place.until(lambda: place.pipeline.queue.waiting == count)


async def heavy_use(place, heavy, light):
    """One key uses much while another one waits, and the queue is empty again."""
    box = Box(place.world, "box", engine("m", slots=1))
    tasks = [request(place, heavy)]
    await place.until(lambda: box.requests)
    tasks.append(request(place, light))
    await waiting(place, 1)
    await answered(place, box, 50_000)
    await answered(place, box, 10)
    for task in tasks:
        assert (await place.settled(task)).status_code == 200


async def order_of_turns(place, heavy, light, other):
    """The keys in the order in which they stand: three requests of `light`, then one of `heavy`, while the slot is taken."""
    box = Box(place.world, "box", engine("m", slots=1))
    tasks = [request(place, other)]
    await place.until(lambda: box.requests)
    for number, key in enumerate([light, light, light, heavy]):
        tasks.append(request(place, key))
        await waiting(place, number + 1)
    entries = (await place.call("GET", "/queue")).json()["items"]
    place.pipeline.stop()
    box.cut()
    for task in tasks:
        await place.settled(task)
    return [entry["key"] for entry in entries]


async def test_who_used_much_is_remembered_after_a_restart(tmp_path):
    turns = {}
    for use in ("heavy", "none"):
        async with site(tmp_path / use) as place:
            keys = [await place.new_key(key) for key in ("heavy", "light", "other")]
            if use == "heavy":
                await heavy_use(place, *keys[:2])
        async with site(tmp_path / use) as place:
            turns[use] = await order_of_turns(place, *keys)
    assert turns["heavy"] == ["light", "light", "light", "heavy"]
    assert turns["none"][-1] == "light"


async def test_counters_are_written_while_the_server_works(tmp_path, monkeypatch):
    """A server that is killed loses a few seconds, not all."""
    monkeypatch.setattr(assembly, "REMEMBER", 0.05)
    async with site(tmp_path / "data") as place:
        keys = [await place.new_key(key) for key in ("heavy", "light")]
        await heavy_use(place, *keys)
        async with asyncio.timeout(20):
            while True:
                async with place.database.read() as session:
                    found = await flows.load(session, utcnow().replace(year=2000), 1000)
                if any(units > 10_000 for units in found.values()):
                    break
                await asyncio.sleep(0.02)
    assert [path[3] for path, units in found.items() if len(path) == 4 and units > 10_000] == [keys[0]["id"]]


async def test_what_is_known_is_there_before_the_first_request(tmp_path):
    async with site(tmp_path / "data") as place:
        keys = [await place.new_key(key) for key in ("heavy", "light")]
        await heavy_use(place, *keys)
    async with site(tmp_path / "data") as place:
        known = dict(place.pipeline.queue.order.counters())
        assert any(units > 10_000 for units in known.values())
        client = Client(place.world, keys[1]["key"])
        assert client.exchange.caller is None  # nothing was asked for yet
