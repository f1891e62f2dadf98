"""Commands of a server, and what it can never make this box do. Engines are FAKES."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw_agent.engines import Unable, Unreachable
from mindgw_agent.journal import Journal, redact
from mindgw_agent.offer import Offer
from mindgw_agent.orders import PULLED, Orders
from mindgw_agent.stand import NoEngine, Stand
from mindgw_agent.wire import VERBS, Command, EngineReport, Model, Progress

PATIENCE = 10.0


class FakeEngine:
    """A FAKE: notes what it is told to do."""

    can_pull = True

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.fails: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def probe(self) -> EngineReport:
        return EngineReport(id="e1", kind="fake", healthy=True, slots=2, models=[Model("m", aliases=["alias"])])

    async def _do(self, verb: str, model: str, tell: Any) -> None:
        tell(f"{verb} of {model}", 0.25)
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.told.append((verb, model))

    async def load(self, model: str, tell: Any) -> None:
        await self._do("load", model, tell)

    async def unload(self, model: str, tell: Any) -> None:
        await self._do("unload", model, tell)

    async def pull(self, model: str, tell: Any) -> None:
        await self._do("pull", model, tell)


class Bench:
    """An agent's commands, and what was said about them."""

    def __init__(self, **more: Any) -> None:
        self.engine = FakeEngine()
        self.offer: Offer[Any] = Offer([Stand(self._find)], None)  # type: ignore[arg-type]
        self.journal = Journal()
        self.orders = Orders(self.offer, self.journal, **more)
        self.said: list[Progress] = []
        self.news = asyncio.Event()

    async def _find(self) -> FakeEngine:
        return self.engine

    def _say(self, progress: Progress) -> None:
        self.said.append(progress)
        self.news.set()

    async def does(self, verb: str, argument: str = "") -> Progress:
        """A command, to its last word."""
        self.said.clear()
        self.orders.begin(Command(7, verb, argument), self._say)
        async with asyncio.timeout(PATIENCE):
            while not (self.said and self.said[-1].done):
                self.news.clear()
                await self.news.wait()
        assert {said.id for said in self.said} == {7}
        await asyncio.sleep(0)
        return self.said[-1]


@pytest.fixture
async def bench():
    made = Bench(may_pull=True)
    await made.offer.probe()
    yield made
    await made.orders.stop()


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_model_that_the_engine_has_is_loaded_and_unloaded(bench, verb):
    done = await bench.does(verb, "alias")
    assert (done.error, bench.engine.told) == ("", [(verb, "alias")])
    assert bench.offer.doubted.is_set()  # the server hears of it soon


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_all_engines_that_have_a_model_load_and_unload_it_and_who_cannot_is_told_of(verb):
    bench, other = Bench(), FakeEngine()

    async def find():
        return other

    bench.offer.stands += (Stand(find),)
    await bench.offer.probe()
    assert (await bench.does(verb, "m")).error == ""
    assert (bench.engine.told, other.told) == ([(verb, "m")], [(verb, "m")])
    bench.offer.doubted.clear()
    bench.engine.fails = Unreachable("it went away")
    assert (await bench.does(verb, "m")).error == "engine_unreachable"
    assert (len(bench.engine.told), len(other.told)) == (1, 2)
    assert bench.offer.doubted.is_set()


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_model_that_nobody_offers_is_not(bench, verb):
    assert (await bench.does(verb, "../../etc/passwd")).error == "model_not_found"
    assert bench.engine.told == []


async def test_progress_is_told_while_it_goes_on(bench, monkeypatch):
    monkeypatch.setattr("mindgw_agent.orders.PULSE", 0.01)
    bench.engine.gate.clear()
    bench.orders.begin(Command(7, "pull", "llama3"), bench._say)
    async with asyncio.timeout(PATIENCE):
        while not any(said.part for said in bench.said):
            bench.news.clear()
            await bench.news.wait()
    assert bench.said[-1] == Progress(id=7, note="pull of llama3", part=0.25)
    again = []
    bench.orders.begin(Command(8, "pull", "llama3"), again.append)
    assert [said.error for said in again] == ["busy"]
    bench.engine.gate.set()


async def test_pulling_is_for_the_owner_of_the_box_to_allow():
    bench = Bench()
    await bench.offer.probe()
    assert (await bench.does("pull", "llama3")).error == "not_allowed"
    assert bench.engine.told == []


@pytest.mark.parametrize(
    "name", ["llama3", "llama3:8b", "user/model:q4_K_M", "hf.co/user/model", "huggingface.co/u/m-GGUF:Q4", "registry.ollama.ai/library/m"]
)
async def test_names_of_models_in_registries_that_are_known(bench, name):
    assert (await bench.does("pull", name)).error == ""


@pytest.mark.parametrize(
    "name",
    ["evil.example/user/model", "http://10.0.0.1/x/y", "127.0.0.1:80/a/b", "../model", "a/../b", "-rf", "a b",
     "a;b", "$(id)", "", "a/b/c/d", "hf.co//m", "a\n", "m@sha256"],
)  # fmt: skip
async def test_no_other_address_is_pulled_from(bench, name):
    assert PULLED.fullmatch(name) is None
    if name.isprintable():
        assert (await bench.does("pull", name)).error == "bad_argument"
        assert bench.engine.told == []


