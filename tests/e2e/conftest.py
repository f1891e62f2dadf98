"""One world for the tests that only talk to it: a server, two agents, two engines. Tests that break things make their own."""

from collections.abc import Iterator

import pytest

from tests.e2e.world import MEASURING, World, world
from tests.real_engine import start_engine

#: Files whose servers and agents take no coverage, which would cost half of their speed: nothing of them is seen there alone.
UNMEASURED = {"test_fair_queue", "test_idempotency", "test_losses", "test_outages", "test_postgres", "test_queue_watch", "test_quotas"}


@pytest.fixture(scope="module", autouse=True)
def measured(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] in UNMEASURED:
            for name in MEASURING:
                patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with workers `one` and `two`, each with its own llama.cpp engine."""
    with world(tmp_path_factory.mktemp("world")) as made, start_engine(slots=4) as first, start_engine(slots=4) as second:
        made.serve()
        made.join("one", first.url)
        made.join("two", second.url)
        yield made
