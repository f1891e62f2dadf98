"""Recognition, probes and dialects. Every engine here is a FAKE that answers as its source or documentation says; none was run."""

import json

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent import engines, wire
from mindgw_agent.engines import Engine, Place, Unrecognised, discover, recognise
from mindgw_agent.engines.client import GENERATION, MAX_READING, Client, NotAllowed, Unreachable, check, open_session
from mindgw_agent.engines.llamacpp import LlamaCpp
from mindgw_agent.payload import Refused
from tests.agent.carrying import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, MODELS, Handler, ask, fake_engine, in_front_of, says, streams


def openai(owner: str, **more) -> dict:
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner, "created": 5, **more}]}


def text(body: str, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=body, status=status)

    return handler


def fake_ollama(**more: Handler) -> dict[str, Handler]:
    """A FAKE Ollama with a chat model that is loaded, one that is not, an embedder, and a cloud model."""

    def tag(name: str, **fields) -> dict:
        return {"name": name, "model": name, "digest": "sha-" + name, **fields}

    shown = {
        "chat:latest": {"capabilities": ["completion", "tools"], "model_info": {"llama.context_length": 131072}},
        "cold:7b": {"capabilities": ["completion"], "model_info": {"general.architecture": "llama", "llama.context_length": 4096}},
        "embed:latest": {"capabilities": ["embedding"], "model_info": {}},
    }

    async def show(request: web.Request) -> web.Response:
        return web.json_response(shown[(await request.json())["model"]])

    cloud = tag("big:cloud", remote_model="big", remote_host="https://ollama.example")
    routes: dict[str, Handler] = {
        "GET /v1/models": says({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "library"} for name in shown]}),
        "GET /api/version": says({"version": "0.31.0"}),
        "GET /api/tags": says({"models": [*map(tag, shown), cloud]}),
        "GET /api/ps": says({"models": [tag("chat:latest", context_length=8192, size_vram=1)]}),
        "POST /api/show": show,
    }
    return routes | more


def fake_vllm(**more: Handler) -> dict[str, Handler]:
    """A FAKE vLLM that generates, with a LoRA child and two requests of others at work."""
    lora = {"id": "lora", "object": "model", "owned_by": "vllm", "parent": "m", "max_model_len": None}
    models = openai("vllm", max_model_len=32768)
    metrics = 'vllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_waiting{engine="0"} 5.0\n'
    routes: dict[str, Handler] = {
        "GET /v1/models": says(models | {"data": [*models["data"], lora]}),
        "GET /version": says({"version": "0.33.0"}),
        "GET /health": text(""),
        "GET /metrics": text("# HELP x\n" + metrics),
    }
    return routes | more


def fake_sglang() -> dict[str, Handler]:
    """A FAKE SGLang, which also answers Ollama's routes."""
    return {
        "GET /v1/models": says(openai("sglang", max_model_len=40960)),
        "GET /api/tags": says({"models": []}),
        "GET /ready": text(""),
        "GET /model_info": says({"is_generation": True}),
        "GET /server_info": says({"version": "0.5.23", "max_running_requests": 48}),
        "GET /v1/loads": says({"loads": [{"dp_rank": 0, "num_running_reqs": 3}, {"dp_rank": 1, "num_running_reqs": 1}]}),
    }


def fake_lmstudio() -> dict[str, Handler]:
    """A FAKE LM Studio of the 0.4 kind."""
    models = [
        {"key": "qwen", "type": "llm", "max_context_length": 32768, "loaded_instances": [{"id": "qwen"}]},
        {"key": "nomic", "type": "embedding", "max_context_length": 2048, "loaded_instances": []},
    ]
    return {"GET /v1/models": says({"data": [{"id": "qwen"}, {"id": "nomic"}]}), "GET /api/v1/models": says({"models": models})}


def fake_old_lmstudio() -> dict[str, Handler]:
    """A FAKE LM Studio of the 0.3 kind."""
    return {
        "GET /v1/models": says(MODELS),
        "GET /api/v0/models": says({"data": [{"id": "m", "type": "llm", "state": "not-loaded", "max_context_length": 9}]}),
    }


