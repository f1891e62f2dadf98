"""What is noted of workers over time: real sessions of agents, a wall clock that is set, a database that is a list."""

import pytest

from mindgw.core.series import decode
from mindgw.gateway import trends as room
from mindgw.gateway.trends import STEP, Trends
from mindgw_agent import wire
from tests.gateway.world import Box, World, engine

#: An hour begins.
DAWN = 1_800_000_000 // 3600 * 3600


class Place:
    """A world, what notes it, and what was written."""

    def __init__(self):
        self.world = World()
        self.now = float(DAWN)
        self.trends = Trends(self.world.pipeline.fleet, lambda: self.now)
        self.rows, self.away = {}, False

    async def write(self, blocks):
        if self.away:
            raise OSError("the database is away")
        self.rows.update({(block.worker_id, block.start): block.data for block in blocks})

    async def samples(self, count=1):
        for _ in range(count):
            await self.trends.sample()
            self.now += STEP

    def known(self, worker="box"):
        """Column -> Unix seconds -> value, of what is written and what is in memory."""
        held = self.trends.starts(worker)
        raws = [data for (id, start), data in sorted(self.rows.items()) if id == worker and start not in held]
        found = {}
        for block in map(decode, [*raws, *self.trends.blocks(worker)]):
            for name, values in block.columns.items():
                steps = {(block.start + i) * STEP: value for i, value in enumerate(values) if value is not None}
                assert not steps.keys() & found.get(name, {}).keys()
                found.setdefault(name, {}).update(steps)
        return found


@pytest.fixture
def place():
    return Place()


async def test_slots_and_gpus_are_noted_as_they_are(place):
    gpus = [wire.Gpu("A", 80 * 2**30, 8 * 2**30, 0.5, 61.5), wire.Gpu("B")]
    Box(place.world, "box", engine("m", slots=3, elsewhere=2), gpus=gpus)
    await place.samples()
    place.world.ask()
    await place.samples()
    known = place.known()
    assert {name: [*steps.values()] for name, steps in known.items()} == {
        "slots": [3, 3], "used": [0, 1], "elsewhere": [2, 2], "requests": [0, 0], "tokens": [0, 0],
        "gpu0.utilisation": [500, 500], "gpu0.memory": [8192, 8192], "gpu0.temperature": [615, 615],
        "gpu1.utilisation": [0, 0], "gpu1.memory": [0, 0], "gpu1.temperature": [0, 0],
    }  # fmt: skip
    assert [*known["used"]] == [DAWN, DAWN + STEP]


async def test_requests_and_tokens_are_counted_by_the_second(place):
    box = Box(place.world)
    await place.samples()
    for _ in range(2):
        place.world.ask()
        box.head(200, "application/json", b'{"usage":{"prompt_tokens":5,"completion_tokens":30,"total_tokens":35}}')
        box.close()
    place.world.ask("unknown")  # of no worker
    place.trends.served(place.world.settled())
    place.now += STEP  # one step is passed over
    await place.samples(2)
    known = place.known()
    assert known["requests"] == {DAWN: 0, DAWN + 2 * STEP: 100, DAWN + 3 * STEP: 0}  # 2 in 20 s, in thousandths
    assert known["tokens"] == {DAWN: 0, DAWN + 2 * STEP: 30, DAWN + 3 * STEP: 0}  # 60 in 20 s, in tenths


async def test_a_second_look_within_a_step_is_none(place):
    Box(place.world)
    await place.trends.sample()
    place.now += STEP - 1
    await place.samples()
    assert [*place.known()["used"]] == [DAWN]


async def test_what_is_new_is_written_and_the_rest_is_not(place):
    Box(place.world)
    Box(place.world, "other")
    await place.samples(3)
    assert await place.trends.flush(place.write) == 2
    assert await place.trends.flush(place.write) == 0
    await place.samples()
    assert await place.trends.flush(place.write) == 2
    assert [*place.rows] == [("box", DAWN), ("other", DAWN)]
    assert len(place.known()["used"]) == 4
    again = Place()  # another process: its blocks stand beside the old ones
    again.rows, again.now = place.rows, place.now
    Box(again.world)
    await again.samples(2)
    await again.trends.flush(again.write)
    assert len(again.known()["used"]) == 6


