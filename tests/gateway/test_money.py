"""What becomes of the money in every end that a request can have: one row for each attempt, one of them billed, nothing left reserved.

The pipeline, the links and the agents' sessions are real; see `world`.
"""

import asyncio
import json

import msgspec
import pytest
from openai._streaming import SSEDecoder
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from mindgw.config import Timeouts
from mindgw.core import sse
from mindgw.core.quota import TOKENS, USD, Draw
from mindgw.gateway import signals, verdict
from mindgw.gateway.bill import UNSEEN
from mindgw.gateway.delivery import SLACK
from mindgw.gateway.exchange import CANCEL_GRACE
from mindgw.gateway.signals import State
from mindgw_agent import wire
from tests.gateway.world import DONE, EVENT, JSON, SSE, Box, Client, World, engine

#: The ceiling of the prompt of `World.ask`.
PROMPT = 21
LIMIT = 10_000
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def usage(prompt, completion, **more):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return sse.event(json.dumps({"id": "c", "choices": [], "usage": counts} | more).encode())


class Town:
    """A world with a limit for its key, all of which is on loan: nobody waits for the database."""

    def __init__(self, limit=LIMIT, mode="block", unit=TOKENS, lent=True, **more):
        self.world = World(**more)
        self.key = self.world.limit(f"key:{next(iter(self.world.keys))}", limit, mode, unit)
        if lent:
            self.world.vault.budgets[self.key] = [0, limit]
            self.world.quotas.desk.leases.lend(self.key, limit, 0, limit, limit)

    def ask(self, *boxes, **fields):
        self.boxes = [Box(self.world, name) for name in boxes or ("box",)]
        return self.world.ask(**fields)

    @property
    def box(self):
        """Where the request runs."""
        return next(box for box in self.boxes if box.requests)

    def held(self):
        """What requests hold of the limit."""
        _, reserved = self.world.vault.budgets.get(self.key, (0, 0))
        leases = self.world.quotas.desk.leases
        return reserved - leases.free(self.key) - leases.drawn(self.key)

    def rows(self):
        """kind, attempt, outcome, tokens of prompt and answer and their source; nothing is held and no slot taken by now."""
        rows = self.world.settled()
        assert self.world.used == self.held() == 0
        used, reserved = self.world.vault.budgets.get(self.key, (0, 0))
        assert used == sum(row.amount(self.key.unit) for row in rows if row.kind == "settled")
        assert reserved == self.world.quotas.desk.leases.free(self.key)
        assert sum(draw.amount for row in rows for draw in row.draws) + sum(row.over for row in rows) == used
        assert all(row.draws == () for row in rows if row.kind != "settled")
        return [(row.kind, row.attempt, row.outcome, row.prompt_tokens, row.completion_tokens, row.source) for row in rows]

    async def funded(self):
        """No loan is under way any more."""
        while self.world.pipeline._tasks:
            await asyncio.sleep(0)
        self.world.pump()

    @property
    def row(self):
        (row,) = self.world.rows
        return row


# -- ends with an answer -----------------------------------------------------------------------------------------------


def test_what_an_engine_reports_is_billed_and_drawn_and_the_rest_is_free_again():
    town = Town()
    town.ask(stream=True)
    assert town.held() == PROMPT + 100
    town.box.head()
    town.box.data(EVENT + usage(3, 2) + DONE)
    town.box.close()
    assert town.rows() == [("settled", 1, "done", 3, 2, "engine")]
    assert (town.row.draws, town.row.over, town.row.status, town.row.cost) == ((Draw(town.key, 5),), 0, 200, 0)
    assert town.world.quotas.desk.leases.free(town.key) == LIMIT - 5


def test_an_answer_in_one_piece_is_billed_by_its_own_usage():
    town = Town()
    town.ask()
    town.box.head(200, JSON, ANSWER)
    town.box.close()
    assert town.rows() == [("settled", 1, "done", 3, 2, "engine")]


def test_embeddings_reserve_and_pay_their_prompt():
    town = Town()
    box = Box(town.world, "box", engine("m", kinds=("embeddings",)))
    town.world.ask(path="/v1/embeddings", messages=None, input="x" * 50)
    assert town.held() == 50 + 16 + len("messages") + len("null")
    assert "max_tokens" not in json.loads(box.requests[box.stream].body)
    box.head(200, JSON, b'{"data":[],"usage":{"prompt_tokens":12,"total_tokens":12}}')
    box.close()
    assert town.rows() == [("settled", 1, "done", 12, 0, "engine")]


