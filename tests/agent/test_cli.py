"""`mindgw agent` as people and scripts use it: exit codes, what goes where, signals."""

import asyncio
import contextlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trustme

from mindgw_agent import identity, status
from mindgw_agent.cli import main
from mindgw_agent.settings import Settings, StateDir
from tests.agent.carrying import fake_engine, says
from tests.agent.gateway import Gateway, gateway
from tests.e2e.in_between import relay
from tests.server.enrolling import spoilt, world

#: Nothing listens there.
NO_ENGINE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.delenv("MINDGW_JOIN_TOKEN", raising=False)


async def typed(*words: str | Path) -> int:
    return await asyncio.to_thread(main, [str(word) for word in words])


def error_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, str, str]:
    """The three lines on stderr; stdout must be empty."""
    said = capsys.readouterr()
    assert said.out == ""
    error, hint, ref = [line for line in said.err.splitlines() if line.startswith(("error: ", "hint:  ", "ref:   "))]
    return error, hint, ref


async def test_enrolling_says_what_happened_and_json_says_it_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as server:
        token = (await server.token()).encode()
        rc = await typed(
            "agent",
            "join",
            token,
            "--name",
            "gpu",
            "--engine-url",
            NO_ENGINE,
            "--slots",
            "3",
            "--enroll-only",
            "--state-dir",
            tmp_path / "a",
            "--json",
        )
        said = capsys.readouterr()
        assert rc == 0
        settings = StateDir(tmp_path / "a").load()
        assert json.loads(said.out) == {
            "agent_id": settings.agent_id,
            "name": "gpu",
            "server": server.urls[0],
            "state_dir": str(tmp_path / "a"),
        }
        assert "joined" in said.err
        assert (settings.engine_url, settings.slots) == (NO_ENGINE, 3)
        assert token not in said.err + said.out


async def test_a_directory_that_joined_before_ignores_the_token_and_takes_new_engine_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path) as server:
        await typed("agent", "join", (await server.token()).encode(), "--enroll-only", "--state-dir", tmp_path / "a")
        before = StateDir(tmp_path / "a").load()
    assert await typed("agent", "join", "nonsense", "--enroll-only", "--engine-url", NO_ENGINE, "--state-dir", tmp_path / "a") == 0
    assert StateDir(tmp_path / "a").load() == msgspec.structs.replace(before, engine_url=NO_ENGINE)


async def test_another_address_is_kept_once_the_server_there_proved_that_it_is_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        await typed("agent", "join", (await server.token()).encode(), "--enroll-only", "--state-dir", tmp_path / "a")
        with relay(int(server.urls[0].rpartition(":")[2])) as other:
            words = ("agent", "join", "--enroll-only", "--server", f"http://127.0.0.1:{other.port}/v1", "--state-dir", tmp_path / "a")
            assert await typed(*words) == 0
        assert StateDir(tmp_path / "a").load().servers == [f"http://127.0.0.1:{other.port}"]


async def test_another_address_over_tls_is_pinned_before_it_is_kept(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with world(tmp_path, authority=authority) as server:
        await typed("agent", "join", (await server.token()).encode(), "--enroll-only", "--state-dir", tmp_path / "a")
        before = StateDir(tmp_path / "a").load()
        with relay(int(server.urls[0].rpartition(":")[2])) as other:
            words = ("agent", "join", "--enroll-only", "--server", f"https://127.0.0.1:{other.port}", "--state-dir", tmp_path / "a")
            assert await typed(*words) == 0
            after = StateDir(tmp_path / "a").load()
            assert after == msgspec.structs.replace(before, servers=[f"https://127.0.0.1:{other.port}"])
            other.intercept(trustme.CA(), answers=True)
            state = StateDir(tmp_path / "a")
            state.save(before)
            assert await typed(*words) == 9
            assert state.load() == before


@pytest.mark.parametrize("who", ["nobody", "another server", "no server"])
async def test_a_mistyped_address_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], who: str) -> None:
    (tmp_path / "other").mkdir()
    async with world(tmp_path) as server, world(tmp_path / "other") as other, fake_engine({}) as engine:
        await typed("agent", "join", (await server.token()).encode(), "--enroll-only", "--state-dir", tmp_path / "a")
        before = StateDir(tmp_path / "a").load()
        capsys.readouterr()
        wrong = {"nobody": "http://127.0.0.1:1", "another server": other.urls[0], "no server": engine}[who]
        words = ("--server", wrong, "--engine-url", NO_ENGINE, "--enroll-only", "--state-dir", tmp_path / "a")
        assert await typed("agent", "join", *words) == 9
        _, hint, ref = error_of(capsys)
        assert f"Nothing was changed: this agent's server is {server.urls[0]}" in hint
        assert {"nobody": "unreachable", "another server": "wrong_identity", "no server": "not_mindgw"}[who] in ref
        assert StateDir(tmp_path / "a").load() == before
        assert await other.workers() == []


