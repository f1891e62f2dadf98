"""The coverage the house asks for, held against a `coverage json` report: silent when met.

100 % of lines and branches in the pure rooms, 90 % in every other room. usage: coverage_gate.py REPORT.json
Exits 1 and names each file or room that fell short, with what is lacking.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path, PurePath
from typing import Any

#: Rooms that decide and do nothing else: there is no excuse for a branch that no test takes.
PURE = (
    "mindgw/core/*.py",
    "mindgw/core/*/*.py",
    *(f"mindgw_agent/{name}.py" for name in ("aggregate", "flow", "payload", "receipt", "records", "session", "sse", "tokens", "wire")),
)

#: Percent asked of every other room.
ELSEWHERE = 90.0


def room_of(path: str) -> str:
    """The room that a file stands in: the two names below `src`, `mindgw/gateway` or `mindgw/config.py`."""
    parts = PurePath(path).parts
    return "/".join(parts[parts.index("src") + 1 :][:2])


def counted(summary: dict[str, Any]) -> tuple[int, int]:
    """Lines and branches taken, and all there are."""
    return summary["covered_lines"] + summary["covered_branches"], summary["num_statements"] + summary["num_branches"]


def lacking(report: dict[str, Any]) -> str:
    lines = [str(line) for line in report["missing_lines"]]
    arrows = [f"{start}->{'exit' if end < 0 else end}" for start, end in report["missing_branches"]]
    return ", ".join((lines + arrows)[:12])


def shortfalls(files: dict[str, Any]) -> list[str]:
    """One line for each pure file under 100 % and each other room under 90 %."""
    found = []
    rooms: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for path, report in sorted(files.items()):
        taken, there = counted(report["summary"])
        if not any(PurePath(path).match(pattern) for pattern in PURE):
            rooms[room_of(path)].append((taken, there, PurePath(path).name))
        elif taken < there:
            found.append(f"{path} is pure and {100 * taken / there:.1f} % covered; lacking {lacking(report)}")
    for room, members in sorted(rooms.items()):
        taken, there = sum(t for t, _, _ in members), sum(n for _, n, _ in members)
        if taken < there * ELSEWHERE / 100:
            worst = sorted(members, key=lambda member: member[0] - member[1])[:4]
            named = ", ".join(f"{name} {n - t} of {n}" for t, n, name in worst)
            found.append(f"{room} is {100 * taken / there:.1f} % covered, {ELSEWHERE:.0f} is asked; not taken: {named}")
    return found


def main(report: str) -> int:
    found = shortfalls(json.loads(Path(report).read_text())["files"])
    for line in found:
        print(f"coverage: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
