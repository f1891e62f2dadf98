"""Where agents keep their outboxes."""

import pytest

from tests.agent.linked import Agent


@pytest.fixture(autouse=True, scope="session")
def _place(tmp_path_factory: pytest.TempPathFactory) -> None:
    Agent.place = tmp_path_factory.mktemp("outboxes")
