"""Where requests for a name go."""

from sqlmodel import Field

from mindgw.store.tables.columns import Document, Versioned


class Route(Versioned, table=True):
    """One route; what its texts mean stands in `core.routing`."""

    __tablename__ = "routes"

    name: str = Field(primary_key=True)
    #: A glob over the names that are asked for.
    match: str
    #: Targets, such as "qwen3:8b@pool=gpu=90".
    targets: list[str] = Field(default_factory=list, sa_type=Document, nullable=False)
    fallbacks: list[str] = Field(default_factory=list, sa_type=Document, nullable=False)
    #: Tags, such as "zone=lab": of the only workers that may serve the model, and of those that the route leads to.
    pins: list[str] = Field(default_factory=list, sa_type=Document, nullable=False)
    require: list[str] = Field(default_factory=list, sa_type=Document, nullable=False)
    #: "": as the server does it.
    strategy: str = ""
    #: Whether it goes on when workers are only busy; whether streams that are late to begin are tried on a second worker; and whether it is
    #: only noted what it would do.
    spill: bool = False
    hedge: bool = False
    shadow: bool = False
