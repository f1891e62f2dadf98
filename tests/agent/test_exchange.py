"""FAKE engines that misbehave, each in one way: whatever they do, one request ends in one `Close` that says what happened."""

import asyncio
import gc
import json

import pytest
from aiohttp import web

from mindgw_agent import engines, exchange
from mindgw_agent.engines.client import Client, open_session
from mindgw_agent.engines.engine import Engine
from mindgw_agent.engines.sglang import SgLang
from mindgw_agent.engines.vllm import Vllm
from mindgw_agent.exchange import carry
from tests.agent import playing
from tests.agent.carrying import (
    CHAT,
    DONE,
    EMBEDDINGS,
    HELLO,
    PATIENCE,
    USAGE,
    Ask,
    Kept,
    ask,
    chunk,
    event,
    fake_engine,
    says,
    streams,
)

STREAM = {"model": "m", "messages": HELLO, "stream": True}
PLAIN = {"model": "m", "messages": HELLO}
GOOD = [chunk("a "), chunk("b"), chunk(finish="stop"), USAGE, DONE]
ANSWER = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


async def sent(handler, body=STREAM, kind: type[Engine] = Vllm, path: str = CHAT, **meta) -> Kept:
    """Carry one request to a FAKE engine with this handler."""
    async with fake_engine({f"POST {path}": handler}) as url, open_session() as session:
        return await ask(kind(Client(session, url, meta.pop("key", "")), slots=3), path, body, **meta)


async def test_a_good_stream_passes_as_it_came():
    out = await sent(streams(*GOOD))
    assert out.body == b"".join(GOOD)
    assert (out.end.outcome, out.end.finish, out.end.events, out.end.bytes) == ("done", "stop", 4, len(out.body))
    assert (out.end.usage.prompt, out.end.usage.completion, out.end.usage.source) == (7, 2, "engine")


async def test_a_plain_answer_passes_as_it_came():
    out = await sent(says(ANSWER), PLAIN)
    assert (out.json, out.status, out.end.finish, out.end.usage.completion) == (ANSWER, 200, "stop", 2)


async def test_a_large_plain_answer_leaves_in_pieces():
    answer = {"data": [{"embedding": "A" * 300_000}], "usage": {"prompt_tokens": 3}}
    out = await sent(says(answer), {"model": "m", "input": "x"}, path=EMBEDDINGS)
    assert out.json == answer
    assert max(map(len, out.pieces)) <= exchange.PIECE
    assert (out.end.usage.prompt, out.end.usage.completion) == (3, 0)


@pytest.mark.parametrize("cut", [1, 7, 20, 33])
async def test_events_cut_anywhere_leave_whole(cut):
    """Split UTF-8 among them."""
    raw = b"".join([chunk("€uro "), *GOOD])
    out = await sent(streams(*(raw[start : start + cut] for start in range(0, len(raw), cut))))
    assert out.body == raw
    assert all(piece.endswith(b"\n\n") for piece in out.pieces)


async def test_crlf_comments_and_event_lines_pass():
    parts = [*(b": hello\r\n\r\nevent: chunk\r\n" + part.replace(b"\n", b"\r\n") for part in GOOD)]
    out = await sent(streams(*parts))
    assert out.body == b"".join(parts)
    assert (out.end.outcome, out.end.events, out.end.usage.completion) == ("done", 4, 2)


async def test_an_event_of_a_mebibyte_passes():
    big = chunk("x" * 2**20)
    out = await sent(streams(big[:100_000], big[100_000:], *GOOD))
    assert out.body == big + b"".join(GOOD)


async def test_an_endless_event_is_refused():
    out = await sent(streams(b"data: {", *[b"x" * 2**20] * 9))
    assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "engine_protocol")


async def test_nothing_follows_the_end_mark():
    out = await sent(streams(*GOOD[:-1], DONE + chunk("more"), chunk("and more")))
    assert out.body == b"".join(GOOD)
    assert out.end.outcome == "done"


async def test_a_stream_without_end_mark_is_whole_when_its_reason_came():
    assert (await sent(streams(*GOOD[:-1]))).end.outcome == "done"