async def report_of(routes: dict[str, Handler], server: str = "uvicorn", **place) -> tuple[Engine, wire.EngineReport]:
    async with fake_engine(routes, server=server) as url, in_front_of(url, **place) as engine:
        return engine, await engine.probe()


async def test_ollama():
    engine, report = await report_of(fake_ollama())
    assert (report.kind, report.version, report.slots, report.healthy) == ("ollama", "0.31.0", 1, True)
    assert {model.id: (model.context, model.kinds, model.loaded, model.aliases) for model in report.models} == {
        "chat:latest": (8192, ["chat", "completions"], True, ["chat"]),
        "cold:7b": (4096, ["chat", "completions"], False, []),
        "embed:latest": (None, ["embeddings"], False, ["embed"]),
    }
    assert engine.names["chat"] == "chat:latest"


async def test_vllm():
    engine, report = await report_of(fake_vllm())
    assert (report.kind, report.version, report.slots, report.elsewhere) == ("vllm", "0.33.0", 64, 2)
    assert [(model.id, model.context, model.kinds) for model in report.models] == [
        ("m", 32768, ["chat", "completions"]),
        ("lora", None, ["chat", "completions"]),
    ]
    assert engine.begin()
    engine.end()


async def test_a_pooling_vllm_offers_embeddings_only():
    _, report = await report_of(fake_vllm(**{f"POST {EMBEDDINGS}": says({"data": []})}))
    assert report.models[0].kinds == ["embeddings"]


async def test_vllm_that_died_is_unhealthy():
    _, report = await report_of(fake_vllm(**{"GET /health": text("", 503)}))
    assert (report.healthy, report.models) == (False, [])


async def test_a_vllm_with_a_key_says_that_it_wants_one():
    _, report = await report_of(fake_vllm(**{"GET /v1/models": says({"error": "Unauthorized"}, 401)}))
    assert (report.kind, report.healthy) == ("vllm", False)
    assert "--engine-key-file" in report.error


async def test_sglang_is_not_taken_for_ollama():
    _, report = await report_of(fake_sglang())
    assert (report.kind, report.version, report.slots, report.elsewhere) == ("sglang", "0.5.23", 48, 4)
    assert [(model.id, model.context) for model in report.models] == [("m", 40960)]


async def test_lm_studio():
    _, report = await report_of(fake_lmstudio())
    assert (report.kind, report.slots) == ("lmstudio", 1)
    assert [(model.id, model.context, model.kinds, model.loaded) for model in report.models] == [
        ("qwen", 32768, ["chat", "completions"], True),
        ("nomic", 2048, ["embeddings"], False),
    ]


async def test_an_old_lm_studio():
    _, report = await report_of(fake_old_lmstudio())
    assert (report.kind, report.models[0].loaded) == ("lmstudio", False)


async def test_anything_that_lists_models_is_a_generic_engine():
    _, report = await report_of({"GET /v1/models": says(MODELS)}, slots=3)
    assert (report.kind, report.slots, report.models[0].id) == ("generic", 3, "m")


