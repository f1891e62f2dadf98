"""The figures as text: columns for people at a terminal, or Markdown for a page."""

from collections.abc import Callable, Sequence

from bench.cases import AIOHTTP, HELLO
from bench.report import Figures, Row
from bench.targets import Target, observed

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

HEAD = (
    "case", "target", "rate/s", "p50 ms", "p99 ms", "gap p99", "lag p50", "lag p99", "server us", "agent us", "x hello", "x aiohttp",
    "core", "others", "steal", "foreign", "errors",
)  # fmt: skip


def columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Numbers stand to the right, words to the left."""
    body = [head, *lines]
    widths = [max(len(line[column]) for line in body) for column in range(len(head))]
    words = {column for column in range(len(head)) if all(not line[column][:1].isdigit() for line in lines)}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in words or column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in body
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def cases(rows: Sequence[Row], shape: Table = columns) -> str:
    """One line a case and target; `rows`: the best of each."""
    at = Figures(rows)
    return shape(HEAD, [_cells(each, at) for each in rows if each.start_s is None])


def _cells(row: Row, at: Figures) -> list[str]:
    name = "c1" if row.case.startswith("spread") else row.case if at.cost(row.case, HELLO) else "c64"
    hello = None if row.per == "chunk" else at.cost(name, HELLO)
    ours = row.cpu_us.get("server")
    return [
        f"{row.case} /{row.per}",
        row.target,
        f"{row.rate:.0f}",
        *(_number(value) for value in (row.p50_ms, row.p99_ms, row.gap_p99_ms, row.lag_p50_ms, row.lag_p99_ms)),
        *(_number(value, 1) for value in (ours, row.cpu_us.get("agent"))),
        _number(ours / hello if ours and hello else None),
        _number(at.ratio(row.case, row.target, AIOHTTP)),
        _percent(row.busy),
        _percent(row.busy_others),
        _percent(row.steal),
        _percent(row.foreign),
        str(sum(row.errors.values())),
    ]


def targets(found: Sequence[Target], shape: Table = columns) -> str:
    head = ("what", "measured", "must", "met", "aim", "met")
    lines = [
        (
            each.what + (f" ({each.spoilt})" if each.spoilt else ""),
            "" if each.value is None else f"{each.value:.2f} {each.unit}",
            f"{each.must:.3g}",
            each.met(each.must),
            "" if each.aim is None else f"{each.aim:.3g}",
            each.met(each.aim),
        )
        for each in found
    ]
    return shape(head, lines)


def growth(rows: Sequence[Row], shape: Table = columns) -> str:
    """What was measured without a promise; "" when none of it was."""
    lines = [(what, f"{value:.2f} x") for what, value in observed(rows) if value is not None]
    return shape(("also", "measured"), lines) if lines else ""


def errors(rows: Sequence[Row]) -> list[str]:
    """What went wrong, a line each."""
    return [f"{row.case} {row.target}: {times} x {what}" for row in rows for what, times in row.errors.items()]


def limit(rows: Sequence[Row]) -> str:
    """Whether the callers were quick enough for the quickest that is measured; "" when that was not measured."""
    hello = Figures(rows).row("c64", HELLO)
    if hello is None or hello.busy is None or hello.busy_others is None:
        return ""
    verdict = "the server is the limit" if hello.busy > hello.busy_others else "the callers are the limit, its rate says nothing"
    return f"hello with 64 callers: {hello.busy:.0%} of its core, {hello.busy_others:.0%} of the callers': {verdict}"


def quiet(rows: Sequence[Row]) -> str:
    """What kept the machine from us, the worst of each round; `rows`: of all rounds."""
    rounds = [[each for each in rows if each.round == number] for number in sorted({each.round for each in rows})]
    steal, foreign = (", ".join(f"{max(getattr(each, name) for each in found):.0%}" for found in rounds) for name in ("steal", "foreign"))
    return f"at worst in each round: steal {steal}; other programs {foreign} of the machine"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
