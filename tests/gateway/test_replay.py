"""Requests with an Idempotency-Key: run once however often they are sent, through the real pipeline; and the registry against a model."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings as depth
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from mindgw import errors
from mindgw.config import Idempotency, Limits, Timeouts
from mindgw.core import sse
from mindgw.core.payload import Peek
from mindgw.gateway import answers, replay, signals
from mindgw.gateway.replay import Replay
from mindgw.gateway.signals import Answer, Copied, End, Fail, Gone, Head, Recalled, Refused, State, Write
from mindgw.server import problems
from mindgw.store.replays import Ended
from tests.gateway.test_machine import Requests
from tests.gateway.world import DONE, EVENT, JSON, Box, Client, World, engine, finished

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANSWER = b'{"choices":[{"message":{"content":"once"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
ONCE = (b"idempotency-key", b"order 66")


class Shelf:
    """A dictionary in place of the database."""

    def __init__(self) -> None:
        self.rows: dict[bytes, answers.Sent] = {}
        self.reads = 0
        #: What a read raises, from which on.
        self.wrong: Exception | None = None
        self.wrong_from = 0
        #: Set to let a read go on.
        self.gate: asyncio.Event | None = None

    async def find(self, identity):
        self.reads += 1
        number = self.reads
        if self.gate is not None:
            await self.gate.wait()
        if self.wrong is not None and number >= self.wrong_from:
            raise self.wrong
        return self.rows.get(identity)

    async def write(self, sent):
        if self.wrong is not None:
            raise self.wrong
        for ended, body in sent:
            self.rows.setdefault(ended.identity, (ended, body))


class Shop:
    """A world that knows Idempotency-Keys."""

    def __init__(self, *, slots: int = 4, timeouts: Timeouts | None = None, limits: Limits | None = None, **facts) -> None:
        self.shelf = Shelf()
        self.replay = self.registry(**facts)
        self.world = World(timeouts, limits, replay=self.replay)
        self.box = Box(self.world, "box", engine("m", slots=slots))

    def registry(self, **facts) -> Replay:
        return Replay(Idempotency(**facts), b"k" * 32, self.shelf.find, problems.body, lambda: NOON)

    def restart(self, **facts) -> None:
        """All that was in memory is gone."""
        self.flush()
        keys, key = self.world.keys, self.world.key
        self.replay = self.registry(**facts)
        self.world = World(replay=self.replay)
        self.world.keys, self.world.key = keys, key
        self.box = Box(self.world, "box", engine("m", slots=4))

    async def ask(self, *headers, key: str | None = None, name: bytes = ONCE[1], **fields) -> Client:
        """A request with the header that has come as far as it can."""
        client = self.world.ask("m", key, headers=[(ONCE[0], name), *headers], **fields)
        await self.calm()
        return client

    async def calm(self) -> None:
        while self.world.pipeline._tasks:
            await asyncio.gather(*self.world.pipeline._tasks)
        self.world.pump()

    def answer(self, body: bytes = ANSWER) -> None:
        self.box.head(200, JSON, body)
        self.box.close()

    def flush(self) -> int:
        return finished(self.replay.flush(self.shelf.write))

    def row(self, client: Client):
        (row,) = [row for row in self.world.settled() if row.request_id == client.request_id]
        return row


def headers(client: Client) -> dict[bytes, bytes]:
    """What the answer says besides the usual."""
    told = [effect.headers for effect in client.sent if isinstance(effect, signals.Answer | signals.Begin)]
    return dict(told[0]) if told else {}


def replayed(client: Client) -> bool:
    return headers(client).get(b"idempotent-replayed") == b"true"


# -- what is given again ----------------------------------------------------------------------------------------------


async def test_the_same_request_is_answered_from_memory_and_costs_nothing():
    shop = Shop()
    first = await shop.ask()
    shop.answer()
    assert (first.body, replayed(first)) == (ANSWER, False)
    again = await shop.ask()
    assert (again.end.status, again.body, replayed(again)) == (200, ANSWER, True)
    assert headers(again)[b"x-mindgw-original-request-id"] == first.request_id.encode()
    assert shop.row(first).kind == "settled" and shop.row(first).completion_tokens == 4
    row = shop.row(again)
    assert (row.kind, row.attempt, row.outcome, row.status, row.error_code) == ("refused", 0, "replayed", 200, "")
    assert (row.prompt_tokens, row.completion_tokens, row.model, row.worker_id) == (0, 0, "m", "")
    assert shop.world.meter.counters.rejects == {}
    assert again.state is State.DONE and shop.world.pipeline._running == set() and shop.world.used == 0
    assert shop.shelf.reads == 1  # of the first one: the second was known


async def test_a_stream_is_given_again_as_it_was_without_its_signs_of_life():
    shop = Shop(slots=1)
    busy = shop.world.ask("m")
    first = await shop.ask((b"x-mindgw-events", b"1"), stream=True)
    shop.world.passes(12)
    assert b": mindgw queue=1" in first.body
    shop.answer()
    assert busy.body == ANSWER
    shop.box.head()
    shop.box.data(EVENT * 3)
    shop.world.passes(20)
    shop.box.close()
    assert first.body.endswith(EVENT * 3 + sse.PING + DONE)
    again = await shop.ask((b"x-mindgw-events", b"1"), stream=True)
    assert (again.body, replayed(again), type(again.end)) == (EVENT * 3 + DONE, True, End)
    assert (shop.row(again).outcome, shop.row(again).stream) == ("replayed", True)


async def test_after_two_minutes_and_after_a_restart_the_database_knows():
    shop = Shop(keep_body=True)
    first = await shop.ask()
    shop.answer()
    shop.flush()
    assert shop.flush() == 0
    shop.world.clock.now += answers.RECENT + 1
    again = await shop.ask()
    assert (again.body, replayed(again), shop.shelf.reads) == (ANSWER, True, 2)
    assert (await shop.ask()).body == ANSWER and shop.shelf.reads == 2  # it is in memory once more
    shop.restart(keep_body=True)
    assert (await shop.ask()).body == ANSWER and shop.box.requests == {}
    (ended, body) = next(iter(shop.shelf.rows.values()))
    assert (ended.request_id, ended.status, ended.kind, ended.note, body) == (first.request_id, 200, "json", "", ANSWER)


async def test_a_stream_from_the_database_takes_no_more_room_than_it_has_bytes():
    shop = Shop(keep_body=True)
    await shop.ask(stream=True)
    shop.box.head()
    shop.box.data(EVENT)
    shop.box.close()
    shop.flush()
    shop.world.clock.now += answers.RECENT
    assert (await shop.ask(stream=True)).body == EVENT + DONE
    assert shop.replay.answers.held == len(EVENT + DONE)
    shop.world.clock.now += answers.RECENT
    shop.flush()
    assert (shop.replay.answers.held, len(shop.replay.answers)) == (0, 0)


async def test_an_answer_that_is_not_kept_is_not_made_twice():
    shop = Shop()
    first = await shop.ask()
    shop.answer()
    shop.flush()
    shop.world.clock.now += answers.RECENT
    client = await shop.ask()
    assert (client.code, client.error.status) == ("idempotency_not_kept", 409)
    assert first.request_id in client.error.message and "status 200" in client.error.message and "keep_body" in client.error.message
    assert (b"x-should-retry", b"false") in problems.headers(client.error)
    assert (shop.row(client).kind, shop.row(client).outcome) == ("refused", "failed")
    assert (await shop.ask()).code == "idempotency_not_kept" and shop.shelf.reads == 2
    assert not shop.box.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_too_large_is_not_kept(stream):
    shop = Shop(keep_body=True, max_body=200)
    first = await shop.ask(stream=stream)
    if stream:
        shop.box.head()
        shop.box.data(EVENT * 10)
        shop.box.close()
    else:
        shop.answer(ANSWER + b" " * 200)
    assert len(first.body) > 200
    client = await shop.ask(stream=stream)
    assert client.code == "idempotency_not_kept" and "max_body" in client.error.message
    shop.flush()
    ((ended, body),) = shop.shelf.rows.values()
    assert (ended.note, body, shop.replay.answers.held) == ("too_large", None, 0)


async def test_what_failed_on_an_engine_fails_again_the_same_way():
    shop = Shop()
    first = await shop.ask()
    shop.box.head(500, JSON, b'{"error":{"message":"CUDA error"}}')
    shop.box.close()
    assert first.code == "engine_error"
    again = await shop.ask()
    assert (again.end.status, json.loads(again.body)) == (502, problems.document(first.error, first.request_id))
    assert headers(again)[b"x-should-retry"] == b"false" and replayed(again)
    assert (shop.row(again).status, shop.row(again).error_code, shop.row(again).outcome) == (502, "engine_error", "replayed")


async def test_a_stream_that_broke_off_breaks_off_again():
    shop = Shop()
    first = await shop.ask(stream=True)
    shop.box.head()
    shop.box.data(EVENT)
    shop.box.cut()
    assert first.code == "worker_lost"
    again = await shop.ask(stream=True)
    *events, last = sse.Splitter().feed(again.body)
    assert [sse.event(event) for event in events] == [EVENT]
    assert json.loads(last)["error"] == problems.document(first.error, first.request_id)["error"]
    assert (shop.row(again).status, shop.row(again).error_code) == (200, "worker_lost")


async def test_the_rest_of_a_request_does_not_matter_for_its_identity():
    """The key, the path and the name do."""
    shop = Shop(limits=Limits(queue=0))
    await shop.ask()
    shop.answer()
    other = shop.world.add_key()
    for fields in ({"key": other}, {"name": b"order 67"}):
        assert shop.box.requests == {}
        client = await shop.ask(**fields)
        assert client.state is State.SENT
        shop.answer()
        assert client.body == ANSWER and not replayed(client)
    assert (await shop.ask((b"x-mindgw-deadline", b"1"))).body == ANSWER


async def test_without_the_header_nothing_is_remembered_and_nothing_read():
    shop = Shop()
    for _ in range(2):
        client = shop.world.ask()
        shop.answer()
        assert client.body == ANSWER and client.exchange._claim is None
    assert (shop.shelf.reads, len(shop.replay.answers), shop.flush()) == (0, 0, 0)


# -- while it runs ----------------------------------------------------------------------------------------------------


async def test_the_same_request_attaches_to_the_one_that_runs():
    shop = Shop()
    first, second, third = [await shop.ask() for _ in range(3)]
    assert [client.state for client in (first, second, third)] == [State.SENT, State.ATTACHED, State.ATTACHED]
    assert len(shop.box.requests) == 1 and shop.world.pipeline.idle is False
    shop.answer()
    assert first.body == second.body == third.body == ANSWER
    assert [replayed(client) for client in (first, second, third)] == [False, True, True]
    assert [shop.row(client).outcome for client in (first, second, third)] == ["done", "replayed", "replayed"]
    assert shop.world.pipeline._running == set()


async def test_whoever_attached_hears_the_same_error():
    shop = Shop()
    first, second = await shop.ask(), await shop.ask()
    shop.box.close("failed", "engine_error", message="out of memory")
    assert first.code == "engine_error" and json.loads(second.body)["error"]["message"] == "out of memory"
    assert second.end.status == 502 and replayed(second)


async def test_a_large_answer_reaches_all_who_attached():
    shop = Shop(max_body=10)
    _, second = await shop.ask(), await shop.ask()
    shop.answer()
    assert second.body == ANSWER


async def test_two_clients_never_share_a_stream():
    shop = Shop()
    first = await shop.ask(stream=True)
    second = await shop.ask(stream=True)
    assert (second.code, second.error.status, second.error.retry_after) == ("idempotency_in_progress", 409, replay.SOON)
    shop.box.head()
    shop.box.data(EVENT)
    assert (await shop.ask(stream=True)).code == "idempotency_in_progress"
    shop.box.close()
    assert (await shop.ask(stream=True)).body == first.body
    assert len([row for row in shop.world.settled() if row.kind == "settled"]) == 1


async def test_another_body_is_refused_while_it_runs_and_afterwards():
    shop = Shop(keep_body=True)
    await shop.ask()
    for _ in range(2):
        client = await shop.ask(temperature=1)
        assert (client.code, client.error.status) == ("idempotency_key_reused", 422)
        if shop.box.requests:
            shop.answer()
    shop.flush()
    shop.world.clock.now += answers.RECENT
    assert (await shop.ask(temperature=1)).code == "idempotency_key_reused"
    assert (await shop.ask()).body == ANSWER
    assert {row.kind for row in shop.world.settled() if row.outcome == "failed"} == {"refused"}


async def test_no_more_wait_for_one_answer_than_there_is_room_for():
    shop = Shop()
    clients = [await shop.ask() for _ in range(replay.WAITERS + 2)]
    assert [client.code for client in clients] == [""] * (replay.WAITERS + 1) + ["idempotency_in_progress"]
    shop.answer()
    assert {client.body for client in clients[:-1]} == {ANSWER}


async def test_a_retry_that_comes_while_the_database_is_asked_attaches_too():
    shop = Shop()
    shop.shelf.gate = asyncio.Event()
    first, second = shop.world.ask(headers=[ONCE]), shop.world.ask(headers=[ONCE])
    other = shop.world.ask(headers=[ONCE], temperature=1)
    await asyncio.sleep(0)
    assert (first.state, second.state) == (State.ATTACHED, State.ATTACHED)
    assert other.code == "idempotency_in_progress"  # nobody knows yet which of them is the right one
    shop.shelf.gate.set()
    await shop.calm()
    assert shop.shelf.reads == 1
    shop.answer()
    assert first.body == second.body == ANSWER


@pytest.mark.parametrize("keep", [True, False])
async def test_all_who_asked_meanwhile_hear_what_the_database_knows(keep):
    shop = Shop(keep_body=keep)
    await shop.ask()
    shop.answer()
    shop.flush()
    shop.world.clock.now += answers.RECENT
    shop.shelf.gate = asyncio.Event()
    clients = [shop.world.ask(headers=[ONCE], temperature=0) for _ in range(2)] + [shop.world.ask(headers=[ONCE])]
    shop.shelf.gate.set()
    await shop.calm()
    assert [client.code for client in clients] == ["idempotency_key_reused"] * 2 + ["idempotency_in_progress"]
    assert (await shop.ask()).code == ("" if keep else "idempotency_not_kept")
    assert shop.replay.running == 0 and shop.replay.answers.held == (len(ANSWER) if keep else 0)


# -- what frees it again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b"x" * 256, b"caf\xc3\xa9", b"a\x00b", b"tab\t"])
async def test_a_key_that_is_none_is_refused(name):
    shop = Shop()
    client = await shop.ask(name=name)
    assert (client.code, client.error.status, shop.shelf.reads) == ("invalid_idempotency_key", 400, 0)
    assert shop.row(client).outcome == "failed"


async def test_one_that_is_sent_twice_must_be_the_same_twice():
    shop = Shop()
    assert (await shop.ask((ONCE[0], b"another"))).code == "invalid_idempotency_key"
    assert (await shop.ask(ONCE)).state is State.SENT
    assert (await shop.ask(name=b"~" * 255)).state is State.SENT


async def test_what_is_refused_before_an_engine_is_asked_takes_no_name():
    shop = Shop(slots=1, limits=Limits(queue=1), timeouts=Timeouts(queue=30))
    refused = shop.world.ask("nobody", headers=[ONCE])
    await shop.calm()
    bad = await shop.ask(messages="none")
    assert (refused.code, bad.code) == ("model_not_found", "invalid_request")
    await shop.ask(name=b"1")
    waits = await shop.ask()
    attached = await shop.ask()
    full = await shop.ask(name=b"2")
    assert (waits.state, attached.state, full.code) == (State.WAITING, State.ATTACHED, "queue_full")
    shop.world.passes(40)
    assert waits.code == attached.code == "queue_timeout" and attached.error.retry_after is not None
    assert (shop.row(attached).outcome, shop.row(attached).error_code) == ("replayed", "queue_timeout")
    assert shop.world.meter.counters.queued.counts[0] == 0  # nobody took it for one that had waited
    shop.answer()
    client = await shop.ask()
    assert client.state is State.SENT
    shop.answer()
    assert client.body == ANSWER and not replayed(client)


async def test_a_worker_that_never_began_leaves_the_name_free():
    shop = Shop(timeouts=Timeouts(queue=30))
    first, second = await shop.ask(), await shop.ask(name=b"2")
    shop.box.close("failed", "engine_unreachable", stream=min(shop.box.requests))
    shop.box.close("busy")
    shop.box.says(engine("m", slots=0))
    shop.world.passes(40)
    assert first.code == second.code == "queue_timeout"
    shop.box.says(engine("m", slots=4))
    assert (await shop.ask()).state is State.SENT


async def test_workers_that_were_all_lost_leave_the_name_free():
    """Nothing is billed, so nothing is paid twice."""
    shop = Shop()
    first = await shop.ask()
    for number in range(3):
        box, shop.box = shop.box, Box(shop.world, f"box{number}")
        box.cut()
    assert (first.code, len(shop.replay.answers)) == ("worker_lost", 0)
    assert (await shop.ask()).state is State.SENT


@pytest.mark.parametrize("how", ["revoke", "stop"])
async def test_a_key_that_died_and_a_server_that_stops_leave_no_answer(how):
    shop = Shop()
    first, second = await shop.ask(), await shop.ask()
    if how == "revoke":
        shop.world.pipeline.revoke_key(shop.world.key.split("_")[1])
    else:
        shop.world.pipeline.stop()
    assert first.code == second.code == ("revoked_api_key" if how == "revoke" else "server_draining")
    assert (len(shop.replay.answers), shop.replay.running, shop.flush()) == (0, 0, 0)


async def test_what_an_operator_cancelled_stays_cancelled():
    shop = Shop()
    first = await shop.ask()
    assert shop.world.pipeline.cancel_request(first.request_id)
    shop.world.pump()
    shop.box.close("cancelled")
    assert (await shop.ask()).end.status == 503
    waits = await shop.ask(name=b"2")
    attached = await shop.ask(name=b"2")
    assert shop.world.pipeline.cancel_request(attached.request_id)
    assert attached.code == "cancelled_by_operator" and waits.state is State.SENT
    shop.answer()
    assert waits.body == ANSWER


@pytest.mark.parametrize(
    ("wrong", "code"),
    [(errors.Draining(code="database_unavailable", retry_after=5), "database_unavailable"), (ValueError(), "internal_error")],
)
async def test_nothing_is_run_while_nobody_knows_whether_it_was(wrong, code, caplog):
    shop = Shop()
    shop.shelf.gate, shop.shelf.wrong = asyncio.Event(), wrong
    clients = [shop.world.ask(headers=[ONCE]) for _ in range(2)]
    shop.shelf.gate.set()
    await shop.calm()
    assert [client.code for client in clients] == [code] * 2 and not shop.box.requests
    assert ("Traceback" in caplog.text) == (code == "internal_error")
    shop.shelf.wrong = None
    assert (await shop.ask()).state is State.SENT


async def test_what_cannot_be_written_is_not_taken_in_for_ever(monkeypatch):
    monkeypatch.setattr(answers, "MOST", 2)
    shop = Shop()
    shop.shelf.wrong = None
    for name in (b"1", b"2"):
        await shop.ask(name=name)
        shop.answer()
    client = await shop.ask(name=b"3")
    assert (client.code, client.error.retry_after) == ("idempotency_unavailable", 10)
    assert (await shop.ask(name=b"1")).body == ANSWER
    shop.flush()
    assert (await shop.ask(name=b"3")).state is State.SENT


async def test_a_batch_that_is_refused_is_offered_again():
    shop = Shop(keep_body=True)
    await shop.ask()
    shop.answer()
    shop.shelf.wrong = OSError("disk full")
    with pytest.raises(OSError):
        shop.flush()
    shop.world.clock.now += 10 * answers.RECENT
    assert shop.replay.answers.unwritten == 1
    shop.shelf.wrong = None
    assert (await shop.ask()).body == ANSWER  # memory keeps what the database has not
    assert (shop.flush(), len(shop.replay.answers), len(shop.shelf.rows)) == (1, 0, 1)


# -- clients that hang up ---------------------------------------------------------------------------------------------


async def test_whoever_hangs_up_finds_the_answer_when_it_comes_back():
    shop = Shop()
    first = await shop.ask()
    for _ in range(2):
        first.post(Gone())
    assert first.state is State.SENT and shop.box.cancelled == []
    assert shop.replay._detached == {first.exchange.caller.key_id: 1}
    shop.answer()
    assert first.end is None and shop.row(first).outcome == "done"
    assert (await shop.ask()).body == ANSWER


async def test_whoever_comes_back_in_time_attaches():
    shop = Shop()
    first = await shop.ask()
    first.post(Gone())
    again = await shop.ask()
    assert again.state is State.ATTACHED
    shop.answer()
    assert again.body == ANSWER and shop.replay._detached == {}


async def test_one_that_waits_in_the_queue_goes_on_waiting():
    shop = Shop(slots=1)
    shop.world.ask()
    first = await shop.ask()
    first.post(Gone())
    assert (first.state, shop.world.pipeline.queue.waiting) == (State.WAITING, 1)
    shop.answer()
    assert first.state is State.SENT
    shop.answer()
    assert (await shop.ask()).body == ANSWER


async def test_without_the_header_whoever_hangs_up_is_cancelled_as_always():
    shop = Shop()
    client = shop.world.ask()
    client.post(Gone())
    shop.world.pump()
    assert client.state is State.CLOSING and len(shop.box.cancelled) == 1


async def test_only_so_many_go_on_without_their_clients():
    shop = Shop(slots=20)
    clients = [await shop.ask(name=b"%d" % number) for number in range(replay.DETACHED + 1)]
    for client in clients:
        client.post(Gone())
    shop.world.pump()
    assert [client.state for client in clients] == [State.SENT] * replay.DETACHED + [State.CLOSING]
    other = await shop.ask(key=shop.world.add_key())
    other.post(Gone())
    assert other.state is State.SENT
    assert (await shop.ask(name=b"%d" % replay.DETACHED)).state is State.SENT  # its name is free again
    shop.box.head(200, JSON, ANSWER, stream=min(shop.box.requests))
    shop.box.close(stream=min(shop.box.requests))
    assert shop.replay._detached[clients[0].exchange.caller.key_id] == replay.DETACHED - 1


async def test_it_goes_on_for_those_who_attached_and_ends_with_the_last_of_them(monkeypatch):
    monkeypatch.setattr(replay, "DETACHED", 0)
    shop = Shop()
    first, second, third = [await shop.ask() for _ in range(3)]
    for client in (first, second):
        client.post(Gone())
        shop.world.pump()
        assert (first.state, shop.box.cancelled) == (State.SENT, [])
    assert (second.state, shop.row(second).outcome) == (State.DONE, "cancelled")
    third.post(Gone())
    shop.world.pump()
    assert (first.state, third.state, len(shop.box.cancelled)) == (State.CLOSING, State.DONE, 1)
    assert shop.replay.running == 0
    shop.box.close("cancelled")
    assert shop.row(first).outcome == "cancelled"


@pytest.mark.parametrize("keep", [True, False])
async def test_a_stream_whose_client_goes_is_taken_down_only_where_answers_are_kept(keep):
    shop = Shop(keep_body=keep)
    first = await shop.ask(stream=True)
    shop.box.head()
    shop.box.data(EVENT)
    first.reads = False
    shop.box.data(EVENT)
    first.post(Gone())
    shop.world.pump()
    if not keep:
        assert (first.state, len(shop.box.cancelled), shop.replay.answers.held) == (State.CLOSING, 1, 0)
        return
    assert (await shop.ask(stream=True)).code == "idempotency_in_progress"
    for _ in range(1000):  # more than a window: whoever takes it down must pay for it
        shop.box.data(EVENT * 10)
    shop.world.passes(100)
    shop.box.data(EVENT)
    shop.box.close()
    assert shop.row(first).outcome == "done"
    assert (await shop.ask(stream=True)).body == EVENT * 10_003 + DONE


async def test_a_stream_that_is_too_large_to_be_kept_ends_with_its_client():
    shop = Shop(keep_body=True, max_body=100)
    first = await shop.ask(stream=True)
    shop.box.head()
    shop.box.data(EVENT * 10)
    first.post(Gone())
    assert first.state is State.CLOSING


async def test_whoever_leaves_while_the_database_is_asked_is_not_waited_for():
    shop = Shop()
    shop.shelf.gate = asyncio.Event()
    stream = shop.world.ask(headers=[(ONCE[0], b"1")], stream=True)
    stream.post(Gone())
    assert (stream.state, shop.replay.running) == (State.DONE, 0)
    whole = shop.world.ask(headers=[ONCE])
    whole.post(Gone())
    await asyncio.sleep(0)
    again = shop.world.ask(headers=[(ONCE[0], b"1")], stream=True)
    shop.shelf.gate.set()
    await shop.calm()
    assert (whole.state, again.state) == (State.SENT, State.SENT)


@pytest.mark.parametrize("known", [True, False])
async def test_a_read_that_was_overtaken_says_nothing(known):
    """The same name was taken, left, and taken again while the database was slow."""
    shop = Shop(keep_body=True)
    if known:
        await shop.ask()
        shop.answer()
    shop.restart()
    shop.shelf.gate = asyncio.Event()
    first = shop.world.ask(headers=[ONCE], stream=True)
    await asyncio.sleep(0)
    first.post(Gone())
    second = shop.world.ask(headers=[ONCE])
    await asyncio.sleep(0)
    shop.shelf.gate.set()
    await shop.calm()
    assert (first.state, second.state) == (State.DONE, State.DONE if known else State.SENT)
    assert second.body == (ANSWER if known else b"")


async def test_of_two_reads_the_second_says_nothing():
    shop = Shop()
    shop.world.limit(f"key:{shop.world.key.split('_')[1]}", 10**6)
    shop.shelf.gate, shop.shelf.wrong, shop.shelf.wrong_from = asyncio.Event(), ValueError(), 2
    shop.world.ask(headers=[ONCE], stream=True).post(Gone())
    second = shop.world.ask(headers=[ONCE])
    await asyncio.sleep(0)
    assert shop.shelf.reads == 2
    shop.shelf.gate.set()
    await shop.calm()
    assert second.state is State.SENT


# -- memory -----------------------------------------------------------------------------------------------------------


async def test_the_oldest_answers_make_room_for_new_ones(monkeypatch):
    monkeypatch.setattr(answers, "MOST_BYTES", 2 * len(ANSWER) + 10)
    shop = Shop(keep_body=True)
    for number in range(4):
        await shop.ask(name=b"%d" % number)
        shop.answer()
        assert shop.replay.answers.held <= answers.MOST_BYTES
        if number == 1:
            shop.flush()
    assert (await shop.ask(name=b"0")).body == ANSWER  # the database had it
    assert shop.shelf.reads == 5
    client = await shop.ask(name=b"2")  # it was not written when its room was needed
    assert client.code == "idempotency_not_kept" and "too many" in client.error.message
    shop.flush()
    notes = sorted(ended.note for ended, _ in shop.shelf.rows.values())
    assert notes == ["", "", "", "crowded"]


async def test_a_stream_for_which_there_is_no_room_is_not_kept(monkeypatch):
    monkeypatch.setattr(answers, "MOST_BYTES", len(EVENT) * 2)
    shop = Shop()
    first = await shop.ask(stream=True)
    shop.box.head()
    shop.box.data(EVENT * 3)
    shop.box.close()
    assert first.body == EVENT * 3 + DONE
    client = await shop.ask(stream=True)
    assert client.code == "idempotency_not_kept" and "too many" in client.error.message
    assert shop.replay.answers.held == 0
    await shop.ask(name=b"2")
    shop.answer(ANSWER + b" " * 200)
    assert (await shop.ask(name=b"2")).code == "idempotency_not_kept"


async def test_memory_holds_no_more_requests_than_it_may(monkeypatch):
    monkeypatch.setattr(answers, "MOST", 3)
    shop = Shop(keep_body=True)
    for number in range(6):
        await shop.ask(name=b"%d" % number)
        shop.answer()
        shop.flush()
        assert len(shop.replay.answers) <= 3
    assert (await shop.ask(name=b"0")).body == ANSWER


# -- the registry against a model -------------------------------------------------------------------------------------


class Asked:
    """One request, as the registry sees it, and the lane of its client."""

    def __init__(self, name: str, body: bytes, stream: bool, number: int) -> None:
        self.head = Head(f"req-{number}", "/v1/completions", [(ONCE[0], name.encode())])
        self.name, self.body, self.peek = name, body, Peek("m", stream, False)
        self.lane = self
        self.tried = False
        self.claim = None
        #: What it was told: a code, or the answer.
        self.heard: list[object] = []

    def perform(self, effects):
        self.heard += [effect for effect in effects if isinstance(effect, Answer | Fail | End)]


class Registry(RuleBasedStateMachine):
    """Two names, two bodies, one key; whoever runs, waits or is over is told apart by a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.now = 1000.0
        self.replay = Replay(Idempotency(keep_body=True, max_body=1000), b"k" * 32, self.shelf.find, problems.body, lambda: NOON)
        self.replay.post, self.replay.now = self.post, lambda: self.now
        self.number = 0
        #: name -> who runs, its clients that are there, whether it is known to be the first, and what was written.
        self.runs: dict[str, dict] = {}
        #: name -> (body, answer) of what is over.
        self.over: dict[str, tuple[bytes, bytes]] = {}

    def post(self, request, event):
        """The exchange's half."""
        if isinstance(event, Recalled):
            self.runs[request.name]["sure"] = True
        elif isinstance(event, Refused):
            self.end(request, [Fail(event.error, False)])
        elif isinstance(event, Copied):
            self.end(request, event.effects)
        elif isinstance(event, Gone):
            assert self.runs[request.name]["first"] is request
            assert not request.claim.hang_up()
            del self.runs[request.name]

    def end(self, request, effects):
        request.claim.end()
        request.lane.perform(effects)

    @rule(name=st.sampled_from("ab"), body=st.sampled_from([b"1", b"2"]), stream=st.booleans())
    def ask(self, name, body, stream):
        self.number += 1
        request = Asked(name, body + b"s" * stream, stream, self.number)
        run, over = self.runs.get(name), self.over.get(name)
        try:
            claim = request.claim = self.replay.claim(request, "k", request.body, request.peek)
        except errors.MindGWError as wrong:
            code = wrong.code
        else:
            code = ""
        if code:
            same = run["first"].body == request.body if run else over[0] == request.body
            assert code == ("idempotency_in_progress" if run and (same or not run["sure"]) else "idempotency_key_reused")
            assert stream or not same
        elif run:
            assert run["first"].body == request.body and not stream and claim.effects == []
            run["clients"].append(request)
        elif claim.known is not None:
            assert over[0] == request.body
            assert self.said(claim.known.effects) == over[1]
        else:
            self.runs[name] = {"first": request, "clients": [request], "sure": False, "sent": b"", "identity": claim.effects[0].identity}

    def said(self, effects) -> bytes:
        return b"".join(
            effect.data if isinstance(effect, Write) else effect.body for effect in effects if isinstance(effect, Write | Answer)
        )

    @precondition(lambda self: any(not run["sure"] for run in self.runs.values()))
    @rule(data=st.data())
    def read(self, data):
        name = data.draw(st.sampled_from(sorted(name for name, run in self.runs.items() if not run["sure"])))
        run = self.runs[name]
        finished(self.replay.recall(run["identity"]))
        if name in self.over:
            del self.runs[name]
            body, answer = self.over[name]
            for client in run["clients"]:
                (last,) = client.heard
                assert isinstance(last, Fail) == (body != client.body)
                if isinstance(last, Answer):
                    assert last.body == answer
        else:
            assert run["sure"]

    @precondition(lambda self: any(run["sure"] for run in self.runs.values()))
    @rule(data=st.data(), how=st.sampled_from(["write", "ends", "ends", "fails", "refused"]))
    def goes_on(self, data, how):
        name = data.draw(st.sampled_from(sorted(name for name, run in self.runs.items() if run["sure"])))
        run = self.runs[name]
        first = run["first"]
        stream = first.peek.stream
        if how == "write":
            if stream:
                first.tried = True
                run["sent"] += b"data: {}\n\n"
                first.lane.perform([Write(b"data: {}\n\n"), Write(b": ping\n")])
            return
        del self.runs[name]
        first.tried = how != "refused"
        wrong = errors.EngineFailed("boom") if how == "fails" else errors.QueueTimeout()
        begun = stream and bool(run["sent"])
        if how == "ends":
            effect = End() if stream else Answer(200, b"answer " + first.head.request_id.encode())
            answer = run["sent"] if stream else effect.body
        else:
            effect = Fail(wrong, begun)
            text = problems.body(wrong, first.head.request_id)
            answer = run["sent"] + sse.event(text) if begun else text
        self.end(first, [effect])
        if how != "refused":
            self.over[name] = (first.body, answer)
        for client in run["clients"]:
            assert len(client.heard) == 1

    @precondition(lambda self: any(run["clients"] for run in self.runs.values()))
    @rule(data=st.data())
    def hang_up(self, data):
        name = data.draw(st.sampled_from(sorted(name for name, run in self.runs.items() if run["clients"])))
        run = self.runs[name]
        client = data.draw(st.sampled_from(run["clients"]))
        run["clients"].remove(client)
        if client is run["first"]:
            assert client.claim.hang_up()  # answers are kept, and there are never many
        else:
            assert not client.claim.hang_up()
            client.claim.end()
            client.claim.end()

    @rule()
    def flush(self):
        finished(self.replay.flush(self.shelf.write))

    @rule(seconds=st.sampled_from([1.0, 100.0, 200.0]))
    def passes(self, seconds):
        self.now += seconds

    @invariant()
    def nothing_else_runs_and_no_byte_is_lost_sight_of(self):
        assert self.replay.running == len(self.runs)
        held = sum(len(entry.body) for entry in self.replay.answers._bodies._all.values())
        assert self.replay.answers.held == held + sum(len(run["sent"]) for run in self.runs.values())
        detached = sum(not run["clients"] for run in self.runs.values())
        assert self.replay._detached == ({"k": detached} if detached else {})

    @invariant()
    def what_is_over_is_in_memory_or_in_the_database(self):
        known = {*self.shelf.rows, *self.replay.answers._entries._all}
        assert len(known) == len(self.over)


