"""Which way requests go: the routes as they are now, held against who asks and against the workers that there are.

Whoever asks has to be good for the name that they ask for and for the model that it comes to; a leg that is not for them is left out.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from mindgw import errors, metrics
from mindgw.core import routing
from mindgw.core.fair import Path
from mindgw.core.routing import Leg, Plan, Route, Rules
from mindgw.gateway import roster
from mindgw.gateway.admission import Caller, is_for, meant, not_found, require_use
from mindgw.gateway.course import Course, begin
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import Flow
from mindgw.gateway.queue import Queue
from mindgw.gateway.route import Needs
from mindgw.gateway.snapshot import Offer

log = logging.getLogger("mindgw.routes")

#: Seconds after which it makes sense to ask again where no worker is that a route leads to.
SOON = 10.0
#: Letters of the name of an end user that count.
_NAME = 64
#: Plans that are remembered.
_PLANS = 10_000
#: What shadow routes would have done that is kept until it is told.
_UNTOLD = 1000
#: What would become of a request: it goes to a worker, in its turn; it waits for one that takes requests, as none does, and is refused when
#: none comes; it is refused at once.
GOES, WAITS, REFUSED = "goes", "waits", "refused"
_NONE_READY: Final = "none of its workers takes requests"
#: Raises the error that says why nobody will serve what is needed.
Check = Callable[[Needs], None]


class Seen(Struct, frozen=True, kw_only=True):
    """A worker that a leg leads to."""

    name: str
    #: ready, draining and so on.
    state: str
    used: int
    slots: int


class Stop(Struct, frozen=True, kw_only=True):
    """A leg, and what stands in the way of it."""

    model: str
    #: Tags that a worker must have, such as zone=lab.
    where: list[str]
    #: Whether it may be used by who asks.
    allowed: bool
    #: Connected workers that serve the model there.
    workers: list[Seen]
    #: "" when it can be gone to; else why not.
    why_not: str


class Way(Struct, frozen=True, kw_only=True):
    """What would become of a request."""

    model: str
    kind: str
    #: Name of the route that it takes, and of the one that it would take if that counted; None: none.
    route: str | None
    shadow: str | None
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool
    #: What who asks is bound to, such as region=eu.
    home: list[str]
    legs: list[Stop]
    #: goes, waits or refused.
    outcome: str
    #: Number of the leg that it would go to or wait on, from 0; None: it would be refused.
    chosen: int | None
    #: Code of the error that it would hear, "" when it is not refused.
    code: str
    #: In words.
    reason: str


class Routes:
    """All routes of a server."""

    def __init__(self, fleet: Fleet, queue: Queue, counters: metrics.Counters, *, hedge: bool = False) -> None:
        #: Whether streams of names without a route are hedged (`gateway.hedge`).
        self.hedge = hedge
        self._fleet = fleet
        self._queue = queue
        self._counters = counters
        self.rules = Rules()
        #: Route, name that was asked for, place and person -> where that goes.
        # bounded: by _PLANS
        self._plans: dict[tuple[str, str, routing.Where, str], Plan] = {}
        #: (shadow route, what it would have done, what was done) -> requests that nobody was told of yet.
        # bounded: by _UNTOLD
        self._untold: Counter[tuple[str, str, str]] = Counter()

    def adopt(self, rules: Rules) -> None:
        """These rules from now on."""
        if rules is not self.rules:
            self.rules = rules
            self._plans.clear()

    def go(self, caller: Caller, model: str, kind: str, flow: Flow, named: str = "") -> tuple[Course | None, Leg]:
        """The way of a request and its first leg; None: it goes by no route. `named`: the end user that its body names.
        Raises the error that says why there is none."""
        if not self.rules.routes:
            return self._way(None, caller, model, kind, "")
        real, shadow = self.rules.of(model)
        who = sticky(flow.path, named)
        if shadow is not None:
            self._note(shadow, real, caller, model, kind, who)
        return self._way(real, caller, model, kind, who)

    def _way(self, route: Route | None, caller: Caller, model: str, kind: str, who: str) -> tuple[Course | None, Leg]:
        home = self._home(caller)
        name = meant(caller, model, self._fleet, home)
        if name is None:
            raise not_found(model)
        if route is None:
            self._fleet.check(name, kind, home)
            return None, Leg(name, home)
        plan = self._plan(route, model, home, who)
        legs = [good for leg in plan.legs if (good := self._open(caller, leg)) is not None]
        if plan.legs and not legs:
            raise not_found(model)
        # what a name stands for may be another leg's model
        there = self._there(route, model, kind, list(dict.fromkeys(legs)))
        first = begin(there, kind, self._fleet, self._queue.order, spill=plan.spill)
        return Course(route.name, there, first, plan.strategy, plan.hedge), there[first]

    def _home(self, caller: Caller) -> routing.Where:
        """Where alone the requests of a caller may go now: whose they are matters as long as some workers are not for all."""
        return routing.both(caller.home, routing.of_team(caller.group)) if self._fleet.is_kept else caller.home

    def _plan(self, route: Route, model: str, home: routing.Where, who: str) -> Plan:
        key = route.name, model, home, who
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = routing.plan(route, model, home, who)
        return plan

    def _open(self, caller: Caller, leg: Leg) -> Leg | None:
        """The leg as the caller may go it; None: it is not for them."""
        name = meant(caller, leg.model, self._fleet, leg.where)
        return leg if name == leg.model else Leg(name, leg.where) if name is not None else None

    def _there(self, route: Route, model: str, kind: str, legs: list[Leg]) -> tuple[Leg, ...]:
        """Those that can be gone to, now or when workers come back. Raises NoWorker, NoResidence, BadRequest."""
        good, wrong = [], []
        for leg in legs:
            try:
                self._fleet.check(leg.model, kind, leg.where)
            except (errors.CallerError, errors.NoWorker) as why:
                wrong.append(why)
            else:
                good.append(leg)
        if good:
            return tuple(good)
        if any(isinstance(why, errors.NoResidence) for why in wrong):
            raise errors.NoResidence(f"No worker that '{model}' may go to is connected.", retry_after=SOON)
        if any(isinstance(why, errors.BadRequest) for why in wrong):
            raise errors.BadRequest(f"The model '{model}' does not support {kind}.", param="model", code="unsupported_endpoint")
        if kept := next((why for why in wrong if isinstance(why, errors.NoWorker)), None):
            raise kept
        raise errors.NoWorker(f"No worker that the route '{route.name}' leads to is connected.", retry_after=SOON)

    # -- shadows --------------------------------------------------------------------------------------------------

    def _note(self, shadow: Route, real: Route | None, caller: Caller, model: str, kind: str, who: str) -> None:
        """Counts a request that would have gone elsewhere."""
        would, does = (self._said(route, caller, model, kind, who) for route in (shadow, real))
        if would != does:
            self._counters.shadow_routes[shadow.name] += 1
            noted = shadow.name, would, does
            if noted in self._untold or len(self._untold) < _UNTOLD:
                self._untold[noted] += 1

    def _said(self, route: Route | None, caller: Caller, model: str, kind: str, who: str) -> str:
        try:
            _, leg = self._way(route, caller, model, kind, who)
        except errors.MindGWError as wrong:
            return f"nowhere ({wrong.code})"
        where = routing.both(leg.where, route.pins) if route is not None and route.shadow else leg.where
        return f"{leg.model} with {place}" if (place := routing.shown(where)) else leg.model

    def tell(self) -> None:
        """To be called about once a second: writes into the log what shadow routes would have done."""
        untold, self._untold = self._untold, Counter()
        for (route, would, does), count in untold.items():
            log.info("the route %s is only noted: %d requests would have gone to %s and not to %s", route, count, would, does)

    # -- views ----------------------------------------------------------------------------------------------------

    def offers(self, caller: Caller | None = None) -> list[Offer]:
        """What can be asked for now, by name: of a caller, by it and where it is bound to; names of routes among them."""
        home = self._home(caller) if caller is not None else routing.EVERYWHERE
        found = [offer for offer in roster.offers(self._fleet, home) if caller is None or is_for(caller, (offer.id, *offer.aliases))]
        known = {name for offer in found for name in (offer.id, *offer.aliases)}
        created = {name: offer.created for offer in found for name in (offer.id, *offer.aliases)}
        for route in self.rules.routes:
            name = route.match
            if route.shadow or name in known or "*" in name or "?" in name or (caller is not None and not is_for(caller, (name,))):
                continue
            legs = self._good(route, caller, home)
            if legs:
                found.append(Offer(id=name, aliases=[], created=max(created.get(leg.model, 0) for leg in legs)))
        return sorted(found, key=lambda offer: offer.id)

    def legs(self, model: str) -> list[str]:
        """The models that requests for a name go to by its route, each once; empty when it has none, or one that leads nowhere."""
        real, _ = self.rules.of(model)
        legs = routing.plan(real, model, routing.EVERYWHERE, "").legs if real is not None else ()
        return list(dict.fromkeys(leg.model for leg in legs))

    def _good(self, route: Route, caller: Caller | None, home: routing.Where) -> list[Leg]:
        legs = (leg if caller is None else self._open(caller, leg) for leg in routing.plan(route, route.match, home, "").legs)
        return [leg for leg in legs if leg is not None and self._fleet.present(leg.model, leg.where)]

    def explain(self, caller: Caller, model: str, kind: str, flow: Flow, check: Check) -> Way:
        """What would become of a request now; nothing is sent, and nothing is counted. `check` is that of whoever sends requests."""
        real, shadow = self.rules.of(model)
        home = self._home(caller)
        alone = Plan("", (Leg(model, home),), hedge=self.hedge)
        who = sticky(flow.path)
        plan = routing.plan(real, model, home, who) if real is not None else alone
        stops = [self._stop(caller, kind, leg, check) for leg in plan.legs]
        outcome, code, chosen = REFUSED, "", None
        try:
            require_use(caller)
            leg = self._begun(*self._way(real, caller, model, kind, who), kind, check)
        except errors.MindGWError as wrong:
            code, reason = wrong.code, wrong.message
        else:
            chosen = [self._open(caller, one) for one in plan.legs].index(leg)
            outcome = GOES if self._fleet.present(leg.model, leg.where) else WAITS
            place = leg.model + (f" with {tags}" if (tags := routing.shown(leg.where)) else "")
            reason = f"it goes to {place}" if outcome == GOES else f"{_NONE_READY}: it waits for {place}, and is refused when none comes"
        return Way(
            model=model, kind=kind, route=real.name if real else None, shadow=shadow.name if shadow else None, hedge=plan.hedge,
            home=routing.tags_of(caller.home), legs=stops, outcome=outcome, chosen=chosen, code=code, reason=reason,
        )  # fmt: skip

    def _begun(self, course: Course | None, leg: Leg, kind: str, check: Check) -> Leg:
        """The leg that a request begins with, behind those on which it would hear at once that nobody serves it; raises what it hears when
        there is no other."""
        number = course.first if course is not None else 0
        while True:
            try:
                check(Needs(leg.model, kind, where=leg.where))
            except errors.MindGWError:
                following = course.after(number, number + 1, self._fleet) if course is not None else None
                if course is None or following is None:
                    raise
                number, leg = following, course.legs[following]
            else:
                return leg

    def _stop(self, caller: Caller, kind: str, leg: Leg, check: Check) -> Stop:
        fleet = self._fleet
        seats = list(fleet.seats(leg.model, kind, leg.where))
        allowed, why_not = self._open(caller, leg) is not None, ""
        if not allowed:
            why_not = "it is not for who asks"
        elif not seats:
            why_not = "no worker of those that it may go to is connected" if leg.where else "no worker that serves it is connected"
        elif not fleet.present(leg.model, leg.where):
            why_not = _NONE_READY
        else:
            why_not = _hopeless(check, Needs(leg.model, kind, where=leg.where))
        seen = [Seen(name=one.worker.name, state=one.worker.state.value, used=one.used, slots=one.engine.slots) for one in seats]
        return Stop(model=leg.model, where=routing.tags_of(leg.where), allowed=allowed, workers=seen, why_not=why_not)


def _hopeless(check: Check, needs: Needs) -> str:
    """Why nobody will serve it; "" when that is not so."""
    try:
        check(needs)
    except errors.MindGWError as wrong:
        return wrong.message
    return ""


def sticky(path: Path, named: str = "") -> str:
    """Who has the same target each time: an end user, else a person, else a key. An end user that the body names (`named`) needs no
    trust for that: nobody gains by it."""
    org, _, user, key, end_user = path
    return "\0".join((org, user or key, end_user or named[:_NAME]))