async def test_a_stream_without_reason_is_cut_even_with_the_end_mark():
    for parts in ([chunk("a")], [chunk("a"), DONE], [chunk("a"), chunk("b")[:-9]]):
        out = await sent(streams(*parts))
        assert (out.end.outcome, out.end.code, out.end.usage.source) == ("failed", "engine_error", "counted")
        assert out.body.startswith(chunk("a"))
        assert out.body.endswith(b"\n\n")


async def test_an_unknown_engine_may_leave_the_reason_out():
    out = await sent(streams(chunk("a"), DONE), kind=engines.KINDS["generic"])
    assert (out.end.outcome, out.end.usage.source) == ("done", "estimated")


async def test_all_answers_must_end():
    out = await sent(streams(chunk("a"), chunk(finish="stop")), STREAM | {"n": 2})
    assert out.end.outcome == "failed"


async def test_an_error_inside_a_stream_is_the_last_event():
    error = event({"error": {"message": "out of memory", "code": 500}})
    out = await sent(streams(chunk("a"), error, DONE))
    assert out.body == chunk("a") + error
    assert (out.end.outcome, out.end.code, out.end.message) == ("failed", "engine_error", "out of memory")


async def test_words_about_errors_are_no_errors():
    parts = [chunk('"error"'), chunk("error"), chunk('{"usage":{"prompt_tokens":1}}'), *GOOD]
    out = await sent(streams(*parts))
    assert (out.end.outcome, out.end.usage.prompt) == ("done", 7)


@pytest.mark.parametrize("part", [b"data: oops\n\n", b"data: {oops}\n\n", b"data: [1]\n\n", b"data: \xff\xfe\n\n", b"data:\n\n"])
async def test_garbage_in_events_fails_before_the_head(part):
    out = await sent(streams(part, *GOOD))
    assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "engine_protocol")


async def test_garbage_after_good_events_fails_the_answer():
    out = await sent(streams(chunk("a"), b"data: <html>\n\n", *GOOD))
    assert (out.body, out.end.outcome, out.end.code) == (chunk("a"), "failed", "engine_protocol")


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b": ping\n\n", b"no events at all"])
async def test_an_empty_stream_fails(content):
    out = await sent(streams(content))
    assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "engine_protocol")


async def test_html_instead_of_an_answer_fails():
    page = streams(b"<html>hi</html>", content_type="text/html")
    for body in (STREAM, PLAIN):
        out = await sent(page, body)
        assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "engine_protocol")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a":', b"\xff"])
async def test_a_plain_answer_that_is_no_object_fails(body):
    out = await sent(streams(body, content_type="application/json"), PLAIN)
    assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "engine_protocol")


@pytest.mark.parametrize(("status", "text"), [(500, '{"error":"boom"}'), (404, "<html>"), (400, ""), (422, "{}"), (502, "\x00")])
async def test_an_error_answer_passes_with_its_status(status, text):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type="text/html")

    for body in (STREAM, PLAIN):
        out = await sent(handler, body)
        assert (out.status, out.body.decode(), out.end.outcome, out.end.status) == (status, text, "done", status)
        assert out.end.usage is None


async def test_redirects_are_not_followed():
    reached = []

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.json_response(ANSWER)

    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with fake_engine({f"POST {CHAT}": handler, "POST /elsewhere": elsewhere}) as url, open_session() as session:
        out = await ask(Vllm(Client(session, url)), CHAT, PLAIN)
    assert (out.status, out.end.code, reached) == (0, "engine_protocol", [])


async def test_busy_is_said_before_anything_else():
    for kind, handler in [
        (Vllm, says({"error": {"message": "engine is currently busy"}}, 503)),
        (SgLang, streams(event({"error": {"message": "The request queue is full.", "code": 503}}), DONE)),
        (engines.KINDS["ollama"], says({"error": "server busy, please try again.  maximum pending requests exceeded"}, 503)),
        (engines.KINDS["generic"], says({"error": "overloaded"}, 429)),
    ]:
        out = await sent(handler, kind=kind)
        assert (out.status, out.end.outcome) == (0, "busy"), kind
        assert out.end.message


