"""The agent's way to a server: greeting, requests, ends, and coming back."""

import asyncio
import logging
from typing import Any

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import serve as listen

from mindgw_agent import address, errors, identity, link, serve, tunnel, wire
from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.offer import Offer
from mindgw_agent.stand import NoEngine, Stand
from mindgw_agent.tunnel import connect_once, delay, keep_connected
from mindgw_agent.wire import Close, EngineReport, Goodbye, Model
from tests.agent.gateway import gateway
from tests.agent.linked import Agent, FakeEngine, connected, echo

WINDOW = wire.WINDOW


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_anything_up_to_a_range_that_doubles_to_twenty_seconds(tries: int, roll: float) -> None:
    assert 0 <= delay(tries, roll) <= min(20, 2 ** min(tries, 5))


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 1e6))
def test_a_server_that_says_when_is_taken_at_its_word(tries: int, roll: float, after: float) -> None:
    assert after <= delay(tries, roll, after) <= after + max(1.0, min(after, 20.0))


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_delays_are_spread_over_the_whole_range(tries: int, first: float, second: float) -> None:
    assert abs(delay(tries, first) - delay(tries, second)) == pytest.approx(abs(first - second) * min(20, 2 ** min(tries, 5)))


async def test_the_epoch_is_kept_before_the_proof_and_the_report_comes_with_it() -> None:
    async with connected() as (server, agent):
        assert server.epochs == agent.saved == [1]
        assert [model.id for model in server.reports[0].engines[0].models] == ["m"]
        assert agent.tunnel.error == ""


async def test_a_request_is_carried_and_its_tag_comes_back() -> None:
    async with connected() as (server, _):
        body = b"x" * 300_000
        ear = server.ask(body)
        close = await asyncio.wait_for(ear.close, 5)
        assert (ear.status, ear.body, close.outcome, close.tag) == (200, body, "done", b"bill")


async def test_a_request_for_an_engine_that_is_not_here_is_refused_before_anything_else() -> None:
    async with connected() as (server, agent):
        for name, outcome in [("e2", ("failed", "refused")), ("e1", ("done", "")), ("", ("done", ""))]:
            close = await asyncio.wait_for(server.ask(engine=name).close, 5)
            assert (close.outcome, close.code, close.tag) == (*outcome, b"bill")
        agent.engine.report = EngineReport(id="e1", kind="fake", healthy=False, slots=0)
        await agent.offer.probe()
        close = await asyncio.wait_for(server.ask(engine="e2").close, 5)
        assert (close.outcome, close.code) == ("failed", "refused")


async def test_a_request_over_the_slots_is_busy_at_once() -> None:
    free = asyncio.Event()

    async def wait(engine: FakeEngine, request: Request, out: Outlet) -> None:
        await free.wait()
        await echo(engine, request, out)

    async with connected(wait) as (server, _):
        ears = [server.ask() for _ in range(3)]
        close = await asyncio.wait_for(ears[2].close, 5)
        assert (close.outcome, close.tag) == ("busy", b"bill")
        free.set()
        assert [(await asyncio.wait_for(ear.close, 5)).outcome for ear in ears[:2]] == ["done", "done"]


async def test_a_cancelled_request_is_closed_once_the_engine_let_go_and_not_before() -> None:
    started, let_go = asyncio.Event(), asyncio.Event()

    async def hold(engine: FakeEngine, request: Request, out: Outlet) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()

    async with connected(hold) as (server, agent):
        ear = server.ask()
        await asyncio.wait_for(started.wait(), 5)
        server.link.cancel(ear.stream)
        other = server.ask()
        server.link.cancel(ear.stream)
        assert agent.offer.running >= 1
        assert not ear.close.done()
        let_go.set()
        assert (await asyncio.wait_for(ear.close, 5)).outcome == "cancelled"
        assert not other.close.done()


async def test_neither_a_lost_link_nor_a_second_cancel_cuts_the_wait_for_the_engine_short() -> None:
    started, let_go, forced = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(engine: FakeEngine, request: Request, out: Outlet) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                forced.set()
                raise

    async with connected(hold) as (server, agent):
        ear = server.ask()
        await asyncio.wait_for(started.wait(), 5)
        server.link.cancel(ear.stream)
        while not [task for task in agent.offer.at_work if task.cancelling()]:
            await asyncio.sleep(0.005)
        server.socket.transport.abort()
        await server.until(lambda: len(server.epochs) == 2 and server.link is not None)
        assert (agent.offer.running, forced.is_set()) == (1, False)
        await agent.offer.stop(0.01)
        assert forced.is_set()
        assert agent.offer.running == 0