Registry.TestCase.settings = depth(max_examples=100, stateful_step_count=40, deadline=None)
TestRegistry = Registry.TestCase


def test_what_the_database_has_is_not_needed_in_memory():
    kept = answers.Answers(Idempotency(keep=60))
    ended = Ended(identity=b"i", key_id="k", request_id="r", fingerprint=b"f", status=200, done_at=NOON + timedelta(0))
    kept.add(ended, b"body", 0.0, written=True)
    assert kept.get(b"i", 59.0) == (ended, b"body") and kept.get(b"i", 60.0) is None
    kept.forget(59.0)
    assert len(kept) == 1
    kept.forget(60.0)
    assert (len(kept), kept.held) == (0, 0)


def named(number, key_id, size=0):
    identity = b"%s-%d" % (key_id.encode(), number)
    ended = Ended(identity=identity, key_id=key_id, request_id="r", fingerprint=b"f", status=200, done_at=NOON)
    return ended, b"x" * size if size else None


def test_one_key_cannot_push_the_others_out_of_memory(monkeypatch):
    monkeypatch.setattr(answers, "MOST", 40)
    kept = answers.Answers(Idempotency())
    for number in range(3):
        kept.add(*named(number, "victim"), 0.0, written=True)
    for number in range(500):
        kept.add(*named(number, "greedy"), 0.0, written=True)
    assert all(kept.get(named(number, "victim")[0].identity, 1.0) for number in range(3))
    assert len(kept) == 40 and kept.get(b"greedy-463", 1.0) and not kept.get(b"greedy-462", 1.0), "room that nobody needs is used"
    for number in range(33):
        kept.add(*named(number, f"k{number}"), 0.0, written=True)
    assert (len(kept), kept._names.amounts["greedy"]) == (40, 4), "it has its share when the others need room"
    assert all(kept.get(named(number, "victim")[0].identity, 1.0) for number in range(3))
    kept.add(*named(0, "last"), 0.0, written=True)
    assert not kept.get(b"victim-0", 1.0) and kept.get(b"last-0", 1.0), "the oldest of those in their shares"
    assert set(kept._names.amounts) == set(kept._entries._of) and kept._names.over == set()