async def test_a_429_of_vllm_is_an_answer():
    assert (await sent(says({}, 429))).status == 429


async def raw_engine(answer: bytes, url_of):
    """A FAKE engine that speaks bytes: it reads a request, sends the answer, closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, open_session() as session:
        port = server.sockets[0].getsockname()[1]
        return await ask(Vllm(Client(session, f"http://127.0.0.1:{port}")), CHAT, url_of)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "engine_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Len", "engine_error"),
        (b"this is not HTTP at all\r\n\r\n", "engine_protocol"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "engine_protocol"),
    ],
)
async def test_a_broken_answer_fails_before_the_head(answer, code):
    out = await raw_engine(answer, STREAM)
    assert (out.status, out.end.outcome) == (0, "failed")
    assert out.end.code in {code, "engine_protocol"}


async def test_connection_close_ends_an_answer_without_length():
    out = await raw_engine(HEAD + b"Connection: close\r\n\r\n" + b"".join(GOOD), STREAM)
    assert (out.body, out.end.outcome) == (b"".join(GOOD), "done")


async def test_a_connection_cut_after_the_reason_is_whole_and_before_it_is_not():
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    cut, whole = chunk("a"), chunk("a") + chunk(finish="stop")
    outs = [await raw_engine(chunked + b"%x\r\n" % len(data) + data + b"\r\n", STREAM) for data in (cut, whole)]
    assert [(out.end.outcome, out.end.code) for out in outs] == [("failed", "engine_error"), ("done", "")]


def silent(*parts: bytes, hold: asyncio.Event):
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        await hold.wait()
        return response

    return handler


async def test_silence_has_an_end():
    hold = asyncio.Event()
    for parts, limits, said in [
        ([], {"first_token": 0.05}, "within 0.05 s"),
        ([b": ping\n\n"], {"first_token": 0.05}, "within 0.05 s"),
        ([chunk("a")], {"idle": 0.05}, "for 0.05 s"),
        ([chunk("a")], {"timeout": 0.1}, "no whole answer within 0.1 s"),
    ]:
        out = await sent(silent(*parts, hold=hold), **limits)
        assert (out.end.outcome, out.end.code) == ("failed", "engine_timeout")
        assert said in out.end.message
    hold.set()


async def test_a_plain_answer_has_the_whole_time():
    """It says nothing until it is complete, so the limit of the first token is not for it."""

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.json_response(ANSWER)

    assert (await sent(handler, PLAIN, first_token=0.02)).end.outcome == "done"


async def test_a_cancel_closes_the_connection_at_once():
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        transport = request.transport
        while transport is not None and not transport.is_closing():
            await asyncio.sleep(0.005)
        gone.set()
        return response

    async with fake_engine({f"POST {CHAT}": handler}) as url, open_session() as session:
        engine, out = Vllm(Client(session, url)), Kept()
        task = asyncio.create_task(carry(engine, Ask(CHAT, STREAM), out))
        await out.until(lambda kept: bool(kept.pieces))
        task.cancel()
        async with asyncio.timeout(1):
            await gone.wait()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (out.end.outcome, out.end.usage.completion, out.end.usage.source, engine.running) == ("cancelled", 1, "counted", 0)


async def test_a_cancel_before_the_head_closes_too():
    hold = asyncio.Event()
    asked = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.set()
        await hold.wait()
        return web.json_response({})

    async with fake_engine({f"POST {CHAT}": handler}) as url, open_session() as session:
        out = Kept()
        task = asyncio.create_task(carry(Vllm(Client(session, url)), Ask(CHAT, PLAIN), out))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
        hold.set()
    assert (out.status, out.end.outcome, out.end.usage.completion) == (0, "cancelled", 0)


class RefusesOptions:
    """A FAKE engine that knows no stream_options."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if "stream_options" in self.bodies[-1]:
            return web.json_response({"error": {"message": "Unrecognized request argument supplied: stream_options"}}, status=400)
        return await streams(*GOOD[:3], DONE)(request)