async def test_llama_cpp_that_loads_its_model_is_unhealthy_yet_recognised():
    loading = says({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503)
    _, report = await report_of({"GET /v1/models": loading, "GET /health": loading}, server="llama.cpp")
    assert (report.kind, report.healthy) == ("llamacpp", False)
    assert "loading" in report.error


async def test_a_mindgateway_is_never_an_engine():
    async with fake_engine({"GET /v1/models": says(openai("vllm"))}, server="mindgw") as url, open_session() as session:
        with pytest.raises(Unreachable, match="MindGateway") as caught:
            await recognise(session, Place(url))
        assert caught.value.hopeless
        assert await discover(session, [url]) is None


@pytest.mark.parametrize("kind", engines.KINDS.values(), ids=engines.KINDS)
async def test_a_mindgateway_is_no_engine_of_a_kind_that_was_named_either(kind):
    async with fake_engine({"GET /v1/models": says(openai("vllm"))}, server="mindgw") as url, open_session() as session:
        report = await kind(Client(session, url)).probe()
    assert (report.healthy, report.models) == (False, [])
    assert "MindGateway" in report.error


@pytest.mark.parametrize(("status", "hopeless"), [(200, True), (404, True), (401, None), (500, False), (503, False)])
async def test_an_engine_may_be_starting_behind_a_5xx_and_nothing_else(status, hopeless):
    async with fake_engine({"GET /v1/models": says({}, status)}) as url, open_session() as session:
        if hopeless is None:
            assert (await recognise(session, Place(url))).kind == "generic"
            return
        with pytest.raises(Unrecognised) as caught:
            await recognise(session, Place(url))
    assert caught.value.hopeless is hopeless


@pytest.mark.parametrize("routes", [{}, {"GET /v1/models": text("<html>")}, {"GET /v1/models": says([1])}])
async def test_what_lists_no_models_is_no_engine(routes):
    async with fake_engine(routes) as url, open_session() as session:
        with pytest.raises(Unrecognised):
            await recognise(session, Place(url))


async def test_discovery_takes_the_first_with_a_model():
    async with (
        fake_engine({"GET /v1/models": says({"data": []})}) as empty,
        fake_engine(fake_sglang()) as sglang,
        fake_engine(fake_ollama()) as ollama,
        open_session() as session,
    ):
        found = await discover(session, [empty, sglang, ollama], slots=5)
    assert found is not None
    assert (found.kind, found.slots) == ("sglang", 5)


@pytest.mark.parametrize("kind", engines.KINDS.values(), ids=engines.KINDS)
async def test_an_odd_self_description_is_unhealthy_and_nothing_worse(kind):
    cases = [{}, [], None, "x", {"data": [{"id": 3}]}, {"data": [{"id": "m", "meta": 4, "aliases": 5, "max_model_len": -1}]}]
    cases += [
        {"models": [{"name": None}]},
        {"models": [{"key": "a", "max_context_length": "x", "loaded_instances": None}]},
        {"models": 3, "data": 4},
    ]
    for document in cases:

        async def handler(request: web.Request, document=document) -> web.Response:
            return web.json_response(document)

        async with fake_engine({"GET /{any:.*}": handler, "POST /{any:.*}": handler}) as url, open_session() as session:
            report = await kind(Client(session, url)).probe()
        assert report.healthy or report.error
        assert wire.frame(wire.Report(1, [report])).payload


async def test_a_model_whose_name_holds_control_characters_is_left_out():
    listed = {"data": [{"id": "a\x00b"}, {"id": "m\n"}, {"id": "m", "aliases": ["x\x1b", "nice"]}]}
    routes = {"GET /v1/models": says(listed), "GET /health": says({}), "GET /props": says({"build_info": "b1\x00"})}
    async with fake_engine(routes) as url, open_session() as session:
        engine = LlamaCpp(Client(session, url))
        report = await engine.probe()
    assert [(model.id, model.aliases) for model in report.models] == [("m", ["nice"])]
    assert engine.names == {"m": "m", "nice": "m"}
    assert wire.parse(wire.Report, wire.frame(wire.fit(wire.Report(1, [report]))).payload)


async def test_a_probe_reads_no_endless_answer():
    async with fake_engine({"GET /v1/models": text("x" * (MAX_READING + 10))}) as url, open_session() as session:
        with pytest.raises(Unreachable):
            await recognise(session, Place(url))


async def test_a_failed_probe_keeps_what_was_known():
    async with open_session() as session:
        async with fake_engine({"GET /v1/models": says(MODELS)}) as url:
            engine = await recognise(session, Place(url))
            assert (await engine.probe()).healthy
        report = await engine.probe()
    assert not report.healthy
    assert engine.names == {"m": "m"}


@pytest.mark.parametrize(
    "url", ["", "engine", "ftp://127.0.0.1", "http://", "http://h/api", "http://u:p@h", "http://h/v1?x=1", "http://h:x", "http://[::1"]
)
async def test_addresses_that_are_none_are_refused(url):
    async with open_session() as session:
        with pytest.raises(ValueError, match="engine"):
            Client(session, url)


@pytest.mark.parametrize(
    ("url", "root"), [("http://h:1/", "http://h:1"), ("https://[::1]:8/v1", "https://[::1]:8"), (" http://h/v1/ ", "http://h")]
)
async def test_addresses_are_roots(url, root):
    async with open_session() as session:
        assert Client(session, url).url == root


ALL_ROUTES = frozenset().union(GENERATION, *(kind.readings for kind in engines.KINDS.values()))


@given(
    st.sampled_from(sorted(ALL_ROUTES)),
    st.sampled_from(["/", "..", "//", "?", "?a=1", "%2f", "%2F..", "#", " ", "\n", ";x", "\\", "\x00"]),
    st.integers(0, 30),
)
def test_a_path_with_anything_more_is_not_allowed(route, more, place):
    method, path = route
    bent = path[:place] + more + path[place:]
    if (method, bent) not in ALL_ROUTES:
        with pytest.raises(NotAllowed):
            check((method, bent), ALL_ROUTES)


@given(st.text(max_size=20), st.text(max_size=40))
def test_only_what_is_listed_is_allowed(method, path):
    with pytest.raises(NotAllowed):
        check((method, path), GENERATION)


DANGEROUS = """/pause /abort_requests /update_weights /collective_rpc /v1/load_lora_adapter /flush_cache /slow_down /abort_request
    /api/delete /api/pull /api/create /api/push /api/generate /slots/0 /models/load /models/unload /completion /props""".split()


@pytest.mark.parametrize("path", DANGEROUS)
def test_what_changes_an_engine_is_on_no_list(path):
    assert ("POST", path) not in ALL_ROUTES


# -- bodies ------------------------------------------------------------------------------------------------------------


def meta(path: str = CHAT, model: str = "m", *, stream: bool = False) -> wire.Meta:
    return wire.Meta(request_id="r", path=path, model=model, stream=stream, length=0)


async def prepared(kind: str, body: dict, path: str = CHAT, **about) -> dict:
    """The body that an engine of this kind would get."""
    async with open_session() as session:
        engine = engines.KINDS[kind](Client(session, "http://127.0.0.1:9"))
        return json.loads(engine.prepare(json.dumps(body).encode(), meta(path, **about)).body)


CALLERS = {"messages": HELLO, "temperature": 0.5, "guided_json": {"a": 1}, "top_k": 4, "user": "u", "metadata": {"k": "v"}}


@pytest.mark.parametrize("kind", engines.KINDS)
async def test_unknown_fields_pass_and_dangerous_ones_do_not(kind):
    bad = dict.fromkeys(["id_slot", "rid", "lora", "bootstrap_host", "return_prompt_x", "chat_template", "priority", "ID_SLOT"], 1)
    body = await prepared(kind, CALLERS | bad | {"model": "alias"}, stream=True)
    assert body == CALLERS | {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("sglang", "custom_logit_processor"),
        ("sglang", "lora_path"),
        ("vllm", "kv_transfer_params"),
        ("llamacpp", "n_cmpl"),
        ("ollama", "_debug_render_only"),
    ],
)
async def test_each_engine_has_its_own_dangerous_fields(kind, field):
    assert field not in await prepared(kind, CALLERS | {field: "x"})


