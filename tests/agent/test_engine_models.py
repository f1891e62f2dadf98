"""Loading, unloading and pulling of models, by each engine's own dialect. All engines here are FAKES, made from documentation."""

import asyncio

import pytest
from aiohttp import web

from mindgw_agent.engines import KINDS, Unable, Unreachable, client, llamacpp
from mindgw_agent.engines.client import Client, open_session
from tests.agent.carrying import fake_engine, in_front_of, says

TAGS = says({"models": [{"name": "m:latest", "digest": "d"}]})


def ollama(**more):
    """A FAKE Ollama with one model."""
    routes = {
        "GET /v1/models": says({"object": "list", "data": []}), "GET /api/version": says({"version": "0"}), "GET /api/tags": TAGS,
        "GET /api/ps": says({"models": []}), "POST /api/show": says({"capabilities": ["completion"]}),
    }  # fmt: skip
    return fake_engine(routes | more)


def lines(*said: bytes, status: int = 200):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(status=status)
        await answer.prepare(request)
        for line in said:
            await answer.write(line)
        return answer

    return handler


async def pull(*said: bytes, status: int = 200):
    told = []
    async with ollama(**{"POST /api/pull": lines(*said, status=status)}) as url, in_front_of(url) as engine:
        await engine.pull("new", lambda note, part: told.append((note, part)))
    return told


async def test_a_pull_tells_how_far_it_is_over_all_its_parts():
    told = await pull(
        b'{"status":"pulling manifest"}\n{"status":"a","digest":"a","total":100,"comple',
        b'ted":50}\n{"status":"b","digest":"b","total":300}\n',
        b'{"status":"b","digest":"b","total":300,"completed":300}\n\n{"status":"success"}',
    )  # fmt: skip
    assert told[0] == ("pulling manifest", None)
    assert [part for _, part in told if part is not None] == [0.5, 0.125, 0.875, 0.875, 0.875]
    assert told[-1][0] == "success"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([b'{"error":"pull model manifest: file does not exist"}\n'], "does not exist"),
        ([b'{"status":"pulling"}\n'], "ended with status 200 and 'pulling'"),
        ([b'{"status":"x","total":-1,"completed":1e99}\n{"status":"x","total":5,"digest":[],"completed":9}\n'], "and 'x'"),
        ([b"[]\nnull\n7\n"], "ended with"),
        ([b"no json\n"], "not understood"),
        ([b"[" * 10_000 + b"\n"], "not understood"),
    ],
)
async def test_a_pull_that_does_not_succeed_says_why(said, words):
    with pytest.raises(Unable, match=words):
        await pull(*said)


async def test_a_line_without_an_end_is_no_answer():
    with pytest.raises(Unreachable, match="a line of more than"):
        await pull(*[b"x" * 60_000] * 20)


async def test_an_ollama_that_says_nothing_more_is_given_up(monkeypatch):
    monkeypatch.setattr("mindgw_agent.engines.ollama.SILENCE", 0.2)

    async def mute(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b'{"status":"pulling"}\n')
        await request.content.read()
        while request.transport is not None and not request.transport.is_closing():
            await answer.write(b"")
            await asyncio.sleep(0.01)
        return answer

    async with ollama(**{"POST /api/pull": mute}) as url, in_front_of(url) as engine:
        with pytest.raises(Unreachable):
            await engine.pull("new", lambda note, part: None)


async def test_ollama_keeps_a_model_for_good_or_not_at_all():
    asked = []

    async def generate(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"done": True})

    async with ollama(**{"POST /api/generate": generate}) as url, in_front_of(url) as engine:
        await engine.load("m", lambda note, part: None)
        await engine.unload("m:latest", lambda note, part: None)
    assert asked == [{"model": "m:latest", "keep_alive": alive, "stream": False} for alive in (-1, 0)]


@pytest.mark.parametrize(("answer", "words"), [(says({"error": "no room"}, 500), "no room"), (says([], 500), "with status 500")])
async def test_an_ollama_that_cannot_load_says_why(answer, words):
    async with ollama(**{"POST /api/generate": answer}) as url, in_front_of(url) as engine:
        with pytest.raises(Unable, match=words):
            await engine.load("m", lambda note, part: None)


class Router:
    """A FAKE llama-server in router mode: a model takes two looks to load."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.looks = 0

    async def models(self, request: web.Request) -> web.Response:
        for id, state in self.states.items():
            if state == "loading":
                self.looks += 1
                ends = "unloaded" if id == "broken" else "loaded"
                self.states[id] = ends if self.looks > 1 else state
        status = [{"id": id, "status": {"value": state}} for id, state in self.states.items()]
        return web.json_response({"data": status})

    async def change(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.states[model] = "loading" if request.path.endswith("/load") else "unloaded"
        return web.json_response({"success": True})

    def serve(self):
        more = {"GET /health": says({}), "GET /props": says({})}
        routes = {"GET /v1/models": self.models, "POST /models/load": self.change, "POST /models/unload": self.change, **more}
        return fake_engine(routes, server="llama.cpp")


async def test_llama_cpp_in_router_mode_loads_and_unloads(monkeypatch):
    monkeypatch.setattr(llamacpp, "LOOK", 0.01)
    router = Router(m="unloaded")
    async with router.serve() as url, in_front_of(url) as engine:
        await engine.load("m", lambda note, part: None)
        assert router.states == {"m": "loaded"}
        await engine.load("m", lambda note, part: None)  # it is there
        await engine.unload("m", lambda note, part: None)
        assert router.states == {"m": "unloaded"}


async def test_a_model_that_llama_cpp_cannot_load_is_told(monkeypatch):
    monkeypatch.setattr(llamacpp, "LOOK", 0.01)
    async with Router(broken="unloaded").serve() as url, in_front_of(url) as engine:
        with pytest.raises(Unable, match="could not be loaded"):
            await engine.load("broken", lambda note, part: None)


async def test_a_llama_server_with_one_model_loads_no_other():
    routes = {"GET /v1/models": says({"data": [{"id": "m"}]}), "GET /health": says({}), "GET /props": says({})}
    async with fake_engine(routes, server="llama.cpp") as url, in_front_of(url) as engine:
        with pytest.raises(Unable, match="router mode") as no:
            await engine.load("m", lambda note, part: None)
        assert no.value.never


@pytest.mark.parametrize("kind", ["vllm", "sglang", "lmstudio", "generic"])
@pytest.mark.parametrize("verb", ["load", "unload", "pull"])
async def test_an_engine_that_cannot_is_named(kind, verb):
    async with open_session() as session:
        engine = KINDS[kind](Client(session, "http://127.0.0.1:9"))
        with pytest.raises(Unable, match=kind) as no:
            await getattr(engine, verb)("m", lambda note, part: None)
        assert no.value.never


@pytest.mark.parametrize(
    "path", ["/api/generate", "/api/pull", "/models/load", "/models/unload", "/api/delete", "/api/create", "/api/push"]
)
@pytest.mark.parametrize("kind", ["ollama", "llamacpp"])
async def test_no_caller_reaches_what_changes_an_engine(kind, path):
    async with open_session() as session:
        engine = KINDS[kind](Client(session, "http://127.0.0.1:9"))
        with pytest.raises(client.NotAllowed):
            engine.client.call(("POST", path), engine.readings | client.GENERATION, b"{}")
