"""One world for the tests that only talk to it: a server, two agents, two engines. Tests that break things make their own."""

from collections.abc import Iterator

import pytest

from tests.e2e.world import World, world
from tests.real_engine import start_engine


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server with workers `one` and `two`, each with its own llama.cpp engine."""
    with world(tmp_path_factory.mktemp("world")) as made, start_engine(slots=4) as first, start_engine(slots=4) as second:
        made.serve()
        made.join("one", first.url)
        made.join("two", second.url)
        yield made