@pytest.mark.parametrize(
    ("kind", "word"), [("expired", "expired"), ("used", "used"), ("revoked", "revoked"), ("unknown", "no such join token")]
)
async def test_a_bad_token_exits_4_and_says_which_and_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, word: str
) -> None:
    async with world(tmp_path) as server:
        token = await spoilt(server, kind)
        assert await typed("agent", "join", token.encode(), "--state-dir", tmp_path / "a") == 4
    error, hint, ref = error_of(capsys)
    assert word in error
    assert "mindgw join-tokens create" in hint
    assert f"join_token_{kind}" in ref


async def test_a_wrong_pin_exits_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path, authority=trustme.CA()) as server:
        token = msgspec.structs.replace(await server.token(), pins=[bytes(32)])
        assert await typed("agent", "join", token.encode(), "--state-dir", tmp_path / "a") == 9
    error, hint, ref = error_of(capsys)
    assert "another CA" in error
    assert "Nothing secret was sent" in hint
    assert "wrong_pin" in ref


async def test_a_taken_name_exits_7_and_names_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as server:
        for directory, expected in (("a", 0), ("b", 7)):
            assert (
                await typed(
                    "agent", "join", (await server.token()).encode(), "--name", "gpu", "--enroll-only", "--state-dir", tmp_path / directory
                )
                == expected
            )
        assert "--replace" in capsys.readouterr().err
        token = (await server.token()).encode()
        assert await typed("agent", "join", token, "--name", "gpu", "--replace", "--enroll-only", "--state-dir", tmp_path / "b") == 0


async def test_the_token_comes_from_a_file_the_environment_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as server:
        (tmp_path / "token").write_text((await server.token()).encode() + "\n")
        assert await typed("agent", "join", "--token-file", tmp_path / "token", "--enroll-only", "--state-dir", tmp_path / "a") == 0
        monkeypatch.setenv("MINDGW_JOIN_TOKEN", (await server.token()).encode())
        assert await typed("agent", "join", "--enroll-only", "--state-dir", tmp_path / "b") == 0
        monkeypatch.setattr(sys, "stdin", io.StringIO((await server.token()).encode()))
        assert await typed("agent", "join", "-", "--enroll-only", "--state-dir", tmp_path / "c") == 0
        assert len(await server.workers()) == 3


