"""Changes of keys, noted by the database itself: an older release that still runs, and whoever changes a row by hand, notes them too."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)
#: Changes that are kept. Who has not looked for so many trusts nothing that it remembers.
KEPT = 1000
#: What a key is good for hangs on these columns; when it was last used is no change.
WATCHED = {
    "keys": (
        "id", "name", "org_id", "team_id", "user_id", "admin", "priority", "trusted_proxy", "digest", "pepper_version", "expires_at",
        "revoked_at",
    ),
    "teams": ("id", "org_id", "name"),
    "users": ("id", "org_id", "email", "admin"),
}  # fmt: skip
#: "mgwkey" in ASCII: whoever notes a change holds this lock until its transaction ends, so that numbers appear in their order.
LOCK = 0x6D67776B6579

_NOTE = f"""
CREATE FUNCTION mindgw_note_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE noted bigint;
BEGIN
    PERFORM pg_advisory_xact_lock({LOCK});
    INSERT INTO key_changes (noun, row_id, at) VALUES (TG_TABLE_NAME, OLD.id, clock_timestamp()) RETURNING id INTO noted;
    DELETE FROM key_changes WHERE id <= noted - {KEPT};
    RETURN NULL;
END $$"""
_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"


def upgrade() -> None:
    op.create_table(
        "key_changes",
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("noun", sa.String(), nullable=False),
        sa.Column("row_id", sa.String(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_key_changes"),
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    now = _SQLITE_NOW if is_sqlite else "clock_timestamp()"
    op.execute(f"INSERT INTO key_changes (noun, row_id, at) VALUES ('', '', {now})")  # where who looks for the first time begins
    if not is_sqlite:
        op.execute(_NOTE)
    for table, columns in WATCHED.items():
        for name, verb in (("changed", f"UPDATE OF {', '.join(columns)}"), ("gone", "DELETE")):
            op.execute(f"CREATE TRIGGER {table}_{name} AFTER {verb} ON {table} FOR EACH ROW {_noting(table, is_sqlite)}")


def downgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table in WATCHED:
        for name in ("changed", "gone"):
            op.execute(f"DROP TRIGGER {table}_{name}" + ("" if is_sqlite else f" ON {table}"))
    if not is_sqlite:
        op.execute("DROP FUNCTION mindgw_note_key_change()")
    op.drop_table("key_changes")


def _noting(table: str, is_sqlite: bool) -> str:
    if not is_sqlite:
        return "EXECUTE FUNCTION mindgw_note_key_change()"
    note = f"INSERT INTO key_changes (noun, row_id, at) VALUES ('{table}', OLD.id, {_SQLITE_NOW})"
    return f"BEGIN {note}; DELETE FROM key_changes WHERE id <= (SELECT max(id) FROM key_changes) - {KEPT}; END"
