"""Simulates the queue and the choice of boxes in virtual time: prints what every order and strategy does to every workload, and which
promises hold."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from bench.simulation import drawing, routing, scenarios, traces
from bench.simulation.costs import Cost, Decision
from bench.simulation.figures import Route, Waits
from bench.simulation.scenarios import Found, Row, Target


def main(words: Sequence[str] | None = None) -> int:
    """0 when everything ran; 1 when a file could not be read or written, or with --check when a promise does not hold; 2 when the words
    mean nothing; 130 when interrupted."""
    options = _asked(words)
    try:
        workloads = [traces.load(path) for path in options.trace]
        found, costs, decisions = _found(options, workloads)
        if options.plot is not None:
            options.plot.write_text(drawing.picture(found.curves), encoding="utf-8")
    except traces.BadTrace as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"error: {options.plot}: {problem.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if options.json:
        targets = [{**msgspec.structs.asdict(each), "met": each.met} for each in found.targets]
        kernel = {"kernel": costs, "decisions": decisions}
        print(msgspec.json.encode({"rows": found.rows, "routes": found.routes, **kernel, "targets": targets}).decode())
    else:
        parts = (_rows(found.rows), _routes(found.routes), _costs(costs), _decisions(decisions), _targets(found.targets))
        print("\n\n".join(part for part in parts if part))
    # what depends on the machine is shown, never judged
    return 1 if options.check and not all(each.met for each in found.targets if not each.machine) else 0


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate",
        description="Simulate queue and routing; docs/explanation/fairness.md and routing.md explain the tables.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter scenarios: seconds instead of a minute or two")
    parser.add_argument("--json", action="store_true", help="print one object instead of tables")
    parser.add_argument("--trace", action="append", type=Path, default=[], metavar="FILE", help="a recorded trace, too; may be repeated")
    parser.add_argument(
        "--load", action="append", type=_load, metavar="X", help="part of what the boxes can do that traces ask for (0.9, 1.1)"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only these scenarios, `routing`, `traces` and `kernel` among them; may be repeated"
    )
    parser.add_argument("--plot", type=Path, metavar="OUT.SVG", help="draw the curves")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when a promise does not hold, but for those that depend on the machine"
    )
    options = parser.parse_args(words)
    names = [name for name, _ in scenarios.all_of(quick=False)] + ["routing", "traces", "kernel"]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return options


def _load(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError("must be from 0.01 to 100")
    return value


def _found(options: argparse.Namespace, workloads: Sequence[traces.Workload]) -> tuple[Found, list[Cost], list[Decision]]:
    loads = options.load or scenarios.LOADS
    runs: list[tuple[str, Callable[[], Found]]]
    runs = [*scenarios.all_of(options.quick), ("routing", partial(routing.all_of, options.quick, workloads))]
    runs += ((f"trace {each.name}", partial(scenarios.trace, each, loads)) for each in workloads)
    found = Found([], [], {})
    costs: list[Cost] = []
    decisions: list[Decision] = []
    for name, run in runs:
        if _wanted(options.only, "traces" if name.startswith("trace ") else name):
            began = time.perf_counter()
            found.add(run())
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    if _wanted(options.only, "kernel"):
        costs, targets = scenarios.kernel((100,) if options.quick else (100, 10_000, 100_000))
        decisions, more = routing.decisions(rounds=3 if options.quick else 15)
        found.targets += [*targets, *more]
    return found, costs, decisions


def _wanted(only: Sequence[str] | None, name: str) -> bool:
    return not only or name in only


# -- tables -------------------------------------------------------------------------------------------------------------

HEAD = (
    "workload",
    "order",
    "requests",
    "wait p50",
    "p95",
    "p99 s",
    "Jain least",
    "mean",
    "slots used",
    "units/s",
    "ETA err p50",
    "p90",
    "",
)


def _rows(rows: Sequence[Row]) -> str:
    lines: list[Sequence[str]] = []
    last = ""
    for row in rows:
        if row.scenario != last:
            last = row.scenario
            lines.append((row.scenario, *[""] * (len(HEAD) - 1)))
        lines.append(_line(row))
        lines += [_group(name, waits) for name, waits in row.groups.items() if 1 < len(row.groups) <= 4]
    return _table(HEAD, lines) if lines else ""


def _line(row: Row) -> Sequence[str]:
    fair, eta = row.fairness, row.eta
    return (
        "",
        row.policy,
        *_waits(row.waits),
        *((f"{fair.least:.3f}", f"{fair.mean:.3f}") if fair.windows else ("-", "-")),
        "-" if row.utilisation is None else f"{row.utilisation:.1%}",
        f"{row.throughput:.0f}",
        *((f"{eta.median:.0%}", f"{eta.p90:.0%}") if eta.forecasts else ("-", "-")),
        ", ".join(f"{name} {value:.4g}" for name, value in row.more.items()),
    )


def _group(name: str, waits: Waits) -> Sequence[str]:
    return "", f"  {name}", *_waits(waits), *[""] * 7


def _waits(waits: Waits) -> Sequence[str]:
    return str(waits.requests), f"{waits.p50:.1f}", f"{waits.p95:.1f}", f"{waits.p99:.1f}"


def _routes(routes: Sequence[Route]) -> str:
    head = ("workload", "load", "strategy", "requests", "first p50", "p95", "p99 s", "whole s", "remembered", "models loaded")
    lines: list[Sequence[str]] = []
    last = ("", 0.0)
    for each in routes:
        new, last = (each.workload, each.load) != last, (each.workload, each.load)
        names = (each.workload, f"{each.load:g}" if each.load else "") if new else ("", "")
        seconds = (f"{value:.2f}" for value in (each.first_p50, each.first_p95, each.first_p99, each.whole))
        lines.append((*names, each.strategy, str(each.requests), *seconds, f"{each.hits:.0%}", str(each.loads)))
    return _table(head, lines, left=(0, 2)) if lines else ""


def _decisions(decisions: Sequence[Decision]) -> str:
    head = ("workers", "score us", "no prefix us", "least busy us", "hash 8 KiB us")
    lines = [(str(each.workers), *(f"{us:.1f}" for us in msgspec.structs.astuple(each)[1:])) for each in decisions]
    return _table(head, lines, left=()) if lines else ""


def _costs(costs: Sequence[Cost]) -> str:
    head = ("entries", "enqueue us", "dispatch us", "cancel us", "cancel p99", "ahead us", "MB")
    lines = [
        (
            str(cost.entries),
            *(f"{each:.1f}" for each in (cost.enqueue_us, cost.dispatch_us, cost.cancel_us, cost.cancel_p99_us, cost.ahead_us)),
            "" if cost.megabytes is None else f"{cost.megabytes:.0f}",
        )
        for cost in costs
    ]
    return _table(head, lines) if lines else ""


def _targets(targets: Sequence[Target]) -> str:
    lines = [
        ("yes" if each.met else "NO", f"{each.value:.3f}", f"{'>=' if each.least else '<='} {each.bound:.4g}", each.name)
        for each in targets
    ]
    return _table(("holds", "value", "promised", "what"), lines, left=(3,)) if lines else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int] = (0, 1, 12)) -> str:
    """Columns as wide as they need; the first is only as wide as its head when a line has nothing else."""
    body = [head, *lines]
    widths = [max((len(line[column]) for line in body if any(line[1:])), default=0) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in body
    )


if __name__ == "__main__":
    sys.exit(main())
