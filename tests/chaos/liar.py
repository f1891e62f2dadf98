"""An agent that lies: it is who it says it is, on a real link, but what it reports, measures and counts is what the test wants.

The greeting is that of `mindgw_agent`'s session; what comes after that is written by hand where it is a lie.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec

from bench.stock import Member
from mindgw_agent import address, events, identity, wire
from mindgw_agent.session import Parties, Session
from mindgw_agent.websocket import WebSocket, dial

T = TypeVar("T")

PATIENCE = 30.0
ANSWER = b'{"id":"x","object":"chat.completion","created":1,"model":"fake","choices":[]}'


def number_in(field: str, value: str) -> bytes:
    """A report in which all is well but for one number."""
    known = {
        "serial": "1", "paused_until": "0", "slots": "4", "running": "0", "elsewhere": "0", "context": "4096", "created": "0",
        "memory_total": "8", "memory_used": "4", "utilisation": "0.5", "temperature": "50",
    }  # fmt: skip
    n = known | {field: value}
    return (
        f'{{"serial":{n["serial"]},"paused_until":{n["paused_until"]},"engines":[{{"id":"e1","kind":"vllm","healthy":true,"slots":{n["slots"]},'
        f'"running":{n["running"]},"elsewhere":{n["elsewhere"]},"models":[{{"id":"fake","kinds":["chat"],"context":{n["context"]},'
        f'"created":{n["created"]}}}]}}],"gpus":[{{"name":"g","memory_total":{n["memory_total"]},"memory_used":{n["memory_used"]},'
        f'"utilisation":{n["utilisation"]},"temperature":{n["temperature"]}}}]}}'
    ).encode()


def models(names: list[str], slots: int = 4) -> bytes:
    """A report of an engine with these models."""
    offered = [wire.Model(name, kinds=["chat"]) for name in names]
    engine = wire.EngineReport(id="e1", kind="vllm", healthy=True, slots=slots, models=offered)
    return msgspec.json.encode(wire.Report(1, [engine]))


class Liar:
    """One identity. All that tests call may be called from any thread, and has happened when it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: str, server: bytes, member: Member) -> None:
        self._loop = loop
        self._where = address.parse(url)
        self._server, self._member = server, member
        self._epoch = 0
        self._session: Session
        self._socket: WebSocket
        #: What stands in its first report.
        self._first = b""
        #: Requests that it was sent, over all its links; set when one has come.
        self.requests: list[events.Request] = []
        self.asked = threading.Event()
        #: What it does about one.
        self.answer: Callable[[events.Request], None] = lambda request: None
        self._ready = threading.Event()

    # -- what tests call -------------------------------------------------------------------------------------------

    def dial(self, first: bytes, *, waits: bool = True) -> None:
        """A new link, with this for its first report; returns when the server has let it in, if it `waits` for that."""
        self._first = first
        self._ready.clear()
        self._wait(self._dial())
        assert not waits or self._ready.wait(PATIENCE)

    def act(self, answer: Callable[[events.Request], None]) -> None:
        """Does that about the last request."""
        self._wait(self._act(answer))

    def hang_up(self) -> None:
        """Ends the link, if there is one."""
        self._wait(self._hang_up())

    def report(self, report: bytes) -> None:
        self.say(wire.REPORT, report)

    def say(self, kind: int, payload: bytes, stream: int = 0) -> None:
        """One frame, whatever is in it."""
        self._wait(self._say(kind, payload, stream))

    @property
    def is_gone(self) -> bool:
        """Whether its link has ended."""
        return self._socket.lost.done()

    # -- what it answers, in the loop ------------------------------------------------------------------------------

    def whole(self, close: str, status: int = 200, body: bytes = ANSWER) -> Callable[[events.Request], None]:
        """An answer in one piece, and this for its Close."""

        def answer(request: events.Request) -> None:
            head = wire.build_head(status, "application/json", body)
            self._frame(wire.HEAD, head, request.stream)
            self._frame(wire.CLOSE, close.encode(), request.stream)

        return answer

    def frame(self, kind: int, payload: bytes) -> Callable[[events.Request], None]:
        """A frame on the request's stream."""
        return lambda request: self._frame(kind, payload, request.stream)

    def _frame(self, kind: int, payload: bytes, stream: int) -> None:
        self._socket.send(wire.pack_header(len(payload), stream, kind, 0) + payload)

    # -- the link --------------------------------------------------------------------------------------------------

    async def _dial(self) -> None:
        parties = Parties(
            agent_id=self._member.id,
            host=self._where.netloc,
            server_identity=self._server,
            last_epoch=self._epoch,
            sign=partial(identity.sign, self._member.key),
            verify=identity.verify,
        )
        self._session = Session(parties)
        self._socket = await dial(self._where, None, wire.SUBPROTOCOL, "liar", most=wire.MAX_MESSAGE, timeouts=(PATIENCE, 2.0))
        self._session.start()
        self._flush()
        self._socket.listen(self)

    async def _hang_up(self) -> None:
        self._socket.close()
        await asyncio.shield(self._socket.lost)

    async def _act(self, answer: Callable[[events.Request], None]) -> None:
        answer(self.requests[-1])

    async def _say(self, kind: int, payload: bytes, stream: int) -> None:
        self._frame(kind, payload, stream)

    def message(self, message: bytes | str) -> None:
        for event in self._session.receive(message, self._loop.time()):
            match event:
                case events.Proving():
                    self._epoch = event.epoch
                    self._prove()
                case events.Ready():
                    self._ready.set()
                case events.Request():
                    self.requests.append(event)
                    self.asked.set()
                    self.answer(event)
        self._flush()

    def _prove(self) -> None:
        """As a session does, but for the report."""
        self._session.prove()
        (said,) = wire.Decoder().feed(self._session.take())
        fields = msgspec.json.decode(said.payload, type=dict[str, msgspec.Raw]) | {"report": msgspec.Raw(self._first)}
        self._frame(wire.PROOF, msgspec.json.encode(fields), 0)

    def ponged(self, seconds: float) -> None:
        """We never ask."""

    def room(self) -> None:
        self._flush()

    def _flush(self) -> None:
        while message := self._session.take():
            self._socket.send(message)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)
