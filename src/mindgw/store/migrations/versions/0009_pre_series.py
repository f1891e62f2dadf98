"""What workers measured, over time."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "series_blocks",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "step", "start", name="pk_series_blocks"),
    )
    op.create_index("ix_series_blocks_step_start", "series_blocks", ["step", "start"])


def downgrade() -> None:
    op.drop_index("ix_series_blocks_step_start", table_name="series_blocks")
    op.drop_table("series_blocks")