@pytest.mark.parametrize("kind", sorted(engines.KINDS.keys() - {"llamacpp"}))
async def test_a_request_without_a_stream_asks_for_none(kind):
    body = await prepared(kind, CALLERS | {"stream": False, "stream_options": {"include_usage": True}})
    assert body == CALLERS | {"model": "m"}


async def test_llama_cpp_always_streams_chats_that_can_be_folded():
    assert await prepared("llamacpp", CALLERS) == CALLERS | {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
    }
    assert "stream" not in await prepared("llamacpp", CALLERS | {"echo": True})
    assert "stream" not in await prepared("llamacpp", {"prompt": "x"}, COMPLETIONS)


async def test_embeddings_are_never_streamed():
    body = await prepared("llamacpp", {"input": "x", "stream": True, "dimensions": 3}, EMBEDDINGS, stream=True)
    assert body == {"input": "x", "dimensions": 3, "model": "m"}


async def test_ollama_gets_the_only_limit_that_it_knows():
    assert (await prepared("ollama", {"messages": [], "max_completion_tokens": 7}))["max_tokens"] == 7
    assert (await prepared("ollama", {"messages": [], "max_completion_tokens": 7, "max_tokens": 5}))["max_tokens"] == 5
    assert "max_tokens" not in await prepared("vllm", {"messages": [], "max_completion_tokens": 7})