@pytest.mark.parametrize(
    ("words", "rc", "word"),
    [
        (["join"], 2, "a join token is needed"),
        (["join", "mgwj1_abc"], 2, "cut off"),
        (["join", "mgw_abc"], 2, "API key"),
        (["join", "--token-file", "/nonexistent"], 2, "/nonexistent"),
        (["join", "x", "--slots", "0"], 2, "slots"),
        (["join", "x", "--engine", "gpt", "--engine-url", NO_ENGINE], 2, "no kind of engine"),
        (["join", "x", "--engine", "vllm"], 2, "--engine-url"),
        (["join", "x", "--engine-url", "11434"], 2, "not an engine's address"),
        (["join", "x", "--engine-key-file", "/nonexistent"], 2, "/nonexistent"),
        (["run"], 4, "has not joined"),
        (["jion"], 2, "join"),
        (["join", "--nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_typed_wrongly_exits_with_the_documented_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], rc: int, word: str
) -> None:
    assert main(["agent", words[0], "--state-dir", str(tmp_path / "a"), *words[1:]] if words[0] != "jion" else ["agent", *words]) == rc
    assert word in error_of(capsys)[0]


async def test_what_cannot_work_is_found_before_the_token_is_spent(tmp_path: Path) -> None:
    async with world(tmp_path) as server:
        token = (await server.token()).encode()
        assert await typed("agent", "join", token, "--engine-key-file", "/nonexistent", "--state-dir", tmp_path / "a") == 2
        assert await typed("agent", "join", token, "--name", "a b", "--state-dir", tmp_path / "a") == 2
        assert await typed("agent", "join", token, "--enroll-only", "--state-dir", tmp_path / "a") == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://me:sesame@127.0.0.1:9",
        "http://sesame@127.0.0.1:9",
        "http://me:ses@me:sesame@127.0.0.1:9/v1",
        "http://me:sesame/x@127.0.0.1:9",
        "http://me:1/sesame@127.0.0.1:9",
        "me:sesame@127.0.0.1:9",
        "me:sesame//sesame@127.0.0.1:9",
        "http://127.0.0.1:9/v1?key=sesame",
    ],
)
@pytest.mark.parametrize("flag", ["--engine-url", "--server"])
async def test_a_password_in_an_address_is_refused_before_the_token_is_spent_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, flag: str
) -> None:
    async with world(tmp_path) as server:
        token = (await server.token()).encode()
        for words in ([], ["--json"]):
            assert await typed("--debug", "agent", "join", token, flag, url, "--enroll-only", "--state-dir", tmp_path / "a", *words) == 2
        said = capsys.readouterr()
        assert "sesame" not in said.out + said.err
        assert "***" in said.err
        assert await server.workers() == []
        assert await typed("agent", "join", token, "--enroll-only", "--state-dir", tmp_path / "a") == 0
        before = StateDir(tmp_path / "a").load()
        assert await typed("agent", "join", flag, url, "--enroll-only", "--state-dir", tmp_path / "a") == 2
        assert StateDir(tmp_path / "a").load() == before
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err


async def test_a_password_that_was_kept_once_does_not_serve_nor_show(tmp_path: Path) -> None:
    async with gateway(b"") as server:
        state = enrolled(tmp_path, server)
        state.save(msgspec.structs.replace(state.load(), engine_url="http://me:sesame@127.0.0.1:9"))
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            out, err = await asyncio.wait_for(agent.communicate(), 20)
        assert agent.returncode == 2
        assert b"sesame" not in out + err
        assert server.greetings == 0


@asynccontextmanager
async def hopeless(kind: str) -> AsyncIterator[str]:
    """The URL of something that will never be an engine."""

    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.7\r\n")
        writer.close()

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    models = {"GET /v1/models": says({"object": "list", "data": []})}
    async with fake_engine(models, server="mindgw" if kind == "a MindGateway" else "fake") as url:
        if kind == "TLS to a plain port":
            url = url.replace("http:", "https:")
        if kind == "an unknown CA":
            async with await asyncio.start_server(banner, "127.0.0.1", 0, ssl=context) as server:
                yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        elif kind == "no HTTP":
            async with await asyncio.start_server(banner, "127.0.0.1", 0) as server:
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        elif kind == "a web site":
            async with fake_engine({}) as site:
                yield site
        else:
            yield url


HOPELESS = {
    "TLS to a plain port": "does not speak TLS",
    "an unknown CA": "certificate is refused",
    "no HTTP": "does not speak HTTP",
    "a MindGateway": "a MindGateway answers",
    "a web site": "does not list models",
}


@pytest.mark.parametrize("kind", HOPELESS)
async def test_what_can_never_be_an_engine_is_told_before_the_token_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    async with world(tmp_path) as server, hopeless(kind) as url:
        token = (await server.token()).encode()
        assert await typed("agent", "join", token, "--engine-url", url, "--state-dir", tmp_path / "a") == 2
        error, hint, ref = error_of(capsys)
        assert HOPELESS[kind] in error
        assert "--engine-url" in hint
        assert "no_engine" in ref
        assert await server.workers() == []
        assert StateDir(tmp_path / "a").load() is None
        assert await typed("agent", "join", token, "--engine-url", NO_ENGINE, "--enroll-only", "--state-dir", tmp_path / "a") == 0
        said = capsys.readouterr().err
        assert f"! the engine cannot be used yet: {NO_ENGINE}" in said
        before = StateDir(tmp_path / "a").load()
        assert await typed("agent", "join", "--engine-url", url, "--enroll-only", "--state-dir", tmp_path / "a") == 2
        assert StateDir(tmp_path / "a").load() == before


