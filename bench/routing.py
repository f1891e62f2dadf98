"""Routing on real engines of unequal speed: one server, three agents, three llama.cpp servers, and the same conversations by each strategy.

`python -m bench.routing` takes about three minutes. The engines differ by the size of the model that they compute under the same name, so
their speeds are real. They share this machine's cores, which boxes do not: that favours whoever gives the small one more to do.
"""

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import msgspec
from msgspec import Struct

from bench import conversations, gateway
from bench.conversations import Heard
from bench.cores import AGENT, ENGINE, Plan
from bench.gateway import Gateway
from bench.meter import Meter, Reading
from bench.processes import NotReady, Processes, get
from bench.tables import Table, columns, markdown
from mindgw.quickstart import tiny_model
from mindgw.quickstart.tiny_model import Shape

#: The boxes and the sizes of their models, 1, 3.4 and 8 times as much to compute for a token; and where two cores have all they can do with
#: it: 1, 2.4 and 4.6 times as much, the first of them 3.4 times that of the first before.
SMALL = {
    "quick": Shape(embd=128, layers=2, feed_forward=384, eos=-60.0),
    "middle": Shape(embd=192, layers=3, feed_forward=512, eos=-60.0),
    "slow": Shape(embd=256, layers=4, feed_forward=768, eos=-60.0),
}
LARGE = {
    "quick": Shape(embd=192, layers=3, feed_forward=512, eos=-60.0),
    "middle": Shape(embd=256, layers=4, feed_forward=768, eos=-60.0),
    "slow": Shape(embd=320, layers=5, feed_forward=1024, eos=-60.0),
}
BOXES = tuple(SMALL)
#: The name of the model, and slots and tokens of context of each box.
MODEL, SLOTS, CONTEXT = "bench", 2, 8192
STRATEGIES = ("round-robin", "score")
#: Conversations, turns of each, and rounds.
CONVERSATIONS, TURNS, ROUNDS = 10, 6, 3
#: Conversations of two turns before anything is measured, so that the gateway knows the boxes: by turns, as nothing is known yet.
WARM = 6
#: Ticks of a second.
_TICKS = os.sysconf("SC_CLK_TCK")


class Window(Struct, frozen=True):
    """One strategy in one round; seconds and shares."""

    strategy: str
    round: int
    answers: int
    first_p50: float
    first_p95: float
    whole: float
    #: Tokens of prompts that engines remembered.
    cached: float
    #: Answers of each box.
    boxes: dict[str, int]
    #: Of the machine's time: what the hypervisor withheld, what anybody used, and what our processes did.
    steal: float
    busy: float
    ours: float
    wrong: list[str]


def main(words: Sequence[str] | None = None) -> int:
    """0 when every answer was one; 1 when one was not, or when something did not start; 130 on a signal."""
    options = _asked(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way out ends the processes
    folder = Path(tempfile.mkdtemp(prefix="mindgw-bench-"))
    try:
        with Processes(folder, Plan({})) as processes:
            server = _start(processes, LARGE if options.large else SMALL)
            windows, heard = asyncio.run(_measure(server, Meter(processes.pids), options))
    except NotReady as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    every = [summary(strategy, 0, heard[strategy]) for strategy in STRATEGIES]
    if options.json:
        print(msgspec.json.encode({"all": every, "windows": windows}).decode())
    else:
        shape = markdown if options.markdown else columns
        print(_table([*windows, *every], shape), _verdict(every), sep="\n\n")
    return 1 if any(window.wrong for window in windows) else 0


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description="Routing on real engines of unequal speed.")
    parser.add_argument("--quick", action="store_true", help="just enough to see that it runs")
    parser.add_argument("--large", action="store_true", help="larger models: two cores have all they can do with them")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds")
    parser.add_argument("--seed", type=int, default=1, help="of the conversations; each round has its own")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page")
    options = parser.parse_args(words)
    options.size = (2, 2) if options.quick else (CONVERSATIONS, TURNS)
    options.rounds = 1 if options.quick else max(1, options.rounds)
    return options


# -- what runs ---------------------------------------------------------------------------------------------------------


def _start(processes: Processes, shapes: Mapping[str, Shape]) -> Gateway:
    """Everything, ready; and a route of the name of each strategy."""
    engines = {name: _engine(processes, name, shape) for name, shape in shapes.items()}
    server = gateway.begin(processes, gateway.template(processes), "server")
    gateway.await_ready(processes, server)
    made = gateway.managed(server, "POST", "/api/v1/join-tokens", {"ttl_seconds": 600, "max_uses": len(BOXES), "approve": "auto"})
    for name, url in engines.items():
        words = ("--name", name, "--engine-url", url, "--slots", str(SLOTS), "--server", server.url)
        state = ("--state-dir", str(processes.folder / f"state-{name}"))
        processes.start(AGENT, f"agent-{name}", "mindgw", "agent", "join", str(made["token"]), *words, *state)
    processes.until(lambda: _ready(server) == len(BOXES), "the agents have joined")
    for strategy in STRATEGIES:
        gateway.managed(server, "POST", "/api/v1/routes", {"name": strategy, "to": [MODEL], "strategy": strategy})
    return server


