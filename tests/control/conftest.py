"""Tests of what writes to the database run on SQLite and on a real Postgres, as those of the store do."""

from tests.store.conftest import database, kind, source, sqlite_template, url

__all__ = ["database", "kind", "source", "sqlite_template", "url"]
