"""Money: the ledger in chained commits, quotas with their budgets and leases, runs of servers, receipts of agents."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
#: Tables whose rows are never changed.
FOREVER = ("ledger", "ledger_commits")


def upgrade() -> None:
    op.drop_table("usage")
    _ledger()
    for table in FOREVER:
        _protect(table)
    _quotas()
    _epochs()
    _receipts()


def downgrade() -> None:
    for table in FOREVER:
        _unprotect(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION mindgw_refuse()")
    for table in ("receipt_heads", "receipts", "epoch_workers", "epochs", "leases", "budgets", "quotas", "ledger_commits", "ledger"):
        op.drop_table(table)
    _usage()


def _ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        *_facts(),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.String(), nullable=False),
        sa.Column("over", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
        sa.UniqueConstraint("request_id", "attempt", "kind", name="uq_ledger_request_id_attempt_kind"),
    )
    op.create_index("ix_ledger_day", "ledger", ["day"])
    op.create_index("ix_ledger_epoch_seq", "ledger", ["epoch", "seq"])
    for column in ("key_id", "user_id", "team_id", "org_id", "model"):
        op.create_index(f"ix_ledger_{column}_day", "ledger", [column, "day"])
    op.create_table(
        "ledger_commits",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("prev", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("known", sa.LargeBinary(), nullable=False),
        sa.Column("committed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("epoch", "seq", name="pk_ledger_commits"),
    )


def _facts() -> tuple[sa.Column, ...]:
    """What a row of the ledger shares with one of the table that was before it."""
    return (
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("team_id", sa.String(), nullable=True),
        sa.Column("org_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("queued_ms", sa.Integer(), nullable=False),
        sa.Column("ttft_ms", sa.Integer(), nullable=True),
        sa.Column("total_ms", sa.Integer(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
    )


def _protect(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            refusal = f"SELECT RAISE(ABORT, 'rows of {table} are never changed')"
            op.execute(f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} BEGIN {refusal}; END")
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION mindgw_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME; END $$"
    )
    for verb, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        op.execute(f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} FOR EACH {each} EXECUTE FUNCTION mindgw_refuse()")


def _unprotect(table: str) -> None:
    postgres = op.get_bind().dialect.name == "postgresql"
    for verb in ("update", "delete", "truncate") if postgres else ("update", "delete"):
        op.execute(f"DROP TRIGGER {table}_no_{verb}" + (f" ON {table}" if postgres else ""))


def _quotas() -> None:
    op.create_table(
        "quotas",
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("lim", sa.BigInteger(), nullable=False),
        sa.Column("on_exceed", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "unit", "period", name="pk_quotas"),
    )
    op.create_table(
        "budgets",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("lim", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("over", sa.BigInteger(), nullable=False),
        sa.Column("forgiven", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "unit", "window", name="pk_budgets"),
        *(sa.CheckConstraint(f'"{column}" >= 0', name=op.f(f"ck_budgets_{column}")) for column in ("used", "reserved", "over", "forgiven")),
    )
    op.create_table(
        "leases",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "scope", "unit", "window", name="pk_leases"),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_leases_amount")),
    )


def _epochs() -> None:
    op.create_table(
        "epochs",
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("instance", sa.String(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("beat_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("genesis", sa.LargeBinary(), nullable=False),
        sa.Column("after_epoch", sa.BigInteger(), nullable=False),
        sa.Column("after_seq", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.Column("head_seq", sa.BigInteger(), nullable=False),
        sa.Column("returns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_epochs"),
    )
    op.create_table(
        "epoch_workers",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("cleared_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("epoch", "worker_id", name="pk_epoch_workers"),
    )


def _receipts() -> None:
    op.create_table(
        "receipts",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("prompt", sa.BigInteger(), nullable=False),
        sa.Column("completion", sa.BigInteger(), nullable=False),
        sa.Column("cached", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("prev", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "seq", name="pk_receipts"),
    )
    op.create_index("ix_receipts_request_id", "receipts", ["request_id"])
    op.create_table(
        "receipt_heads",
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", "seq", name="pk_receipt_heads"),
    )


def _usage() -> None:
    """The table that the ledger took the place of, empty."""
    op.create_table(
        "usage",
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("request_id", sa.String(), nullable=False),
        *_facts(),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage"),
        sa.UniqueConstraint("request_id", name="uq_usage_request_id"),
    )
    op.create_index("ix_usage_started_at", "usage", ["started_at"])
    op.create_index("ix_usage_key_id_started_at", "usage", ["key_id", "started_at"])