def test_money_is_drawn_in_millionths_and_rounded_up_once():
    town = Town(unit=USD)
    Box(town.world, "box", engine("dear"))
    town.world.ask("dear", max_tokens=10, stream=True)
    assert town.held() == PROMPT + 20
    (box,) = town.world.boxes
    box.head()
    box.data(EVENT + usage(3, 2))
    box.close()
    assert town.rows() == [("settled", 1, "done", 3, 2, "engine")]
    assert (town.row.cost, town.row.draws, town.row.price_version != "") == (7, (Draw(town.key, 7),), True)


CHUNK_WITH_USAGE = sse.event(b'{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":4}}')


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        (usage(3, 2) + EVENT * 3, (3, 2)),
        (EVENT + CHUNK_WITH_USAGE + EVENT, (9, 4)),
        (CHUNK_WITH_USAGE + EVENT + usage(9, 5), (9, 5)),
        (usage(9, 5) + usage(3, 2) + DONE, (3, 2)),
        (EVENT + sse.event(b'{"choices":[],"usage":null}') + usage(3, 2), (3, 2)),
        (EVENT + usage(3, 2) + sse.event(b'{"choices":[],"usage":"none"}'), (3, 2)),
    ],
)
def test_usage_is_taken_from_any_chunk_and_the_last_wins(events, counts):
    town = Town()
    town.ask(stream=True)
    town.box.head()
    town.box.data(events)
    town.box.close()
    assert town.rows() == [("settled", 1, "done", *counts, "engine")]


def test_an_engine_that_reports_nothing_is_counted_by_its_agent():
    town = Town()
    town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT * 3 + DONE)
    town.box.close(usage=wire.Usage(7, 3, 0, "estimated"))
    assert town.rows() == [("settled", 1, "done", 7, 3, "estimated")]


@pytest.mark.parametrize("stream", [True, False])
def test_when_even_the_agent_says_nothing_what_passed_by_is_counted(stream):
    town = Town()
    town.ask(stream=stream)
    town.box.head(200, SSE if stream else JSON)
    town.box.data(EVENT * 3 + DONE if stream else b'{"choices":[]}')
    town.box.close()
    (row,) = town.rows()
    assert row[:3] == ("settled", 1, "done")
    assert row[3] > 0 and (row[4], row[5]) == ((3, "estimated") if stream else (0, "counted"))


# -- ends without one --------------------------------------------------------------------------------------------------


def test_an_engine_that_fails_at_once_costs_nothing():
    town = Town()
    client = town.ask(stream=True)
    town.box.close("failed", "engine_error")
    assert client.code == "engine_error"
    assert town.rows() == [("wasted", 1, "failed", 0, 0, "estimated")]


def test_an_error_of_an_engine_costs_nothing():
    town = Town()
    town.ask(stream=True)
    town.box.head(500, JSON, b'{"error":"boom"}')
    town.box.close()
    (row,) = town.rows()
    assert row[:3] == ("wasted", 1, "failed")


def test_an_engine_that_fails_in_the_middle_is_paid_for_what_arrived():
    town = Town()
    town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT * 3)
    town.box.close("failed", "engine_error", usage=wire.Usage(7, 50, 0, "counted"))
    assert town.rows() == [("settled", 1, "failed", 7, 3, "counted")]
    assert town.row.error_code == "engine_error"


def test_an_error_inside_the_stream_is_paid_up_to_there():
    town = Town()
    town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT * 2 + b'data: {"error":"boom"}\n\n')
    assert town.held() == PROMPT + 100
    town.box.close("cancelled", usage=wire.Usage(7, 2, 0, "counted"))
    assert town.rows() == [("settled", 1, "failed", 7, 2, "counted")]


def test_a_client_that_leaves_the_queue_owes_nothing():
    town = Town()
    town.world.pipeline.fleet.remembered["away"] = frozenset("m")
    client = town.world.ask()
    assert (client.state, town.held()) == (State.WAITING, 0)
    client.post(signals.Gone())
    assert town.rows() == [("refused", 0, "cancelled", 0, 0, "estimated")]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_answer_owes_nothing(stream):
    town = Town()
    client = town.ask(stream=stream)
    client.post(signals.Gone())
    town.world.pump()
    assert (client.state, town.held()) == (State.CLOSING, PROMPT + 100)
    town.box.close("cancelled", usage=wire.Usage(7, 0, 0, "counted"))
    (row,) = town.rows()
    assert row[:3] == ("wasted", 1, "cancelled")
    assert town.world.vault.budgets[town.key] == [0, LIMIT]


def test_a_client_that_leaves_in_the_middle_owes_what_it_was_given():
    town = Town()
    client = town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT * 4)
    client.post(signals.Gone())
    town.world.pump()
    town.box.close("cancelled", usage=wire.Usage(7, 40, 0, "counted"))
    assert town.rows() == [("settled", 1, "cancelled", 7, 4, "counted")]


