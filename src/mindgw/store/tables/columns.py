"""Column types and the metadata that all tables share."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, MetaData
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from mindgw.clock import utcnow


class UTCDateTime(TypeDecorator[datetime]):
    """A moment with its zone: naive values are refused, every value comes back in UTC (SQLite itself would lose the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a moment without a zone cannot be stored: {value!r}")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: A document; JSONB where the database has it.
Document: Any = JSON().with_variant(JSONB(), "postgresql")
#: A counter that the database assigns; SQLite only counts in a column that is exactly INTEGER.
Serial: Any = BigInteger().with_variant(Integer(), "sqlite")
#: Tokens and bytes.
Count: Any = BigInteger


class Row(SQLModel):
    """What every table shares. Constraints have fixed names, so that a migration can find them on both databases."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Versioned(Row):
    """A row that people change: `version` starts at 1 and grows by one with every change, see `store.versions`."""

    created_at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False)
    version: int = Field(default=1, nullable=False)
