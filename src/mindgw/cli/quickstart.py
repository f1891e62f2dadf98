"""`mindgw quickstart`: server, agent and engine on this machine, and a first answer. Everything it starts ends with it."""

import json
import select
import shlex
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindgw.cli.chat import PATIENCE, ask
from mindgw.cli.children import Children, python
from mindgw.cli.groups import DataDir, verb
from mindgw.cli.invocation import Invocation, invocation
from mindgw.client import api
from mindgw.client.errors import Clash, ClientError, Missing, NotLoggedIn, Unreachable

if TYPE_CHECKING:
    from mindgw.client.transport import Server

app = verb()

#: Name of the local worker, and of the folder below the data directory for what this command leaves behind: logs and the tiny model.
WORKER = FOLDER = "quickstart"
TINY = "tiny-babbler"
#: Seconds for the server to start, for the embedded engine to load its model, for the agent to be ready.
STARTING, LOADING, JOINING = 60.0, 60.0, 60.0
QUESTION = "Say hello in one short sentence."


@dataclass(frozen=True, slots=True)
class Place:
    """The server that `init` made ready."""

    data_dir: str
    #: For logs and the tiny model.
    folder: Path
    key: str
    port: int

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Found:
    """The engine that answers."""

    url: str
    kind: str
    embedded: bool


@app.command()
def quickstart(
    ctx: typer.Context,
    *,
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port; another is taken when it is in use.")] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Do not look for an engine, use the embedded one.")] = False,
    exit_after_answer: Annotated[bool, typer.Option("--exit-after-answer", help="End after the first answer.")] = False,
) -> None:
    """Server, agent and engine on this machine, one streamed answer; stays up until Ctrl-C."""
    run = invocation(ctx)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    place = _prepare(run, data_dir, port)
    with Children(place.folder) as children:
        server = _start_server(run, children, place)
        found = (None if embedded else _running_engine()) or _embedded_engine(run, children, place)
        model = _start_agent(run, children, place, server, found)
        _first_answer(run, server, place, found, model)
        if not exit_after_answer:
            _stay(run, children)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prepare(run: Invocation, data_dir: Path | None, port: int | None) -> Place:
    """`mindgw init`, as anybody would call it, and a port that is free."""
    from mindgw import config

    directory = config.data_directory(data_dir)
    wanted = port or int(config.load(None, directory).listen.rpartition(":")[2])
    _refuse_company(directory)
    fresh = not (directory / config.FILE).exists()
    chosen = wanted if _is_free(wanted) else _free_port()
    # a server that was set up before keeps the port of its settings
    said = _init("--data-dir", str(directory), *(["--port", str(chosen)] if fresh else []))
    if chosen != wanted:
        run.render.warn(f"port {wanted} is taken; using {chosen}" + ("" if fresh else " this time"))
    if not said["api_key"]:
        hint = f"make another: mindgw init --new-admin-key --data-dir {said['data_dir']}"
        raise NotLoggedIn(f"the admin key of {said['data_dir']} is not known here", hint=hint)
    folder = Path(said["data_dir"]) / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ClientError(f"cannot make {folder}: {error.strerror}", hint="move away what is there, or choose another --data-dir") from None
    run.render.success(f"Data        {said['data_dir']}")
    return Place(said["data_dir"], folder, said["api_key"], chosen)


def _refuse_company(directory: Path) -> None:
    """Raises Clash when a server runs there."""
    from mindgw.control import lock

    pid = lock.holder(directory)
    if pid is not None:
        hint = f"`mindgw status` asks it; Ctrl-C where it runs, or `kill {pid}`, ends it; another one needs its own --data-dir"
        raise Clash(f"a server already runs (process {pid}) on {directory}", hint=hint, code="already_running")


