"""LM Studio. Not run here: these facts come from its documentation."""

from typing import Any, ClassVar

from mindgw_agent.engines.client import Answer, Route, Unreachable
from mindgw_agent.engines.engine import Engine, Facts, count
from mindgw_agent.wire import Model

NATIVE = ("/api/v1/models", "/api/v0/models")
_KINDS = {"embeddings": ["embeddings"], "embedding": ["embeddings"]}


class LmStudio(Engine):
    """Models that are loaded when first asked for. Loading one may end a running answer of another, so it has one slot."""

    kind: ClassVar[str] = "lmstudio"
    readings: ClassVar[frozenset[Route]] = frozenset({("GET", "/v1/models"), *(("GET", path) for path in NATIVE)})
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})

    async def facts(self) -> Facts:
        for path in NATIVE:
            entries = native_listing(await self.get(path))
            if entries is not None:
                return Facts([_model(entry) for entry in entries])
        raise Unreachable("LM Studio does not list its models")


def native_listing(answer: Answer) -> list[dict[str, Any]] | None:
    """Entries of LM Studio's own model list, of either generation; None when the answer is something else."""
    document = answer.json()
    entries = (document.get("models") or document.get("data")) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "max_context_length" in entry for entry in entries):
        return None
    return [entry for entry in entries if isinstance(entry.get("key", entry.get("id")), str)] or None


def _model(entry: dict[str, Any]) -> Model:
    loaded = bool(entry["loaded_instances"]) if "loaded_instances" in entry else entry.get("state") == "loaded"
    kinds = _KINDS.get(entry.get("type", ""), ["chat", "completions"])
    return Model(entry.get("key") or entry["id"], context=count(entry.get("max_context_length")), kinds=kinds, loaded=loaded)