async def test_stopping_waits_for_an_engine_that_lets_go_in_time() -> None:
    started, let_go = asyncio.Event(), asyncio.Event()

    async def hold(engine: FakeEngine, request: Request, out: Outlet) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
            out.close(Close("cancelled", message="free"))

    async with connected(hold) as (server, agent):
        ear = server.ask()
        await asyncio.wait_for(started.wait(), 5)
        server.link.cancel(ear.stream)
        while not [task for task in agent.offer.at_work if task.cancelling()]:
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(agent.offer.stop(5))
        await asyncio.sleep(0)
        let_go.set()
        await stopping
        assert (await asyncio.wait_for(ear.close, 5)).message == "free"


async def test_a_request_that_is_cancelled_before_it_began_frees_its_slot() -> None:
    async with connected() as (server, agent):
        ear = server.ask()
        server.link.cancel(ear.stream)
        await asyncio.wait_for(ear.close, 5)
        for _ in range(5):
            ear = server.ask()
            assert (await asyncio.wait_for(ear.close, 5)).outcome == "done"
        assert agent.offer.running == 0


async def test_a_defect_in_an_exchange_ends_that_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(engine: FakeEngine, request: Request, out: Outlet) -> None:
        raise RuntimeError("a defect")

    async with connected(fail) as (server, _):
        ear = server.ask()
        close = await asyncio.wait_for(ear.close, 5)
        assert (close.outcome, close.code, close.tag) == ("failed", "engine_error", b"bill")
        assert server.link is not None
    assert "a defect" in caplog.text


async def test_a_reader_that_pauses_stops_the_engine_from_being_read() -> None:
    read = 0

    async def pour(engine: FakeEngine, request: Request, out: Outlet) -> None:
        nonlocal read
        out.head(200, "text/event-stream", b"")
        for _ in range(64):
            await out.writable()
            out.data(b"x" * 16_384)
            read += 16_384
        out.close(Close("done"))

    async with connected(pour) as (server, _):
        ear = server.ask(paused=True)
        await server.until(lambda: len(ear.body) == WINDOW)
        assert read <= 2 * WINDOW
        ear.read()
        await asyncio.wait_for(ear.close, 5)
        assert (len(ear.body), read) == (64 * 16_384, 64 * 16_384)


async def test_a_lost_link_cancels_its_requests_and_comes_back_under_the_next_epoch() -> None:
    cancelled = asyncio.Event()

    async def hold(engine: FakeEngine, request: Request, out: Outlet) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with connected(hold) as (server, agent):
        ear = server.ask()
        while not agent.offer.running:
            await asyncio.sleep(0.005)
        server.socket.transport.abort()
        assert await asyncio.wait_for(ear.close, 5) is None
        await asyncio.wait_for(cancelled.wait(), 5)
        await server.until(lambda: len(server.epochs) == 2 and server.link is not None)
        assert (server.epochs, agent.saved) == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"), [("revoked", errors.Dismissed, 4), ("locked", errors.Dismissed, 4), ("replaced", errors.Occupied, 7)]
)
@pytest.mark.parametrize("when", ["at the door", "while connected"])
async def test_an_agent_that_is_sent_away_for_good_says_why(code: str, kind: type[errors.AgentError], exit_code: int, when: str) -> None:
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)
        if when == "at the door":
            server.refusal = Goodbye(code, "because")
        running = asyncio.create_task(keep_connected(agent.tunnel, [agent.address], None))
        if when == "while connected":
            await server.until(lambda: server.link is not None)
            server.link.goodbye(code, "because")
        with pytest.raises(kind, match="because") as caught:
            await asyncio.wait_for(running, 5)
        assert (caught.value.exit_code, caught.value.code) == (exit_code, code)
        assert caught.value.hint


async def test_a_server_that_goes_away_is_tried_again_when_it_said_and_not_before() -> None:
    async with connected() as (server, agent):
        clock = asyncio.get_running_loop().time
        server.link.goodbye("draining", "restart", 0.2)
        await server.until(lambda: server.link is None)
        gone = clock()
        await server.until(lambda: len(server.epochs) == 2)
        assert clock() - gone >= 0.15
        assert agent.saved == [1, 2]