async def test_other_stream_options_stay():
    body = await prepared("vllm", {"messages": [], "stream_options": {"include_usage": False, "continuous_usage_stats": True}}, stream=True)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


async def test_an_alias_becomes_the_engines_own_name_and_other_names_are_refused():
    async with fake_engine(fake_ollama()) as url, in_front_of(url) as engine:
        assert json.loads(engine.prepare(b'{"model":"chat"}', meta(model="chat")).body)["model"] == "chat:latest"
        with pytest.raises(Refused) as refused:
            engine.prepare(b"{}", meta(model="other"))
    assert refused.value.code == "model_not_found"


async def test_more_answers_than_allowed_are_refused():
    with pytest.raises(Refused):
        await prepared("vllm", CALLERS | {"n": 9})


def test_faults_of_callers_are_told_from_faults_of_engines():
    engine = LlamaCpp.__new__(LlamaCpp)
    assert engine.client_fault(500, b'{"error":{"message":"input (902 tokens) is too large to process. increase the physical batch size"}}')
    assert not engine.client_fault(500, b'{"error":{"message":"failed to decode"}}')
    assert not engine.client_fault(400, b"is not supported")


async def test_ollama_reports_zero_usage_until_the_last_chunk():
    """FAKE: its completions carry a usage of zeros in every chunk but the last."""

    def part(words: str, finish: str | None, tokens: int) -> bytes:
        usage = {"prompt_tokens": tokens and 5, "completion_tokens": tokens, "total_tokens": 0}
        return (
            b"data: " + json.dumps({"choices": [{"text": words, "index": 0, "finish_reason": finish}], "usage": usage}).encode() + b"\n\n"
        )

    routes = fake_ollama(
        **{f"POST {COMPLETIONS}": streams(part("a", None, 0), part("b", None, 0), part("", "stop", 2), b"data: [DONE]\n\n")}
    )
    async with fake_engine(routes) as url, in_front_of(url) as engine:
        out = await ask(engine, COMPLETIONS, {"model": "chat", "prompt": "x", "stream": True})
    assert (out.end.outcome, out.end.usage.prompt, out.end.usage.completion) == ("done", 5, 2)


async def test_an_ollama_stream_that_loses_its_error_is_a_failure():
    """FAKE: an error in the middle turns into an empty chunk, and the stream just ends."""
    routes = fake_ollama(
        **{f"POST {CHAT}": streams(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n')}
    )
    async with fake_engine(routes) as url, in_front_of(url) as engine:
        out = await ask(engine, CHAT, {"model": "chat", "messages": HELLO, "stream": True})
    assert (out.end.outcome, out.end.code) == ("failed", "engine_error")


async def test_slots_are_taken_and_given_back():
    async with open_session() as session:
        engine = engines.KINDS["generic"](Client(session, "http://127.0.0.1:9"), slots=2)
    assert [engine.begin(), engine.begin(3), engine.begin()] == [True, True, False]
    assert (engine.running, engine.answering) == (2, 4)
    engine.end(3)
    assert engine.begin()