async def test_an_engine_that_refuses_stream_options_is_asked_once_more_and_remembered():
    fake = RefusesOptions()
    async with fake_engine({f"POST {CHAT}": fake.answer}) as url, open_session() as session:
        engine = Vllm(Client(session, url))
        outs = [await ask(engine, CHAT, STREAM) for _ in range(2)]
    assert ["stream_options" in body for body in fake.bodies] == [True, False, False]
    for out in outs:
        assert (out.status, out.end.outcome) == (200, "done")
        assert (out.end.usage.completion, out.end.usage.source) == (2, "estimated")


async def test_another_400_is_not_repeated():
    calls = []

    async def handler(request: web.Request) -> web.Response:
        calls.append(1)
        return web.json_response({"error": {"message": "bad temperature"}}, status=400)

    out = await sent(handler)
    assert (out.status, len(calls)) == (400, 1)


async def test_only_the_engines_own_key_reaches_it():
    seen = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return web.json_response(ANSWER)

    await sent(handler, PLAIN, key="engine-key", request_id="r-1", traceparent="00-x")
    assert seen["authorization"] == "Bearer engine-key"
    assert seen["x-request-id"] == "r-1"
    allowed = {"host", "authorization", "x-request-id", "accept", "accept-encoding", "content-type", "content-length", "connection"}
    assert set(seen) <= allowed


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "", "é", "x" * 500])
async def test_a_hostile_request_id_is_left_out(name):
    seen = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return web.json_response(ANSWER)

    await sent(handler, PLAIN, request_id=name)
    assert not {"x-request-id", "x-evil"} & set(seen)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions/", "/v1/chat/completions?x=1", "/pause", "//v1/embeddings"])
async def test_other_paths_are_refused(path):
    out = await sent(says({}), PLAIN, path=CHAT)
    assert out.end.outcome == "done"
    async with fake_engine({}) as url, open_session() as session:
        out = await ask(Vllm(Client(session, url)), path, PLAIN)
    assert (out.status, out.end.outcome, out.end.code) == (0, "failed", "refused")


async def test_an_outlet_that_breaks_ends_the_request(caplog):
    class Broken(Kept):
        def data(self, data: bytes) -> None:
            raise KeyError("bug")

    async with fake_engine({f"POST {CHAT}": streams(*GOOD)}) as url, open_session() as session:
        engine, out = Vllm(Client(session, url)), Broken()
        await carry(engine, Ask(CHAT, STREAM), out)
    assert (out.end.outcome, out.end.code, engine.running) == ("failed", "engine_error", 0)
    assert "KeyError" in caplog.text


async def test_a_body_that_is_no_object_never_reaches_the_engine():
    for body in (b"[]", b"{", b'{"n":99}'):
        out = await sent(says({}), body)
        assert (out.status, out.end.outcome) == (400, "done")
        assert set(out.json["error"]) == {"message", "type", "param", "code"}
    assert json.loads(out.body)["error"]["param"] == "n"


