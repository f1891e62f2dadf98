"""What an agent says to requests that its owner does not want here, or that came when the engine was not to be seen."""

from typing import Any

import pytest

from mindgw_agent.offer import Offer
from mindgw_agent.stand import Stand
from mindgw_agent.wire import EngineReport, Meta, Model


class Engine:
    """One that has these models; None: it does not answer."""

    def __init__(self, *models: str) -> None:
        self.models: tuple[str, ...] | None = models

    async def probe(self) -> EngineReport:
        if self.models is None:
            return EngineReport(id="x", kind="fake", healthy=False, slots=1, error="no answer")
        return EngineReport(
            id="x", kind="fake", healthy=True, slots=1, models=[Model(name, aliases=[f"{name}:latest"]) for name in self.models]
        )


def made(engine: Engine, *globs: str) -> Offer[Any]:
    async def find() -> Engine:
        return engine

    async def carry(*_: Any) -> None:
        raise AssertionError

    return Offer([Stand(find, models=globs)], carry)


def said(offer: Offer[Any], model: str = "good") -> tuple[str, str]:
    close = offer.refusal(Meta("r", "/v1/chat/completions", model, 1, "e1"))
    return (str(close.outcome), close.code) if close is not None else ("", "")


@pytest.mark.parametrize("name", ["good", "good:latest"])
async def test_a_model_that_is_away_for_a_moment_is_not_refused(name):
    engine = Engine("good", "secret")
    offer = made(engine, "good*")
    await offer.probe()
    assert said(offer, name) == ("", "")
    engine.models = None
    for _ in range(3):
        await offer.probe()
        assert said(offer, name) == ("busy", "model_away")
    engine.models = ("good",)
    await offer.probe()
    assert said(offer, name) == ("", "")


async def test_a_model_that_is_gone_is_refused_once_that_was_told():
    engine = Engine("good", "goodness")
    offer = made(engine, "good*")
    await offer.probe()
    engine.models = ("goodness",)
    await offer.probe()
    assert said(offer) == ("busy", "model_away")
    await offer.probe()
    assert said(offer) == ("failed", "refused")


@pytest.mark.parametrize("there", [True, False])
async def test_a_model_that_the_owner_keeps_is_refused(there):
    engine = Engine("good", "secret")
    offer = made(engine, "good*")
    await offer.probe()
    engine.models = engine.models if there else None
    await offer.probe()
    assert said(offer, "secret") == ("failed", "refused")


async def test_where_all_is_offered_the_engine_says_what_it_has():
    offer = made(Engine("good"))
    await offer.probe()
    assert said(offer, "whatever") == ("", "")
