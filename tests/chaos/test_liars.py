"""Agents that lie: about every number there is, about what they have, about what was used. They are routed around, put into quarantine
with a reason or cut off, nobody who asks notices, and no slot is lost.

A real server, a real agent in front of a FAKE engine that does its part, and a liar on a real link.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import stock
from mindgw.gateway.bill import UNSEEN
from mindgw_agent import events, wire
from tests.chaos.counting_engine import loop_aside
from tests.chaos.liar import Liar, models, number_in
from tests.e2e.fake_engine import FakeEngine, fake_engine
from tests.e2e.raw import Answer, Raw, ask, request
from tests.e2e.stage import chat
from tests.e2e.world import World, until, world

pytestmark = pytest.mark.e2e

SETTINGS = "routing:\n  retries: 100\n  eject_for: 1s\n"
GOOD = number_in("serial", "1")
DONE = '{"outcome":"done","usage":{"prompt":3,"completion":2},"finish":"stop"}'
NAME = "bench-0"


class Court:
    """The server, who is honest, and who is not."""

    def __init__(self, made: World, engine: FakeEngine, liar: Liar) -> None:
        self.world, self.engine, self.liar = made, engine, liar
        #: Serial of its last report.
        self.serial = 1

    def worker(self) -> dict[str, Any]:
        return self.world.worker(NAME)

    def post(self, name: str, verb: str) -> None:
        self.world.admin_post(f"/api/v1/workers/{name}/{verb}", None)

    def begin(self) -> None:
        """The liar has a link and no charge, and the model of the honest one."""
        self.liar.answer = lambda request: None
        if self.liar.is_gone:
            until(lambda: self.worker()["state"] in {"offline", "quarantined"}, "its old link is gone")
            self.serial = 1
            self.liar.dial(GOOD)
        else:
            self.report(GOOD)
        if self.worker()["reason"]:
            self.post(NAME, "release")
        until(lambda: self.worker()["state"] == "ready" and not self.worker()["circuits"], "it is ready")

    def report(self, report: bytes) -> None:
        """A report, with the next serial."""
        self.serial += 1
        self.liar.report(report.replace(b'"serial":1,', b'"serial":%d,' % self.serial))

    def dial(self, first: bytes, *, waits: bool = True) -> None:
        """A new link with this for its first report."""
        self.liar.hang_up()
        until(lambda: self.worker()["state"] == "offline", "its old link is gone")
        self.serial = 1
        self.liar.dial(first, waits=waits)

    def asked(self, answer: Callable[[events.Request], None]) -> Answer:
        """The answer to a request that the liar was given first; `answer` is what it does about it once the honest one may have it, too."""
        self.post("honest", "drain")
        self.liar.asked.clear()
        with Raw(self.world.port, seconds=120) as raw:
            raw.send(request(self.world.key, chat("plain")))
            assert self.liar.asked.wait(60)
            self.post("honest", "undrain")
            self.liar.act(answer)
            return raw.answer()

    def assert_nobody_noticed(self, answer: Answer) -> None:
        assert answer.status == 200, answer
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == "one two"
        self.assert_nothing_is_taken()

    def assert_nothing_is_taken(self) -> None:
        until(lambda: not self.worker()["used"] and not self.world.worker("honest")["used"], "all slots are free")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    folder: Path = tmp_path_factory.mktemp("liars")
    with world(folder) as made, fake_engine() as engine, loop_aside() as loop:
        made.initialise()
        with (made.data_dir / "config.yaml").open("a") as file:
            file.write(SETTINGS)
        stocked = stock.fill(made.data_dir, 1, 0)
        made.serve()
        made.join("honest", engine.url, "--slots", "4")
        liar = Liar(loop, made.root, stocked.server, stocked.members[0])
        liar.dial(GOOD)
        here = Court(made, engine, liar)
        yield here
        here.assert_nothing_is_taken()
        liar.hang_up()
        for process in made.processes:
            assert "Traceback" not in process.said, process.said


@pytest.fixture
def court(made: Court) -> Court:
    made.begin()
    return made


# -- numbers -----------------------------------------------------------------------------------------------------------

COUNTS = ["serial", "paused_until", "slots", "running", "elsewhere", "context", "created", "memory_total", "memory_used"]
MEASURES = ["utilisation", "temperature"]
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999"]
CASES = [*((name, value) for name in COUNTS for value in (*NO_NUMBERS, "-1", str(2**63), "0.5", "null" if name != "context" else '"1"'))]
CASES += [(name, value) for name in MEASURES for value in NO_NUMBERS]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_number_that_cannot_be_leads_to_quarantine_with_a_reason(court: Court, name: str, value: str) -> None:
    court.liar.report(number_in(name, value))
    until(lambda: court.worker()["state"] == "quarantined", "it is in quarantine")
    assert court.worker()["reason"].startswith("it reports what cannot be: bad Report: ")
    before = len(court.liar.requests)
    court.assert_nobody_noticed(ask(court.world, chat("plain")))
    assert len(court.liar.requests) == before


@pytest.mark.parametrize("value", ["1e999", "-1", str(2**63), "4097"])
def test_nor_is_one_believed_that_comes_with_the_greeting(court: Court, value: str) -> None:
    court.dial(number_in("slots", value))
    until(lambda: court.worker()["state"] == "quarantined", "it is in quarantine")
    assert court.worker()["reason"]
    court.assert_nobody_noticed(ask(court.world, chat("plain")))


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_greeting_that_is_no_json_is_none(court: Court, value: str) -> None:
    court.dial(number_in("slots", value), waits=False)
    until(lambda: court.liar.is_gone, "its link has ended")
    assert court.worker()["state"] == "offline"


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", ["-1e308", str(2**63), "1e308"])
def test_a_measure_that_is_only_too_much_is_cut(court: Court, name: str, value: str) -> None:
    court.report(number_in(name, value))
    bounds = {"utilisation": (0, 1), "temperature": (-100, 200)}[name]
    until(lambda: (gpus := court.worker()["gpus"]) and gpus[0][name] in bounds, "it is taken, within bounds")
    assert court.worker()["state"] == "ready"


@pytest.mark.parametrize("pong", [b"nan", b"-1", b"inf", b"1e999", b"9" * 60, b"0x1", "٣".encode()])
def test_a_strange_pong_makes_nobody_fast(court: Court, pong: bytes) -> None:
    before = court.worker()["rtt_ms"]
    court.liar.say(wire.PONG, pong)
    court.report(number_in("slots", "5"))
    until(lambda: court.liar.is_gone or court.worker()["slots"] == 5, "it was heard")
    found = court.worker()
    assert found["rtt_ms"] == before or found["state"] == "offline"


@pytest.mark.parametrize("field", ["prompt", "completion", "cached"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, "-1", str(2**63)])
def test_counts_that_cannot_be_end_the_link_and_the_request_goes_elsewhere(court: Court, field: str, value: str) -> None:
    court.assert_nobody_noticed(court.asked(court.liar.whole(f'{{"outcome":"done","usage":{{"{field}":{value}}}}}')))
    until(lambda: court.liar.is_gone, "its link has ended")


@pytest.mark.parametrize("close", ['{"outcome":"done","events":-1}', '{"outcome":"done","bytes":1e999}', '{"outcome":"done","status":1000}',
                                   '{"outcome":"fine"}', "{}", "[]", "nonsense"])  # fmt: skip
def test_an_end_that_is_none_ends_the_link_and_the_request_goes_elsewhere(court: Court, close: str) -> None:
    court.assert_nobody_noticed(court.asked(court.liar.whole(close)))
    until(lambda: court.liar.is_gone, "its link has ended")


@pytest.mark.parametrize(("kind", "payload"), [
    (wire.HEAD, b"\xff\xff\x00"), (wire.HEAD, b"\x00\x00\x00"), (wire.HEAD, b"\x00\xc8\xff"), (wire.DATA, bytes(wire.MAX_PAYLOAD)),
    (wire.OPEN, b"\x00\x00"), (wire.CREDIT, b""), (99, b""),
])  # fmt: skip
def test_a_frame_that_may_not_be_is_no_answer(court: Court, kind: int, payload: bytes) -> None:
    say = court.liar.frame(kind, payload)

    def say_all(request: events.Request) -> None:
        for _ in range(5):  # more than a window, where that counts
            say(request)

    court.assert_nobody_noticed(court.asked(say_all))
    until(lambda: court.liar.is_gone or kind == wire.DATA, "its link has ended")


@pytest.mark.parametrize(("kind", "payload"), [
    (wire.RECEIPTS, b'{"last":-1}'), (wire.RECEIPTS, b'{"last":9223372036854775808}'), (wire.RECEIPTS, b'{"last":NaN}'),
    (wire.PROGRESS, b'{"id":9007199254740992}'), (wire.PROGRESS, b'{"id":1,"part":NaN}'), (wire.PROGRESS, b'{"id":1,"part":-1}'),
    (wire.GOODBYE, b'{"code":"x","retry_after":-1}'), (wire.GOODBYE, b'{"code":"x","retry_after":1e999}'),
])  # fmt: skip
def test_numbers_beside_requests_that_cannot_be_end_the_link_and_nothing_else(court: Court, kind: int, payload: bytes) -> None:
    court.liar.say(kind, payload)
    until(lambda: court.liar.is_gone, "its link has ended")
    court.assert_nobody_noticed(ask(court.world, chat("plain")))


@pytest.mark.parametrize("count", [10**6, 2**53])
def test_more_tokens_than_the_answer_can_hold_are_not_billed(court: Court, count: int) -> None:
    counts = {"prompt_tokens": count, "completion_tokens": count}
    body = msgspec.json.encode({"choices": [{"message": {"content": "hi"}}], "usage": counts})
    answer = court.asked(court.liar.whole(f'{{"outcome":"done","usage":{{"prompt":{count},"completion":{count}}}}}', body=body))
    assert answer.status == 200
    (row,) = until(lambda: [row for row in court.world.rows() if row["request_id"] == answer.headers["x-request-id"]], "its row")
    most = UNSEEN + len(answer.body) + len(chat("plain"))
    assert row["prompt_tokens"] <= most
    assert row["completion_tokens"] <= most


# -- models and slots --------------------------------------------------------------------------------------------------


def test_who_claims_every_model_is_asked_and_not_believed_again(court: Court) -> None:
    claimed = ["fake", *(f"model-{number}" for number in range(600))]
    court.report(models(claimed, slots=4096))
    until(lambda: court.worker()["slots"] == 4096, "it was heard")
    says = court.liar.whole('{"outcome":"done","status":404}', 404, b'{"detail":"Not Found"}')
    court.assert_nobody_noticed(court.asked(says))
    court.liar.answer = says
    before = len(court.liar.requests)
    for _ in range(20):
        court.assert_nobody_noticed(ask(court.world, chat("plain")))
    assert len(court.liar.requests) == before
    alone = ask(court.world, chat("plain", model="model-7"))  # which nobody else has
    assert (alone.status, alone.error["code"]) == (404, "engine_refused")


@pytest.mark.parametrize("body", [b"", b"{}x", b"<html>", b'{"error":{"message":"no"}}'])
def test_who_answers_nonsense_at_once_with_endless_slots_is_no_hole_for_requests(court: Court, body: bytes) -> None:
    """As fast as can be, so that whoever goes by speed alone sends everything there."""
    court.report(models(["fake"], slots=4096))
    until(lambda: court.worker()["slots"] == 4096, "it was heard")
    court.liar.answer = court.liar.whole(DONE, body=body)
    before = len(court.liar.requests)
    for _ in range(30):
        court.assert_nobody_noticed(ask(court.world, chat("plain")))
    assert len(court.liar.requests) - before <= 10


def test_slots_without_end_are_a_charge(court: Court) -> None:
    court.report(models(["fake"], slots=2**53))
    until(lambda: court.worker()["state"] == "quarantined", "it is in quarantine")
    assert court.worker()["reason"] == f"it claims {2**53} slots for one engine"
    assert court.worker()["slots"] <= 4096
    court.assert_nobody_noticed(ask(court.world, chat("plain")))