@pytest.mark.parametrize("outcome", ["done", "cancelled"])
def test_a_client_that_leaves_after_the_last_word_owes_what_the_engine_counted(outcome):
    """The events with which an answer begins and ends say nothing, and are no tokens."""
    town = Town()
    client = town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT * 7 + usage(7, 5))
    client.post(signals.Gone())
    town.world.pump()
    town.box.close(outcome, usage=wire.Usage(7, 5))
    assert town.rows() == [("settled", 1, "cancelled", 7, 5, "engine")]


def test_what_an_engine_counts_before_it_speaks_does_not_make_the_rest_free():
    town = Town()
    client = town.ask(stream=True)
    town.box.head()
    town.box.data(usage(7, 0, choices=[{"index": 0, "delta": {"role": "assistant"}}]) + EVENT * 9)
    client.post(signals.Gone())
    town.world.pump()
    town.box.close("cancelled", usage=wire.Usage(7, 0))
    assert town.rows() == [("settled", 1, "cancelled", 7, 8, "engine")]


def test_an_answer_in_one_piece_that_nobody_waits_for_is_wasted():
    town = Town()
    client = town.ask()
    town.box.head(200, JSON, ANSWER[:20])
    client.post(signals.Gone())
    town.world.pump()
    town.box.close("done")
    (row,) = town.rows()
    assert row[:3] == ("wasted", 1, "cancelled")


@pytest.mark.parametrize("events", [0, 3])
def test_a_key_that_is_revoked_pays_for_what_it_was_given(events):
    town = Town()
    client = town.ask(stream=True)
    town.box.head()
    if events:
        town.box.data(EVENT * events)
    town.world.pipeline.revoke_key(client.exchange.caller.key_id)
    town.world.pump()
    assert client.code == "revoked_api_key"
    town.box.close("cancelled", usage=wire.Usage(7, events, 0, "counted"))
    (row,) = town.rows()
    assert row[:3] == ("settled" if events else "wasted", 1, "failed")
    assert row[4] == events


@pytest.mark.parametrize("events", [0, 3])
def test_a_cancel_that_is_never_confirmed_is_settled_all_the_same(events):
    town = Town(timeouts=Timeouts(total=10**6))
    client = town.ask(stream=True)
    if events:
        town.box.head()
        town.box.data(EVENT * events)
    client.post(signals.Gone())
    town.world.passes(CANCEL_GRACE - 5)
    assert town.held() == PROMPT + 100
    town.world.passes(10)
    (row,) = town.rows()
    assert (*row[:3], row[4]) == ("settled" if events else "wasted", 1, "cancelled", events)


# -- several workers ---------------------------------------------------------------------------------------------------


def test_a_worker_that_is_lost_before_the_first_byte_is_wasted_and_the_next_one_is_paid():
    town = Town()
    client = town.ask("one", "two", stream=True)
    first = town.box
    first.head()
    first.cut()
    town.boxes.remove(first)
    assert (client.end, town.held()) == (None, PROMPT + 100)
    town.box.head()
    town.box.data(EVENT + usage(3, 2))
    town.box.close()
    assert town.rows() == [("wasted", 1, "worker_lost", 0, 0, "estimated"), ("settled", 2, "done", 3, 2, "engine")]
    wasted, settled = town.world.rows
    assert (wasted.worker_id, settled.worker_id) == (first.name, town.boxes[0].name)


def test_a_worker_that_is_lost_in_the_middle_is_paid_once_for_what_arrived():
    town = Town()
    client = town.ask("one", "two", stream=True)
    town.box.head()
    town.box.data(EVENT * 5)
    town.box.cut()
    assert client.code == "worker_lost"
    (row,) = town.rows()
    assert (*row[:3], row[4], row[5]) == ("settled", 1, "failed", 5, "counted")


def test_a_request_that_no_worker_survives_has_a_row_for_each():
    town = Town()
    client = town.ask("one", "two", "three")
    for _ in range(3):
        box = town.box
        town.boxes.remove(box)
        box.cut()
    assert client.code == "worker_lost"
    assert [row[:3] for row in town.rows()] == [
        ("wasted", 1, "worker_lost"), ("wasted", 2, "worker_lost"), ("wasted", 3, "worker_lost"), ("refused", 0, "failed")
    ]  # fmt: skip


def test_a_worker_that_is_busy_has_no_row():
    town = Town()
    town.ask("one", "two")
    town.box.close("busy")
    assert town.held() == PROMPT + 100
    town.box.head(200, JSON, ANSWER)
    town.box.close()
    assert town.rows() == [("settled", 2, "done", 3, 2, "engine")]


