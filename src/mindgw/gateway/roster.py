"""The workers and what they offer, as values for management: made when somebody looks."""

from datetime import UTC, datetime

from mindgw.core.breaker import SHUT
from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import Seat, Worker
from mindgw.gateway.snapshot import CircuitView, EngineView, ModelView, Offer, WorkerView


def workers(fleet: Fleet, now: float) -> list[WorkerView]:
    """All that are connected."""
    return [_view(worker, circuits(fleet, worker.id, now)) for worker in fleet.workers.values()]


def circuits(fleet: Fleet, worker_id: str, now: float) -> list[CircuitView]:
    """The models that fail on a worker; one that fails on several of its engines as it is where least is sent."""
    tripped = [circuit for circuit in fleet.breaker.tripped.values() if circuit.place[0][0] == worker_id]
    tripped.sort(key=lambda circuit: (circuit.state in SHUT, circuit.until))
    shown = {circuit.place[1]: circuit for circuit in tripped}
    return [
        CircuitView(model=model, state=circuit.state.value, retry_s=round(max(0.0, circuit.until - now), 1))
        for model, circuit in shown.items()
    ]


def models(fleet: Fleet, where: Where = EVERYWHERE) -> list[ModelView]:
    """What can be asked for now of workers in a place, by name."""
    return [_model(id, seats) for id, seats in sorted(fleet.models(where).items())]


def offers(fleet: Fleet, where: Where = EVERYWHERE) -> list[Offer]:
    """The same, as far as callers care."""
    return [Offer(id=view.id, aliases=view.aliases, created=view.created) for view in models(fleet, where)]


def _view(worker: Worker, failing: list[CircuitView]) -> WorkerView:
    return WorkerView(
        id=worker.id,
        name=worker.name,
        state=worker.state.value,
        reason=worker.charge,
        paused_until=datetime.fromtimestamp(worker.paused_until, UTC) if worker.paused_until else None,
        teams=list(worker.teams),
        slots=worker.slots,
        used=worker.used,
        engines=[_engine(seat) for seat in worker.seats.values()],
        gpus=list(worker.gpus),
        rtt_ms=round(worker.rtt * 1000, 2) if worker.rtt is not None else None,
        last_seen=datetime.fromtimestamp(worker.last_seen, UTC) if worker.last_seen else None,
        epoch=worker.epoch,
        circuits=failing,
    )


def _model(id: str, seats: list[Seat]) -> ModelView:
    found = [model for seat in seats for model in seat.engine.models if model.id == id]
    return ModelView(
        id=id,
        aliases=sorted({alias for model in found for alias in model.aliases} - {id}),
        created=max(model.created for model in found),
        workers=sorted({seat.worker.name for seat in seats}),
        slots=sum(seat.engine.slots for seat in seats),
        used=sum(seat.used for seat in seats),
        context=min((model.context for model in found if model.context), default=None),
        kinds=sorted({kind for seat in seats for name, kind, *_ in seat.lines() if name == id}),
    )


def _engine(seat: Seat) -> EngineView:
    engine = seat.engine
    return EngineView(
        id=engine.id,
        kind=engine.kind,
        version=engine.version,
        url=engine.url,
        healthy=engine.healthy,
        error=engine.error,
        slots=engine.slots,
        used=seat.used,
        models=engine.models,
    )