class LetsGoLate(Vllm):
    """A FAKE engine that is busy with a request for a while after its connection was closed."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.asked, self.free = asyncio.Event(), asyncio.Event()

    async def until_free(self, answers: int = 1) -> None:
        self.asked.set()
        await self.free.wait()


async def test_a_failed_request_that_is_then_cancelled_holds_its_slot_until_the_engine_is_free():
    async with fake_engine({f"POST {CHAT}": streams(b"data: oops\n\n")}) as url, open_session() as session:
        engine, out = LetsGoLate(Client(session, url)), Kept()
        task = asyncio.create_task(carry(engine, Ask(CHAT, STREAM), out))
        await asyncio.wait_for(engine.asked.wait(), PATIENCE)
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert (out.end.outcome, engine.running) == ("failed", 1)
        engine.free.set()
        await asyncio.wait([task])
        assert (task.cancelled(), engine.running) == (True, 0)


async def test_a_second_cancel_does_not_wait_for_the_engine():
    async with fake_engine({f"POST {CHAT}": streams(b"data: oops\n\n")}) as url, open_session() as session:
        engine, out = LetsGoLate(Client(session, url)), Kept()
        task = asyncio.create_task(carry(engine, Ask(CHAT, STREAM), out))
        await asyncio.wait_for(engine.asked.wait(), PATIENCE)
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
        assert (task.cancelled(), engine.running) == (True, 0)


# -- receipts ------------------------------------------------------------------------------------------------------------


async def cut(handler, ready, body=STREAM, kind: type[Engine] = Vllm, *, full: bool = False) -> Kept:
    """Carry a request to a FAKE engine with this handler and cancel it once it is `ready`; a `full` outlet takes one piece."""
    async with fake_engine({f"POST {CHAT}": handler}) as url, open_session() as session:
        engine, out = kind(Client(session, url), slots=3), Kept()
        if full:
            out.gate.clear()
        task = asyncio.create_task(carry(engine, Ask(CHAT, body), out))
        await out.until(ready)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
    return out


async def test_whatever_reached_the_engine_and_came_to_an_end_has_a_receipt_that_says_the_same():
    for handler, body in [(streams(*GOOD), STREAM), (says(ANSWER), PLAIN), (says({"error": {"message": "no"}}, 400), PLAIN)]:
        out = await sent(handler, body)
        assert out.billed == out.end
        assert out.end.outcome == "done"


async def test_what_failed_has_a_receipt_when_something_was_made():
    out = await sent(streams(chunk("a"), chunk("b")))
    assert out.billed == out.end
    assert (out.end.outcome, out.end.usage.completion, out.end.events, out.end.bytes) == ("failed", 2, 2, len(out.body))
    assert (await sent(streams())).billed is None


async def test_who_was_busy_or_refused_has_none():
    out = await sent(says({"error": {"message": "busy"}}, 503))
    assert (out.end.outcome, out.billed) == ("busy", None)
    out = await sent(says(ANSWER), b"no JSON")
    assert (out.status, out.billed) == (400, None)


async def test_of_an_aborted_answer_counts_what_was_handed_over():
    hold = asyncio.Event()
    out = await cut(silent(chunk("a"), chunk("b"), chunk("c"), hold=hold), lambda kept: kept.body.count(b"data:") == 3)
    assert out.billed == out.end
    assert (out.end.usage.completion, out.end.usage.source, out.end.events, out.end.bytes) == (3, "counted", 3, len(out.body))
    hold.set()


async def test_of_an_answer_that_is_cut_within_a_run_only_whole_runs_count():
    """The first piece of it has left, and the tunnel takes no more."""
    hold = asyncio.Event()
    big = chunk("x" * 3 * exchange.PIECE)
    out = await cut(silent(big, hold=hold), lambda kept: bool(kept.pieces), full=True)
    assert (out.end.usage.completion, out.end.events, out.end.bytes) == (0, 0, exchange.PIECE)
    hold.set()


async def test_the_engines_own_count_stands_when_all_of_it_was_handed_over():
    hold = asyncio.Event()
    counted = chunk("a", usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
    out = await cut(silent(counted, hold=hold), lambda kept: bool(kept.pieces))
    assert (out.end.usage.prompt, out.end.usage.completion, out.end.usage.source) == (7, 5, "engine")
    hold.set()


async def test_of_an_answer_in_one_piece_that_never_came_only_the_prompt_counts():
    """vLLM is asked for a stream, which is folded: its events were handed to nobody."""
    hold, asked = asyncio.Event(), asyncio.Event()
    inner = silent(chunk("a"), chunk("b"), USAGE, hold=hold)

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.set()
        return await inner(request)

    async with fake_engine({f"POST {CHAT}": handler}) as url, open_session() as session:
        out = Kept()
        engine = Vllm(Client(session, url), slots=3)
        task = asyncio.create_task(carry(engine, Ask(CHAT, PLAIN), out))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while engine.running == 0:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
        hold.set()
    assert out.billed == out.end
    assert out.end.usage.prompt > 0
    assert (out.end.usage.completion, out.end.usage.source, out.end.events, out.end.bytes) == (0, "counted", 0, 0)


# -- what stays behind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
async def test_a_request_leaves_nothing_for_the_garbage_collector_and_uses_the_connection_again(body):
    """Counted, not timed: a cycle per request is a sixth of what it costs. The FAKE engine speaks bytes, for its own cycles would count."""
    content = b"".join(GOOD) if body is STREAM else json.dumps(ANSWER).encode()
    kind = b"text/event-stream" if body is STREAM else b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(content))
    async with playing.raw_engine(playing.answers(head + content[:100], content[100:], close=False)) as raw, open_session() as session:
        engine = Vllm(Client(session, raw.url))
        outs = [await ask(engine, CHAT, body)]
        gc.collect()
        gc.disable()
        try:
            for _ in range(30):
                out = Kept()
                await carry(engine, Ask(CHAT, body), out)
                outs.append(out)
            found = gc.collect()
        finally:
            gc.enable()
        assert found < 30, f"{found} objects for 30 requests"
        assert {out.end.outcome for out in outs} == {"done"}
        assert len(raw.callers) == 1


async def test_a_stream_whose_end_follows_its_end_mark_keeps_the_connection():
    async def play(caller, number: int) -> None:
        while True:
            await caller.request()
            await caller.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *(b"%x\r\n%b\r\n" % (len(part), part) for part in GOOD))
            await asyncio.sleep(0.01)
            await caller.say(b"0\r\n\r\n")

    async with playing.raw_engine(play) as raw, open_session() as session:
        engine = Vllm(Client(session, raw.url))
        for _ in range(3):
            assert (await ask(engine, CHAT, STREAM)).end.outcome == "done"
            async with asyncio.timeout(PATIENCE):
                while not len(session.origin(raw.url)):
                    await asyncio.sleep(0.005)
        assert len(raw.callers) == 1


async def test_a_connection_that_cannot_be_made_is_unreachable_and_one_that_breaks_is_not():
    async with open_session() as session:
        async with playing.raw_engine(playing.answers(b"HTTP/1.1 200 O")) as raw:
            engine = Vllm(Client(session, raw.url))
            out = await ask(engine, CHAT, PLAIN)
            assert (out.end.outcome, out.end.code) == ("failed", "engine_error")
        out = await ask(engine, CHAT, PLAIN)
        assert (out.end.outcome, out.end.code, out.billed) == ("failed", "engine_unreachable", None)


async def test_an_outlet_that_stays_full_is_waited_for_no_longer_than_the_whole_may_take():
    hold = asyncio.Event()
    async with fake_engine({f"POST {CHAT}": silent(chunk("a"), chunk("b"), hold=hold)}) as url, open_session() as session:
        engine, out = Vllm(Client(session, url)), Kept()
        out.gate.clear()
        async with asyncio.timeout(PATIENCE):
            await carry(engine, Ask(CHAT, STREAM, timeout=0.2, idle=0.05), out)
        hold.set()
    assert (out.end.outcome, out.end.code) == ("failed", "engine_timeout")
    assert "no whole answer" in out.end.message


async def test_a_stalled_outlet_is_no_silence_of_the_engine():
    resume, hold = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        await resume.wait()
        await response.write(b"".join(GOOD[1:3]))
        await hold.wait()
        return response

    async with fake_engine({f"POST {CHAT}": handler}) as url, open_session() as session:
        engine, out = Vllm(Client(session, url)), Kept()
        out.gate.clear()
        task = asyncio.create_task(carry(engine, Ask(CHAT, STREAM, idle=0.05), out))
        await out.until(lambda kept: bool(kept.pieces))
        await asyncio.sleep(0.15)  # more than it may be silent for
        assert out.closed is None
        resume.set()
        out.gate.set()
        async with asyncio.timeout(PATIENCE):
            await task
        hold.set()
    assert (out.end.code, out.end.finish) == ("engine_timeout", "stop")
    assert "for 0.05 s" in out.end.message
