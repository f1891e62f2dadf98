import pytest

from mindgw.cli import workers


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
