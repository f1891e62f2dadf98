"""What an agent says of itself, judged at the door: what is only too much is cut, what cannot be true is a charge against it. PURE.

Numbers were bounded by their types when the report was read; here it becomes something that can be computed with and stored in any amount
of reports, whoever sent them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from mindgw_agent.wire import EngineReport, Gpu, Model, Report

#: Slots that one engine may have; `mindgw agent join --slots` takes no more either.
MAX_SLOTS: Final = 4096
#: Engines of one box, models of one engine, and other names of a model.
MAX_ENGINES: Final = 32
MAX_MODELS: Final = 1000
MAX_ALIASES: Final = 32
MAX_KINDS: Final = 8
MAX_GPUS: Final = 64
#: Characters of a name, and of a text for people.
MAX_NAME: Final = 512
MAX_TEXT: Final = 500
#: Teams that a box may be kept for.
MAX_TEAMS: Final = 200
#: The last second that a date can have.
LAST_SECOND: Final = 253_402_300_799
#: Degrees Celsius between which a GPU can be.
_COLDEST, _HOTTEST = -100.0, 200.0


class Verdict(NamedTuple):
    """A report as it may be used."""

    report: Report
    #: What of it cannot be true, for people; empty when it can.
    charge: str = ""


def judge(report: Report) -> Verdict:
    """Never raises. What is charged may be used all the same, as far as it goes: no engine id comes twice, no list is long."""
    charge = next(filter(None, (_count_charge(report.engines), *map(_slots_charge, report.engines))), "")
    once = list({engine.id: engine for engine in reversed(report.engines)}.values())[::-1]
    engines = [_engine(engine) for engine in once[:MAX_ENGINES]]
    gpus = [_gpu(gpu) for gpu in report.gpus[:MAX_GPUS]]
    judged = replace(
        report,
        engines=engines,
        gpus=gpus,
        hostname=report.hostname[:MAX_NAME],
        paused_until=min(report.paused_until, LAST_SECOND),
        teams=[team[:MAX_NAME] for team in report.teams[:MAX_TEAMS]],
    )
    return Verdict(judged, charge)


def _count_charge(engines: Sequence[EngineReport]) -> str:
    if len(engines) > MAX_ENGINES:
        return f"it reports {len(engines)} engines"
    id, times = max(Counter(engine.id for engine in engines).items(), key=lambda item: item[1], default=("", 0))
    return f"it reports {times} engines with the id {id[:MAX_NAME]!r}" if times > 1 else ""


def _slots_charge(engine: EngineReport) -> str:
    return f"it claims {engine.slots} slots for one engine" if engine.slots > MAX_SLOTS else ""


def _engine(engine: EngineReport) -> EngineReport:
    return replace(
        engine,
        id=engine.id[:MAX_NAME],
        kind=engine.kind[:MAX_NAME],
        version=engine.version[:MAX_NAME],
        url=engine.url[:MAX_NAME],
        slots=min(engine.slots, MAX_SLOTS),
        running=min(engine.running, MAX_SLOTS),
        elsewhere=min(engine.elsewhere, MAX_SLOTS),
        models=[_model(model) for model in engine.models[:MAX_MODELS] if len(model.id) <= MAX_NAME],
        error=engine.error[:MAX_TEXT],
    )


def _model(model: Model) -> Model:
    if len(model.aliases) <= MAX_ALIASES and len(model.kinds) <= MAX_KINDS and not any(len(name) > MAX_NAME for name in model.aliases):
        return model
    aliases = [name for name in model.aliases if len(name) <= MAX_NAME]
    return replace(model, aliases=aliases[:MAX_ALIASES], kinds=model.kinds[:MAX_KINDS])


def _gpu(gpu: Gpu) -> Gpu:
    return replace(
        gpu,
        name=gpu.name[:MAX_NAME],
        memory_used=min(gpu.memory_used, gpu.memory_total),
        utilisation=_within(gpu.utilisation, 0.0, 1.0),
        temperature=_within(gpu.temperature, _COLDEST, _HOTTEST),
    )


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most) if math.isfinite(value) else least
