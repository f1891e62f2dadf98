"""Who may do what: roles, rules for models, rates, sessions, and an audit log that is a chain."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
#: Changes that are kept, and the lock that who notes one holds: as before.
KEPT = 1000
LOCK = 0x6D67776B6579
#: What the callers that keys stand for hang on. Table -> what a change of a row is noted as, which column says of whom, and columns that
#: matter; none: all of them, and new rows too.
WATCHED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "keys": (
        "keys", "id",
        ("id", "name", "org_id", "team_id", "user_id", "role", "priority", "trusted_proxy", "digest", "pepper_version", "expires_at",
         "revoked_at", "scopes", "rpm", "tpm", "concurrency", "labels", "prior_digest", "prior_pepper_version", "prior_until", "rotated_at"),
    ),
    "teams": ("teams", "id", ("id", "org_id", "name")),
    "users": ("users", "id", ("id", "org_id", "email", "role", "state")),
    "orgs": ("orgs", "id", ("id", "state", "labels")),
    "roles": ("orgs", "org_id", ()),
    "role_bindings": ("users", "user_id", ()),
    "access_rules": ("orgs", "org_id", ()),
}  # fmt: skip
#: As it was before.
WATCHED_BEFORE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "keys": (
        "keys", "id",
        ("id", "name", "org_id", "team_id", "user_id", "admin", "priority", "trusted_proxy", "digest", "pepper_version", "expires_at",
         "revoked_at"),
    ),
    "teams": ("teams", "id", ("id", "org_id", "name")),
    "users": ("users", "id", ("id", "org_id", "email", "admin")),
}  # fmt: skip
#: Its arguments: what to note a change as, and the column that says of whom.
_NOTE = f"""
CREATE OR REPLACE FUNCTION mindgw_note_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE noted bigint;
DECLARE whose jsonb;
BEGIN
    PERFORM pg_advisory_xact_lock({LOCK});
    IF TG_OP = 'INSERT' THEN whose := to_jsonb(NEW); ELSE whose := to_jsonb(OLD); END IF;
    INSERT INTO key_changes (noun, row_id, at) VALUES (TG_ARGV[0], COALESCE(whose ->> TG_ARGV[1], ''), clock_timestamp())
        RETURNING id INTO noted;
    DELETE FROM key_changes WHERE id <= noted - {KEPT};
    RETURN NULL;
END $$"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.execute(_NOTE)
    _unwatch(WATCHED_BEFORE)
    _people()
    _keys()
    _access()
    _sessions()
    _audit()
    _watch(WATCHED)


def downgrade() -> None:
    _unwatch(WATCHED)
    _contract()
    _watch(WATCHED_BEFORE)


def _unwatch(watched: dict[str, tuple[str, str, tuple[str, ...]]]) -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table, (_, _, columns) in watched.items():
        for name in ("changed", "gone") if columns else ("came", "changed", "gone"):
            op.execute(f"DROP TRIGGER {table}_{name}" + ("" if is_sqlite else f" ON {table}"))


def _watch(watched: dict[str, tuple[str, str, tuple[str, ...]]]) -> None:
    for table, (noun, whose, columns) in watched.items():
        changed = f"UPDATE OF {', '.join(columns)}" if columns else "UPDATE"
        moments = [("changed", changed, "OLD"), ("gone", "DELETE", "OLD")]
        for name, verb, row in moments if columns else [("came", "INSERT", "NEW"), *moments]:
            op.execute(f"CREATE TRIGGER {table}_{name} AFTER {verb} ON {table} FOR EACH ROW {_noting(noun, whose, row)}")


def _noting(noun: str, whose: str, row: str) -> str:
    if op.get_bind().dialect.name != "sqlite":
        return f"EXECUTE FUNCTION mindgw_note_key_change('{noun}', '{whose}')"
    values = f"'{noun}', COALESCE({row}.{whose}, ''), strftime('%Y-%m-%d %H:%M:%f', 'now')"
    note = f"INSERT INTO key_changes (noun, row_id, at) VALUES ({values})"
    return f"BEGIN {note}; DELETE FROM key_changes WHERE id <= (SELECT max(id) FROM key_changes) - {KEPT}; END"


def _contract() -> None:
    for table in ("audit_heads", "sessions", "rates", "access_rules", "role_bindings", "roles"):
        op.drop_table(table)
    op.drop_index("ix_audit_org_id", "audit")
    op.drop_index("ix_audit_seq", "audit")
    _drop("audit", "seq", "org_id", "address", "outcome", "hash")
    # whoever is in several organisations stays who they are in the first
    op.execute(
        "UPDATE users SET email = id || '.' || email WHERE EXISTS "
        "(SELECT 1 FROM users AS first WHERE first.email = users.email AND first.id < users.id)"
    )
    _addresses(("org_id", "email"), ("email",))
    for table in ("users", "keys"):
        op.add_column(table, sa.Column("admin", sa.Boolean(), nullable=False, server_default=sa.false()))
        op.execute(f"UPDATE {table} SET admin = true WHERE role = 'admin'")
    _drop(
        "keys", "role", "scopes", "rpm", "tpm", "concurrency", "labels", "prior_digest", "prior_pepper_version", "prior_until", "rotated_at"
    )
    _drop("users", "role", "state", "service", "invite_digest", "invite_expires_at", "last_seen_at")
    _drop("orgs", "state", "labels")
    _drop("workers", "tags")


