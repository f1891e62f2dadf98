"""Which requests leave a dead letter, what it says, and that nothing grows without bound."""

import json

import pytest

from mindgw import errors, metrics
from mindgw.config import DeadLetters as Settings
from mindgw.config import Limits, Timeouts
from mindgw.gateway import dead_letters, exchange, meter, signals
from mindgw.gateway.dead_letters import DeadLetters, is_dead
from mindgw.store.ledger import Entry
from tests.gateway.world import EVENT, JSON, SSE, Box, Client, World, engine, finished


class Office:
    """A world whose dead letters are kept."""

    def __init__(self, limits: Limits | None = None, timeouts: Timeouts | None = None, **settings) -> None:
        self.counters = metrics.Counters()
        self.dead = DeadLetters(Settings(**settings), self.counters)
        self.world = World(timeouts, limits, self.dead)

    def letters(self) -> list[dead_letters.Sent]:
        """All that are new."""
        found = []

        async def write(sent):
            found.extend(sent)

        finished(self.dead.flush(write))
        return found


def test_a_wait_that_was_too_long_leaves_a_letter():
    office = Office(timeouts=Timeouts(queue=30))
    world = office.world
    Box(world, "box", engine("m", slots=1))
    world.ask("m")
    client = world.ask("m", stream=True)
    world.passes(40)
    assert client.code == "queue_timeout"
    ((letter, body),) = office.letters()
    assert (letter.request_id, letter.code, letter.fault, letter.status) == (client.request_id, "queue_timeout", "fleet", 503)
    assert (letter.model, letter.endpoint, letter.stream, letter.attempts) == ("m", "/v1/chat/completions", True, [])
    assert letter.key_id == client.exchange.caller.key_id and letter.org_id == "o"
    assert letter.queued_ms == letter.total_ms >= 30_000
    assert (letter.body_note, body, letter.sealed) == ("off", None, None) and letter.size > 20
    assert office.counters.dead_letters == {"queue_timeout": 1}


def test_workers_that_were_lost_are_in_the_letter_in_their_order():
    office = Office()
    boxes = [Box(office.world, f"box{number}") for number in range(3)]
    client = office.world.ask("m")
    tried = []
    for _ in range(3):
        box = next(box for box in boxes if box.requests)
        tried.append({"worker": box.name, "outcome": "worker_lost"})
        boxes.remove(box)
        box.cut()
    assert client.code == "worker_lost"
    ((letter, _),) = office.letters()
    assert letter.attempts == tried and letter.fault == "fleet"


def test_a_worker_that_turned_it_down_and_the_one_that_failed_are_told_apart():
    office = Office(keep_body=True)
    boxes = [Box(office.world, f"box{number}") for number in range(2)]
    client = office.world.ask("m")
    first = next(box for box in boxes if box.requests)
    first.close("busy")
    (second,) = [box for box in boxes if box.requests]
    second.close("failed", "engine_error")
    office.world.passes(1)
    first.close("failed", "engine_error", message="out of\nmemory \x00\ud800" + "x" * 5000)
    assert client.code == "engine_error"
    ((letter, _),) = office.letters()
    assert letter.attempts == [
        {"worker": box.name, "outcome": outcome} for box, outcome in ((first, "busy"), (second, "engine_error"), (first, "engine_error"))
    ]
    assert letter.message.startswith("out of memory   xxx") and len(letter.message) == 1000 and letter.fault == "engine"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_words_are_kept_only_where_bodies_are(stream):
    words = "Failed to parse input at pos 0: my secret diagnosis"
    for keep, said in ((False, "The engine answered with an error."), (True, words)):
        office = Office(keep_body=keep)
        box = Box(office.world)
        client = office.world.ask("m", stream=stream)
        wrong = json.dumps({"error": {"code": 500, "message": words, "type": "server_error"}}).encode()
        if stream:
            box.head()
            box.data(EVENT)
            box.data(b"data: " + wrong + b"\n\n")
            box.close("cancelled")
        else:
            box.head(500, JSON, wrong)
            box.close()
        assert words in client.error.message  # its client hears it all the same
        ((letter, _),) = office.letters()
        assert (letter.message, letter.code, letter.status) == (said, "engine_error", 502)


def test_of_an_engine_that_is_away_no_words_are_kept_either():
    for code, said in (("engine_unreachable", errors.EngineUnreachable().message), ("engine_timeout", errors.EngineTimeout().message)):
        office = Office()
        box = Box(office.world)
        office.world.ask("m", stream=True)
        box.head()
        box.data(EVENT)
        box.close("failed", code, message="it said: my secret diagnosis")
        ((letter, _),) = office.letters()
        assert (letter.message, letter.code) == (said, code)


