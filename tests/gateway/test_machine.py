"""Any order of events, over several requests, workers and keys: what must hold holds at every step, and all is settled at the end."""

import json
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mindgw.config import Limits, Timeouts
from mindgw.core import sse
from mindgw.gateway import ejection, signals
from mindgw.gateway.signals import State
from mindgw_agent import session, wire
from tests.gateway.world import DONE, EVENT, JSON, SSE, Box, Client, World, engine

USAGE = sse.event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
HEADS = [(200, SSE)] * 3 + [(200, JSON), (200, "text/html"), (400, JSON), (404, JSON), (429, JSON), (500, "text/html"), (501, JSON)]
PIECES = {
    "event": EVENT, "events": EVENT * 50, "half": EVENT[:9], "rest": EVENT[9:], "usage": USAGE, "done": DONE, "comment": b": comment\n",
    "garbage": b"data: garbage\n\n", "error": b'data: {"error":"boom"}\n\n', "json": b'{"choices":[]}', "long": b"data: " + b"x" * 70_000,
    "noise": b"x" * 20_000,
}  # fmt: skip
CLOSES = [
    ("done", ""),
    ("done", ""),
    ("busy", ""),
    ("cancelled", ""),
    ("failed", "engine_error"),
    ("failed", "engine_timeout"),
    ("failed", "engine_unreachable"),
    ("failed", "draining"),
    ("failed", "refused"),
]
LIMIT = 10**6
BODIES = [b"{", b'{"model":"nobody","messages":[{}]}']


