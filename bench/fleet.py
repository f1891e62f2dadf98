"""Many light agents in one process, a program of its own: the real wire (`mindgw_agent`'s session and WebSocket), but no engine, no
outbox, no disk. What a server does for a thousand boxes is seen with it, never what a box costs.

`python -m bench.fleet FILE URL` reads a `Stock`, then lines: `agents N` connects or disconnects until N are there, `streams` counts the
streams that are held. Each is answered by a line. It ends with its stdin.

The first member has the model of the benchmark, the next ones hold streams (model `held`), and each of the others has a model of its own.
All but those that hold have the model `shared`, too.
"""

import asyncio
import sys
from functools import partial
from pathlib import Path

import msgspec

from bench import answers, program
from bench.stock import Member, Stock
from mindgw_agent import address, events, identity, wire
from mindgw_agent.session import Parties, Session
from mindgw_agent.websocket import WebSocket, dial

#: Members that hold streams, and streams of each.
HOLDERS, HELD_EACH = 12, 1000
#: Requests that another member takes at a time.
SLOTS = 128
#: Members that connect at the same time: each greeting costs the server a transaction.
AT_ONCE = 16
_MESSAGE = 256 * 1024


def holds(number: int) -> bool:
    """Whether the member of that number holds streams."""
    return 0 < number <= HOLDERS


def models(number: int) -> list[wire.Model]:
    """What the member of that number has."""
    if holds(number):
        return [wire.Model(answers.HELD, kinds=["chat"])]
    own = f"{answers.MODEL}-{number}" if number else answers.MODEL
    return [wire.Model(own, kinds=["chat"]), wire.Model(answers.SHARED, kinds=["chat"])]


class Agent:
    """One member while it is connected."""

    def __init__(self, number: int, member: Member, server: bytes, where: address.Address, epoch: int) -> None:
        slots = HELD_EACH if holds(number) else SLOTS
        engine = wire.EngineReport(id="e1", kind="generic", healthy=True, slots=slots, models=models(number))
        parties = Parties(
            agent_id=member.id,
            host=where.netloc,
            server_identity=server,
            last_epoch=epoch,
            sign=partial(identity.sign, member.key),
            verify=identity.verify,
            software="mindgw-bench-fleet",
        )
        self._where = where
        self._session = Session(parties, wire.Report(serial=1, engines=[engine]))
        self._socket: WebSocket
        self._loop = asyncio.get_running_loop()
        #: A flush comes at the end of this turn of the loop.
        self._is_due = False
        #: Done at the server's welcome, or when it will not come.
        self._ready: asyncio.Future[None] = self._loop.create_future()
        #: Stream that is held -> the tag to close it with; bounded: by the slots.
        self.held: dict[int, bytes] = {}

    @property
    def epoch(self) -> int:
        return self._session.epoch

    async def connect(self) -> None:
        self._socket = await dial(self._where, None, wire.SUBPROTOCOL, "mindgw-bench-fleet", most=wire.MAX_MESSAGE, timeouts=(30.0, 2.0))
        self._socket.lost.add_done_callback(self._gone)
        self._session.start()
        self._flush()
        self._socket.listen(self)
        await self._ready

    async def disconnect(self) -> None:
        self._socket.lost.remove_done_callback(self._gone)
        self._socket.close()
        await asyncio.shield(self._socket.lost)

    def _gone(self, _lost: object) -> None:
        """Nobody asked for that: without this agent every figure is wrong."""
        print(f"an agent was lost: {self._socket.why or 'closed'}", file=sys.stderr, flush=True)
        self._loop.stop()

    # -- what the socket calls -------------------------------------------------------------------------------------

    def message(self, message: bytes | str) -> None:
        for event in self._session.receive(message, self._loop.time()):
            match event:
                case events.Proving():
                    self._session.prove()
                case events.Ready():
                    self._ready.set_result(None)
                case events.Request():
                    self._answer(event)
                case events.Cancel():
                    self._session.close(event.stream, wire.Close("cancelled", tag=self.held.pop(event.stream, b"")))
        if self._session.has_words and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def ponged(self, seconds: float) -> None:
        """We never ask."""

    def room(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self._is_due = False
        while not self._socket.is_full and (message := self._session.take(_MESSAGE)):
            self._socket.send(message)

    def _answer(self, request: events.Request) -> None:
        if request.meta.stream:
            self.held[request.stream] = request.meta.tag
            self._session.head(request.stream, 200, "text/event-stream", answers.event(0))
            return
        usage = wire.Usage(answers.PROMPT_TOKENS, 64)
        self._session.head(request.stream, 200, "application/json", answers.UNARY)
        done = wire.Close("done", usage=usage, bytes=len(answers.UNARY), finish="stop", tag=request.meta.tag, status=200)
        self._session.close(request.stream, done)


class Fleet:
    """All of them."""

    def __init__(self, stock: Stock, url: str) -> None:
        self._stock = stock
        self._where = address.parse(url)
        #: Newest epoch of each member that was ever connected, in the order of the members.
        self._epochs = [0] * len(stock.members)
        self.agents: list[Agent] = []

    async def become(self, size: int) -> None:
        """So many are connected when this returns, the first of the members."""
        while len(self.agents) > size:
            gone, self.agents = self.agents[max(size, len(self.agents) - AT_ONCE) :], self.agents[: max(size, len(self.agents) - AT_ONCE)]
            await asyncio.gather(*(agent.disconnect() for agent in gone))
        while len(self.agents) < size:
            first = len(self.agents)
            new = [self._new(number) for number in range(first, min(size, first + AT_ONCE))]
            await asyncio.gather(*(agent.connect() for agent in new))
            self.agents += new
            for number, agent in enumerate(new, first):
                self._epochs[number] = agent.epoch

    def _new(self, number: int) -> Agent:
        return Agent(number, self._stock.members[number], self._stock.server, self._where, self._epochs[number])

    async def obey(self, line: str) -> int:
        match line.split():
            case ["agents", size]:
                await self.become(int(size))
                return len(self.agents)
            case ["streams"]:
                return sum(len(agent.held) for agent in self.agents)
            case _:
                raise ValueError(f"what is {line!r}?")


async def _main(file: str, url: str) -> None:
    fleet = Fleet(msgspec.json.decode(Path(file).read_bytes(), type=Stock), url)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(await fleet.obey(line.decode()), flush=True)


if __name__ == "__main__":
    program.run(_main(sys.argv[1], sys.argv[2]))
