import json

import pytest

from mindgw.cli import workers
from mindgw_agent import wire


@pytest.mark.parametrize(
    ("circuits", "shown"),
    [
        ([], "closed"),
        (None, "closed"),
        ([{"model": "m", "state": "open", "retry_s": 4.2}], "m open for 4s"),
        ([{"model": "m", "state": "half-open", "retry_s": 0.0}, {"model": "n", "state": "probing"}], "m half-open, n probing"),
    ],
)
def test_models_that_fail_on_a_worker_are_named(circuits, shown):
    (column,) = (column for column in workers._DETAILS if column.title == "BREAKER")
    assert column.value({"name": "box", "circuits": circuits}) == shown


def test_each_engine_of_a_worker_is_shown_and_slots_are_those_that_there_are(admin, live):
    good = wire.EngineReport(
        id="a", kind="vllm", version="9", url="http://127.0.0.1:8000", healthy=True, slots=4, models=[wire.Model("w-m", kinds=["chat"])]
    )
    bad = wire.EngineReport(id="b", kind="ollama", version="1", healthy=False, slots=8, error="connection refused")
    live("w-two", good, bad)
    listed = next(line for line in admin("workers", "list").out.splitlines() if line.startswith("w-two"))
    assert "vllm 9, ollama 1 (1 of 2 down)" in listed
    assert "0/4" in listed
    shown = admin("workers", "show", "w-two").out.splitlines()
    assert "engine 1      vllm 9 at http://127.0.0.1:8000, 0/4 slots: w-m" in shown
    assert "engine 2      ollama 1, down: connection refused" in shown
    engines = json.loads(admin("workers", "show", "w-two", "--json").out)["engines"]
    assert [(engine["healthy"], engine["error"]) for engine in engines] == [(True, ""), (False, "connection refused")]


def test_one_engine_needs_no_number(admin, live):
    live("w-one", wire.EngineReport(id="a", kind="vllm", healthy=False, slots=4))
    assert "engine        vllm, down: it gives no answer" in admin("workers", "show", "w-one").out.splitlines()
    assert "vllm (down)" in admin("workers", "list").out


def test_of_a_worker_that_is_away_nothing_is_down():
    (column,) = workers._engine_rows({"state": "offline", "engines": [{"kind": "vllm", "healthy": None}]})
    assert column.value({"state": "offline"}) == "vllm"
    assert workers._engine_rows({"state": "offline"}) == []
