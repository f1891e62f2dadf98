"""The running agent: how it finds its engine, and what happens when its disk, its probes or its identity fail. Engines here are FAKES."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from mindgw_agent import engines, errors, identity, serve, status
from mindgw_agent.engines.client import open_session
from mindgw_agent.offer import Offer
from mindgw_agent.settings import Settings, StateDir
from mindgw_agent.stand import NoEngine, Stand
from mindgw_agent.wire import Close, EngineReport, Gpu, Model, Usage
from tests.agent.carrying import fake_engine, says
from tests.agent.gateway import Gateway, gateway

#: Nothing listens there.
NO_ENGINE = "http://127.0.0.1:9"
MODELS = {"GET /v1/models": says({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]})}


@pytest.fixture(autouse=True)
def _no_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


def settings_for(**fields) -> Settings:
    return Settings(agent_id="a1", name="gpu", servers=["http://127.0.0.1:9"], server_identity=bytes(32), **fields)


# -- the engine of the settings ------------------------------------------------------------------------------------------


async def found(**fields) -> tuple[str, str]:
    """Kind and URL of the engine that these settings lead to."""
    async with open_session() as session:
        engine = await serve._finder(session, settings_for(**fields))()
        return engine.kind, engine.client.url


async def test_without_an_address_the_usual_ports_are_looked_at(monkeypatch):
    async with fake_engine(MODELS) as url:
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr(engines, "USUAL_PORTS", {9: "Nobody", port: "Somebody"})
        assert await found() == ("generic", url)
    monkeypatch.setattr(engines, "USUAL_PORTS", {9: "Nobody"})
    with pytest.raises(NoEngine, match=r"usual ports \(9 Nobody\)"):
        await found()


async def test_a_kind_that_the_operator_named_is_believed():
    assert await found(engine_url=NO_ENGINE, engine_kind="vllm") == ("vllm", NO_ENGINE)


@pytest.mark.parametrize("url", [NO_ENGINE, "http://127.0.0.1:9/a?b=c"])
async def test_an_engine_that_does_not_answer_is_none_yet(url):
    with pytest.raises(NoEngine):
        await found(engine_url=url)


async def test_who_names_the_kind_is_believed_where_nothing_is_certain():
    async with fake_engine({}) as url:
        with pytest.raises(errors.Misuse, match="does not list models"):
            await asyncio.to_thread(serve.try_engine, settings_for(engine_url=url))
        said = await asyncio.to_thread(serve.try_engine, settings_for(engine_url=url, engine_kind="generic"))
    assert "does not list models" in said


async def test_an_engine_that_can_be_used_and_none_at_all_are_no_trouble():
    async with fake_engine(MODELS) as url:
        assert await asyncio.to_thread(serve.try_engine, settings_for(engine_url=url)) == ""
    assert await asyncio.to_thread(serve.try_engine, settings_for()) == ""


async def test_an_engine_that_never_answers_may_still_come(monkeypatch):
    monkeypatch.setattr(serve, "PROBE_TIMEOUT", 0.2)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as mute:
        url = f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}"
        assert await asyncio.to_thread(serve.try_engine, settings_for(engine_url=url)) == "no answer within 0 s"


# -- the engine's key ----------------------------------------------------------------------------------------------------


def test_the_engines_key_is_one_line_of_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_text("  sk-engine\n")
    assert serve._engine_key(settings_for(engine_key_file=str(file))) == "sk-engine"
    assert serve._engine_key(settings_for()) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "cannot read"), (b"\xff\xfe", "not plain text"), (b"two words", "does not hold a key"), (b"a\x07b", "does not hold a key")],
)
def test_a_key_file_that_holds_none_is_a_wrong_command(tmp_path, data, words):
    file = tmp_path / "key"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(errors.Misuse, match=words) as wrong:
        serve.check_engine(settings_for(engine_key_file=str(file)))
    assert "two words" not in str(wrong.value)


# -- what fails while it serves --------------------------------------------------------------------------------------------


class FakeEngine:
    """A FAKE: one model on one slot."""

    async def probe(self) -> EngineReport:
        return EngineReport(id="e1", kind="fake", healthy=True, slots=1, models=[Model("m")])


async def here() -> FakeEngine:
    return FakeEngine()


async def carry(engine, request, out) -> None:
    raise AssertionError("nothing is asked here")


@asynccontextmanager
async def serving(directory: Path, doing=carry, **more) -> AsyncIterator[tuple[Gateway, StateDir, "asyncio.Task[int]"]]:
    """An enrolled agent whose link to a gateway is up."""
    async with gateway(b"") as server:
        state = StateDir(directory)
        server.public_key = identity.public_half(state.obtain_key())
        fields = {"servers": [server.root], "server_identity": identity.public_half(server.identity)}
        settings = msgspec.structs.replace(settings_for(), **fields)
        state.save(settings)
        task = asyncio.create_task(serve.serve(state, settings, Offer([Stand(here)], doing, **more)))
        try:
            await server.until(lambda: server.link is not None)
            yield server, state, task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.AgentError):
                await task


async def said(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async with asyncio.timeout(10):
        while words not in caplog.text:
            await asyncio.sleep(0.005)


async def test_a_probe_that_fails_is_logged_and_made_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(serve, "PROBE_EVERY", 0.02)
    monkeypatch.setattr(serve, "PROBE_SOONEST", 0.01)
    calls = 0

    def gpus() -> list[Gpu]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the driver is gone")
        return [Gpu(name="G")] if calls > 2 else []

    async with serving(tmp_path, gpus=gpus) as (server, _, task):
        await said(caplog, "the driver is gone")
        assert "a probe failed" in caplog.text
        await server.until(lambda: server.reports[-1].gpus)
        assert not task.done()


async def test_a_status_that_cannot_be_written_does_not_end_it(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "mindgw.agent")
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "status.json").mkdir()
    async with serving(directory) as (server, _, task):
        await said(caplog, "cannot write")
        assert server.link is not None
        assert not task.done()


async def test_an_agent_whose_identity_is_removed_does_not_come_back(tmp_path):
    async with serving(tmp_path) as (server, state, task):
        state.settings_file.unlink()
        await server.socket.close()
        with pytest.raises(errors.NotEnrolled, match="was removed"):
            await asyncio.wait_for(task, 10)
        assert server.epochs == [1]


async def test_a_cancelled_agent_is_no_agent_that_drained(tmp_path):
    async with serving(tmp_path) as (_, _, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_disk_that_is_full_is_told_to_the_server_and_to_people_until_it_is_not(tmp_path, caplog, monkeypatch):
    """The link stays up: nothing that is answered now could be billed."""
    caplog.set_level(logging.INFO, "mindgw.agent")
    monkeypatch.setattr(serve, "PROBE_EVERY", 0.02)
    monkeypatch.setattr(serve, "PROBE_SOONEST", 0.01)
    real = os.pwrite

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def pays(engine, request, out) -> None:
        close = Close("done", usage=Usage(1, 2), status=200)
        out.bill(close)
        out.close(close)

    async with serving(tmp_path, doing=pays) as (server, state, _):
        monkeypatch.setattr(os, "pwrite", full)
        assert (await asyncio.wait_for(server.ask().close, 5)).outcome == "done"
        await server.until(lambda: not server.reports[-1].engines[0].healthy)
        assert "No space left" in server.reports[-1].engines[0].error
        assert (await asyncio.wait_for(server.ask().close, 5)).code == "draining"
        await shown(state, lambda seen: seen.receipts == 1 and "No space left" in seen.error)
        monkeypatch.setattr(os, "pwrite", real)
        await server.until(lambda: server.reports[-1].engines[0].healthy and server.kept)
        await shown(state, lambda seen: (seen.receipts, seen.error) == (0, ""))
    assert "receipts are kept again" in caplog.text
    assert state.outbox_file.stat().st_mode & 0o777 == 0o600
    state.forget()
    assert not state.outbox_file.exists()


async def shown(state: StateDir, true) -> None:
    """Until the status of the running agent says so."""
    async with asyncio.timeout(10):
        while not true(status.read(state)):
            await asyncio.sleep(0.01)


async def test_an_agent_that_served_before_and_lost_its_receipts_says_so(tmp_path):
    async with serving(tmp_path) as (server, state, task):
        await server.until(lambda: server.batches)
        assert server.batches[0].gap == ""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        state.outbox_file.unlink()
        again = asyncio.create_task(serve.serve(state, state.load(), Offer([Stand(here)], carry)))
        await server.until(lambda: server.batches[-1].gap == "the outbox was missing")
        assert server.batches[-1].clear
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