class Requests(RuleBasedStateMachine):
    """Clients and agents do what they like; the rules of `Client.perform` are checked with every effect."""

    @initialize()
    def begin(self):
        patience = Timeouts(total=200, first_token=60, idle=40, queue=100, worker_return=20, keepalive=15)
        self.world = World(patience, Limits(queue=4, answer=100_000))
        self.world.pipeline.fleet.remembered["away"] = frozenset("mn")
        self.clients: list[Client] = []
        #: Clients that hung up, by their request.
        self.gone: set[str] = set()
        self.boxes = 0
        key = next(iter(self.world.keys))
        #: A hard limit, all of it on loan here: no request has to wait for the database.
        self.budget = self.world.limit(f"key:{key}", LIMIT)
        self.world.vault.budgets[self.budget] = [0, LIMIT]
        self.world.quotas.desk.leases.lend(self.budget, LIMIT, 0, LIMIT, LIMIT)
        Box(self.world, "box0", engine("m", "n", slots=2))

    # What clients do.

    @rule(model=st.sampled_from("mmn"), stream=st.booleans(), usage=st.booleans())
    def ask(self, model, stream, usage):
        client = self.world.ask(model, stream=stream, stream_options={"include_usage": usage})
        client.reads = False  # it reads when `client_does` says so
        self.clients.append(client)

    @rule(body=st.sampled_from(BODIES) | st.none())
    def begin_to_ask(self, body):
        self.world.ask("nobody")
        client = Client(self.world, self.world.key)
        self.clients.append(client)
        if body is not None:
            client.post(signals.Received(body))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), what=st.sampled_from(["gone", "drained", "drained", "body"]))
    def client_does(self, data, what):
        client = data.draw(st.sampled_from(self.clients))
        if what == "gone":
            self.gone.add(client.request_id)
        events = {"gone": signals.Gone(), "drained": signals.Drained(), "body": signals.Received(b'{"model":"m","messages":[{}]}')}
        client.post(events[what])
        self.world.pump()

    # What agents do.

    @precondition(lambda self: len(self.world.boxes) < 3)
    @rule(slots=st.integers(0, 2), models=st.sampled_from(["m", "n", "mn"]), again=st.booleans())
    def connect(self, slots, models, again):
        self.boxes += not again
        Box(self.world, f"box{self.boxes}", engine(*models, slots=slots), epoch=self.boxes * 100 + 1)

    def some_box(self, data) -> Box:
        return data.draw(st.sampled_from(self.world.boxes))

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), how=st.sampled_from(["cut", "freeze", "thaw", "drain", "remove"]))
    def box_does(self, data, how):
        box = self.some_box(data)
        if how == "cut":
            box.cut()
        elif how == "drain":
            box.session.drain()
        elif how == "remove":
            self.world.pipeline.remove_worker(box.name)
        else:
            box.frozen = how == "freeze"
        self.world.pump()

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), slots=st.integers(0, 3), kind=st.sampled_from(["up", "down", "none"]))
    def report(self, data, slots, kind):
        engines = [] if kind == "none" else [engine("m", slots=slots, healthy=kind == "up")]
        self.some_box(data).says(*engines)

    @precondition(lambda self: any(box.requests for box in self.world.boxes))
    @rule(
        data=st.data(),
        head=st.sampled_from(HEADS),
        pieces=st.lists(st.sampled_from(sorted(PIECES)), max_size=4),
        close=st.sampled_from(CLOSES) | st.none(),
    )
    def answer(self, data, head, pieces, close):
        box = data.draw(st.sampled_from([box for box in self.world.boxes if box.requests]))
        stream = data.draw(st.sampled_from(sorted(box.requests)))
        found = box.session._streams.get(stream)
        if found is not None and found.phase == "running" and (pieces or close is None):
            box.head(*head, stream=stream)
        for piece in pieces:
            if box.session.writable(stream) and found is not None and found.phase != "running":
                box.data(PIECES[piece], stream)
        if close is not None:
            box.close(*close, stream=stream, usage=wire.Usage(1, 1))

    @precondition(lambda self: any(box.requests for box in self.world.boxes))
    @rule(events=st.lists(st.sampled_from([EVENT, USAGE, EVENT[:9]]), max_size=3), lose=st.booleans())
    def serve(self, events, lose):
        """The newest request of a worker goes well, or nearly."""
        box = next(box for box in self.world.boxes if box.requests)
        stream = box.stream
        if box.session._streams[stream].phase != "running":
            return
        streams = box.requests[stream].meta.stream
        box.head(200, SSE if streams else JSON, stream=stream)
        for event in events if streams else [b'{"usage":{}}']:
            box.data(event, stream)
        if lose:
            box.cut()
        else:
            box.close(stream=stream)

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data())
    def obey(self, data):
        """An agent whose engine is free confirms what it was told to stop."""
        box = self.some_box(data)
        for event in box.events:
            if isinstance(event, session.Cancel) and event.stream in box.requests:
                box.close("cancelled", stream=event.stream)

    # What others do.

    @rule(seconds=st.sampled_from([0.1, 1, 16, 30, 70, 250, 1e6]))
    def time_passes(self, seconds):
        if seconds > 1000:
            self.world.clock.now += seconds
        self.world.passes(min(seconds, 300))

    @rule()
    def revoke(self):
        key_id = self.world.key.split("_")[1]
        self.world.key = self.world.add_key()
        self.world.pipeline.revoke_key(key_id)
        self.world.pump()
        assert not [
            client for client in self.clients if client.exchange.caller.key_id == key_id and client.state not in {State.DONE, State.CLOSING}
        ]

    # What must hold.

    @invariant()
    def slots_are_taken_by_requests_and_nothing_else(self):
        attempts = [client.exchange._attempt for client in self.clients if client.exchange._attempt is not None]
        attempts += [client.exchange._aside.attempt for client in self.clients if client.exchange._aside is not None]
        attempts += self.world.pipeline._failover.leftovers._until
        for worker in self.world.pipeline.fleet.workers.values():
            assert worker.used == sum(attempt.placement.seat.worker is worker for attempt in attempts)
            assert all(seat.used >= 0 for seat in worker.seats.values())

    @invariant()
    def whoever_waits_stands_in_line_and_no_slot_is_free_for_it(self):
        waiting = [client.exchange for client in self.clients if client.state is State.WAITING]
        pipeline, now = self.world.pipeline, self.world.clock()
        assert pipeline.queue.waiting == len(waiting)
        assert pipeline.queue._apart.total() == sum(bool(exchange._stay.needs.shun) for exchange in waiting)
        for exchange in waiting:
            needs = exchange._stay.needs
            shun = needs.shun | ejection.held(pipeline.fleet, needs.model, "chat", now)
            seats = pipeline.fleet.seats(needs.model, "chat")
            assert not [seat for seat in seats if seat.free(now) and seat.id not in shun]

    @invariant()
    def nobody_is_forgotten_and_nobody_hoards(self):
        assert self.world.pipeline._running == {client.exchange for client in self.clients if client.state is not State.DONE}
        for client in self.clients:
            assert client.exchange._owed <= wire.WINDOW
            assert (client.end is None) == (client.state not in {State.DONE, State.CLOSING}) or client.request_id in self.gone

    @invariant()
    def every_request_that_is_done_has_its_row(self):
        """And every attempt one, of which one at most is billed."""
        mine = {client.request_id: client.state for client in self.clients}
        rows = [row for row in self.world.settled() if row.request_id in mine]
        assert max(Counter((row.request_id, row.attempt) for row in rows).values(), default=1) == 1
        assert max(Counter(row.request_id for row in rows if row.kind == "settled").values(), default=1) == 1
        ended = {row.request_id for row in rows if row.outcome in {"done", "failed", "cancelled"}}
        assert ended == {id for id, state in mine.items() if state is State.DONE}

    @invariant()
    def what_is_reserved_is_held_and_what_was_used_is_booked(self):
        mine = [row for row in self.world.settled() if row.kind == "settled" and f"key:{row.key_id}" == self.budget.scope]
        billed = sum(row.amount("tokens") for row in mine)
        used, reserved = self.world.vault.budgets[self.budget]
        assert used == billed
        assert used + reserved == LIMIT + sum(row.over for row in self.world.rows)
        runs = [client.exchange for client in self.clients if client.state in {State.SENT, State.RELAYING, State.CLOSING}]
        held = sum(exchange._bill._reservation.held for exchange in runs if exchange._bill._reservation is not None)
        assert self.world.quotas.desk.leases.free(self.budget) + held == reserved

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self.world.pipeline.stop()
        for box in list(self.world.boxes):
            box.cut()
        self.slots_are_taken_by_requests_and_nothing_else()
        self.every_request_that_is_done_has_its_row()
        assert self.world.pipeline._running == set()
        assert self.world.used == self.world.pipeline.queue.waiting == 0
        for client in self.clients:
            assert client.end is not None or client.request_id in self.gone
            if isinstance(client.end, signals.End):
                *events, last = sse.Splitter().feed(client.body)
                assert last == sse.DONE
                for event in events:
                    assert isinstance(json.loads(event), dict)


Requests.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestRequests = Requests.TestCase
