"""Which revision a database is at, and which one this release wants; needs no Alembic, whose import costs a second."""

from importlib import resources

from sqlalchemy import Connection, column, inspect, select, table

#: Table in which Alembic keeps the revision.
VERSION_TABLE = "alembic_version"


def revisions() -> list[str]:
    """Packaged revisions, oldest first. A file `0002_pre_keys.py` is revision "0002"; pre: safe while the previous release still
    runs; post: only after it is gone."""
    files = (resources.files("mindgw.store.migrations") / "versions").iterdir()
    return sorted(file.name[:4] for file in files if file.name.endswith(".py") and file.name[:4].isdigit())


def head() -> str:
    """The revision that this release works with."""
    return revisions()[-1]


def current(connection: Connection) -> str | None:
    """The revision of a database; None when it is empty."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(select(column("version_num")).select_from(table(VERSION_TABLE))).scalar_one_or_none()
    return revision
