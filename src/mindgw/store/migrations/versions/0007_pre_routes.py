"""Where requests go: routes, and workers that are to take nothing new."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "routes",
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("match", sa.String(), nullable=False),
        sa.Column("targets", DOCUMENT, nullable=False),
        sa.Column("fallbacks", DOCUMENT, nullable=False),
        sa.Column("pins", DOCUMENT, nullable=False),
        sa.Column("require", DOCUMENT, nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("spill", sa.Boolean(), nullable=False),
        sa.Column("hedge", sa.Boolean(), nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_routes"),
    )
    op.add_column("workers", sa.Column("drained", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("workers", "drained")
    op.drop_table("routes")
