"""What can be told of a database from inside: how it is set up, how much is in it, whether something in it is broken.

Every function reads on a plain connection; `Database.look` brings one.
"""

from collections.abc import Iterator

from msgspec import Struct
from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.exc import DatabaseError

from mindgw.store.tables import metadata

#: Rows beyond which Postgres' own estimate is good enough: to count takes a second for every few millions.
MANY = 1_000_000
#: Broken places of a file that are named.
NAMED = 20

_SYNCHRONOUS = ("off", "normal", "full", "extra")

_INVALID_INDEXES = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = current_schema()::regnamespace AND NOT (i.indisvalid AND i.indisready AND i.indislive) ORDER BY 1"""
_UNCHECKED_CONSTRAINTS = """
SELECT c.relname || '.' || k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE k.connamespace = current_schema()::regnamespace AND NOT k.convalidated ORDER BY 1"""

_ESTIMATE = "SELECT CAST(reltuples AS bigint) FROM pg_class WHERE oid = to_regclass(:name)"
_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'mindgw' AND datname = current_database() AND pid <> pg_backend_pid()"""


class Facts(Struct, frozen=True, kw_only=True):
    """How a database is set up, and how much is in it."""

    #: Version of SQLite, or of the server.
    version: str
    #: Bytes of its pages; what waits in the write-ahead log comes on top.
    size: int
    #: SQLite's journal mode; empty for Postgres, which has but one.
    journal: str
    #: How sure a commit is to be on the disk, in the database's own word: "full" and "on" are sure.
    synchronous: str
    #: Table -> rows.
    rows: dict[str, int]
    #: Those tables whose rows were not counted but estimated.
    estimated: list[str]


class Fault(Struct, frozen=True):
    """One thing that is wrong."""

    #: Which check found it: integrity, references, indexes, constraints, revision or schema.
    check: str
    #: Table, column, index or page.
    object: str
    problem: str


def facts(connection: Connection) -> Facts:
    """What is to be told of a database, whatever release made it."""
    postgres = connection.dialect.name == "postgresql"
    rows, estimated = _rows(connection, postgres)
    if postgres:
        return Facts(
            version=_one(connection, "SHOW server_version").partition(" ")[0],
            size=int(_one(connection, "SELECT pg_database_size(current_database())")),
            journal="",
            synchronous=_one(connection, "SHOW synchronous_commit"),
            rows=rows,
            estimated=estimated,
        )
    return Facts(
        version=_one(connection, "SELECT sqlite_version()"),
        size=int(_one(connection, "PRAGMA page_count")) * int(_one(connection, "PRAGMA page_size")),
        journal=_one(connection, "PRAGMA journal_mode"),
        synchronous=_SYNCHRONOUS[int(_one(connection, "PRAGMA synchronous"))],
        rows=rows,
        estimated=estimated,
    )


def faults(connection: Connection) -> Iterator[Fault]:
    """What is broken inside, the schema apart. Reads the whole file of an SQLite database."""
    if connection.dialect.name == "postgresql":
        yield from (Fault("indexes", name, "it is not valid: REINDEX it") for name in _column(connection, _INVALID_INDEXES))
        unchecked = "older rows were never checked: VALIDATE CONSTRAINT"
        yield from (Fault("constraints", name, unchecked) for name in _column(connection, _UNCHECKED_CONSTRAINTS))
        return
    try:
        said = _column(connection, f"PRAGMA integrity_check({NAMED})")
        yield from (Fault("integrity", "file", line) for line in said if line != "ok")
        strays = connection.execute(text('SELECT "table", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2 ORDER BY 1, 2'))
        yield from (Fault("references", table, f"{count} rows point to {parent} that are not there") for table, parent, count in strays)
    except DatabaseError as error:  # too broken to be checked to the end
        yield Fault("integrity", "file", str(error.orig))


def others(connection: Connection) -> int:
    """How many connections of servers the database has beside this one; 0 for SQLite, which cannot tell."""
    return int(_one(connection, _OTHERS)) if connection.dialect.name == "postgresql" else 0


def _rows(connection: Connection, postgres: bool) -> tuple[dict[str, int], list[str]]:
    present = set(inspect(connection).get_table_names())
    rows: dict[str, int] = {}
    estimated = []
    for table in (table for table in metadata.sorted_tables if table.name in present):
        estimate = int(_one(connection, _ESTIMATE, name=table.name)) if postgres else 0
        if estimate >= MANY:
            rows[table.name] = estimate
            estimated.append(table.name)
        else:
            rows[table.name] = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return rows, estimated


def _one(connection: Connection, query: str, **values: str) -> str:
    return str(connection.execute(text(query), values).scalar_one())


def _column(connection: Connection, query: str) -> list[str]:
    return [str(value) for value in connection.execute(text(query)).scalars()]
