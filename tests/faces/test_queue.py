"""`mindgw queue` against the real server, in whose one slot somebody sits."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from mindgw import clock
from mindgw.cli import queue
from mindgw.cli.render import Render
from mindgw.cli.settings import Environment, Options
from mindgw.client import api
from mindgw.client.feed import Picture
from mindgw.client.transport import Server
from tests.faces.conftest import Gateway, Terminal
from tests.gateway.world import Box, World, engine

PATIENCE = 20.0
_LENGTH = re.compile(rb"(?is)content-length: (\d+).*?\r\n\r\n")


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


class Counter:
    """A box with one slot on the gateway's server, and requests for it over real connections."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pipeline = gateway.server.pipeline
        #: Connection of each request.
        self._clients: dict[str, socket.socket] = {}
        self._world = World()
        self._world.pipeline, self._world.clock = self._pipeline, clock.monotonic
        self.run(self._open)

    def run(self, work):
        """What a function returns that is called in the server's loop."""

        async def call():
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._gateway.loop).result(PATIENCE)

    def _open(self) -> None:
        self.box = Box(self._world, "box", engine("m", "n", slots=1))
        self._pumping = asyncio.get_running_loop().create_task(self._pump())

    async def _pump(self) -> None:
        while True:
            self._world.pump()
            for stream in set(self.box.cancelled) & self.box.requests.keys():
                self.box.close("cancelled", stream=stream)
            await asyncio.sleep(0.005)

    def ids(self) -> set[str]:
        return {entry.id for entry in self.run(self._pipeline.lineup)}

    def until(self, look, what: str):
        end = clock.monotonic() + PATIENCE
        while not (found := look()):
            assert clock.monotonic() < end, what
            threading.Event().wait(0.01)
        return found

    def ask(self, key: str = "", **fields) -> str:
        """One more request; its id."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode()
        port = int(self._gateway.url.rpartition(":")[2])
        before = self.ids()
        client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or self._gateway.key}\r\n"
        client.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        (id,) = self.until(lambda: self.ids() - before, "the request is there")
        self._clients[id] = client
        return id

    def answer(self, id: str) -> str:
        """What the client of a request hears: the head, and the body that it tells of."""
        heard = bytearray()
        while (told := _LENGTH.search(heard)) is None or len(heard) < told.end() + int(told[1]):
            more = self._clients[id].recv(65536)
            assert more, bytes(heard)
            heard += more
        return heard.decode()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.run(self._pipeline.resume_queue)
        self.until(lambda: not self.ids(), "everybody is gone")
        self.run(self._shut)

    def _shut(self) -> None:
        self._pumping.cancel()
        self.box.cut()


@pytest.fixture
def counter(gateway) -> Iterator[Counter]:
    made = Counter(gateway)
    yield made
    made.close()


# -- lists --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["queue list", "queue ls"])
def test_the_list_says_who_waits_and_why(admin, counter, words):
    key = read(admin("keys", "create", "bot", "--team", "nlp", "--user", "a@b.c", "--priority", "batch", "--json"))
    running, first, second = counter.ask(), counter.ask(), counter.ask(key["key"])
    head, *rows = admin(*words.split()).out.splitlines()
    assert head.split() == ["POS", "ID", "MODEL", "CLASS", "WHO", "WAITED", "ETA", "REASON"]
    assert [row.split()[1] for row in rows] == [first, second]
    position, id, model, priority, who = rows[1].split()[:5]
    assert (position, id, model, priority, who) == ("2", second, "m", "batch", "nlp/a@b.c/bot")
    assert "no free slot 1/1" in rows[0] and "batch yields to normal" in rows[1]
    assert [row.split()[1] for row in admin(*words.split(), "--running").out.splitlines()[1:]] == [first, second, running]
    assert "runs on box for" in admin(*words.split(), "--running").out
    assert admin(*words.split(), "-q").out.split() == [first, second]
    assert [item["id"] for item in read(admin(*words.split(), "--json"))["items"]] == [first, second]


def test_the_list_may_have_some_alone(admin, counter):
    key = read(admin("keys", "create", "crowd", "--team", "astro", "--user", "c@b.c", "--json"))
    running, mine, other = counter.ask(), counter.ask(key["key"]), counter.ask(model="n")
    for words, wanted in (
        ("--team astro", [mine]), ("--user c@b.c", [mine]), ("--key crowd", [mine]), (f"--key {key['key']}", [mine]),
        ("--model n", [other]), ("--state running", [running]),
        ("--state all --model m", [mine, running]), ("--running --model m", [mine, running]),
    ):  # fmt: skip
        assert admin("queue", "list", "-q", *words.split()).out.split() == wanted, words
    refused = admin("queue", "list", "--state", "asleep")
    assert (refused.code, refused.out) == (2, "") and "waiting, running or all" in refused.err


def test_the_list_takes_all_pages(gateway, admin, counter):
    ids = [counter.ask() for _ in range(6)][1:]
    asked = api.list_queue(model="m")
    server = Server(gateway.url, gateway.key)
    assert [item["id"] for item in server.items(replace(asked, path=f"{asked.path}&limit=2"))] == ids


def test_an_end_user_behind_a_proxy_is_named(admin, counter):
    key = read(admin("keys", "create", "web", "--trusted-proxy", "--json"))
    counter.ask()
    id = counter.ask(key["key"], user="u-1")
    assert "/web/u-1" in admin("queue", "list").out
    assert read(admin("queue", "show", id, "--json"))["end_user"] == "u-1"


def test_an_empty_queue_is_no_data(admin, counter):
    listed = admin("queue", "list")
    assert (listed.code, listed.out) == (0, "")
    assert read(admin("queue", "list", "--json")) == {"items": [], "next": None}


def test_one_request_is_shown_in_full(admin, counter):
    counter.ask()
    id = counter.ask()
    shown = dict(line.split(maxsplit=1) for line in admin("queue", "get", id).out.splitlines())
    assert {"pos": "1", "id": id, "model": "m", "state": "waiting", "kind": "chat"}.items() <= shown.items()
    gone = admin("queue", "show", "req-nothing")
    assert (gone.code, gone.out) == (6, "")
    assert "queue list --running" in gone.err


# -- changes ------------------------------------------------------------------------------------------------------------------


def test_cancelling_asks_and_cannot_be_asked_in_a_script(admin, counter):
    id = counter.ask()
    for flags in ([], ["--no-input"]):
        refused = admin("queue", "cancel", id, *flags)
        assert (refused.code, refused.out) == (2, "")
        assert "--yes required" in refused.err and id in refused.err
    assert id in counter.ids()


@pytest.mark.parametrize(("answer", "code", "there"), [("y\n", 0, False), ("\n", 1, True), ("\x03", 130, True)])
def test_on_a_terminal_the_answer_decides(admin, counter, answer, code, there):
    id = counter.ask()
    terminal = Terminal("queue", "cancel", id)
    asked = terminal.hear("[y/N]")
    assert id in asked and "default" in asked and "runs on box" in asked
    terminal.type(answer)
    assert terminal.end().code == code
    assert (id in counter.ids()) is there


def test_what_happened_to_each_is_told_and_one_that_is_gone_keeps_no_other(admin, counter):
    running, waiting = counter.ask(), counter.ask()
    done = admin("queue", "cancel", waiting, "req-nothing", running, "--yes")
    assert (done.code, done.out) == (6, "")
    assert f"Request {waiting} is cancelled" in done.err and f"Request {running} is cancelled" in done.err
    assert "No request 'req-nothing'" in done.err
    assert "1 of 3: nothing was done to req-nothing" in done.err
    assert "cancelled_by_operator" in counter.answer(running)
    counter.until(lambda: not counter.ids(), "both are gone")


def test_ids_of_a_list_are_food_for_cancel(admin, counter):
    counter.ask(), counter.ask(), counter.ask()
    ids = admin("queue", "list", "--running", "-o", "name").out.split()
    done = admin("queue", "cancel", *ids, "--yes", "-o", "name")
    assert (done.code, done.out.split()) == (0, ids)


def test_a_single_one_that_is_gone_is_not_found(admin, counter):
    for verb in ("cancel", "bump"):
        refused = admin("queue", verb, "req-\x1b[2J", "-y", "--json")
        assert (refused.code, refused.out) == (6, "")
        assert json.loads(refused.err)["error"]["code"] == "not_found"


def test_a_bump_puts_before_all_others(admin, counter):
    counter.ask()
    first, second = counter.ask(), counter.ask()
    bumped = read(admin("queue", "bump", second, "--json"))
    assert (bumped["position"], bumped["priority"]) == (1, "bumped")
    assert admin("queue", "list", "-q").out.split() == [second, first]


def test_a_pause_says_how_to_end_it(admin, counter):
    paused = admin("queue", "pause")
    assert (paused.code, paused.out) == (0, "")
    assert "Undo: mindgw queue resume" in paused.err
    counter.ask()
    assert "paused by an operator" in admin("queue", "list").out
    assert "paused" in admin("queue", "stats").out
    assert read(admin("queue", "resume", "--json"))["paused"] is False
    assert admin("queue", "list").out == ""


def test_a_pause_of_a_model_that_nobody_has_is_doubted(admin, counter):
    paused = admin("queue", "pause", "--model", "mm", "-q")
    assert (paused.code, paused.out) == (0, "")
    assert "no worker announces mm now" in paused.err and "paused are: mm" in paused.err
    assert "announces" not in admin("queue", "pause", "--model", "m").err
    assert "announces" not in admin("queue", "pause").err


def test_a_pause_of_one_model_outlives_that_of_all_when_it_is_not_meant(admin, counter):
    assert "resume --model m" in admin("queue", "pause", "--model", "m").err
    admin("queue", "pause", "--model", "n")
    assert "paused is still: n" in admin("queue", "resume", "--model", "m").err
    assert read(admin("queue", "stats", "--json"))["paused_models"] == ["n"]
    assert "still" not in admin("queue", "resume").err


def test_the_figures(admin, counter):
    counter.ask(), counter.ask()
    found = read(admin("queue", "stats", "--json"))
    assert (found["waiting"], found["running"], found["classes"]["normal"]) == (1, 1, 1)
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in admin("queue", "stats").out.splitlines())
    assert {"waiting": "1", "running": "1", "classes": "1 normal", "paused": "–"}.items() <= shown.items()


def test_who_is_no_admin_may_not_look(cli, admin, counter, monkeypatch):
    monkeypatch.setenv("MINDGW_TOKEN", read(admin("keys", "create", "user", "--json"))["key"])
    for words in ("list", "watch", "stats", "show x", "pause", "resume", "bump x", "cancel x -y"):
        refused = cli("queue", *words.split())
        assert (refused.code, refused.out) == (5, ""), words


# -- watching -----------------------------------------------------------------------------------------------------------------


class Watch:
    """`mindgw queue watch FLAGS` in a process of its own; on a terminal of 60 columns and 6 lines, if wanted."""

    def __init__(self, *flags: str, terminal: bool = False) -> None:
        self._out, theirs = pty.openpty() if terminal else os.pipe()
        command = [sys.executable, "-m", "mindgw", "queue", "watch", *flags]
        environment = {**os.environ, "COLUMNS": "60", "LINES": "6"}
        self.child = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment)
        os.close(theirs)
        self._held = b""

    def until(self, mark: str) -> str:
        """What it says up to the mark."""
        while mark.encode() not in self._held:
            more = os.read(self._out, 65536)
            assert more, f"it ended before {mark!r}: {self._held!r}"
            self._held += more
        found, _, self._held = self._held.partition(mark.encode())
        return found.decode() + mark

    def message(self) -> dict:
        """The next line of --json."""
        return json.loads(self.until("\n"))

    def hang_up(self) -> None:
        """Whoever read its output is gone."""
        os.close(self._out)
        self._out = -1

    def end(self, *, by: int = signal.SIGINT) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        if by:
            self.child.send_signal(by)
        _, said = self.child.communicate(timeout=PATIENCE)
        if self._out >= 0:
            os.close(self._out)
        return self.child.returncode, said.decode()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watch]]:
    """Starts watches; those that a test left running are killed."""
    started: list[Watch] = []

    def start(*flags: str, terminal: bool = False) -> Watch:
        started.append(Watch(*flags, terminal=terminal))
        return started[-1]

    yield start
    for each in started:
        if each.child.poll() is None:
            each.end(by=signal.SIGKILL)


def test_a_watch_for_programs_prints_the_messages(admin, counter, watch):
    watching = watch("--json")
    first = watching.message()
    assert (first["type"], first["queue"]) == ("snapshot", [])
    running = counter.ask()
    news = watching.message()
    assert (news["type"], news["seq"]) == ("delta", first["seq"] + 1)
    assert running in [row["id"] for row in news["queue"]["set"]]
    assert watching.end() == (130, "")


def test_a_watch_shows_the_list_as_it_becomes(admin, counter, watch):
    counter.ask()
    watching = watch()
    watching.until("0 waiting, 1 running\n")
    waiting = counter.ask()
    assert "POS" in watching.until(waiting)
    assert "no free slot 1/1" in watching.until("\n")
    admin("queue", "pause")
    watching.until(", paused: all\n")
    assert watching.end() == (130, "")


def test_a_watch_of_ids_prints_each_once(admin, counter, watch):
    counter.ask()
    first = counter.ask()
    watching = watch("-q")
    assert watching.until("\n") == f"{first}\n"
    second = counter.ask()
    assert watching.until("\n") == f"{second}\n"
    assert watching.end() == (130, "")


def test_on_a_terminal_the_list_is_drawn_in_place_and_fits(admin, counter, watch):
    counter.ask()
    ids = [counter.ask() for _ in range(3)]
    watching = watch("--running", terminal=True)
    watching.until("3 waiting")
    drawn = watching.until("\x1b[J")
    lines = drawn.replace("\x1b[K", "").split("\r\n")
    assert [line.split()[1] for line in lines[2:4]] == ids[:2]
    assert all(len(line) <= 60 for line in lines[1:-1])
    assert lines[4:] == ["… 2 more", "\x1b[J"]
    assert watching.until("\x1b[J").startswith("\x1b[H")  # time goes by on the screen, too
    assert watching.end()[0] == 130


def test_whoever_stops_reading_ends_it_without_a_complaint(admin, counter, watch):
    watching = watch("--json")
    watching.message()
    watching.hang_up()
    counter.ask()
    assert watching.end(by=0) == (0, "")


def test_a_watch_ends_with_its_key(admin, counter, watch, monkeypatch):
    key = read(admin("keys", "create", "eye", "--admin", "--json"))
    monkeypatch.setenv("MINDGW_TOKEN", key["key"])
    watching = watch("--json")
    watching.message()
    assert admin("keys", "revoke", key["id"], "-y").code == 0
    code, said = watching.end(by=0)
    assert code == 4
    assert json.loads(said)["error"]["code"] == "revoked_api_key"


# -- what is shown ------------------------------------------------------------------------------------------------------------


def render(**options) -> Render:
    return Render(Options(**options), Environment())


def test_moments_become_spans_that_grow_while_nothing_is_heard(capsys, monkeypatch):
    row = {"id": "r", "state": "waiting", "position": 1, "waiting_since": "2026-01-02T03:04:00Z", "turn_at": "2026-01-02T03:05:00Z"}
    shown = queue._entry(row, "2026-01-02T03:04:10Z", 5.0)
    assert (shown["waited_s"], shown["running_s"], shown["eta_s"]) == (15.0, 0.0, 45.0)
    late = queue._entry(row, "2026-01-02T03:06:00Z", 0.0)
    assert late["eta_s"] == 0.0
    runs = queue._entry({**row, "running_since": "2026-01-02T03:04:30Z", "turn_at": None}, "2026-01-02T03:05:00Z", 1.0)
    assert (runs["waited_s"], runs["running_s"], runs["eta_s"]) == (30.0, 31.0, None)
    assert queue._entry({"id": "r", "state": "waiting"}, "2026-01-02T03:05:00Z", 1.0)["waited_s"] == 0.0


def test_names_do_not_drive_the_terminal_of_a_watch(capsys):
    watched = queue._Watched(type("Run", (), {"render": render()})(), running=False)
    row = {"id": "r", "state": "waiting", "position": 1, "team": "a\x1b[2Jb", "reason": "x\ny", "waiting_since": "2026-01-02T03:04:00Z"}
    watched.show({}, Picture(1, "2026-01-02T03:04:10Z", {"r": row}, {}, {"waiting": 1, "paused_models": ["\x07"]}))
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.split("\n"))
    assert "a\\x1b[2Jb" in said


def test_a_figure_that_an_older_server_does_not_send_is_a_dash():
    for column in (*queue.COLUMNS, *queue._DETAILS, *queue._STATS):
        assert isinstance(column.value({}), str)
    assert queue._errors({"eta_error_median": 0.25, "eta_error_p90": 0.6}) == "median 25 %, p90 60 %"
    assert queue._shares({"shares": [{"team": "nlp", "share": 0.62}, {"team": "", "share": 0.38}]}) == "nlp 62 %, – 38 %"