@given(st.text(max_size=40))
def test_what_can_be_pulled_names_no_host_but_those_that_are_known(name):
    if PULLED.fullmatch(name):
        assert "//" not in name
        assert ".." not in name.split("/")
        assert name.count("/") < 2 or name.split("/")[0] in {"hf.co", "huggingface.co", "registry.ollama.ai"}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (Unable("cannot", never=True), "unsupported"), (Unable("no space left"), "engine_error"),
        (Unreachable("away"), "engine_unreachable"),
        (TimeoutError(), "engine_timeout"), (RuntimeError("a defect"), "internal_error"),
    ],
)  # fmt: skip
async def test_every_failure_has_an_end_and_a_code(bench, wrong, code):
    bench.engine.fails = wrong
    assert (await bench.does("load", "m")).error == code


async def test_an_engine_that_was_never_found_does_nothing():
    async def nowhere():
        raise NoEngine("nothing listens")

    bench = Bench(may_pull=True)
    bench.offer = Offer([Stand(nowhere)], None)
    bench.orders = Orders(bench.offer, bench.journal, may_pull=True)
    await bench.offer.probe()
    assert (await bench.does("pull", "m")).error == "engine_unreachable"


@given(st.text(max_size=32), st.text(max_size=80))
def test_a_server_can_say_anything_and_nothing_is_run(verb, argument):
    """Only the verbs of the list do anything; all else is refused at once, by name."""
    if verb in VERBS:
        return
    said: list[Progress] = []
    Orders(Offer([Stand(None)], None), Journal()).begin(Command(1, verb, argument), said.append)  # type: ignore[arg-type]
    assert [(one.done, one.error) for one in said] == [(True, "unknown_command")]


async def test_drain_and_undrain_are_noted_for_whoever_looks_at_the_box(bench):
    noted = []
    bench.orders.on_stand = noted.append
    await bench.does("drain")
    await bench.does("undrain")
    assert noted == [True, False]


async def test_a_new_beginning_comes_after_the_last_word(bench):
    order = []
    bench.orders.on_restart = lambda: order.append(list(bench.said))
    done = await bench.does("restart")
    assert done.error == ""
    async with asyncio.timeout(PATIENCE):
        while not order:
            await asyncio.sleep(0)
    assert order == [[done]]


async def test_an_agent_that_cannot_begin_anew_says_so(bench):
    assert (await bench.does("restart")).error == "unsupported"


# -- the journal -----------------------------------------------------------------------------------------------------------


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("mindgw.agent", level, "f", 1, text, (), None)


@pytest.mark.parametrize("count", ["", "-1", "1e3", "99999999999999", "٣"])
async def test_a_number_of_lines_is_a_number(bench, count):
    bench.journal.handle(record("hello"))
    said = await bench.does("logs", count)
    assert said.error == ("" if count == "99999999999999" else "bad_argument")


async def test_the_last_lines_are_given_oldest_first(bench):
    for number in range(2000):
        bench.journal.handle(record(f"line {number}\x1b[2J"))
    said = await bench.does("logs", "2")
    assert [line.partition("INFO")[2].strip() for line in said.lines] == ["line 1998 [2J", "line 1999 [2J"]
    assert len(bench.journal.tail(5000)) == 1000


async def test_who_has_seen_a_line_is_given_those_that_came_after_it(bench):
    for number in range(1500):
        bench.journal.handle(record(f"line {number}"))
    seen = (await bench.does("logs", "1")).line
    assert (await bench.does("logs", f"+{seen}")).lines == []
    bench.journal.handle(record("new"))
    said = await bench.does("logs", f"+{seen}")
    assert ([line.partition("INFO")[2].strip() for line in said.lines], said.line) == (["new"], seen + 1)
    everything = bench.journal.tail(1000)
    for line in (0, 5, seen + 2, 10**15 - 1):  # long gone, or of a process that is no more
        assert (await bench.does("logs", f"+{line}")).lines == everything
    for wrong in ("+", "+-1", "++1", "+x"):
        assert (await bench.does("logs", wrong)).error == "bad_argument"


async def test_only_who_begins_to_read_the_log_stands_in_it(bench, caplog):
    caplog.set_level(logging.INFO, "mindgw.agent")
    await bench.does("logs", "5")
    await bench.does("logs", "+5")
    assert [record.getMessage() for record in caplog.records] == ["the server asks: logs 5"]


SECRETS = [
    "mgw_live_abcDEF123", "mgwj1_abcdefghijk", "sk-proj-abcdef123456", "hf_abcdefghij", "ghp_abcdefghij",
    "eyJhbGciOiJIUzI1NiJ9.e30.abc_def",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_keys_are_known_by_their_looks(secret):
    assert secret not in redact(f"the key {secret} was refused")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2!",
        "http://ana:hunter2!@proxy:3128",
        "api_key=hunter2!",
        "password: hunter2!".replace(": ", ":"),
        "token=hunter2!,x",
    ],
)
def test_keys_are_known_by_what_stands_in_front_of_them(text):
    assert "hunter2" not in redact(text)


def test_what_is_no_secret_stays():
    said = "engine http://127.0.0.1:8080: llamacpp b0, slots: 4, models: tiny"
    assert redact(said) == said


def test_a_secret_at_the_cut_is_no_secret_that_is_half_told():
    journal = Journal()
    journal.handle(record("x" * 460 + " mgw_live_abcDEF123abcDEF123"))
    assert "mgw_live" not in journal.tail(1)[0]