@pytest.mark.parametrize("kind", HOPELESS)
async def test_who_serves_a_hopeless_engine_is_warned_once(tmp_path: Path, kind: str) -> None:
    async with gateway(b"") as server, hopeless(kind) as url:
        state = enrolled(tmp_path, server)
        state.save(msgspec.structs.replace(state.load(), engine_url=url))
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            await server.until(lambda: server.link is not None)
            agent.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(agent.communicate(), 20)
        assert agent.returncode == 0
        [warning] = [line for line in err.decode().splitlines() if "WARNING" in line]
        assert HOPELESS[kind] in warning


def test_errors_are_one_object_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", "join", "mgw_x", "--json", "--state-dir", str(tmp_path / "a")]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "join_token_wrong_kind"
    assert error["hint"]


def test_an_unreachable_server_exits_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.agent.test_join import a_token

    assert main(["agent", "join", a_token("http://127.0.0.1:1").encode(), "--state-dir", str(tmp_path)]) == 9
    assert "cannot reach http://127.0.0.1:1" in error_of(capsys)[0]


async def test_leaving_tells_the_server_and_removes_the_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as server:
        await typed("agent", "join", (await server.token()).encode(), "--name", "gpu", "--enroll-only", "--state-dir", tmp_path / "a")
        assert await typed("agent", "leave", "--state-dir", tmp_path / "a") == 0
        assert [worker.state_admin for worker in await server.workers()] == ["removed"]
    assert StateDir(tmp_path / "a").load() is None
    assert not StateDir(tmp_path / "a").key_file.exists()
    assert await typed("agent", "leave", "--state-dir", tmp_path / "a") == 0


async def test_leaving_works_when_the_server_is_gone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with world(tmp_path) as server:
        await typed("agent", "join", (await server.token()).encode(), "--name", "gpu", "--enroll-only", "--state-dir", tmp_path / "a")
    status.write(StateDir(tmp_path / "a"), status.Status(receipts=3))
    assert await typed("agent", "leave", "--state-dir", tmp_path / "a") == 0
    said = capsys.readouterr().err
    assert "could not be told" in said
    assert "3 receipts that the server never acknowledged are removed" in said
    assert "mindgw workers remove gpu" in said
    assert StateDir(tmp_path / "a").load() is None


def test_leaving_cleans_up_a_damaged_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = StateDir(tmp_path)
    state.settings_file.write_text("{")
    assert main(["agent", "run", "--state-dir", str(tmp_path)]) == 1
    assert "agent.json is damaged" in error_of(capsys)[0]
    assert main(["agent", "leave", "--state-dir", str(tmp_path)]) == 0
    assert not state.settings_file.exists()