def test_one_that_was_turned_down_for_ever_tells_of_the_last_workers_only():
    office = Office(timeouts=Timeouts(queue=1000))
    box = Box(office.world, "box", engine("m", slots=1))
    client = office.world.ask("m")
    for _ in range(meter.TRIED + 5):
        box.close("busy")
        office.world.passes(9)
    box.close("failed", "engine_error")
    assert client.code == "engine_error"
    ((letter, _),) = office.letters()
    assert len(letter.attempts) == meter.TRIED + 1
    assert (letter.attempts[0]["outcome"], letter.attempts[-1]["outcome"]) == ("busy", "engine_error")


def test_an_answer_that_breaks_off_leaves_a_letter_with_the_status_of_the_error():
    office = Office()
    box = Box(office.world)
    client = office.world.ask("m", stream=True)
    box.head()
    box.data(EVENT)
    box.cut()
    assert client.code == "worker_lost" and client.exchange._tally.status == 200
    ((letter, _),) = office.letters()
    assert (letter.status, letter.attempts) == (502, [{"worker": "box", "outcome": "worker_lost"}])


def test_a_bug_of_ours_leaves_a_letter(monkeypatch):
    office = Office()
    box = Box(office.world)
    client = office.world.ask("m")
    monkeypatch.setitem(exchange.TABLE[signals.State.SENT], signals.Answered, lambda *_: 1 / 0)
    box.head(200, JSON, b"{}")
    box.close("cancelled")
    assert client.code == "internal_error"
    ((letter, _),) = office.letters()
    assert letter.fault == "gateway"


def test_what_ran_when_the_server_stopped_leaves_a_letter():
    office = Office()
    box = Box(office.world)
    office.world.ask("m")
    office.world.pipeline.stop()
    box.cut()
    ((letter, _),) = office.letters()
    assert letter.code == "server_draining"


# -- what leaves none --------------------------------------------------------------------------------------------------


def _fine(world, box):
    world.ask("m")
    box.head(200, JSON, b"{}")
    box.close()


def _callers_fault(world, box):
    world.ask("m", n=0)
    world.ask("nobody")


def _refused_by_the_engine(world, box):
    world.ask("m")
    box.head(400, JSON, b'{"error":{"message":"no"}}')
    box.close()


def _hung_up(world, box):
    world.ask("m").post(signals.Gone())
    box.close("cancelled")


def _hung_up_in_the_queue(world, box):
    world.ask("m")
    world.ask("m").post(signals.Gone())


def _cancelled_by_an_operator(world, box):
    world.pipeline.cancel_request(world.ask("m").request_id)
    box.close("cancelled")


def _revoked(world, box):
    client = world.ask("m")
    world.pipeline.revoke_key(client.exchange.caller.key_id)
    box.close("cancelled")


def _crowded(world, box):
    for _ in range(3):
        world.ask("m")


def _too_late_at_the_door(world, box):
    world.pipeline.drain()
    world.ask("m")


def _stalled(world, box):
    client = world.ask("m", stream=True)
    client.reads = False
    box.head()
    box.data(EVENT)
    world.passes(500)
    box.close("cancelled")


NO_LETTER = [
    _fine, _callers_fault, _refused_by_the_engine, _hung_up, _hung_up_in_the_queue, _cancelled_by_an_operator, _revoked, _crowded,
    _too_late_at_the_door, _stalled,
]  # fmt: skip


@pytest.mark.parametrize("scene", NO_LETTER, ids=lambda scene: scene.__name__.strip("_"))
def test_no_letter_is_left_by(scene):
    office = Office(limits=Limits(queue=1), keep_body=True)
    scene(office.world, Box(office.world))
    assert office.letters() == []
    assert office.counters.dead_letters == {}


def test_a_deadline_that_cannot_be_met_is_backpressure():
    office = Office()
    box = Box(office.world, "box", engine("m", slots=1))
    for _ in range(3):  # so that speeds are known
        office.world.ask("m", stream=True)
        box.head(200, SSE)
        for _ in range(20):
            box.data(EVENT)
            office.world.passes(5)
        box.close()
    office.world.ask("m")
    turned_away = office.world.ask("m", headers=[(b"x-mindgw-deadline", b"0.5")])
    assert turned_away.code == "deadline_unmeetable"
    assert office.letters() == []


