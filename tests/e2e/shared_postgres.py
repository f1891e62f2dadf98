"""Real servers on a Postgres: a world each, one database."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.world import Process, World, until
from tests.postgres import fetch


class PostgresWorld(World):
    """A world whose server keeps everything in a Postgres."""

    def __init__(self, folder: Path, database: str) -> None:
        super().__init__(folder)
        #: Address of a database.
        self.database = database

    def initialise(self, *args: str) -> dict[str, Any]:
        """`mindgw init` on that database."""
        return super().initialise("--db", self.database, *args)

    def start(self) -> Process:
        """The server, not ready yet."""
        self.server = self.spawn("server", "serve", "--data-dir", str(self.data_dir))
        return self.server

    def wait(self) -> None:
        """Until the server that was started is ready."""
        until(lambda: self._alive(self.server) and self.get("/readyz")[0] == 200, "the server is ready")

    def query(self, text: str) -> list[dict[str, Any]]:
        """What the database answers, which is of all its servers."""
        return asyncio.run(fetch(self.database, text))


@contextmanager
def postgres_world(folder: Path, database: str) -> Iterator[PostgresWorld]:
    """A world that is gone afterwards."""
    made = PostgresWorld(folder, database)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def two_servers(folder: Path, database: str) -> Iterator[tuple[PostgresWorld, PostgresWorld]]:
    """Two that were made on one database, by one operator; neither serves yet."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(postgres_world(folder / name, database)) for name in ("first", "second"))
        second.env = first.env
        first.initialise()
        second.initialise("--secrets-from", str(first.data_dir))
        yield first, second
