"""Many clients at once: some read to the end, some hang up in the middle, and what each of them saw is noted."""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import aiohttp

from tests.e2e.raw import CHAT


class Seen:
    """What one client saw."""

    __slots__ = ("code", "completion", "events", "has_left", "is_whole", "key", "name", "prompt", "request_id", "status")

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        #: The gateway's id, "" when no head came.
        self.request_id = ""
        #: 0 when no head came.
        self.status = 0
        #: Code of the error that it was answered with.
        self.code = ""
        #: Events of its stream that are part of the answer.
        self.events = 0
        #: Tokens as the answer itself reports them.
        self.prompt = self.completion = 0
        #: Whether it has the whole answer, and whether it did not want that.
        self.is_whole = False
        self.has_left = False

    @property
    def is_orphan(self) -> bool:
        """Whether its server was gone before it had an answer."""
        return not (self.is_whole or self.code or self.has_left)


class Load:
    """So many requests a second, until it is told to stop. Everything runs in one loop."""

    def __init__(self, root: str, keys: Sequence[str], model: str, rng: random.Random, rate: float = 100.0) -> None:
        self._url = root + CHAT
        self._keys = keys
        self._model = model
        self._rng = rng
        #: Seconds between two requests.
        self._pause = 1 / rate
        self._over = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        #: All that was asked.
        self.seen: list[Seen] = []
        #: Length of answers, in tokens, and milliseconds between two of them.
        self.counts, self.pauses = (1, 20), (0, 15)
        #: Whether some hang up in the middle.
        self.may_leave = True

    def stop(self) -> None:
        """Nothing new is begun; `run` returns when what runs is over."""
        self._over.set()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        patience = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=patience) as session:
            due = clock()
            while not self._over.is_set():
                due = max(due + self._pause, clock() - 1.0)  # a machine that stood still need not catch up for long
                task = asyncio.create_task(self.one(session))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                try:
                    async with asyncio.timeout(max(0.0, due - clock())):
                        await self._over.wait()
                except TimeoutError:
                    continue
            if self._running:
                await asyncio.wait(self._running)

    async def one(self, session: aiohttp.ClientSession) -> None:
        """Asks, reads, and notes what came."""
        rng = self._rng
        mine = Seen(f"q{len(self.seen):06d}", rng.choice(self._keys))
        self.seen.append(mine)
        count, pause = rng.randint(*self.counts), rng.randint(*self.pauses)
        body: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": f"{mine.name} {count} {pause}"}]}
        body |= {"max_tokens": count} if rng.random() < 0.8 else {}
        # settings are no prompt: who guesses at that by the size of the body must not charge them
        body |= {"user": "u" * 200} if rng.random() < 0.3 else {}
        patience = None
        if rng.random() < 0.7:
            body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if rng.random() < 0.7 else {})
            patience = rng.randint(0, count) if rng.random() < 0.2 and self.may_leave else None
        try:
            headers = {"authorization": f"Bearer {mine.key}"}
            async with session.post(self._url, json=body, headers=headers) as answer:
                mine.status = answer.status
                mine.request_id = answer.headers["x-mindgw-request-id"]
                await (read_stream(answer, mine, patience) if answer.content_type == "text/event-stream" else read_whole(answer, mine))
        except (aiohttp.ClientError, OSError):
            return  # the server is gone, or not there yet


async def read_whole(answer: aiohttp.ClientResponse, mine: Seen) -> None:
    """An answer in one piece, or a refusal."""
    document = await answer.json()
    if answer.status != 200:
        mine.code = document["error"]["code"]
        return
    mine.prompt, mine.completion = document["usage"]["prompt_tokens"], document["usage"]["completion_tokens"]
    mine.is_whole = True


async def read_stream(answer: aiohttp.ClientResponse, mine: Seen, patience: int | None = None) -> None:
    """To the end, or until `patience` events came: then it hangs up."""
    async for line in answer.content:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            mine.is_whole = True
            return
        document = json.loads(data)
        if error := document.get("error"):
            mine.code = error["code"]
            return
        mine.events += 1
        if usage := document.get("usage"):
            mine.prompt, mine.completion = usage["prompt_tokens"], usage["completion_tokens"]
        if patience is not None and mine.events > patience:
            mine.has_left = True
            answer.close()
            return
