"""Round by round: each case on each target, with whoever is to be there meanwhile."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from bench import bystanders, cases, gateway, load, report
from bench.cases import Case, Size
from bench.cores import Plan
from bench.meter import Meter
from bench.report import Roles, Row
from bench.stage import Stage

#: Seconds between two looks at the memory of a process.
_LOOK = 0.05


async def run(stage: Stage, chosen: Sequence[Case], size: Size, plan: Plan) -> list[Row]:
    """All rounds. Raises NotReady when something ends that was to stay."""
    meter = stage.meter()
    rows: list[Row] = []
    wanted = [case for case in chosen if case.target in stage.doors or case.cold or case.fleet]
    for number in range(1, size.rounds + 1):
        for case in wanted:
            rows.append(await _measured(stage, case, size, meter, plan, number))
            print(f"round {number}  {case.name} {case.target}: {rows[-1].answers} answers", *rows[-1].errors.items(), file=sys.stderr)
            if rows[-1].errors:
                print(stage.processes.words(), file=sys.stderr)
    return rows


async def _measured(stage: Stage, case: Case, size: Size, meter: Meter, plan: Plan, number: int) -> Row:
    if case.cold:
        return _cold(stage, case, size, number)
    if case.fleet and stage.fleet is not None:
        stage.processes.ask(stage.fleet, f"agents {size.count(case.fleet)}")
    roles = stage.parts(case)
    with_memory = case.slow > 0
    before = meter.memory(roles.server)
    seen = [before]
    async with _bystanders(stage, case, size) as wrong, _watched(meter, roles, seen):
        window = await load.run(cases.load(case, size, stage.door(case)), meter, size.seconds)
    row = report.row(case, number, window, roles, plan.others, grown=seen[0] - before if with_memory else None)
    return msgspec.structs.replace(row, errors={**row.errors, **wrong})


def _cold(stage: Stage, case: Case, size: Size, number: int) -> Row:
    assert stage.template is not None
    seconds, held = gateway.cold_start(stage.processes, stage.template, size.rest)
    return Row(case=case.name, target=case.target, round=number, start_s=seconds, rss_mb=held / 1e6, answers=1)


@asynccontextmanager
async def _bystanders(stage: Stage, case: Case, size: Size) -> AsyncIterator[dict[str, int]]:
    """Gives what went wrong with them, complete when the context is left."""
    wrong: dict[str, int] = {}
    door = stage.door(case)
    where = cases.load(case, size, door)
    if case.slow:
        readers = bystanders.SlowReaders(where.host, where.port, cases.long(door), size.count(case.slow), cases.LONG)
        async with readers:
            await asyncio.sleep(size.rest)  # what is to pile up does
            yield wrong
        wrong.update(readers.wrong)
    elif case.held:
        streams = bystanders.Held(where.host, where.port, cases.held(door), size.count(case.held))
        async with streams:
            yield wrong
            wrong.update(streams.wrong)
        await _none_is_held(stage)
    else:
        yield wrong


async def _none_is_held(stage: Stage) -> None:
    """The server has told the fleet that nobody waits for those streams any more."""
    assert stage.fleet is not None
    async with asyncio.timeout(load.PATIENCE):
        while stage.processes.ask(stage.fleet, "streams") != "0":
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def _watched(meter: Meter, roles: Roles, seen: list[int]) -> AsyncIterator[None]:
    """Raises the only number in `seen` to what the server's memory comes to, looking now and then."""

    async def look() -> None:
        while True:
            seen[0] = max(seen[0], meter.memory(roles.server))
            await asyncio.sleep(_LOOK)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
