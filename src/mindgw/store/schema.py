"""Which revision a database is at, and which one this release wants; needs no Alembic, whose import costs a second."""

from importlib import resources

from sqlalchemy import Connection, column, inspect, select, table

from mindgw.errors import BadRequest, ConfigError

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


def refuse_newer(revision: str | None) -> None:
    """Raises ConfigError (schema_newer) when this release does not know the revision of a database; an empty one is no trouble."""
    if revision is None or revision in revisions():
        return
    hint = "install that release again, or restore the copy that it made in backups/ before it changed anything"
    message = f"a newer release made this database (revision {revision}); this one knows up to {head()}"
    raise ConfigError(message, hint=hint, code="schema_newer")


def require_older(revision: str, current: str | None) -> None:
    """Raises BadRequest unless a database at `current` can be taken back to `revision`."""
    older = [known for known in revisions() if current is not None and known < current]
    if revision not in older:
        hint = f"it can go back to {' or '.join(older)}" if older else "there is no older one"
        raise BadRequest(f"the database is at revision {current or 'none'}, of which {revision or 'none'} is not an older one", hint=hint)


def before(revision: str) -> str:
    """The revision that came before; empty when that was the first."""
    return max((known for known in revisions() if known < revision), default="")