async def test_a_server_with_another_identity_gets_no_proof() -> None:
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)
        server.identity = identity.new_key()
        ended = await connect_once(agent.tunnel, agent.address, None)
        assert (server.reports, agent.saved) == ([], [])
        assert "could not prove" in ended.error


async def test_over_tls_the_pinned_ca_alone_vouches_for_the_server() -> None:
    authority, other = trustme.CA(), trustme.CA()
    key = identity.new_key()
    async with gateway(identity.public_half(key), authority=authority) as server:
        agent = Agent(server, key, echo)
        ended = await connect_once(agent.tunnel, agent.address, identity.pinned_context(other.cert_pem.bytes()))
        assert "is not the server that this agent joined" in ended.error
        assert server.greetings == 0
        context = identity.pinned_context(authority.cert_pem.bytes())
        running = asyncio.create_task(keep_connected(agent.tunnel, [agent.address], context))
        await server.until(lambda: server.link is not None)
        agent.tunnel.leave()
        await asyncio.wait_for(running, 5)


async def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GREETING", 0.1)
    monkeypatch.setattr(link, "TICK", 0.02)
    quiet = asyncio.Event()

    async def silent(socket) -> None:
        await quiet.wait()

    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server, listen(silent, "127.0.0.1", 0, subprotocols=[wire.SUBPROTOCOL]) as mute:
        agent = Agent(server, key, echo)
        where = address.parse(f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}")
        ended = await asyncio.wait_for(connect_once(agent.tunnel, where, None), 5)
        quiet.set()
    assert (ended.lived, ended.error) == (0.0, "the server fell silent")


async def test_a_redirect_is_not_followed() -> None:
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            target = server.root.replace("http", "ws").encode() + b"/agent/v1/link"
            writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(redirect, "127.0.0.1", 0) as elsewhere:
            where = address.parse(f"http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}")
            ended = await connect_once(agent.tunnel, where, None)
        assert "status 307" in ended.error
        assert server.greetings == 0


@pytest.mark.parametrize("garbage", [b"", b"x", b"\0" * 10, b"\0\0\0\0\0\0\0\0\x05\0", "text", b"\xff" * 2000])
async def test_garbage_from_a_server_ends_the_link_and_nothing_else(garbage: bytes | str) -> None:
    async def speak(socket) -> None:
        await socket.send(garbage)
        await socket.wait_closed()

    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server, listen(speak, "127.0.0.1", 0, subprotocols=[wire.SUBPROTOCOL]) as odd:
        agent = Agent(server, key, echo)
        where = address.parse(f"http://127.0.0.1:{odd.sockets[0].getsockname()[1]}")
        ended = await asyncio.wait_for(connect_once(agent.tunnel, where, None), 5)
    assert ended.error
    assert ended.lived == 0.0


async def test_a_drain_finishes_what_runs_and_takes_nothing_more() -> None:
    free = asyncio.Event()

    async def wait(engine: FakeEngine, request: Request, out: Outlet) -> None:
        await free.wait()
        await echo(engine, request, out)

    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, wait)
        await agent.offer.probe()
        running = asyncio.create_task(keep_connected(agent.tunnel, [agent.address], None))
        await server.until(lambda: server.link is not None)
        first = server.ask(b"first")
        while not agent.offer.running:
            await asyncio.sleep(0.005)
        agent.tunnel.leave()
        await server.until(lambda: server.drained)
        second = server.ask(b"second")
        refused = await asyncio.wait_for(second.close, 5)
        assert (refused.outcome, refused.code) == ("failed", "draining")
        free.set()
        assert (await asyncio.wait_for(first.close, 5)).outcome == "done"
        await asyncio.wait_for(running, 5)


async def test_an_idle_agent_and_one_without_a_server_leave_at_once() -> None:
    async with connected() as (_, agent):
        agent.tunnel.leave()
        while agent.tunnel.link is not None:
            await asyncio.sleep(0.005)
    key = identity.new_key()
    async with gateway(identity.public_half(key)) as server:
        agent = Agent(server, key, echo)
    running = asyncio.create_task(keep_connected(agent.tunnel, [agent.address], None, lambda: 0.999))
    while not agent.tunnel.error:
        await asyncio.sleep(0.005)
    agent.tunnel.leave()
    await asyncio.wait_for(running, 1)
    assert "cannot reach" in agent.tunnel.error


