"""Against a real llama.cpp server: what is recognised, what is carried, and what happens when either side goes away."""

import asyncio
import json

import aiohttp
import pytest

from mindgw_agent.engines import KINDS, Place, Unreachable, discover, recognise
from mindgw_agent.engines.client import open_session
from mindgw_agent.engines.llamacpp import LlamaCpp
from mindgw_agent.exchange import carry
from tests.agent.carrying import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, PATIENCE, Ask, Kept, ask, in_front_of
from tests.real_engine import ENDLESS, SLOW, start_engine

MODEL = "tiny-babbler"


@pytest.fixture(scope="module")
def real():
    with start_engine(slots=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def slow():
    with start_engine(slots=2, shape=SLOW) as engine:
        yield engine


async def test_it_is_recognised_and_described(real):
    async with in_front_of(real.url + "/v1/", engine_id="gpu") as engine:
        report = await engine.probe()
    assert isinstance(engine, KINDS["llamacpp"])
    assert (report.id, report.kind, report.healthy, report.slots, report.error) == ("gpu", "llamacpp", True, 2, "")
    assert (report.version, report.url) == ("b0-unknown", real.url)
    [model] = report.models
    assert (model.id, model.context, model.kinds, model.loaded) == (MODEL, 2048, ["chat", "completions", "embeddings"], True)


async def test_the_operator_may_set_other_slots(real):
    async with in_front_of(real.url, slots=7) as engine:
        assert (await engine.probe()).slots == 7


async def test_it_is_discovered_behind_dead_ports(real):
    async with open_session() as session:
        found = await discover(session, ["http://127.0.0.1:1", real.url])
        assert isinstance(found, LlamaCpp)
        assert await discover(session, ["http://127.0.0.1:1"]) is None


async def test_a_wrong_key_is_told_and_the_right_one_works(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("correct horse\n")
    with start_engine(slots=1, api_key_file=key_file) as real:
        async with in_front_of(real.url, key="wrong") as engine:
            report = await engine.probe()
            assert not report.healthy
            assert "--engine-key-file" in report.error
            refused = await ask(engine, CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 2})
            assert (refused.status, refused.end.outcome) == (401, "done")
        async with in_front_of(real.url, key="correct horse") as engine:
            assert (await engine.probe()).healthy
            assert (await ask(engine, CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 2})).status == 200


async def test_a_chat_streams_whole_events_with_usage(real):
    async with in_front_of(real.url) as engine:
        out = await ask(engine, CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 5, "ignore_eos": True, "stream": True})
    assert (out.status, out.content_type) == (200, "text/event-stream")
    assert all(piece.endswith(b"\n\n") for piece in out.pieces)
    assert out.body.count(b"[DONE]") == 1
    usage = out.chunks[-1]["usage"]
    end = out.end
    assert (end.outcome, end.finish, end.usage.completion, end.usage.source) == ("done", "length", 5, "engine")
    assert (end.usage.prompt, end.usage.cached) == (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
    assert (end.events, end.bytes) == (len(out.chunks), len(out.body))
    assert b"timings_per_token" not in out.body


async def test_a_chat_without_a_stream_is_one_answer(real):
    async with in_front_of(real.url) as engine:
        out = await ask(engine, CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 5, "ignore_eos": True, "stream": False})
    assert (out.status, out.content_type) == (200, "application/json; charset=utf-8")
    assert out.json["object"] == "chat.completion"
    assert out.json["choices"][0]["finish_reason"] == out.end.finish == "length"
    assert out.json["usage"]["completion_tokens"] == out.end.usage.completion == 5


