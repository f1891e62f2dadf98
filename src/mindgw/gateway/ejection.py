"""Engines that are left alone because a model fails there: what the fleet's breaker (`core.breaker`) knows, as it matters to a line."""

from collections.abc import Iterator

from mindgw.core.breaker import SHUT, Place
from mindgw.core.routing import EVERYWHERE, Where, permits
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.rank import NOBODY, SeatId

FOREVER = float("inf")


def present(fleet: Fleet, model: str, kind: str, where: Where = EVERYWHERE) -> Iterator[SeatId]:
    """Ids of the seats in a place that may be sent such requests now, free or not."""
    return (seat.id for seat in fleet.seats(model, kind, where) if seat.is_up)


def held(fleet: Fleet, model: str, kind: str, now: float, where: Where = EVERYWHERE) -> frozenset[SeatId]:
    """Ids of those of them that take none, because the model fails there."""
    breaker = fleet.breaker
    if not breaker.tripped:
        return NOBODY
    line = fleet.line(model, kind, where)
    known = fleet.ejected.get(line)
    if known is not None and known[0] == fleet.changes and known[1] == breaker.changes and now < known[2]:
        return known[3]
    places = [place for place in breaker.tripped if _serves(fleet, place, model, kind, where)]
    out = breaker.held(places, present(fleet, model, kind, where), now) if places else NOBODY
    until = min(map(breaker.shuts, places), default=FOREVER)
    if places:
        fleet.ejected[line] = (fleet.changes, breaker.changes, until, out)
    return out


def others(fleet: Fleet, model: str, kind: str, shun: frozenset[SeatId], now: float, where: Where = EVERYWHERE) -> bool:
    """Whether there is any that is neither shunned nor left alone."""
    out = shun | held(fleet, model, kind, now, where)
    return any(seat not in out for seat in present(fleet, model, kind, where))


def cut_off(fleet: Fleet, model: str, kind: str, now: float, where: Where = EVERYWHERE) -> float | None:
    """Seconds until the only engine of a line is tried again, when it is left alone; None when there is one that takes requests, none at
    all, or a probe under way."""
    out = held(fleet, model, kind, now, where)
    if not out or any(seat not in out for seat in present(fleet, model, kind, where)):
        return None
    waits = [circuit.until - now for (seat, _model), circuit in fleet.breaker.tripped.items() if seat in out and circuit.state in SHUT]
    return min((wait for wait in waits if wait > 0), default=None)


def _serves(fleet: Fleet, place: Place, name: str, kind: str, where: Where) -> bool:
    (owner, engine), id = place
    worker = fleet.workers.get(owner)
    seat = worker.seats.get(engine) if worker is not None else None
    if seat is None or not seat.is_up or not permits(where, seat.tags):
        return False
    model = seat.model(name)
    return model is not None and model.id == id and (name, kind) in seat.lines()