def _drop(table: str, *columns: str) -> None:
    for column in columns:
        op.drop_column(table, column)


def _people() -> None:
    op.add_column("orgs", sa.Column("state", sa.String(), nullable=False, server_default="active"))
    op.add_column("orgs", sa.Column("labels", DOCUMENT, nullable=False, server_default="{}"))
    op.add_column("workers", sa.Column("tags", DOCUMENT, nullable=False, server_default="{}"))
    op.add_column("users", sa.Column("role", sa.String(), nullable=False, server_default="user"))
    op.execute("UPDATE users SET role = 'admin' WHERE admin")
    op.drop_column("users", "admin")
    op.add_column("users", sa.Column("state", sa.String(), nullable=False, server_default="active"))
    op.add_column("users", sa.Column("service", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("users", sa.Column("invite_digest", sa.LargeBinary(), nullable=True))
    op.add_column("users", sa.Column("invite_expires_at", MOMENT, nullable=True))
    op.add_column("users", sa.Column("last_seen_at", MOMENT, nullable=True))

    _addresses(("email",), ("org_id", "email"))


def _addresses(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """What makes a person one: the address alone, or within an organisation."""
    old, new = (f"uq_users_{'_'.join(columns)}" for columns in (before, after))
    with op.batch_alter_table("users") as users:
        users.drop_constraint(old, type_="unique")
        users.create_unique_constraint(new, list(after))


def _keys() -> None:
    op.add_column("keys", sa.Column("role", sa.String(), nullable=True))
    # no key that is there gets more than it had, whoever its user is
    op.execute("UPDATE keys SET role = CASE WHEN admin THEN 'admin' ELSE 'user' END")
    op.drop_column("keys", "admin")
    op.add_column("keys", sa.Column("scopes", DOCUMENT, nullable=False, server_default="{}"))
    op.add_column("keys", sa.Column("rpm", sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("tpm", sa.BigInteger(), nullable=True))
    op.add_column("keys", sa.Column("concurrency", sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("labels", DOCUMENT, nullable=False, server_default="{}"))
    op.add_column("keys", sa.Column("prior_digest", sa.LargeBinary(), nullable=True))
    op.add_column("keys", sa.Column("prior_pepper_version", sa.Integer(), nullable=True))
    op.add_column("keys", sa.Column("prior_until", MOMENT, nullable=True))
    op.add_column("keys", sa.Column("rotated_at", MOMENT, nullable=True))


def _access() -> None:
    op.create_table(
        "roles",
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("org_id", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("permissions", DOCUMENT, nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_roles"),
        sa.UniqueConstraint("org_id", "name", name="uq_roles_org_id_name"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_roles_org_id_orgs"),
    )
    op.create_table(
        "role_bindings",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role_bindings"),
        sa.UniqueConstraint("user_id", "role", "team_id", name="uq_role_bindings_user_id_role_team_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_role_bindings_user_id_users"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_role_bindings_team_id_teams"),
    )
    op.create_index("ix_role_bindings_team_id", "role_bindings", ["team_id"])
    op.create_table(
        "access_rules",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("org_id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("effect", sa.String(), nullable=False),
        sa.Column("pattern", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_rules"),
        sa.UniqueConstraint("org_id", "subject", "effect", "pattern", name="uq_access_rules_org_id_subject_effect_pattern"),
        sa.ForeignKeyConstraint(["org_id"], ["orgs.id"], name="fk_access_rules_org_id_orgs"),
    )
    op.create_table(
        "rates",
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("rpm", sa.Integer(), nullable=True),
        sa.Column("tpm", sa.BigInteger(), nullable=True),
        sa.Column("concurrency", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("scope", name="pk_rates"),
    )


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=True),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.Column("agent", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id_users"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])


def _audit() -> None:
    op.add_column("audit", sa.Column("seq", sa.BigInteger(), nullable=False, server_default="0"))
    # ids sort by the moment of their making
    op.execute(
        "UPDATE audit SET seq = placed.place FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM audit) AS placed "
        "WHERE placed.id = audit.id"
    )
    op.create_index("ix_audit_seq", "audit", ["seq"], unique=True)
    op.add_column("audit", sa.Column("org_id", sa.String(), nullable=True))
    op.create_index("ix_audit_org_id", "audit", ["org_id"])
    op.add_column("audit", sa.Column("address", sa.String(), nullable=False, server_default=""))
    op.add_column("audit", sa.Column("outcome", sa.String(), nullable=False, server_default="ok"))
    op.add_column("audit", sa.Column("hash", sa.LargeBinary(), nullable=True))
    op.create_table(
        "audit_heads",
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("archived_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("day", name="pk_audit_heads"),
    )
