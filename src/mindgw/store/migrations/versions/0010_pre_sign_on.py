"""Sign-on: whom identity providers know, and for how long a session is good without asking them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("keys", sa.Column("provider", sa.String(), nullable=False, server_default=""))
    op.add_column("role_bindings", sa.Column("provider", sa.String(), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("identity_id", sa.String(), nullable=False, server_default=""))
    op.create_index("ix_sessions_identity_id", "sessions", ["identity_id"])
    op.add_column("sessions", sa.Column("refresh", sa.LargeBinary(), nullable=True))
    op.add_column("sessions", sa.Column("ends_at", MOMENT, nullable=True))
    op.add_column("sessions", sa.Column("checked_at", MOMENT, nullable=True))
    op.create_table(
        "identities",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("claims_at", MOMENT, nullable=False),
        sa.Column("vouched_at", MOMENT, nullable=True),
        sa.Column("role", sa.String(), nullable=False, server_default=""),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identities"),
        sa.UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_identities_user_id_users"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_identities_key_id_keys"),
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])
    op.create_table(
        "tickets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tickets"),
    )
    op.create_index("ix_tickets_expires_at", "tickets", ["expires_at"])


def downgrade() -> None:
    op.drop_table("tickets")
    op.drop_table("identities")
    # whoever is out by their provider's word stays out
    op.execute("UPDATE users SET state = 'disabled' WHERE state = 'lapsed'")
    op.drop_index("ix_sessions_identity_id", "sessions")
    for column in ("checked_at", "ends_at", "refresh", "identity_id"):
        op.drop_column("sessions", column)
    op.drop_column("role_bindings", "provider")
    op.drop_column("keys", "provider")