async def test_two_answers_are_counted_as_two(real):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4, "ignore_eos": True, "n": 2}
    async with in_front_of(real.url) as engine:
        outs = [await ask(engine, CHAT, {**body, "stream": stream}) for stream in (True, False)]
        outs += [await ask(engine, COMPLETIONS, {"model": MODEL, "prompt": "a", "max_tokens": 4, "ignore_eos": True, "n": 2})]
    assert [out.end.usage.completion for out in outs] == [8, 8, 8]
    assert [out.end.usage.source for out in outs] == ["engine", "engine", "estimated"]
    assert len(outs[1].json["choices"]) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_completions(real, stream):
    body = {"model": MODEL, "prompt": "one two", "max_tokens": 4, "ignore_eos": True, "stream": stream}
    async with in_front_of(real.url) as engine:
        out = await ask(engine, COMPLETIONS, body)
    assert (out.status, out.end.outcome, out.end.usage.completion, out.end.finish) == (200, "done", 4, "length")
    texts = [choice["text"] for part in (out.chunks if stream else [out.json]) for choice in part["choices"]]
    assert len("".join(texts).split()) >= 1


async def test_embeddings(real):
    async with in_front_of(real.url) as engine:
        out = await ask(engine, EMBEDDINGS, {"model": MODEL, "input": ["one", "two three"], "stream_options": None})
    assert len(out.json["data"]) == 2
    assert out.end.usage.prompt == out.json["usage"]["prompt_tokens"] > 0


async def test_an_answer_that_cannot_be_folded_faithfully_is_asked_for_in_one_piece(real):
    """Bytes that are no whole character are kept back in a stream and shown in a plain answer."""
    broken = {"model": MODEL, "messages": HELLO, "max_tokens": 4, "logit_bias": [[(await token_of(real, "\u00e9"))[0], 100]]}
    async with in_front_of(real.url) as engine:
        out = await ask(engine, CHAT, broken)
    assert "\ufffd" in out.json["choices"][0]["message"]["content"]
    assert out.end.outcome == "done"


async def test_too_long_a_prompt_is_the_callers_fault(real):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 4000}], "stream": True}
    async with in_front_of(real.url) as engine:
        out = await ask(engine, CHAT, body)
    assert (out.status, out.json["error"]["type"]) == (400, "exceed_context_size_error")
    assert (out.end.outcome, out.end.status, out.end.usage) == ("done", 400, None)


async def test_a_5xx_that_is_the_callers_fault_becomes_a_400(real):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    async with in_front_of(real.url) as engine:
        assert (await ask(engine, CHAT, {"model": MODEL, "messages": [{"role": "user", "content": [image]}]})).status == 400


async def test_a_foreign_model_and_a_foreign_address_do_not_reach_it(real):
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
    async with in_front_of(real.url) as engine:
        unknown = await ask(engine, CHAT, {"model": "gpt-4", "messages": HELLO})
        fetched = await ask(engine, CHAT, {"model": MODEL, "messages": [{"role": "user", "content": [image]}]})
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert (fetched.status, fetched.json["error"]["code"]) == (400, "unsupported_media_url")


async def test_a_full_engine_is_busy(slow):
    async with in_front_of(slow.url, slots=1) as engine:
        out = Kept()
        task = asyncio.create_task(carry(engine, Ask(CHAT, {"model": MODEL, "messages": HELLO, "max_tokens": 1500, "stream": True}), out))
        await out.until(lambda kept: bool(kept.pieces))
        second = Kept()
        await carry(engine, Ask(CHAT, {"model": MODEL, "messages": HELLO}), second)
        assert (second.end.outcome, second.status) == ("busy", 0)
        await stop(task)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancel_frees_the_slot_within_a_second(slow, stream):
    async with in_front_of(slow.url) as engine:
        out = Kept()
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 1900, "stream": stream}
        task = asyncio.create_task(carry(engine, Ask(CHAT, body), out))
        if stream:
            await out.until(lambda kept: len(kept.pieces) >= 3)
        else:
            await until_busy(slow.url, 1)
        started = asyncio.get_running_loop().time()
        task.cancel()
        await until_busy(slow.url, 0)
        assert asyncio.get_running_loop().time() - started < 1
        await stop(task)
    assert engine.running == 0
    assert (out.end.outcome, out.end.usage.source) == ("cancelled", "counted")
    spoken = [chunk for chunk in out.chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("content")]
    assert out.end.usage.completion == len(spoken) if stream else not out.pieces