def test_a_deadline_that_passed_is_a_failure():
    office = Office()
    Box(office.world, "box", engine("m", slots=1))
    office.world.ask("m")
    late = office.world.ask("m", headers=[(b"x-mindgw-deadline", b"7")])
    office.world.passes(10)
    assert late.code == "deadline_unmeetable"
    assert [letter.code for letter, _ in office.letters()] == ["deadline_unmeetable"]


@pytest.mark.parametrize(
    ("wrong", "dead"),
    [
        (errors.QueueTimeout(), True), (errors.NoWorker(), True), (errors.TooLate(), True), (errors.Draining(), True),
        (errors.WorkerLost(), True), (errors.EngineFailed(), True), (errors.EngineUnreachable(), True), (errors.EngineTimeout(), True),
        (errors.InternalError(), True), (errors.QueueFull(), False), (errors.Cancelled(), False), (errors.EngineRefused(), False),
        (errors.BadRequest(), False), (errors.ContextTooLong(), False), (errors.RateLimited(), False), (errors.Unauthenticated(), False),
    ],
)  # fmt: skip
def test_whose_fault_decides(wrong, dead):
    assert is_dead(wrong) is dead


# -- bodies ------------------------------------------------------------------------------------------------------------


def lose(office: Office, *, begun: bool = False, **fields) -> Client:
    """A request that is lost, before the first byte of its answer or after it."""
    box = Box(office.world)
    client = office.world.ask("m", stream=begun, **fields)
    if begun:
        box.head()
        box.data(EVENT)
        box.cut()
    else:
        box.close("failed", "engine_error")
        box.cut()
    return client


@pytest.mark.parametrize("begun", [False, True])
def test_a_body_is_kept_where_that_is_wanted(begun):
    office = Office(keep_body=True)
    lose(office, begun=begun, user="ü")
    ((letter, body),) = office.letters()
    assert json.loads(body)["user"] == "ü"
    assert (letter.size, letter.body_note) == (len(body), "")


def test_a_body_that_is_too_large_is_not_kept():
    office = Office(keep_body=True, max_body=100)
    lose(office, user="x" * 100)
    ((letter, body),) = office.letters()
    assert (letter.body_note, body) == ("too_large", None) and letter.size > 100


def test_a_body_is_forgotten_with_its_answer_where_none_is_kept():
    office = Office()
    lose(office, begun=True)
    ((letter, body),) = office.letters()
    assert (letter.body_note, body) == ("off", None) and letter.size > 20


def test_bodies_that_wait_for_the_database_have_a_bound(monkeypatch):
    monkeypatch.setattr(dead_letters, "MOST_BYTES", 1000)
    office = Office(keep_body=True)
    for _ in range(3):
        lose(office, user="x" * 300)
    assert [(letter.body_note, body is None) for letter, body in office.letters()] == [("", False), ("", False), ("crowded", True)]
    lose(office, user="x" * 300)  # they are written: there is room again
    assert [letter.body_note for letter, _ in office.letters()] == [""]


def test_letters_that_wait_for_the_database_have_a_bound(monkeypatch):
    monkeypatch.setattr(dead_letters, "MOST", 2)
    office = Office()
    for _ in range(3):
        lose(office)
    assert (office.dead.unwritten, office.counters.dead_letters_lost, office.counters.dead_letters["engine_error"]) == (2, 1, 3)


# -- writing -----------------------------------------------------------------------------------------------------------


def fill(dead: DeadLetters, count: int, body: bytes = b"{}") -> None:
    for number in range(count):
        row = Entry(
            request_id=f"r{number}", key_id="k", org_id="o", model="m", endpoint="/", status=502, outcome="failed",
            started_at=dead._today(),
        )  # fmt: skip
        dead.add(row, errors.WorkerLost(), [], "", len(body), body)


def test_letters_are_written_in_batches_and_outlive_a_database_that_is_away():
    dead = DeadLetters(Settings(keep_body=True), metrics.Counters())
    fill(dead, dead_letters.BATCH + 5)
    batches = []

    async def refuse(sent):
        raise OSError("away")

    async def write(sent):
        batches.append([letter.request_id for letter, _ in sent])

    with pytest.raises(OSError, match="away"):
        finished(dead.flush(refuse))
    assert dead.unwritten == dead_letters.BATCH + 5
    assert finished(dead.flush(write)) == dead_letters.BATCH + 5
    assert [len(batch) for batch in batches] == [dead_letters.BATCH, 5]
    assert [id for batch in batches for id in batch] == [f"r{number}" for number in range(dead_letters.BATCH + 5)]
    assert (dead.unwritten, dead._held, finished(dead.flush(write))) == (0, 0, 0)