async def test_an_hour_is_a_block_and_a_worker_that_is_gone_is_forgotten_with_it(place):
    box = Box(place.world)
    await place.samples(300)
    box.cut()
    await place.samples(59)
    assert place.trends.blocks("box")
    await place.samples(2)
    assert await place.trends.flush(place.write) == 1
    assert (place.trends.blocks("box"), place.trends.starts("box")) == ([], frozenset())
    assert len(place.known()["used"]) == 300
    Box(place.world, epoch=1)
    await place.samples(360)
    await place.trends.flush(place.write)
    assert sorted(place.rows) == [("box", DAWN), ("box", DAWN + 361 * STEP), ("box", DAWN + 7200)]


@pytest.mark.parametrize("goes_back_to", [0, 3, 8])
async def test_what_was_noted_stands_when_the_clock_goes_back(place, caplog, goes_back_to):
    """Nothing is overwritten or counted twice: what it is by then is a gap."""
    box = Box(place.world, "box", engine("m", slots=3))
    await place.samples(10)
    await place.trends.flush(place.write)
    place.now = DAWN + float(goes_back_to) * STEP
    place.world.ask()
    place.trends.served(place.world.settled())
    await place.samples(10 - goes_back_to)
    await place.trends.flush(place.write)
    assert place.known()["used"] == {DAWN + STEP * step: 0 for step in range(10)}
    await place.samples(2)
    await place.trends.flush(place.write)
    assert [*place.known()["used"].values()] == [0] * 10 + [1, 1] and {start for _, start in place.rows} == {DAWN}
    assert caplog.text.count("the clock went back") == 1
    assert box.requests


async def test_what_was_answered_while_the_clock_was_behind_is_of_no_step(place):
    box = Box(place.world)
    await place.samples(10)
    place.now = float(DAWN)
    for _ in range(10):
        place.world.ask()
        box.head(200, "application/json", b'{"usage":{"prompt_tokens":5,"completion_tokens":30,"total_tokens":35}}')
        box.close()
        place.trends.served(place.world.settled()[-1:])
        await place.samples()
    await place.samples()
    assert [*place.known()["requests"].values()] == [0] * 11


async def test_a_clock_that_comes_back_from_far_ahead_goes_on_where_it_was(place):
    Box(place.world)
    await place.samples(5)
    place.now += 40 * 3600
    await place.samples(3)
    place.now = DAWN + 4.0 * STEP  # which is noted already
    await place.samples(4)
    await place.trends.flush(place.write)
    ahead = DAWN + 40 * 3600 + 5 * STEP
    known = place.known()["used"]
    assert sorted(known) == [*(DAWN + STEP * step for step in range(8)), *(ahead + STEP * step for step in range(3))]
    place.now = ahead - STEP
    await place.samples(5)
    assert len(place.known()["used"]) == 11 + 1 + 1, "before those three, and behind them"


async def test_nothing_is_lost_while_the_database_is_away_until_it_is_too_much(place, monkeypatch):
    monkeypatch.setattr(room, "MOST", 2)
    Box(place.world)
    place.away = True
    for _ in range(2):
        await place.samples(360)
        with pytest.raises(OSError, match="away"):
            await place.trends.flush(place.write)
    await place.samples()
    assert len(place.known()["used"]) == 721
    await place.samples(720)
    assert len(place.known()["used"]) == 1441 - 720  # the first hours
    place.away = False
    assert await place.trends.flush(place.write) == 3
    assert len(place.known()["used"]) == 1441 - 720


async def test_many_workers_let_others_have_the_loop_and_what_ends_meanwhile_is_written_later(place, monkeypatch):
    monkeypatch.setattr(room, "_BATCH", 1)
    monkeypatch.setattr(room, "_LOOK", 1)
    boxes = [Box(place.world, f"box{number}") for number in range(3)]
    await place.samples(359)

    async def slow(blocks):
        await place.write(blocks)
        if place.world.boxes:
            boxes[1].cut()
            boxes[1].world.boxes.clear()
            await place.samples(2)  # the hour ends while the first is written

    await place.trends.flush(slow)
    await place.trends.flush(place.write)
    assert {worker: len(place.known(worker)["used"]) for worker in ("box0", "box1", "box2")} == {"box0": 361, "box1": 359, "box2": 361}
