"""Runs the benchmark: starts everything, measures round by round, prints a table, ends everything."""

import argparse
import asyncio
import dataclasses
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from bench import cases, gateway, load, report
from bench.answers import MOST_CHUNKS
from bench.cases import ENGINE, HELLO, SERVER, Case, Size
from bench.meter import Meter
from bench.processes import NotReady, Processes
from bench.report import Row

#: Enough to see that all answers arrive; the times mean nothing.
QUICK = Size(seconds=0.2, rounds=1, connections=8, streams=8, chunks=16, pace_ms=2)

#: What can be set, by the name of the field of Size.
SIZES = {
    "seconds": "length of a window",
    "rounds": "interleaved rounds",
    "connections": "callers at once",
    "streams": "streams at once",
    "chunks": "chunks of a stream",
    "pace_ms": "ms from chunk to chunk",
}


def main(words: Sequence[str] | None = None) -> int:
    """0 when every answer was right, however long it took; 1 when one was not, or when something did not start; 130 on a signal."""
    options, size, chosen = _asked(words)
    if not Path("/proc/stat").exists():
        print("error: this needs Linux: CPU is read from /proc", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way out ends the processes
    folder = Path(tempfile.mkdtemp(prefix="mindgw-bench-"))
    try:
        with Processes(folder) as processes:
            rows = _measure(processes, chosen, size)
    except NotReady as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder)
    folded = report.fold(rows)
    if options.json:
        print(msgspec.json.encode({"size": size, "best": folded, "rounds": rows}).decode())
    else:
        print(report.table(folded, size.rounds))
    return 1 if any(row.errors or not row.answers for row in folded) else 0


def _asked(words: Sequence[str] | None) -> tuple[argparse.Namespace, Size, list[Case]]:
    """What the command line asks for; exits 2 when it cannot be."""
    plain = Size()
    parser = argparse.ArgumentParser(prog="scripts/bench", description="What a request costs; docs/how-to/benchmark.md explains the table.")
    parser.add_argument("--quick", action="store_true", help="one short round that only counts: a smoke test")
    parser.add_argument("--json", action="store_true", help="print one object with the best and all rounds instead of the table")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only cases with this in their name, and their hello; may be repeated"
    )
    for name, what in SIZES.items():
        default = getattr(plain, name)
        kind = _at_least(1, int) if isinstance(default, int) else _at_least(0, float)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{what} (default {default:g})")
    options = parser.parse_args(words)
    given = {name: value for name in SIZES if (value := getattr(options, name)) is not None}
    size = dataclasses.replace(QUICK if options.quick else plain, **given)
    if size.chunks > MOST_CHUNKS:
        parser.error(f"a stream has at most {MOST_CHUNKS} chunks")
    chosen = cases.chosen(size, options.only or [""])
    if not chosen:
        parser.error("no such case; there are: " + ", ".join(case.name for case in cases.cases(size)))
    return options, size, chosen


def _at_least(least: int, kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


def _measure(processes: Processes, chosen: Sequence[Case], size: Size) -> list[Row]:
    targets = {case.target for case in chosen}
    urls = {HELLO: processes.start_program("hello", "bench.hello"), ENGINE: processes.start_program("engine", "bench.engine")}
    key = ""
    if SERVER in targets:
        made = gateway.start(processes, urls[ENGINE], slots=max(size.connections, size.streams))
        urls[SERVER], key = made.url, made.key
    meter = Meter({**processes.pids, "callers": os.getpid()})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_rounds(chosen, size, urls, key, meter))


async def _rounds(chosen: Sequence[Case], size: Size, urls: dict[str, str], key: str, meter: Meter) -> list[Row]:
    rows: list[Row] = []
    for number in range(1, size.rounds + 1):
        here: list[Row] = []
        for case in chosen:
            window = await load.run(cases.load(case, size, urls[case.target], key), meter, size.seconds)
            here.append(report.row(case, number, window, here))
            print(f"round {number}  {case.name}: {here[-1].answers} answers", *here[-1].errors.items(), file=sys.stderr)
        rows += here
    return rows


if __name__ == "__main__":
    sys.exit(main())
