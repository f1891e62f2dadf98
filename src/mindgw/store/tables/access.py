"""Who may do what: roles, to whom they are given, and which models are for whom."""

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from mindgw.clock import utcnow
from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Count, Document, Row, UTCDateTime, Versioned


class Role(Versioned, table=True):
    """A role that somebody has made; those that are built in stand in `core.access`."""

    __tablename__ = "roles"
    __table_args__ = (UniqueConstraint("org_id", "name"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    #: None: it is there in every organisation.
    org_id: str | None = Field(default=None, foreign_key="orgs.id")
    name: str
    #: Each "verb:resource".
    permissions: list[str] = Field(default_factory=list, sa_type=Document, nullable=False)
    #: Whoever has a higher one may give it and take it away.
    rank: int = 0


class RoleBinding(Row, table=True):
    """A role that a person has beside the one in their own row."""

    __tablename__ = "role_bindings"
    __table_args__ = (UniqueConstraint("user_id", "role", "team_id"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    user_id: str = Field(foreign_key="users.id")
    #: Its name.
    role: str
    #: None: in the whole organisation.
    team_id: str | None = Field(default=None, foreign_key="teams.id", index=True)
    #: Identity whose provider says so, and may take it away; empty: somebody here has.
    identity_id: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False)


class AccessRule(Row, table=True):
    """Models that a subject may or may not use."""

    __tablename__ = "access_rules"
    __table_args__ = (UniqueConstraint("org_id", "subject", "effect", "pattern"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    org_id: str = Field(foreign_key="orgs.id")
    #: role:NAME, team:ID, user:ID or key:ID.
    subject: str
    #: allow or deny.
    effect: str
    #: A glob over the names of models.
    pattern: str
    created_at: datetime = Field(default_factory=utcnow, sa_type=UTCDateTime, nullable=False)


class Rate(Versioned, table=True):
    """How fast a scope may ask. Keys have theirs in their own row."""

    __tablename__ = "rates"

    #: user:ID, team:ID or org:ID.
    scope: str = Field(primary_key=True)
    #: Requests and tokens a minute, and requests at once; None: no limit.
    rpm: int | None = None
    tpm: int | None = Field(default=None, sa_type=Count)
    concurrency: int | None = None
