"""SGLang. Not run here: these facts come from its source."""

from typing import Any, ClassVar

from mindgw_agent.engines.client import Route, Unreachable
from mindgw_agent.engines.engine import Engine, Facts, count, listing
from mindgw_agent.wire import Model


class SgLang(Engine):
    """One base model and its LoRA children. Its /health makes a token and sleeps a second, so /ready is asked instead."""

    kind: ClassVar[str] = "sglang"
    default_slots: ClassVar[int] = 32
    readings: ClassVar[frozenset[Route]] = frozenset(
        {("GET", "/v1/models"), ("GET", "/ready"), ("GET", "/model_info"), ("GET", "/server_info"), ("GET", "/v1/loads")}
    )
    denied: ClassVar[frozenset[str]] = frozenset(
        {
            "custom_logit_processor",  # pickled code
            "custom_params",
            "data_parallel_rank",
            "disagg_prefill_dp_rank",
            "extra_key",
            "input_ids",
            "lora_path",
            "return_hidden_states",
            "return_routed_experts",
            "routed_dp_rank",
            "session_params",
        }
    )
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})
    lenient: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: What /server_info said, by the ids of the models: a round trip to all of its processes, so it is asked once.
        self._told: dict[frozenset[str], dict[str, Any]] = {}

    async def facts(self) -> Facts:
        if (await self.get("/ready")).status == 503:
            raise Unreachable("SGLang is starting")
        entries = listing(await self.get("/v1/models"))
        generates = (_fields((await self.get("/model_info")).json())).get("is_generation", True)
        kinds = ["chat", "completions"] if generates else ["embeddings"]
        models = frozenset(entry["id"] for entry in entries)
        if models not in self._told:
            self._told = {models: _fields((await self.get("/server_info")).json())}
        told = self._told[models]
        return Facts(
            [Model(entry["id"], context=count(entry.get("max_model_len")), kinds=kinds) for entry in entries],
            version=str(told.get("version", "")),
            slots=count(told.get("max_running_requests")) or 0,
            running=_running((await self.get("/v1/loads")).json()),
        )

    def busy(self, status: int, body: bytes) -> bool:
        return super().busy(status, body) or (status == 0 and b"request queue is full" in body)


def _fields(document: Any) -> dict[str, Any]:
    return document if isinstance(document, dict) else {}


def _running(loads: Any) -> int | None:
    """Requests at work over all ranks."""
    ranks = _fields(loads).get("loads")
    numbers = [count(_fields(rank).get("num_running_reqs")) for rank in ranks] if isinstance(ranks, list) else []
    return sum(number for number in numbers if number is not None) if numbers else None