def _init(*words: str) -> dict[str, Any]:
    """What `init` made. Raises its own error as ours."""
    done = subprocess.run(python("mindgw", "init", *words, "--json"), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    except ValueError:
        raise _failure(done.stderr.strip(), done.returncode) from None


def _failure(said: str, code: int) -> ClientError:
    """The error that a command wrote as JSON, after whatever else it had to say."""
    try:
        told = json.loads(said.rpartition("\n")[2])["error"]
        error = ClientError(told["message"], hint=told["hint"] or "", code=told["code"])
    except (ValueError, LookupError, TypeError):
        return ClientError("`mindgw init` failed", hint=said)
    error.exit_code = code
    return error


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_server(run: Invocation, children: Children, place: Place) -> "Server":
    from mindgw.client.transport import Server

    server = Server.at(place.root, place.key, timeout=run.options.timeout, note=run.render.wire)
    children.start("server", ["mindgw", "serve", "--data-dir", place.data_dir, "--port", str(place.port)])
    try:
        children.wait_for("the server", lambda: _answers(server), STARTING)
    except Unreachable:
        raise
    except ClientError:
        _refuse_company(Path(place.data_dir))  # one that was started at the same time was faster
        raise
    run.render.success(f"Server      {place.root}")
    return server


def _answers(server: "Server") -> bool:
    try:
        server.fetch(api.readiness())
    except (Unreachable, ClientError):
        return False
    return True


def _running_engine() -> Found | None:
    """The first engine with a model on the usual ports of this machine."""
    import asyncio

    from mindgw_agent import engines
    from mindgw_agent.engines.client import open_session

    async def look() -> Found | None:
        async with open_session() as session:
            engine = await engines.discover(session)
            return Found(engine.client.url, engine.kind, embedded=False) if engine else None

    return asyncio.run(look())


def _embedded_engine(run: Invocation, children: Children, place: Place) -> Found:
    """llama.cpp as a child, with a model that is written on the first call."""
    run.render.note("  no engine answers on the usual ports; starting the embedded one")
    model = place.folder / f"{TINY}.gguf"
    try:
        from mindgw.quickstart import tiny_model
    except ModuleNotFoundError as missing:
        hint = "start Ollama, vLLM or llama.cpp first; or: pip install 'mindgw[embedded]'"
        raise Missing(f"there is no engine on this machine, and the embedded one is not installed ({missing.name})", hint=hint) from None
    if not model.exists():
        tiny_model.write(model)
    words = ["mindgw.quickstart.engine", str(model), "--port", "0", "--alias", TINY]
    said = children.start("embedded engine", words, speaks=True).process.stdout
    assert said is not None
    children.wait_for("the embedded engine", lambda: bool(select.select([said], [], [], 0)[0]), LOADING)
    line = said.readline()
    if not line:
        children.rest(1.0)
        children.check()
    return Found(json.loads(line)["url"], "llamacpp", embedded=True)


def _start_agent(run: Invocation, children: Children, place: Place, server: "Server", found: Found) -> str:
    """The agent in front of the engine, ready; returns a model that chats."""
    from mindgw_agent import private_files

    state = place.folder / "agent"
    shutil.rmtree(state, ignore_errors=True)  # port and engine may be others than last time
    token = place.folder / "join-token"
    private_files.write(token, server.call(api.create_join_token(ttl_seconds=600, max_uses=1, name=WORKER))["token"].encode())
    where = ["--engine-url", found.url, "--server", place.root, "--state-dir", str(state)]
    try:
        children.start("agent", ["mindgw", "agent", "join", "--token-file", str(token), "--name", WORKER, "--replace", *where])
        children.wait_for("the agent", lambda: bool(_chat_models(server)), JOINING)
    finally:
        token.unlink(missing_ok=True)
    name = "the embedded llama.cpp, with a tiny model" if found.embedded else f"{found.kind} at {found.url}"
    run.render.success(f"Engine      {name}")
    return _chat_models(server)[0]


def _chat_models(server: "Server") -> list[str]:
    """Models of the local worker that chat; empty until it is ready."""
    try:
        worker = server.call(api.show_worker(WORKER))
    except Missing:
        return []
    ready = worker["state"] == "ready"
    return [str(model["id"]) for model in worker["models"] if ready and "chat" in model["kinds"]]


def _first_answer(run: Invocation, server: "Server", place: Place, found: Found, model: str) -> None:
    render = run.render
    base_url = f"{place.root}/v1"
    if render.output == "table" and not render.quiet:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
        render.datum(f"base URL  {base_url}\nAPI key   {place.key}\n")
        render.datum(f"curl {base_url}/chat/completions -H 'Authorization: Bearer {place.key}' \\")
        render.datum(f"  -H 'Content-Type: application/json' -d {shlex.quote(body)}\n")
    render.note(f"{model}, asked: {QUESTION}")
    if found.embedded:
        render.note("(this tiny model knows nothing and only babbles: it shows that the way works. Start a real engine for real answers)")
    # the tiny model would as soon say nothing at all
    limits: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True} if found.embedded else {"max_tokens": 200}
    request = api.chat(model, [{"role": "user", "content": QUESTION}], **limits)
    live = None if render.output == "json" else render
    answer = ask(replace(server, timeout=PATIENCE), request, live)
    if live:
        render.raw("\n")
        return
    facts = {"base_url": base_url, "api_key": place.key, "model": model, "engine": found.kind, "embedded": found.embedded}
    render.item({**facts, "answer": answer.text}, (), name="base_url")


def _stay(run: Invocation, children: Children) -> None:
    try:
        run.render.note("\nUp until Ctrl-C. In another terminal: mindgw status, mindgw chat, mindgw workers list")
        while True:
            children.check()
            children.rest(1.0)
    except KeyboardInterrupt:
        run.render.note("stopping")
