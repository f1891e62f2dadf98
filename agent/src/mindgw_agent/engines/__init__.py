"""Engines that an agent can stand in front of, how each is recognised, and where they usually listen."""

from typing import Any, Final

import msgspec

from mindgw_agent.engines.client import Answer, Client, Route, Unreachable
from mindgw_agent.engines.engine import Engine, Unable
from mindgw_agent.engines.generic import Generic
from mindgw_agent.engines.llamacpp import LlamaCpp
from mindgw_agent.engines.lmstudio import NATIVE, LmStudio, native_listing
from mindgw_agent.engines.ollama import Ollama
from mindgw_agent.engines.pool import Connections
from mindgw_agent.engines.sglang import SgLang
from mindgw_agent.engines.vllm import Vllm

__all__ = ["KINDS", "USUAL_PORTS", "Engine", "Place", "Unable", "Unreachable", "Unrecognised", "discover", "recognise"]

KINDS: Final[dict[str, type[Engine]]] = {kind.kind: kind for kind in (LlamaCpp, Vllm, SgLang, Ollama, LmStudio, Generic)}

#: Ports that engines listen on by default, in the order in which they are looked for.
USUAL_PORTS: Final = {11434: "Ollama", 8000: "vLLM", 8080: "llama.cpp", 30000: "SGLang", 1234: "LM Studio"}

_PROBES: frozenset[Route] = frozenset(
    {("GET", "/v1/models"), ("GET", "/version"), ("GET", "/api/version"), *(("GET", path) for path in NATIVE)}
)
_OWNERS = {"llamacpp": LlamaCpp, "vllm": Vllm, "sglang": SgLang}


class Unrecognised(Exception):
    """Something answers there, but it is no engine that can be used; the message says why."""

    def __init__(self, message: str, *, hopeless: bool) -> None:
        super().__init__(message)
        #: It answered for good; otherwise it may be an engine that starts, or a proxy in front of one.
        self.hopeless = hopeless


class Place(msgspec.Struct, frozen=True):
    """Where an engine is and what the operator set for it."""

    url: str
    #: The engine's own key, "" for none.
    key: str = ""
    #: None to believe the engine.
    slots: int | None = None
    #: Id on the wire.
    engine_id: str = "e1"


async def recognise(session: Connections, place: Place) -> Engine:
    """The engine that answers at a place, by what it positively says of itself, in one to six cheap reads.

    Raises ValueError for an address that is none, Unreachable when nothing answers or a MindGateway does, Unrecognised for everything
    else that is no engine.
    """
    client = Client(session, place.url, place.key)
    models = await client.read(("GET", "/v1/models"), _PROBES)
    kind = _by_models(models) or await _by_routes(client, models)
    return kind(client, slots=place.slots, engine_id=place.engine_id)


def _by_models(models: Answer) -> type[Engine] | None:
    if models.server == "llama.cpp":
        return LlamaCpp
    owners = {entry.get("owned_by") for entry in _entries(models) or [] if isinstance(entry, dict)}
    return next((kind for owner, kind in _OWNERS.items() if owner in owners), None)


def _entries(models: Answer) -> list[Any] | None:
    """The entries of an OpenAI model list, None when the answer is none. An engine without models may send null."""
    document = models.json()
    if not isinstance(document, dict) or "data" not in document:
        return None
    return document["data"] if isinstance(document["data"], list) else []


async def _by_routes(client: Client, models: Answer) -> type[Engine]:
    if _has_version(await client.read(("GET", "/api/version"), _PROBES)):
        return Ollama
    for path in NATIVE:
        if native_listing(await client.read(("GET", path), _PROBES)) is not None:
            return LmStudio
    if models.status in {401, 403} and _has_version(await client.read(("GET", "/version"), _PROBES)):
        return Vllm  # its key guards /v1 alone; the probe will say that one is wanted
    if models.status in {401, 403}:
        return Generic
    if _entries(models) is None:
        why = f"what answers at {client.url} does not list models at /v1/models (status {models.status})"
        raise Unrecognised(why, hopeless=models.status < 500)
    return Generic


def _has_version(answer: Answer) -> bool:
    document = answer.json()
    return isinstance(document, dict) and isinstance(document.get("version"), str)


async def discover(session: Connections, urls: list[str] | None = None, *, key: str = "", slots: int | None = None) -> Engine | None:
    """The first engine with a model on the usual ports of this machine, None when there is none. `urls` looks elsewhere.

    `key` and `slots` are the operator's, as in Place.
    """
    for url in urls if urls is not None else [f"http://127.0.0.1:{port}" for port in USUAL_PORTS]:
        try:
            engine = await recognise(session, Place(url, key, slots))
        except (Unreachable, Unrecognised):
            continue
        report = await engine.probe()
        if report.healthy and report.models:
            return engine
    return None
