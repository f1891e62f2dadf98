"""Alembic's scripts, run by `store.migration` on a connection that it hands over."""