async def test_reports_leave_when_something_changed_and_now_and_then() -> None:
    async with connected() as (server, agent):
        now = asyncio.get_running_loop().time()
        told = len(server.reports)
        await agent.offer.probe()
        assert not agent.offer.is_news(now)
        assert agent.offer.is_news(now + 31)
        agent.engine.report = EngineReport(id="e1", kind="fake", healthy=False, slots=2, error="gone")
        await agent.offer.probe()
        agent.tunnel.link.report(now)
        await server.until(lambda: len(server.reports) > told)
        assert server.reports[-1].engines[0].error == "gone"
        assert server.reports[-1].serial > server.reports[0].serial


async def test_an_engine_that_a_request_did_not_reach_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PROBE_EVERY", 3600.0)
    monkeypatch.setattr(serve, "PROBE_SOONEST", 0.01, raising=False)

    async def fail(engine: FakeEngine, request: Request, out: Outlet) -> None:
        engine.report = EngineReport(id="e1", kind="fake", healthy=False, slots=2, error="gone")
        out.close(Close("failed", "engine_unreachable", "gone"))

    async with connected(fail) as (server, agent):
        probing = asyncio.create_task(serve.keep_probing(agent.tunnel))
        try:
            assert (await asyncio.wait_for(server.ask().close, 5)).code == "engine_unreachable"
            await server.until(lambda: not server.reports[-1].engines[0].healthy)
            assert server.reports[-1].engines[0].error == "gone"
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)


async def test_an_engine_that_is_not_there_is_an_unhealthy_report_and_looked_for_again() -> None:
    engine = FakeEngine()
    found: list[FakeEngine] = []

    async def find() -> FakeEngine:
        if not found:
            raise NoEngine("nothing listens")
        return found[0]

    offer: Offer[FakeEngine] = Offer([Stand(find, url="http://127.0.0.1:1")], echo)
    await offer.probe()
    assert (offer.seen.healthy, offer.seen.error, offer.seen.models, offer.slots) == (False, "nothing listens", [], 0)
    found.append(engine)
    await offer.probe()
    assert (offer.seen.healthy, offer.slots) == (True, 2)


async def test_the_log_tells_of_an_engine_when_it_changed_and_else_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mindgw.agent")
    engine = FakeEngine()

    async def find() -> FakeEngine:
        return engine

    offer: Offer[FakeEngine] = Offer([Stand(find)], echo)

    async def seen(**fields: Any) -> list[tuple[str, str]]:
        """What the log says of two probes after this change."""
        engine.report = msgspec.structs.replace(engine.report, url="http://e", **fields)
        caplog.clear()
        for _ in range(2):
            await offer.probe()
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    assert await seen() == [("INFO", "engine http://e: fake, slots: 2, models: m")]
    assert await seen(version="1.2") == [("INFO", "engine http://e: fake 1.2, slots: 2, models: m")]
    assert await seen(slots=3) == [("INFO", "engine http://e: fake 1.2, slots: 3, models: m")]
    assert await seen(models=[Model("m"), Model("n")]) == [("INFO", "engine http://e: fake 1.2, slots: 3, models: m, n")]
    assert await seen(models=[Model("n", loaded=False), Model("m", context=7)], elsewhere=2) == []
    assert await seen(healthy=False, models=[], error="gone") == [("WARNING", "engine http://e: gone")]
    assert await seen(error="still gone") == [("WARNING", "engine http://e: still gone")]
    many = [Model(f"m{number}") for number in range(12)]
    [(level, line)] = await seen(healthy=True, models=many, error="", kind="other")
    assert level == "INFO"
    assert line.startswith("engine http://e: other 1.2, slots: 3, models: m0, ")
    assert line.endswith("m9 and 2 more")
    assert await seen(models=[]) == [("INFO", "engine http://e: other 1.2, slots: 3, models: none")]


async def test_an_agent_without_a_ca_does_not_believe_the_systems_for_a_server(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, key = trustme.CA(), identity.new_key()
    authority.cert_pem.write_to_path(str(tmp_path / "system.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    async with gateway(identity.public_half(key), authority=authority) as server:
        agent = Agent(server, key, echo)
        ended = await asyncio.wait_for(connect_once(agent.tunnel, agent.address, None), 5)
        assert "no pinned CA" in ended.error
        assert server.greetings == 0


def test_the_last_range_is_the_one_that_is_documented() -> None:
    assert (tunnel.FIRST_DELAY, tunnel.LAST_DELAY) == (1.0, 20.0)
