"""Streams with two tries at once, in any order of events: the machine of `test_machine`, in a world where whoever is late is hedged."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from mindgw.core import sse
from mindgw.core.hedging import ENOUGH
from mindgw.core.retries import Shares
from mindgw.gateway.signals import RELAYING, SENT
from tests.gateway.test_machine import CLOSES, Requests
from tests.gateway.world import Box, engine

EARLY = ("head", "comment", "half", "word", "error")


class InOrder(dict):
    """A set whose order is that of coming: of several requests that are late at once the same is hedged first, each time."""

    __hash__ = None
    add = dict.setdefault

    def discard(self, item):
        self.pop(item, None)

    def __eq__(self, other):
        return set(self) == other


class Hedged(Requests):
    """Each word of an engine says which try it is of."""

    # what others see to
    begin_to_ask = answer = serve = revoke = report = None

    @initialize()
    def begin(self):
        Requests.begin(self)
        pipeline = self.world.pipeline
        pipeline.routes.hedge = True
        pipeline._running = InOrder()
        pipeline._failover._retries = Shares(0.2, 1000)
        for expected in (None, 0.03):
            for model in "mn":
                for _ in range(ENOUGH):
                    pipeline._failover.hedging.learn(model, expected, 0.2)
        for number in range(2):
            Box(self.world, f"more{number}", engine("m", "n", slots=6))

    @rule(model=st.sampled_from("mn"))
    def is_late(self, model):
        """A stream that begins nowhere in time."""
        client = self.world.ask(model, stream=True)
        client.reads = False
        self.clients.append(client)
        self.world.passes(1)

    @precondition(lambda self: len(self.world.boxes) < 3)
    @rule()
    def connect(self):
        self.boxes += 1
        Box(self.world, f"box{self.boxes}", engine("m", "n", slots=4))

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), how=st.sampled_from(["freeze", "thaw", "thaw", "obey", "obey", "cut"]))
    def box_does(self, data, how):
        box = self.some_box(data)
        if how == "cut":
            box.cut()
        elif how == "obey":
            for stream in set(box.requests) & set(box.cancelled):
                box.close("cancelled", stream=stream)
        else:
            box.frozen = how == "freeze"
        self.world.pump()

    @precondition(lambda self: any(box.requests for box in self.world.boxes))
    @rule(data=st.data(), words=st.lists(st.sampled_from(EARLY), max_size=3), close=st.sampled_from(CLOSES) | st.none())
    def says(self, data, words, close):
        """One of them says something, of which perhaps nothing leaves, and perhaps ends."""
        tries = [(box, stream) for box in self.world.boxes for stream in box.requests]
        pairs = {self.pair(*one): one for one in tries if self.pair(*one) is not None}
        box, stream = data.draw(st.sampled_from(list(pairs.values()) or tries))
        word = json.dumps({"choices": [{"delta": {"content": f"{box.name}:{box.epoch}:{stream}"}}]}).encode()
        texts = {"comment": b": hm\n", "half": sse.event(word)[:9], "word": sse.event(word), "error": sse.event(b'{"error":"boom"}')}
        for said in ["head", *words]:
            phase = box.session._streams[stream].phase
            if said == "head" and phase == "running":
                box.head(stream=stream)
            elif said != "head" and phase != "running" and box.session.writable(stream):
                box.data(texts[said], stream)
        if close is not None:
            box.close(*close, stream=stream)

    def pair(self, box, stream):
        """The request of which this is one of two tries, and whether it is the one in front."""
        for client in self.clients:
            exchange = client.exchange
            for is_front, attempt in ((True, exchange._attempt), (False, exchange._aside and exchange._aside.attempt)):
                if exchange._aside is not None and attempt._stream == stream and attempt.placement.seat.worker is box.door.worker:
                    return client.request_id, is_front
        return None

    @invariant()
    def two_run_only_while_nothing_has_left(self):
        for client in self.clients:
            exchange = client.exchange
            if exchange._aside is None:
                continue
            first, second = exchange._attempt, exchange._aside.attempt
            assert exchange.state in {SENT, RELAYING}
            assert first.placement.seat.owner != second.placement.seat.owner
            assert first.placement.model == second.placement.model
            assert (exchange._delivery.spoken, exchange._tally.hedged) == (False, True)
            assert exchange._tally.sent - exchange._tally.turned_down == 2
            assert exchange.due <= self.world.clock() + 1.0 or exchange.due <= self.world.clock()

    @invariant()
    def an_answer_is_of_one_try(self):
        for client in self.clients:
            words = {word.split(b'"')[0] for word in client.body.split(b'"content": "')[1:]}
            assert len(words) <= 1


Hedged.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestHedged = Hedged.TestCase
