"""Ollama. Not run here: these facts come from its source and documentation."""

from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from mindgw_agent.engines.client import Answer, Route, Unreachable
from mindgw_agent.engines.engine import Engine, Facts, Tell, Unable, count
from mindgw_agent.wire import Model

#: Most models that are asked for their details; the others are offered without.
_DETAILED = 200
#: Seconds for loading a model, and for a word about one that is being fetched.
LOADING = 900.0
SILENCE = 120.0
#: Parts of a model that are counted: they are a handful.
_PARTS = 1000
#: What an operator may ask for. Callers never reach these.
_LOADS: frozenset[Route] = frozenset({("POST", "/api/generate")})
_PULLS: frozenset[Route] = frozenset({("POST", "/api/pull")})


class Ollama(Engine):
    """Any number of models, loaded when first asked for. It works on one request at a time unless OLLAMA_NUM_PARALLEL says more."""

    kind: ClassVar[str] = "ollama"
    readings: ClassVar[frozenset[Route]] = frozenset(
        {("GET", "/v1/models"), ("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("POST", "/api/show")}
    )
    denied: ClassVar[frozenset[str]] = frozenset({"_debug_render_only"})
    busy_statuses: ClassVar[frozenset[int]] = frozenset({503})
    lenient: ClassVar[bool] = False
    can_pull: ClassVar[bool] = True

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

    async def load(self, model: str, tell: Tell) -> None:
        tell(f"loading {model}", None)
        await self._keep(model, -1)

    async def unload(self, model: str, tell: Tell) -> None:
        tell(f"unloading {model}", None)
        await self._keep(model, 0)

    async def _keep(self, model: str, alive: int) -> None:
        """A request without a prompt loads the model and keeps it so long: 0 not at all, -1 for good."""
        body = msgspec.json.encode({"model": self.names.get(model, model), "keep_alive": alive, "stream": False})
        answer = await self.client.read(("POST", "/api/generate"), _LOADS, body, LOADING)
        if answer.status != 200:
            raise Unable(_error(answer))

    async def pull(self, model: str, tell: Tell) -> None:
        pulled = _Pulled(tell)
        body = msgspec.json.encode({"model": model, "stream": True})
        status = await self.client.lines(("POST", "/api/pull"), _PULLS, body, pulled.take, SILENCE)
        if pulled.error or status != 200 or pulled.status != "success":
            raise Unable(pulled.error or f"Ollama ended with status {status} and {pulled.status!r}")

    def adapt(self, fields: dict[str, Raw]) -> None:
        if "max_completion_tokens" in fields and "max_tokens" not in fields:
            fields["max_tokens"] = fields["max_completion_tokens"]  # the only one of the two that it knows


def _kinds(capabilities: list[Any]) -> list[str]:
    return ["chat", "completions"] * ("completion" in capabilities) + ["embeddings"] * ("embedding" in capabilities)


class _Pulled:
    """What Ollama says while it fetches a model: JSON objects, one a line."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        #: Bytes that are here and bytes in all, by the digest of a part.
        # bounded: by _PARTS
        self._parts: dict[str, tuple[int, int]] = {}
        self.status = ""
        self.error = ""

    def take(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line) if line.strip() else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = {"error": "Ollama answers in a way that is not understood"}
        if not isinstance(said, dict):
            return
        self.error = self.error or str(said.get("error") or "")[:500]
        self.status = str(said.get("status") or self.status)[:200]
        total, digest = count(said.get("total")), str(said.get("digest"))
        if total and (digest in self._parts or len(self._parts) < _PARTS):
            self._parts[digest] = min(count(said.get("completed")) or 0, total), total
        here, whole = (sum(part[side] for part in self._parts.values()) for side in (0, 1))
        self._tell(self.status, here / whole if whole else None)


def _error(answer: Answer) -> str:
    """What an answer that is no success says."""
    try:
        document = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    said = document.get("error") if isinstance(document, dict) else None
    return str(said)[:500] if said else f"Ollama answers with status {answer.status}"