def test_nothing_is_held_while_a_request_stands_in_line_again():
    town = Town()
    client = town.ask()
    town.box.close("busy")
    assert (client.state, town.held()) == (State.WAITING, 0)
    client.post(signals.Gone())
    assert town.rows() == [("refused", 0, "cancelled", 0, 0, "estimated")]


# -- absurd counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["block", "soft"])
@pytest.mark.parametrize("count", [10**12, 2**53])
def test_an_absurd_report_costs_no_fortune(mode, count):
    """The prompt is bounded by its length, the answer by what was ordered."""
    town = Town(10**6, mode)
    town.ask(stream=True)
    size = len(town.box.requests[1].body)
    town.box.head()
    town.box.data(EVENT + usage(count, count))
    town.box.close(usage=wire.Usage(count, count, count, "engine"))
    ((kind, _, outcome, prompt, completion, _),) = town.rows()
    assert (kind, outcome) == ("settled", "done")
    assert prompt <= size + UNSEEN
    assert completion == 100 if mode == "block" else completion <= UNSEEN + 10**3
    assert town.row.cached_tokens <= prompt


@pytest.mark.parametrize("report", [{"prompt_tokens": -5, "completion_tokens": -1}, {"prompt_tokens": 1e3}, {"prompt_tokens": None}, "NaN"])
def test_what_is_no_count_is_no_debt(report):
    town = Town()
    town.ask(stream=True)
    town.box.head()
    town.box.data(EVENT + sse.event(json.dumps({"choices": [], "usage": report}).encode()))
    town.box.close(usage=wire.Usage(7, 1, 0, "counted"))
    ((kind, _, _, prompt, completion, _),) = town.rows()
    assert (kind, min(prompt, completion) >= 0, prompt + completion <= 1008) == ("settled", True, True)


def test_embeddings_have_no_answer_to_pay_for():
    town = Town()
    box = Box(town.world, "box", engine("m", kinds=("embeddings",)))
    town.world.ask(path="/v1/embeddings", messages=None, input="x")
    box.head(200, JSON, b'{"data":[],"usage":{"prompt_tokens":2,"completion_tokens":5000}}')
    box.close()
    assert town.rows() == [("settled", 1, "done", 2, 0, "engine")]


def test_a_prompt_that_was_underestimated_is_paid_from_what_is_left_and_the_rest_is_noted():
    town = Town(PROMPT + 5)
    client = town.ask(max_tokens=5)
    town.box.head(200, JSON, b'{"usage":{"prompt_tokens":50,"completion_tokens":5}}')
    town.box.close()
    assert town.rows() == [("settled", 1, "done", 50, 5, "engine")]
    assert (town.row.draws, town.row.over) == ((Draw(town.key, PROMPT + 5),), 29)
    assert isinstance(client.end, signals.Answer)


# -- what the engine is asked ------------------------------------------------------------------------------------------


def sent(town, **fields):
    """The body that reached the engine, and the one that was written."""
    client = town.ask(**fields)
    body = json.loads(town.box.requests[1].body)
    written = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    assert client.end is None
    return body, written


@pytest.mark.parametrize("mode", ["soft", "queue-low", "alert", "shadow"])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 10**6}, {"max_completion_tokens": 5}])
async def test_no_body_is_touched_where_no_limit_is_hard(mode, fields):
    body, written = sent(Town(mode=mode), **fields)
    assert body == written


@pytest.mark.parametrize("fields", [{"max_tokens": 100}, {"max_completion_tokens": 7}, {"max_tokens": 7, "n_predict": 3}])
def test_a_cap_that_is_small_enough_is_not_touched(fields):
    town = Town()
    town.ask(**fields)
    written = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    assert town.box.requests[1].body == json.dumps(written).encode()


@pytest.mark.parametrize("fields", [{}, {"max_tokens": -1}, {"max_tokens": None}])
def test_who_sets_no_cap_is_given_one(fields):
    body, written = sent(Town(), top_k=5, **fields)
    assert body == written | {"max_tokens": 100}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_cap_that_nobody_could_pay_is_lowered(name):
    town = Town(PROMPT + 30, lent=False)
    town.world.vault.budgets[town.key] = [0, PROMPT + 30]
    town.world.quotas.desk.leases.lend(town.key, PROMPT + 30, 0, PROMPT + 30, PROMPT + 30)
    body, written = sent(town, **{name: 30})
    assert body == written


async def test_an_answer_is_as_long_as_what_is_left_allows():
    town = Town(PROMPT + 30, lent=False)
    client = town.ask(max_completion_tokens=500, stream=True)
    assert client.state is State.FUNDING
    await town.funded()
    assert (client.state, town.held()) == (State.SENT, PROMPT + 30)
    assert json.loads(town.box.requests[1].body)["max_completion_tokens"] == 30
    town.box.head()
    town.box.data(EVENT * 3)
    town.box.close(finish="length", usage=wire.Usage(5, 30))
    assert town.rows() == [("settled", 1, "done", 5, 30, "engine")]
    assert b'"mindgw":{"cut":"quota"}' in client.body