@pytest.mark.parametrize("written", [True, False])
def test_one_key_cannot_push_the_answers_of_others_out_of_memory(monkeypatch, written):
    monkeypatch.setattr(answers, "MOST_BYTES", 1000)
    kept = answers.Answers(Idempotency())
    kept.add(*named(0, "victim", 60), 0.0, written=written)
    for number in range(200):
        kept.add(*named(number, "greedy", 30), 0.0, written=written)
    assert kept.get(b"victim-0", 1.0)[1] == b"x" * 60 and kept.get(b"greedy-199", 1.0)[1]
    assert kept.held == kept._bytes.amounts.total() <= 1000
    assert not kept.grow("greedy", 950), "others make no room for it, not even on the way"
    assert kept.get(b"victim-0", 1.0)[1] and kept.grow("third", 90)
    kept.shrink("third", 90)
    assert kept.held == kept._bytes.amounts.total()


# -- any order of events ----------------------------------------------------------------------------------------------


class Named(Requests):
    """The storm of test_machine, some of whose requests have an Idempotency-Key."""

    @initialize()
    def begin(self):
        super().begin()
        self.shelf = Shelf()
        self.replay = Replay(Idempotency(keep_body=True, max_body=30_000), b"k" * 32, self.shelf.find, problems.body)
        pipeline = self.world.pipeline
        self.replay.post, self.replay.now = pipeline.post, self.world.clock
        pipeline._stages = replace(pipeline._stages, replay=self.replay)
        pipeline._start = finished  # the shelf never waits

    @rule(name=st.sampled_from([b"1", b"2"]), stream=st.booleans(), other=st.booleans())
    def ask_by_name(self, name, stream, other):
        client = self.world.ask("m", headers=[(ONCE[0], name)], stream=stream, **({"n": 1} if other else {}))
        client.reads = False
        self.clients.append(client)

    @rule()
    def flush(self):
        finished(self.replay.flush(self.shelf.write))

    @invariant()
    def every_request_that_is_done_has_its_row(self):
        """None of those that were answered from memory is billed, and of one name one answer at most."""
        rows = {row.request_id: row for row in self.world.settled() if row.outcome in {"done", "failed", "cancelled", "replayed"}}
        mine = {client.request_id for client in self.clients if client.state is State.DONE}
        assert mine <= set(rows) and len(rows) == len({*rows})
        assert {row.kind for row in rows.values() if row.outcome == "replayed"} <= {"refused"}

    @invariant()
    def what_runs_is_known_and_no_byte_is_lost_sight_of(self):
        running = self.replay._running.values()
        assert {run.request.state for run in running} <= {State.WAITING, State.FUNDING, State.SENT, State.RELAYING}
        assert {waiter.state for run in running for waiter in run.waiters} <= {State.ATTACHED}
        attached = sum(client.state is State.ATTACHED for client in self.clients)
        assert attached == sum(len(run.waiters) for run in running)
        bodies = sum(len(entry.body) for entry in self.replay.answers._bodies._all.values())
        assert self.replay.answers.held == bodies + sum(run.size for run in running)
        lonely = [run for run in running if run.client is None and not run.waiters]
        assert [run for run in running if run.detached] == lonely
        assert sum(self.replay._detached.values()) == len(lonely)

    def teardown(self):
        """A stream that is given again ends as it did: with the mark, or with an error."""
        if not hasattr(self, "world"):
            return
        for client in [client for client in self.clients if replayed(client) and isinstance(client.end, End)]:
            last = sse.Splitter().feed(client.body)[-1]
            assert last == sse.DONE or json.loads(last)["error"]
            self.clients.remove(client)
        super().teardown()
        assert self.replay._running == self.replay._detached == {}


Named.TestCase.settings = depth(max_examples=60, stateful_step_count=40, deadline=None)
TestNamed = Named.TestCase
