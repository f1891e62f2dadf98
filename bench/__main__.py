"""Runs the benchmark: starts everything, measures round by round, prints tables, ends everything."""

import argparse
import asyncio
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import uvloop

from bench import cases, cores, document, report, rounds, stage, tables, targets, where
from bench.answers import MOST_CHUNKS
from bench.cases import Case, Size
from bench.document import Taken
from bench.processes import NotReady, Processes
from bench.stage import Wishes

#: Enough to see that all answers arrive; the times mean nothing.
QUICK = Size(seconds=0.2, rounds=1, chunks=16, rest=0.05, quick=True)

#: What can be set, by the name of the field of Size.
SIZES = {"seconds": "length of a window", "rounds": "interleaved rounds", "chunks": "words of a stream"}
#: The setting that turns the fast lane off.
ASGI_LINE = "fast_lane: false"


def main(words: Sequence[str] | None = None) -> int:
    """0 when every answer was right, however long it took; 1 when one was not, or when something did not start; 130 on a signal."""
    options, size, chosen = _asked(words)
    if not Path("/proc/stat").exists():
        print("error: this needs Linux: CPU is read from /proc", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way out ends the processes
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    plan = cores.plan(cores.available())
    folder = Path(tempfile.mkdtemp(prefix="mindgw-bench-"))
    wishes = Wishes(options.asgi_line, options.setting or (), options.peer or "", options.peer_key, options.engine_port)
    try:
        with Processes(folder, plan) as processes:
            there = stage.start(processes, chosen, size, wishes)
            looked_into = where.prepare(there) if options.profile else None
            os.sched_setaffinity(0, {plan.core[cores.CALLERS]})
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                rows = runner.run(rounds.run(there, chosen, size, plan))
                profiles = runner.run(where.look(there, looked_into, size)) if looked_into else {}
    except NotReady as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder)
    return _tell(options, Taken(document.ground(plan), there.notes, size, rows, profiles))


def _tell(options: argparse.Namespace, run: Taken) -> int:
    folded = report.fold(run.rounds)
    found = targets.targets(folded)
    if options.json:
        judged = [{**msgspec.structs.asdict(each), "met": each.met(each.must), "aim_met": each.met(each.aim)} for each in found]
        whole = {**asdict(run), "best": folded, "targets": judged}
        print(msgspec.json.encode(whole).decode())
    else:
        parts = [f"{name}: {text}" for name, text in run.ground.items()] + [tables.quiet(run.rounds)]
        if run.size.quick:
            parts.append("quick: a few callers for a moment; the figures mean nothing")
        parts += [*run.notes, *filter(None, [tables.limit(folded)]), *tables.errors(folded)]
        shown = [tables.cases(folded), where.table(run.profiles), tables.growth(folded), tables.targets(found)]
        print("\n\n".join(["\n".join(parts), *filter(None, shown)]))
    if options.write_doc:
        document.write(run, folded, found)
    return 1 if any(row.errors or not row.answers for row in folded) else 0


def _asked(words: Sequence[str] | None) -> tuple[argparse.Namespace, Size, list[Case]]:
    """What the command line asks for; exits 2 when it cannot be."""
    parser = _parser()
    options = parser.parse_args(words)
    given = {name: value for name in SIZES if (value := getattr(options, name)) is not None}
    size = replace(QUICK if options.quick else Size(), **given)
    if size.chunks > MOST_CHUNKS:
        parser.error(f"a stream has at most {MOST_CHUNKS} chunks")
    wanted = options.target or [name for name in cases.TARGETS if name != cases.PEER or options.peer]
    if cases.PEER in wanted and not options.peer:
        parser.error("--target peer needs --peer URL")
    if options.profile and cases.GATEWAY not in wanted:
        parser.error("--profile looks into the gateway")
    chosen = cases.chosen(options.case or [], wanted)
    if not chosen:
        parser.error("no such case; there are: " + ", ".join(dict.fromkeys(case.name for case in cases.cases())))
    return options, size, chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="What a request costs; docs/how-to/benchmark.md explains the tables."
    )
    parser.add_argument("--quick", action="store_true", help="one short round that only counts: a smoke test")
    parser.add_argument("--json", action="store_true", help="print one object with the best and all rounds instead of tables")
    parser.add_argument("--write-doc", action="store_true", help="also write the tables into docs/explanation/performance.md")
    parser.add_argument("--profile", action="store_true", help="also say where the time of a server goes; needs a case of the gateway")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this case, or those that begin so; may be repeated")
    parser.add_argument("--target", action="append", choices=cases.TARGETS, help="only this target; may be repeated")
    parser.add_argument("--peer", metavar="URL", help="another gateway, in front of the engine at --engine-port")
    parser.add_argument("--peer-key", default="", metavar="KEY", help="a key that is valid there")
    parser.add_argument("--engine-port", type=_at_least(1, int), default=0, metavar="N", help="port of the mock engine; else a free one")
    parser.add_argument("--setting", action="append", metavar="LINE", help="a line for the settings of the servers; may be repeated")
    parser.add_argument("--asgi-line", default=ASGI_LINE, metavar="LINE", help="the setting that makes the ASGI lane (default %(default)r)")
    for name, what in SIZES.items():
        default = getattr(Size(), name)
        kind = _at_least(1, int) if isinstance(default, int) else _at_least(0, float)
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=f"{what} (default {default:g})")
    return parser


def _at_least(least: int, kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
