"""What a server may ask of this box besides requests, and how it is done: a fixed list of verbs, each at most once at a time.

A server is not trusted with the box. Nothing that it says is run as a command, opened as a file or dialled as an address: `restart` begins
again what the owner began, `logs` gives the agent's own last words without secrets, `load` and `unload` take models that the engine has,
and `pull` is the owner's to allow, from the registries that are known here.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from mindgw_agent.engines import Unable, Unreachable
from mindgw_agent.engines.engine import Engine, Tell
from mindgw_agent.journal import Journal
from mindgw_agent.offer import Offer
from mindgw_agent.stand import Stand
from mindgw_agent.wire import VERBS, Command, Progress

log = logging.getLogger("mindgw.agent")

#: Seconds between words about something that goes on.
PULSE: Final = 1.0
#: What can be pulled: a name of the engine's own registry, or one that says which of the public ones it is from. No other host.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
PULLED: Final = re.compile(rf"(?:(?:hf\.co|huggingface\.co|registry\.ollama\.ai)/{_NAME}/)?(?:{_NAME}/)?{_NAME}(?::{_NAME})?")

Say = Callable[[Progress], None]


class Refused(Exception):
    """It is not done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Orders:
    """Carries out commands; what they need lives as long as the process. `stop` ends what goes on."""

    def __init__(self, offer: Offer[Any], journal: Journal, *, may_pull: bool = False) -> None:
        self._offer = offer
        self._journal = journal
        self._may_pull = may_pull
        #: Told whether an operator of the server wants nothing new here.
        self.on_stand: Callable[[bool], None] = lambda drained: None
        #: Ends this process once what runs is done, and begins it again; set by whoever can.
        self.on_restart: Callable[[], None] | None = None
        #: What goes on, by verb.
        # bounded: by VERBS
        self._at_work: dict[str, asyncio.Task[None]] = {}

    def begin(self, command: Command, say: Say) -> None:
        """Carry a command out; `say` may be called at once and later, and must not raise. The last word is `done`."""
        if command.verb not in VERBS:
            say(Progress(id=command.id, done=True, error="unknown_command", note=f"this agent does not know {command.verb!r}"))
        elif command.verb in self._at_work:
            say(Progress(id=command.id, done=True, error="busy", note=f"another {command.verb} goes on here"))
        else:
            if not _goes_on(command):
                log.info("the server asks: %s %s", command.verb, command.argument)
            task = self._at_work[command.verb] = asyncio.create_task(self._carry_out(command, say))
            task.add_done_callback(lambda _: self._at_work.pop(command.verb))

    async def stop(self) -> None:
        tasks = list(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, command: Command, say: Say) -> None:
        last = Progress(id=command.id)

        def tell(note: str, part: float | None) -> None:
            nonlocal last
            last = Progress(id=command.id, note=note, part=part)

        work = asyncio.ensure_future(self._DOES[command.verb](self, command.argument, tell))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=PULSE)
                if not work.done():
                    say(last)
            say(_outcome(command.id, work))
        finally:
            work.cancel()
        if command.verb == "restart" and self.on_restart is not None:
            self.on_restart()

    # -- the verbs ---------------------------------------------------------------------------------------------------

    async def _drain(self, _argument: str, _tell: Tell) -> Progress:
        self.on_stand(True)
        return _done(f"{self._offer.running} requests run to their end")

    async def _undrain(self, _argument: str, _tell: Tell) -> Progress:
        self.on_stand(False)
        return _done("it takes requests again")

    async def _restart(self, _argument: str, _tell: Tell) -> Progress:
        if self.on_restart is None:
            raise Refused("unsupported", "this agent cannot begin itself anew")
        return _done(f"it begins anew once {self._offer.running} requests have ended, or after 30 s")

    async def _logs(self, argument: str, _tell: Tell) -> Progress:
        number = argument.removeprefix("+")
        if not (number.isascii() and number.isdigit()):
            raise Refused("bad_argument", "a number of lines, or +N for those after line N")
        lines = self._journal.after(int(number[:15])) if number != argument else self._journal.tail(int(number[:9]))
        return Progress(id=0, done=True, lines=lines, line=self._journal.count)

    async def _load(self, model: str, tell: Tell) -> Progress:
        await self._each(model, lambda engine: engine.load(model, tell))
        return await self._changed(f"{model} is loaded")

    async def _unload(self, model: str, tell: Tell) -> Progress:
        await self._each(model, lambda engine: engine.unload(model, tell))
        return await self._changed(f"{model} is unloaded")

    async def _pull(self, model: str, tell: Tell) -> Progress:
        if not self._may_pull:
            raise Refused("not_allowed", "the owner of this box does not let servers pull models: `mindgw agent join --allow-pull`")
        if PULLED.fullmatch(model) is None:
            raise Refused("bad_argument", "no name of a model in a registry that is known here")
        able = [stand for stand in self._offer.stands if stand.engine is not None and stand.engine.can_pull]
        await self._at(able[0] if able else self._offer.stands[0]).pull(model, tell)
        return await self._changed(f"{model} is pulled")

    async def _each(self, model: str, do: Callable[[Engine], Awaitable[None]]) -> None:
        """Does it at all engines that have a model, one after the other. Raises Refused where none has it; and
        what the first one raised that could not, once all were asked."""
        having = [stand for stand in self._offer.stands if stand.has(model)]
        if not having:
            raise Refused("model_not_found", f"no engine of this box has {model!r}, or its owner does not offer it")
        failed: list[Exception] = []
        for stand in having:
            try:
                await do(self._at(stand))
            except (Refused, Unable, Unreachable, TimeoutError) as wrong:
                failed.append(wrong)
        if failed:
            self._offer.doubted.set()  # what others did, the server should hear of
            raise failed[0]

    @staticmethod
    def _at(stand: Stand[Any]) -> Engine:
        if stand.engine is None:
            raise Refused("engine_unreachable", stand.seen.error)
        engine: Engine = stand.engine
        return engine

    async def _changed(self, note: str) -> Progress:
        self._offer.doubted.set()  # the server should hear of it soon
        return _done(note)

    _DOES: Final[dict[str, Callable[["Orders", str, Tell], Awaitable[Progress]]]] = {
        "drain": _drain,
        "undrain": _undrain,
        "restart": _restart,
        "logs": _logs,
        "load": _load,
        "unload": _unload,
        "pull": _pull,
    }


def _goes_on(command: Command) -> bool:
    """Whether it asks for what has been logged since: a line about that each time would be all that there is."""
    return command.verb == "logs" and command.argument.startswith("+")


def _done(note: str) -> Progress:
    return Progress(id=0, done=True, note=note)


def _outcome(id: int, work: "asyncio.Future[Progress]") -> Progress:
    """The last word about a command."""
    failed = partial(Progress, id=id, done=True)
    try:
        said = work.result()
    except Refused as no:
        return failed(error=no.code, note=str(no))
    except Unable as no:
        return failed(error="unsupported" if no.never else "engine_error", note=str(no))
    except Unreachable as no:
        return failed(error="engine_unreachable", note=str(no))
    except TimeoutError:
        return failed(error="engine_timeout", note="the engine took too long")
    except Exception as wrong:  # the top of a task: the server must hear an end
        log.exception("a command failed")
        return failed(error="internal_error", note=f"the agent failed: {type(wrong).__name__}")
    return Progress(id=id, done=True, note=said.note, lines=said.lines, line=said.line)
