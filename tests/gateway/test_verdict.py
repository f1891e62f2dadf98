"""Reports of agents that lie, or that are out of their minds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mindgw.gateway.verdict import LAST_SECOND, MAX_ENGINES, MAX_MODELS, MAX_SLOTS, judge
from mindgw_agent import wire
from mindgw_agent.wire import EngineReport, Gpu, Model, Report
from tests.gateway.world import engine

names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=600)
counts = st.integers(0, 2**53) | st.sampled_from([0, 1, 4096, 4097, 2**53])
floats = st.floats(allow_nan=True, allow_infinity=True)
models = st.builds(
    Model, names, context=st.none() | counts, kinds=st.lists(names, max_size=12), aliases=st.lists(names, max_size=40), created=counts
)
engines = st.builds(
    EngineReport,
    id=st.sampled_from(["a", "b", "c", "x" * 600]),
    kind=names,
    healthy=st.booleans(),
    slots=counts,
    running=counts,
    elsewhere=counts,
    models=st.lists(models, max_size=4),
    error=names,
)
gpus = st.builds(Gpu, names, memory_total=counts, memory_used=counts, utilisation=floats, temperature=floats)
reports = st.builds(
    Report, counts, st.lists(engines, max_size=6), st.booleans(), st.lists(gpus, max_size=4), names, counts, st.lists(names, max_size=3)
)


def test_an_honest_report_is_left_as_it_is():
    gpu = Gpu("4090", memory_total=24, memory_used=9, utilisation=0.5, temperature=61.0)
    honest = Report(3, [engine("m", slots=4, id="a"), engine("n", id="b")], gpus=[gpu], hostname="h", paused_until=7, teams=["nlp"])
    assert judge(honest) == (honest, "")


@given(reports)
def test_whatever_is_said_becomes_something_that_can_be_used(report):
    judged, charge = judge(report)
    assert len({e.id for e in judged.engines}) == len(judged.engines)
    for said in judged.engines:
        assert max(said.slots, said.running, said.elsewhere) <= MAX_SLOTS
        assert all(len(name) <= 512 for model in said.models for name in (model.id, *model.aliases))
    for gpu in judged.gpus:
        assert 0 <= gpu.utilisation <= 1
        assert math.isfinite(gpu.temperature)
        assert gpu.memory_used <= gpu.memory_total
    assert judged.paused_until <= LAST_SECOND
    wire.parse(Report, wire.frame(judged).payload)  # and it can be said again
    assert judge(judged).report == judged
    ids = [e.id for e in report.engines]
    assert bool(charge) == (len(set(ids)) < len(ids) or any(e.slots > MAX_SLOTS for e in report.engines))


@pytest.mark.parametrize(
    ("said", "charge"),
    [
        ([engine("m", slots=MAX_SLOTS + 1)], "it claims 4097 slots for one engine"),
        ([engine("m", slots=2**53)], f"it claims {2**53} slots for one engine"),
        ([engine("m", id="e1"), engine("n", id="e1")], "it reports 2 engines with the id 'e1'"),
        ([engine("m", id=str(i)) for i in range(MAX_ENGINES + 1)], "it reports 33 engines"),
    ],
)
def test_what_cannot_be_true_is_a_charge(said, charge):
    judged, told = judge(Report(0, said))
    assert told == charge
    assert len(judged.engines) <= MAX_ENGINES
    assert judged.engines[0].models[0].id == "m"  # who comes first stays


def test_thousands_of_models_are_cut():
    judged, charge = judge(Report(0, [replace(engine(), models=[Model(str(i)) for i in range(5000)])]))
    assert (len(judged.engines[0].models), charge) == (MAX_MODELS, "")