@asynccontextmanager
async def process(*words: str | Path, server: Gateway | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as a process of its own; killed at the end if it is still there."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "mindgw_agent", *map(str, words)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


def enrolled(directory: Path, server: Gateway) -> StateDir:
    """A state directory whose agent `server` knows."""
    state = StateDir(directory)
    server.public_key = identity.public_half(state.obtain_key())
    srv = identity.public_half(server.identity)
    state.save(Settings(agent_id="a1", name="gpu", servers=[server.root], server_identity=srv, engine_url=NO_ENGINE))
    return state


async def test_an_agent_serves_without_its_engine_tells_its_status_and_drains_on_sigterm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway(b"") as server:
        state = enrolled(tmp_path, server)
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            await server.until(lambda: server.link is not None)
            [engine] = server.reports[0].engines
            assert (engine.healthy, engine.models, engine.url) == (False, [], NO_ENGINE)
            async with asyncio.timeout(5):
                while not state.status_file.exists() or b'"ready"' not in state.status_file.read_bytes():
                    await asyncio.sleep(0.02)
            assert await typed("agent", "status", "--json", "--state-dir", tmp_path) == 3
            found = json.loads(capsys.readouterr().out)
            assert (found["tunnel"], found["up"], found["engine"]["healthy"], found["pid"]) == ("ready", False, False, agent.pid)
            assert await typed("agent", "status", "--state-dir", tmp_path) == 3
            said = capsys.readouterr().out
            assert "not healthy" in said
            assert "receipts waiting: 0" in said
            assert await typed("agent", "run", "--state-dir", tmp_path) == 7
            assert "already serves" in capsys.readouterr().err
            agent.send_signal(signal.SIGTERM)
            out, err = await asyncio.wait_for(agent.communicate(), 5)
            assert (agent.returncode, out) == (0, b""), err.decode()
            assert server.drained
        assert state.load().last_epoch == server.epoch == 1
        assert await typed("agent", "status", "--json", "--state-dir", tmp_path) == 3
        assert json.loads(capsys.readouterr().out)["tunnel"] == "offline"


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    async with gateway(b"") as server, stuck_engine() as url:
        state = enrolled(tmp_path, server)
        state.save(msgspec.structs.replace(state.load(), engine_url=url, engine_kind="generic"))
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            await server.until(lambda: server.link is not None)
            body = b'{"model":"m","messages":[]}'
            ear = server.ask(body)
            async with asyncio.timeout(5):
                while not stuck.is_set():
                    await asyncio.sleep(0.01)
            agent.send_signal(signal.SIGINT)
            await server.until(lambda: server.drained)
            assert not ear.close.done()
            agent.send_signal(signal.SIGINT)
            await asyncio.wait_for(agent.communicate(), 8)
            assert agent.returncode == 130


stuck = asyncio.Event()


@asynccontextmanager
async def stuck_engine() -> AsyncIterator[str]:
    """A fake engine: it lists one model and never answers a request."""
    stuck.clear()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /v1/models"):
                body = b'{"object":"list","data":[{"id":"m"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
            else:
                stuck.set()
                await reader.read()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_revoked_agent_ends_with_4_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway(b"") as server:
        enrolled(tmp_path, server)
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            await server.until(lambda: server.link is not None)
            server.link.goodbye("revoked", "This agent was removed from the server.")
            _, err = await asyncio.wait_for(agent.communicate(), 5)
            assert agent.returncode == 4
            assert b"removed from the server" in err
            assert b"join with a new token" in err
            assert b"Traceback" not in err
        assert await typed("agent", "status", "--json", "--state-dir", tmp_path) == 3
        found = json.loads(capsys.readouterr().out)
        assert (found["tunnel"], found["up"], found["pid"], found["error"]) == (
            "removed",
            False,
            0,
            "This agent was removed from the server.",
        )
        assert await typed("agent", "status", "--state-dir", tmp_path) == 3
        said = capsys.readouterr().out
        assert "tunnel  removed" in said
        assert "next    to come back, run `mindgw agent leave`, then join with a new token" in said
        # one that comes back is not what the last one was told
        async with process("agent", "run", "--state-dir", tmp_path) as agent:
            await server.until(lambda: len(server.epochs) == 2)
            async with asyncio.timeout(5):
                while b'"ready"' not in StateDir(tmp_path).status_file.read_bytes():
                    await asyncio.sleep(0.02)
            assert await typed("agent", "status", "--json", "--state-dir", tmp_path) == 3
            found = json.loads(capsys.readouterr().out)
            assert (found["tunnel"], found["hint"]) == ("ready", "")


def test_help_and_version_load_no_network_code() -> None:
    script = (
        "import sys; from mindgw_agent.cli import main; main(['--help']); main(['agent', 'join', '--help']); main(['version'])\n"
        "heavy = {'aiohttp', 'asyncio', 'cryptography', 'msgspec', 'websockets', 'keyring'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("script", "name"), [("/opt/bin/mindgw", "mindgw"), ("mindgw-agent", "mindgw-agent"), ("/x/mindgw_agent/__main__.py", "mindgw-agent")]
)
def test_the_command_calls_itself_what_it_was_called(monkeypatch, capsys: pytest.CaptureFixture[str], script: str, name: str) -> None:
    """install.sh makes a script `mindgw` of the slim half."""
    monkeypatch.setattr(sys, "argv", [script, "agent", "leave", "--colour"])
    assert main() == 2
    assert f"hint:  `{name} agent leave --help` shows how" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert f"Usage: {name} [" in capsys.readouterr().out


def test_a_group_without_a_verb_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["agent"]):
        assert main(words) == 0
        assert "Usage: mindgw-agent" in capsys.readouterr().out
