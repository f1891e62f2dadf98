"""The doors over real sockets: uvicorn in a thread of its own, on the lane that a test names, an engine that plays scenes behind it.

What is asked says by its first message what the engine does: see `Hall._play`.
"""

import asyncio
import json
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
import uvloop

from mindgw import clock
from mindgw.addresses import Networks
from mindgw.config import Config, Limits
from mindgw.config import Cors as CorsSettings
from mindgw.server import front
from mindgw.server.cors import Cors
from mindgw.server.guard import Guard
from mindgw.server.openai import OpenAIDoor
from tests.e2e.raw import Raw
from tests.gateway.world import CHUNK, DONE, EVENT, JSON, SSE, Box, World, engine, knows
from tests.server.rooms import Rooms

T = TypeVar("T")
LANES = {"fast": True, "asgi": False}
#: Seconds that anything may take on a loaded machine.
PATIENCE = 30.0
ANSWER = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}'
PIECE = EVENT * 400


class Hall:
    """A server at work, until `close`. Everything but sockets is done on its loop: `do`."""

    def __init__(
        self,
        lane: str,
        limits: Limits | None = None,
        origins: str = "",
        make: Callable[..., Any] | None = None,
        ws: Any = "none",
        trusted: tuple[str, ...] = (),
    ) -> None:
        """`make` may make the connections' protocol in place of `front.lane`; `ws` is what an upgrade leads to; `trusted` are proxies."""
        self.config = Config("/nowhere", limits=limits or Limits(), fast_lane=LANES[lane], cors=CorsSettings(origins=origins))
        self._make = make or front.lane
        self._ws = ws
        #: Seconds that connections believe to have gone by besides.
        self.passed = 0.0
        now = lambda: clock.monotonic() + self.passed  # noqa: E731
        most = self.config.limits
        self.guard = Guard(most.connections, most.connections_address, most.bodies, now, Networks(trusted))
        #: Scenes that wait go on once it is set.
        self.gate = threading.Event()
        #: Bytes that the engine has been able to say in endless scenes.
        self.said = 0
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"hall-{lane}")
        self._thread.start()
        self._started.result(PATIENCE)

    # -- for tests ------------------------------------------------------------------------------------------------

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns, on the loop."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except Exception as wrong:  # noqa: BLE001 - it is the test's to see
                result.set_exception(wrong)

        self.loop.call_soon_threadsafe(run)
        return result.result(PATIENCE)

    def until(self, look: Callable[[], T], what: str = "it happens") -> T:
        """The first truthy answer of `look` on the loop."""
        end = clock.monotonic() + PATIENCE
        while not (found := self.do(look)):
            assert clock.monotonic() < end, f"not in time: {what}"
        return found

    def passes(self, seconds: float) -> None:
        """Time goes by for connections."""
        self.passed += seconds
        self.do(self.guard.look)

    def passes_until(self, raw: Raw) -> float:
        """Time goes by until that connection has something to read, or is over; how much did."""
        before = self.passed
        while not select.select([raw.socket], [], [], 0.01)[0]:
            assert self.passed < before + 1000, "nothing ever comes"
            self.passes(1.0)
        return self.passed - before

    def raw(self, window: int = 0) -> Raw:
        """A connection."""
        return Raw(self.port, window=window, seconds=PATIENCE)

    @property
    def key(self) -> str:
        return self.world.key

    def settled(self) -> list[Any]:
        """Rows of all requests so far."""
        return self.do(lambda: list(self.world.settled()))

    def idle(self) -> None:
        """Waits until no request is under way and every slot is free."""
        self.until(lambda: self.world.pipeline.idle and not self.world.used and not self.box.requests, "all is quiet")

    @property
    def connections(self) -> int:
        return self.do(lambda: len(self.server.server_state.connections))

    def close(self) -> None:
        """Ends it; no request may be under way any more."""
        self.gate.set()
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    # -- its thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.world = World(limits=self.config.limits)
        self.box = Box(self.world, "box", engine("m", slots=1000))
        assert knows(self.world.pipeline.fleet, "m")
        rooms = Rooms(OpenAIDoor(self.world.pipeline, self.config.limits.body, Cors(self.config.cors.origins)))
        made = self._make(self.config, self.world.pipeline, self.guard)
        self.server = uvicorn.Server(
            uvicorn.Config(
                rooms, port=0, http=made, ws=self._ws, ws_per_message_deflate=False, lifespan="off", log_config=None,
                access_log=False, server_header=False,
                headers=[("server", "mindgw")], timeout_graceful_shutdown=1, proxy_headers=False,
            )
        )  # fmt: skip
        serving = asyncio.ensure_future(self.server._serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self._started.set_result(None)
        playing = asyncio.ensure_future(self._turn())
        await serving
        playing.cancel()

    async def _turn(self) -> None:
        seen: set[int] = set()
        tasks: set[asyncio.Task[None]] = set()
        begun, swept = clock.monotonic(), 0.0
        while True:
            self.world.clock.now = 1000.0 + clock.monotonic() - begun
            self.world.pump()
            for stream, request in list(self.box.requests.items()):
                if stream not in seen:
                    seen.add(stream)
                    tasks.add(asyncio.ensure_future(self._play(stream, json.loads(request.body))))
            for stream in self.box.cancelled:
                if stream in self.box.requests:
                    self.box.close("cancelled", stream=stream)
            if self.world.clock.now > swept + 0.2:
                swept = self.world.clock.now
                self.world.pipeline.sweep()
            await asyncio.sleep(0.001)

    # -- the engine -----------------------------------------------------------------------------------------------

    async def _play(self, stream: int, asked: dict[str, Any]) -> None:
        box, scene = self.box, asked["messages"][0]["content"]
        if scene == "fails":
            self._whole(stream, 500, b'{"error":{"message":"no"}}')
        elif scene == "large":
            self._whole(stream, 200, b'{"x":"' + b"y" * 300_000 + b'"}')
        elif not asked.get("stream"):
            await self._wait(scene == "waits")
            self._whole(stream, 200, ANSWER)
        elif scene in ("endless", "endless drops"):
            await self._endless(stream, PIECE if scene == "endless" else EVENT)
        else:
            box.head(200, SSE, stream=stream)
            box.data(EVENT, stream)
            await self._wait(scene in ("waits", "breaks later"))
            if stream not in box.requests:
                return
            if scene.startswith("breaks"):
                box.close("failed", "engine_error", stream=stream, message="it broke")
                return
            box.data(EVENT + EVENT + DONE, stream)
            box.close(stream=stream)

    def _whole(self, stream: int, status: int, body: bytes) -> None:
        if stream in self.box.requests:
            self.box.head(status, JSON, body, stream)
            self.box.close(stream=stream)

    async def _wait(self, does: bool) -> None:
        while does and not self.gate.is_set():
            await asyncio.sleep(0.002)

    async def _endless(self, stream: int, piece: bytes) -> None:
        """Says as much as it may, until it is cancelled or the gate opens."""
        box = self.box
        box.head(200, SSE, stream=stream)
        while stream in box.requests and not self.gate.is_set():
            if box.session.writable(stream):
                box.data(piece, stream)
                self.said += len(piece)
            await asyncio.sleep(0)
        if stream in box.requests:
            box.data(DONE, stream)
            box.close(stream=stream)


@contextmanager
def hall(lane: str, **more: Any) -> Iterator[Hall]:
    """A hall that is left without a request under way."""
    made = Hall(lane, **more)
    try:
        yield made
        made.gate.set()
        made.idle()
    finally:
        made.close()


@contextmanager
def visited(place: Hall) -> Iterator[Hall]:
    """A hall for one test: scenes that wait do so until its end, when no request is under way and every connection is over."""
    place.gate.clear()
    yield place
    place.gate.set()
    place.idle()
    place.until(lambda: not place.server.server_state.connections and not place.guard._watched, "every connection is over")


def chat(scene: str, **fields: Any) -> bytes:
    """The body of a chat request that plays a scene."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": scene}], **fields}).encode()


__all__ = ["ANSWER", "CHUNK", "LANES", "PIECE", "Hall", "chat", "hall", "visited"]
