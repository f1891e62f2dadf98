"""llama.cpp's own server (`llama-server`).

It answers for whatever model name, so names are checked here. It notices a lost caller at once in a stream, but otherwise only after
a second without any result at all, and every look at /slots makes one: so chats are always streamed, and /slots is looked at only
while nothing of ours runs, or after a cancel, and then less than once a second.
"""

import asyncio
import re
import time
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from mindgw_agent import aggregate, payload
from mindgw_agent.engines.client import Route, Unreachable
from mindgw_agent.engines.engine import EMBEDDINGS, Engine, Facts, Tell, Unable, count, listing
from mindgw_agent.vocabulary import clean
from mindgw_agent.wire import Model

#: Seconds between two looks at /slots after a cancel: more than the second of silence that the engine needs to notice.
PAUSE = 1.1
#: Seconds before the first look: a cancelled stream frees its slot within 30 ms.
FIRST = 0.1
#: Seconds after which a cancelled request's slot is given back unseen.
PATIENCE = 60.0

#: Seconds for loading a model, and between looks at it.
LOADING = 900.0
LOOK = 0.5
#: What an operator may ask a server in router mode for. Callers never reach these.
_ROUTER: frozenset[Route] = frozenset({("POST", "/models/load"), ("POST", "/models/unload")})

_EMBEDDINGS_TRIAL = b'{"input":"a"}'


class LlamaCpp(Engine):
    """One llama-server with one model, or several in router mode."""

    kind: ClassVar[str] = "llamacpp"
    readings: ClassVar[frozenset[Route]] = frozenset({("GET", "/v1/models"), ("GET", "/health"), ("GET", "/props"), ("GET", "/slots")})
    denied: ClassVar[frozenset[str]] = frozenset({"__verbose", "n_cmpl", "return_progress", "sse_ping_interval", "timings_per_token"})
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})
    caller_faults: ClassVar[re.Pattern[bytes] | None] = re.compile(rb"too large to process|is not supported|not supported by this")
    usage_per_answer: ClassVar[bool] = True
    lenient: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Whether /v1/embeddings works, by the ids of the models for which it was tried.
        self._embeds: dict[frozenset[str], bool] = {}
        #: When /slots was looked at last, by `time.monotonic`, and what it said.
        self._looked = -PAUSE
        self._busy: int | None = None
        #: One look at a time: those who wait share its outcome.
        self._look = asyncio.Lock()

    async def facts(self) -> Facts:
        health = await self.get("/health")
        if health.status == 503:
            raise Unreachable("the engine is loading its model")
        entries = listing(await self.get("/v1/models"))
        props = (await self.get("/props")).json() or {}
        kinds = ["chat", "completions"] + ["embeddings"] * await self._can_embed(frozenset(entry["id"] for entry in entries))
        running = await self._count_busy() if self.running == 0 and props.get("endpoint_slots") else None
        return Facts(
            [_model(entry, kinds) for entry in entries],
            version=str(props.get("build_info", "")),
            slots=count(props.get("total_slots")) or 0,
            running=running,
        )

    async def _can_embed(self, models: frozenset[str]) -> bool:
        """Nothing says whether embeddings are switched on, so each set of models is asked for one, once."""
        if models not in self._embeds:
            answer = await self.get(EMBEDDINGS, _EMBEDDINGS_TRIAL)
            self._embeds = {models: answer.status == 200}
        return self._embeds[models]

    async def _count_busy(self) -> int | None:
        """Slots at work, looked up at most once a PAUSE; None when the engine does not tell."""
        async with self._look:
            await asyncio.sleep(max(0.0, self._looked + PAUSE - time.monotonic()))
            try:
                slots = (await self.get("/slots")).json()
            finally:
                self._looked = time.monotonic()
        if not isinstance(slots, list):
            return None
        return sum(1 for slot in slots if isinstance(slot, dict) and slot.get("is_processing"))

    async def until_free(self, answers: int = 1) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.sleep(FIRST)
                while not await self._is_free(answers):
                    pass
        except (TimeoutError, Unreachable):
            return

    async def _is_free(self, answers: int) -> bool:
        busy = await self._count_busy()
        return busy is None or busy <= self.answering - answers + self.elsewhere

    async def load(self, model: str, tell: Tell) -> None:
        tell(f"loading {model}", None)
        await self._route("/models/load", model, "loaded")

    async def unload(self, model: str, tell: Tell) -> None:
        tell(f"unloading {model}", None)
        await self._route("/models/unload", model, "unloaded")

    async def _route(self, path: str, model: str, wanted: str) -> None:
        """In router mode there is an answer at once, and the model's state tells when it is done."""
        id = self.names.get(model, model)
        if (await self._state(id)) == wanted:
            return
        answer = await self.client.read(("POST", path), _ROUTER, msgspec.json.encode({"model": id}))
        if answer.status in {404, 405, 501}:
            raise Unable("this llama-server has one model: start it in router mode, without --model, to have it load others", never=True)
        if answer.status != 200:
            raise Unable(f"llama.cpp answers with status {answer.status}: {clean(answer.body[:300].decode(errors='replace'))}")
        begun = False
        async with asyncio.timeout(LOADING):
            while (state := await self._state(id)) != wanted:
                if state == "failed" or (begun and state == "unloaded"):
                    raise Unable(f"{id} could not be loaded; the log of llama-server says why")
                begun = begun or state == "loading"
                await asyncio.sleep(LOOK)

    async def _state(self, id: str) -> str:
        """loaded, loading, unloaded, sleeping or failed; "" where it is not told."""
        for entry in listing(await self.get("/v1/models")):
            status = entry.get("status")
            if entry["id"] == id and isinstance(status, dict):
                return "failed" if status.get("failed") else str(status.get("value"))
        return ""

    def fold(self, fields: dict[str, Raw], answers: int) -> aggregate.Fold | None:
        if not aggregate.can_aggregate(fields):
            return None
        fields["timings_per_token"] = payload.encoded(True)
        return aggregate.Fold(answers, stops="stop" in fields)


def _model(entry: dict[str, Any], kinds: list[str]) -> Model:
    meta = entry.get("meta") or {}
    status = entry.get("status")
    return Model(
        entry["id"],
        context=count(meta.get("n_ctx")) or count(meta.get("n_ctx_train")),
        kinds=kinds,
        loaded=not isinstance(status, dict) or status.get("value") == "loaded",
        aliases=[alias for alias in entry.get("aliases") or [] if isinstance(alias, str) and alias != entry["id"]],
        created=count(entry.get("created")) or 0,
    )