async def test_a_cancelled_plain_call_is_closed_only_when_its_slot_is_free(slow):
    """The engine notices after a second of silence, so the agent must not look too often."""
    async with in_front_of(slow.url) as engine:
        out = Kept()
        task = asyncio.create_task(carry(engine, Ask(COMPLETIONS, {"model": MODEL, "prompt": "a", "max_tokens": 1900}), out))
        await until_busy(slow.url, 1)
        await stop(task)
        assert (out.status, out.end.outcome, engine.running) == (0, "cancelled", 0)
        async with asyncio.timeout(0.5):
            await until_busy(slow.url, 0)


async def test_a_cancel_waits_for_its_own_slot_only(slow):
    """While another request runs, one busy slot is what is expected."""
    async with in_front_of(slow.url) as engine:
        outs = [Kept(), Kept()]
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 1900, "stream": True}
        tasks = [asyncio.create_task(carry(engine, Ask(CHAT, body), out)) for out in outs]
        for out in outs:
            await out.until(lambda kept: bool(kept.pieces))
        await stop(tasks[0])
        assert outs[0].end.outcome == "cancelled"
        assert outs[1].closed is None
        await stop(tasks[1])
    assert outs[1].end.outcome == "cancelled"


async def test_a_paused_reader_pauses_the_engine_and_loses_nothing(real):
    async with in_front_of(real.url) as engine:
        out = Kept()
        out.gate.clear()
        body = {"model": MODEL, "messages": HELLO, "max_tokens": 300, "ignore_eos": True, "stream": True}
        task = asyncio.create_task(carry(engine, Ask(CHAT, body, idle=0.05), out))
        await out.until(lambda kept: bool(kept.pieces))
        await until_busy(real.url, 0)
        assert out.closed is None
        out.gate.set()
        await asyncio.wait_for(task, PATIENCE)
    assert (out.end.outcome, out.end.usage.completion) == ("done", 300)


async def test_an_engine_killed_in_the_middle_fails_the_answer():
    with start_engine(slots=1, shape=SLOW) as real:
        async with in_front_of(real.url) as engine:
            out = Kept()
            body = {"model": MODEL, "messages": HELLO, "max_tokens": 1900, "stream": True}
            task = asyncio.create_task(carry(engine, Ask(CHAT, body), out))
            await out.until(lambda kept: len(kept.pieces) >= 2)
            real.kill()
            await asyncio.wait_for(task, PATIENCE)
            assert (out.end.outcome, out.end.code) == ("failed", "engine_error")
            assert out.end.usage.source == "counted"
            assert out.body.endswith(b"\n\n")
            gone = await ask(engine, CHAT, body)
            assert (gone.status, gone.end.outcome, gone.end.code) == (0, "failed", "engine_unreachable")
            report = await engine.probe()
            assert not report.healthy
            assert report.error


async def test_others_on_the_same_engine_are_seen():
    with start_engine(slots=2, shape=ENDLESS, context=2 * 8000) as real:
        async with in_front_of(real.url) as engine, in_front_of(real.url) as other:
            out = Kept()
            body = {"model": MODEL, "messages": HELLO, "max_tokens": 7000, "stream": True}
            task = asyncio.create_task(carry(other, Ask(CHAT, body), out))
            await out.until(lambda kept: bool(kept.pieces))
            assert (await engine.probe()).elsewhere == 1
            await stop(task)


async def test_recognising_nothing_is_unreachable():
    async with open_session() as session:
        with pytest.raises(Unreachable):
            await recognise(session, Place("http://127.0.0.1:1"))


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(asyncio.CancelledError):
            await task


def asked() -> aiohttp.ClientSession:
    """For looks past the agent; a connection that is kept would be one of the engine's few."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def until_busy(url: str, slots: int) -> None:
    """Returns when so many slots are at work. Looks without pause: the tests' streams do not mind."""
    async with asyncio.timeout(PATIENCE), asked() as session:
        while True:
            async with session.get(url + "/slots") as response:
                found = json.loads(await response.read())
            if sum(slot["is_processing"] for slot in found) == slots:
                return
            await asyncio.sleep(0.01)


async def token_of(real, text: str) -> list[int]:
    async with asked() as session, session.post(real.url + "/tokenize", json={"content": text}) as response:
        return list(json.loads(await response.read())["tokens"])
