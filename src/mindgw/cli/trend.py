"""How a worker was, drawn as lines of small bars."""

import shutil
from collections.abc import Sequence
from typing import Any

from mindgw.cli.durations import seconds, span
from mindgw.cli.invocation import Invocation
from mindgw.cli.render import Column, Item
from mindgw.client import api
from mindgw.client.errors import UsageProblem

#: Bars from the lowest to the highest, and those of a terminal that knows no others.
BARS, ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"
#: The most seconds that a worker is remembered, and the length of the steps that there are.
_LONGEST, _STEP, _LONG_STEP = 400 * 86_400, 10, 3600
#: Columns of the screen that the numbers take, and the fewest and the most that the bars do.
_NUMBERS, _FEWEST, _MOST = 62, 12, 96
#: Bytes of a gibibyte.
_GIB = 2**30

Numbers = Sequence[float | None]


def show(run: Invocation, worker: str, text: str, *, is_ascii: bool) -> None:
    """Draws the last while of a worker. Raises UsageProblem for what is no span."""
    length = seconds(text)
    if length > _LONGEST:
        raise UsageProblem(f"{text!r} is longer than workers are remembered", hint=f"{_LONGEST // 86_400}d is the most")
    as_drawn = run.options.output == "table"
    step = _step(length, min(_MOST, max(_FEWEST, shutil.get_terminal_size().columns - _NUMBERS))) if as_drawn else 0
    told = run.server().call(api.worker_trend(worker, since=f"{length}s", step=f"{step}s" if step else ""))
    if run.options.output == "json":
        run.render.item(told, (), name="worker")
        return
    bars = ASCII if is_ascii or not run.render.draws(BARS) else BARS
    run.render.items(
        [_line(name, column, told["columns"]) for name, column in sorted(told["columns"].items(), key=_rank)], _columns(bars), name="name"
    )
    if told["columns"]:
        run.render.note(f"{told['worker']}: {text} until now; a bar is {span(told['step_s'])}, a blank that nothing was measured")


def spark(numbers: Numbers, low: float, high: float, bars: str = BARS) -> str:
    """One bar a number between two bounds, a blank for none."""
    reach = high - low
    last = len(bars) - 1
    return "".join(" " if n is None else bars[round(last * min(1.0, max(0.0, (n - low) / reach))) if reach > 0 else 0] for n in numbers)


def _step(length: int, columns: int) -> int:
    """Seconds of a bar, so that no more than so many are needed."""
    unit = _STEP if length <= columns * _LONG_STEP else _LONG_STEP
    return -(-length // (columns * unit)) * unit


def _rank(item: tuple[str, Any]) -> tuple[int, int, str]:
    """Slots first, then requests and tokens, then the GPUs in their order."""
    name, _ = item
    whole = ("used", "slots", "elsewhere", "requests", "tokens")
    gpu = name.partition(".")[0].removeprefix("gpu")
    return (whole.index(name), 0, "") if name in whole else (len(whole), int(gpu) if gpu.isdigit() else 0, name)


def _line(name: str, column: Item, columns: Item) -> Item:
    kind = name.rpartition(".")[2]
    mean: list[float | None] = column["mean"]
    low = min((n for n in column["low"] if n is not None), default=0.0)
    high = max((n for n in column["high"] if n is not None), default=0.0)
    known = [n for n in mean if n is not None]
    top = {"utilisation": 1.0, "used": max((n for n in columns.get("slots", column)["high"] if n is not None), default=high)}.get(
        kind, high
    )
    return {
        "name": name, "kind": kind, "mean": mean, "bottom": low if kind == "temperature" else 0.0, "top": top,
        "low": low, "high": high, "average": _mean(mean, column["count"]), "last": known[-1] if known else 0.0,
    }  # fmt: skip


def _mean(means: Numbers, counts: Sequence[int]) -> float:
    """Of all that was measured, given what was of each step."""
    return sum(mean * count for mean, count in zip(means, counts, strict=True) if mean is not None) / max(1, sum(counts))


def _columns(bars: str) -> tuple[Column, ...]:
    return (
        Column("MEASURE", lambda line: str(line["name"])),
        Column("TREND", lambda line: spark(line["mean"], line["bottom"], line["top"], bars)),
        Column("MIN", lambda line: _shown(line["low"], line["kind"])),
        Column("MEAN", lambda line: _shown(line["average"], line["kind"])),
        Column("MAX", lambda line: _shown(line["high"], line["kind"])),
        Column("LAST", lambda line: _shown(line["last"], line["kind"])),
    )


def _shown(number: float, kind: str) -> str:
    match kind:
        case "memory":
            return f"{number / _GIB:.1f}GiB"
        case "utilisation":
            return f"{100 * number:.0f}%"
        case "temperature":
            return f"{number:.0f}°C"
        case "requests" | "tokens":
            return f"{number:.1f}/s"
        case _:
            return f"{number:.1f}".removesuffix(".0")