def _engine(processes: Processes, name: str, shape: Shape) -> str:
    """Its URL."""
    model = tiny_model.write(processes.folder / f"{name}.gguf", shape)
    words = (str(model), "--alias", MODEL, "--parallel", str(SLOTS), "--ctx", str(SLOTS * CONTEXT))
    engine = processes.start(ENGINE, f"engine-{name}", "mindgw.quickstart.engine", *words)
    return str(json.loads(processes.announced(engine))["url"])


def _ready(server: Gateway) -> int:
    status, body = get(server.port, "/api/v1/workers", server.key)
    return [worker["state"] for worker in json.loads(body)["items"]].count("ready") if status == 200 else 0


# -- what is measured --------------------------------------------------------------------------------------------------


async def _measure(server: Gateway, meter: Meter, options: argparse.Namespace) -> tuple[list[Window], dict[str, list[Heard]]]:
    """The windows, and all answers of each strategy."""
    await conversations.hold(
        server.port, server.key, STRATEGIES[0], conversations.made(1 if options.quick else WARM, 2, options.seed, "warm")
    )
    windows: list[Window] = []
    heard: dict[str, list[Heard]] = {strategy: [] for strategy in STRATEGIES}
    for number in range(1, options.rounds + 1):
        for strategy in STRATEGIES if number % 2 else STRATEGIES[::-1]:
            count, turns = options.size
            workload = conversations.made(count, turns, options.seed + number, f"{number} {strategy}")
            before = meter.read()
            answers = await conversations.hold(server.port, server.key, strategy, workload)
            windows.append(summary(strategy, number, answers, before, meter.read()))
            heard[strategy] += answers
            print(f"round {number}  {strategy}: {windows[-1].answers} answers", *windows[-1].wrong, file=sys.stderr)
    return windows, heard


def summary(strategy: str, number: int, heard: Sequence[Heard], before: Reading | None = None, after: Reading | None = None) -> Window:
    """What some answers came to; `before` and `after`: what the machine did meanwhile."""
    good = [one for one in heard if not one.wrong]
    firsts = sorted(one.first for one in good) or [0.0]
    ticks = after.ticks - before.ticks if before and after else 0
    cpu = sum(after.cpu.values()) - sum(before.cpu.values()) if before and after else 0
    return Window(
        strategy=strategy,
        round=number,
        answers=len(good),
        first_p50=_quantile(firsts, 0.5),
        first_p95=_quantile(firsts, 0.95),
        whole=fmean(one.whole for one in good) if good else 0.0,
        cached=sum(one.cached for one in good) / max(1, sum(one.prompt for one in good)),
        boxes={name: sum(one.by == name for one in good) for name in BOXES},
        steal=(after.steal - before.steal) / ticks if before and after and ticks else 0.0,
        busy=(after.used - before.used) / ticks if before and after and ticks else 0.0,
        ours=cpu * _TICKS / ticks / 1e9 if ticks else 0.0,
        wrong=sorted({one.wrong for one in heard if one.wrong}),
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    """Of numbers in their order: the smallest that so many are not above."""
    return ordered[math.ceil(part * len(ordered)) - 1]


def _table(windows: Sequence[Window], shape: Table) -> str:
    head = ("round", "strategy", "answers", "first p50 s", "p95 s", "whole s", "remembered", *BOXES, "steal", "busy", "ours")
    return shape(head, [_line(window) for window in windows])


def _line(window: Window) -> tuple[str, ...]:
    machine = (f"{window.steal:.1%}", f"{window.busy:.0%}", f"{window.ours:.0%}") if window.round else ("", "", "")
    return (
        str(window.round or "all"), window.strategy, str(window.answers), f"{window.first_p50:.2f}", f"{window.first_p95:.2f}",
        f"{window.whole:.2f}", f"{window.cached:.0%}", *(str(count) for count in window.boxes.values()), *machine,
    )  # fmt: skip


def _verdict(every: Sequence[Window]) -> str:
    plain, score = every
    better = [1 - new / old if old else 0.0 for old, new in ((plain.first_p50, score.first_p50), (plain.first_p95, score.first_p95))]
    return f"score against round-robin: p50 {-better[0]:+.0%}, p95 {-better[1]:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
