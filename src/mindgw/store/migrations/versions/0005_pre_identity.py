"""Who may do what: roles, rules for models, rates, sessions, and an audit log that is a chain."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    _people()
    _keys()
    _access()
    _sessions()
    _audit()


def downgrade() -> None:
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


def _drop(table: str, *columns: str) -> None:
    for column in columns:
        op.drop_column(table, column)


def _people() -> None:
    op.add_column("orgs", sa.Column("state", sa.String(), nullable=False, server_default="active"))
    op.add_column("orgs", sa.Column("labels", DOCUMENT, nullable=False, server_default="{}"))
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
