"""Who uses the gateway: organisations, their teams, their users."""

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from mindgw.store.ids import new_id
from mindgw.store.tables.columns import Versioned


class Org(Versioned, table=True):
    __tablename__ = "orgs"

    id: str = Field(default_factory=new_id, primary_key=True)
    name: str = Field(unique=True)


class Team(Versioned, table=True):
    __tablename__ = "teams"
    __table_args__ = (UniqueConstraint("org_id", "name"),)

    id: str = Field(default_factory=new_id, primary_key=True)
    org_id: str = Field(foreign_key="orgs.id")
    name: str


class User(Versioned, table=True):
    __tablename__ = "users"

    id: str = Field(default_factory=new_id, primary_key=True)
    org_id: str = Field(foreign_key="orgs.id", index=True)
    #: Always lower case: one person is one row however the address is typed.
    email: str = Field(unique=True)
    name: str = ""
    admin: bool = False
