"""Ollama. Not run here: these facts come from its source and documentation."""

from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from mindgw_agent.engines.client import Route, Unreachable
from mindgw_agent.engines.engine import Engine, Facts, count
from mindgw_agent.wire import Model

#: Most models that are asked for their details; the others are offered without.
_DETAILED = 200


class Ollama(Engine):
    """Any number of models, loaded when first asked for. It works on one request at a time unless OLLAMA_NUM_PARALLEL says more."""

    kind: ClassVar[str] = "ollama"
    readings: ClassVar[frozenset[Route]] = frozenset(
        {("GET", "/v1/models"), ("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("POST", "/api/show")}
    )
    denied: ClassVar[frozenset[str]] = frozenset({"_debug_render_only"})
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})
    lenient: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: What /api/show said, by the digest of a model: it never changes.
        self._shown: dict[str, dict[str, Any]] = {}

    async def facts(self) -> Facts:
        version = (await self.get("/api/version")).json()
        tags = (await self.get("/api/tags")).json()
        if not isinstance(version, dict) or not isinstance(tags, dict):
            raise Unreachable("Ollama does not list its models")
        loaded = ((await self.get("/api/ps")).json() or {}).get("models") or []
        contexts = {entry["name"]: count(entry.get("context_length")) for entry in loaded}
        # cloud models are listed too; a prompt for them would leave the box
        entries = [entry for entry in tags.get("models") or [] if not (entry.get("remote_host") or entry.get("remote_model"))]
        await self._show(entries)
        return Facts([self._model(entry, contexts) for entry in entries], version=str(version.get("version", "")))

    async def _show(self, entries: list[dict[str, Any]]) -> None:
        kept = {}
        for entry in entries[:_DETAILED]:
            digest = str(entry.get("digest") or entry["name"])
            if digest not in self._shown:
                self._shown[digest] = (await self.get("/api/show", msgspec.json.encode({"model": entry["name"]}))).json() or {}
            kept[digest] = self._shown[digest]
        self._shown = kept

    def _model(self, entry: dict[str, Any], contexts: dict[str, int | None]) -> Model:
        name = entry["name"]
        shown = self._shown.get(str(entry.get("digest") or name), {})
        able = shown.get("capabilities")
        trained = next((count(value) for key, value in (shown.get("model_info") or {}).items() if key.endswith(".context_length")), None)
        return Model(
            name,
            context=contexts.get(name) or trained,
            kinds=_kinds(able) if isinstance(able, list) else ["chat", "completions", "embeddings"],
            loaded=name in contexts,
            aliases=[name.removesuffix(":latest")] if name.endswith(":latest") else [],
        )

    def adapt(self, fields: dict[str, Raw]) -> None:
        if "max_completion_tokens" in fields and "max_tokens" not in fields:
            fields["max_tokens"] = fields["max_completion_tokens"]  # the only one of the two that it knows


def _kinds(capabilities: list[Any]) -> list[str]:
    return ["chat", "completions"] * ("completion" in capabilities) + ["embeddings"] * ("embedding" in capabilities)
