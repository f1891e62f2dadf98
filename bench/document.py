"""The page docs/explanation/performance.md: a block of it is written by the benchmark, and by nobody else."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench import tables, where
from bench.cases import Size
from bench.cores import Plan
from bench.processes import ROOT
from bench.profiled import Profile
from bench.report import Row
from bench.targets import Target

PAGE = ROOT / "docs/explanation/performance.md"
BEGIN, END = "<!-- written by scripts/bench --write-doc -->", "<!-- end -->"


def ground(plan: Plan) -> dict[str, str]:
    """What the figures were taken on."""
    libraries = ("uvicorn", "uvloop", "httptools", "websockets", "msgspec")
    return {
        "commit": _commit(),
        "machine": f"{_processor()}, {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in libraries),
        "cores": plan.words(),
    }


@dataclass(frozen=True, slots=True)
class Taken:
    """A run: on what, with what left out, how long, and what came of each round."""

    ground: dict[str, str]
    notes: Sequence[str]
    size: Size
    rounds: Sequence[Row]
    #: Where the server's time went, by case; empty when nobody looked.
    profiles: Mapping[str, Profile]


def block(run: Taken, best: Sequence[Row], found: Sequence[Target]) -> str:
    """What stands between the two marks."""
    facts = [f"{name}: {text}" for name, text in run.ground.items()]
    facts.append(f"rounds: {run.size.rounds}, interleaved, windows of {run.size.seconds:g} s; {tables.quiet(run.rounds)}")
    facts += [*run.notes, *filter(None, [tables.limit(best)])]
    facts += [f"wrong: {line}" for line in tables.errors(best)] or ["wrong answers and lost chunks: none"]
    shape = tables.markdown
    shown = [tables.targets(found, shape), tables.growth(best, shape), tables.cases(best, shape), where.table(run.profiles, shape)]
    return "\n\n".join(["\n".join(f"- {fact}" for fact in facts), *filter(None, shown)])


def put(page: str, text: str) -> str:
    """The page with another block. Raises ValueError when the marks are gone."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has lost the marks {BEGIN} and {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def write(run: Taken, best: Sequence[Row], found: Sequence[Target], page: Path = PAGE) -> None:
    page.write_text(put(page.read_text(encoding="utf-8"), block(run, best, found)), encoding="utf-8")


def _commit() -> str:
    try:
        told = subprocess.run(
            ["git", "-C", ROOT, "describe", "--always", "--dirty=, with changes", "--exclude", "*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