@pytest.mark.parametrize("sneaky", [{"n_predict": 100_000}, {"MAX_TOKENS": 100_000}, {"n_predict": -1}, {"max_tokens": 100_000}])
def test_a_cap_under_another_name_lifts_none(sneaky):
    """Engines that read another name, or do not look at case, would make what nobody pays for."""
    body, _ = sent(Town(), **({"max_completion_tokens": 5} | sneaky))
    assert {body[name] for name in ("max_completion_tokens", *sneaky)} == {5}


def test_a_cap_that_the_caller_chose_is_not_said_to_be_the_quotas():
    town = Town()
    client = town.ask(stream=True, max_tokens=5, n_predict=100_000)
    town.box.head()
    town.box.data(EVENT * 5)
    town.box.close(finish="length")
    assert b"mindgw" not in client.body
    assert len(town.rows()) == 1


# -- the cut -----------------------------------------------------------------------------------------------------------


def overrun(town, **fields):
    """An engine that does not keep to its cap; the client."""
    client = town.ask(stream=True, **fields)
    town.box.head()
    for _ in range(30):
        if client.end is None:
            town.box.data(EVENT * 10)
    return client


def data_of(client):
    *events, last = sse.Splitter().feed(client.body)
    assert last == sse.DONE
    assert sse.DONE not in events
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_an_engine_that_does_not_keep_to_its_cap_is_cut(n, include_usage):
    town = Town()
    client = overrun(town, max_tokens=5, n=n, stream_options={"include_usage": include_usage})
    assert client.end == signals.End()
    assert town.box.cancelled == [1]
    *chunks, last = data_of(client)
    assert len(chunks) > 5 * n + SLACK
    assert [(choice["index"], choice["finish_reason"], choice["delta"]) for choice in last["choices"]] == [
        (index, "length", {}) for index in range(n)
    ]
    assert last["mindgw"] == {"cut": "quota"}
    told = last["usage"]
    assert told["completion_tokens"] == 5 * n and told["total_tokens"] == told["prompt_tokens"] + 5 * n
    town.box.close("cancelled", usage=wire.Usage(7, 300, 0, "counted"))
    assert town.rows() == [("settled", 1, "done", 7, 5 * n, "counted")]
    assert (town.row.over, town.row.status, town.row.error_code) == (0, 200, "")


def test_the_cut_of_completions_has_texts():
    town = Town()
    Box(town.world, "box", engine("m", kinds=("completions",)))
    town.boxes = town.world.boxes
    client = town.world.ask(path="/v1/completions", messages=None, prompt=["a", "b"], max_tokens=5, stream=True)
    town.box.head()
    town.box.data(EVENT * 40)
    last = data_of(client)[-1]
    assert (last["object"], [choice["text"] for choice in last["choices"]]) == ("text_completion", ["", ""])
    Completion.model_validate(last)
    town.box.cut()
    ((kind, _, outcome, _, completion, _),) = town.rows()
    assert (kind, outcome, completion) == ("settled", "done", 10)


def test_the_sdk_reads_a_stream_that_was_cut():
    town = Town()
    client = overrun(town, max_tokens=5)
    events = list(SSEDecoder().iter_bytes(iter([client.body])))
    assert [event.data for event in events].count("[DONE]") == 1
    assert events[-1].data == "[DONE]"
    last = ChatCompletionChunk.model_validate_json(events[-2].data)
    assert (last.choices[0].finish_reason, last.choices[0].delta.content, last.usage.completion_tokens) == ("length", None, 5)
    assert last.model_extra["mindgw"] == {"cut": "quota"}


def test_the_sdk_reads_the_note_of_an_answer_that_was_shorter():
    town = Town()
    client = town.ask(stream=True, stream_options={"include_usage": True})
    town.box.head()
    town.box.data(EVENT * 2 + usage(5, 100) + DONE)
    town.box.close(finish="length", usage=wire.Usage(5, 100))
    events = [event.data for event in SSEDecoder().iter_bytes(iter([client.body]))]
    assert events.count("[DONE]") == 1
    note = ChatCompletionChunk.model_validate_json(events[-3])
    assert (note.choices[0].delta.content, note.choices[0].finish_reason) == (None, None)
    assert note.model_extra["mindgw"] == {"cut": "quota"}
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 100


