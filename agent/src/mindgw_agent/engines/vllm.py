"""vLLM. Not run here: these facts come from its source."""

import re
from typing import Any, ClassVar

import msgspec

from mindgw_agent.engines.client import Answer, Route, Unreachable
from mindgw_agent.engines.engine import EMBEDDINGS, Engine, Facts, count, listing
from mindgw_agent.wire import Model

_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{[^}]*\})? +([0-9.eE+]+)$", re.MULTILINE)


class Vllm(Engine):
    """One base model and its LoRA children. It batches as many requests as its memory holds and does not say how many that is."""

    kind: ClassVar[str] = "vllm"
    default_slots: ClassVar[int] = 64
    readings: ClassVar[frozenset[Route]] = frozenset({("GET", "/v1/models"), ("GET", "/version"), ("GET", "/health"), ("GET", "/metrics")})
    denied: ClassVar[frozenset[str]] = frozenset(
        {"request_id", "kv_transfer_params", "data_parallel_rank", "mm_processor_kwargs", "media_io_kwargs", "vllm_xargs"}
    )
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})
    lenient: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Whether it pools instead of generating, by the ids of the models for which it was tried.
        self._pools: dict[frozenset[str], bool] = {}

    async def facts(self) -> Facts:
        if (await self.get("/health")).status == 503:
            raise Unreachable("vLLM says that its engine died")
        entries = listing(await self.get("/v1/models"))
        version = (await self.get("/version")).json()
        kinds = ["embeddings"] if await self._is_pooling(entries) else ["chat", "completions"]
        return Facts(
            [_model(entry, kinds) for entry in entries],
            version=str(version.get("version", "")) if isinstance(version, dict) else "",
            running=_running(await self.get("/metrics")),
        )

    async def _is_pooling(self, entries: list[dict[str, Any]]) -> bool:
        models = frozenset(entry["id"] for entry in entries)
        if models and models not in self._pools:
            trial = msgspec.json.encode({"model": entries[0]["id"], "input": "a"})
            self._pools = {models: (await self.get(EMBEDDINGS, trial)).status == 200}
        return self._pools.get(models, False)


def _model(entry: dict[str, Any], kinds: list[str]) -> Model:
    return Model(entry["id"], context=count(entry.get("max_model_len")), kinds=kinds, created=count(entry.get("created")) or 0)


def _running(metrics: Answer) -> int | None:
    found = _RUNNING.findall(metrics.body) if metrics.status == 200 else []
    try:
        return int(sum(map(float, found))) if found else None
    except (ValueError, OverflowError):
        return None