@pytest.mark.parametrize("body", [b"{}", b'{"a":1}', b'{ "a": {"b": 1} }\n', ANSWER])
def test_an_answer_in_one_piece_says_why_it_is_shorter(body):
    town = Town()
    client = town.ask()
    town.box.head(200, JSON, body)
    town.box.close(finish="length", usage=wire.Usage(5, 100))
    assert json.loads(client.body) == json.loads(body) | {"mindgw": {"cut": "quota"}}


def test_an_answer_in_one_piece_that_is_too_long_is_paid_up_to_its_cap():
    town = Town()
    client = town.ask(max_tokens=5)
    town.box.head(200, JSON, b'{"usage":{"prompt_tokens":3,"completion_tokens":500}}')
    town.box.close()
    assert isinstance(client.end, signals.Answer)
    assert town.rows() == [("settled", 1, "done", 3, 5, "engine")]


def test_the_usage_that_a_client_is_told_is_what_it_pays():
    town = Town()
    client = town.ask(stream=True, max_tokens=5, stream_options={"include_usage": True})
    town.box.head()
    town.box.data(EVENT * 7 + usage(3, 9))
    town.box.close(usage=wire.Usage(3, 9))
    assert data_of(client)[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert town.rows() == [("settled", 1, "done", 3, 5, "engine")]


def test_without_a_hard_limit_nothing_is_cut():
    town = Town(mode="soft")
    client = town.ask(stream=True, max_tokens=5)
    town.box.head()
    town.box.data(EVENT * 100)
    assert client.end is None
    town.box.close(finish="length", usage=wire.Usage(3, 100))
    assert b"mindgw" not in client.body
    assert town.rows() == [("settled", 1, "done", 3, 100, "engine")]


# -- waiting for the database ------------------------------------------------------------------------------------------


async def funding(**fields):
    """A request that has a slot and waits for a loan."""
    town = Town(lent=False, **{name: fields.pop(name) for name in ("timeouts", "limit") if name in fields})
    client = town.ask(**fields)
    assert (client.state, town.world.used, town.held()) == (State.FUNDING, 1, 0)
    return town, client


async def test_a_loan_is_waited_for_and_then_the_request_is_sent():
    town, client = await funding()
    await town.funded()
    assert (client.state, town.held()) == (State.SENT, PROMPT + 100)
    town.box.head(200, JSON, ANSWER)
    town.box.close()
    assert town.rows() == [("settled", 1, "done", 3, 2, "engine")]


async def test_a_client_that_leaves_then_holds_neither_slot_nor_money():
    town, client = await funding()
    client.post(signals.Gone())
    assert (client.state, town.world.used) == (State.DONE, 0)
    await town.funded()
    assert town.rows() == [("refused", 0, "cancelled", 0, 0, "estimated")]
    assert not any(box.requests for box in town.boxes)


async def test_an_operator_ends_it_then():
    town, client = await funding()
    assert town.world.pipeline.cancel_request(client.request_id)
    await town.funded()
    assert client.code == "cancelled_by_operator"
    assert town.rows() == [("refused", 0, "failed", 0, 0, "estimated")]


async def test_a_key_that_is_revoked_ends_it_then():
    town, client = await funding(stream=True)
    town.world.pipeline.revoke_key(client.exchange.caller.key_id)
    await town.funded()
    assert client.code == "revoked_api_key"
    assert [row[:3] for row in town.rows()] == [("refused", 0, "failed")]


async def test_a_server_that_stops_ends_it_then():
    town, client = await funding()
    town.world.pipeline.stop()
    await town.funded()
    assert client.code == "server_draining"
    assert [row[:3] for row in town.rows()] == [("refused", 0, "failed")]


async def test_a_worker_that_is_lost_then_is_not_asked():
    town, client = await funding()
    (box,) = town.boxes
    box.cut()
    await town.funded()
    assert (client.state, town.held(), box.requests) == (State.WAITING, 0, {})
    box = Box(town.world, "two")
    town.boxes.append(box)
    await town.funded()
    box.head(200, JSON, ANSWER)
    box.close()
    assert town.rows() == [("wasted", 1, "worker_lost", 0, 0, "estimated"), ("settled", 2, "done", 3, 2, "engine")]


async def test_patience_ends_then_too():
    town, client = await funding(stream=True, timeouts=Timeouts(first_token=60, hold=5))
    town.world.passes(10)
    assert client.body == sse.PING
    town.world.passes(60)
    await town.funded()
    assert client.code == "engine_timeout"
    assert [row[:3] for row in town.rows()] == [("refused", 0, "failed")]


@pytest.mark.parametrize(("used", "code"), [([LIMIT, 0], "insufficient_quota"), ([0, LIMIT], "rate_limit_exceeded")])
@pytest.mark.parametrize("early", [False, True])
async def test_a_refusal_frees_the_slot_and_costs_nothing(used, code, early):
    """A stream may have begun with a sign of life: then it is an event."""
    town, client = await funding(stream=True, timeouts=Timeouts(hold=5))
    town.world.vault.budgets[town.key] = list(used)
    if early:
        town.world.passes(10)
    await town.funded()
    assert (client.code, client.error.status, client.end.begun) == (code, 429, early)
    assert (client.error.retry_after is None) == (code == "insufficient_quota")
    assert town.world.used == town.held() - used[1] == 0
    (row,) = town.world.settled()
    assert (row.kind, row.attempt, row.outcome, row.error_code, row.status) == ("refused", 0, "failed", code, 200 if early else 429)


async def test_a_database_that_is_away_refuses_for_a_while():
    town, client = await funding()
    town.world.vault.away = True
    await town.funded()
    assert (client.code, client.error.status, client.error.retry_after) == ("quota_unavailable", 503, 5)
    assert [row[:3] for row in town.rows()] == [("refused", 0, "failed")]
    town.world.vault.away = False
    client = town.world.ask()
    await town.funded()
    assert client.state is State.SENT


async def test_the_slot_of_who_is_refused_goes_to_the_next_in_line():
    town, client = await funding()
    waiting = town.world.ask()
    town.world.vault.budgets[town.key] = [LIMIT, 0]
    await town.funded()
    assert (client.code, waiting.code) == ("insufficient_quota", "insufficient_quota")
    assert town.world.used == 0


def test_who_is_larger_than_the_whole_limit_never_waits_for_the_database():
    town = Town(PROMPT, lent=False)
    client = town.ask()
    assert client.code == "insufficient_quota"
    assert town.world.vault.loans == 0
    assert town.rows() == [("refused", 0, "failed", 0, 0, "estimated")]


async def test_exactly_so_many_requests_run_as_the_limit_pays():
    """A hundred at once, each of which may use 26 tokens; whoever is refused may try again when the others have used less."""
    town = Town(26 * 7, lent=False)
    town.boxes = [Box(town.world, "box", engine("m", slots=100))]
    clients = [town.world.ask(max_tokens=5) for _ in range(100)]
    await town.funded()
    running = [client for client in clients if client.end is None]
    assert town.held() == 26 * 7
    assert {client.code for client in clients if client.end is not None} == {"rate_limit_exceeded"}
    assert len(running) == 7
    for stream in sorted(town.box.requests):
        town.boxes[0].head(200, JSON, ANSWER, stream=stream)
        town.boxes[0].close(stream=stream)
    rows = town.rows()
    assert [row[0] for row in rows].count("settled") == 7
    again = [town.world.ask(max_tokens=5) for _ in range(100)]
    await town.funded()
    assert sum(client.end is None for client in again) == (26 * 7 - 7 * 5) // 26


# -- several limits, and days ------------------------------------------------------------------------------------------


def test_each_of_several_limits_is_drawn_from():
    town = Town()
    world = town.world
    others = [world.limit("org:o", 5000), world.limit("model:m", 5000, mode="alert"), world.limit("user:nobody", 0)]
    for budget in others[:2]:
        world.vault.budgets[budget] = [0, 5000]
        world.quotas.desk.leases.lend(budget, 5000, 0, 5000, 5000)
    world.quotas._seen = {others[1]: (False, world.clock())}  # it was looked at a moment ago
    town.ask()
    town.box.head(200, JSON, ANSWER)
    town.box.close()
    (row,) = world.settled()
    assert row.draws == tuple(Draw(budget, 5) for budget in sorted([town.key, *others[:2]]))
    assert [world.vault.budgets[budget] for budget in (town.key, *others[:2])] == [[5, LIMIT - 5], [5, 4995], [5, 4995]]


async def test_a_request_is_booked_on_the_day_on_which_it_has_a_slot():
    town = Town(lent=False)
    daily = town.world.limit("org:o", LIMIT, period="day")
    town.world.pipeline.fleet.remembered["away"] = frozenset("m")
    client = town.world.ask()
    assert client.state is State.WAITING
    town.world.pipeline.day = "2999-12-31"
    town.boxes = [Box(town.world)]
    await town.funded()
    town.world.pipeline.day = "3000-01-01"
    town.box.head(200, JSON, ANSWER)
    town.box.close()
    (row,) = town.world.settled()
    assert row.day == "2999-12-31"
    assert {draw.budget.window for draw in row.draws} == {"total", "2999-12-31"}
    assert daily not in town.world.vault.budgets


# -- the tag -----------------------------------------------------------------------------------------------------------


def test_the_tag_says_what_the_row_will_say():
    town = Town(unit=USD)
    world = town.world
    tokens = world.limit(f"key:{next(iter(world.keys))}", LIMIT)
    world.vault.budgets[tokens] = [0, LIMIT]
    world.quotas.desk.leases.lend(tokens, LIMIT, 0, LIMIT, LIMIT)
    key = world.add_key(team_id="t", user_id="u")
    for budget in (town.key, tokens):
        assert budget in {town.key, tokens}
    world.pipeline.fleet.remembered["away"] = frozenset(["dear"])
    client = world.ask("dear", stream=True)
    other = world.ask("dear", key=key)
    world.clock.now += 2
    box = Box(world, "box", engine("dear", slots=2))
    seal = world.seal
    tag = seal.open(box.requests[1].meta.tag, "box")
    assert (tag.request_id, tag.attempt, tag.key_id, tag.team_id, tag.org_id) == (client.request_id, 1, tokens.scope[4:], "", "o")
    assert (tag.model, tag.endpoint, tag.stream, tag.queued) == ("dear", "/v1/chat/completions", True, 2000)
    assert (tag.budgets, tag.estimate, tag.epoch) == (tuple(sorted([town.key, tokens])), PROMPT + 3 + 100 - 3, 1)
    assert tag.price == (10**6, 2 * 10**6)
    tag = seal.open(box.requests[2].meta.tag, "box")
    assert (tag.request_id, tag.team_id, tag.user_id, tag.budgets, tag.estimate) == (other.request_id, "t", "u", (), 0)
    for stream in (1, 2):
        box.head(200, JSON, stream=stream)
        box.close("failed", "engine_error", stream=stream)
    rows = world.settled()
    assert [(row.request_id, row.attempt, row.day, row.price_version) for row in rows] == [
        (one.request_id, 1, tag.day, tag.price_version) for one in (client, other)
    ]


def test_each_attempt_has_a_tag_of_its_own():
    town = Town()
    town.ask("one", "two")
    first = town.box
    (stream,) = first.requests
    tags = [first.requests[stream].meta.tag]
    first.close("busy")
    second = town.box
    tags.append(second.requests[second.stream].meta.tag)
    opened = [town.world.seal.open(tag, box.name) for tag, box in zip(tags, (first, second), strict=True)]
    assert [tag.attempt for tag in opened] == [1, 2]
    assert tags[0] != tags[1]


def test_a_model_whose_name_no_tag_holds_is_not_asked(monkeypatch):
    """Its worker chose the name; the link to it stays."""
    monkeypatch.setattr(verdict, "MAX_NAME", 70_000)  # such a name is left out at the door, as a rule
    town = Town()
    long = engine(models=[wire.Model("x" * 5000, kinds=["chat"], aliases=["m"])])
    box = Box(town.world, "box", long)
    client = town.world.ask()
    assert (client.code, client.state, box.requests) == ("internal_error", State.DONE, {})
    assert [row[:3] for row in town.rows()] == [("wasted", 1, "failed")]


def test_a_client_without_a_key_has_no_row():
    town = Town()
    client = Client(town.world, "")
    assert client.code == "missing_api_key"
    assert town.rows() == []


async def settle(look):
    """Other tasks have their turns until it is so."""
    for _ in range(100):
        if look():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def test_who_would_wait_for_nothing_is_refused_before_it_stands_in_line():
    world = World()
    box = Box(world)
    budget = world.limit(f"key:{next(iter(world.keys))}", 1000)
    world.vault.budgets[budget] = [1000, 0]
    other = world.add_key()
    world.ask(key=other)
    first = world.ask(max_tokens=10)
    assert first.state is State.WAITING, "nothing is known of the row yet"
    box.close("done", stream=1)
    world.quotas.desk.leases.lend(budget, 0, 1000, 0, 1000)
    world.ask(key=other)
    second = world.ask(max_tokens=10)
    assert second.state is State.FUNDING
    await settle(lambda: second.end is not None)
    assert second.code == "insufficient_quota"


async def test_a_limit_that_was_raised_meanwhile_lets_those_stand_in_line_who_were_doubted():
    world = World()
    Box(world)
    budget = world.limit(f"key:{next(iter(world.keys))}", 1000)
    world.vault.budgets[budget] = [1000, 0]
    world.quotas.desk.leases.lend(budget, 0, 1000, 0, 1000)
    world.vault.policies[0] = msgspec.structs.replace(world.vault.policies[0], limit=10**6)
    world.ask(key=world.add_key())
    client = world.ask(max_tokens=10)
    await settle(lambda: client.state is State.WAITING)
    assert client.exchange._bill._reservation.held == 0, "who waits holds nothing"


def test_a_request_larger_than_a_whole_limit_is_refused_at_once():
    world = World()
    Box(world)
    world.limit(f"key:{next(iter(world.keys))}", 50)
    client = world.ask(messages=[{"role": "user", "content": "x" * 500}])
    assert client.code == "insufficient_quota"
